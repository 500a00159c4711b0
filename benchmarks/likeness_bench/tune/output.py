"""A tuning to people and to files."""

from __future__ import annotations

from pathlib import Path

from likeness_bench.output import deliver
from likeness_bench.tune.report import TuneReport
from likeness_bench.tune.tables import tune_name, tune_notes, tune_tables


def deliver_tune(report: TuneReport, out: Path | None) -> None:
    """Deliver a tuning; see `deliver`."""
    deliver(report, out, tune_name(report), tune_tables(report), tune_notes(report))
