"""Scores of vectors that the caller already holds. Sending them to a server would cost far more than the arithmetic."""

from __future__ import annotations

import numpy as np

from likeness_client.results import FloatArray

_BLOCK_ROWS = 256  # bounds the float64 intermediate at 256 x c


def cosine_matrix(left: FloatArray, right: FloatArray) -> FloatArray:
    r"""Return :math:`\frac{l \cdot r}{\|l\| \|r\|}` for all pairs of rows.

    Args:
        left: float32 [q, d]; rows may be NaN.
        right: float32 [c, d]; rows may be NaN.

    Returns:
        float32 [q, c] in [-1, 1]; NaN where a row is NaN.
    """
    with np.errstate(invalid="ignore"):
        return np.clip(_unit(left) @ _unit(right).T, -1.0, 1.0)


def euclidean_matrix(left: FloatArray, right: FloatArray) -> FloatArray:
    r"""Return :math:`\sqrt{\|l\|^2 + \|r\|^2 - 2\, l \cdot r}` for all pairs of rows.

    In float64, because the sum cancels for vectors that are alike: in float32 equal vectors would be 0.0003 apart.

    Args:
        left: float32 [q, d]; rows may be NaN.
        right: float32 [c, d]; rows may be NaN.

    Returns:
        float32 [q, c], not negative; NaN where a row is NaN.
    """
    values = np.empty((len(left), len(right)), dtype=np.float32)
    columns = right.astype(np.float64)
    column_squares = np.einsum("cd,cd->c", columns, columns)
    with np.errstate(invalid="ignore"):
        for start in range(0, len(left), _BLOCK_ROWS):
            rows = left[start : start + _BLOCK_ROWS].astype(np.float64)
            squares = np.einsum("qd,qd->q", rows, rows)[:, None] + column_squares - 2.0 * (rows @ columns.T)
            values[start : start + _BLOCK_ROWS] = np.sqrt(np.maximum(squares, 0.0))
    return values


def _unit(vectors: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A zero vector stays zero: it is alike to nothing, not undefined.
    unit: FloatArray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
