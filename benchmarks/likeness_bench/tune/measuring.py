"""Measuring: the service times of one server, and two servers in alternation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from likeness_client import LikenessError, Product, ServerError

from likeness_bench.figures import ENOUGH, LoadReport, RunFigures, too_few
from likeness_bench.load import prepare, run_load
from likeness_bench.load_config import LoadConfig
from likeness_bench.load_report import LAG_LIMIT_MS
from likeness_bench.steps import read_counters
from likeness_bench.tables import counted
from likeness_bench.tune.judge import Round, hopeless
from likeness_bench.tune.search import CandidateRounds
from likeness_bench.tune.servers import TrialError, TrialServer, TrialServers
from likeness_bench.tune.service import ServiceTime, service_times
from likeness_bench.tune.settings import Settings
from likeness_bench.view import View
from likeness_bench.workload import Workload


@dataclass(kw_only=True)
class Measuring:
    """Makes loads on trial servers.

    Attributes:
        servers: where servers come from.
        load: how a turn is made, a closed loop; its address does not count.
        target_ms: the 99th percentile that has to be kept.
        stop: set it to end a measurement; what it cuts short decides nothing.
        view: is told what happens next, and shown each load while it runs.
        harness_late_ms: the harness's own lateness (p99) in the worst turn.
        fewest_requests: of a turn, where one had fewer than enough.
        failed: requests that failed in all turns.
        failure: what the first of them said.
    """

    servers: TrialServers
    load: LoadConfig
    target_ms: float
    stop: asyncio.Event
    view: View
    harness_late_ms: float = 0.0
    fewest_requests: int = ENOUGH
    failed: int = 0
    failure: str = ""

    def __post_init__(self) -> None:
        self._workload: Workload | None = None
        self._turns = 0

    async def profile(
        self, settings: Settings, products: Sequence[Product]
    ) -> tuple[RunFigures, tuple[ServiceTime, ...]]:
        """Load a server with these settings, read where its time goes, and keep the products for all later turns.

        Raises:
            TrialError: the server does not start, ended meanwhile, or has lost a model.
            LikenessError: it cannot be asked this, or answered nothing.
        """
        self.view.say("the repository as it is")
        server, _ = await self.servers.get(settings)
        load = replace(self.load, address=server.address)
        self._workload = await prepare(products, load)
        await self._warm(server)
        before = await read_counters(server.address)
        report = await self._load(server, load)
        _check(server, report)
        times = service_times(before, await read_counters(server.address))
        if report.latency is None and not self.stop.is_set():
            example = report.errors[0].example if report.errors else "no answer came in time; give a longer --turn-s"
            raise LikenessError(f"the repository as it is answered nothing: {example}")
        return RunFigures.of(report), times

    def cost_s(self, rounds: int) -> float:
        """Return how long it takes at most to compare two settings, one of which has to be started."""
        return (2 * rounds + 1) * self.load.length_s + self.servers.longest_start_s

    async def compare(
        self, incumbent: Settings, candidate: Settings, what: str, rounds: int, *, to_the_end: bool = False
    ) -> CandidateRounds | None:
        """Compare two settings in alternation; None when it was interrupted.

        A candidate that cannot win enough of the rounds any more is left, unless all are wanted ``to_the_end``.

        Raises:
            TrialError: the incumbent's server does not start.
        """
        self.view.say(what)
        await self.servers.only(incumbent, candidate)
        first = await self._ready(incumbent)
        try:
            second = await self._ready(candidate)
        except LikenessError as error:
            return None if self.stop.is_set() else CandidateRounds(failure=str(error))
        found: list[Round] = []
        while len(found) < rounds and (to_the_end or not hopeless(found, rounds, self.target_ms)):
            self.view.say(f"{what}: round {len(found) + 1} of {rounds}")
            try:
                found.append(await self._round(first, second, len(found)))
            except TrialError as error:
                await self.servers.only()  # one of them is of no use any more
                return None if self.stop.is_set() else CandidateRounds(rounds=tuple(found), failure=str(error))
            if self.stop.is_set():
                return None
        return CandidateRounds(rounds=tuple(found))

    async def _round(self, first: TrialServer, second: TrialServer, number: int) -> Round:
        """Give each its turn; who begins changes, so that a machine that gets slower favours nobody."""
        self._turns += 1
        # The same requests for both, other ones in every round.
        seed = self.load.workload.seed + self._turns
        load = replace(self.load, workload=replace(self.load.workload, seed=seed))
        turns = {}
        order = [("incumbent", first), ("candidate", second)]
        for name, server in order if number % 2 == 0 else reversed(order):
            report = await self._load(server, load)
            try:
                _check(server, report)
            except TrialError as error:
                raise TrialError(f"{name}: {error}") from error
            turns[name] = RunFigures.of(report)
        return Round(incumbent=turns["incumbent"], candidate=turns["candidate"])

    async def _ready(self, settings: Settings) -> TrialServer:
        server, fresh = await self.servers.get(settings)
        if fresh:
            await self._warm(server)
        return server

    async def _warm(self, server: TrialServer) -> None:
        """Make a load that does not count: the first executions of a network are slow."""
        await self._load(server, self.load, counts=False)

    async def _load(self, server: TrialServer, load: LoadConfig, *, counts: bool = True) -> LoadReport:
        assert self._workload is not None
        load = replace(load, address=server.address)
        report = await run_load(self._workload, load, stop=self.stop, view=self.view)
        if counts and not self.stop.is_set():
            late_ms = report.harness_lag.p99_ms if report.harness_lag else 0.0
            self.harness_late_ms = max(self.harness_late_ms, late_ms)
            self.fewest_requests = min(self.fewest_requests, report.requests)
            for row in report.errors:
                self.failed += row.count
                self.failure = self.failure or row.example
        return report

    def doubts(self) -> list[str]:
        """Say what stands in the way of believing the figures."""
        found = []
        if self.failed:
            found.append(
                f"{counted(self.failed, 'request')} failed, and counted as infinitely late; the first: {self.failure}"
            )
        if self.harness_late_ms > LAG_LIMIT_MS:
            found.append(
                f"the harness itself was late (p99 {self.harness_late_ms:.1f} ms in its worst turn): it shares the "
                "cores with the servers, and the latencies are partly its own"
            )
        if doubt := too_few(self.fewest_requests):
            found.append(f"a turn had {doubt}; use a longer --turn-s")
        return found


def _check(server: TrialServer, report: LoadReport) -> None:
    """Do nothing if a load was answered by a server that is whole.

    A model whose process has ended fails every request, at once, while the server lives on: that is no slow setting.

    Raises:
        TrialError: the server has ended, or one of its models has.
    """
    server.check()
    broken = next((row for row in report.errors if row.kind == ServerError.__name__), None)
    if broken:
        raise TrialError(f"the server fails {broken.count} of {report.requests} requests: {broken.example}")
