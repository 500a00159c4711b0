"""Closed loops in alternation: every contender gets the same requests in turn, round after round, in one run.

The speed of a machine drifts, so only contenders that were measured one after the other, several times, are compared:
by the ratio within each round, and the median of these ratios.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from likeness_bench.drive import REFUSED_PAUSE_S, Drive, seldom_paused
from likeness_bench.figures import ENOUGH, Percentiles, latency_s, too_few
from likeness_bench.load_config import LoadConfig
from likeness_bench.workload import Request
from likeness_client import LikenessError, Product
from numpy.typing import NDArray

from comparisons.measured import Measurement, Quantity
from comparisons.turns import Turns

Embed = Callable[[Sequence[Product]], Awaitable[NDArray[np.float32]]]
"""Turns products into one vector each, FP32 [n, d]; raises a `LikenessError` when it cannot."""


class ComparisonError(LikenessError):
    """A comparison cannot be made, or would compare what is not comparable."""


PRODUCTS_PER_S = Quantity(name="products/s", higher_is_better=True, compared=True)
P50_MS, P99_MS = Quantity(name="p50 ms"), Quantity(name="p99 ms")
CLIENT_CORES = Quantity(name="client cores", digits=2)
REQUESTS, FAILED = Quantity(name="requests", digits=0), Quantity(name="failed", digits=0)
OF_LOADS = (PRODUCTS_PER_S, P50_MS, P99_MS, CLIENT_CORES, REQUESTS, FAILED)
"""The figures of closed loops. Products and requests are those answered within the measured time, latencies those of
requests sent in it; failures count from the warm-up on. Client cores are CPU seconds of this process per second."""


class LoadTurn(NamedTuple):
    """What one turn of a closed loop gave: its figures, see `of_load`, and what the first failure said."""

    values: dict[str, float]
    example: str = ""


RequestsOf = Callable[[int], Iterator[Request]]
"""Makes the endless requests of a round from its number: the same ones for every contender of that round."""


async def alternate(contenders: Mapping[str, Embed], requests_of: RequestsOf, load: LoadConfig, rounds: int) -> Turns:
    """Measure all contenders in turn, round after round.

    One that answers nothing in its turn has failed, and so has one that answers nothing more in the second half of it
    while requests fail.

    Args:
        contenders: the ways to serve, by name.
        requests_of: what to send.
        load: how a turn is made, a closed loop; its address does not count.
        rounds: how often each has its turn.
    """
    turns = Turns(contenders, rounds)
    for name, number in turns:
        with turns.of(name, number):
            add_load(turns, name, number, await _uncancelled(_turn(contenders[name], requests_of(number), load)))
    return turns


def add_load(turns: Turns, name: str, number: int, found: LoadTurn) -> None:
    """Keep what a turn gave, and say its speed and what failed."""
    said = f"{found.values[PRODUCTS_PER_S.name]:.1f} products/s"
    if found.example:
        turns.remarks.setdefault(name, f"requests of {name} failed, the first one said: {found.example}")
        said += f", {found.values[FAILED.name]:.0f} failed ({found.example})"
    turns.add(name, number, found.values, said)


def of_load(*values: float | None) -> dict[str, float]:
    """Name the figures of a closed loop, which are in the order of `OF_LOADS`; None: it is not told."""
    named = zip(OF_LOADS, values, strict=True)
    return {quantity.name: float(value) for quantity, value in named if value is not None}


def of_loads(title: str, turns: Turns, pairs: tuple[tuple[str, str], ...]) -> Measurement:
    """Return what contenders reached in closed loops, as a section of a report.

    Args:
        title: what was sent, and by how many.
        turns: those of the contenders.
        pairs: who is compared with whom, by products/s.
    """
    return Measurement.of(title, turns, OF_LOADS, pairs, _doubts([turn.values for turn in turns.found]))


def _doubts(turns: Sequence[Mapping[str, float]]) -> Iterator[str]:
    if any(values.get(CLIENT_CORES.name, 0.0) > 0.9 for values in turns):
        yield "the measuring process used a whole core: it may be the limit, not the server"
    fewest = min((int(values[REQUESTS.name]) for values in turns if REQUESTS.name in values), default=ENOUGH)
    if doubt := too_few(fewest):
        yield f"a turn had {doubt}; give a longer --turn-s"


async def _uncancelled(turn: Coroutine[None, None, LoadTurn]) -> LoadTurn:
    """Await a turn; asyncio makes Ctrl-C a cancellation of the task, which here is to go on without this turn."""
    try:
        return await turn
    except asyncio.CancelledError as error:
        if task := asyncio.current_task():
            task.uncancel()
        raise KeyboardInterrupt from error


async def _turn(embed: Embed, requests: Iterator[Request], load: LoadConfig) -> LoadTurn:
    """Put one contender under load.

    Raises:
        ComparisonError: nothing was answered, or nothing any more in the second half, while requests failed.
    """

    async def ask(request: Request) -> None:
        try:
            await embed(request.left)
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
    tails = (latency.p50_ms, latency.p99_ms) if latency else (None, None)
    return LoadTurn(of_load(sum(in_time) / load.duration_s, *tails, cores, len(in_time), drive.failed), example)
