"""Which rows of a batch to compute together on a CPU, and how long each of them is.

Tensors of varying length are padded with zeros on the right, and networks do not see padding; so it can be cut off.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Sequence[Sequence[NDArray[Any]]]
"""Per input of a network, the tensors of the requests [rows, ...]."""
Compute = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]
"""Runs a network: its inputs [n, ...] -> its outputs [n, ...]."""


def used_lengths(tensors: Sequence[NDArray[np.generic]]) -> NDArray[np.intp]:
    """Return how many columns of each row hold something, at least one.

    Args:
        tensors: [n, length] each, of equal shape; a column counts if any of them is not zero there.

    Returns:
        INT64 [n].
    """
    there = np.logical_or.reduce([tensor != 0 for tensor in tensors])  # (n, length)
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


def gathering(parameters: Mapping[str, str]) -> Callable[[Columns, Compute], list[NDArray[Any]]]:
    """Return how a model gathers its rows: as the parameters of its configuration say, or all at once."""
    if "run_tokens" in parameters:
        return partial(by_length, run_tokens=int(parameters["run_tokens"]))
    if "run_rows" in parameters:
        return partial(by_number, run_rows=int(parameters["run_rows"]))
    return at_once


def at_once(columns: Columns, compute: Compute) -> list[NDArray[Any]]:
    """Run all rows of all requests in one batch."""
    return compute(_joined(columns))


def by_number(columns: Columns, compute: Compute, run_rows: int) -> list[NDArray[Any]]:
    """Run at most ``run_rows`` rows at a time, in their order: what a run works on should fit into the caches."""
    whole = _joined(columns)
    starts = range(0, len(whole[0]), run_rows)
    found = [compute([tensor[start : start + run_rows] for tensor in whole]) for start in starts]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _joined(columns: Columns) -> list[NDArray[Any]]:
    return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in columns]


def by_length(columns: Columns, compute: Compute, run_tokens: int) -> list[NDArray[Any]]:
    """Run rows of like length together, without padding beyond the longest of each run; rows keep their places.

    See `runs_of` for ``run_tokens``.
    """
    longest = max(part.shape[1] for part in columns[0])
    wide = [
        np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts]) for parts in columns
    ]
    lengths = used_lengths(wide)
    runs = runs_of(lengths, run_tokens)
    found = [compute([tensor[rows, : lengths[rows].max()] for tensor in wide]) for rows in runs]
    back = np.argsort(np.concatenate(runs))
    return [np.concatenate(parts)[back] for parts in zip(*found, strict=True)]
