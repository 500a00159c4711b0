"""Closed loops in alternation: every contender gets the same requests in turn, round after round, in one run.

The speed of a machine drifts, so only contenders that were measured one after the other, several times, are compared:
by the ratio within each round, and the median of these ratios.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from likeness_bench.drive import REFUSED_PAUSE_S, Drive, LoadConfig, seldom_paused
from likeness_bench.figures import Percentiles, latency_s
from likeness_bench.workload import Request
from likeness_client import LikenessError, Product
from numpy.typing import NDArray

from comparisons.turns import Turns

Embed = Callable[[Sequence[Product]], Awaitable[NDArray[np.float32]]]
"""Turns products into one vector each, FP32 [n, d]; raises a `LikenessError` when it cannot."""


class ComparisonError(LikenessError):
    """A comparison cannot be made, or would compare what is not comparable."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to serve.

    Attributes:
        name: as it is read in tables.
        embed: sends one request and waits for its answer.
    """

    name: str
    embed: Embed


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """What every comparison of servers under load has.

    Attributes:
        products: file with products.
        count: how many of them to use.
        environments: where other programs are installed; logs and copies of repositories, too.
        load: how a turn is made, a closed loop; its address does not count.
        rounds: how often each contender has its turn.
    """

    products: Path
    count: int
    environments: Path
    load: LoadConfig
    rounds: int


@dataclass(frozen=True, kw_only=True)
class LoadTurn:
    """What one turn of one contender gave.

    Attributes:
        contender: its name.
        number: of the round, from 1.
        products_per_s: products answered within the measured time.
        requests: how many were sent in that time and answered; None where it is not told.
        failures: how many requests failed, the warm-up included; None where it is not told.
        p50_ms: median latency of the answered requests; None without any.
        p99_ms: the 99th percentile.
        harness_cores: CPU time of the measuring process per second; it is taken from servers of the same machine.
        example: what the first failure said.
    """

    contender: str
    number: int
    products_per_s: float
    requests: int | None
    failures: int | None = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    harness_cores: float | None = None
    example: str = ""

    def said(self) -> str:
        """Say the speed, and what failed."""
        failed = f", {self.failures} failed ({self.example})" if self.failures else ""
        return f"{self.products_per_s:.1f} products/s{failed}"


RequestsOf = Callable[[int], Iterator[Request]]
"""Makes the endless requests of a round from its number: the same ones for every contender of that round."""


async def alternate(
    contenders: Sequence[Contender], requests_of: RequestsOf, load: LoadConfig, rounds: int
) -> Turns[LoadTurn]:
    """Measure all contenders in turn, round after round.

    One that answers nothing in its turn has failed, and so has one that answers nothing more in the second half of it
    while requests fail.

    Args:
        contenders: the ways to serve.
        requests_of: what to send.
        load: see `RoundsConfig`.
        rounds: likewise.
    """
    named = {contender.name: contender for contender in contenders}
    turns = Turns[LoadTurn](named, rounds)
    for name, number in turns:
        with turns.of(name, number):
            found = await _uncancelled(_turn(named[name], number, requests_of(number), load))
            turns.add(name, number, found, found.said())
    return turns


async def _uncancelled(turn: Coroutine[None, None, LoadTurn]) -> LoadTurn:
    """Await a turn; asyncio makes Ctrl-C a cancellation of the task, which here is to go on without this turn."""
    try:
        return await turn
    except asyncio.CancelledError as error:
        if task := asyncio.current_task():
            task.uncancel()
        raise KeyboardInterrupt from error


async def _turn(contender: Contender, number: int, requests: Iterator[Request], load: LoadConfig) -> LoadTurn:
    """Put one contender under load.

    Raises:
        ComparisonError: nothing was answered, or nothing any more in the second half, while requests failed.
    """

    async def ask(request: Request) -> None:
        try:
            await contender.embed(request.left)
        except LikenessError as error:
            await asyncio.sleep(REFUSED_PAUSE_S)  # after any failure: an HTTP service refuses in ways of its own
            raise ComparisonError(str(error)) from error

    drive = Drive(config=load, requests=requests, ask=ask, stop=asyncio.Event())
    with seldom_paused():
        cpu_before_s = time.process_time()
        await drive.run()
        cores = (time.process_time() - cpu_before_s) / drive.now_s()
    answered = [record for record in drive.records if not record.error]
    latency = Percentiles.of([latency_s(record) for record in answered if record.scheduled_s >= load.warm_up_s])
    in_time = [record.products for record in answered if load.warm_up_s <= record.finished_s <= load.length_s]
    example = next((record.message for record in drive.records if record.error), "")
    if not in_time:
        raise ComparisonError(
            f"it answered nothing: {example or f'no answer within {load.duration_s:g} s; give a longer --turn-s'}"
        )
    if drive.failed and max(record.finished_s for record in answered) < load.warm_up_s + load.duration_s / 2:
        raise ComparisonError(f"it answered nothing any more in the second half of its turn: {example}")
    return LoadTurn(
        contender=contender.name,
        number=number,
        products_per_s=sum(in_time) / load.duration_s,
        requests=len(in_time),
        failures=drive.failed,
        p50_ms=latency.p50_ms if latency else None,
        p99_ms=latency.p99_ms if latency else None,
        harness_cores=cores,
        example=example,
    )
