"""Blocks of learned scores through a server: how fast they come, and what client and server hold meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import psutil  # type: ignore[import-untyped]  # ships no type information
from likeness_bench.processes import look
from likeness_client import Client, LikenessError, Metric

from comparisons.configs import BlocksConfig
from comparisons.measured import Measurement, Quantity, Take, measure
from comparisons.memory import SERVER_EVERY_S, high_water_mb, watching
from comparisons.rounds import ComparisonError
from comparisons.servers import process_of
from comparisons.vectors import drawn, parts_of

AT_ONCE = "at once"
PAIRS_PER_S = Quantity(name="10^3 pairs/s", digits=1, higher_is_better=True, compared=True)
CLIENT_MB = Quantity(name="client, peak MB", digits=0, compared=True)
GROWTH_MB = Quantity(name="of it for the scores, MB", digits=1)
SERVER_MB = Quantity(name="server, peak MB", digits=0)
_TIMEOUT_S = 120.0
_WARM_UP = 100  # rows and columns of a block before anything counts


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a client says of its work: its time, its memory before, and the most that it held."""

    seconds: float
    before_mb: float
    peak_mb: float


def measure_learned(config: BlocksConfig, address: str) -> Measurement:
    """Ask a server for a block at once, and in chunks; every turn is a client in a new process.

    Raises:
        LikenessError: the server fails, or cannot be seen.
    """
    server = process_of(address)
    with Client(address, timeout_s=_TIMEOUT_S) as client:
        dimension = client.info().dimension
    contenders: dict[str, Take] = {AT_ONCE: partial(_take, server, config, address, config.candidates)}
    if (chunk := config.chunk) < config.candidates:
        contenders[f"{chunk:,} candidates at a time"] = partial(_take, server, config, address, chunk)
    return measure(
        title=f"{config.queries:,} x {config.candidates:,} learned, served, d = {dimension}",
        contenders=contenders,
        rounds=config.rounds,
        quantities=(PAIRS_PER_S, CLIENT_MB, GROWTH_MB, SERVER_MB),
        pairs=tuple((name, AT_ONCE) for name in list(contenders)[1:]),
    )


def ask(config: BlocksConfig, address: str, chunk: int) -> Answered | str:
    """Ask for a block; runs in a process of its own, whose memory is the client's.

    Args:
        config: says how large it is.
        address: of the server.
        chunk: candidates of one call of the client's method.

    Returns:
        What it took, or why it failed: not every error can travel from one process to another.
    """
    try:
        return _ask(config, address, chunk)
    except LikenessError as error:
        return str(error)


def _ask(config: BlocksConfig, address: str, chunk: int) -> Answered:
    with Client(address, timeout_s=_TIMEOUT_S) as client:
        info = client.info()
        left = drawn(config.queries, info.dimension, info.space, seed=1)
        right = drawn(config.candidates, info.dimension, info.space, seed=2)
        few = (next(parts_of(side, _WARM_UP)) for side in (left, right))
        client.similarity_matrix(*few, metric=Metric.LEARNED)
        before_mb = psutil.Process().memory_info().rss / 1e6
        began = time.perf_counter()
        for part in parts_of(right, chunk):
            client.similarity_matrix(left, part, metric=Metric.LEARNED)
        seconds = time.perf_counter() - began
    # The kernel keeps the two apart, each a little late: without growth the peak can read some pages below.
    return Answered(seconds=seconds, before_mb=before_mb, peak_mb=max(before_mb, high_water_mb(os.getpid())))


def _take(server: psutil.Process, config: BlocksConfig, address: str, chunk: int, _round: int) -> Mapping[str, float]:
    try:
        with (
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
            watching(lambda: look(server).rss_mb, SERVER_EVERY_S) as peak,
        ):
            found = pool.submit(ask, config, address, chunk).result()
    except BrokenProcessPool as error:
        raise ComparisonError("the client of a block of learned scores was killed: give fewer --candidates") from error
    if isinstance(found, str):
        raise ComparisonError(f"a block of learned scores failed: {found}")
    return {
        PAIRS_PER_S.name: config.queries * config.candidates / found.seconds / 1e3,
        CLIENT_MB.name: found.peak_mb,
        GROWTH_MB.name: found.peak_mb - found.before_mb,
        SERVER_MB.name: peak.mb,
    }
