"""What makes two products alike in training: equal labels or explicit pairs; draws batches accordingly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from likeness_client.errors import InputError
from numpy.typing import NDArray
from torch import Tensor

from likeness_export.catalogue import Catalogue, read_pairs
from likeness_export.recipe import Recipe

Rows = NDArray[np.intp]


class Positives(Protocol):
    """Draws batches of products and knows which of them are alike."""

    def batches(self, random: np.random.Generator) -> Iterator[Rows]:
        """Draw one epoch of batches."""
        ...

    def alike(self, rows: Rows) -> list[Tensor]:
        """Return one BOOL [n, n] per notion of alikeness, the coarsest first, for the products of a batch."""
        ...


class LabelPositives:
    """Products with equal labels are alike; several labels give several notions, from coarse to fine.

    A batch draws ``groups_per_batch`` values of the finest label that at least two products share, and ``group_size``
    products of each. An epoch shows as many products as there are.
    """

    def __init__(self, labels: Sequence[NDArray[np.str_]], groups_per_batch: int, group_size: int) -> None:
        self.codes = [np.unique(label, return_inverse=True)[1] for label in labels]
        self.known = [label != "" for label in labels]
        finest, known = self.codes[-1], self.known[-1]
        members = [np.flatnonzero((finest == code) & known) for code in np.unique(finest[known])]
        self.groups = [rows for rows in members if len(rows) > 1]
        if len(self.groups) < 2:
            raise InputError(
                f"{len(self.groups)} label values are shared by several training products; contrast needs at least two"
            )
        self.groups_per_batch = min(groups_per_batch, len(self.groups))
        self.group_size = group_size
        self.batches_per_epoch = max(1, round(sum(map(len, self.groups)) / (self.groups_per_batch * group_size)))

    def batches(self, random: np.random.Generator) -> Iterator[Rows]:
        """Draw one epoch."""
        # Large groups come up more often, but by the root of their size: all of them are seen.
        weight = np.sqrt([len(group) for group in self.groups])
        for _ in range(self.batches_per_epoch):
            drawn = random.choice(len(self.groups), self.groups_per_batch, replace=False, p=weight / weight.sum())
            size = self.group_size
            picks = [
                random.choice(g, min(size, len(g)), replace=False) for g in (self.groups[place] for place in drawn)
            ]
            yield np.concatenate(picks)

    def alike(self, rows: Rows) -> list[Tensor]:
        """Equal and known labels."""
        return [
            torch.from_numpy((codes[rows, None] == codes[None, rows]) & known[rows, None] & known[None, rows])
            for codes, known in zip(self.codes, self.known, strict=True)
        ]


class PairPositives:
    """Explicit pairs: those labelled 1 are alike. A batch draws such pairs; the others among its products count too."""

    def __init__(self, pairs: Sequence[tuple[int, int, int]], products: int, pairs_per_batch: int) -> None:
        self.positive = np.array([(i, j) for i, j, label in pairs if label == 1], dtype=np.intp)
        if len(self.positive) < 2:
            raise InputError(f"{len(self.positive)} training pairs are labelled 1; contrast needs at least two")
        self.partners: list[set[int]] = [set() for _ in range(products)]
        for i, j in self.positive:
            self.partners[i].add(int(j))
            self.partners[j].add(int(i))
        self.pairs_per_batch = pairs_per_batch

    def batches(self, random: np.random.Generator) -> Iterator[Rows]:
        """Draw one epoch: every positive pair once."""
        order = random.permutation(len(self.positive))
        for start in range(0, len(order), self.pairs_per_batch):
            yield np.unique(self.positive[order[start : start + self.pairs_per_batch]])

    def alike(self, rows: Rows) -> list[Tensor]:
        """Pairs labelled 1."""
        mask = np.array([[int(j) in self.partners[i] for j in rows] for i in rows], dtype=bool)
        return [torch.from_numpy(mask)]


def positives_of(
    recipe: Recipe, catalogue: Catalogue, data_root: Path, usable: NDArray[np.bool_] | None = None
) -> Positives:
    """Build what the recipe asks for.

    Args:
        recipe: the recipe.
        catalogue: the training products.
        data_root: what the recipe's relative paths start from.
        usable: BOOL [n], the products that something can be read of; the others are never drawn. None: all of them.

    Raises:
        InputError: too few products are alike to learn from.
    """
    training = recipe.training
    if usable is None:
        usable = np.ones(len(catalogue), dtype=bool)
    if recipe.data.pairs:
        ids = [product.product_id for product in catalogue.products]
        pairs = read_pairs(data_root / recipe.data.pairs, recipe.data.train_splits, ids)
        pairs = [pair for pair in pairs if usable[pair[0]] and usable[pair[1]]]
        return PairPositives(pairs, len(catalogue), training.groups_per_batch)
    labels = [np.where(usable, catalogue.labels(field), "") for field in recipe.data.labels]
    return LabelPositives(labels, training.groups_per_batch, training.group_size)
