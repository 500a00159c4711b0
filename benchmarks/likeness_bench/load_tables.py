"""The tables of a load report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from likeness_bench.figures import LoadReport, Percentiles
from likeness_bench.recall import Recall
from likeness_bench.tables import NOTHING, Table, counted, number, or_infinite

_PERCENTILES = ("mean", "p50", "p90", "p95", "p99", "p99.9", "max")


def load_name(load: Mapping[str, Any]) -> str:
    """Return a load in words, from its config as plain data."""
    if load["rate"] is None:
        return f"{work_name(load)}; closed loop, {counted(load['concurrency'], 'caller')}"
    return f"{work_name(load)}; {load['rate']:g} requests/s, {load['arrivals']} arrivals"


def work_name(load: Mapping[str, Any]) -> str:
    """Return what a load asks, in words, but not how often."""
    work = load["workload"]
    mix = ", ".join(f"{name} {share:g}" for name, share in work["signatures"].items()) or "products as they are"
    return f"{mix_name(work['operation'])} x {mix_name(work['batch_size'])}, {mix}"


def source_name(source: Mapping[str, Any]) -> str:
    """Return in words which products were sent, from the source as plain data."""
    spans = (("text_words", "texts of", "words"), ("image_px", "photos of", "px"))
    sizes = [
        f", {what} {found['low']} to {found['high']} {unit}" for key, what, unit in spans if (found := source[key])
    ]
    return f"up to {source['count']} of {source['file'] or 'the renderer'}{''.join(sizes)}, seed {source['seed']}"


def mix_name(mix: int | str | Mapping[Any, float]) -> str:
    """Return a batch size or an operation, or a mix of them, in words."""
    if isinstance(mix, int | str):
        return str(mix)
    shares = sum(mix.values())
    parts = (f"{name} ({100 * share / shares:.3g} %)" for name, share in mix.items())
    return str(next(iter(mix))) if len(mix) == 1 else " and ".join(parts)


def load_tables(report: LoadReport) -> list[Table]:
    """Return all tables that a report has something for."""
    tables = [_summary(report), _latency(report)]
    if len(report.runs) > 1:
        tables.append(_runs(report))
    if report.errors:
        rows = tuple((row.kind, str(row.count), number(row.first_s), row.example) for row in report.errors)
        tables.append(Table(title="Errors", header=("kind", "requests", "first after s", "example"), rows=rows))
    if report.steps:
        tables.append(_steps(report))
    if report.gpus:
        rows = tuple(
            (gpu.name, number(gpu.utilisation_percent), number(gpu.peak_memory_mb, 0), number(gpu.power_w))
            for gpu in report.gpus
        )
        tables.append(Table(title="GPUs", header=("name", "busy %", "peak MiB", "W"), rows=rows))
    return tables


def _summary(report: LoadReport) -> Table:
    server, failed = report.server, report.failed
    rows = [
        ("products/s answered", number(report.products_per_s)),
        ("requests/s answered", number(report.requests_per_s)),
        ("requests/s due", number(report.offered_per_s)),
        ("requests, of them failed", f"{report.requests}, {failed}"),
        ("p99 ms with failures", or_infinite(report.p99_with_failures_ms) if report.requests else NOTHING),
        ("measured s", number(report.measured_s)),
        ("repeats of earlier requests %", number(100 * report.repeated_share)),
        ("mean ms outside the server", number(report.outside_server_ms, 2)),
        ("harness: cores used", number(report.harness_cpu_s / report.measured_s if report.measured_s else None, 2)),
    ]
    if found := report.ceiling:
        how = f"{found.threads.name}, batches of {found.batch_size}"
        rows += [
            (f"ceiling products/s ({how})", number(found.products_per_s)),
            ("served / ceiling", number(found.throughput_ratio, 3)),
        ]
    if server:
        rows += [
            ("server: CPU seconds, cores used", f"{server.cpu_s:,.1f}, {server.cores:.2f}"),
            ("server: processes, peak RSS MB", f"{server.processes}, {server.peak_rss_mb:,.0f}"),
        ]
    else:
        rows.append(("server: CPU and memory", "not visible from here"))
    if report.runs:
        rows.append(("runs, settled", f"{len(report.runs)}, {'yes' if report.settled else 'no'}"))
    rows += recall_rows(report.label, report.recall)
    return Table(title=load_name(report.load), header=("", "value"), rows=tuple(rows))


def recall_rows(label: str, recall: Mapping[str, Recall]) -> list[tuple[str, str]]:
    """Return the recall of each part of a mix, as it is read.

    Args:
        label: what it was measured on, in words.
        recall: of the parts.
    """
    return [
        (f"recall@1 of {signature}: {label} ({found.ranked})", number(found.at_1 if found.queries else None, 3))
        for signature, found in recall.items()
    ]


def _latency(report: LoadReport) -> Table:
    since = "when they were due" if report.load["rate"] is not None else "sending"
    rows = [_percentiles("all", report.latency)]
    for parts in (report.by_operation, report.by_signature):
        if len(parts) > 1:
            rows += [_percentiles(name, found) for name, found in parts.items()]
    if len(report.by_products) > 1:
        rows += [_percentiles(counted(count, "product"), found) for count, found in report.by_products.items()]
    rows.append(_percentiles("harness late by", report.harness_lag))
    return Table(title=f"Latency of answers in ms, from {since}", header=("", "count", *_PERCENTILES), rows=tuple(rows))


def _runs(report: LoadReport) -> Table:
    header: tuple[str, ...] = ("run", "products/s", "p50 ms", "p99 ms with failures", "failed")
    if beside := any(run.throughput_ratio is not None for run in report.runs):
        header += ("served / ceiling",)
    rows = tuple(
        (
            str(number_of_run),
            number(run.products_per_s),
            number(run.p50_ms),
            or_infinite(run.p99_with_failures_ms),
            str(run.failed),
            *((number(run.throughput_ratio, 3),) if beside else ()),
        )
        for number_of_run, run in enumerate(report.runs, start=1)
    )
    return Table(title="Runs of this load; the others tell of one of them", header=header, rows=rows)


def _percentiles(name: str, found: Percentiles | None) -> tuple[str, ...]:
    if found is None:
        return (name, "0", *(NOTHING for _ in _PERCENTILES))
    values = (found.mean_ms, found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms, found.p99_9_ms, found.max_ms)
    return (name, str(found.count), *(number(value) for value in values))


def _steps(report: LoadReport) -> Table:
    failed = any(step.failures for step in report.steps)
    header = ("model", "requests", *(("failed",) if failed else ()))
    rows = []
    for step in report.steps:
        parts = (step.queue_ms, step.compute_input_ms, step.compute_infer_ms, step.compute_output_ms)
        times = (step.total_ms, *parts) if step.requests else (None,) * 5  # a mean of none is none
        counts = (str(step.requests), *((str(step.failures),) if failed else ()))
        rows.append((step.model, *counts, *(number(value, 2) for value in (*times, step.mean_batch))))
    header += ("total", "queue", "input", "infer", "output", "batch")
    return Table(title="Inside the server, mean ms per request", header=header, rows=tuple(rows))
