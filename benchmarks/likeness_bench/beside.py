"""A load with its ceiling beside it: before every run, a turn of the same networks in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from likeness_client import InputError

from likeness_bench.ceiling_process import CeilingError, CeilingProcess
from likeness_bench.ceiling_report import difference_doubt, place_doubts
from likeness_bench.ceiling_search import Ceiling, check_same_space, drawn_items, largest_difference
from likeness_bench.figures import CeilingTurn, LoadReport
from likeness_bench.load import RunLoad, run_load
from likeness_bench.load_config import LoadConfig
from likeness_bench.view import View
from likeness_bench.workload import OperationKind, Workload

_TRIAL_S = 1.0
_WARM_UP_S = 0.5
_SHARE, _MOST_S = 0.25, 5.0  # of a run's measured time, but not longer: a sweep has many runs


@asynccontextmanager
async def ceiling_beside(
    workload: Workload,
    config: LoadConfig,
    repository: Path | None,
    *,
    stop: asyncio.Event,
    view: View,
) -> AsyncIterator[RunLoad]:
    """Find the ceiling of a load; what this gives makes runs of the load, each with a turn at the ceiling before it.

    Args:
        workload: what is sent; see `likeness_bench.load.prepare`.
        config: the load, at any rate.
        repository: the model repository that is served; None: runs without a ceiling.
        stop: set it to end the search; runs then have no ceiling.
        view: is told what happens next.

    Raises:
        InputError: the load does something else than to embed, or this is no repository.
        SpaceMismatchError: the server serves another repository.
        LikenessError: the server or the one process fails before the first run. A process that fails later leaves a
            note in the reports of the runs that follow.
    """
    if repository is None:
        yield run_load
        return
    if others := sorted(set(config.workload.operations) - {OperationKind.EMBED}):
        raise InputError(
            f"the ceiling is one of embedding, not of {', '.join(others)}: ask for embed only, or give no --repository"
        )
    check_same_space(repository, workload.info, config.address)
    async with CeilingProcess(repository) as process:
        await process.take(await asyncio.to_thread(drawn_items, workload))
        view.say("ceiling: the same embeddings?")
        difference = await largest_difference(process, workload, config)
        ceiling = Ceiling(process=process, repository=repository, trial_s=_TRIAL_S, stop=stop, view=view)
        await ceiling.find("ceiling")
        yield _Alternation(ceiling=ceiling, difference=difference)


@dataclass(kw_only=True)
class _Alternation:
    """Makes runs. ``failed`` says why there are no turns at the ceiling any more."""

    ceiling: Ceiling
    difference: float
    failed: str = ""

    async def __call__(self, workload: Workload, config: LoadConfig, *, stop: asyncio.Event, view: View) -> LoadReport:
        products_per_s = await self._turn(config)
        report = await run_load(workload, config, stop=stop, view=view)
        if self.failed:
            return replace(report, notes=(*report.notes, f"no ceiling beside this run: {self.failed}"))
        if products_per_s is None:
            return report
        found = CeilingTurn(
            products_per_s=products_per_s,
            throughput_ratio=report.products_per_s / products_per_s,
            threads=self.ceiling.best.threads,
            batch_size=self.ceiling.best.batch_size,
            largest_difference=self.difference,
        )
        doubts = filter(None, (difference_doubt(self.difference), *place_doubts(report)))
        return replace(report, ceiling=found, notes=(*report.notes, *doubts))

    async def _turn(self, config: LoadConfig) -> float | None:
        """Return products/s; None when it was stopped or failed."""
        if self.failed or self.ceiling.stop.is_set():
            return None
        try:
            found = await self.ceiling.turn(self.ceiling.best, _WARM_UP_S, min(_SHARE * config.duration_s, _MOST_S))
        except CeilingError as error:  # the load goes on: it is what was asked for
            self.failed = str(error)
            return None
        return found.products_per_s if found else None
