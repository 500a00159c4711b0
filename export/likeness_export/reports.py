"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from likeness_export.evaluation import Row
from likeness_export.files import write_text
from likeness_export.onnx_export import ExportReport


def retrieval_table(rows: Sequence[Row], title: str) -> None:
    """Print one table per label, one line per signature."""
    for label in dict.fromkeys(row.label for row in rows):
        table = Table(title=f"{title}, alike by {label}")
        table.add_column("signature", no_wrap=True)
        for column in ("queries", "recall@1", "@5", "@10", "mAP", "nDCG@10"):
            table.add_column(column, justify="right")
        for row in rows:
            if row.label == label:
                figures = row.figures
                values = [*figures.recall_at.values(), figures.mean_average_precision, figures.ndcg_at_10]
                table.add_row(row.signature, str(figures.queries), *(f"{value:.3f}" for value in values))
        Console().print(table)


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write the figures as JSON."""
    write_text(path, json.dumps([asdict(row) for row in rows], indent=1))


def export_table(reports: Sequence[ExportReport]) -> None:
    """Print what was verified of every exported network."""
    table = Table(title="largest difference to eager torch, and of a row alone to itself in a batch")
    table.add_column("network", no_wrap=True)
    for column in ("MB", "seconds", "cases", "max diff", "in batch"):
        table.add_column(column, justify="right")
    for report in reports:
        table.add_row(
            report.name,
            f"{report.megabytes:.2f}",
            f"{report.seconds:.1f}",
            str(report.cases),
            f"{report.largest_difference:.1e}",
            f"{report.batch_difference:.1e}",
        )
    Console().print(table)
