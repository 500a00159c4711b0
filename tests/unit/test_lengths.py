"""Which rows the server computes together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness_export.repository.adapters.lengths import (
    Workers,
    at_once,
    by_length,
    by_number,
    gathering,
    runs_of,
    runs_side_by_side,
    used_lengths,
)
from numpy.typing import NDArray

RUN_TOKENS = 8
LENGTHS = st.lists(st.integers(1, 60), max_size=9)


def cost(runs: list[list[int]]) -> int:
    return sum(RUN_TOKENS + len(run) * max(run) for run in runs)


def test_padding_is_what_is_zero_in_all_tensors() -> None:
    ids = np.array([[5, 0, 7, 0], [0, 0, 0, 0], [1, 2, 3, 4], [0, 9, 0, 0]])
    weights = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0.5, 1, 2, 0]])
    assert used_lengths([ids, weights]).tolist() == [3, 1, 4, 3]
    assert used_lengths([ids]).tolist() == [3, 1, 4, 2]
    assert used_lengths([ids[:0]]).tolist() == []
    pixels = np.zeros((4, 4, 2, 2))  # black is a colour: only the numbers of a row say how long it is
    assert used_lengths([pixels, ids]).tolist() == [3, 1, 4, 2]


@given(LENGTHS)
def test_no_other_division_of_the_sorted_rows_is_cheaper(lengths: list[int]) -> None:
    runs = runs_of(np.array(lengths, dtype=np.intp), RUN_TOKENS)
    assert sorted(row for run in runs for row in run.tolist()) == list(range(len(lengths)))
    ordered = sorted(lengths)
    least = min(
        cost([ordered[i:j] for i, j in zip((0, *cuts), (*cuts, len(ordered)), strict=True) if i < j])
        for number in range(max(1, len(ordered)))
        for cuts in combinations(range(1, len(ordered)), number)
    )
    assert cost([[lengths[row] for row in run] for run in runs]) == least


def test_like_lengths_share_a_run_and_long_ones_do_not_stretch_short_ones() -> None:
    runs = runs_of(np.array([12, 60, 11, 58, 12]), RUN_TOKENS)
    assert [sorted(run.tolist()) for run in runs] == [[0, 2, 4], [1, 3]]
    assert len(runs_of(np.arange(1, 1025), 1_000_000)) == 1  # a network for which length hardly matters runs once


@given(st.lists(LENGTHS.filter(bool), min_size=1, max_size=4))
def test_rows_keep_their_places_and_networks_see_no_needless_padding(requests: list[list[int]]) -> None:
    columns = [
        [(np.arange(70) < np.array(lengths)[:, None]).astype(np.int64)[:, : max(lengths) + 3] for lengths in requests]
    ]
    seen = []

    def compute(tensors: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        seen.append(tensors[0].shape)
        return [tensors[0].sum(1), np.repeat(tensors[0].sum(1, keepdims=True), 2, 1)]

    totals, pairs = by_length(columns, compute, RUN_TOKENS)
    every = [length for lengths in requests for length in lengths]
    assert totals.tolist() == every
    assert pairs.shape == (len(every), 2)
    assert sum(rows for rows, _ in seen) == len(every)
    assert max(width for _, width in seen) == max(every)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 12))
def test_rows_run_a_few_at_a_time_and_keep_their_places(requests: list[int], run_rows: int) -> None:
    rows = np.arange(sum(requests), dtype=np.float32)[:, None]
    parts = np.split(rows, np.cumsum(requests)[:-1])
    seen = []

    def compute(tensors: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        seen.append(len(tensors[0]))
        return [tensors[0] + tensors[1], tensors[0][:, 0]]

    sums, first = by_number([parts, parts], compute, run_rows)
    assert np.array_equal(sums, 2 * rows)
    assert np.array_equal(first, rows[:, 0])
    full = min(run_rows, len(rows))
    assert seen[:-1] == [full] * (len(seen) - 1)
    assert 0 < seen[-1] <= full


def test_one_request_is_not_copied() -> None:
    alone = np.zeros((2, 3))
    assert at_once([[alone]], lambda tensors: tensors)[0] is alone
    assert at_once([[alone, alone]], lambda tensors: tensors)[0].shape == (4, 3)


@given(LENGTHS.filter(bool), st.integers(1, 4))
def test_every_row_is_in_one_run_and_the_costly_runs_come_first(lengths: list[int], workers: int) -> None:
    runs = [run.tolist() for run in runs_side_by_side(np.array(lengths, dtype=np.intp), RUN_TOKENS, workers)]
    assert sorted(row for run in runs for row in run) == list(range(len(lengths)))
    costs = [cost([[lengths[row] for row in run]]) for run in runs]
    assert costs == sorted(costs, reverse=True)


def test_workers_share_rows_of_like_length_and_one_keeps_them_together() -> None:
    alike = np.full(8, 20)
    assert [len(run) for run in runs_side_by_side(alike, RUN_TOKENS, 1)] == [8]
    assert [len(run) for run in runs_side_by_side(alike, RUN_TOKENS, 2)] == [4, 4]
    assert [len(run) for run in runs_side_by_side(alike[:3], RUN_TOKENS, 8)] == [1, 1, 1]
    unlike = np.array([60, 20, 20, 20])  # as costly as three short ones: like lengths stay together
    assert sorted(map(sorted, runs_side_by_side(unlike, RUN_TOKENS, 2))) == [[0], [1, 2, 3]]
    assert len(runs_side_by_side(np.full(8, 2), 1_000, 2)) == 1  # where one more run costs more than it saves
    # Sixteen tokens more for both workers together, and the batch is over twelve sooner.
    runs = runs_side_by_side(np.array([40, 40, 60, 60]), RUN_TOKENS, 2)
    assert [run.tolist() for run in runs] == [[2], [3], [0], [1]]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("gather", [partial(by_length, run_tokens=RUN_TOKENS), partial(by_number, run_rows=2)])
def test_side_by_side_gives_the_same_rows(gather: Callable[..., Sequence[NDArray[Any]]], workers: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 23)
    requests = np.split((np.arange(40) < lengths[:, None]).astype(np.int64), [4, 5, 17])
    (found,) = gather([requests], lambda tensors: [tensors[0].sum(1)], workers=Workers(workers))
    assert found.tolist() == lengths.tolist()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.integers(1, 5), st.integers(1, 3))
def test_products_of_many_photos_run_a_few_photos_at_a_time(photos: list[int], run_rows: int, workers: int) -> None:
    counts = np.array(photos)
    there = (np.arange(6) < counts[:, None]).astype(np.int64)
    pixels = there[..., None, None] * np.arange(1, 7, dtype=np.uint8)[:, None, None]  # (n, 6, 1, 1)
    seen = []

    def compute(tensors: list[NDArray[Any]]) -> list[NDArray[Any]]:
        seen.append(tensors[1].shape)
        return [tensors[0].sum((1, 2, 3)), tensors[1].sum(1)]

    columns = [[pixels[:4], pixels[4:, :3]], [there[:4], there[4:, :3]]] if max(photos[4:], default=9) <= 3 else None
    gather = gathering({"run_tokens": "0", "run_rows": str(run_rows)}, workers)
    sums, found = gather(columns or [[pixels], [there]], compute)
    assert found.tolist() == photos
    assert sums.tolist() == [count * (count + 1) // 2 for count in photos]
    assert all(rows == 1 or rows * most <= run_rows for rows, most in seen)


def test_requests_of_unlike_length_are_padded() -> None:
    joined = at_once([[np.ones((1, 2)), np.ones((2, 3))]], lambda tensors: tensors)[0]
    assert joined.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert at_once([[np.ones(2), np.zeros(1)]], lambda tensors: tensors)[0].tolist() == [1, 1, 0]


def test_runs_are_computed_at_the_same_time() -> None:
    met = threading.Barrier(2, timeout=10)

    def compute(tensors: list[NDArray[Any]]) -> list[NDArray[Any]]:
        met.wait()
        return tensors

    assert by_number([[np.arange(4)]], compute, 2, Workers(2))[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "workers", "expected"), [(8, 1, [4, 4]), (5, 2, [3, 2]), (8, 3, [3, 3, 2]), (9, 2, [4, 4, 1])]
)
def test_no_worker_is_idle_while_a_few_rows_at_a_time_run(rows: int, workers: int, expected: list[int]) -> None:
    seen: list[int] = []

    def compute(tensors: list[NDArray[Any]]) -> list[NDArray[Any]]:
        seen.append(len(tensors[0]))
        return tensors

    gathering({"run_rows": "4"}, workers)([[np.arange(rows)]], compute)
    assert sorted(seen, reverse=True) == expected


def test_a_single_run_wakes_no_other_thread() -> None:
    def compute(tensors: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [tensors[0] * 0 + threading.get_ident()]

    (found,) = by_number([[np.zeros(1, np.int64)]], compute, 4, Workers(2))
    assert found.tolist() == [threading.get_ident()]
