"""One run of a load: make it, look at the server meanwhile, and put the report together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Protocol

from likeness_client import LikenessError, Product

from likeness_bench import figures
from likeness_bench.drive import Ask, Drive, LoadConfig, ask, open_client, ticking
from likeness_bench.figures import LoadReport, Percentiles
from likeness_bench.processes import GpuWatch, ProcessWatch, find_server
from likeness_bench.report import now
from likeness_bench.steps import (
    TIMEOUT_S,
    ModelCounters,
    StepTime,
    is_ensemble,
    read_counters,
    started_again,
    step_times,
)
from likeness_bench.view import UNSEEN, View
from likeness_bench.workload import OperationKind, Workload

OTHER_SPACE = "the server serves another space than when it was first asked: a part of this is of another model"
"""The note of runs at whose end it does."""
LAG_LIMIT_MS = 5.0
"""From this 99th percentile of its own lateness on, the harness warns that it is part of what it measures."""
_SAMPLE_S = 1.0  # looking takes some milliseconds from the harness
_SHOWN_S = 0.25


class RunLoad(Protocol):
    """Makes one run of a load and reports, as `run_load` does."""

    async def __call__(self, workload: Workload, config: LoadConfig, *, stop: asyncio.Event, view: View) -> LoadReport:
        """Run a load to its end, or until ``stop`` is set."""


async def prepare(products: Sequence[Product], config: LoadConfig) -> Workload:
    """Ask the server what it offers, and read everything that will be sent.

    Raises:
        LikenessError: the server cannot be reached, or cannot be asked this.
    """
    async with open_client(config) as client:
        info = await client.info()
    return await asyncio.to_thread(Workload, products, info, config.workload)


async def run_load(
    workload: Workload,
    config: LoadConfig,
    *,
    stop: asyncio.Event,
    view: View = UNSEEN,
    ask: Ask = ask,
) -> LoadReport:
    """Run a load to its end, or until ``stop`` is set, and report.

    A server that fails, hangs or dies meanwhile makes error rows; the run still ends by its duration, plus at most the
    deadline of one request.

    Args:
        workload: what is sent; see `prepare`.
        config: the load; its workload is the one that ``workload`` was made for.
        stop: set it to get the report so far.
        view: is shown the run while it runs.
        ask: sends one request.
    """
    made_at = now()
    async with open_client(config) as client:
        with suppress(LikenessError):  # then every request says so
            await client.info()
        requests = workload.requests(config.workload.seed)
        drive = Drive(client=client, config=config, requests=requests, stop=stop, ask=ask)
        watch = _Watch(config=config)
        watching, showing = asyncio.create_task(watch.run(drive)), asyncio.create_task(_show(drive, view))
        try:
            await drive.run()
            await watching
        finally:
            watching.cancel()
            showing.cancel()
            await asyncio.gather(watching, showing, return_exceptions=True)
        view.show(drive)
    return _report(drive, watch, workload.info.space, made_at)


@dataclass
class _Watch:
    """What is seen of the server and of the harness during the measured time.

    ``before`` and ``after`` are Triton's counters, read so many seconds from the start of the run; of a server that was
    started again they are those of its last process. ``space`` is what it serves in the end, where it says so.
    """

    config: LoadConfig
    before: dict[str, ModelCounters] | None = None
    after: dict[str, ModelCounters] | None = None
    before_s: float = 0.0
    after_s: float = 0.0
    processes: ProcessWatch | None = None
    gpus: GpuWatch | None = None
    cut_short: bool = False
    started_again: bool = False
    space: str = ""
    ticks_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    async def run(self, drive: Drive) -> None:
        """Wait for the warm-up, then look until the measured time ends."""
        server = await asyncio.to_thread(find_server, self.config.address)
        if await _stopped(drive, self.config.warm_up_s - drive.now_s()):
            return
        self.before, self.before_s = await counters_of(self.config), drive.now_s()
        self.processes = ProcessWatch(server=server) if server else None
        self.gpus = GpuWatch(timeout_s=_patience_s(self.config)) if GpuWatch.there_is_one() else None
        cpu_before_s = time.process_time()
        ticks = asyncio.create_task(ticking(self.ticks_s))
        while (left_s := self.config.length_s - drive.now_s()) > 0:
            await self._look(drive)
            if await _stopped(drive, min(_SAMPLE_S, left_s)):
                break
        ticks.cancel()
        self.cpu_s = time.process_time() - cpu_before_s
        if drive.stop.is_set() and self.cut_short:
            return  # who has interrupted a run on a server that hangs need not wait for it once more
        _, self.space = await asyncio.gather(self._look(drive), _space_of(self.config))
        last = await asyncio.to_thread(find_server, self.config.address)
        self.started_again |= None not in (server, last) and server != last

    def steps(self) -> tuple[StepTime, ...]:
        """Return where the time went in the server; empty without its statistics."""
        return () if self.before is None or self.after is None else step_times(self.before, self.after)

    async def _look(self, drive: Drive) -> None:
        """Look at the processes, and keep Triton's counters: a server that dies leaves the last ones behind."""
        for watch in (self.processes, self.gpus):
            if watch:
                await asyncio.to_thread(watch.sample)
        counters = await counters_of(self.config)
        self.cut_short = counters is None
        if counters is not None:
            if started_again(self.after or self.before or {}, counters):
                self.started_again, self.before, self.before_s = True, {}, max(self.before_s, self.after_s)
            self.after, self.after_s = counters, drive.now_s()


