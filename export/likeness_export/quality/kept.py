"""What a table's file already holds: figures of runs that another machine has made, or that are no longer there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from likeness_client.errors import InputError

from likeness_export.quality.lines import Line
from likeness_export.quality.tables import Table
from likeness_export.quality.units import FORMAT, Finished, Unit
from likeness_export.recipe import parse_recipe


def measures_key(table: Table) -> str:
    """Return a SHA-256 of what is measured of every run, and of what is measured untrained."""
    content = (FORMAT, table.products, [repr(measure) for measure in table.measures], table.baselines, table.masked)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def kept_results(table: Table, units: Sequence[Unit], place: Path) -> dict[str, Finished]:
    """Read back what a table's JSON file says of some units.

    Args:
        table: the table.
        units: its units.
        place: the file; there need not be one.

    Returns:
        Unit -> its result, of those whose recipe is the one that was measured. Nothing if other things were measured.

    Raises:
        InputError: the file is damaged.
    """
    try:
        held = json.loads(place.read_text(encoding="utf-8"))
        if held.get("measures") != measures_key(table):
            return {}
        return dict(_found(units, held))
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{place} is damaged: remove it, or restore it ({error!r})") from error


def _found(units: Sequence[Unit], held: Mapping[str, Any]) -> Iterator[tuple[str, Finished]]:
    for unit in units:
        if unit.variant is None:
            if held["baselines"]:
                yield unit.name, Finished(lines=_lines(held["baselines"]), cost={}, recipe={}, digest="")
            continue
        variant = held["variants"].get(unit.variant.name, {"seeds": {}})
        kept = variant["seeds"].get(str(unit.seed))
        recipe = unit.recipe()
        if not kept or not recipe:
            continue
        # The file has one recipe for all seeds; they differ in these two.
        raw = {**variant["recipe"], "seed": recipe.seed}
        raw["data"] = {**raw.get("data", {}), "fold": recipe.data.fold}
        try:
            same = parse_recipe(raw, unit.name).digest() == recipe.digest()
        except InputError:  # of a version whose recipes could say other things
            same = False
        if same:
            found = Finished(lines=_lines(kept["lines"]), cost=kept["cost"], recipe=raw, digest=recipe.digest())
            yield unit.name, found


def _lines(plain: Sequence[Mapping[str, Any]]) -> tuple[Line, ...]:
    return tuple(Line(**line) for line in plain)
