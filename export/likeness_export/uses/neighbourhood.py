"""Scores among neighbours: are two products nearer to each other than to the rest of their surroundings?

One threshold cannot fit all products: of a plain cable there are dozens nearly alike, of a rare camera none.
Cross-domain similarity local scaling (Conneau et al. 2018, word translation without parallel data) measures the
surroundings of each product::

    r_k(x) = mean of the k highest scores of x, among its ten nearest on the other side

and takes them off the score, ``2 score(x, y) - r_k(x) - r_k(y)``. Here a decision learns from labelled pairs how much
of which to take off. Measuring surroundings needs the catalogues alone: no label enters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from likeness_export.progress import each

Rows: TypeAlias = NDArray[np.intp]
Values: TypeAlias = NDArray[np.float32]
Search: TypeAlias = Callable[[Rows, Rows], Values]
"""Similarities of some rows with others, [q] and [g] -> FP32 [q, g]."""
PairScore: TypeAlias = Callable[[Rows, Rows], Values]
"""Scores of pairs, rows [p] and [p] -> FP32 [p]."""
PairFeatures: TypeAlias = Callable[[Rows, Rows], Values]
"""What is known of pairs, rows [p] and [p] -> FP32 [p, f]: the score first."""
NEIGHBOURS = (1, 2, 3, 5, 10)
"""The numbers of neighbours, k."""
AMONG_NEIGHBOURS = ", among neighbours"
"""What stands behind the name of a score whose pairs are judged so."""
_BLOCK_VALUES = 8_000_000  # at a time; 32 MB


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """One way to compare products, by their rows.

    Attributes:
        pairs: scores pairs.
        search: similarities of some rows to others; finds neighbours.
    """

    pairs: PairScore
    search: Search


def alone(scorer: Scorer) -> PairFeatures:
    """Return what is known of pairs by themselves: the score."""
    return lambda left, right: scorer.pairs(left, right)[:, None]


def among_neighbours(scorer: Scorer, members: Rows, sides: NDArray[np.str_], asked: Rows | None = None) -> PairFeatures:
    """Return what is known of pairs of members: the score and the products' surroundings; see `surroundings`."""
    local = surroundings(members, sides, scorer.search, scorer.pairs, asked)
    place_of = np.zeros(members.max() + 1, np.intp)
    place_of[members] = np.arange(len(members))

    def features(left: Rows, right: Rows) -> Values:
        return in_context(scorer.pairs(left, right), local[:, place_of[left]], local[:, place_of[right]])

    return features


def surroundings(
    members: Rows, sides: NDArray[np.str_], search: Search, score: PairScore, asked: Rows | None = None
) -> Values:
    """Return r(x) for every number of neighbours.

    Args:
        members: the rows that are neighbours of each other, e.g. two shops' products.
        sides: [m], per member its side; neighbours stand on the other sides, or, where all sides are equal, anywhere.
        search: finds the neighbours.
        score: scores a product with each of them.
        asked: places among the members, whose surroundings are wanted; those of the others stay zero. None: all.

    Returns:
        FP32 [len(NEIGHBOURS), m]; a product with fewer neighbours has the mean of those, one without any zero.
    """
    asked = np.arange(len(members)) if asked is None else asked
    count = min(max(NEIGHBOURS), len(members) - 1)
    found = np.zeros((len(NEIGHBOURS), len(members)), np.float32)
    side = np.unique(sides, return_inverse=True)[1]
    size = max(1, _BLOCK_VALUES // max(1, len(members)))
    for start in each(range(0, len(asked) if count else 0, size), "neighbours"):
        here = asked[start : start + size]
        values = search(members[here], members).astype(np.float32)
        values[np.arange(len(here)), here] = -np.inf
        if side.any():
            values[side[here, None] == side] = -np.inf
        nearest = np.argpartition(-values, count - 1, axis=1)[:, :count]
        usable = np.isfinite(np.take_along_axis(values, nearest, 1))
        query, place = np.nonzero(usable)
        scores = np.full(nearest.shape, -np.inf, np.float32)
        scores[query, place] = score(members[here[query]], members[nearest[query, place]])
        found[:, here] = _means(-np.sort(-scores, 1))
    return found


def _means(falling: Values) -> Values:
    """Return the mean of the first k of each row, for all k of `NEIGHBOURS`; infinite ones are not there."""
    there = np.isfinite(falling)
    sums, counts = np.where(there, falling, 0.0).cumsum(1), there.cumsum(1)
    places = [min(k, falling.shape[1]) - 1 for k in NEIGHBOURS]
    means: Values = (sums[:, places] / np.maximum(counts[:, places], 1)).T.astype(np.float32)
    return means


def in_context(scores: Values, left: Values, right: Values) -> Values:
    """Put margins beside the scores of pairs: how far a score stands out of each product's surroundings.

    Args:
        scores: FP32 [p].
        left: FP32 [l, p], r_k of the left products for several k.
        right: FP32 [l, p], of the right products.

    Returns:
        FP32 [p, 1 + 2 l]: score, its larger margins (one per k), its smaller ones; the same for a pair and its reverse.
    """
    margins = scores[:, None] - np.minimum(left, right).T, scores[:, None] - np.maximum(left, right).T
    return np.concatenate([scores[:, None], *margins], 1)
