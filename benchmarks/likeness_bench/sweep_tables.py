"""The tables and notes of a sweep."""

from __future__ import annotations

from likeness_bench.figures import ENOUGH, too_few
from likeness_bench.load_report import OTHER_SPACE
from likeness_bench.load_tables import recall_rows, work_name
from likeness_bench.sweep import RateStep, SweepReport
from likeness_bench.tables import Table, counted, number, or_infinite


def sweep_name(report: SweepReport) -> str:
    """Return a sweep in words."""
    if not report.steps:
        return f"p99 <= {report.target_ms:g} ms: nothing was measured"
    return f"p99 <= {report.target_ms:g} ms: {work_name(report.steps[0].repeats[0].load)}"


def sweep_tables(report: SweepReport) -> list[Table]:
    """Return what was tried, by rate."""
    header: tuple[str, ...] = ("requests/s asked for", "due", "answered %", "kept", "settled", "repeats")
    header += ("p99 ms with failures", "products/s", "p50 ms", "failed")
    if beside := any(step.shown.ceiling for step in report.steps):
        header += ("served / ceiling",)
    rows = tuple(_row(step, beside=beside) for step in sorted(report.steps, key=lambda step: step.rate))
    best = "no rate kept it" if report.best_rate is None else f"best {report.best_rate:.4g} requests/s"
    return [Table(title=f"{sweep_name(report)}; {best}", header=header, rows=rows)]


def sweep_notes(report: SweepReport) -> list[str]:
    """Return why the search ended, how far to believe it, and the notes of the best rate and the lowest missed one."""
    notes = [report.ended]
    if not report.steps:  # no table has it
        notes += [f"{what}: {value}" for what, value in recall_rows(report.label, report.recall)]
    notes += [
        f"the figures of the best rate, {step.rate:.4g} requests/s, did not settle in "
        f"{counted(len(step.repeats), 'repeat')}"
        for step in report.steps
        if step.rate == report.best_rate and not step.settled
    ]
    fewest = min((run.requests for step in report.steps for run in step.repeats), default=ENOUGH)
    if doubt := too_few(fewest):
        notes.append(f"the shortest run had {doubt}; use longer runs")
    notes += report.best.notes if report.best else ()
    if missed := min((step for step in report.steps if not step.kept), key=lambda step: step.rate, default=None):
        # The harness may be what missed, and not the server.
        notes += [f"at {missed.rate:.4g} requests/s, which missed: {note}" for note in missed.shown.notes]
    spaces = any(OTHER_SPACE in run.notes for step in report.steps for run in step.repeats)
    if spaces and not any(OTHER_SPACE in note for note in notes):
        notes.append(OTHER_SPACE)
    return notes


def _row(step: RateStep, *, beside: bool) -> tuple[str, ...]:
    return (
        f"{step.rate:.4g}",
        number(step.shown.offered_per_s),
        number(100 * step.shown.answered_share),
        "yes" if step.kept else "no" if step.shown.keeps_up else "no: falls behind",
        "yes" if step.settled else "no",
        str(len(step.repeats)),
        or_infinite(step.p99_ms),
        number(step.shown.products_per_s),
        number(step.shown.latency.p50_ms if step.shown.latency else None),
        str(sum(run.failed for run in step.repeats)),
        *((number(step.shown.ceiling.throughput_ratio if step.shown.ceiling else None, 3),) if beside else ()),
    )
