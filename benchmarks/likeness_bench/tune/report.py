"""What a tuning finds, as plain data that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from likeness_bench.figures import RunFigures
from likeness_bench.report import Report
from likeness_bench.tune.search import Trial
from likeness_bench.tune.service import ServiceTime
from likeness_bench.tune.settings import Changes

FORMAT = "likeness-tune-1"


@dataclass(frozen=True, kw_only=True)
class TuneReport(Report):
    """What was tried on a repository, and what came of it.

    Attributes:
        format: of this report.
        repository: the repository.
        space: fingerprint of its embedding space.
        profile: how it was executed.
        cores: processors that the servers could use.
        load: the `LoadConfig` of every turn, as plain data.
        target_ms: the 99th percentile that had to be kept.
        budget_s: how long it might take.
        took_s: how long it took.
        untuned: the repository as it was, alone.
        steps: where its time went; empty when that was not measured.
        searched: the steps that were worth searching, those with the largest share first.
        trials: what was tried, in order.
        final: the best settings beside the untuned ones; None: nothing was better, or it was interrupted before.
        refused: the same of settings that were accepted later, and were not better than the untuned ones.
        changes: step -> what the settings that the search ended with change in the untuned ones; only if ``better``
            are they the best found, else they lost the final comparison or were not compared; empty: none seemed
            better.
        better: whether the final comparison says so, too: only then is anything written.
        written: the files that were changed.
        ended: why the search ended, in words.
        complete: whether it ended because nothing was left to try.
        notes: what to know before these figures are believed.
    """

    format: str = FORMAT
    repository: str
    space: str
    profile: str
    cores: int
    load: Mapping[str, Any]
    target_ms: float
    budget_s: float
    took_s: float
    untuned: RunFigures | None
    steps: tuple[ServiceTime, ...]
    searched: tuple[str, ...]
    trials: tuple[Trial, ...]
    final: Trial | None
    changes: Changes
    better: bool
    written: tuple[str, ...] = ()
    ended: str
    complete: bool
    notes: tuple[str, ...]
    refused: tuple[Trial, ...]

    @property
    def measured(self) -> bool:
        """Whether the repository was measured as it was."""
        return self.untuned is not None
