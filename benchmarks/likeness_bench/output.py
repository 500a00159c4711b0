"""Reports to people and to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from likeness_client.writing import write_text

from likeness_bench.ceiling_report import CeilingReport
from likeness_bench.ceiling_tables import (
    ceiling_name,
    ceiling_notes,
    ceiling_tables,
    saturated_tables,
    trial_tables,
)
from likeness_bench.figures import LoadReport
from likeness_bench.files import write_json
from likeness_bench.load_tables import load_name, load_tables, source_name
from likeness_bench.page import page
from likeness_bench.plots import load_plots, rounds_plot, sweep_plots
from likeness_bench.processes import machine, software
from likeness_bench.report import Report
from likeness_bench.running import signals_ignored
from likeness_bench.sources import SourceConfig
from likeness_bench.sweep import SweepReport
from likeness_bench.sweep_tables import sweep_name, sweep_notes, sweep_tables
from likeness_bench.tables import Table, markdown, print_tables

R = TypeVar("R", bound=Report)


def signed(report: R, source: SourceConfig) -> R:
    """Say in a report what was sent, and which machine and which version measured."""
    return replace(report, source=source.plain(), machine=machine(), software=software())


def deliver_load(report: LoadReport, out: Path | None) -> None:
    """Deliver a load; see `deliver`."""
    title, tables = load_name(report.load), load_tables(report)
    deliver(report, out, title, tables, report.notes, plots=lambda: load_plots(report))


def deliver_sweep(report: SweepReport, out: Path | None) -> None:
    """Deliver a sweep, with the tables of its best run, or of what failed at the lowest rate; see `deliver`."""
    shown = report.shown
    tables = sweep_tables(report) + (load_tables(shown) if shown else [])
    deliver(
        report,
        out,
        sweep_name(report),
        tables,
        sweep_notes(report),
        plots=lambda: sweep_plots(report) + (load_plots(shown) if shown else []),
    )


def deliver_ceiling(report: CeilingReport, out: Path | None) -> None:
    """Deliver a comparison with the ceiling; see `deliver`.

    What was tried to find the ceiling, and what the load did to the server, stands in the files only.
    """
    deliver(
        report,
        out,
        ceiling_name(report),
        ceiling_tables(report),
        ceiling_notes(report),
        plots=lambda: [rounds_plot(case) for case in report.cases],
        files_only=[*saturated_tables(report), *trial_tables(report)],
    )


def deliver(
    report: Report,
    out: Path | None,
    title: str,
    tables: Sequence[Table],
    notes: Sequence[str],
    *,
    plots: Callable[[], list[str]] = list,
    files_only: Sequence[Table] = (),
) -> None:
    """Print a report; with ``out``, first write it as JSON there, and as Markdown and HTML beside it.

    Where nothing was measured, nothing is written: an older report stays. Ctrl-C and SIGTERM wait for all three files.

    Args:
        report: what was found.
        out: where the JSON goes; None: nowhere.
        title: of the documents.
        tables: what is printed and written.
        notes: what to know before the figures are believed.
        plots: draws those of the HTML, when they are needed.
        files_only: tables that are written, but not printed.

    Raises:
        InputError: a file cannot be written.
    """
    tables = [*tables, *_measured(report)]
    if out and not report.measured:
        notes, out = [*notes, f"nothing was measured: nothing is written to {out}"], None
    try:
        if out:
            every = [*tables, *files_only]
            with signals_ignored():
                write_json(out, asdict(report))
                write_text(out.with_suffix(".md"), markdown(title, every, notes))
                write_text(out.with_suffix(".html"), page(title, report.made_at, notes, plots(), every))
    finally:  # what cannot be written can still be read
        print_tables(tables, notes)


def _measured(report: Report) -> Iterator[Table]:
    """Yield what was sent, and by what, where it is known."""
    rows = [("products", source_name(report.source))] if report.source else []
    rows += report.machine.items()
    rows += [("likeness", report.software)] if report.software else []
    if rows:
        yield Table(title="What was sent, and what sent it", header=("", "value"), rows=tuple(rows))
