"""What is trained on: the products and pairs that a recipe chooses, and keys by which a change of them is seen."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from likeness_client.errors import InputError
from likeness_client.records import own_key

from likeness_export.products.catalogue import Catalogue, as_label, named_keys, read_recipe_catalogue
from likeness_export.products.named_pairs import NamedPair, hold_out, read_named_pairs, warn_of_contradictions
from likeness_export.products.parts import Part
from likeness_export.recipe import DataSection, Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a recipe trains on.

    Attributes:
        catalogue: the products of its splits, or those that a pair names.
        pairs: the labelled pairs of its splits, without those that it holds out; none where labels say what is alike.
    """

    catalogue: Catalogue
    pairs: Sequence[NamedPair]


def read_training_data(recipe: Recipe, data_root: Path) -> TrainingData:
    """Read what a recipe trains on.

    Raises:
        InputError: the data cannot be used, or nothing is left.
    """
    data = recipe.data
    every = read_recipe_catalogue(data.products, data_root)
    _refuse_misspelled(recipe, every)
    _warn_of_labels_that_are_read(recipe)
    catalogue = every.only(data.only).masked(data.masked)
    if data.pairs is None:
        return TrainingData(catalogue=catalogue.of_splits(data.train_splits), pairs=())
    pairs = training_pairs(data, data_root)
    warn_of_contradictions(pairs, "data.pairs")
    wanted = {name for pair in pairs for name in (pair.left, pair.right)}
    rows = [row for row, name in enumerate(catalogue.ids) if name in wanted]
    if not rows:
        raise InputError(f"{data.pairs}: no pair of split {' or '.join(data.train_splits)} names a product")
    return TrainingData(catalogue=catalogue.select(rows), pairs=pairs)


def training_pairs(data: DataSection, data_root: Path) -> list[NamedPair]:
    """Read the pairs that a recipe trains on; those that it holds out are not among them.

    Raises:
        InputError: see `read_named_pairs`; or a split has no pair.
    """
    if data.pairs is None:
        return []
    path = data_root / data.pairs
    of_splits = {split: read_named_pairs(path, [split]) for split in data.train_splits}
    if missing := [split for split, pairs in of_splits.items() if not pairs]:
        raise InputError(
            f"data.train_splits: {path} has no pair of split {', '.join(map(repr, missing))}: give what its column "
            "split says"
        )
    return hold_out([*chain.from_iterable(of_splits.values())], data.held_out, data.fold)[0]


def _refuse_misspelled(recipe: Recipe, catalogue: Catalogue) -> None:
    """Refuse names that nobody has before anything is fitted; beside others that are right, some would do nothing."""
    data = recipe.data
    there = Counter(key for product in catalogue.products for key in product.attributes)
    read = {
        f"towers.{name}": [f"attributes.{key}" for key in tower.attribute_keys()]
        for name, tower in recipe.towers.items()
    }
    read["data.text_fields"] = [field for field in data.text_fields if field.startswith("attributes.")]
    for where, fields in read.items():
        if missing := [field for field in fields if own_key(there, field.removeprefix("attributes.")) not in there]:
            known = named_keys([key for key, _ in there.most_common()])
            names = [field.removeprefix("attributes.") for field in missing]
            beside = [name for name in names if any(name in record for record in catalogue.records)]
            inside = f"; {', '.join(beside)}: put inside of the object attributes, not beside it" if beside else ""
            raise InputError(
                f"{where}: no product of {data.products} has {', '.join(missing)}; attributes are: {known}{inside}"
            )
    for field, allowed in data.only.items():
        if absent := sorted({*map(as_label, allowed)} - {*catalogue.needed_labels(field).tolist()}):
            raise InputError(f"data.only.{field}: no product of {data.products} has {', '.join(map(repr, absent))}")


def _warn_of_labels_that_are_read(recipe: Recipe) -> None:
    if both := recipe.read_of(recipe.data.labels):
        log.warning("data.labels: %s is also what a tower reads: figures by it will flatter", ", ".join(both))


def alike_key(recipe: Recipe, data: TrainingData) -> str:
    """Return a SHA-256 of what says which products are alike: their labels and sources, or the pairs."""
    fields = [*recipe.data.labels, *([recipe.data.source] if recipe.data.source else [])]
    known = [data.catalogue.labels(field).tolist() for field in fields], [*data.pairs]
    return hashlib.sha256(repr(known).encode()).hexdigest()


def records_key(catalogue: Catalogue) -> str:
    """Return a SHA-256 of the products as their file has them, labels included, without the photos that they name."""
    key = hashlib.sha256()
    for place, record in enumerate(catalogue.records):  # of all at once the text would be as long as the file
        key.update((", " if place else "[").encode() + json.dumps(record, sort_keys=True).encode())
    key.update(b"]")
    return key.hexdigest()


def data_key(product_ids: Sequence[str], parts: Sequence[Mapping[str, Part]]) -> str:
    """Return a SHA-256 of the products that are trained on, in their order."""
    key = hashlib.sha256()
    for name, found in zip(product_ids, parts, strict=True):
        key.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
        for modality, part in sorted(found.items()):
            key.update(modality.encode() + b"\0" + part.digest)
    return key.hexdigest()
