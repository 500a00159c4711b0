"""A process of its own that runs the served pipeline without a server, and the side that asks it.

It is started afresh (spawned) and idles between its turns, so that neither the harness's event loop nor its memory is
in what is measured.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from likeness_client import LikenessError, MissingExtraError
from numpy.typing import NDArray

from likeness_bench.in_process import InProcessPipeline, Threads
from likeness_bench.running import signals_ignored

_POLL_S = 0.02  # how often the event loop looks for an answer
_END_S = 5.0  # how long the process may take to end, once it is to
_WINDOW = 8  # batches that are drawn together


class CeilingError(LikenessError):
    """The process that runs the pipeline failed; the message says how."""


class Item(NamedTuple):
    """A product as the server gets it: its signature, and the bytes of each of its modalities in that order."""

    signature: str
    parts: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was done in one turn, without its warm-up.

    Attributes:
        products_per_s: of all workers together.
        batch_s: how long each batch took, in seconds.
    """

    products_per_s: float
    batch_s: tuple[float, ...]


class CeilingProcess:
    """Starts the process, asks it, and ends it with the block that it is entered for.

    Args:
        repository: the model repository.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, repository: Path) -> None:
        if find_spec("onnxruntime") is None:
            raise MissingExtraError("serve", "`onnxruntime`")
        spawning = multiprocessing.get_context("spawn")
        self._connection, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_work, args=(theirs, repository.resolve()), daemon=True)
        # Ctrl-C and SIGTERM may reach both, and who asks decides. It inherits that: were it to say so itself, it would
        # be too late for what comes while it starts.
        with signals_ignored():
            self._process.start()
        theirs.close()  # or its end would not be seen here

    async def __aenter__(self) -> CeilingProcess:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connection.close()
        self._process.kill()  # it holds nothing that could be left half-written
        self._process.join(_END_S)

    async def take(self, items: Sequence[Item]) -> None:
        """Hand over the products of the turns that follow."""
        await self._ask("take", list(items))

    async def embed(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Return unit vectors FP32 [n, d]; NaN for items that cannot be read."""
        vectors: NDArray[np.float32] = await self._ask("embed", list(items))
        return vectors

    async def measure(self, threads: Threads, batch_size: int, warm_up_s: float, duration_s: float) -> Measured:
        """Embed the products over and over for some time, batches one after the other in each worker."""
        measured: Measured = await self._ask("measure", threads, batch_size, warm_up_s, duration_s)
        return measured

    async def _ask(self, what: str, *given: Any) -> Any:
        try:
            self._connection.send((what, given))
            while not self._connection.poll():
                await asyncio.sleep(_POLL_S)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(_END_S)
            raise CeilingError(
                f"the process that runs the networks ended with code {self._process.exitcode} (a negative one: by that "
                "signal; -9: memory, most likely)"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def _work(connection: Connection, repository: Path) -> None:
    """Answer questions until nobody asks any more."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the server has it; read when onnxruntime is imported
    worker = _Worker(repository)
    while True:
        try:
            what, given = connection.recv()
        except EOFError:
            return
        answer: Any
        try:
            answer = getattr(worker, what)(*given)
        except (LikenessError, ModuleNotFoundError) as error:
            answer = error
        except Exception as error:  # it must reach the one who asked, and not every exception can be sent
            answer = CeilingError(f"the pipeline failed in one process: {type(error).__name__}: {error}")
        try:
            connection.send(answer)
        except OSError:
            return


class _Worker:
    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.pipeline = InProcessPipeline(repository, Threads())
        self.items: list[Item] = []

    def take(self, items: list[Item]) -> None:
        self.items = items

    def embed(self, items: list[Item]) -> NDArray[np.float32]:
        rows = []
        for item in items:
            found = self.pipeline.embed(item.signature, [item.parts])
            rows.append(np.full_like(found.vectors, np.nan) if found.errors[0] else found.vectors)
        return np.concatenate(rows)

    def measure(self, threads: Threads, batch_size: int, warm_up_s: float, duration_s: float) -> Measured:
        if self.pipeline.threads != threads:  # the networks of two settings would fill the memory
            self.pipeline = InProcessPipeline(self.repository, threads)
        source, lock = batches(self.items, batch_size), threading.Lock()
        for signature in {item.signature for item in self.items}:  # loading is no part of the first batch
            self.pipeline.embed(signature, [next(item.parts for item in self.items if item.signature == signature)])
        begins = time.perf_counter() + warm_up_s
        with ThreadPoolExecutor(threads.workers) as pool:
            done = [
                pool.submit(_embed_until, self.pipeline, source, lock, begins, begins + duration_s)
                for _ in range(threads.workers)
            ]
        spans = [future.result() for future in done]
        return Measured(
            # Per worker from the start of its first batch to the end of its last one: no batch is cut in two.
            products_per_s=sum(sum(n for _, _, n in span) / (span[-1][1] - span[0][0]) for span in spans),
            batch_s=tuple(end - start for span in spans for start, end, _ in span),
        )


def _embed_until(
    pipeline: InProcessPipeline, source: Iterator[list[Item]], lock: threading.Lock, begins: float, ends: float
) -> list[tuple[float, float, int]]:
    """Embed batches until the time is up; return start, end and products of those that count, at least of one."""
    spans: list[tuple[float, float, int]] = []
    while True:
        with lock:
            batch = next(source)
        start = time.perf_counter()
        if start >= ends and spans:
            return spans
        pipeline.embed(batch[0].signature, [item.parts for item in batch])
        if start >= begins:
            spans.append((start, time.perf_counter(), len(batch)))


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Draw batches without end: full ones, each of one signature and of texts of like length, which pads least.

    Windows of some batches are given out in random order, so that no turn gets the short texts or one signature only.
    """
    draw, stream = random.Random(0), cycle(items)
    waiting: dict[str, list[Item]] = {}
    while True:
        for item in islice(stream, _WINDOW * size):
            waiting.setdefault(item.signature, []).append(item)
        window = []
        for signature, members in waiting.items():
            full = len(members) // size * size
            like = sorted(members[:full], key=lambda item: len(item.parts[0]))
            window += [like[start : start + size] for start in range(0, full, size)]
            waiting[signature] = members[full:]
        draw.shuffle(window)
        yield from window
