"""What a comparison with the ceiling finds, as plain data that JSON can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from likeness_bench.figures import LoadReport
from likeness_bench.in_process import Threads
from likeness_bench.recall import Recall

FORMAT = "likeness-ceiling-1"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Summarise what there is; None without any."""
        found = [value for value in values if value is not None]
        return cls(median=median(found), min=min(found), max=max(found)) if found else None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way to run the networks in one process, tried for a short time.

    Attributes:
        threads: how it used the cores.
        batch_size: products per batch.
        products_per_s: what it reached.
        p50_ms: the median time of a batch.
    """

    threads: Threads
    batch_size: int
    products_per_s: float
    p50_ms: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """One alternation; figures that no request was answered for are None.

    Attributes:
        ceiling_products_per_s: in one process, without a server.
        served_products_per_s: through the server, at saturation.
        throughput_ratio: served / ceiling; higher is better.
        alone_p50_ms: one product at a time in one process.
        served_p50_ms: one caller, one product at a time.
        latency_ratio: served / alone; lower is better.
        half_rate: half of the saturated rate, in requests/s, by schedule; None: nothing was answered before.
        half_p50_ms: latency at this rate.
        half_p99_ms: the same.
        half_tail: p99 / p50 at this rate.
        half_requests: how many requests that was.
        failed: requests that failed in any of the three loads.
        harness_late_ms: p99 of the harness's own lateness, the worst of the three loads.
    """

    ceiling_products_per_s: float
    served_products_per_s: float
    throughput_ratio: float
    alone_p50_ms: float
    served_p50_ms: float | None
    latency_ratio: float | None
    half_rate: float | None
    half_p50_ms: float | None
    half_p99_ms: float | None
    half_tail: float | None
    half_requests: int
    failed: int
    harness_late_ms: float

    @classmethod
    def of(
        cls,
        ceiling_products_per_s: float,
        alone_p50_ms: float,
        full: LoadReport,
        one: LoadReport,
        half: LoadReport | None,
    ) -> Round:
        """Put the five turns of a round together.

        Args:
            ceiling_products_per_s: in one process.
            alone_p50_ms: likewise, one product at a time.
            full: the load at saturation.
            one: the load of one caller.
            half: the load at half of the rate of ``full``; None: there was no such rate.
        """
        loads = [report for report in (full, one, half) if report]
        served, tail = one.latency, half.latency if half else None
        p99_ms = half.p99_with_failures_ms if half else None
        return cls(
            ceiling_products_per_s=ceiling_products_per_s,
            served_products_per_s=full.products_per_s,
            throughput_ratio=full.products_per_s / ceiling_products_per_s,
            alone_p50_ms=alone_p50_ms,
            served_p50_ms=served.p50_ms if served else None,
            latency_ratio=served.p50_ms / alone_p50_ms if served else None,
            half_rate=float(half.load["rate"]) if half else None,
            half_p50_ms=tail.p50_ms if tail else None,
            half_p99_ms=p99_ms,
            half_tail=p99_ms / tail.p50_ms if tail and p99_ms else None,
            half_requests=half.requests if half else 0,
            failed=sum(row.count for report in loads for row in report.errors),
            harness_late_ms=max((report.harness_lag.p99_ms for report in loads if report.harness_lag), default=0.0),
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """One signature, or one mix of them.

    Attributes:
        name: as it was asked for.
        tried: every way that was tried in one process.
        best: of them, the one with the most products per second: the ceiling.
        alone: of them, the one with the lowest median time of a single product.
        largest_difference: between embeddings that the server and the one process gave for the same products.
        recall: of the served embeddings; None where it was not asked for, or for mixes.
        rounds: the alternations.
    """

    name: str
    tried: tuple[Trial, ...]
    best: Trial
    alone: Trial
    largest_difference: float
    recall: Recall | None
    rounds: tuple[Round, ...]

    def spread(self, figure: str) -> Spread | None:
        """Summarise one attribute of the rounds."""
        return Spread.of(getattr(round_, figure) for round_ in self.rounds)


@dataclass(frozen=True, kw_only=True)
class CeilingReport:
    """A server compared with what its networks reach without it.

    Attributes:
        format: of this report.
        made_at: when it began, ISO 8601 in UTC.
        load: the `LoadConfig` at saturation, as plain data.
        repository: the model repository that was run in one process.
        space: fingerprint of the embedding space of both.
        cores: processors that this machine offers to one process.
        cpu_threads: threads that the server gives to an encoder, the most of any.
        label: what recall was measured on, in words; empty when it was not.
        ended: ``complete``, or ``interrupted`` by the user.
        cases: per signature or mix.
        medians: per case the medians of its rounds, for those who read the JSON.
        notes: what to know before these figures are believed.
    """

    format: str = FORMAT
    made_at: str
    load: Mapping[str, Any]
    repository: str
    space: str
    cores: int
    cpu_threads: int
    label: str
    ended: str
    cases: tuple[Case, ...]
    medians: Mapping[str, Mapping[str, Spread | None]]
    notes: tuple[str, ...]


FIGURES = (
    "ceiling_products_per_s",
    "served_products_per_s",
    "throughput_ratio",
    "alone_p50_ms",
    "served_p50_ms",
    "latency_ratio",
    "half_rate",
    "half_p50_ms",
    "half_p99_ms",
    "half_tail",
)
"""The attributes of a round that are summarised."""


def medians(cases: Sequence[Case]) -> dict[str, dict[str, Spread | None]]:
    """Summarise the rounds of every case."""
    return {case.name: {figure: case.spread(figure) for figure in FIGURES} for case in cases}
