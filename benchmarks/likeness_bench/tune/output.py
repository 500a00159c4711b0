"""A tuning to people and to files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from likeness_bench.files import write_json, write_text
from likeness_bench.tables import markdown, print_tables
from likeness_bench.tune.report import TuneReport
from likeness_bench.tune.tables import tune_name, tune_notes, tune_tables


def deliver_tune(report: TuneReport, out: Path | None) -> None:
    """Print a tuning; with ``out``, first write it as JSON there, and as Markdown and HTML beside it.

    Raises:
        InputError: a file cannot be written.
    """
    tables, notes = tune_tables(report), tune_notes(report)
    if out:
        from likeness_bench.page import page

        title = tune_name(report)
        write_json(out, asdict(report))
        write_text(out.with_suffix(".md"), markdown(title, tables, notes))
        write_text(out.with_suffix(".html"), page(title, report.made_at, notes, [], tables))
    print_tables(tables, notes)
