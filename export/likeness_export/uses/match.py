"""Matching: whether two listings are the same product, decided by what labelled pairs have taught."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
from likeness_client.client import Client
from likeness_client.contract import Metric
from likeness_client.errors import InputError
from likeness_client.results import Embeddings
from numpy.typing import NDArray
from scipy.special import expit, logit

from likeness_export.products.named_pairs import NamedPair, fold_count, hold_out
from likeness_export.progress import each
from likeness_export.uses.decision import Decision, Features, Figures, Probabilities, figures, fit_decision
from likeness_export.uses.inputs import EmbeddedProducts, Vectors
from likeness_export.uses.neighbourhood import AMONG_NEIGHBOURS, PairFeatures, Rows, Scorer, alone, among_neighbours

log = logging.getLogger(__name__)
Scores = NDArray[np.float32]
Score = Callable[[Vectors, Vectors], Scores]
"""Scores pairs: unit vectors [p, d] and [p, d] -> FP32 [p], higher is more alike."""
Judged: TypeAlias = tuple[Sequence[NamedPair], PairFeatures]
"""Pairs, and what is known of them."""
_STEP = 4096  # pairs
_SURE = 2**-24  # a float next to 1 says no more
_EQUAL, _OFTEN = 5e-4, 0.1  # by chance as many are so equally long in a thousand dimensions, and fewer in less


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The result of `match`.

    Attributes:
        decision: what was learned, of the learned metric from its logit; pairs with at least its threshold are matched.
        train: over the pairs that the decision was learned from.
        every: over the measured pairs.
        seen: over those of which both products occur in the train pairs.
        unseen: over the rest.
        scores: FP32, per measured pair; NaN where a product has no embedding.
        score_threshold: the score to match from; NaN where it does not decide alone.
        probabilities: FP64, per measured pair, of being the same product; NaN where a product has no embedding.
        train_unscored: how many train pairs have a product without an embedding; they are not matched.
        unscored: how many measured pairs have one.
    """

    decision: Decision
    train: Figures
    every: Figures
    seen: Figures
    unseen: Figures
    scores: Scores
    score_threshold: float
    probabilities: Probabilities
    train_unscored: int
    unscored: int


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Which train pairs a decision is learned from: those that no network was trained on.

    Attributes:
        share: the recipe's ``data.held_out``; 0: all pairs, none was trained on.
        folds: its ``data.fold``; of a run joined of several folds each of them, in the order in which they were joined.

    Raises:
        InputError: there is no such fold.
    """

    share: float = 0.0
    folds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        count = fold_count(self.share) if self.share else 0
        if self.folds and max(self.folds) >= count:
            raise InputError(
                f"--fold {' '.join(map(str, self.folds))}: --held-out {self.share:g} has no such fold; give the "
                "recipe's data.held_out and data.fold"
            )


def match_by_all(
    held: EmbeddedProducts,
    pairs: tuple[Sequence[NamedPair], Sequence[NamedPair]],
    held_out: HeldOut,
    client: Client | None,
) -> dict[str, Matching]:
    """Learn from some pairs and judge others by every measure, each pair by itself and among its neighbours.

    The learned metric, a measure too where there is a client, counts as its logit, for how far a score stands out is
    lost where probabilities are near 0 or 1; neighbours are found by cosine.

    Raises:
        InputError: see `match`; or a server is given with several folds.
    """
    train, measured = pairs
    if client and len(held_out.folds) > 1:
        raise InputError("a server knows only the joined metric, which has seen all pairs: leave --server out")
    row_of = {name: row for row, name in enumerate(held.ids)}
    parts = folds_of(held.vectors, train, held_out)
    measures: dict[str, Score] = {"cosine": cosine}
    if client:
        measures["learned"] = as_logit(learned(client, held.space))
    sides, asked = sides_of(held.ids, [*train, *measured])
    near = partial(among_neighbours, members=np.arange(len(held.ids)), sides=sides, asked=asked)
    found = {}
    for name, score in measures.items():
        scorer = scorer_of(held.vectors, score)
        for what, knowing in ((name, alone), (name + AMONG_NEIGHBOURS, near)):
            features = knowing(scorer)
            taught = [
                (some, features if vectors is held.vectors else knowing(scorer_of(vectors, score)))
                for some, vectors in parts
            ]
            found[what] = match(row_of, taught, (measured, features), train)
    for name in found.keys() - {"cosine", "cosine" + AMONG_NEIGHBOURS}:  # who asks the server gets probabilities
        by_logit = found[name]
        threshold = float(expit(by_logit.score_threshold))
        found[name] = replace(by_logit, scores=expit(by_logit.scores), score_threshold=threshold)
    return found


def match(
    row_of: Mapping[str, int], taught: Sequence[Judged], asked: Judged, trained: Sequence[NamedPair] = ()
) -> Matching:
    """Learn the decision from train pairs, then measure it on others.

    Args:
        row_of: the products that have an embedding -> their rows.
        taught: the pairs to learn from; those of each fold in the space of a network that has not seen them.
        asked: the pairs to measure on.
        trained: pairs whose products training has seen, whether or not the decision is learned from them.

    Raises:
        InputError: nothing to learn from, or nothing to measure on.
    """
    measured, features = asked
    if not measured:
        raise InputError("there are no pairs to measure on: name their split with --split")
    train = [pair for pairs, _ in taught for pair in pairs]
    train_labels, labels = (np.array([pair.label for pair in pairs], dtype=np.intp) for pairs in (train, measured))
    train_known = np.concatenate([known_of(pairs, of_pairs, row_of) for pairs, of_pairs in taught])
    known = known_of(measured, features, row_of)
    decision = fit_decision(train_known, train_labels)
    fitted, probabilities = (decision.probabilities(found) for found in (train_known, known))
    train_scores, scores = train_known[:, 0], known[:, 0]
    known_ids = {name for pair in (*trained, *train) for name in (pair.left, pair.right)}
    seen = np.array([pair.left in known_ids and pair.right in known_ids for pair in measured], dtype=bool)
    return Matching(
        decision=decision,
        train=figures(fitted, train_labels, decision.threshold),
        every=figures(probabilities, labels, decision.threshold),
        seen=figures(probabilities[seen], labels[seen], decision.threshold),
        unseen=figures(probabilities[~seen], labels[~seen], decision.threshold),
        scores=scores,
        score_threshold=decision.score_threshold,
        probabilities=probabilities,
        train_unscored=int(np.isnan(train_scores).sum()),
        unscored=int(np.isnan(scores).sum()),
    )


def cosine(left: Vectors, right: Vectors) -> Scores:
    """Score pairs of unit vectors [p, d] by cosine."""
    scores: Scores = np.einsum("pd,pd->p", left, right)
    return scores


def learned(client: Client, space: str) -> Score:
    """Return the trained metric of a server as a score, in probabilities; it refuses vectors of another space."""

    def score(left: Vectors, right: Vectors) -> Scores:
        sides = (Embeddings.from_vectors(side, space) for side in (left, right))
        return client.similarity(*sides, metric=Metric.LEARNED).values

    return score


def as_logit(score: Score) -> Score:
    """Return a score that gives probabilities as one that gives their logits, -17 to 17."""

    def logits(left: Vectors, right: Vectors) -> Scores:
        found: Scores = logit(score(left, right).astype(np.float64).clip(_SURE, 1 - _SURE)).astype(np.float32)
        return found

    return logits


def folds_of(
    vectors: Vectors, train: Sequence[NamedPair], held_out: HeldOut
) -> list[tuple[Sequence[NamedPair], Vectors]]:
    """Return the pairs that training has not seen; with several folds, each in the space of its part of a joined run.

    Warns where the vectors, FP32 [n, d], cannot be those of so many runs: whoever has all modalities has all parts
    equally long.

    Raises:
        InputError: the embeddings cannot be divided into so many parts.
    """
    folds = held_out.folds or (0,)
    if vectors.shape[1] % len(folds):
        raise InputError(
            f"embeddings of {vectors.shape[1]} dimensions are not joined of {len(folds)} equal parts: give --fold once "
            "for each run that was joined"
        )
    found = np.split(vectors, len(folds), 1)
    lengths = np.stack([np.linalg.norm(part, axis=1) for part in found])
    if len(vectors) and (np.ptp(lengths, 0) < _EQUAL).mean() < _OFTEN:
        log.warning(
            "these do not look like embeddings of %d joined runs, whose parts are equally long: give --fold once for "
            "each run that was joined",
            len(folds),
        )
    parts = [vectors] if len(folds) == 1 else [_unit(part) for part in found]
    return [
        (hold_out(train, held_out.share, fold)[1] if held_out.share else train, part)
        for fold, part in zip(folds, parts, strict=True)
    ]


def sides_of(ids: Sequence[str], known: Sequence[NamedPair]) -> tuple[NDArray[np.str_], Rows]:
    """Return the side of each product, see `surroundings`, and the places of those whose surroundings are measured.

    Where no product stands on the left of one pair and on the right of another, the two sides are two catalogues, and
    neighbours are looked for on the other side. Of the pairs all are given, whatever their labels.
    """
    left, right = {pair.left for pair in known}, {pair.right for pair in known}
    two = not left & right
    sides = ["left" if name in left else "right" if name in right else str(row) for row, name in enumerate(ids)]
    return np.array(sides if two else [""] * len(ids)), np.flatnonzero([name in left or name in right for name in ids])


def scorer_of(vectors: Vectors, score: Score) -> Scorer:
    """Return a score of vectors as one of their rows; neighbours are found by cosine.

    The vectors, FP32 [n, d], are of unit length; NaN where a product has no embedding.
    """
    there = np.nan_to_num(vectors, nan=0.0) if np.isnan(vectors).any() else vectors
    every = np.arange(len(vectors))

    def pairs(left: Rows, right: Rows) -> Scores:
        return score(vectors[left], vectors[right]) if len(left) else np.empty(0, np.float32)  # no server is asked

    def search(left: Rows, right: Rows) -> Scores:
        others = there if np.array_equal(right, every) else there[right]  # which copies them, for a few rows each time
        similarity: Scores = vectors[left] @ others.T
        return similarity

    return Scorer(pairs=pairs, search=search)


def known_of(pairs: Sequence[NamedPair], features: PairFeatures, row_of: Mapping[str, int]) -> Features:
    """Return what a decision about pairs is made from, FP32 [p, f]; NaN where a product has no row."""
    live = [place for place, pair in enumerate(pairs) if pair.left in row_of and pair.right in row_of]
    left, right = (
        np.array([row_of[getattr(pairs[place], side)] for place in live], dtype=np.intp) for side in ("left", "right")
    )
    starts = each(range(0, max(1, len(live)), _STEP), "pairs")
    known = np.concatenate([features(left[start : start + _STEP], right[start : start + _STEP]) for start in starts])
    found = np.full((len(pairs), known.shape[1]), np.nan, dtype=np.float32)
    found[live] = known
    return found


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    return unit
