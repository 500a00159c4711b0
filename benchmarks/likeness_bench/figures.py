"""From what became of each request to the figures of a report. Everything here is plain data that JSON can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from likeness_bench.drive import NOT_SENT, Record
from likeness_bench.in_process import Threads
from likeness_bench.processes import GpuFigures, ProcessFigures
from likeness_bench.recall import Recall
from likeness_bench.report import Report
from likeness_bench.steps import StepTime
from likeness_bench.tables import counted

K = TypeVar("K", int, str)
FORMAT = "likeness-load-1"
ENOUGH = 100
"""Requests, for one of them to lie beyond the 99th percentile."""
KEEPS_UP = 0.95
"""The share of the rate that is due that has to be answered, or the server falls behind."""
_FEW = 3  # answers: of fewer, the mean says nothing
_SURPLUS = 1.3  # more than enough must be due, because arrivals are drawn
DISTRIBUTION_PERCENT = (*range(0, 99), *(99 + tenth / 10 for tenth in range(11)))
"""Where the distribution of the latency is kept, for plots."""


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of ``count`` durations, in milliseconds; each is one of them, and none lies between two."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float

    @classmethod
    def of(cls, durations_s: Sequence[float]) -> Percentiles | None:
        """Summarise durations in seconds; None without any."""
        if not len(durations_s):
            return None
        values = 1000 * np.asarray(durations_s, dtype=np.float64)
        p50, p90, p95, p99, p99_9 = _percentiles(values, (50, 90, 95, 99, 99.9))
        return cls(
            count=len(values),
            mean_ms=float(values.mean()),
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            p99_9_ms=p99_9,
            max_ms=float(values.max()),
        )


@dataclass(frozen=True, kw_only=True)
class ErrorRow:
    """One kind of failure.

    Attributes:
        kind: name of the error's class.
        count: how many requests failed so.
        first_s: when the first one had failed, in seconds of the measured time.
        example: what it said.
    """

    kind: str
    count: int
    first_s: float
    example: str


@dataclass(frozen=True, kw_only=True)
class Second:
    """One second of the measured time, by when requests were due.

    Attributes:
        second: from 0.
        requests: how many were due in it and have ended.
        errors: how many of them failed.
        p50_ms: of the answered ones; None without any.
        p99_ms: the same.
    """

    second: int
    requests: int
    errors: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, kw_only=True)
class CeilingTurn:
    """What the networks of the served repository reached in one process, without a server, right before a run.

    Attributes:
        products_per_s: the ceiling.
        throughput_ratio: products/s that the server answered in the run / ceiling; in an open loop, where the rate was
            given, how much of the ceiling that rate takes.
        threads: how the process used the cores.
        batch_size: products per batch.
        largest_difference: between embeddings that the server and the process gave for the same products.
    """

    products_per_s: float
    throughput_ratio: float
    threads: Threads
    batch_size: int
    largest_difference: float


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """What one of several runs of the same load came to.

    Attributes:
        products_per_s: products answered per second.
        p50_ms: of the answered requests; None without any.
        p99_with_failures_ms: as in `LoadReport`.
        requests: how many ended, well or not.
        failed: how many of them failed.
        throughput_ratio: of the `CeilingTurn` before it; None without one.
    """

    products_per_s: float
    p50_ms: float | None
    p99_with_failures_ms: float | None
    requests: int
    failed: int
    throughput_ratio: float | None = None

    @classmethod
    def of(cls, report: LoadReport) -> RunFigures:
        """Summarise a run."""
        return cls(
            products_per_s=report.products_per_s,
            p50_ms=report.latency.p50_ms if report.latency else None,
            p99_with_failures_ms=report.p99_with_failures_ms,
            requests=report.requests,
            failed=report.failed,
            throughput_ratio=report.ceiling.throughput_ratio if report.ceiling else None,
        )


@dataclass(frozen=True, kw_only=True)
class LoadReport(Report):
    """What one load did to a server. Times count after the warm-up.

    Attributes:
        format: of this report.
        load: the `LoadConfig`, as plain data.
        space: fingerprint of the server's embedding space.
        ended: ``duration``, or ``interrupted`` by the user.
        measured_s: how long was measured.
        requests: those that were due in this time and have ended, well or not.
        offered_per_s: requests due per second.
        requests_per_s: requests answered in this time, per second.
        products_per_s: products answered in this time, per second.
        answered_share: of the rate that was due, how much the server could answer; see `answered_share`. 1 in a closed
            loop.
        repeated_share: of the requests, how many sent only what had been sent before.
        worn_share: of the requests, how many did so because the products had run out.
        unfinished: requests that were still on their way when the run was interrupted; they count nowhere else.
        latency: of the answered requests from when they were due; in a closed loop, from when they were sent.
        p99_with_failures_ms: of all requests, a failed one being later than any answer; None: infinite, or no requests.
        by_operation: the same latency for each operation.
        by_signature: the same for each part of the mix.
        by_products: the same for each number of products that a request sent.
        harness_lag: how late the harness was: requests behind their schedule, in a closed loop a timer behind its time.
        harness_cpu_s: CPU time of this process; as much as a core has means that the harness was the limit.
        outside_server_ms: mean time of a request outside Triton: client, network, gRPC. None where it cannot be told:
            without statistics, where requests became several calls, where others asked the server too, where it is too
            little, or for other operations than embed.
        steps: where the time went in the server.
        server: what its processes used; None where they cannot be seen.
        gpus: what the GPUs of this machine did.
        errors: failures by kind, the most frequent first.
        timeline: second by second.
        distribution_ms: pairs of percent and latency, for plots.
        notes: what to know before these figures are believed.
        label: what recall was measured on, in words; empty when it was not.
        recall: of the embeddings that this server gives, for each part of the mix; measured before the load.
        ceiling: what the networks reached without a server right before this run; None where it was not asked for.
        runs: what each run of this load came to, if it was meant to be repeated; this report is of one of them.
        settled: whether the last two of them agreed.
    """

    format: str = FORMAT
    load: Mapping[str, Any]
    space: str
    ended: str
    measured_s: float
    requests: int
    offered_per_s: float
    requests_per_s: float
    products_per_s: float
    repeated_share: float
    worn_share: float
    unfinished: int
    latency: Percentiles | None
    p99_with_failures_ms: float | None
    by_operation: Mapping[str, Percentiles]
    by_signature: Mapping[str, Percentiles]
    by_products: Mapping[int, Percentiles]
    harness_lag: Percentiles | None
    harness_cpu_s: float
    outside_server_ms: float | None
    steps: tuple[StepTime, ...]
    server: ProcessFigures | None
    gpus: tuple[GpuFigures, ...]
    errors: tuple[ErrorRow, ...]
    timeline: tuple[Second, ...]
    distribution_ms: tuple[tuple[float, float], ...]
    notes: tuple[str, ...]
    label: str = ""
    recall: Mapping[str, Recall] = field(default_factory=dict)
    ceiling: CeilingTurn | None = None
    runs: tuple[RunFigures, ...] = ()
    settled: bool = False
    answered_share: float = 1.0

    @property
    def measured(self) -> bool:
        """Whether a request that counts has ended."""
        return bool(self.requests)

    @property
    def failed(self) -> int:
        """How many requests failed."""
        return sum(row.count for row in self.errors)

    @property
    def keeps_up(self) -> bool:
        """Whether the server answered as much as was due; else its queue grows for as long as the load lasts."""
        return self.answered_share >= KEEPS_UP


def too_few(requests: int) -> str:
    """Say what the p99 of so few requests is; empty where there are enough."""
    return f"{counted(requests, 'request')}: below {ENOUGH}, p99 is the maximum" if requests < ENOUGH else ""


def failures(reports: Iterable[LoadReport]) -> Counter[str]:
    """Count the requests of several loads that failed, by kind."""
    return sum((Counter({row.kind: row.count for row in report.errors}) for report in reports), Counter[str]())


def failures_name(failed: Counter[str]) -> str:
    """Return failures in words, the most frequent kind first."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
    return f"{counted(failed.total(), 'request')} failed ({kinds})"


