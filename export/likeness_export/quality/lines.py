"""Lines of figures, and their mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What was measured in one way.

    Attributes:
        task: the name of the task.
        label: what makes two products alike; with pairs: the set.
        what: what was asked with: a set of modalities, a baseline, a score.
        count: of queries, or of pairs.
        figures: name of a figure -> its value.
    """

    task: str
    label: str
    what: str
    count: int
    figures: Mapping[str, float]

    @property
    def key(self) -> Key:
        """What makes lines of several seeds the same line."""
        return self.task, self.label, self.what


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: the mean.
        deviation: the standard deviation of a sample (n - 1); None with one seed.
        seeds: how many seeds.
    """

    mean: float
    deviation: float | None
    seeds: int

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.3f}"
        return f"{self.mean:.3f}{spread}"


@dataclass(frozen=True, kw_only=True)
class SpreadLine:
    """A line whose figures are taken over seeds; see `Line`."""

    task: str
    label: str
    what: str
    count: int
    figures: Mapping[str, Spread]


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of a figure; at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), deviation=deviation, seeds=len(values))


def over_seeds(seeds: Sequence[Sequence[Line]]) -> list[SpreadLine]:
    """Join the lines of several seeds; a figure that a seed lacks is taken over the others."""
    found: dict[Key, list[Line]] = {}
    for lines in seeds:
        for line in lines:
            found.setdefault(line.key, []).append(line)
    return [_joined(lines) for lines in found.values()]


def _joined(lines: Sequence[Line]) -> SpreadLine:
    names = dict.fromkeys(name for line in lines for name in line.figures)
    figures = {name: spread([line.figures[name] for line in lines if name in line.figures]) for name in names}
    return SpreadLine(**vars(lines[0]) | {"figures": figures})
