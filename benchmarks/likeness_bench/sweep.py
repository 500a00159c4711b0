"""The highest rate that a server answers within a latency target."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from likeness_client import InputError

from likeness_bench.figures import ENOUGH, LoadReport, enough_s
from likeness_bench.load import RunLoad, run_load
from likeness_bench.load_config import LoadConfig
from likeness_bench.recall import Recall
from likeness_bench.report import Report, now
from likeness_bench.rest import PAUSE_S, come_to_rest, silence
from likeness_bench.search import RateSearch, decisive, settled
from likeness_bench.tables import counted
from likeness_bench.view import UNSEEN, View
from likeness_bench.workload import Workload

FORMAT = "likeness-sweep-1"
PATIENCE_S = 300.0
"""The longest that a server may take to finish what a run left it with."""
_UNREST = "the server did not come to rest after a run with failures (begin with a lower --rate; keep other loads away)"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What to find.

    Attributes:
        load: how each rate is tried, see `load_at`; its rate is where the search begins.
        target_ms: the 99th percentile that must be kept, failures counting as infinitely late.
        budget_s: when to stop searching; no run is begun that would end later.
        max_repeats: of one rate, while its figures do not settle; a miss in doubt is tried again, with as many.
        precision: the search ends when the gap between kept and missed is this share of the rate.

    Raises:
        InputError: there is no rate, a number is out of range, or the budget does not hold one run.
    """

    load: LoadConfig
    target_ms: float = 100.0
    budget_s: float = 600.0
    max_repeats: int = 4
    precision: float = 0.05

    def __post_init__(self) -> None:
        if self.load.rate is None:
            raise InputError("a sweep is an open loop: give the rate to begin with")
        if not 0 < self.target_ms < float("inf"):
            raise InputError(f"--target-ms {self.target_ms:g}: give a number above 0")
        if self.max_repeats < 1:
            raise InputError(f"--max-repeats {self.max_repeats}: give at least 1")
        if not self.budget_s >= (first_s := self.load_at(self.load.rate).length_s):  # NaN neither
            raise InputError(
                f"--budget-s {self.budget_s:g} does not hold one run of {first_s:g} s: give more, a shorter "
                f"--duration-s or a higher --rate than {self.load.rate:g}, as a p99 takes some {ENOUGH} requests"
            )

    def load_at(self, rate: float) -> LoadConfig:
        """Return the load of a run at a rate; where the rate is low, one that is long enough for a p99."""
        return replace(self.load, rate=rate, duration_s=max(self.load.duration_s, enough_s(rate)))


@dataclass(frozen=True, kw_only=True)
class RateStep:
    """One rate that was tried.

    Attributes:
        rate: requests per second.
        kept: whether it kept the target, by ``p99_ms``, and the server kept up in the repeat that `shown` names: where
            the target is long beside the run, a growing queue may stay below it.
        settled: whether its last two repeats agreed.
        p99_ms: of the repeat that `shown` names; failures count as infinitely late; None: infinite.
        repeats: the report of each.
    """

    rate: float
    kept: bool
    settled: bool
    p99_ms: float | None
    repeats: tuple[LoadReport, ...]

    @property
    def shown(self) -> LoadReport:
        """The repeat that stands for all; see `decisive`."""
        return self.repeats[decisive([run.p99_with_failures_ms for run in self.repeats], settled=self.settled)]


