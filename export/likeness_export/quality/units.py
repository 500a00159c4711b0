"""One unit of a table: a variant with one seed, or joined runs, or the baselines; measured, kept in its folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from likeness_client.errors import InputError
from likeness_client.writing import write_text

from likeness_export.products.named_pairs import fold_count
from likeness_export.quality.kinds import PairSets, Table, Variant
from likeness_export.quality.lines import Line
from likeness_export.recipe import Recipe, load_recipe
from likeness_export.run import Run
from likeness_export.training.joining import joined_recipe
from likeness_export.training.training_data import read_training_data, records_key

FORMAT = 2
"""Raised when the same declaration is measured in another way, so that kept figures are not taken for the new ones."""
BASELINES = "baselines"
DATA_FILE = "trained_on.sha256"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one process works on.

    Attributes:
        table: the table.
        variant: what is trained; None: nothing, the baselines are measured.
        seed: the recipe's seed.
        place: of the seed among all of them; where pairs are held out, each seed holds out another share (`data.fold`).
        work: the folder of all tables' runs.
        data_root: what the recipe's relative paths start from.
        parts: the units whose runs are joined; empty: one run is trained.
    """

    table: Table
    variant: Variant | None
    seed: int = 0
    place: int = 0
    work: Path
    data_root: Path
    parts: tuple[Unit, ...] = ()

    @property
    def name(self) -> str:
        """How it is reported."""
        if self.variant is None:
            return f"{self.table.name}/{BASELINES}"
        seeds = [str(seed) for seed in dict.fromkeys(part.seed for part in self.parts)] or [str(self.seed)]
        return f"{self.table.name}/{self.variant.name}/{'seeds' if len(seeds) > 1 else 'seed'}-{'-'.join(seeds)}"

    @property
    def trained(self) -> list[Unit]:
        """The units that train for it: itself, or those that its parts need."""
        return [one for part in self.parts for one in part.trained] or [self]

    @property
    def depth(self) -> int:
        """How many joins lie between it and what is trained."""
        return 1 + max(part.depth for part in self.parts) if self.parts else 0

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.work / self.name

    def recipe(self) -> Recipe | None:
        """Return the recipe with this seed, or that of the joined runs; None for baselines.

        Raises:
            InputError: see `load_recipe` and `joined_recipe`.
        """
        if self.variant is None:
            return None
        if self.parts:
            return joined_recipe([recipe for part in self.parts if (recipe := part.recipe())])
        recipe = load_recipe(Path(self.variant.recipe), [*self.variant.overrides, f"seed={self.seed}"])
        if not recipe.data.held_out:
            return recipe
        fold = self.place % fold_count(recipe.data.held_out)
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"fold": fold})})

    def key(self) -> str:
        """Return a SHA-256 of everything that shapes the figures: recipe, catalogue, what is measured."""
        recipe, table = self.recipe(), self.table
        methods = () if recipe else (table.baselines, table.masked)
        data = data_key(table, self.data_root)
        content = (FORMAT, recipe and recipe.digest(), data, [repr(m) for m in table.measures], methods)
        seeds = [part.key() for part in self.parts]
        return hashlib.sha256(repr((*content, seeds) if seeds else content).encode()).hexdigest()

    def weights(self) -> dict[str, str]:
        """Return the runs that a joined one is made of -> a SHA-256 of their weights, of those that are still there."""
        places = {one.name: Run(one.folder).weights for one in (self.trained if self.parts else ())}
        return {name: _digest(place) for name, place in places.items() if place.is_file()}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The result of a unit.

    Attributes:
        lines: what was measured.
        cost: what it took; see `work_on`.
        recipe: the whole recipe as JSON holds it; empty for baselines.
        digest: the recipe's.
    """

    lines: tuple[Line, ...]
    cost: dict[str, Any]
    recipe: dict[str, Any]
    digest: str


def units_of(table: Table, seeds: Sequence[int], only: Sequence[str], work: Path, data_root: Path) -> list[Unit]:
    """Return the units of a table: the baselines, the first seed of all variants before the second, joined seeds.

    ``only`` names variants, to which those that they join are added; empty: all of them.
    """
    known = {variant.name: variant for variant in table.variants}
    named = [name for wanted in only for name in (*known[wanted].joins, wanted)]
    chosen = [known[name] for name in dict.fromkeys(named)] or table.variants
    baselines = Unit(table=table, variant=None, work=work, data_root=data_root)

    def unit(variant: Variant, seed: int, place: int) -> Unit:
        parts = tuple(unit(known[name], seed, place) for name in variant.joins)
        return replace(baselines, variant=variant, seed=seed, place=place, parts=parts)

    of_seeds = [unit(variant, seed, place) for place, seed in enumerate(seeds) for variant in chosen]
    joined = [
        replace(
            baselines,
            variant=variant.of_joined_seeds(),
            parts=tuple(one for one in of_seeds if one.variant == variant),
        )
        for variant in chosen
        if variant.joined and len(seeds) > 1
    ]
    return [*([baselines] if table.baselines else []), *of_seeds, *joined]


def data_key(table: Table, data_root: Path) -> str:
    """Return a SHA-256 of a table's products and pairs; photos are not looked at, a missing file counts as empty."""
    pairs = [measure.pairs for measure in table.measures if isinstance(measure, PairSets)]
    return hashlib.sha256(repr([_digest(data_root / name) for name in (table.products, *pairs)]).encode()).hexdigest()


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    found = path.stat()
    return _digest_of(path, found.st_mtime_ns, found.st_size)


