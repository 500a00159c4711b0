"""When requests are sent in an open loop: decided beforehand, so that a slow server cannot slow the load down."""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
from likeness_client import InputError
from numpy.typing import NDArray


class Arrivals(StrEnum):
    """How requests are spread over time."""

    POISSON = "poisson"  # independent callers: exponential gaps, bursts included
    CONSTANT = "constant"  # equal gaps: the kindest load of this rate


def arrival_times(arrivals: Arrivals, rate: float, length_s: float, seed: int) -> NDArray[np.float64]:
    """Draw the schedule of one run.

    Args:
        arrivals: how requests are spread.
        rate: requests per second on average.
        length_s: how long the run is, in seconds.
        seed: of the draws; the same seed gives the same schedule.

    Returns:
        Seconds from the start, ascending, all in [0, length_s).

    Raises:
        InputError: the rate or the length is not positive and finite.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"a rate of {rate} requests/s cannot be scheduled: give a number above 0")
    if not (math.isfinite(length_s) and length_s > 0):
        raise InputError(f"a run of {length_s} s cannot be scheduled: give a number above 0")
    if arrivals is Arrivals.CONSTANT:
        times = np.arange(math.ceil(rate * length_s)) / rate
        return times[times < length_s]  # 100 times 1.1 is a little more than 110
    # Given their number, the arrivals of a Poisson process are uniform over the time (e.g. Ross, Stochastic Processes).
    draw = np.random.default_rng(seed)
    return np.sort(draw.uniform(0.0, length_s, draw.poisson(rate * length_s)))
