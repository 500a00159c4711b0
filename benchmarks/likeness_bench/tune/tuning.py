"""A tuning from beginning to end: profile, search, compare the result with what was there before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from joblib import cpu_count
from likeness_client import LikenessError, Product
from likeness_export.repository.replacing import tidy
from likeness_export.repository.servable import NETWORK_FILES
from likeness_export.server.serve import find_tritonserver

from likeness_bench.figures import RunFigures
from likeness_bench.report import now
from likeness_bench.tune.candidates import Plan
from likeness_bench.tune.config import FINAL_ROUNDS, TuneConfig
from likeness_bench.tune.measuring import Measuring
from likeness_bench.tune.report import TuneReport
from likeness_bench.tune.search import Search, Trial
from likeness_bench.tune.servers import TrialServers
from likeness_bench.tune.service import ServiceTime
from likeness_bench.tune.settings import KeysOf, Settings, changes
from likeness_bench.tune.target import Target
from likeness_bench.view import UNSEEN, View


async def run_tune(
    products: Sequence[Product],
    target: Target,
    config: TuneConfig,
    *,
    stop: asyncio.Event,
    view: View = UNSEEN,
) -> tuple[TuneReport, Settings]:
    """Tune a repository until nothing is left to try, the time is up, or ``stop`` is set; write nothing.

    Args:
        products: what is sent.
        target: the repository.
        config: how to tune.
        stop: set it to get what was found so far.
        view: is told what happens next, and shown each load while it runs.

    Returns:
        What was found, and the best settings.

    Raises:
        TrialError: the repository as it is cannot be served.
        LikenessError: it cannot be asked this, or answers nothing.
    """
    tidy(target.folder)  # copies that a tuning before this one served until it was killed
    async with TrialServers(target) as servers:
        measuring = Measuring(servers=servers, load=config.load, target_ms=config.target_ms, stop=stop, view=view)
        return await _Tuning(target=target, config=config, measuring=measuring).run(products)


@dataclass(kw_only=True)
class _Tuning:
    """The state of one tuning."""

    target: Target
    config: TuneConfig
    measuring: Measuring

    def __post_init__(self) -> None:
        self.stop = self.measuring.stop
        self.made_at, self.began = now(), time.perf_counter()
        self.profile = find_tritonserver().profile

    async def run(self, products: Sequence[Product]) -> tuple[TuneReport, Settings]:
        start = self.target.settings
        untuned, times = await self.measuring.profile(start, products)
        plan = self._plan(times)
        compare = partial(self.measuring.compare, rounds=self.config.rounds)
        search = Search(plan=plan, incumbent=start, compare=compare, over=self._over)
        finals: list[tuple[Settings, Trial]] = []
        try:
            if not self.stop.is_set():
                await search.run()
            await self._finals(plan, start, search.accepted, finals)
        except LikenessError as error:  # the best settings so far cannot be served again
            search.ended = str(error)
        best = finals[-1][0] if finals and finals[-1][1].kept else search.incumbent
        return self._report(plan, untuned, search, best, [trial for _, trial in finals]), best

    def _plan(self, times: tuple[ServiceTime, ...]) -> Plan:
        keys: KeysOf = self.target.recipe.step_keys()
        networks = frozenset(step for step in keys if "cpu_threads" in keys[step])
        on_cpu = self.profile == "cpu"
        if not on_cpu:
            keys = {step: tuple(key for key in keys[step] if key != "cpu_threads") for step in keys}
        load = self.measuring.load
        waiting = (load.concurrency or 1) * max(load.workload.batch_sizes)
        return Plan(
            keys=keys,
            times=times,
            elsewhere=frozenset() if on_cpu else networks,
            cores=cpu_count(),
            largest_batch=min(waiting, self.target.recipe.serving.max_batch_size),
            target_ms=self.config.target_ms,
        )

    def _left_s(self) -> float:
        return self.config.budget_s - (time.perf_counter() - self.began)

    def _over(self) -> str:
        if self.stop.is_set():
            return "interrupted"
        needed_s = self.measuring.cost_s(self.config.rounds) + self.measuring.cost_s(FINAL_ROUNDS)
        return "" if self._left_s() >= needed_s else f"the time is up ({self.config.budget_s:g} s)"

    async def _finals(
        self, plan: Plan, start: Settings, accepted: Sequence[Settings], finals: list[tuple[Settings, Trial]]
    ) -> None:
        """Compare with the untuned settings what was accepted, the last first, until some are better there, too."""
        for settings in reversed(accepted):
            if self.stop.is_set() or (finals and self._left_s() < self.measuring.cost_s(FINAL_ROUNDS)):
                return
            what = "tuned against untuned"
            found = await self.measuring.compare(start, settings, what, FINAL_ROUNDS, to_the_end=True)
            if found is None:
                return
            finals.append((settings, Trial.of("final", (start, settings), plan, found)))
            if finals[-1][1].kept:
                return

    def _report(
        self, plan: Plan, untuned: RunFigures, search: Search, best: Settings, finals: Sequence[Trial]
    ) -> TuneReport:
        stopped, final = self.stop.is_set(), finals[-1] if finals else None
        return TuneReport(
            made_at=self.made_at,
            repository=str(self.target.folder),
            space=self.target.space,
            profile=self.profile,
            cores=plan.cores,
            load={key: value for key, value in self.measuring.load.plain().items() if key != "address"},
            target_ms=self.config.target_ms,
            budget_s=self.config.budget_s,
            took_s=time.perf_counter() - self.began,
            untuned=None if stopped and not untuned.requests else untuned,
            steps=plan.times,
            searched=plan.steps,
            trials=tuple(search.trials),
            final=final,
            refused=tuple(finals[:-1]),
            changes=changes(self.target.settings, best, self.target.recipe.step_keys()),
            better=final is not None and final.kept,
            ended="interrupted" if stopped else search.ended or "nothing was left to try",
            complete=not stopped and not search.ended,
            notes=(*self.measuring.doubts(), *self._unmeasured()),
        )

    def _unmeasured(self) -> Iterator[str]:
        """Say what the settings hold for, too, and was not served."""
        (plan,) = NETWORK_FILES["tensorrt"]
        if self.profile != "tensorrt" and any(self.target.folder.glob(f"*/[0-9]*/{plan}")):
            yield (
                f"measured with the profile {self.profile}; the TensorRT plans of this repository share its settings, "
                "and were not measured: compare them with `likeness bench load` before you keep them"
            )
