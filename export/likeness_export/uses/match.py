"""Matching: whether two listings are the same product, decided by what labelled pairs have taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from likeness_client.client import Client
from likeness_client.contract import Metric
from likeness_client.errors import InputError
from likeness_client.results import Embeddings
from numpy.typing import NDArray

from likeness_export.catalogue import NamedPair, hold_out
from likeness_export.progress import each
from likeness_export.uses.decision import Decision, Features, Figures, Probabilities, figures, fit_decision
from likeness_export.uses.inputs import Vectors
from likeness_export.uses.neighbourhood import Rows, in_context, surroundings

Scores = NDArray[np.float32]
Score = Callable[[Vectors, Vectors], Scores]
"""Scores pairs: unit vectors [p, d] and [p, d] -> FP32 [p], higher is more alike."""
MAX_POSITIVES = 2_000_000
_LEARNED_BLOCK = 32
_BLOCK_SCORES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The result of `match`.

    Attributes:
        decision: what was learned; pairs with at least its threshold are matched.
        train: over the pairs that the decision was learned from.
        every: over the measured pairs.
        seen: over those of which both products occur in the train pairs.
        unseen: over the rest.
        scores: FP32, per measured pair; NaN where a product has no embedding.
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
    probabilities: Probabilities
    train_unscored: int
    unscored: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Pairs, and the space that they are judged in.

    Attributes:
        pairs: the pairs.
        vectors: FP32 [n, d], embeddings of unit length.
        local: FP32 [l, n], to judge pairs among their neighbours: each product's `surroundings`, for several numbers of
            neighbours. None: pairs are judged by themselves.
    """

    pairs: Sequence[NamedPair]
    vectors: Vectors
    local: Scores | None = None


def match(ids: Sequence[str], taught: Sequence[Judged], asked: Judged, score: Score) -> Matching:
    """Learn the decision from train pairs, then measure it on others.

    Args:
        ids: the n products that have an embedding.
        taught: the pairs to learn from; those of each fold in the space of a network that has not seen them.
        asked: the pairs to measure on.
        score: the measure, e.g. `cosine`.

    Raises:
        InputError: nothing to learn from, or nothing to measure on.
    """
    if not asked.pairs:
        raise InputError("there are no pairs to measure on: name their split with --split")
    row_of = {name: row for row, name in enumerate(ids)}
    train, measured = [pair for judged in taught for pair in judged.pairs], asked.pairs
    train_labels, labels = (np.array([pair.label for pair in pairs], dtype=np.intp) for pairs in (train, measured))
    known_of_train, known = (
        np.concatenate([_features(judged, row_of, score) for judged in side]) for side in (taught, [asked])
    )
    decision = fit_decision(known_of_train, train_labels)
    fitted, probabilities = (decision.probabilities(features) for features in (known_of_train, known))
    train_scores, scores = known_of_train[:, 0], known[:, 0]
    taught_ids = {name for pair in train for name in (pair.left, pair.right)}
    seen = np.array([pair.left in taught_ids and pair.right in taught_ids for pair in measured], dtype=bool)
    return Matching(
        decision=decision,
        train=figures(fitted, train_labels, decision.threshold),
        every=figures(probabilities, labels, decision.threshold),
        seen=figures(probabilities[seen], labels[seen], decision.threshold),
        unseen=figures(probabilities[~seen], labels[~seen], decision.threshold),
        scores=scores,
        probabilities=probabilities,
        train_unscored=int(np.isnan(train_scores).sum()),
        unscored=int(np.isnan(scores).sum()),
    )


def cosine(left: Vectors, right: Vectors) -> Scores:
    """Score pairs of unit vectors [p, d] by cosine."""
    scores: Scores = np.einsum("pd,pd->p", left, right)
    return scores


def learned(client: Client, space: str) -> Score:
    """Return the trained metric of a server as a score.

    Args:
        client: a client of the server.
        space: the space of the vectors; a server of another space refuses them.
    """

    def score(left: Vectors, right: Vectors) -> Scores:
        found = np.empty(len(left), dtype=np.float32)
        for start in each(range(0, len(left), _LEARNED_BLOCK), "learned metric"):
            block = slice(start, start + _LEARNED_BLOCK)
            sides = (_held(side[block], space) for side in (left, right))
            # The server scores all with all; of few that costs less than one call per pair.
            found[block] = client.similarity_matrix(*sides, metric=Metric.LEARNED).values.diagonal()
        return found

    return score


def local_cosines(ids: Sequence[str], vectors: Vectors, pairs: Sequence[NamedPair]) -> Scores:
    """Return every product's `surroundings` by cosine, for `match`.

    Where no product stands on the left of one pair and on the right of another, the two sides are two catalogues, and
    neighbours are looked for on the other side.

    Args:
        ids: n product ids.
        vectors: FP32 [n, d], unit length.
        pairs: all pairs that are known, whatever their labels.
    """
    left, right = {pair.left for pair in pairs}, {pair.right for pair in pairs}
    two = not left & right
    sides = np.array([("left" if name in left else "right" if name in right else name) if two else "" for name in ids])

    def search(queries: Rows, others: Rows) -> Scores:
        found: Scores = vectors[queries] @ vectors[others].T
        return found

    def score(queries: Rows, others: Rows) -> Scores:
        return cosine(vectors[queries], vectors[others])

    return surroundings(np.arange(len(ids)), sides, search, score)


