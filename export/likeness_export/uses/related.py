"""Related products: the nearest neighbours by cosine, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from likeness_export.progress import each
from likeness_export.uses.inputs import Vectors, check_vectors

_BLOCK_ROWS = 2048
_BLOCK_SCORES = 4_000_000  # at a time; 16 MB


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest others of each product, the nearest first; k is at most n - 1.

    Attributes:
        rows: [n, k], which products they are.
        cosines: FP32 [n, k] in [-1, 1], falling along a row.
    """

    rows: NDArray[np.intp]
    cosines: Vectors


def nearest(vectors: Vectors, k: int) -> Neighbours:
    r"""Find the k nearest others of every product.

    Exhaustive search, blockwise: memory grows with n, time with :math:`n^2`. For unit vectors the Euclidean order is
    the order by cosine, since :math:`\|a - b\|^2 = 2 - 2\,a \cdot b`. Equally near ones keep the catalogue's order;
    which of them is cut off at k is not defined.

    Args:
        vectors: FP32 [n, d], unit length.
        k: how many; all others where there are fewer.

    Raises:
        InputError: a product has no vector.
    """
    check_vectors(vectors)
    count = len(vectors)
    k = max(0, min(k, count - 1))
    rows = np.empty((count, k), dtype=np.intp)
    cosines = np.empty((count, k), dtype=np.float32)
    if k:
        index = NearestNeighbors(algorithm="brute").fit(vectors)
        for start in each(range(0, count, _BLOCK_ROWS), "nearest neighbours"):
            block = slice(start, min(start + _BLOCK_ROWS, count))
            rows[block] = _without_itself(index.kneighbors(vectors[block], k + 1, return_distance=False), start)
            cosines[block] = np.einsum("bd,bkd->bk", vectors[block], vectors[rows[block]])
        order = np.lexsort((rows, -cosines), axis=1)
        rows, cosines = np.take_along_axis(rows, order, 1), np.take_along_axis(cosines, order, 1)
    return Neighbours(rows=rows, cosines=np.clip(cosines, -1.0, 1.0))


def nearest_apart(vectors: Vectors, k: int, values: NDArray[np.str_]) -> Neighbours:
    """Find the k nearest others of every product, at most one of each value and none of its own.

    Of the variants of an article the nearest one is enough; and where the value is the shop, it is the nearest offer of
    each other shop. Exhaustive as `nearest`; time also grows with k.

    Args:
        vectors: FP32 [n, d], unit length.
        k: how many; one of each other value where there are fewer.
        values: [n]; a product with an empty one is alone with it.

    Raises:
        InputError: a product has no vector.
    """
    check_vectors(vectors)
    alone = np.flatnonzero(values == "")
    owners = np.unique(values, return_inverse=True)[1].astype(np.int32)  # comparing them is what takes the time
    owners[alone] = len(values) + alone
    k = max(0, min(k, len(np.unique(owners)) - 1))
    rows = np.empty((len(vectors), k), dtype=np.intp)
    cosines = np.empty((len(vectors), k), dtype=np.float32)
    size = max(1, _BLOCK_SCORES // max(1, len(vectors)))
    for start in each(range(0, len(vectors) if k else 0, size), "nearest neighbours"):
        block = slice(start, start + size)
        scores = vectors[block] @ vectors.T
        scores[owners[block, None] == owners] = -np.inf
        for place in range(k):
            found = scores.argmax(1)
            rows[block, place], cosines[block, place] = found, scores[np.arange(len(found)), found]
            scores[owners[found, None] == owners] = -np.inf
    return Neighbours(rows=rows, cosines=np.clip(cosines, -1.0, 1.0))


def _without_itself(found: NDArray[np.intp], start: int) -> NDArray[np.intp]:
    """Drop each query from its own neighbours [b, k + 1]; the last one where k + 1 copies of it crowd it out."""
    others = found != np.arange(start, start + len(found))[:, None]
    others[others.all(1), -1] = False
    kept: NDArray[np.intp] = found[others].reshape(len(found), -1)
    return kept