async def counters_of(config: LoadConfig) -> dict[str, ModelCounters] | None:
    """Ask the server of a load for the counters of its models; None where it does not tell them in time."""
    try:
        return await read_counters(config.address, _patience_s(config), config.gateway)
    except LikenessError:
        return None


async def _space_of(config: LoadConfig) -> str:
    """Ask a server over a new connection for the space that it serves; empty where it does not tell it in time."""
    with suppress(LikenessError):
        async with open_client(replace(config, timeout_s=_patience_s(config))) as client:
            return (await client.info()).space
    return ""


def _patience_s(config: LoadConfig) -> float:
    """Return how long looking may take: a server that hangs must not make a run longer than its requests do."""
    return min(TIMEOUT_S, config.timeout_s)


async def _stopped(drive: Drive, wait_s: float) -> bool:
    """Wait so long; return at once, and true, when the run is stopped."""
    with suppress(TimeoutError):
        await asyncio.wait_for(drive.stop.wait(), max(0.0, wait_s))
    return drive.stop.is_set()


async def _show(drive: Drive, view: View) -> None:
    while True:
        view.show(drive)
        await asyncio.sleep(_SHOWN_S)


def _report(drive: Drive, watch: _Watch, space: str, made_at: str) -> LoadReport:
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
    return replace(report, notes=tuple(_notes(report, watch)))


def _outside_server_ms(drive: Drive, watch: _Watch) -> float | None:
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


def _notes(report: LoadReport, watch: _Watch) -> Iterator[str]:
    """Say what stands in the way of believing a report."""
    seconds, lag = report.measured_s, report.harness_lag
    if report.ended == "interrupted":
        missing = f": {report.unfinished} requests were on their way and count nowhere, the slowest maybe among them"
        yield f"interrupted after {seconds:.1f} s" + (missing if report.unfinished else "")
    if lag and lag.p99_ms > LAG_LIMIT_MS:
        yield (
            f"the harness itself was late (p99 {lag.p99_ms:.1f} ms): these latencies are partly its own; "
            "send less, or run it on another machine"
        )
    if seconds and report.harness_cpu_s > 0.9 * seconds:
        yield "the harness used a whole core: it may be the limit, not the server"
    if not report.keeps_up:
        yield (
            f"answered {100 * report.answered_share:.0f} % of {report.offered_per_s:.1f} requests/s: the server does "
            "not keep up, or failed; at such a rate latency only says how long the run was"
        )
    if not report.requests and report.ended == "duration":
        yield f"no request was due in the {seconds:g} s that were measured; use longer runs"
    if report.worn_share > 0:
        yield (
            f"the products ran out: {100 * report.worn_share:.0f} % of the requests repeated earlier ones for that; "
            "give more products where a cache would matter"
        )
    if report.requests and (doubt := figures.too_few(report.requests)):
        yield doubt
    elif 0 < report.requests < 1000:
        yield f"{report.requests} requests: p99.9 is little more than the maximum"
    if watch.space not in ("", report.space):
        yield OTHER_SPACE
    if watch.started_again:
        yield "the server was started again meanwhile: its CPU, memory and steps tell of a part of the time only"
    if seconds and watch.cut_short:
        yield "Triton did not answer at the end: its statistics stop before, if there are any"
