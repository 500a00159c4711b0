"""The tables that the commands print, and the lines and figures that they write."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from likeness_client.writing import write_text, written_aside
from rich.table import Table

from likeness_export.console import console, cut, figure, figures_table
from likeness_export.json_values import without_nan
from likeness_export.products.named_pairs import NamedPair
from likeness_export.uses.cluster import Agreement, Clustering
from likeness_export.uses.match import Matching
from likeness_export.uses.mine import KeyReport

_LARGEST = 5


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, in ASCII: ids may hold what UTF-8 cannot. An existing file is replaced in one step."""
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def write_matching(
    path: Path, matchings: Mapping[str, Matching], pairs: Sequence[NamedPair], splits: Mapping[str, str]
) -> None:
    """Write the figures of each metric, and every measured pair with its scores, as JSON."""
    figures = {
        metric: {
            **_plain(asdict(matching.decision)),
            "score_threshold": _rounded(matching.score_threshold),
            **{name: _plain(asdict(getattr(matching, name))) for name in ("train", "every", "seen", "unseen")},
            "train_without_embedding": matching.train_unscored,
            "without_embedding": matching.unscored,
        }
        for metric, matching in matchings.items()
    }
    lines = [
        {
            "left_id": pair.left,
            "right_id": pair.right,
            "label": pair.label,
            **{
                metric: {
                    "score": _rounded(m.scores[row]),
                    "probability": _rounded(m.probabilities[row]),
                    "matched": bool(m.probabilities[row] >= m.decision.threshold),
                }
                for metric, m in matchings.items()
            },
        }
        for row, pair in enumerate(pairs)
    ]
    write_text(path, json.dumps({**splits, "metrics": figures, "pairs": lines}, indent=1))


def cluster_table(found: Clustering, agreement: Agreement | None, ids: Sequence[str]) -> None:
    """Print what a clustering is like, and its largest clusters, each with its first product."""
    sizes = found.sizes
    table = Table(title=f"clusters at a mean cosine of {found.threshold}", show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    figures = {
        "products": str(len(found.labels)),
        "clusters": str(len(sizes)),
        "of one product": str(int((sizes == 1).sum())),
        "median size": f"{np.median(sizes):g}",
        "silhouette": figure(found.silhouette),
    }
    for place, size in enumerate(sizes[:_LARGEST]):
        first, others = ids[int(np.argmax(found.labels == place))], " and others" * (size > 1)
        figures[f"size of number {place} ({first}{others})"] = str(size)
    if agreement is not None:
        figures |= {
            "products with a label": str(agreement.products),
            "adjusted mutual information": figure(agreement.mutual_information),
            "adjusted Rand index": figure(agreement.rand),
            "homogeneity": figure(agreement.homogeneity),
        }
    for name, value in figures.items():
        table.add_row(cut(name), value)
    console().print(table)


def matching_table(metric: str, matching: Matching, split: str, train_split: str) -> None:
    """Print the figures of one metric."""
    from_score = "" if math.isnan(matching.score_threshold) else f" (a score of {matching.score_threshold:.4f})"
    title = f"{metric}: matched from a probability of {matching.decision.threshold:.3f}{from_score}"
    columns = ("number", "positive", "precision", "recall", "F1")
    table = figures_table(title, "pairs", columns)
    rows = {
        train_split: matching.train,
        split: matching.every,
        f"{split}, both products seen": matching.seen,
        f"{split}, the rest": matching.unseen,
    }
    for name, figures in rows.items():
        values = (figure(value) for value in (figures.precision, figures.recall, figures.f1))
        table.add_row(name, str(figures.pairs), str(figures.positives), *values)
    console().print(table)
    for name, count in ((train_split, matching.train_unscored), (split, matching.unscored)):
        if count:
            console().print(f"{count} pairs of {name} have a product without an embedding: counted as not matched")


def mining_table(reports: Sequence[KeyReport], min_share: float) -> None:
    """Print one line per key."""
    columns = ("known", "precision", "coverage", "missing", "proposed")
    table = figures_table(f"attributes by their neighbours' votes, from a share of {min_share:g}", "key", columns)
    for report in reports:
        measured = (figure(report.precision), figure(report.coverage))
        table.add_row(cut(report.key), str(report.known), *measured, str(report.missing), str(report.proposed))
    console().print(table)


def _rounded(value: float) -> float | None:
    found: float | None = without_nan(round(float(value), 6))
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in values.items()}
