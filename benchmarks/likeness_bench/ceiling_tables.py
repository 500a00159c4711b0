"""The tables and notes of a comparison with the ceiling."""

from __future__ import annotations

from dataclasses import replace

from likeness_bench.ceiling_report import FIGURES, Case, CeilingReport
from likeness_bench.load_tables import load_tables, mix_name
from likeness_bench.tables import NOTHING, Table, counted, number, or_infinite


def ceiling_name(report: CeilingReport) -> str:
    """Return a comparison in words."""
    load = report.load
    size = mix_name(load["workload"]["batch_size"])
    return (
        f"Served, and its ceiling: {counted(load['concurrency'], 'caller')} x {size}, turns of {load['duration_s']:g} s"
    )


def ceiling_tables(report: CeilingReport) -> list[Table]:
    """Return the medians of all cases side by side, where there are several, and a table for each."""
    rows = [(what, *(_row(case, name)[1] for case in report.cases)) for name, (what, _) in FIGURES.items()]
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


def saturated_tables(report: CeilingReport) -> list[Table]:
    """Return what the last saturated load of each case did to the server, and where its time went."""
    return [
        replace(table, title=f"{case.name}, the last load: {table.title}")
        for case in report.cases
        if case.load
        for table in load_tables(case.load)
    ]


def ceiling_notes(report: CeilingReport) -> list[str]:
    """Return the notes, and how the ceiling was found."""
    notes = [
        f"{case.name}: the ceiling is {case.best.threads.name}, batches of {case.best.batch_size}; "
        f"one product at a time is fastest with {case.alone.threads.name} "
        f"({counted(report.cores, 'core')} may be used, the server gives up to {counted(report.cpu_threads, 'thread')} "
        "to an encoder)"
        for case in report.cases
    ]
    return [*report.notes, *notes]


def _case(report: CeilingReport, case: Case) -> Table:
    rows = [_row(case, name) for name in FIGURES]
    if case.recall:
        rows.append((f"recall@1, {report.label} ({case.recall.ranked})", _recall(case), NOTHING, NOTHING))
    rows.append(("largest difference of an embedding", f"{case.largest_difference:.2g}", NOTHING, NOTHING))
    size, callers = case.best.batch_size, counted(report.load["concurrency"], "caller")
    title = (
        f"{case.name}, {counted(len(case.rounds), 'round')}: the ceiling in batches of {size}, {callers} of the server"
    )
    return Table(title=title, header=("", "median", "min", "max"), rows=tuple(rows))


def _row(case: Case, name: str) -> tuple[str, ...]:
    (what, digits), spread = FIGURES[name], case.spread(name)
    if spread is None:
        return (what, NOTHING, NOTHING, NOTHING)
    values = (spread.median, spread.min, spread.max)
    return (what, *(or_infinite(value, digits) for value in values))


def _recall(case: Case) -> str:
    return number(case.recall.at_1 if case.recall and case.recall.queries else None, 3)
