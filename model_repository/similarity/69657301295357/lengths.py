"""Which rows of a batch to compute together on a CPU, which side by side, and how long each of them is.

Tensors of varying length are padded with zeros on the right, and networks do not see padding; so it can be cut off.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Sequence[Sequence[NDArray[Any]]]
"""Per input of a network, the tensors of the requests [rows, ...]."""
Compute = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]
"""Runs a network: its inputs [n, ...] -> its outputs [n, ...]."""


class Workers:
    """Threads that compute the runs of a batch side by side.

    Args:
        count: how many runs are computed at a time; 1: one after the other, in the caller's own thread.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._each: Callable[..., Iterable[list[NDArray[Any]]]] = ThreadPoolExecutor(count).map if count > 1 else map

    def compute(self, compute: Compute, runs: Sequence[list[NDArray[Any]]]) -> list[NDArray[Any]]:
        """Return the outputs of all runs, one behind the other."""
        each = self._each if len(runs) > 1 else map  # one run needs no other thread, and waking one costs time
        return [np.concatenate(parts) for parts in zip(*each(compute, runs), strict=True)]


_NO_THREADS = Workers()


def used_lengths(tensors: Sequence[NDArray[np.generic]]) -> NDArray[np.intp]:
    """Return how many columns of each row hold something, at least one.

    Args:
        tensors: [n, length, ...] each; a column counts if any of those of single numbers, [n, length], is not zero
            there.

    Returns:
        INT64 [n].
    """
    there = np.logical_or.reduce([tensor != 0 for tensor in tensors if tensor.ndim == 2])  # (n, length)
    columns = np.arange(1, there.shape[1] + 1)
    lengths: NDArray[np.intp] = np.maximum((there * columns).max(1, initial=0), 1)
    return lengths


def runs_of(lengths: NDArray[np.intp], run_tokens: int) -> list[NDArray[np.intp]]:
    """Divide rows into runs so that padding and the cost of the runs are least in sum.

    Rows of like length go together; the cuts in the sorted lengths are found by dynamic programming.

    Args:
        lengths: [n].
        run_tokens: what one more run costs, in tokens of padding.

    Returns:
        Row numbers per run; every row is in one.
    """
    order = np.argsort(lengths, kind="stable")
    ordered, starts = lengths[order], np.arange(len(lengths))
    least, cut = np.zeros(len(lengths) + 1, np.int64), [0]
    for end in range(1, len(ordered) + 1):
        costs = least[:end] + run_tokens + (end - starts[:end]) * ordered[end - 1]
        cut.append(int(costs.argmin()))
        least[end] = costs[cut[-1]]
    runs, end = [], len(ordered)
    while end:
        runs.append(order[cut[end] : end])
        end = cut[end]
    return runs[::-1]


def runs_side_by_side(lengths: NDArray[np.intp], run_tokens: int, workers: int) -> list[NDArray[np.intp]]:
    """Divide rows into runs that workers compute side by side, the costly ones first.

    Two divisions are compared: the runs of all rows, which pad least, and the runs of as many equal shares as there are
    workers, each of them every so many-th of the sorted rows, which leave no worker idle. That one is taken whose price
    is lower: when the last worker is done, for which the batch waits, plus the mean of all workers' time, which other
    steps lack.

    Args:
        lengths: [n].
        run_tokens: see `runs_of`.
        workers: how many runs are computed at a time.

    Returns:
        Row numbers per run; every row is in one.
    """

    def cost(rows: NDArray[np.intp]) -> int:
        return run_tokens + len(rows) * int(lengths[rows].max())

    def price(runs: list[NDArray[np.intp]]) -> float:
        done = [0] * workers
        for rows in runs:  # each goes to the worker that is free first
            done[done.index(min(done))] += cost(rows)
        return max(done) + sum(done) / workers

    order = np.argsort(lengths, kind="stable")
    divisions = []
    for count in sorted({1, min(workers, len(order))}):
        shares = [order[first::count] for first in range(count)]
        runs = [share[run] for share in shares for run in runs_of(lengths[share], run_tokens)]
        divisions.append(sorted(runs, key=cost, reverse=True))
    return min(divisions, key=price)


def gathering(parameters: Mapping[str, str], workers: int = 1) -> Callable[[Columns, Compute], list[NDArray[Any]]]:
    """Return how a model gathers its rows: as the parameters of its configuration say, or all at once.

    Args:
        parameters: of the configuration.
        workers: threads that compute runs side by side.
    """
    run_rows = int(parameters.get("run_rows", 0))
    if "run_tokens" in parameters:
        run_tokens = int(parameters["run_tokens"])
        return partial(by_length, run_tokens=run_tokens, run_rows=run_rows, workers=Workers(workers))
    return partial(by_number, run_rows=run_rows, workers=Workers(workers)) if run_rows else at_once


def at_once(columns: Columns, compute: Compute) -> list[NDArray[Any]]:
    """Run all rows of all requests in one batch."""
    return compute(_joined(columns))


def by_number(columns: Columns, compute: Compute, run_rows: int, workers: Workers = _NO_THREADS) -> list[NDArray[Any]]:
    """Run at most ``run_rows`` rows at a time, fewer where workers would be idle, in their order.

    What a run works on should fit into the caches.
    """
    whole = _joined(columns)
    rows = min(run_rows, -(-len(whole[0]) // workers.count))
    starts = range(0, len(whole[0]), rows)
    return workers.compute(compute, [[tensor[start : start + rows] for tensor in whole] for start in starts])


def by_length(
    columns: Columns, compute: Compute, run_tokens: int, run_rows: int = 0, workers: Workers = _NO_THREADS
) -> list[NDArray[Any]]:
    """Run rows of like length together, without padding beyond the longest of each run; rows keep their places.

    See `runs_of` for ``run_tokens``. With ``run_rows`` a run has at most so many columns, in one row at least: what it
    works on should fit into the caches.
    """
    whole = _joined(columns)
    lengths = used_lengths(whole)
    runs = runs_side_by_side(lengths, run_tokens, workers.count)
    if run_rows:
        sizes = [max(1, run_rows // int(lengths[rows].max())) for rows in runs]
        runs = [rows[i : i + size] for rows, size in zip(runs, sizes, strict=True) for i in range(0, len(rows), size)]
    found = workers.compute(compute, [[tensor[rows, : lengths[rows].max()] for tensor in whole] for rows in runs])
    back = np.argsort(np.concatenate(runs))
    return [column[back] for column in found]


def _joined(columns: Columns) -> list[NDArray[Any]]:
    """Return the rows of all requests, shorter ones padded to the longest."""
    return [parts[0] if len(parts) == 1 else np.concatenate(_equally_long(parts)) for parts in columns]


def _equally_long(parts: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    longest = max(part.shape[1:2] for part in parts)  # (), where a row is a single number
    if all(part.shape[1:2] == longest for part in parts):
        return parts
    room = [(0, longest[0] - part.shape[1]) for part in parts]
    return [np.pad(part, ((0, 0), more, *[(0, 0)] * (part.ndim - 2))) for part, more in zip(parts, room, strict=True)]
