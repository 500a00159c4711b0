"""Two reports side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from likeness_client import InputError

from likeness_bench import figures, sweep
from likeness_bench.files import read_report
from likeness_bench.load_tables import load_name
from likeness_bench.tables import NOTHING, Table, number

_FIGURES = {
    "products/s": ("products_per_s",),
    "requests/s": ("requests_per_s",),
    "requests/s due": ("offered_per_s",),
    "mean ms": ("latency", "mean_ms"),
    "p50 ms": ("latency", "p50_ms"),
    "p90 ms": ("latency", "p90_ms"),
    "p95 ms": ("latency", "p95_ms"),
    "p99 ms": ("latency", "p99_ms"),
    "p99.9 ms": ("latency", "p99_9_ms"),
    "max ms": ("latency", "max_ms"),
    "mean ms outside the server": ("outside_server_ms",),
    "server CPU s": ("server", "cpu_s"),
    "server cores": ("server", "cores"),
    "server peak RSS MB": ("server", "peak_rss_mb"),
}


def compare_reports(first: Path, second: Path) -> tuple[Table, list[str]]:
    """Compare two reports of one kind.

    Returns:
        The figures of both with the ratio second / first, and notes on what else differs.

    Raises:
        InputError: one cannot be read, or they are of two kinds.
    """
    reports = [read_report(path, (figures.FORMAT, sweep.FORMAT)) for path in (first, second)]
    if reports[0]["format"] != reports[1]["format"]:
        raise InputError(f"{first} and {second} are of two kinds, a load and a sweep: compare two of one kind")
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    if reports[0]["format"] == sweep.FORMAT:
        rows.append(_row("best requests/s", *(report["best_rate"] for report in reports)))
        if reports[0]["target_ms"] != reports[1]["target_ms"]:
            notes.append(f"the targets differ: p99 <= {reports[0]['target_ms']:g} and {reports[1]['target_ms']:g} ms")
        reports = [_best_run(report, path) for report, path in zip(reports, (first, second), strict=True)]
    rows += [_row(name, *(_find(report, path) for report in reports)) for name, path in _FIGURES.items()]
    rows.append(_row("failed requests", *(float(sum(row["count"] for row in report["errors"])) for report in reports)))
    notes += _differences(*reports)
    title = f"{first} and {second}"
    shown = tuple(row for row in rows if row[1:3] != (NOTHING, NOTHING))
    return Table(title=title, header=("", "first", "second", "second / first"), rows=shown), notes


def _best_run(report: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the last repeat of a sweep's best rate."""
    for step in report["steps"]:
        if step["kept"] and step["rate"] == report["best_rate"]:
            run: dict[str, Any] = step["repeats"][-1]
            return run
    raise InputError(f"{path}: no rate kept the target, so there is nothing to compare")


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Say where ratios compare more than one thing."""
    notes = []
    names = [load_name(report["load"]) for report in (first, second)]
    if names[0] != names[1]:
        notes.append(f"the loads differ: {names[0]} | {names[1]}")
    for key, what in (("repeat_share", "repeat shares"), ("metric", "metrics")):
        values = [report["load"]["workload"][key] for report in (first, second)]
        if values[0] != values[1]:
            notes.append(f"the {what} differ: {values[0]} and {values[1]}")
    if first["space"] != second["space"]:
        notes.append("the servers have different embedding spaces: another model was measured")
    notes += [f"{name}: {note}" for name, report in (("first", first), ("second", second)) for note in report["notes"]]
    return notes


def _find(report: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = report
    for key in path:
        value = value[key] if value is not None else None
    return None if value is None else float(value)


def _row(name: str, first: float | None, second: float | None) -> tuple[str, ...]:
    ratio = second / first if first and second is not None else None
    return name, number(first, 2), number(second, 2), number(ratio, 3)
