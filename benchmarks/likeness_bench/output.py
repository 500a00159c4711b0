"""Reports to people and to files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from likeness_bench.ceiling_report import CeilingReport
from likeness_bench.ceiling_tables import (
    ceiling_name,
    ceiling_notes,
    ceiling_tables,
    saturated_tables,
    trial_tables,
)
from likeness_bench.figures import LoadReport
from likeness_bench.files import write_json, write_text
from likeness_bench.load_tables import load_name, load_tables
from likeness_bench.sweep import SweepReport
from likeness_bench.sweep_tables import sweep_name, sweep_notes, sweep_plots, sweep_tables
from likeness_bench.tables import markdown, print_tables


def deliver_load(report: LoadReport, out: Path | None) -> None:
    """Print a load report; with ``out``, first write it as JSON there, and as Markdown and HTML beside it.

    Raises:
        InputError: a file cannot be written.
    """
    tables = load_tables(report)
    if out:
        from likeness_bench.page import page
        from likeness_bench.plots import load_plots

        title = load_name(report.load)
        write_json(out, asdict(report))
        write_text(out.with_suffix(".md"), markdown(title, tables, report.notes))
        write_text(out.with_suffix(".html"), page(title, report.made_at, report.notes, load_plots(report), tables))
    print_tables(tables, report.notes)


def deliver_sweep(report: SweepReport, out: Path | None) -> None:
    """Print a sweep; with ``out``, first write it as JSON there, and as Markdown and HTML beside it.

    The tables of its best run follow in all forms.

    Raises:
        InputError: a file cannot be written.
    """
    tables = sweep_tables(report) + (load_tables(report.best) if report.best else [])
    notes = sweep_notes(report)
    if out:
        from likeness_bench.page import page
        from likeness_bench.plots import load_plots

        title = sweep_name(report)
        plots = sweep_plots(report) + (load_plots(report.best) if report.best else [])
        write_json(out, asdict(report))
        write_text(out.with_suffix(".md"), markdown(title, tables, notes))
        write_text(out.with_suffix(".html"), page(title, report.made_at, notes, plots, tables))
    print_tables(tables, notes)


def deliver_ceiling(report: CeilingReport, out: Path | None) -> None:
    """Print a comparison with the ceiling; with ``out``, first write it as JSON there, and in two forms beside it.

    What was tried to find the ceiling, and what the load did to the server, stands in the files only.

    Raises:
        InputError: a file cannot be written.
    """
    tables, notes = ceiling_tables(report), ceiling_notes(report)
    if out:
        from likeness_bench.page import page
        from likeness_bench.plots import rounds_plot

        title, every = ceiling_name(report), [*tables, *saturated_tables(report), *trial_tables(report)]
        plots = [rounds_plot(case) for case in report.cases]
        write_json(out, asdict(report))
        write_text(out.with_suffix(".md"), markdown(title, every, notes))
        write_text(out.with_suffix(".html"), page(title, report.made_at, notes, plots, every))
    print_tables(tables, notes)
