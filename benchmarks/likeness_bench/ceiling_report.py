"""What a comparison with the ceiling finds, as plain data that JSON can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Any

from likeness_bench.figures import ENOUGH, LoadReport, failures, failures_name, too_few
from likeness_bench.in_process import Threads
from likeness_bench.load_report import LAG_LIMIT_MS, OTHER_SPACE
from likeness_bench.recall import Recall
from likeness_bench.report import Report
from likeness_bench.tables import counted

FORMAT = "likeness-ceiling-1"
TOLERANCE = 1e-4
"""Embeddings of the server and of the one process differ by less than this; or something else is compared."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over the rounds; None: infinite."""

    median: float | None
    min: float | None
    max: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Summarise what there is; None without any."""
        found = list(values)
        if not found:
            return None
        low, middle, high = (value if value < inf else None for value in (min(found), median(found), max(found)))
        return cls(median=middle, min=low, max=high)


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
    """One alternation; figures that no request was answered for are None, and so are those of half load without one.

    Attributes:
        ceiling_products_per_s: in one process, without a server.
        served_products_per_s: through the server, at saturation.
        throughput_ratio: served / ceiling; higher is better.
        alone_p50_ms: one product at a time in one process.
        served_p50_ms: one caller, one product at a time.
        latency_ratio: served / alone; lower is better.
        half_rate: half of the saturated rate, in requests/s, by schedule; None: nothing was answered before.
        half_p50_ms: latency at this rate.
        half_p99_ms: the same, failed requests being infinitely late; None: infinite, or too few for a p99.
        half_tail: p99 / p50 at this rate; None likewise.
        half_requests: how many requests that was.
        errors: kind of error -> requests that failed so in any of the three loads.
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
    errors: Mapping[str, int]
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
        p99_ms = half.p99_with_failures_ms if half and half.requests >= ENOUGH else None
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
            errors=dict(failures(loads).most_common()),
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
        load: the saturated load of the last one: errors, steps inside the server, its processes.
    """

    name: str
    tried: tuple[Trial, ...]
    best: Trial
    alone: Trial
    largest_difference: float
    recall: Recall | None
    rounds: tuple[Round, ...]
    load: LoadReport | None = None

    def spread(self, figure: str) -> Spread | None:
        """Summarise one attribute of the rounds that have it; a tail that failures made infinite is one."""
        rounds, infinite = self.rounds, figure in ("half_p99_ms", "half_tail")
        if infinite:
            rounds = tuple(found for found in rounds if found.half_requests >= ENOUGH)
        values = [getattr(found, figure) for found in rounds]
        return Spread.of(inf if value is None else value for value in values if infinite or value is not None)


@dataclass(frozen=True, kw_only=True)
class CeilingReport(Report):
    """A server compared with what its networks reach without it.

    Attributes:
        format: of this report.
        load: the `LoadConfig` at saturation, as plain data.
        repository: the model repository that was run in one process.
        space: fingerprint of the embedding space of both.
        cores: threads that can compute at a time in one process; what affinity and a container's quota allow.
        cpu_threads: threads that the server gives to an encoder, the most of any.
        label: what recall was measured on, in words; empty when it was not.
        ended: ``complete``, ``interrupted`` by the user, or ``failed``: see there.
        cases: per signature or mix, as far as it was measured.
        failures: name of a case -> why it could not be measured to its end.
        medians: per case the medians of its rounds, for those who read the JSON.
        notes: what to know before these figures are believed.
    """

    format: str = FORMAT
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
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether a round was finished."""
        return bool(self.cases)


FIGURES: Mapping[str, tuple[str, int]] = {
    "ceiling_products_per_s": ("ceiling products/s", 1),
    "served_products_per_s": ("served products/s", 1),
    "throughput_ratio": ("served / ceiling", 3),
    "alone_p50_ms": ("p50 ms in one process", 2),
    "served_p50_ms": ("p50 ms served", 2),
    "latency_ratio": ("served / one process", 3),
    "half_rate": ("half load: requests/s", 1),
    "half_p50_ms": ("half load: p50 ms", 2),
    "half_p99_ms": ("half load: p99 ms", 2),
    "half_tail": ("half load: p99 / p50", 2),
}
"""The attributes of a round that are summarised: their names in tables, and digits behind the point."""


def medians(cases: Sequence[Case]) -> dict[str, dict[str, Spread | None]]:
    """Summarise the rounds of every case."""
    return {case.name: {figure: case.spread(figure) for figure in FIGURES} for case in cases}


def difference_doubt(difference: float) -> str:
    """Say what it means that the embeddings of the two sides differ so much; empty where it means nothing."""
    if difference <= TOLERANCE:
        return ""
    return (
        f"the server's embeddings differ by {difference:.1e} from those of the same networks in one process: the two "
        "do not do the same work, or their int8 depends on the batch"
    )


def place_doubts(load: LoadReport) -> Iterator[str]:
    """Say where the server may compute on something else than the one process does."""
    if load.gpus:
        yield "this machine has a GPU; the one process computes on the CPU, whatever the server does"
    if load.server is None:
        yield "the server's processes cannot be seen from here; the ceiling is that of this machine, wherever they run"


def doubts(cases: Sequence[Case], failures: Mapping[str, str], *, stopped: bool) -> Iterator[str]:
    """Say what stands in the way of believing a report."""
    if stopped:
        yield "interrupted: only rounds that were finished count"
    for name, reason in failures.items():
        finished = next((len(case.rounds) for case in cases if case.name == name), 0)
        yield f"{name}: it ended after {counted(finished, 'round')}: {reason}"
    for case in cases:
        if doubt := difference_doubt(case.largest_difference):
            yield f"{case.name}: {doubt}"
        if failed := sum((Counter(found.errors) for found in case.rounds), Counter[str]()):
            yield f"{case.name}: {failures_name(failed)}; they count as not answered"
        if case.load and OTHER_SPACE in case.load.notes:
            yield f"{case.name}: {OTHER_SPACE}"
        if case.load:
            yield from (f"{case.name}: {doubt}" for doubt in place_doubts(case.load))
        late_ms = max(found.harness_late_ms for found in case.rounds)
        if late_ms > LAG_LIMIT_MS:
            yield (
                f"{case.name}: the harness itself was late (p99 {late_ms:.1f} ms in its worst turn): "
                "the served latencies are partly its own"
            )
        if doubt := too_few(min(found.half_requests for found in case.rounds)):
            yield f"{case.name}: a turn at half load had {doubt}, and its round is left out there"
