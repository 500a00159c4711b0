"""Scores of vectors that the caller already holds. Sending them to a server would cost far more than the arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from likeness_client.contract import Metric
from likeness_client.results import FloatArray

_BLOCK_CELLS = 1 << 18  # scores that are finished at a time: 1 MB, which the processor's cache holds over all steps
_NEAR = 0.005  # share of the vectors' squares below which the sum of squares has lost too many digits
_UNIT = 1.001  # squares of unit vectors are smaller, whatever was rounded
_MOST_NEAR = 1 / 64  # share of a block from which on all of it is computed again, and not only what is near


def cosine_matrix(left: FloatArray, right: FloatArray) -> FloatArray:
    r"""Return :math:`\frac{l \cdot r}{\|l\| \|r\|}` for all pairs of rows.

    Args:
        left: float32 [q, d]; rows may be NaN.
        right: float32 [c, d]; rows may be NaN.

    Returns:
        float32 [q, c] in [-1, 1]; NaN where a row is NaN.
    """
    with np.errstate(invalid="ignore"):
        values: FloatArray = _unit(left) @ _unit(right).T
        for part in _blocks(values):
            np.clip(values[part], -1.0, 1.0, out=values[part])
    return values


def cosine_pairs(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return what `cosine_matrix` has on its diagonal: float32 [n] of two float32 [n, d]."""
    values: FloatArray = np.einsum("nd,nd->n", _unit(left), _unit(right)).clip(-1.0, 1.0)
    return values


def euclidean_matrix(left: FloatArray, right: FloatArray) -> FloatArray:
    r"""Return :math:`\sqrt{\|l\|^2 + \|r\|^2 - 2\, l \cdot r}` for all pairs of rows.

    One matrix product gives the whole sum. For vectors that are alike it cancels, and equal ones would be 0.0003 apart
    in float32: where little is left, the distance is computed again without it.

    Args:
        left: float32 [q, d]; rows may be NaN.
        right: float32 [c, d]; rows may be NaN.

    Returns:
        float32 [q, c], not negative, and 2 at most for unit vectors; NaN where a row is NaN.
    """
    with np.errstate(invalid="ignore"):
        left_squares, right_squares = _squares(left), _squares(right)
        rows = np.hstack([-2.0 * left, left_squares, np.ones_like(left_squares)])
        columns = np.hstack([right, np.ones_like(right_squares), right_squares])
        values: FloatArray = rows @ columns.T
        longest_left, longest_right = _largest(left_squares), _largest(right_squares)
        near = _NEAR * (longest_left + longest_right)
        farthest = _farthest(left_squares, right_squares)
        for part in _blocks(values):
            block = values[part]
            _recompute_near(block, left[part], right, near)
            np.minimum(block, farthest, out=block)
            np.sqrt(block, out=block)
    return values


def euclidean_pairs(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return what `euclidean_matrix` has on its diagonal: float32 [n] of two float32 [n, d]."""
    squares = np.minimum(_squares(left - right)[:, 0], _farthest(_squares(left), _squares(right)))
    distances: FloatArray = np.sqrt(squares)
    return distances


VectorScores: TypeAlias = Callable[[FloatArray, FloatArray], FloatArray]
PAIR_SCORES: Mapping[Metric, VectorScores] = {Metric.COSINE: cosine_pairs, Metric.EUCLIDEAN: euclidean_pairs}
MATRIX_SCORES: Mapping[Metric, VectorScores] = {Metric.COSINE: cosine_matrix, Metric.EUCLIDEAN: euclidean_matrix}
"""The metrics that are computed here; all others are asked of a server."""


def _recompute_near(squares: FloatArray, left: FloatArray, right: FloatArray, near: float) -> None:
    """Compute squared distances [q, c] below ``near`` again, in place; none is negative then."""
    found = squares < near
    if not found.any():
        return
    if np.count_nonzero(found) > _MOST_NEAR * found.size:
        rows, columns = left.astype(np.float64), right.astype(np.float64)
        exact = _squares(rows) + _squares(columns).T - 2.0 * (rows @ columns.T)
        np.maximum(exact, 0.0, out=squares, casting="same_kind")
    else:
        of_rows, of_columns = np.nonzero(found)
        differences = left[of_rows] - right[of_columns]  # exact for numbers that are alike
        squares[of_rows, of_columns] = _squares(differences)[:, 0]


def _blocks(values: FloatArray) -> list[slice]:
    """Cut the rows of a matrix so that a block stays in the cache."""
    step = max(1, _BLOCK_CELLS // max(1, values.shape[1]))
    return [slice(start, start + step) for start in range(0, len(values), step)]


def _squares(vectors: NDArray[Any]) -> NDArray[Any]:
    """Return the squared length of each row [n, 1]."""
    squares: NDArray[Any] = np.einsum("nd,nd->n", vectors, vectors)[:, None]
    return squares


def _largest(squares: NDArray[Any]) -> float:
    return float(np.nan_to_num(squares).max(initial=0.0))


def _farthest(*squares: NDArray[Any]) -> float:
    """Return the largest squared distance of vectors with these squares; of unit vectors rounding may go beyond it."""
    return 4.0 if max(map(_largest, squares)) < _UNIT else np.inf


def _unit(vectors: FloatArray) -> FloatArray:
    lengths = np.sqrt(_squares(vectors))
    # A zero vector stays zero: it is alike to nothing, not undefined.
    unit: FloatArray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