def enough_s(rate: float) -> float:
    """Return how long requests must be sent at a rate (requests/s) for their p99 to be more than the maximum."""
    return _SURPLUS * ENOUGH / rate


def latency_s(record: Record) -> float:
    """Return how long a request took, from when it was due: a late start is latency."""
    return record.finished_s - record.scheduled_s


def p99_with_failures_ms(records: Sequence[Record]) -> float | None:
    """Return the 99th percentile over all requests, failed ones being infinitely late; None if that is infinite."""
    if not records:
        return None
    values = [float("inf") if record.error else 1000 * latency_s(record) for record in records]
    (found,) = _percentiles(values, (99,))
    return found if np.isfinite(found) else None


def answered_share(records: Sequence[Record]) -> float:
    """Return how much of the rate that was due a server could answer; 1: all of it.

    Between the middles of the first and the last third of the answers: the time in which they were due / the time in
    which they came; of that, the share of the requests that did not fail. Other than by a count of the answers, what is
    under way when a run begins and ends is no arrear, however long an answer takes; only that it takes ever longer is.
    """
    answered = sorted((record for record in records if not record.error), key=lambda record: record.scheduled_s)
    share, third = len(answered) / len(records) if records else 1.0, len(answered) // 3
    if third < _FEW:
        return share
    ends = answered[:third], answered[-third:]
    first_s, last_s = (fmean(record.scheduled_s for record in end) for end in ends)
    early_s, late_s = (fmean(map(latency_s, end)) for end in ends)
    due_s, longer_s = last_s - first_s, max(0.0, late_s - early_s)
    return share * due_s / (due_s + longer_s) if longer_s else share


