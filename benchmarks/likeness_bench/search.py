"""Finding the highest rate that keeps a target: doubling until one is missed, then halving the gap. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from likeness_client import InputError

SETTLED = 0.10
"""Two repeats in a row that differ by less than this, relative to the smaller, have settled."""
CLEARLY = 3.0
"""A first repeat this many times over the target, and over it by its p50, is not repeated: none would bring it back."""
_DOUBTFUL = 3
"""A miss is doubtful once this many rates in a row have kept the target, the last right below it: three of three
tries on one side of the answer are rare, and a server that had stalled by chance when it missed looks just so."""


@dataclass
class RateSearch:
    """The state of a search. Ask `next_rate`, try it, `tell` what became of it, until there is none.

    A doubtful miss is tried once more in the end. If it keeps the target then, the search goes on above it.

    Attributes:
        rate: where to begin, in requests/s.
        lowest: not below this rate.
        highest: not above this rate.
        precision: the search ends when the gap is this share of the rate that was kept.
        kept: the highest rate that kept the target; None so far.
        missed: the lowest rate that missed it; None so far.

    Raises:
        InputError: the search cannot begin at this rate, or the precision is no share.
    """

    rate: float
    lowest: float = 0.1
    highest: float = 100_000.0
    precision: float = 0.05
    kept: float | None = None
    missed: float | None = None
    _misses: set[float] = field(default_factory=set, init=False)
    _kept_in_a_row: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= self.rate <= self.highest < float("inf"):
            raise InputError(
                f"--rate {self.rate:g}: a search cannot begin there; give {self.lowest:g} to {self.highest:g}"
            )
        if not 0 < self.precision < 1:
            raise InputError(f"--precision {self.precision:g} is no share of the rate: give a number between 0 and 1")

    def next_rate(self) -> float | None:
        """Return the rate to try next, or None when the answer is there."""
        if self.kept is None and self.missed is None:
            return self.rate
        if self.missed is None:
            assert self.kept is not None
            return None if self.kept >= self.highest else min(2 * self.kept, self.highest)
        if self.kept is None:
            return None if self.missed <= self.lowest else max(self.missed / 2, self.lowest)
        gap = self.missed - self.kept
        if gap > self.precision * self.kept:
            return self.kept + gap / 2
        return self.missed if self._kept_in_a_row >= _DOUBTFUL else None

    def tell(self, rate: float, *, kept: bool) -> None:
        """Take in what became of a rate; of one that was tried again, what counts now."""
        if kept:
            self.kept = rate
            self._kept_in_a_row = 0 if rate in self._misses else self._kept_in_a_row + 1  # they say nothing of the next
            self._misses.discard(rate)
        else:
            self._kept_in_a_row = 0
            self._misses.add(rate)
        self.missed = min(self._misses, default=None)


def settled(p99_ms: Sequence[float | None], p50_ms: float | None, target_ms: float) -> bool:
    """Say whether one rate needs no other repeat: its last two agree, or the first misses the target by far.

    Args:
        p99_ms: the 99th percentile of each repeat so far; None: infinite, because of failures.
        p50_ms: the median latency of the first repeat: a p99 alone may be one outlier; None: nothing was answered.
        target_ms: the target.
    """
    if len(p99_ms) == 1:
        return late(p99_ms[0]) > CLEARLY * target_ms and late(p50_ms) > target_ms
    return agree(p99_ms)


def agree(durations_ms: Sequence[float | None]) -> bool:
    """Say whether the last two repeats of a measurement have settled; one alone never has. None: infinite."""
    if len(durations_ms) < 2:
        return False
    one, other = durations_ms[-2:]
    if one is None or other is None:
        return one is other
    return abs(one - other) < SETTLED * min(one, other)


def decisive(durations_ms: Sequence[float | None], *, settled: bool) -> int:
    """Return which repeat stands for all: the place of the slower of the last two, where they agree; else the middle.

    Args:
        durations_ms: of each repeat; None: infinite. Of an even number the slower of the middle two stands for all.
        settled: whether the last two agree.
    """
    places = range(len(durations_ms))[-2 if settled else 0 :]
    return sorted(places, key=lambda place: late(durations_ms[place]))[len(places) // 2]


def late(duration_ms: float | None) -> float:
    """Return a duration that failures can make infinite, which reports hold as None, as a number."""
    return float("inf") if duration_ms is None else duration_ms
