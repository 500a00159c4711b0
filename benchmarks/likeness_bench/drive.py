"""Sending the load from one event loop, and noting what became of every request."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from likeness_client import (
    AsyncClient,
    DeadlineExceededError,
    LikenessError,
    OverloadedError,
    ServerUnavailableError,
)

from likeness_bench.arrivals import arrival_times
from likeness_bench.load_config import LoadConfig
from likeness_bench.workload import OperationKind, Request

REFUSED_PAUSE_S = 0.1
"""How long a closed loop waits after a refused call; who refuses at once would be asked as fast as it can refuse."""
_REFUSALS = (ServerUnavailableError.__name__, OverloadedError.__name__)
NOT_SENT = "NotSent"
"""Kind of the error rows of requests that the harness was too late for, by more than their deadline."""
_SELDOM = 100  # times as many collections of the younger generations between two of all
_GRACE_S = 2.0  # for calls in flight when a run is stopped
_TICK_S = 0.01  # between two looks at the harness's own lateness


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What became of one request; times in seconds from the start of the run.

    Attributes:
        scheduled_s: when it should have been sent; in a closed loop, when it was.
        started_s: when it was sent.
        finished_s: when its answer or its error was there.
        products: how many products it sent.
        repeated: whether it sent only products that had been sent before.
        worn: whether it did so without being drawn as a repeat: the products have run out.
        operation: what it asked for.
        signature: the part of the mix that it is of.
        error: kind of the error; empty when it was answered.
        message: what the error said.
    """

    scheduled_s: float
    started_s: float
    finished_s: float
    products: int
    repeated: bool
    worn: bool
    operation: OperationKind
    signature: str
    error: str = ""
    message: str = ""


Ask: TypeAlias = Callable[[AsyncClient, Request], Awaitable[None]]
"""Sends one request and waits for its answer; raises a `LikenessError` when it failed as a whole or in part."""


async def ask(client: AsyncClient, request: Request) -> None:
    """Send one request and wait for its answer.

    Raises:
        LikenessError: it failed as a whole or in part.
    """
    if request.operation is OperationKind.EMBED:
        await client.embed(request.left)
    elif request.operation is OperationKind.SIMILARITY:
        await client.similarity(request.left, request.right, metric=request.metric)
    else:
        await client.similarity_matrix(request.left, request.right, metric=request.metric)