def sent_share(records: Sequence[Record]) -> float:
    """Return how much of the rate that was due the harness itself could send, as `answered_share` has it."""
    sendings = [
        replace(record, finished_s=record.started_s, error=record.error if record.error == NOT_SENT else "")
        for record in records
    ]
    return answered_share(sendings)


def _percentiles(values: Sequence[float] | NDArray[np.float64], percent: Sequence[float]) -> list[float]:
    """Return for each percentage the smallest value that at least that share of the values does not exceed.

    Always a value that was measured, as there is none between an answer and a failure, which is infinitely late; so
    latencies with failures and without them are comparable.
    """
    ascending = np.sort(np.asarray(values, dtype=np.float64))
    # Rounded, because 99.9 % of 41,000 would be a little more than 40,959, and the rank one too high.
    ranks = [max(1, ceil(round(share * len(ascending) / 100, 6))) for share in percent]
    return [float(ascending[rank - 1]) for rank in ranks]


def error_rows(records: Sequence[Record], warm_up_s: float) -> tuple[ErrorRow, ...]:
    """Count failures by kind, the most frequent first."""
    kinds: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.finished_s):
        if record.error:
            kinds.setdefault(record.error, []).append(record)
    rows = [
        ErrorRow(
            kind=kind, count=len(failed), first_s=failed[0].finished_s - warm_up_s, example=failed[0].message[:300]
        )
        for kind, failed in kinds.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.count))


def timeline(records: Sequence[Record], warm_up_s: float) -> tuple[Second, ...]:
    """Summarise requests second by second of when they were due."""
    seconds: dict[int, list[Record]] = {}
    for record in records:
        seconds.setdefault(int(record.scheduled_s - warm_up_s), []).append(record)
    rows = []
    for second, members in sorted(seconds.items()):
        answered = Percentiles.of([latency_s(record) for record in members if not record.error])
        row = Second(
            second=second,
            requests=len(members),
            errors=sum(bool(record.error) for record in members),
            p50_ms=answered.p50_ms if answered else None,
            p99_ms=answered.p99_ms if answered else None,
        )
        rows.append(row)
    return tuple(rows)


def distribution_ms(durations_s: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the percentiles of `DISTRIBUTION_PERCENT` in milliseconds; empty without durations."""
    if not len(durations_s):
        return ()
    values = _percentiles(1000 * np.asarray(durations_s, dtype=np.float64), DISTRIBUTION_PERCENT)
    return tuple(zip(map(float, DISTRIBUTION_PERCENT), values, strict=True))


def by_part(records: Sequence[Record], part: Callable[[Record], K]) -> dict[K, Percentiles]:
    """Summarise the latency of the answered requests for each part of them, e.g. by their signatures."""
    parts: dict[K, list[float]] = {}
    for record in records:
        if not record.error:
            parts.setdefault(part(record), []).append(latency_s(record))
    return {name: found for name in sorted(parts) if (found := Percentiles.of(parts[name]))}
