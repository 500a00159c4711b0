"""What a table's file already holds: figures of runs that another machine has made, or that are no longer there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from likeness_client.errors import InputError

from likeness_export.quality.kinds import Table
from likeness_export.quality.lines import Line
from likeness_export.quality.units import FORMAT, Finished, Unit, data_key
from likeness_export.recipe import parse_recipe


def measures_key(table: Table, data_root: Path) -> str:
    """Return a SHA-256 of what is measured of every run, and untrained, and of the data that it is measured on."""
    measures = [repr(measure) for measure in table.measures]
    content = (FORMAT, data_key(table, data_root), measures, table.baselines, table.masked)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def kept_seeds(table: Table, place: Path, data_root: Path) -> set[int]:
    """Return the seeds that a table's JSON file has figures of; see `kept_results`."""
    held = _held(table, place, data_root)
    with _damage(place):
        names = [name for variant in held.get("variants", {}).values() for name in variant["seeds"]]
        return {int(name) for name in names} - {0}  # 0 stands for joined seeds


def known_seconds(place: Path) -> dict[str, float]:
    """Return what training a run of each variant took, in seconds, by a table's JSON file; there need not be one.

    Whatever the recipes, the data and the machine were then: it tells long runs from short ones, and no more. A joined
    run's are those of all that it is made of.

    Raises:
        InputError: the file is damaged.
    """
    if not place.is_file():
        return {}
    with _damage(place):
        held = json.loads(place.read_text(encoding="utf-8"))
        costs = {name: [run["cost"] for run in found["seeds"].values()] for name, found in held["variants"].items()}
        return {
            name: fmean((cost.get("preparing_s") or 0) + (cost.get("epochs_s") or 0) for cost in found)
            for name, found in costs.items()
            if found
        }


def kept_results(table: Table, units: Sequence[Unit], place: Path, data_root: Path) -> dict[str, Finished]:
    """Read back what a table's JSON file, which need not be there, says of some of its units.

    Returns:
        Unit -> its result, of those whose recipe is the one that was measured. Nothing if other things were measured.

    Raises:
        InputError: the file is damaged.
    """
    held = _held(table, place, data_root)
    with _damage(place):
        return dict(_found(units, held)) if held else {}


def without_stale(
    units: Sequence[Unit], kept: Mapping[str, Finished], here: Mapping[str, Finished]
) -> dict[str, Finished]:
    """Leave out kept figures of joined runs where one of them has been trained anew here, with other figures.

    ``kept`` is what the table's file says of units, ``here`` what their folders say of those that are finished there.
    """

    def fresh(unit: Unit) -> bool:
        made_here = [one.name for one in unit.trained if unit.parts and one.name in here]
        # As text, in which a figure that is no number equals itself.
        return all(name in kept and repr(kept[name].lines) == repr(here[name].lines) for name in made_here)

    return {unit.name: kept[unit.name] for unit in units if unit.name in kept and fresh(unit)}


def _held(table: Table, place: Path, data_root: Path) -> dict[str, Any]:
    """Return what the file holds; nothing if there is none, or if it is of other measures or data."""
    if not place.is_file():
        return {}
    with _damage(place):
        held: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return held if held.get("measures") == measures_key(table, data_root) else {}


@contextmanager
def _damage(place: Path) -> Iterator[None]:
    try:
        yield
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
