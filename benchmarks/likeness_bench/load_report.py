"""The report of one run of a load: figures of its requests, of what was seen meanwhile, and what to doubt in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

from likeness_bench import figures
from likeness_bench.drive import NOT_SENT, Drive
from likeness_bench.figures import LoadReport, Percentiles
from likeness_bench.steps import happened, is_ensemble
from likeness_bench.tables import counted
from likeness_bench.watching import Watch
from likeness_bench.workload import OperationKind

OTHER_SPACE = "the server serves another space than when it was first asked: a part of this is of another model"
"""The note of runs at whose end it does."""
LAG_LIMIT_MS = 5.0
"""From this 99th percentile of its own lateness on, the harness warns that it is part of what it measures."""
_MANY = 1000  # requests, for one of them to lie beyond p99.9
_MOMENT_S = 0.2
_MUCH_MORE = 1.1  # times what was sent; a question or two of others changes no figure


def load_report(drive: Drive, watch: Watch, space: str, made_at: str) -> LoadReport:
    """Put the report of a run together.

    Args:
        drive: the run, which has ended.
        watch: what was seen meanwhile.
        space: what the server served when it was first asked.
        made_at: when the run began.
    """
    config = drive.config
    measured = [record for record in drive.records if record.scheduled_s >= config.warm_up_s]
    measured_s = max(0.0, drive.elapsed_s - config.warm_up_s)
    in_time = [
        record
        for record in drive.records
        if not record.error and config.warm_up_s <= record.finished_s <= drive.elapsed_s
    ]
    latencies_s = [figures.latency_s(record) for record in measured if not record.error]
    open_loop = config.rate is not None
    lags_s = [record.started_s - record.scheduled_s for record in measured] if open_loop else watch.ticks_s
    per_second = 1 / measured_s if measured_s else 0.0
    report = LoadReport(
        made_at=made_at,
        load=config.plain(),
        space=space,
        ended="interrupted" if drive.stop.is_set() else "duration",
        measured_s=measured_s,
        requests=len(measured),
        offered_per_s=per_second * (len(measured) + drive.unfinished),
        requests_per_s=per_second * len(in_time),
        products_per_s=per_second * sum(record.products for record in in_time),
        answered_share=figures.answered_share(measured) if open_loop else 1.0,
        repeated_share=sum(record.repeated for record in measured) / max(1, len(measured)),
        worn_share=sum(record.worn for record in measured) / max(1, len(measured)),
        unfinished=drive.unfinished,
        latency=Percentiles.of(latencies_s),
        p99_with_failures_ms=figures.p99_with_failures_ms(measured),
        by_operation=figures.by_part(measured, lambda record: str(record.operation)),
        by_signature=figures.by_part(measured, lambda record: record.signature),
        by_products=figures.by_part(measured, lambda record: record.products),
        harness_lag=Percentiles.of(lags_s),
        harness_cpu_s=watch.cpu_s,
        outside_server_ms=_outside_server_ms(drive, watch),
        steps=watch.steps(),
        server=watch.processes.figures() if watch.processes else None,
        gpus=watch.gpus.figures() if watch.gpus else (),
        errors=figures.error_rows(measured, config.warm_up_s),
        timeline=figures.timeline(measured, config.warm_up_s),
        distribution_ms=figures.distribution_ms(latencies_s),
        notes=(),
    )
    notes = _notes(report, watch, figures.sent_share(measured) if open_loop else 1.0)
    return replace(report, notes=(*notes, *_others(drive, watch)))


def _outside_server_ms(drive: Drive, watch: Watch) -> float | None:
    """Return the mean time of a request outside Triton, where one request is one call of one ensemble.

    Both means, the harness's and Triton's, are over what was answered between two readings of Triton's statistics: what
    is due in this time may be answered after it, and what waited longest was due before it.
    """
    if set(drive.config.workload.operations) != {OperationKind.EMBED}:
        return None  # pairs of two signatures take several calls, in turn and side by side
    answered = [
        record.finished_s - record.started_s
        for record in drive.records
        if not record.error and watch.before_s < record.finished_s <= watch.after_s
    ]
    entries = [step for step in watch.steps() if is_ensemble(step.model)]
    calls = sum(step.requests for step in entries)
    # Answers on their way at a reading are counted by one side only; more of a difference is another kind of traffic.
    if not (answered and calls) or abs(calls - len(answered)) > 1 + 0.1 * len(answered):
        return None
    inside_ms = sum(step.total_ms * step.requests for step in entries) / calls
    outside_ms = 1000 * fmean(answered) - inside_ms
    return outside_ms if outside_ms >= 0 else None  # below 0 it says only that it is too little to be told


def _others(drive: Drive, watch: Watch) -> Iterator[str]:
    """Say that the server worked for others, too, where a load that only embeds can tell."""
    only_embeds = set(drive.config.workload.operations) == {OperationKind.EMBED}
    if not only_embeds or drive.unfinished or watch.before is None or watch.after is None:
        return
    embedded = sum(found.inferences for model, found in happened(watch.before, watch.after) if is_ensemble(model))
    # What failed may be embedded later; and an answer may be there a moment before it is counted.
    since_s = watch.before_s - _MOMENT_S
    sent = [record for record in drive.records if record.error != NOT_SENT]
    mine = sum(record.products for record in sent if record.error or record.finished_s > since_s)
    if embedded > _MUCH_MORE * mine:
        yield (
            f"the server embedded {embedded} products in the measured time, {mine} of them at most for this load: it "
            "worked for another load, too, or still for an earlier one, or was asked again about products of which it "
            "does not know a modality; all figures tell of both"
        )


def _notes(report: LoadReport, watch: Watch, sent_share: float) -> Iterator[str]:
    """Say what stands in the way of believing a report; ``sent_share`` of the rate that was due could be sent."""
    seconds, lag = report.measured_s, report.harness_lag
    if report.ended == "interrupted":
        missing = f", not counting {counted(report.unfinished, 'request')} on the way, the slowest maybe among them"
        yield f"interrupted after {seconds:.1f} s" + (missing if report.unfinished else "")
    if lag and lag.p99_ms > LAG_LIMIT_MS:
        yield (
            f"the harness itself was late (p99 {lag.p99_ms:.1f} ms): these latencies are partly its own; "
            "send less, or run it on another machine"
        )
    if seconds and report.harness_cpu_s > 0.9 * seconds:
        yield "the harness used a whole core: it may be the limit, not the server"
    if not report.keeps_up:
        who = "the server does not keep up, or failed"
        if not report.failed and report.requests < _MANY:  # a stable queue may grow for as long as a short run
            who += " (of so few requests it may have become slower by chance: a longer run tells)"
        if sent_share < figures.KEEPS_UP:  # then nothing is known of the server
            who = f"the harness itself could send only {100 * sent_share:.3g} % of them in time"
        yield (
            f"answered {100 * report.answered_share:.3g} % of {report.offered_per_s:.1f} requests/s: {who}; at such a "
            "rate latency only says how long the run was"
        )
    if not report.requests and report.ended == "duration":
        yield f"no request was due in the {seconds:g} s that were measured; use longer runs"
    if report.worn_share > 0:
        yield (
            f"the products ran out: {100 * report.worn_share:.3g} % of the requests repeated earlier ones for that; "
            "give more products where a cache would matter"
        )
    if report.requests and (doubt := figures.too_few(report.requests)):
        yield doubt
    elif 0 < report.requests < _MANY:
        yield f"{report.requests} requests: p99.9 is little more than the maximum"
    if watch.space not in ("", report.space):
        yield OTHER_SPACE
    if watch.started_again:
        yield "the server was started again meanwhile: its CPU, memory and steps tell of a part of the time only"
    if seconds and watch.cut_short:
        yield "Triton did not answer at the end: its statistics stop before, if there are any"
