"""Is a reduced file really faster on this machine? Two files in turns, so that its other work slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import TypeAlias

import onnxruntime as ort

from likeness_export.precision.products import Feed, Products
from likeness_export.repository.adapters.lengths import Columns, Compute, gathering
from likeness_export.repository.adapters.session import Sessions

Seconds: TypeAlias = Callable[[Feed], float]
"""Runs a batch; says how long that took."""
_ROUNDS = 31
_BATCHES = (1, 8)  # a request by itself, and requests that share a batch


def speed_ratio(before: Path, after: Path, tower: str, products: Products, served: Mapping[str, str]) -> float:
    """Return how many times as fast the second file runs: the smaller figure of a batch of 1 and one of 8.

    Args:
        before: the fp32 file.
        after: the reduced file.
        tower: whose products are run.
        products: real ones; texts have their own lengths.
        served: how the server runs them, the parameters of the ``cpu`` profile; its runs one after the other, for
            side by side both files gain alike.

    Returns:
        The median over rounds of time before / time after; 0 where there is no product to run.
    """
    sessions, gather = [Sessions(path, served) for path in (before, after)], gathering(served)
    ratios = []
    for size in _BATCHES:
        different = list(islice(products.feeds(tower, size), _ROUNDS))
        if not different:
            return 0.0
        feeds = list(islice(cycle(different), _ROUNDS))
        old, new = (_timed(opened.for_batch(size), gather) for opened in sessions)
        for seconds in (old, new):
            seconds(feeds[0])
        ratios.append(statistics.median(_ratio(old, new, *round_) for round_ in enumerate(feeds)))
    return min(ratios)


def _ratio(old: Seconds, new: Seconds, turn: int, feed: Feed) -> float:
    """Return time of the first / time of the second; who goes first changes, for the second finds a warm cache."""
    if turn % 2:
        return 1 / _ratio(new, old, 0, feed)
    return old(feed) / new(feed)


def _timed(session: ort.InferenceSession, gather: Callable[[Columns, Compute], object]) -> Seconds:
    def seconds(feed: Feed) -> float:
        started = time.perf_counter()
        gather(
            [[tensor] for tensor in feed.values()], lambda rows: session.run(None, dict(zip(feed, rows, strict=True)))
        )
        return time.perf_counter() - started

    return seconds
