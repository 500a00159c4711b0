"""What makes two products alike in training: equal labels or explicit pairs; draws batches accordingly."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from likeness_client.errors import InputError
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from likeness_export.products.catalogue import Catalogue
from likeness_export.products.named_pairs import NamedPair
from likeness_export.recipe import OWN_LABEL, Recipe, TrainingSection

log = logging.getLogger(__name__)
Rows = NDArray[np.intp]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is known about the n products of a batch.

    Attributes:
        alike: BOOL [n, n] per notion of alikeness, the coarsest first.
        judged: BOOL [n, n], the pairs of which it is known whether they are alike in the finest notion.
        classes: INT64 [n] per notion that has classes, -1 where a product's is not known.
    """

    alike: tuple[Tensor, ...]
    judged: Tensor
    classes: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> Judgement:
        """Return it on another device."""
        alike, classes = (tuple(tensor.to(device) for tensor in found) for found in (self.alike, self.classes))
        return Judgement(alike=alike, judged=self.judged.to(device), classes=classes)


class Positives(Protocol):
    """Draws batches of products and knows which of them are alike.

    Attributes:
        class_counts: how many classes each notion has; empty if it has none.
    """

    class_counts: tuple[int, ...]

    def batches(self, random: np.random.Generator, embeddings: Vectors) -> Iterator[Rows]:
        """Draw one epoch of batches.

        Args:
            random: the source of all draws.
            embeddings: FP32 [n, e], of all products as the last epoch left them, to find hard negatives in; zeros if
                there was none.
        """
        ...

    def judge(self, rows: Rows) -> Judgement:
        """Return what is known about the products of a batch."""
        ...


class LabelPositives:
    """Products with equal labels are alike; several labels give several notions, from coarse to fine.

    A batch draws ``groups_per_batch`` groups and ``group_size`` products of each. The products of a group share the
    finest label; those that share it with nobody, but a coarser one, make groups by that. An epoch has as many batches
    as the products in groups would fill; where groups are smaller than ``group_size`` it shows fewer of them.

    Args:
        labels: per notion, a label per product; empty where there is none.
        training: how large batches are.
        source: where each product comes from, e.g. a shop or a kind of photo: the draws of a group take turns over the
            sources, so that even a rare one is seen with each of its groups. None: all from one.

    Raises:
        InputError: fewer than two labels are shared by several products.
    """

    def __init__(
        self, labels: Sequence[NDArray[np.str_]], training: TrainingSection, source: NDArray[np.str_] | None = None
    ) -> None:
        self.codes = [np.unique(label, return_inverse=True)[1] for label in labels]
        self.known = [label != "" for label in labels]
        self.class_counts = tuple(int(codes.max()) + 1 for codes in self.codes)
        self.source = None if source is None else np.unique(source, return_inverse=True)[1]
        self.groups = _groups(self.codes, self.known)
        if len(self.groups) < 2:
            one_for_all = self.groups and len(self.groups[0]) == self.known[-1].sum()
            other = "finer" if one_for_all else "coarser"
            raise InputError(
                f"data.labels: {len(self.groups)} values are shared by several training products, and contrast needs "
                f"at least two: name a {other} label, or train on more products"
            )
        self.groups_per_batch = min(training.groups_per_batch, len(self.groups))
        self.group_size = training.group_size
        self.hard = min(round(training.hard_negatives * self.groups_per_batch), self.groups_per_batch - 1)
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
            rows = np.concatenate([self._draw(self.groups[place], random) for place in drawn])
            yield rows[np.sort(np.unique(rows, return_index=True)[1])]  # nobody twice: a copy is too easy to find

    def _draw(self, group: Rows, random: np.random.Generator) -> Rows:
        shuffled: Rows = random.permutation(group)
        if self.source is None:
            return shuffled[: self.group_size]
        # How many of a product's own source come before it: sorted by that, the sources take turns.
        source = self.source[shuffled]
        turn = np.zeros(len(source), np.intp)
        for own in np.unique(source):
            turn[source == own] = np.arange((source == own).sum())
        return shuffled[np.argsort(turn, kind="stable")][: self.group_size]

    def judge(self, rows: Rows) -> Judgement:
        """Equal and known labels are alike."""
        both = [known[rows, None] & known[None, rows] for known in self.known]
        alike = [
            torch.from_numpy((codes[rows, None] == codes[None, rows]) & known)
            for codes, known in zip(self.codes, both, strict=True)
        ]
        classes = [
            torch.from_numpy(np.where(known[rows], codes[rows], -1))
            for codes, known in zip(self.codes, self.known, strict=True)
        ]
        return Judgement(alike=tuple(alike), judged=torch.from_numpy(both[-1]), classes=tuple(classes))


