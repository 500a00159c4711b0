"""What tables need of the data, looked at before hours of training end in a split that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from likeness_client.errors import InputError

from likeness_export.products.catalogue import Catalogue, read_recipe_catalogue
from likeness_export.quality.kinds import PairSets, Table
from likeness_export.quality.pair_sets import pairs_of
from likeness_export.recipe import load_recipe


def needed_products(table: Table, catalogue: Catalogue, data_root: Path) -> Catalogue:
    """Return those products of all splits that a table's measures need.

    Raises:
        InputError: one of the splits has no product, or no pair.
    """
    of_pairs = [measure for measure in table.measures if isinstance(measure, PairSets)]
    if not of_pairs:
        return catalogue.of_splits(table.splits)
    found = catalogue.select(np.flatnonzero(catalogue.in_splits(table.splits)))
    for measure in of_pairs:
        pairs_of(measure, found, data_root)
    return found


def check_split(tables: Sequence[Table], data_root: Path) -> None:
    """Check that there is something to measure, which every training would else find out by itself.

    Raises:
        InputError: a table's recipes train on the split that it measures, or not one table has data of that split.
    """
    faults = []
    for table in tables:
        recipes = [load_recipe(Path(one.recipe), one.overrides) for one in table.variants if one.recipe]
        if table.split in {split for recipe in recipes for split in recipe.data.train_splits}:
            raise InputError(f"table {table.name} trains on split {table.split!r}: measure another with --split")
        try:
            needed_products(table, read_recipe_catalogue(table.products, data_root), data_root)
        except InputError as error:
            faults.append(f"{table.name}: {error}")
    if len(faults) == len(tables):
        raise InputError("there is nothing to measure: " + "; ".join(faults))
