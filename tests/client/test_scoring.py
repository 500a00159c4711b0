"""The arithmetic of scores, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from likeness_client import _scoring
from likeness_client._scoring import cosine_matrix, cosine_pairs, euclidean_matrix, euclidean_pairs
from numpy.typing import NDArray

Array = NDArray[np.float32]


def units(count: int, dimension: int = 64, seed: int = 0) -> Array:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension))
    found: Array = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def distances(left: Array, right: Array) -> NDArray[np.float64]:
    """By their definition."""
    apart = left[:, None].astype(np.float64) - right[None].astype(np.float64)
    found: NDArray[np.float64] = np.sqrt((apart**2).sum(2))
    return found


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scoring, "_BLOCK_CELLS", 100)


@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 1.0])
def test_distances_are_right_however_small(apart: float) -> None:
    left = units(40)
    right = left + np.float32(apart) * units(40, seed=1)
    np.testing.assert_allclose(euclidean_matrix(left, right), distances(left, right), rtol=1e-4, atol=5e-6)
    assert np.diag(euclidean_matrix(left, left)).max() < 1e-7


def test_many_that_are_alike_are_right_too() -> None:
    left = units(1) + np.float32(1e-3) * units(50, seed=1)  # all near all: the other way to compute them again
    right = units(1) + np.float32(1e-3) * units(30, seed=2)
    np.testing.assert_allclose(euclidean_matrix(left, right), distances(left, right), rtol=1e-4, atol=1e-7)


def test_lengths_need_not_be_one() -> None:
    left, right = units(20) * np.float32(100), units(30, seed=1) * np.logspace(-3, 3, 30, dtype=np.float32)[:, None]
    np.testing.assert_allclose(euclidean_matrix(left, right), distances(left, right), rtol=1e-4)
    cosines = left.astype(np.float64) @ right.T.astype(np.float64)
    cosines /= np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    np.testing.assert_allclose(cosine_matrix(left, right), cosines, atol=1e-6)


def test_gaps_stay_in_their_rows_and_columns() -> None:
    left, right = units(7), units(30, seed=1)
    left[2], right[5], right[6], right[7] = np.nan, np.nan, 0.0, left[0]
    gaps = np.zeros((7, 30), dtype=bool)
    gaps[2], gaps[:, 5] = True, True
    for found in (euclidean_matrix(left, right), cosine_matrix(left, right)):
        np.testing.assert_array_equal(np.isnan(found), gaps)
        assert found.dtype == np.float32
    np.testing.assert_allclose(euclidean_matrix(left, right)[~gaps], distances(left, right)[~gaps], atol=1e-6)
    assert cosine_matrix(left, right)[0, 6] == 0.0


def test_cosines_keep_their_range() -> None:
    left = units(50)
    found = cosine_matrix(left, np.concatenate([left, -left]))
    assert found.min() >= -1.0
    assert found.max() <= 1.0
    assert max(euclidean_matrix(units(50, seed=seed), -units(50, seed=seed)).max() for seed in range(20)) == 2.0


def test_pairs_are_the_diagonal_of_their_matrix() -> None:
    left = np.concatenate([units(30), units(30) * np.float32(50)])
    right = np.concatenate([units(10), -units(10), units(40, seed=1)])
    left[3], right[4], right[5] = np.nan, np.nan, 0.0
    for some in (slice(0, 30), slice(30, 60)):  # of length one, and of any
        for pairs, matrix in ((cosine_pairs, cosine_matrix), (euclidean_pairs, euclidean_matrix)):
            found = pairs(left[some], right[some])
            np.testing.assert_allclose(found, np.diag(matrix(left[some], right[some])), rtol=1e-5, atol=1e-6)
            assert found.dtype == np.float32
            assert pairs(left[:0], right[:0]).shape == (0,)
    assert max(euclidean_pairs(units(50, seed=seed), -units(50, seed=seed)).max() for seed in range(20)) == 2.0
    assert cosine_pairs(units(500), units(500)).max() <= 1.0


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_with_nothing(rows: int, columns: int) -> None:
    for score in (cosine_matrix, euclidean_matrix):
        assert score(units(rows), units(columns)).shape == (rows, columns)
