"""Closed loops in alternation: every contender gets the same requests in turn, round after round, in one run.

The speed of a machine drifts, so only contenders that were measured one after the other, several times, are compared:
by the ratio within each round, and the median of these ratios.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from likeness_bench.drive import REFUSED_PAUSE_S, seldom_paused
from likeness_bench.figures import Percentiles
from likeness_client import InputError, LikenessError, Product
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
    """How contenders are measured.

    Attributes:
        concurrency: callers that each send their next request when the answer to the last one has come.
        batch_size: products per request.
        rounds: how often each contender has its turn.
        turn_s: measured time of a turn.
        warm_up_s: load before that, which is not counted.
        timeout_s: the deadline of every request.
    """

    concurrency: int = 16
    batch_size: int = 1
    rounds: int = 5
    turn_s: float = 20.0
    warm_up_s: float = 3.0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.batch_size < 1 or self.rounds < 1:
            raise InputError("concurrency, batch_size and rounds must be at least 1")
        seconds = self.turn_s, self.timeout_s, self.warm_up_s
        if not (min(seconds[:2]) > 0 <= self.warm_up_s and all(map(isfinite, seconds))):
            raise InputError("turn_s and timeout_s must be above 0, warm_up_s at least 0, and all of them finite")


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


RequestsOf = Callable[[int], Iterator[Sequence[Product]]]
"""Makes the endless requests of a round from its number: the same ones for every contender of that round."""


async def alternate(contenders: Sequence[Contender], requests_of: RequestsOf, config: RoundsConfig) -> Turns[LoadTurn]:
    """Measure all contenders in turn, round after round.

    One that answers nothing in its turn has failed, and so has one that answers nothing more in the second half of it
    while requests fail.
    """
    named = {contender.name: contender for contender in contenders}
    turns = Turns[LoadTurn](named, config.rounds)
    for name, number in turns:
        with turns.of(name, number):
            turn = _Load(contender=named[name], requests=requests_of(number), config=config)
            found = await _uncancelled(turn.run(number))
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


@dataclass(kw_only=True)
class _Load:
    """One contender under load for the length of one turn."""

    contender: Contender
    requests: Iterator[Sequence[Product]]
    config: RoundsConfig
    answered: list[tuple[float, float, int]] = field(default_factory=list)  # sent, received, products
    failures: int = 0
    example: str = ""

    async def run(self, number: int) -> LoadTurn:
        """Make the load.

        Raises:
            ComparisonError: nothing was answered, or nothing any more in the second half, while requests failed.
        """
        with seldom_paused():
            begins = time.perf_counter() + self.config.warm_up_s
            ends = begins + self.config.turn_s
            cpu_before_s, began = time.process_time(), time.perf_counter()
            await asyncio.gather(*(self._caller(ends) for _ in range(self.config.concurrency)))
            cores = (time.process_time() - cpu_before_s) / (time.perf_counter() - began)
        latency = Percentiles.of([received - sent for sent, received, _ in self.answered if sent >= begins])
        in_time = [products for _, received, products in self.answered if begins <= received <= ends]
        if not in_time:
            reason = self.example or f"no answer within {self.config.turn_s:g} s; give a longer --turn-s"
            raise ComparisonError(f"it answered nothing: {reason}")
        if self.failures and max(received for _, received, _ in self.answered) < (begins + ends) / 2:
            raise ComparisonError(f"it answered nothing any more in the second half of its turn: {self.example}")
        return LoadTurn(
            contender=self.contender.name,
            number=number,
            products_per_s=sum(in_time) / self.config.turn_s,
            requests=len(in_time),
            failures=self.failures,
            p50_ms=latency.p50_ms if latency else None,
            p99_ms=latency.p99_ms if latency else None,
            harness_cores=cores,
            example=self.example,
        )

    async def _caller(self, ends: float) -> None:
        while (sent := time.perf_counter()) < ends:
            products = next(self.requests)
            try:
                async with asyncio.timeout(self.config.timeout_s):
                    await self.contender.embed(products)
            except TimeoutError:
                await self._failed(f"no answer within {self.config.timeout_s:g} s")
            except LikenessError as error:
                await self._failed(str(error))
            else:
                self.answered.append((sent, time.perf_counter(), len(products)))

    async def _failed(self, reason: str) -> None:
        self.failures += 1
        self.example = self.example or reason
        await asyncio.sleep(REFUSED_PAUSE_S)
