"""When requests are sent in an open loop: decided beforehand, so that a slow server cannot slow the load down."""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Arrivals(StrEnum):
    """How requests are spread over time."""

    POISSON = "poisson"  # independent callers: exponential gaps, bursts included
    CONSTANT = "constant"  # equal gaps: the kindest load of this rate


def arrival_times(arrivals: Arrivals, rate: float, length_s: float, seed: int) -> NDArray[np.float64]:
    """Draw the schedule of one run.

    Args:
        arrivals: how requests are spread.
        rate: requests per second on average, above 0.
        length_s: how long the run is, in seconds, above 0.
        seed: of the draws; the same seed gives the same schedule.

    Returns:
        Seconds from the start, ascending, all in [0, length_s).
    """
    if arrivals is Arrivals.CONSTANT:
        times = np.arange(math.ceil(rate * length_s)) / rate
        return times[times < length_s]  # 100 times 1.1 is a little more than 110
    # Given their number, the arrivals of a Poisson process are uniform over the time (e.g. Ross, Stochastic Processes).
    draw = np.random.default_rng(seed)
    return np.sort(draw.uniform(0.0, length_s, draw.poisson(rate * length_s)))
