"""A server beside its ceiling: the same networks in one process, in alternation with the load, within one run.

The speed of a machine drifts, so only turns that followed each other are compared: by their ratio within each round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import fmean

from joblib import cpu_count
from likeness_client import InputError, LikenessError, Product, ServerInfo

from likeness_bench.ceiling_process import CeilingError, CeilingProcess, Measured
from likeness_bench.ceiling_report import Case, CeilingReport, Round, Trial, doubts, medians
from likeness_bench.ceiling_search import (
    Ceiling,
    check_same_space,
    drawn_items,
    largest_difference,
    p50_ms,
)
from likeness_bench.configs import cpu_threads_of
from likeness_bench.figures import ENOUGH, LoadReport, enough_s
from likeness_bench.load import run_load
from likeness_bench.load_config import LoadConfig, open_client
from likeness_bench.recall import LabelConfig, Recall, served_recall
from likeness_bench.report import now
from likeness_bench.view import UNSEEN, View
from likeness_bench.workload import AS_THEY_ARE, OperationKind, Workload, held


@dataclass(frozen=True, kw_only=True)
class CeilingConfig:
    """What to compare.

    Attributes:
        load: the load at saturation, a closed loop; its length is the length of every turn. The signatures of its
            workload do not count.
        repository: the model repository that the server serves.
        cases: name -> the mix of signatures; an empty mix: products as they are.
        rounds: alternations per case.
        trial_s: how long each batch size and each use of the cores is tried.
        label: what recall is measured on; None: it is not.

    Raises:
        InputError: the load is no closed loop or does not only embed, a number is out of range, or recall is asked for
            and all cases are mixes.
    """

    load: LoadConfig
    repository: Path
    cases: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: {AS_THEY_ARE: {}})
    rounds: int = 5
    trial_s: float = 1.0
    label: LabelConfig | None = None

    def __post_init__(self) -> None:
        if self.load.concurrency is None:
            raise InputError("the ceiling is compared with a closed loop: give a concurrency")
        if others := sorted(set(self.load.workload.operations) - {OperationKind.EMBED}):
            raise InputError(f"the ceiling is one of embedding, not of {', '.join(others)}: ask for embed only")
        if self.rounds < 1 or not 0 < self.trial_s < float("inf") or not self.cases:
            raise InputError("--rounds must be at least 1, --trial-s above 0 and finite, and there a --signature")
        if self.label and all(len(mix) > 1 for mix in self.cases.values()):
            raise InputError(
                f"--label {self.label.field}: recall is of one signature, and here are only mixes: leave it out, or "
                "give a --signature by itself, too"
            )


async def run_ceiling(
    products: Sequence[Product],
    config: CeilingConfig,
    *,
    stop: asyncio.Event,
    labels: Sequence[tuple[Product, str]] = (),
    view: View = UNSEEN,
) -> CeilingReport:
    """Measure all cases, or until ``stop`` is set; a round that it cuts short does not count.

    Args:
        products: what is sent.
        config: what to compare.
        stop: set it to get what was found so far.
        labels: the products that recall is measured on, with their labels.
        view: is told what happens next, and shown each load while it runs.

    Raises:
        SpaceMismatchError: the server serves another repository.
        LikenessError: the server cannot be reached or cannot be asked this. What fails later stands in the report.
    """
    made_at = now()
    async with open_client(config.load) as client:
        info = await client.info()
    check_same_space(config.repository, info, config.load.address)
    workloads = await asyncio.to_thread(_workloads, products, info, config)
    cases: list[Case] = []
    failures: dict[str, str] = {}
    async with CeilingProcess(config.repository) as process:
        for name, (workload, single) in zip(config.cases, workloads, strict=True):
            if stop.is_set():
                break
            compared = _Comparison(
                name=name,
                config=replace(config, load=replace(config.load, workload=workload.config)),
                ceiling=Ceiling(
                    process=process, repository=config.repository, trial_s=config.trial_s, stop=stop, view=view
                ),
                workload=workload,
                single=single,
            )
            try:
                await compared.run(labels)
            except LikenessError as error:  # what was measured before it counts
                failures[name] = str(error)
            if case := compared.case():
                cases.append(case)
    return CeilingReport(
        made_at=made_at,
        load=config.load.plain(),
        repository=str(config.repository),
        space=info.space,
        cores=cpu_count(),
        cpu_threads=cpu_threads_of(config.repository),
        label=config.label.name if config.label else "",
        ended="interrupted" if stop.is_set() else "failed" if failures else "complete",
        cases=tuple(cases),
        failures=failures,
        medians=medians(cases),
        notes=tuple(doubts(cases, failures, stopped=stop.is_set())),
    )


def _workloads(products: Sequence[Product], info: ServerInfo, config: CeilingConfig) -> list[tuple[Workload, Workload]]:
    """Return the requests of every case: those of the load, and those of one product at a time."""
    loaded = [held(product, info.schema.max_photos) for product in products]
    loads = [replace(config.load.workload, signatures=mix) for mix in config.cases.values()]
    return [(Workload(loaded, info, load), Workload(loaded, info, replace(load, batch_size=1))) for load in loads]


@dataclass(kw_only=True)
class _Comparison:
    """One case."""

    name: str
    config: CeilingConfig
    ceiling: Ceiling
    workload: Workload
    single: Workload
    rounds: list[Round] = field(default_factory=list)
    difference: float = 0.0
    recall: Recall | None = None
    last: LoadReport | None = None

    def __post_init__(self) -> None:
        self.stop, self.view = self.ceiling.stop, self.ceiling.view

    async def run(self, labels: Sequence[tuple[Product, str]]) -> None:
        """Check, try, alternate.

        Raises:
            LikenessError: the server or the one process fails; `case` has what was measured before.
        """
        items = await asyncio.to_thread(drawn_items, self.workload)
        await self.ceiling.process.take(items)
        self.view.say(f"{self.name}: the same embeddings?")
        self.difference = await largest_difference(self.ceiling.process, self.single, self.config.load)
        self.recall = None if self.stop.is_set() else await self._recall(labels)
        await self.ceiling.find(self.name)
        while len(self.rounds) < self.config.rounds and not self.stop.is_set():
            if found := await self._round():
                self.rounds.append(found)

    def case(self) -> Case | None:
        """Return what was measured; None when no round was finished."""
        if not self.rounds:
            return None
        return Case(
            name=self.name,
            tried=tuple(self.ceiling.tried),
            best=self.ceiling.best,
            alone=self.ceiling.alone,
            largest_difference=self.difference,
            recall=self.recall,
            rounds=tuple(self.rounds),
            load=self.last,
        )

    async def _recall(self, labels: Sequence[tuple[Product, str]]) -> Recall | None:
        mix = self.config.load.workload.signatures
        if not labels or len(mix) > 1:
            return None
        self.view.say(f"{self.name}: recall of {len(labels)} products")
        signature = next(iter(mix), AS_THEY_ARE)
        return await asyncio.to_thread(served_recall, self.config.load, labels, signature, stopped=self.stop.is_set)

    async def _round(self) -> Round | None:
        """Alternate once: the server idles while the one process works, and the other way round.

        Raises:
            CeilingError: the server answers nothing.
        """
        load = self.config.load
        # Every round has requests and arrivals of its own.
        load = replace(load, workload=replace(load.workload, seed=load.workload.seed + self._number))
        ceiling = await self._turn("the ceiling", self.ceiling.best)
        # Whole requests are counted: of twenty-four, one is four percent. The server is seldom faster than the ceiling.
        per_request = fmean(request.products for request in islice(self.workload.requests(0), ENOUGH))
        enough = enough_s(self.ceiling.best.products_per_s / per_request)
        full = await self._load("load", self.workload, replace(load, duration_s=max(load.duration_s, enough)))
        single = replace(load, concurrency=1, workload=replace(load.workload, batch_size=1))
        apart = await self._turn("one at a time", self.ceiling.alone)
        one = await self._load("one caller", self.single, single)
        if not (ceiling and full and apart and one):
            return None
        half = None
        if rate := full.requests_per_s / 2:
            slow = replace(load, concurrency=None, rate=rate, duration_s=max(load.duration_s, enough_s(rate)))
            half = await self._load("half load", self.workload, slow)
        if self.stop.is_set():
            return None
        self.last = full
        return Round.of(ceiling.products_per_s, p50_ms(apart), full, one, half)

    async def _turn(self, what: str, trial: Trial) -> Measured | None:
        if not self.stop.is_set():
            self._say(what)
        return await self.ceiling.turn(trial, self.config.load.warm_up_s, self.config.load.duration_s)

    async def _load(self, what: str, workload: Workload, load: LoadConfig) -> LoadReport | None:
        if self.stop.is_set():
            return None
        self._say(what)
        report = await run_load(workload, load, stop=self.stop, view=self.view)
        if self.stop.is_set():
            return None
        if report.latency is None:  # a round in which the server died is no round
            why = f" ({report.errors[0].example})" if report.errors else ""
            raise CeilingError(f"the server answered nothing in round {self._number}{why}")
        return report

    def _say(self, what: str) -> None:
        self.view.say(f"{self.name}, round {self._number} of {self.config.rounds}: {what}")

    @property
    def _number(self) -> int:
        return len(self.rounds) + 1