@dataclass(frozen=True, kw_only=True)
class SweepReport(Report):
    """What a sweep found.

    Attributes:
        format: of this report.
        target_ms: the target.
        best_rate: the highest rate that kept it, in requests/s; None if none did.
        ended: why the search ended, in words.
        complete: whether it ended because the answer was there, and not before.
        steps: the rates, as they were tried.
        label: what recall was measured on, in words; empty when it was not.
        recall: of the embeddings that this server gives, for each part of the mix; measured before the search.
    """

    format: str = FORMAT
    target_ms: float
    best_rate: float | None
    ended: str
    complete: bool
    steps: tuple[RateStep, ...]
    label: str = ""
    recall: Mapping[str, Recall] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether a rate was tried to its end."""
        return bool(self.steps)

    @property
    def best(self) -> LoadReport | None:
        """The repeat that stands for the best rate, with the recall beside it."""
        return self._middle_at(self.best_rate)

    @property
    def shown(self) -> LoadReport | None:
        """The load to look at closely: `best`, or where no rate kept the target that of the lowest one."""
        return self.best or self._middle_at(min((step.rate for step in self.steps), default=None))

    def _middle_at(self, rate: float | None) -> LoadReport | None:
        for step in self.steps:
            if step.rate == rate:
                return replace(step.shown, label=self.label, recall=self.recall)
        return None


async def run_sweep(
    workload: Workload,
    config: SweepConfig,
    *,
    stop: asyncio.Event,
    view: View = UNSEEN,
    run_once: RunLoad = run_load,
) -> SweepReport:
    """Search until the answer is there, the time is up, or ``stop`` is set.

    Args:
        workload: what is sent; see `likeness_bench.load.prepare`.
        config: what to find.
        stop: set it to get what was found so far; a run that it cuts short decides nothing.
        view: is told each run before it begins, and shown it while it runs.
        run_once: makes a run.
    """
    made_at = now()
    assert config.load.rate is not None
    search = RateSearch(rate=config.load.rate, precision=config.precision, lowest=min(0.1, config.load.rate))
    attempt = _Attempts(workload=workload, config=config, stop=stop, view=view, run_once=run_once)
    tried: dict[float, RateStep] = {}
    while not attempt.over and (rate := search.next_rate()) is not None:
        if step := await attempt.at(rate, tried.get(rate)):
            tried[rate] = step
            search.tell(rate, kept=step.kept)
    steps = tuple(tried.values())
    return SweepReport(
        made_at=made_at,
        target_ms=config.target_ms,
        best_rate=search.kept,
        ended=f"{attempt.over}: {_known(search)}" if attempt.over else _conclusion(search, steps),
        complete=not attempt.over,
        steps=steps,
    )


@dataclass
class _Attempts:
    """Tries rates. ``over`` says why there can be no more, once there cannot."""

    workload: Workload
    config: SweepConfig
    stop: asyncio.Event
    view: View
    run_once: RunLoad
    over: str = ""

    def __post_init__(self) -> None:
        self.begins_s = time.perf_counter()
        self.runs = 0
        self.extra_s = 0.0  # what the runs took beyond their length
        self.busy = False  # maybe, with requests of the last run that nobody waits for any more

    async def at(self, rate: float, before: RateStep | None) -> RateStep | None:
        """Repeat one rate until its figures settle; None if not even one repeat was finished.

        Args:
            rate: in requests/s.
            before: what came of it when it was tried before; its repeats count, too, where the new ones do not settle.
        """
        earlier, repeats = before.repeats if before else (), list[LoadReport]()
        while len(repeats) < self.config.max_repeats and not self._settled(repeats):
            report = await self._run(rate, len(earlier) + len(repeats) + 1)
            if report is None:
                break
            repeats.append(report)
        if not repeats:
            return None
        settled_ = self._settled(repeats)
        step = RateStep(rate=rate, kept=False, settled=settled_, p99_ms=None, repeats=(*earlier, *repeats))
        p99_ms = step.shown.p99_with_failures_ms
        in_time = p99_ms is not None and p99_ms <= self.config.target_ms
        return replace(step, kept=in_time and step.shown.keeps_up, p99_ms=p99_ms)

    def _settled(self, repeats: list[LoadReport]) -> bool:
        first = repeats[0].latency if repeats else None
        p99_ms = [run.p99_with_failures_ms for run in repeats]
        return settled(p99_ms, first.p50_ms if first else None, self.config.target_ms)

    async def _run(self, rate: float, repeat: int) -> LoadReport | None:
        load = self.config.load_at(rate)
        if self.runs and not await self._ready(load):
            return None
        self.runs += 1
        # Every repeat has arrivals and products of its own, or an unlucky schedule would be taken for the server.
        load = replace(load, workload=replace(load.workload, seed=load.workload.seed + self.runs))
        self.view.step(load, repeat)
        began_s = time.perf_counter()
        report = await self.run_once(self.workload, load, stop=self.stop, view=self.view)
        self.extra_s += max(0.0, time.perf_counter() - began_s - load.length_s)
        self.busy = report.failed > 0
        if self.stop.is_set():
            self.over = "interrupted"
        elif not report.requests:
            self.over = f"at {rate:.3g} requests/s no request fell into {load.duration_s:g} s; use longer runs"
        elif report.latency is None and (reason := await self._silence(load)):
            self.over = f"at {rate:.3g} requests/s nothing was answered, nor one request after it ({reason})"
        return None if self.over else report

    async def _ready(self, load: LoadConfig) -> bool:
        """Wait until the server is free for another run; where there can be none, ``over`` says why."""
        needed_s = load.length_s + self.extra_s / self.runs
        if self._left_s() < needed_s + PAUSE_S:
            self.over = f"the time is up ({self.config.budget_s:g} s)"
        elif not self.busy:
            await asyncio.sleep(PAUSE_S)
        elif not await self._rests(self._left_s() - needed_s):
            self.over = "interrupted" if self.stop.is_set() else _UNREST
        return not self.over

    async def _rests(self, patience_s: float) -> bool:
        """Wait until the server has finished what the last run left it with; say whether it has."""
        patience_s = min(PATIENCE_S, patience_s)
        self.busy = not await come_to_rest(self.config.load, patience_s=patience_s, stop=self.stop)
        return not self.busy

    async def _silence(self, load: LoadConfig) -> str:
        """Return why the rate is not to blame where nothing was answered; empty where it is, or nobody knows yet."""
        if not await self._rests(self._left_s()):
            return ""
        return await silence(self.workload, load, patience_s=self._left_s(), stop=self.stop)

    def _left_s(self) -> float:
        return self.config.budget_s - (time.perf_counter() - self.begins_s)


def _known(search: RateSearch) -> str:
    """Say what is known of an answer that was not reached."""
    kept = "none" if search.kept is None else f"{search.kept:.3g}"
    missed = "none" if search.missed is None else f"{search.missed:.3g}"
    return (
        f"of the rates that were tried, the highest that kept the target is {kept}, the lowest that missed it {missed}"
    )


def _conclusion(search: RateSearch, steps: Sequence[RateStep]) -> str:
    if search.kept is None:
        return f"not even {search.missed:g} requests/s kept the target"
    if search.missed is None:
        return f"even {search.kept:g} requests/s kept the target; it was not tried further"
    unsettled = sum(not step.settled for step in steps)
    doubt = f"; the figures of {counted(unsettled, 'rate')} did not settle" if unsettled else ""
    return f"found between {search.kept:.3g} (kept) and {search.missed:.3g} (missed) requests/s{doubt}"
