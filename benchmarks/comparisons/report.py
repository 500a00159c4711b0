"""What a comparison found, as data, as tables, and on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships no type information
import typer
from likeness_bench import processes
from likeness_bench.files import write_json
from likeness_bench.report import now
from likeness_bench.tables import Table, markdown, print_tables
from likeness_client.writing import write_text

from comparisons.measured import Measurement
from comparisons.rounds import ComparisonError

FORMAT = "likeness-comparison-1"
BUSY = "cores busy before"
BUSY_CORES = 0.3
"""From this load on, something else ran when the comparison began (a load average counts what has ended, too)."""
LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that hold some servers back, and others not."""


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """A whole comparison.

    Attributes:
        title: of the report.
        settings: what was measured, part by part.
        facts: what was compared: versions, weights, products.
        notes: what to know before the figures are believed.
        made_at: when the report was made, ISO 8601 in UTC.
    """

    title: str
    settings: tuple[Measurement, ...]
    facts: Mapping[str, str]
    notes: tuple[str, ...] = ()
    made_at: str = field(default_factory=now)


def machine() -> dict[str, str]:
    """Describe this machine, and how busy it is now."""
    found = processes.machine()
    busy = psutil.cpu_percent(interval=0.5) / 100 * int(found["cores"])
    return found | {BUSY: f"{busy:.2f}"} | {name: os.environ[name] for name in LIMITS if name in os.environ}


def tables(comparison: ComparisonReport) -> list[Table]:
    """Return the tables of a comparison: those of every setting, then the facts."""
    facts = Table(title="Compared", header=("", ""), rows=tuple(comparison.facts.items()))
    return [*(table for setting in comparison.settings for table in setting.tables()), facts]


def notes(comparison: ComparisonReport) -> list[str]:
    """Return what stands in the way of believing a comparison."""
    return [*_doubts(comparison), *comparison.notes]


def deliver(comparison: ComparisonReport, out: Path | None) -> None:
    """Print a comparison; with ``out``, first write it as JSON there, and as Markdown beside it.

    Raises:
        ComparisonError: it has no figure at all.
        InputError: a file cannot be written.
        typer.Exit: turns are missing, because one failed (1) or Ctrl-C came (130); the rest was printed and written.
    """
    shown, said = tables(comparison), notes(comparison)
    if not any(setting.turns for setting in comparison.settings):
        raise ComparisonError(f"nothing was measured: {'; '.join(said)}")
    try:
        if out:
            ratios = {setting.title: [asdict(found) for found in setting.ratios] for setting in comparison.settings}
            write_json(out, {"format": FORMAT, **asdict(comparison), "notes": said, "ratios": ratios})
            title = f"{comparison.title} ({comparison.made_at})"
            write_text(out.with_suffix(".md"), markdown(title, shown, said))
    finally:  # what cannot be written can still be read
        print_tables(shown, said)
    if any(setting.interrupted for setting in comparison.settings):
        raise typer.Exit(130)
    if any(setting.failed for setting in comparison.settings):
        raise typer.Exit(1)


def _doubts(comparison: ComparisonReport) -> Iterator[str]:
    busy = comparison.facts.get(BUSY, "0")
    if float(busy) > BUSY_CORES:
        yield f"{busy} cores were busy when the comparison began: something else ran, figures are indicative only"
    for name in LIMITS:
        if name in comparison.facts:
            yield f"{name} was {comparison.facts[name]}: that holds back torch, but not our server; unset it"
    for setting in comparison.settings:
        yield from setting.doubts()
