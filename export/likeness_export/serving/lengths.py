"""Rows of different length: how long each is, and which of them to compute together.

Tensors of varying length are padded with zeros on the right, and networks do not see padding; so it can be cut off.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Sequence[Sequence[NDArray[Any]]]
"""Per input of a network, the tensors of the requests [rows, ...]."""
Compute = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]
"""Runs a network: its inputs [n, ...] -> its outputs [n, ...]."""

RUN_TOKENS = 8
"""What one more run of a network costs, in tokens of padding: about 2 ms against 0.26 ms a token (MiniLM, one core)."""


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


def runs_of(lengths: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Divide rows into runs so that padding and the cost of the runs are least in sum.

    Rows of like length go together; the cuts in the sorted lengths are found by dynamic programming.

    Args:
        lengths: [n].

    Returns:
        Row numbers per run; every row is in one.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order].tolist()
    least, cut = [0.0], [0]
    for end in range(1, len(ordered) + 1):
        costs = [least[start] + RUN_TOKENS + (end - start) * ordered[end - 1] for start in range(end)]
        cut.append(min(range(end), key=costs.__getitem__))
        least.append(costs[cut[-1]])
    runs, end = [], len(ordered)
    while end:
        runs.append(order[cut[end] : end])
        end = cut[end]
    return runs[::-1]


def at_once(columns: Columns, compute: Compute) -> list[NDArray[Any]]:
    """Run all rows of all requests in one batch."""
    return compute([parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in columns])


def by_length(columns: Columns, compute: Compute) -> list[NDArray[Any]]:
    """Run rows of like length together, without padding beyond the longest of each run; rows keep their places."""
    longest = max(part.shape[1] for part in columns[0])
    wide = [
        np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts]) for parts in columns
    ]
    lengths = used_lengths(wide)
    runs = runs_of(lengths)
    found = [compute([tensor[rows, : lengths[rows].max()] for tensor in wide]) for rows in runs]
    back = np.argsort(np.concatenate(runs))
    return [np.concatenate(parts)[back] for parts in zip(*found, strict=True)]
