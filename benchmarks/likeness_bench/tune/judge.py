"""Which of two settings is better, from turns that they had in alternation. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from likeness_bench.figures import RunFigures
from likeness_bench.search import late

CLEARLY = 1.03
"""Better means: by more than this factor in the median of the rounds, and better at all in `MOSTLY` of them."""
MOSTLY = 0.8
"""Four of five rounds: one of two equal settings wins three of them every other time."""
_NEAR = 1.5
"""A p99 within this factor of the target may cross it in a later round; so may an infinite one, of a few failures."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One alternation: a closed loop on each of two servers."""

    incumbent: RunFigures
    candidate: RunFigures

    @property
    def speed_ratio(self) -> float:
        """Products/s of the candidate for each one of the incumbent; higher is better."""
        return _ratio(self.candidate.products_per_s, self.incumbent.products_per_s)

    @property
    def latency_ratio(self) -> float:
        """The incumbent's p99 for each millisecond of the candidate's; higher is better."""
        return _ratio(late(self.incumbent.p99_with_failures_ms), late(self.candidate.p99_with_failures_ms))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What rounds say of a candidate.

    Attributes:
        better: whether it is clearly better than the incumbent.
        ratio: products/s, candidate / incumbent, the median of the rounds; None: the incumbent answered nothing.
        incumbent_p99_ms: the median of the rounds; None: infinite.
        candidate_p99_ms: the same.
        wins: rounds in which it was better in what counts.
        rounds: how many there were.
        counts: what counted: ``products/s``, ``p99``, or ``the target`` where only one of them keeps it.
    """

    better: bool
    ratio: float | None
    incumbent_p99_ms: float | None
    candidate_p99_ms: float | None
    wins: int
    rounds: int
    counts: str


def judge(rounds: Sequence[Round], target_ms: float) -> Verdict:
    """Judge a candidate by at least one round: the most products/s within the target; without it, the lower p99.

    Args:
        rounds: the alternations.
        target_ms: the 99th percentile that has to be kept, by the median of the rounds.
    """
    incumbent = median(late(found.incumbent.p99_with_failures_ms) for found in rounds)
    candidate = median(late(found.candidate.p99_with_failures_ms) for found in rounds)
    keeps = candidate <= target_ms
    if keeps and incumbent <= target_ms:
        counts, ratios = "products/s", [found.speed_ratio for found in rounds]
    else:
        # A candidate that alone keeps the target must have the clearly lower p99, too: near the target, noise decides.
        counts = "p99" if keeps == (incumbent <= target_ms) else "the target"
        ratios = [found.latency_ratio for found in rounds]
    wins = sum(ratio > 1 for ratio in ratios)
    clearly = median(ratios) > CLEARLY and wins >= MOSTLY * len(rounds)
    return Verdict(
        better=clearly and (keeps or incumbent > target_ms),
        ratio=_or_none(median(found.speed_ratio for found in rounds)),
        incumbent_p99_ms=_or_none(incumbent),
        candidate_p99_ms=_or_none(candidate),
        wins=wins,
        rounds=len(rounds),
        counts=counts,
    )


def hopeless(rounds: Sequence[Round], planned: int, target_ms: float) -> bool:
    """Say whether a candidate cannot win enough of the planned rounds any more, by what counts now or may in the end.

    Args:
        rounds: the alternations so far.
        planned: how many there are to be.
        target_ms: see `judge`.
    """
    if not rounds:
        return False
    # Which figure counts hangs on medians around the target, which the rounds to come may move.
    speed, latency = (
        sum(ratio > 1 for ratio in ratios)
        for ratios in ([found.speed_ratio for found in rounds], [found.latency_ratio for found in rounds])
    )
    near = any(
        _near(turn.p99_with_failures_ms, target_ms) for found in rounds for turn in (found.incumbent, found.candidate)
    )
    wins = max(speed, latency) if near else judge(rounds, target_ms).wins
    return wins + planned - len(rounds) < MOSTLY * planned


def _near(p99_ms: float | None, target_ms: float) -> bool:
    return p99_ms is None or target_ms / _NEAR < p99_ms < target_ms * _NEAR


def _ratio(above: float, below: float) -> float:
    if above == below:
        return 1.0  # also where both are nothing, or both infinite
    return above / below if below and above != float("inf") else float("inf")


def _or_none(value: float) -> float | None:
    return value if value < float("inf") else None