def label_pairs(ids: Sequence[str], vectors: Vectors, labels: NDArray[np.str_]) -> list[NamedPair]:
    """Make pairs of labelled products: all with equal labels, and as many of the hardest others.

    The hardest are the pairs with the highest cosines among those whose labels differ, so that figures on them are far
    below those on pairs drawn at random.

    Args:
        ids: n product ids.
        vectors: FP32 [n, d], unit length.
        labels: [n]; products with an empty one are left out.

    Raises:
        InputError: there would be more than `MAX_POSITIVES` positive pairs.
    """
    rows = np.flatnonzero(labels != "")
    _, codes, sizes = np.unique(labels[rows], return_inverse=True, return_counts=True)
    wanted = int((sizes * (sizes - 1) // 2).sum())
    if wanted > MAX_POSITIVES:
        raise InputError(
            f"the label makes {wanted} positive pairs, more than {MAX_POSITIVES}: name a finer one, e.g. group"
        )
    positives = [
        (int(members[i]), int(members[j]))
        for members in (np.flatnonzero(codes == code) for code in np.flatnonzero(sizes > 1))
        for i, j in zip(*np.triu_indices(len(members), 1), strict=True)
    ]
    negatives = _hardest(vectors[rows], codes, wanted)
    named = [(pair, 1) for pair in positives] + [(pair, 0) for pair in negatives]
    return [NamedPair(left=ids[rows[i]], right=ids[rows[j]], label=label) for (i, j), label in named]


def _hardest(vectors: Vectors, codes: NDArray[np.intp], wanted: int) -> list[tuple[int, int]]:
    """Return the pairs of different codes with the highest cosines, the highest first; blockwise."""
    kept_scores, kept = np.empty(0, dtype=np.float32), np.empty((0, 2), dtype=np.intp)
    count = len(vectors)
    size = max(1, _BLOCK_SCORES // max(1, count))
    for start in each(range(0, count if wanted else 0, size), "hardest negatives"):
        scores = vectors[start : start + size] @ vectors.T
        here = np.arange(start, start + len(scores))
        allowed = (codes[here, None] != codes) & (np.arange(count) > here[:, None])
        if len(kept) == wanted:
            allowed &= scores > kept_scores.min()
        i, j = np.nonzero(allowed)
        kept_scores = np.concatenate([kept_scores, scores[i, j]])
        kept = np.concatenate([kept, np.stack([here[i], j], 1)])
        first = np.argsort(-kept_scores, kind="stable")[:wanted]
        kept_scores, kept = kept_scores[first], kept[first]
    return [(int(i), int(j)) for i, j in kept]


def folds_of(vectors: Vectors, train: Sequence[NamedPair], held_out: float, folds: Sequence[int]) -> list[Judged]:
    """Return the pairs that training has not seen; with several folds, each in the space of its part of a joined run.

    Args:
        vectors: FP32 [n, d], the products' embeddings.
        train: all train pairs.
        held_out: the runs' ``data.held_out``; 0: none of the pairs was trained on.
        folds: their ``data.fold``, in the order in which they were joined; a single one for a run that was not.

    Raises:
        InputError: the embeddings cannot be divided into so many parts.
    """
    if vectors.shape[1] % len(folds):
        raise InputError(
            f"embeddings of {vectors.shape[1]} dimensions are not joined of {len(folds)} equal parts: give --fold once "
            "for each run that was joined"
        )
    parts = np.split(vectors, len(folds), 1)
    lengths = [np.linalg.norm(part, axis=1, keepdims=True).clip(min=1e-12) for part in parts]
    return [
        Judged(pairs=hold_out(train, held_out, fold)[1] if held_out else train, vectors=part / length)
        for fold, part, length in zip(folds, parts, lengths, strict=True)
    ]


def among_neighbours(ids: Sequence[str], judged: Judged, pairs: Sequence[NamedPair]) -> Judged:
    """Return the same pairs to be judged among their neighbours by cosine; for ``pairs`` see `local_cosines`."""
    return replace(judged, local=local_cosines(ids, judged.vectors, pairs))


def _features(judged: Judged, row_of: dict[str, int], score: Score) -> Features:
    """Return what the decision is made from: the score first, NaN where a product has no embedding."""
    pairs, local = judged.pairs, judged.local
    scores = np.full(len(pairs), np.nan, dtype=np.float32)
    live = [place for place, pair in enumerate(pairs) if pair.left in row_of and pair.right in row_of]
    if live:
        left = judged.vectors[[row_of[pairs[place].left] for place in live]]
        scores[live] = score(left, judged.vectors[[row_of[pairs[place].right] for place in live]])
    if local is None:
        return scores[:, None]
    left = np.array([row_of.get(pair.left, 0) for pair in pairs], dtype=np.intp)
    right = np.array([row_of.get(pair.right, 0) for pair in pairs], dtype=np.intp)
    return in_context(scores, local[:, left], local[:, right])


def _held(vectors: Vectors, space: str) -> Embeddings:
    """Return vectors in the form that the client takes."""
    count = len(vectors)
    return Embeddings(
        vectors=vectors,
        modality_weights=({},) * count,
        signatures=("",) * count,
        product_ids=("",) * count,
        space=space,
    )
