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
from likeness_export.recipe import Recipe, TrainingSection

Rows = NDArray[np.intp]
Vectors = NDArray[np.float32]


class Positives(Protocol):
    """Draws batches of products and knows which of them are alike."""

    def batches(self, random: np.random.Generator, embeddings: Vectors) -> Iterator[Rows]:
        """Draw one epoch of batches.

        Args:
            random: the source of all draws.
            embeddings: FP32 [n, e], of all products as the last epoch left them, to find hard negatives in; zeros if
                there was none.
        """
        ...

    def alike(self, rows: Rows) -> list[Tensor]:
        """Return one BOOL [n, n] per notion of alikeness, the coarsest first, for the products of a batch."""
        ...


class LabelPositives:
    """Products with equal labels are alike; several labels give several notions, from coarse to fine.

    A batch draws ``groups_per_batch`` values of the finest label that at least two products share, and ``group_size``
    products of each. An epoch shows as many products as there are.
    """

    def __init__(self, labels: Sequence[NDArray[np.str_]], training: TrainingSection) -> None:
        self.codes = [np.unique(label, return_inverse=True)[1] for label in labels]
        self.known = [label != "" for label in labels]
        finest, known = self.codes[-1], self.known[-1]
        members = [np.flatnonzero((finest == code) & known) for code in np.unique(finest[known])]
        self.groups = [rows for rows in members if len(rows) > 1]
        if len(self.groups) < 2:
            raise InputError(
                f"{len(self.groups)} label values are shared by several training products; contrast needs at least two"
            )
        self.groups_per_batch = min(training.groups_per_batch, len(self.groups))
        self.group_size = training.group_size
        self.hard = round(training.hard_negatives * self.groups_per_batch)
        shown = self.groups_per_batch * self.group_size
        self.batches_per_epoch = max(1, round(sum(map(len, self.groups)) / shown))

    def batches(self, random: np.random.Generator, embeddings: Vectors) -> Iterator[Rows]:
        """Draw one epoch: some groups at random, and for the share of hard negatives those that lie nearest to them."""
        centres = np.stack([embeddings[rows].mean(0) for rows in self.groups]) if self.hard else None
        # Large groups come up more often, but by the root of their size: all of them are seen.
        weight = np.sqrt([len(group) for group in self.groups])
        for _ in range(self.batches_per_epoch):
            easy = self.groups_per_batch - self.hard
            drawn = random.choice(len(self.groups), easy, replace=False, p=weight / weight.sum())
            if centres is not None:
                drawn = np.concatenate([drawn, _nearest_others(centres, drawn, self.hard, random)])
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

    def __init__(self, pairs: Sequence[tuple[int, int, int]], products: int, training: TrainingSection) -> None:
        self.positive = np.array([(i, j) for i, j, label in pairs if label == 1], dtype=np.intp)
        if len(self.positive) < 2:
            raise InputError(f"{len(self.positive)} training pairs are labelled 1; contrast needs at least two")
        self.partners: list[set[int]] = [set() for _ in range(products)]
        self.rejected: list[set[int]] = [set() for _ in range(products)]
        for i, j, label in pairs:
            known = self.partners if label == 1 else self.rejected
            known[i].add(j)
            known[j].add(i)
        self.pairs_per_batch = training.groups_per_batch
        self.hard_negatives = training.hard_negatives

    def batches(self, random: np.random.Generator, embeddings: Vectors) -> Iterator[Rows]:  # noqa: ARG002 (labels say more)
        """Draw one epoch: every positive pair once; the share of hard negatives are partners labelled 0."""
        order = random.permutation(len(self.positive))
        for start in range(0, len(order), self.pairs_per_batch):
            rows = np.unique(self.positive[order[start : start + self.pairs_per_batch]])
            candidates = np.array(sorted({other for row in rows for other in self.rejected[row]} - set(rows.tolist())))
            wanted = round(len(rows) * self.hard_negatives / (1 - self.hard_negatives))
            yield np.concatenate([rows, random.permutation(candidates)[:wanted]]).astype(np.intp)

    def alike(self, rows: Rows) -> list[Tensor]:
        """Pairs labelled 1."""
        mask = np.array([[int(j) in self.partners[i] for j in rows] for i in rows], dtype=bool)
        return [torch.from_numpy(mask)]


def _nearest_others(centres: Vectors, drawn: Rows, count: int, random: np.random.Generator) -> Rows:
    """Return the groups outside ``drawn`` whose centres lie nearest to one of those; ties are broken at random."""
    others = random.permutation(np.setdiff1d(np.arange(len(centres)), drawn))
    nearness = (centres[others] @ centres[drawn].T).max(1)
    nearest: Rows = others[np.argsort(-nearness, kind="stable")[:count]]
    return nearest


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
        return PairPositives(pairs, len(catalogue), training)
    labels = [np.where(usable, catalogue.labels(field), "") for field in recipe.data.labels]
    return LabelPositives(labels, training)
