"""The tables and notes of a comparison with the ceiling."""

from __future__ import annotations

from likeness_bench.ceiling_report import Case, CeilingReport, Spread
from likeness_bench.load_tables import size_name
from likeness_bench.tables import NOTHING, Table, number

_SUMMARY = {
    "ceiling products/s": ("ceiling_products_per_s", 1),
    "served products/s": ("served_products_per_s", 1),
    "served / ceiling": ("throughput_ratio", 3),
    "p50 ms in one process": ("alone_p50_ms", 2),
    "p50 ms served": ("served_p50_ms", 2),
    "served / one process": ("latency_ratio", 3),
    "p99 / p50 at half load": ("half_tail", 2),
}


def ceiling_name(report: CeilingReport) -> str:
    """Return a comparison in words."""
    load = report.load
    size = size_name(load["workload"]["batch_size"])
    return f"Served, and its ceiling: {load['concurrency']} callers x {size}, turns of {load['duration_s']:g} s"


def ceiling_tables(report: CeilingReport) -> list[Table]:
    """Return the medians of all cases side by side, where there are several, and a table for each."""
    rows = [
        (what, *(_median(case.spread(name), digits) for case in report.cases))
        for what, (name, digits) in _SUMMARY.items()
    ]
    rows.append(("recall@1", *(_recall(case) for case in report.cases)))
    names = [case.name for case in report.cases]
    side_by_side = Table(title=ceiling_name(report), header=("medians", *names), rows=tuple(rows))
    return [*([side_by_side] if len(names) > 1 else []), *(_case(report, case) for case in report.cases)]


def trial_tables(report: CeilingReport) -> list[Table]:
    """Return what was tried to find each ceiling."""
    return [
        Table(
            title=f"{case.name}: tried in one process",
            header=("use of the cores", "batch size", "products/s", "p50 ms of a batch"),
            rows=tuple(
                (trial.threads.name, str(trial.batch_size), number(trial.products_per_s), number(trial.p50_ms, 2))
                for trial in case.tried
            ),
        )
        for case in report.cases
    ]


def ceiling_notes(report: CeilingReport) -> list[str]:
    """Return the notes, and how the ceiling was found."""
    notes = [
        f"{case.name}: the ceiling is {case.best.threads.name}, batches of {case.best.batch_size}; "
        f"one product at a time is fastest with {case.alone.threads.name} "
        f"(this machine has {report.cores} cores, the server gives {report.cpu_threads} "
        f"thread{'s' * (report.cpu_threads > 1)} to an encoder)"
        for case in report.cases
    ]
    return [*report.notes, *notes]


def _case(report: CeilingReport, case: Case) -> Table:
    rows = [
        _row(case, f"ceiling products/s (batches of {case.best.batch_size})", "ceiling_products_per_s", 1),
        _row(case, f"served products/s ({report.load['concurrency']} callers)", "served_products_per_s", 1),
        _row(case, "served / ceiling", "throughput_ratio", 3),
        _row(case, "one product in one process: p50 ms", "alone_p50_ms", 2),
        _row(case, "one product served to one caller: p50 ms", "served_p50_ms", 2),
        _row(case, "served / one process", "latency_ratio", 3),
        _row(case, "half load: requests/s", "half_rate", 1),
        _row(case, "half load: p50 ms", "half_p50_ms", 2),
        _row(case, "half load: p99 ms", "half_p99_ms", 2),
        _row(case, "half load: p99 / p50", "half_tail", 2),
    ]
    if case.recall:
        ranked = f"{case.recall.queries} queries among {case.recall.gallery} products"
        rows.append((f"recall@1, {report.label} ({ranked})", _recall(case), NOTHING, NOTHING))
    rows.append(("largest difference of an embedding", f"{case.largest_difference:.1e}", NOTHING, NOTHING))
    title = f"{case.name}, {len(case.rounds)} rounds"
    return Table(title=title, header=("", "median", "min", "max"), rows=tuple(rows))


def _row(case: Case, what: str, name: str, digits: int) -> tuple[str, ...]:
    spread = case.spread(name)
    if spread is None:
        return (what, NOTHING, NOTHING, NOTHING)
    return (what, number(spread.median, digits), number(spread.min, digits), number(spread.max, digits))


def _median(spread: Spread | None, digits: int) -> str:
    return number(spread.median if spread else None, digits)


def _recall(case: Case) -> str:
    return number(case.recall.at_1 if case.recall and case.recall.queries else None, 3)
