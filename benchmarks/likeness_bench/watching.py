"""What is seen of the server and of the harness itself while a load runs."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace

from likeness_client import LikenessError

from likeness_bench.drive import Drive, stopped_within, ticking
from likeness_bench.load_config import LoadConfig, open_client
from likeness_bench.processes import GpuWatch, ProcessWatch, find_server
from likeness_bench.steps import TIMEOUT_S, ModelCounters, StepTime, read_counters, started_again, step_times

_SAMPLE_S = 1.0  # looking takes some milliseconds from the harness


@dataclass
class Watch:
    """What is seen of the server and of the harness during the measured time.

    ``before`` and ``after`` are Triton's counters. Asking for the ones began at ``before_s``, and for the others ended
    at ``after_s``, in seconds from the start of the run: what is counted between them was answered in that time. Of a
    server that was started again they are those of its last process, from the first look at it on. ``space`` is what it
    serves in the end, where it says so.
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
        if await stopped_within(drive.stop, self.config.warm_up_s - drive.now_s()):
            return
        self.before_s, self.before = drive.now_s(), await counters_of(self.config)
        self.processes = ProcessWatch(server=server) if server else None
        self.gpus = GpuWatch(timeout_s=_patience_s(self.config)) if GpuWatch.there_is_one() else None
        cpu_before_s = time.process_time()
        ticks = asyncio.create_task(ticking(self.ticks_s))
        while (left_s := self.config.length_s - drive.now_s()) > 0:
            await self._look(drive)
            if await stopped_within(drive.stop, min(_SAMPLE_S, left_s)):
                break
        ticks.cancel()
        self.cpu_s = time.process_time() - cpu_before_s
        if drive.stop.is_set() and self.cut_short:
            return  # who has interrupted a run on a server that hangs need not wait for it once more
        _, self.space = await asyncio.gather(self._look(drive), _space_of(self.config))
        last = await asyncio.to_thread(find_server, self.config.address)
        self.started_again |= last not in (None, server)  # also where there was none when the run began

    def steps(self) -> tuple[StepTime, ...]:
        """Return where the time went in the server; empty without its statistics."""
        return () if self.before is None or self.after is None else step_times(self.before, self.after)

    async def _look(self, drive: Drive) -> None:
        """Look at the processes, and keep Triton's counters: a server that dies leaves the last ones behind."""
        for watch in (self.processes, self.gpus):
            if watch:
                await asyncio.to_thread(watch.sample)
        begun_s, counters = drive.now_s(), await counters_of(self.config)
        self.cut_short = counters is None
        if counters is not None:
            if started_again(self.after or self.before or {}, counters):
                # Not from zero: before it was ready, its models warmed up, also those that the load never asks.
                self.started_again, self.before, self.before_s = True, counters, begun_s
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