def _groups(codes: Sequence[Rows], known: Sequence[NDArray[np.bool_]]) -> list[Rows]:
    """Return the products that share a label, by the finest one that each shares with another."""
    groups: list[Rows] = []
    lonely = np.ones(len(codes[0]), dtype=bool)
    for of_label, labelled in zip(reversed(codes), reversed(known), strict=True):
        for mates in _equal(of_label, np.flatnonzero(labelled)):
            rows = mates[lonely[mates]]
            if len(rows) == 1:  # all others have a finer label in common, but it is like them in this one
                rows = mates
            if len(rows) > 1:
                groups.append(rows)
                lonely[rows] = False
    return groups


def _equal(codes: Rows, rows: Rows) -> list[Rows]:
    """Return rows of equal codes together, the smallest code first; sorted once, as there may be many of both."""
    ordered = rows[np.argsort(codes[rows], kind="stable")]
    return np.split(ordered, np.flatnonzero(np.diff(codes[ordered])) + 1)


class OwnPositives:
    """Every product is alike to itself alone: what one modality says of it to what another says (CLIP; Radford 2021).

    A batch draws ``groups_per_batch * group_size`` products, and an epoch shows every product once.

    Args:
        rows: the products that have several modalities.
        training: how large batches are.

    Raises:
        InputError: fewer than two have.
    """

    class_counts: tuple[int, ...] = ()

    def __init__(self, rows: Rows, training: TrainingSection) -> None:
        if len(rows) < 2:
            raise InputError(
                f"data.labels: {OWN_LABEL} lets the modalities of a product learn from each other, and {len(rows)} "
                "training products have several: name a label that products share, or train on more products"
            )
        self.rows = rows
        self.batches_per_epoch = -(-len(rows) // (training.groups_per_batch * training.group_size))

    def batches(self, random: np.random.Generator, embeddings: Vectors) -> Iterator[Rows]:  # noqa: ARG002 - what lies near may be the same product
        """Draw one epoch."""
        yield from np.array_split(random.permutation(self.rows), self.batches_per_epoch)

    def judge(self, rows: Rows) -> Judgement:
        """No two products are alike."""
        nobody = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        return Judgement(alike=(nobody,), judged=~nobody)


class PairPositives:
    """Explicit pairs: those labelled 1 are alike, those labelled 0 are not.

    Two products that both match a third are alike, too, unless their pair is labelled 0.

    A batch draws ``groups_per_batch`` left sides that share candidates, as far as there are such, and all products that
    they are paired with: each product is encoded once and serves all its pairs. An epoch shows every pair once.

    Hard negatives are mined: products that lay nearest to one of those left sides in the last epoch and are not paired
    with it. Only left sides with a known match are mined for: what lies near to one of the others may be its match.

    Args:
        pairs: rows of the left and of the right product, and the label.
        usable: BOOL [n], the products that may be drawn.
        training: how large batches are.

    Raises:
        InputError: fewer than two pairs are labelled 1.
    """

    class_counts: tuple[int, ...] = ()

    def __init__(
        self, pairs: Sequence[tuple[int, int, int]], usable: NDArray[np.bool_], training: TrainingSection
    ) -> None:
        self.usable = usable
        self.matched, self.rejected = (
            _linked([(i, j) for i, j, said in pairs if said == label], len(usable)) for label in (1, 0)
        )
        matches = sum(label for _, _, label in pairs)
        if matches < 2:
            raise InputError(
                f"data.pairs: {matches} training pairs of usable products are labelled 1, and contrast needs at least "
                "two: look whether left_id and right_id are ids of the product file"
            )
        self.candidates: dict[int, list[int]] = {}
        self.lefts_of: dict[int, list[int]] = {}
        for i, j, _ in pairs:
            self.candidates.setdefault(i, []).append(j)
            self.lefts_of.setdefault(j, []).append(i)
        self.lefts_per_batch = training.groups_per_batch
        self.hard_negatives = training.hard_negatives

    def batches(self, random: np.random.Generator, embeddings: Vectors) -> Iterator[Rows]:
        """Draw one epoch."""
        lefts = self._ordered(random)
        for start in range(0, len(lefts), self.lefts_per_batch):
            drawn = lefts[start : start + self.lefts_per_batch]
            rows = np.unique([*drawn, *(other for left in drawn for other in self.candidates[left])])
            wanted = round(len(rows) * self.hard_negatives / (1 - self.hard_negatives))
            if wanted and embeddings.any():
                rows = np.concatenate([rows, self._mined(drawn, rows, embeddings, wanted)])
            yield rows.astype(np.intp)

    def _ordered(self, random: np.random.Generator) -> list[int]:
        """Return the left sides in random order, but those that share candidates next to each other."""
        shuffled: list[int] = random.permutation(list(self.candidates)).tolist()
        unseen, elsewhere = set(shuffled), iter(shuffled)
        ordered: list[int] = []
        near: deque[int] = deque()
        spread: set[int] = set()  # candidates whose left sides are all in `near`, or were
        while unseen:
            left = near.popleft() if near else next(elsewhere)
            if left not in unseen:
                continue
            unseen.remove(left)
            ordered.append(left)
            for other in self.candidates[left]:
                if other not in spread:
                    spread.add(other)
                    near.extend(n for n in self.lefts_of[other] if n in unseen)
            if len(ordered) % self.lefts_per_batch == 0:
                near.clear()  # the next batch starts elsewhere
                spread.clear()
        return ordered

    def _mined(self, drawn: Sequence[int], rows: Rows, embeddings: Vectors, count: int) -> Rows:
        """Return ``count`` products outside ``rows``, or all: those nearest to a drawn left side with a known match."""
        matched = [left for left in drawn if self.matched.indptr[left] < self.matched.indptr[left + 1]]
        if not matched:
            return np.empty(0, np.intp)
        nearness = (embeddings @ embeddings[matched].T).max(1)  # (n,)
        others = self.usable.copy()
        others[rows] = False
        nearness[~others] = -np.inf
        count = min(count, int(others.sum()))
        near = np.flatnonzero(nearness >= np.partition(nearness, -count)[-count]) if count else np.empty(0, np.intp)
        nearest: Rows = near[np.argsort(-nearness[near], kind="stable")][:count]
        return nearest

    def judge(self, rows: Rows) -> Judgement:
        """Pairs labelled 1 are alike; those labelled 0, and no others, are judged too."""
        partners = self.matched[rows]
        matched, rejected = (links[rows][:, rows].toarray() > 0 for links in (self.matched, self.rejected))
        # Common partners are counted here: of a product that matches thousands all pairs would not fit into memory.
        alike = (matched | ((partners @ partners.T).toarray() > 0)) & ~rejected
        np.fill_diagonal(alike, val=False)
        return Judgement(alike=(torch.from_numpy(alike),), judged=torch.from_numpy(matched | rejected))


def _linked(pairs: Sequence[tuple[int, int]], products: int) -> csr_array:
    """Return a number above 0 where a pair links two products, in either order: INT32 [n, n], sparse."""
    left, right = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    sides = np.concatenate([left, right]), np.concatenate([right, left])
    return csr_array((np.ones(len(sides[0]), np.int32), sides), shape=(products, products))


def _nearest_others(centres: Vectors, drawn: Rows, count: int, random: np.random.Generator) -> Rows:
    """Return the groups outside ``drawn`` whose centres lie nearest to one of those; ties are broken at random."""
    others = random.permutation(np.setdiff1d(np.arange(len(centres)), drawn))
    nearness = (centres[others] @ centres[drawn].T).max(1)
    nearest: Rows = others[np.argsort(-nearness, kind="stable")[:count]]
    return nearest


def positives_of(
    recipe: Recipe, catalogue: Catalogue, named: Sequence[NamedPair], present: NDArray[np.bool_] | None = None
) -> Positives:
    """Build what the recipe asks for.

    Args:
        recipe: the recipe.
        catalogue: the training products.
        named: the training pairs, of a recipe that has pairs.
        present: BOOL [n, m], the modalities of each product that can be read; those that have none are never drawn.
            None: all have all of them, as far as is known yet; nothing is told then.

    Raises:
        InputError: too few products are alike to learn from, or no product has one of the labels or a source.
    """
    training = recipe.training
    level = logging.INFO
    if present is None:
        present, level = np.ones((len(catalogue), len(recipe.modalities())), dtype=bool), logging.DEBUG
    usable = present.any(1)
    if recipe.data.alike_to_itself:
        several = np.flatnonzero(present.sum(1) > 1)
        log.log(level, "%d of %d usable training products have several modalities", len(several), usable.sum())
        return OwnPositives(several, training)
    if recipe.data.pairs:
        row_of = {name: row for row, name in enumerate(catalogue.ids) if usable[row]}
        pairs = [(row_of[p.left], row_of[p.right], p.label) for p in named if p.left in row_of and p.right in row_of]
        log.log(level, "%d of %d training pairs are between usable products of the catalogue", len(pairs), len(named))
        return PairPositives(pairs, usable, training)
    labels = [np.where(usable, catalogue.needed_labels(field), "") for field in recipe.data.labels]
    source = catalogue.needed_labels(recipe.data.source) if recipe.data.source else None
    found = LabelPositives(labels, training, source)
    log.log(
        level,
        "%d of %d usable training products share a label with another one; the others are not learned from",
        len(np.unique(np.concatenate(found.groups))),
        usable.sum(),
    )
    return found
