"""Run tables: train and measure what is missing, and write what there is after every unit."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from likeness_export.progress import stages
from likeness_export.quality.bars import draw_bars
from likeness_export.quality.kept import kept_results, kept_seeds, known_seconds, measures_key, without_stale
from likeness_export.quality.kinds import Table
from likeness_export.quality.report import TableResult, VariantResult, write_result
from likeness_export.quality.units import Unit, read_finished, units_of, work_on
from likeness_export.quality.workers import Work, side_by_side

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        tables: the tables; where there are names of variants, each has one of them.
        seeds: the seeds of every variant.
        only: names of variants; empty: all of them.
        data_root: what relative paths start from.
        work: the folder of all runs.
        out: the folder of the tables' files.
        jobs: how many units at a time.
    """

    tables: Sequence[Table]
    seeds: Sequence[int]
    only: Sequence[str] = ()
    data_root: Path
    work: Path
    out: Path
    jobs: int

    def units(self, table: Table) -> list[Unit]:
        """Return what is run of a table; a wanted variant need not be in each."""
        only = [variant.name for variant in table.variants if variant.name in self.only]
        return units_of(table, self.seeds, only, self.work, self.data_root)


def run_tables(plan: Plan, work: Work[Unit] = work_on) -> dict[str, str]:
    """Run everything that is not finished; write each table's files after each of its units.

    ``work`` is done with each unit in a process of its own.

    Returns:
        Unit -> why it failed.
    """
    units = [unit for table in plan.tables for unit in plan.units(table)]
    missing = _missing(units)
    log.info("%d of %d units are already finished", len(units) - len(missing), len(units))
    failed: dict[str, str] = {}
    for table in plan.tables:
        if any(read_finished(unit) for unit in units if unit.table == table):
            _write(plan, table, failed)  # nothing is put in the place of other figures before there is something
    with stages("units", "last") as progress:
        task = progress.add_task("quality", total=len(units), completed=len(units) - len(missing), last="")
        for depth in sorted({unit.depth for unit in missing}):  # what is joined has to be there first
            wave = [unit for unit in missing if unit.depth == depth]
            settled = dict(_settled(wave, failed))
            ready = _longest_first([unit for unit in wave if unit not in settled], plan)
            for unit, error in chain(settled.items(), side_by_side(ready, work, plan.jobs)):
                if error:
                    failed[unit.name] = error
                log.info("%s: %s", unit.name, error or "finished")
                _write(plan, unit.table, failed)
                progress.update(task, advance=1, last=unit.name)
    return failed


def _missing(units: Sequence[Unit]) -> list[Unit]:
    """Return the units that are not finished, and the joined ones that will not be if what they join changes."""
    finished = {unit.name for unit in units if read_finished(unit)}
    return [unit for unit in units if any(one.name not in finished for one in (unit, *unit.trained))]


def _settled(wave: Sequence[Unit], failed: Mapping[str, str]) -> Iterator[tuple[Unit, str]]:
    """Yield the units that there is nothing to do for: they are finished after all, or why they cannot be worked on."""
    for unit in wave:
        lost = [part.name for part in unit.parts if part.name in failed]
        if read_finished(unit):
            yield unit, ""
        elif lost:
            yield unit, f"not joined, because {' and '.join(lost)} failed; it will be when that is finished"


def _longest_first(units: Sequence[Unit], plan: Plan) -> Sequence[Unit]:
    """Return units in the order that keeps all jobs busy to the end; one job takes them as they come.

    First seeds still come before second ones: a run that is cut short has something of every variant. What nobody knows
    the seconds of comes before what is known.
    """
    if plan.jobs == 1:
        return units
    seconds = {table.name: known_seconds(plan.out / f"{table.file_stem}.json") for table in plan.tables}

    def key(unit: Unit) -> tuple[int, float]:
        known = seconds[unit.table.name].get(unit.variant.name if unit.variant else "", math.inf)
        return unit.place, -known

    return sorted(units, key=key)


def _write(plan: Plan, table: Table, failed: dict[str, str]) -> None:
    result = collect(plan, table, failed)
    measured = result.baselines or any(variant.seeds for variant in result.variants)
    if not measured and (plan.out / f"{table.file_stem}.json").is_file():
        return  # other figures are there; a data root without the data must not wipe them out
    write_result(result, plan.out)
    draw_bars(result, plan.out / f"{table.file_stem}.png")


def collect(plan: Plan, table: Table, failed: dict[str, str]) -> TableResult:
    """Read what is finished of a table, also of variants and seeds that were left out or ran on another machine.

    What is said to have failed another process may have finished since.
    """
    place = plan.out / f"{table.file_stem}.json"
    seeds = sorted({*plan.seeds, *kept_seeds(table, place, plan.data_root)})
    units = replace(plan, seeds=seeds, only=()).units(table)
    here = {unit.name: found for unit in units if (found := read_finished(unit))}
    done = without_stale(units, kept_results(table, units, place, plan.data_root), here) | here
    failed = {name: message for name, message in failed.items() if name not in here}
    variants = []
    for variant in table.variants:
        for one in (variant, variant.of_joined_seeds()):
            if mine := [unit for unit in units if unit.variant == one]:
                variants.append(
                    VariantResult(
                        variant=one,
                        wanted=len(mine),
                        seeds={unit.seed: done[unit.name] for unit in mine if unit.name in done},
                        failed={unit.seed: failed[unit.name] for unit in mine if unit.name in failed},
                    )
                )
    untrained = [unit.name for unit in units if unit.variant is None]
    return TableResult(
        table=table,
        seeds=seeds,
        measures=measures_key(table, plan.data_root),
        variants=variants,
        baselines=[line for name in untrained if name in done for line in done[name].lines],
        baselines_failed=next((failed[name] for name in untrained if name in failed), ""),
    )
