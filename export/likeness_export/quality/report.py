"""A table's files: JSON with everything, Markdown for people; written with whatever seeds are finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from likeness_client.writing import write_text

from likeness_export.quality.kinds import Table, Variant
from likeness_export.quality.lines import Line, Spread, SpreadLine, over_seeds, spread
from likeness_export.quality.units import Finished

UNTRAINED = "untrained"
MANY_LABELS = 4
"""A task with this many labels or more has one table for all of them; in pictures, a place for each variant."""
_NO_CONTEST = ("lost", "F1 best", "F1 fitted", "F1 repeats")  # more of it is not better, or it is no result
_COST_COLUMNS = {
    "parameters": "parameters",
    "trained_parameters": "trained",
    "preparing_s": "preparing, s",
    "epochs_s": "epochs, s",
    "peak_mb": "peak, MiB",
    "product_ms": "ms per product",
}


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """What is known of a variant.

    Attributes:
        variant: the variant.
        wanted: how many runs were asked for.
        seeds: seed -> its result, of those that are finished; 0 for joined seeds.
        failed: seed -> why it failed.
    """

    variant: Variant
    wanted: int
    seeds: Mapping[int, Finished]
    failed: Mapping[int, str]

    def lines(self) -> list[SpreadLine]:
        """Return mean and spread of every line."""
        return over_seeds([found.lines for found in self.seeds.values()])


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """What is known of a table.

    Attributes:
        table: the table.
        seeds: the seeds that were asked for, or that are known from before.
        variants: of every variant.
        measures: what was measured, and on which data; see `measures_key`.
        baselines: the baselines' lines.
        baselines_failed: why there are none; empty: they did not fail.
    """

    table: Table
    seeds: Sequence[int]
    variants: Sequence[VariantResult]
    measures: str = ""
    baselines: Sequence[Line] = ()
    baselines_failed: str = ""


def write_result(result: TableResult, out: Path) -> None:
    """Write ``<table>.json`` and ``<table>.md`` into a folder."""
    write_text(out / f"{result.table.file_stem}.json", json.dumps(plain(result), ensure_ascii=False, indent=1) + "\n")
    write_text(out / f"{result.table.file_stem}.md", markdown(result))


def plain(result: TableResult) -> dict[str, Any]:
    """Return everything as JSON holds it."""
    return {
        "table": result.table.name,
        "title": result.table.title,
        "split": result.table.split,
        "seeds": list(result.seeds),
        "measures": result.measures,
        "notes": _notes(result.table),
        "baselines": [asdict(line) for line in result.baselines],
        "baselines_failed": result.baselines_failed,
        "variants": {found.variant.name: _plain_variant(found) for found in result.variants},
    }


def _plain_variant(found: VariantResult) -> dict[str, Any]:
    recipes = [{**result.recipe, "seed": None} for result in found.seeds.values()]
    return {
        "what": found.variant.what,
        "built_from": found.variant.recipe,
        "overrides": list(found.variant.overrides),
        "joins": list(found.variant.joins),
        "recipe": recipes[0] if recipes else {},
        "failed": {str(seed): message for seed, message in found.failed.items()},
        "over_seeds": [asdict(line) for line in found.lines()],
        "seeds": {
            str(seed): {
                "digest": result.digest,
                "cost": result.cost,
                "lines": [asdict(line) for line in result.lines],
            }
            for seed, result in found.seeds.items()
        },
    }


def markdown(result: TableResult) -> str:
    """Return the tables as Markdown."""
    parts = [f"# {result.table.title}", _seeds_line(result)]
    lines = all_lines(result)
    wanted = {found.variant.name: found.wanted for found in result.variants}
    for task in dict.fromkeys(line.task for _, line in lines):
        labels = labels_of(lines, task)
        if len(labels) < MANY_LABELS:
            for label in labels:
                rows = [(name, line) for name, line in lines if (line.task, line.label) == (task, label)]
                parts += [f"## {task}: `{label}`", _figures_table(rows, wanted)]
        else:
            rows = [(name, line) for name, line in lines if line.task == task]
            parts += [f"## {task}", _joint_table(rows, labels, wanted)]
    if costs := list(_cost_rows(result)):
        parts += ["## Cost", _table(["variant", *_COST_COLUMNS.values(), "threads of cores"], costs)]
    parts += ["## Variants", _table(["variant", "seeds", "what", "recipe"], list(_variant_rows(result)))]
    failures = [
        f"- {found.variant.name}, seed {seed}: {' '.join(message.split())}"
        for found in result.variants
        for seed, message in found.failed.items()
    ]
    if result.baselines_failed:
        failures.insert(0, f"- untrained baselines: {' '.join(result.baselines_failed.split())}")
    if failures:
        parts += ["## Failed", "\n".join(failures)]
    if notes := _notes(result.table):
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _notes(table: Table) -> list[str]:
    return [*table.notes, *table.notes_of_measured]


def all_lines(result: TableResult) -> list[tuple[str, SpreadLine]]:
    """Return every line with the name of its variant, those of the baselines (`UNTRAINED`) first."""
    untrained = [(UNTRAINED, line) for line in over_seeds([list(result.baselines)])]
    return untrained + [(found.variant.name, line) for found in result.variants for line in found.lines()]


def labels_of(lines: Sequence[tuple[str, SpreadLine]], task: str) -> list[str]:
    """Return the labels of a task, in their order."""
    return list(dict.fromkeys(line.label for _, line in lines if line.task == task))


def _seeds_line(result: TableResult) -> str:
    done = sum(len(found.seeds) for found in result.variants)
    wanted = sum(found.wanted for found in result.variants)
    every = "one seed" if len(result.seeds) == 1 else f"all of {len(result.seeds)} seeds"
    state = every if done == wanted else f"{done} of {wanted} runs finished"
    return f"Mean ± standard deviation over seeds ({state}); queries and pairs of the split `{result.table.split}`."


def _figures_table(rows: Sequence[tuple[str, SpreadLine]], wanted: Mapping[str, int]) -> str:
    """Return a table of one task and label; the best of each column is bold."""
    names = _figure_names(rows)
    return _table(["variant", "by", "n", *names], list(_figure_rows(rows, names, wanted)))


def _joint_table(rows: Sequence[tuple[str, SpreadLine]], labels: Sequence[str], wanted: Mapping[str, int]) -> str:
    """Return one table of all labels of a task; the best of each column and label is bold."""
    names = _figure_names(rows)
    cells = [
        [f"`{label}`", *row]
        for label in labels
        for row in _figure_rows([(name, line) for name, line in rows if line.label == label], names, wanted)
    ]
    return _table(["of", "variant", "by", "n", *names], cells)


def _figure_names(rows: Sequence[tuple[str, SpreadLine]]) -> list[str]:
    return list(dict.fromkeys(name for _, line in rows for name in line.figures))


def _figure_rows(
    rows: Sequence[tuple[str, SpreadLine]], names: Sequence[str], wanted: Mapping[str, int]
) -> Iterator[list[str]]:
    """Return the rows of a table; ``wanted``: variant -> how many runs were asked for, 1 where it says nothing."""
    best = {
        name: max((line.figures[name].mean for _, line in rows if name in line.figures), default=0.0)
        for name in names
        if name not in _NO_CONTEST
    }
    for variant, line in rows:
        cells = (_cell(line.figures.get(name), best.get(name), wanted.get(variant, 1)) for name in names)
        yield [variant, line.what, str(line.count), *cells]


def _cell(found: Spread | None, best: float | None, wanted: int) -> str:
    if found is None:
        return "-"
    shown = f"**{found}**" if found.mean == best else str(found)
    return shown if found.seeds >= wanted else f"{shown} ({found.seeds} of {wanted} seeds)"


def _cost_rows(result: TableResult) -> Iterator[list[str]]:
    for found in result.variants:
        costs = [finished.cost for finished in found.seeds.values()]
        if not costs:
            continue
        cells = []
        for name in _COST_COLUMNS:
            values = [float(cost[name]) for cost in costs if cost.get(name) is not None]
            cells.append(_number(spread(values).mean) if values else "-")
        yield [found.variant.name, *cells, f"{costs[0]['threads']} of {costs[0]['cores']}"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


def _variant_rows(result: TableResult) -> Iterator[list[str]]:
    for found in result.variants:
        variant = found.variant
        recipe = " ".join(f"`{part}`" for part in (variant.recipe, *variant.overrides) if part)
        joins = f"`likeness join` of {' and '.join(variant.joins)}"
        yield [variant.name, f"{len(found.seeds)} of {found.wanted}", variant.what, joins if variant.joins else recipe]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---"] * len(columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ruler, *rows])
