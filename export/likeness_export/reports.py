"""What `evaluate` and `export` print and write: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from likeness_client.writing import write_text

from likeness_export.console import console, figure, figures_table
from likeness_export.evaluation.evaluate import Row
from likeness_export.exporting.onnx_export import ExportReport
from likeness_export.json_values import without_nan
from likeness_export.precision.gate import Drift
from likeness_export.precision.reducing import PrecisionReport


def retrieval_table(rows: Sequence[Row], title: str) -> None:
    """Print one table per label, one line per signature."""
    for label in dict.fromkeys(row.label for row in rows):
        columns = ("queries", "recall@1", "@5", "@10", "mAP", "nDCG@10")
        table = figures_table(f"{title}, alike by {label}", "signature", columns)
        for row in rows:
            if row.label == label:
                figures = row.figures
                values = [*figures.recall_at.values(), figures.mean_average_precision, figures.ndcg_at_10]
                table.add_row(row.signature, str(figures.queries), *map(figure, values))
        console().print(table)


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write the figures as JSON; null where there was nothing to measure."""
    write_text(path, json.dumps([without_nan(asdict(row)) for row in rows], indent=1))


def export_table(reports: Sequence[ExportReport]) -> None:
    """Print what was verified of every exported network."""
    title = "largest difference to eager torch, and of a row alone to itself in a batch"
    table = figures_table(title, "network", ("MB", "seconds", "cases", "max diff", "in batch"))
    for report in reports:
        table.add_row(
            report.name,
            f"{report.megabytes:.2f}",
            f"{report.seconds:.1f}",
            str(report.cases),
            f"{report.largest_difference:.2g}",
            f"{report.batch_difference:.2g}",
        )
    console().print(table)


_DRIFT = ("cos min", "cos mean", "same top 10", "in batch", "recall@1")


def precision_tables(report: PrecisionReport) -> None:
    """Print what became of every network, why some stay fp32, and what all of it costs every signature."""
    columns = ("file", "MB", "faster", "layers", *_DRIFT)
    table = figures_table(f"{report.precision}, per network, against fp32 on split {report.split}", "network", columns)
    for found in report.networks:
        before, after = found.megabytes
        table.add_row(
            found.name,
            found.form,
            f"{before:.1f} -> {after:.1f}" if before else "",
            "" if found.speed is None else f"{found.speed:.2f}x",
            f"{found.layers - len(found.kept_layers)}/{found.layers}" if found.layers else "",
            *_drift_cells(found.drift),
        )
    console().print(table)
    for found in report.networks:
        if found.reason:
            console().print(f"{found.name} stays fp32: {found.reason}", highlight=False)
    title = "the embeddings of every signature, all of these networks together"
    table = figures_table(title, "signature", ("products", *_DRIFT))
    for signature, drift in report.signatures.items():
        table.add_row(signature, str(drift.products), *_drift_cells(drift))
    console().print(table)


def _drift_cells(drift: Drift | None) -> list[str]:
    if drift is None:
        return [""] * len(_DRIFT)
    worst = max(drift.recall_loss.values(), key=lambda loss: loss.points, default=None)
    recall = f"{0.0 - worst.points:+.1f} ± {worst.error:.1f}" if worst else "-"
    return [
        f"{drift.cosine_min:.4f}",
        f"{drift.cosine_mean:.4f}",
        f"{drift.overlap_at_10:.3f}",
        f"{drift.batch_distance:.4f}",
        recall,
    ]
