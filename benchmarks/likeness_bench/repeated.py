"""A load that is repeated until its figures settle or the time is up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from likeness_bench.figures import LoadReport, RunFigures, failures, failures_name
from likeness_bench.load import RunLoad
from likeness_bench.load_config import LoadConfig
from likeness_bench.load_report import OTHER_SPACE
from likeness_bench.rest import PAUSE_S, come_to_rest
from likeness_bench.search import agree, decisive
from likeness_bench.view import UNSEEN, View
from likeness_bench.workload import Workload

_UNREST = "the server did not come to rest after failures: keep other loads away"


async def run_repeated(
    workload: Workload,
    config: LoadConfig,
    *,
    budget_s: float,
    stop: asyncio.Event,
    view: View = UNSEEN,
    run_once: RunLoad,
) -> LoadReport:
    """Run a load until two runs in a row agree: in p99 with failures, in a closed loop in products per second.

    Args:
        workload: what is sent; see `likeness_bench.load.prepare`.
        config: the load.
        budget_s: seconds for all runs. None but the first is begun that would end later.
        stop: set it to get what was measured so far; a run that it cuts short counts only if it is the first.
        view: is told each run before it begins, and shown it while it runs.
        run_once: makes a run.

    Returns:
        The report of one run, with the figures of all: of the two that agree the slower; without such, the one in the
        middle.
    """
    begins_s = time.perf_counter()

    async def run(number: int) -> LoadReport:
        # Every run has arrivals and products of its own, or an unlucky schedule would be taken for the server.
        load = replace(config, workload=replace(config.workload, seed=config.workload.seed + number))
        view.step(load, number + 1)
        return await run_once(workload, load, stop=stop, view=view)

    runs, unrest = [await run(0)], ""
    while not (stop.is_set() or _settled(runs) or runs[-1].latency is None):
        passed_s = time.perf_counter() - begins_s
        left_s = budget_s - passed_s - max(config.length_s, passed_s / len(runs))
        if left_s < PAUSE_S:
            break
        if not runs[-1].failed:
            await asyncio.sleep(PAUSE_S)
        elif not await come_to_rest(config, patience_s=left_s, stop=stop):
            unrest = _UNREST
            break
        report = await run(len(runs))
        if not stop.is_set():
            runs.append(report)
    settled = _settled(runs)
    # One that answered nothing tells nothing but that; it never settles.
    answered = runs if settled else [run for run in runs if run.latency] or runs
    shown = answered[decisive([_settling_ms(run) for run in answered], settled=settled)]
    notes = (*shown.notes, *_elsewhere([run for run in runs if run is not shown], shown))
    if not settled:
        notes += (*_doubts(runs, budget_s, unrest, stopped=stop.is_set()),)
    ended = "interrupted" if stop.is_set() else shown.ended
    return replace(shown, ended=ended, settled=settled, runs=tuple(map(RunFigures.of, runs)), notes=notes)


def _settled(runs: Sequence[LoadReport]) -> bool:
    """Say whether the last two runs agree. Two infinite p99s do not: 2 % of failures are not 90 %."""
    found = [_settling_ms(run) for run in runs]
    return found[-1] is not None and agree(found)


def _settling_ms(run: LoadReport) -> float | None:
    """Return what has to settle: p99 with failures; of a closed loop, whose latency says little, time per product."""
    if run.load["rate"] is not None:
        return run.p99_with_failures_ms
    return 1000 / run.products_per_s if run.products_per_s else None


def _elsewhere(others: Sequence[LoadReport], shown: LoadReport) -> Iterator[str]:
    """Say what happened in the runs that are not shown, and would be missed."""
    if OTHER_SPACE not in shown.notes and any(OTHER_SPACE in run.notes for run in others):
        yield OTHER_SPACE
    if failed := failures(others):
        yield f"in the other runs {failures_name(failed)}"


def _doubts(runs: Sequence[LoadReport], budget_s: float, unrest: str, *, stopped: bool) -> Iterator[str]:
    """Say why the figures did not settle, where a run does not say so by itself; ``unrest`` if that was the reason."""
    if runs[0].ended == "interrupted":
        return
    if len(runs) > 1:
        what = "products/s" if runs[0].load["rate"] is None else "p99"
        time_is_up = f"the time is up ({budget_s:g} s)"
        silent = "the last one answered nothing" if not runs[-1].latency else ""
        failing = "more than 1 % of the requests of the last one failed" if _settling_ms(runs[-1]) is None else ""
        why = "interrupted" if stopped else silent or unrest or failing or time_is_up
        yield f"{what} did not settle in {len(runs)} runs: {why}"
    elif stopped:
        yield "interrupted in its second run: whether the figures settle is not known"
    elif runs[0].latency:
        why = unrest or f"--budget-s {budget_s:g} holds no second run"
        yield f"run once ({why}): whether the figures settle is not known"