@dataclass
class Drive:
    """One run of a load. Its records grow while it runs.

    Attributes:
        config: the load; its address does not count.
        requests: what to send, without end.
        ask: sends one request and waits for its answer, see `Ask`.
        stop: set it to end the run early.
        records: every request that has ended.
        failed: how many of them failed.
        in_flight: how many are on their way.
        unfinished: how many were on their way when the run was stopped.
        elapsed_s: how long requests were sent.
    """

    config: LoadConfig
    requests: Iterator[Request]
    ask: Callable[[Request], Awaitable[None]]
    stop: asyncio.Event
    records: list[Record] = field(default_factory=list)
    failed: int = 0
    in_flight: int = 0
    unfinished: int = 0
    elapsed_s: float = 0.0

    def __post_init__(self) -> None:
        self._seen: set[int] = set()
        self._tasks: set[asyncio.Task[Record]] = set()
        self._closing = False
        self.started = time.perf_counter()

    def now_s(self) -> float:
        """Return the seconds since the start of the run."""
        return time.perf_counter() - self.started

    async def run(self) -> None:
        """Send until the time is up or `stop` is set, then wait for what is still on its way."""
        self.started = time.perf_counter()
        try:
            await self._unless_stopped(self._open_loop() if self.config.rate is not None else self._closed_loop())
            self.elapsed_s = min(self.now_s(), self.config.length_s)
            await self._unless_stopped(self._drain())  # ends: every request has a deadline
            self.unfinished, self._closing = len(self._tasks), True
            if self._tasks:  # they count no longer, but a server of before 2025 may crash when a call is cancelled
                await asyncio.wait(set(self._tasks), timeout=_GRACE_S)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _open_loop(self) -> None:
        config = self.config
        assert config.rate is not None
        for at_s in arrival_times(config.arrivals, config.rate, config.length_s, config.workload.seed).tolist():
            # Also when it is late, the loop gets a turn: answers must be taken in meanwhile.
            await asyncio.sleep(max(0.0, at_s - self.now_s()))
            if self.now_s() - at_s <= config.timeout_s:
                self._start(self._send(next(self.requests), at_s))
            else:  # the run must end, and what was due must not be forgotten
                self._note(
                    next(self.requests), at_s, self.now_s(), NOT_SENT, "the harness could not keep up: send less"
                )
        await asyncio.sleep(max(0.0, config.length_s - self.now_s()))

    async def _closed_loop(self) -> None:
        async def caller() -> None:
            while self.now_s() < self.config.length_s:
                task = self._start(self._send(next(self.requests), self.now_s()))
                await asyncio.wait([task])  # unlike `await task`, this leaves the task alone when it is cancelled
                if task.result().error in _REFUSALS:
                    await asyncio.sleep(REFUSED_PAUSE_S)

        await asyncio.gather(*(caller() for _ in range(self.config.concurrency or 0)))

    async def _drain(self) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self.config.timeout_s + 1.0)

    async def _unless_stopped(self, work: Awaitable[None]) -> None:
        """Do something until it is done or `stop` is set."""
        running, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()  # a mistake of the harness is not an error row
        finally:
            running.cancel()
            stopping.cancel()
            await asyncio.gather(running, stopping, return_exceptions=True)

    def _start(self, sending: Coroutine[Any, Any, Record]) -> asyncio.Task[Record]:
        task = asyncio.create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send(self, request: Request, scheduled_s: float) -> Record:
        """Send one request and note what became of it."""
        started_s, error, message = self.now_s(), "", ""
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.config.timeout_s):
                await self.ask(request)
        except TimeoutError:
            error, message = DeadlineExceededError.__name__, f"no answer within {self.config.timeout_s:g} s"
        except LikenessError as failure:
            error, message = type(failure).__name__, str(failure)
        except Exception as failure:  # not by design, but a report that names it is worth more than no report
            error, message = type(failure).__name__, repr(failure)
        finally:
            self.in_flight -= 1
        return self._note(request, scheduled_s, started_s, error, message)

    def _note(self, request: Request, scheduled_s: float, started_s: float, error: str, message: str) -> Record:
        repeated = error != NOT_SENT and self._repeats(request)
        record = Record(
            scheduled_s=scheduled_s,
            started_s=started_s,
            finished_s=self.now_s(),
            products=request.products,
            repeated=repeated,
            worn=repeated and not request.again,
            operation=request.operation,
            signature=request.signature,
            error=error,
            message=message,
        )
        if not self._closing:  # a cancelled call may come back as an error of the server
            self.records.append(record)
            self.failed += bool(error)
        return record

    def _repeats(self, request: Request) -> bool:
        """Say whether all of a request was sent before; the workload keeps its products, so their ids stay theirs."""
        sent = {id(product) for product in (*request.left, *request.right)}
        repeated = sent <= self._seen
        self._seen |= sent
        return repeated


@contextmanager
def seldom_paused() -> Iterator[None]:
    """Collect garbage before a block, and have Python collect that of all generations seldom while it lasts.

    Such a collection takes some 0.1 s, in which nothing is sent or taken in. In a closed loop there is one every other
    second, and what it holds up would be taken for the slowest answers of the server.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(*before[:2], _SELDOM * before[2])  # not never: failed calls leave such garbage behind
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def ticking(lags_s: list[float]) -> None:
    """Note how late the event loop wakes from a timer, until cancelled: the harness's own share of any delay.

    Args:
        lags_s: takes the delays, in seconds.
    """
    while True:
        due = time.perf_counter() + _TICK_S
        await asyncio.sleep(_TICK_S)
        lags_s.append(time.perf_counter() - due)


async def stopped_within(stop: asyncio.Event, wait_s: float) -> bool:
    """Wait for some seconds; return at once, and true, when ``stop`` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), max(0.0, wait_s))
    return stop.is_set()
