"""Is a reduced file really faster on this machine? Two files in turns, so that its other work slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path

import onnxruntime as ort

from likeness_export.precision.products import Feed, Products
from likeness_export.serving.session import Sessions

_ROUNDS = 31
_BATCHES = (1, 8)  # a request by itself, and requests that share a batch


def speed_ratio(before: Path, after: Path, tower: str, products: Products, served: Mapping[str, str]) -> float:
    """Return how many times as fast the second file runs: the smaller figure of a batch of 1 and one of 8.

    Args:
        before: the fp32 file.
        after: the reduced file.
        tower: whose products are run.
        products: real ones; texts have their own lengths.
        served: how the server runs them, the parameters of the ``cpu`` profile.

    Returns:
        The median over rounds of time before / time after; 0 where there is no product to run.
    """
    sessions = [Sessions(path, served) for path in (before, after)]
    ratios = []
    for size in _BATCHES:
        different = list(islice(products.feeds(tower, size), _ROUNDS))
        if not different:
            return 0.0
        feeds = list(islice(cycle(different), _ROUNDS))
        old, new = (opened.alone if size == 1 else opened.batches for opened in sessions)
        for session in (old, new):
            session.run(None, feeds[0])
        ratios.append(statistics.median(_ratio(old, new, *round_) for round_ in enumerate(feeds)))
    return min(ratios)


def _ratio(old: ort.InferenceSession, new: ort.InferenceSession, turn: int, feed: Feed) -> float:
    """Return time of the first / time of the second; who goes first changes, for the second finds a warm cache."""
    if turn % 2:
        return 1 / _ratio(new, old, 0, feed)
    return _seconds(old, feed) / _seconds(new, feed)


def _seconds(session: ort.InferenceSession, feed: Feed) -> float:
    started = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - started