@cache
def _digest_of(path: Path, _changed_ns: int, _size: int) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_finished(unit: Unit) -> Finished | None:
    """Return the kept result of a unit; None if there is none, or if it is one of another recipe or other measures.

    That of joined runs is none either where one of them has been trained anew since.

    Raises:
        InputError: it is damaged.
    """
    place = unit.folder / "figures.json"
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        key = unit.key()
    except (FileNotFoundError, InputError):
        return None
    except ValueError as error:
        raise InputError(f"{place} is damaged: remove it and measure again ({error})") from error
    if kept.get("key") != key or not unit.weights().items() <= kept.get("weights", {}).items():
        return None
    lines = tuple(Line(**line) for line in kept["lines"])
    return Finished(lines=lines, cost=kept["cost"], recipe=kept["recipe"], digest=kept["digest"])


def work_on(unit: Unit) -> None:
    """Train and measure, or go on where that was interrupted; what is already there is left as it is.

    The folder of the run then holds, beside what training writes, ``figures.json``, ``sheet.png`` and ``unit.log``.

    Raises:
        InputError: the recipe or the data cannot be used or change meanwhile, the run is of other data, or a run to
            join is of another recipe than its unit.
    """
    if read_finished(unit):
        return
    with _logged(unit.folder / "unit.log"):
        _claim(unit)
        key, weights = unit.key(), unit.weights()
        from likeness_export.quality.baselines import measure_baselines
        from likeness_export.quality.costs import Cost
        from likeness_export.quality.trained import join_and_measure, train_and_measure

        recipe = unit.recipe()
        if recipe is None:
            lines, cost = measure_baselines(unit.table, unit.data_root, unit.folder), Cost()
        elif unit.parts:
            _check_parts(unit)
            parts, trained = ([Run(one.folder) for one in units] for units in (unit.parts, unit.trained))
            lines, cost = join_and_measure(unit.table, parts, trained, unit.folder, unit.data_root)
        else:
            lines, cost = train_and_measure(unit.table, recipe, unit.folder, unit.data_root)
        if (unit.key(), unit.weights()) != (key, weights):
            raise InputError(
                f"{unit.name}: the recipe, the products, the pairs or a run that it joins changed while it was worked "
                f"on, so nobody knows what its figures are of: undo the change, or remove {unit.folder}; call again"
            )
    kept = {
        "key": key,
        "weights": weights,
        "digest": recipe.digest() if recipe else "",
        "recipe": recipe.model_dump(mode="json") if recipe else {},
        "lines": [asdict(line) for line in lines],
        "cost": asdict(cost),
    }
    write_text(unit.folder / "figures.json", json.dumps(kept, indent=1))


def _claim(unit: Unit) -> None:
    """Note in the folder, before anything is trained, what that is trained on; refuse a folder of other data.

    What is `val` now may have been trained on then. Products and pairs of other splits may come and go.

    Raises:
        InputError: the folder was begun with other data.
    """
    recipe = unit.recipe()
    if recipe is None:
        return
    data = read_training_data(recipe, unit.data_root)
    shown = [(product.title, product.description) for product in data.catalogue.products]  # masked, unlike the records
    records = records_key(data.catalogue)
    key = hashlib.sha256(repr((records, data.pairs, shown)).encode()).hexdigest()
    place = unit.folder / DATA_FILE
    run = Run(unit.folder)
    begun = run.checkpoint.is_file() or run.weights.is_file()
    noted = place.read_text(encoding="utf-8") if place.is_file() else key
    known = run.trained_on()[0] or records  # of a joined run its parts know it
    if begun and (noted, known) != (key, records):
        raise InputError(
            f"{unit.folder} was trained on other data than {unit.table.products} holds now (products, pairs, or words "
            "that are masked): remove it, or name another folder with --work"
        )
    write_text(place, key)


def _check_parts(unit: Unit) -> None:
    """Check that the runs to join are of the recipes that are declared now.

    Raises:
        InputError: names the first that is not, or that is no run.
    """
    for part in unit.parts:
        recipe = part.recipe()
        if recipe and Run(part.folder).read_recipe().digest() != recipe.digest():
            raise InputError(
                f"{unit.name} cannot be joined: {part.folder} holds a run of another recipe than {part.name} has now; "
                "remove that folder and call again"
            )


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write this project's messages, everything on standard error and any error into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    package = logging.getLogger("likeness_export")
    with path.open("a", encoding="utf-8") as out, contextlib.redirect_stderr(out):
        handler = logging.StreamHandler(out)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            yield
        except Exception:
            package.exception("failed")
            raise
        finally:
            package.removeHandler(handler)
