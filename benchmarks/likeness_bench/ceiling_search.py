"""Finding the ceiling: which use of the cores, and which batch size, embeds the most products in one process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from joblib import cpu_count
from likeness_client import Product, ServerInfo, SpaceMismatchError
from likeness_client.contract import modalities_of, signature_of
from likeness_client.payloads import payloads

from likeness_bench.ceiling_process import CeilingError, CeilingProcess, Item, Measured
from likeness_bench.ceiling_report import Trial
from likeness_bench.configs import cpu_threads_of, space_of
from likeness_bench.in_process import Threads, uses_of
from likeness_bench.load_config import LoadConfig, open_client
from likeness_bench.view import View
from likeness_bench.workload import Workload

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_FINALISTS = 3  # ways that are tried twice
_CHECKED = 8  # products whose embeddings are compared first


@dataclass(kw_only=True)
class Ceiling:
    """The networks of a repository in one process, and the ways to run them that were tried.

    Attributes:
        process: runs them.
        repository: the model repository.
        trial_s: how long each way is tried.
        stop: when it is set, nothing more is tried or measured.
        view: is told what happens next.
        tried: what was tried; the first ones, the fastest, twice.
    """

    process: CeilingProcess
    repository: Path
    trial_s: float
    stop: asyncio.Event
    view: View
    tried: list[Trial] = field(default_factory=list)

    async def find(self, name: str) -> None:
        """Try every use of the cores with every batch size, and the fastest of them once more.

        Args:
            name: of what the process has taken, for those who are told.

        Raises:
            CeilingError: the process fails.
        """
        ways = [
            (threads, size) for threads in uses_of(cpu_count(), cpu_threads_of(self.repository)) for size in BATCH_SIZES
        ]
        tried = [await self._try(name, threads, size) for threads, size in ways if not self.stop.is_set()]
        tried.sort(key=lambda trial: -trial.products_per_s)
        for place, first in enumerate(tried[:_FINALISTS]):  # a lucky moment must not decide
            if not self.stop.is_set():
                again = await self._try(name, first.threads, first.batch_size)
                mean = (first.products_per_s + again.products_per_s) / 2
                tried[place] = replace(again, products_per_s=mean)
        self.tried = tried

    @property
    def best(self) -> Trial:
        """The ceiling: the fastest of those that were tried twice."""
        return max(self.tried[:_FINALISTS], key=lambda trial: trial.products_per_s)

    @property
    def alone(self) -> Trial:
        """The way to compute a single product that is fastest."""
        alone = (trial for trial in self.tried if trial.batch_size == 1 and trial.threads.workers == 1)
        return min(alone, key=lambda trial: trial.p50_ms)

    async def turn(self, trial: Trial, warm_up_s: float, duration_s: float) -> Measured | None:
        """Run the networks in one way for some time; None when that was stopped before.

        Raises:
            CeilingError: the process fails.
        """
        if self.stop.is_set():
            return None
        return await self.process.measure(trial.threads, trial.batch_size, warm_up_s, duration_s)

    async def _try(self, name: str, threads: Threads, batch_size: int) -> Trial:
        self.view.say(f"{name}: in one process, {threads.name}, batches of {batch_size}")
        found = await self.process.measure(threads, batch_size, self.trial_s / 4, self.trial_s)
        return Trial(threads=threads, batch_size=batch_size, products_per_s=found.products_per_s, p50_ms=p50_ms(found))


async def largest_difference(process: CeilingProcess, workload: Workload, load: LoadConfig) -> float:
    """Return how far the embeddings of the server and of the one process lie apart, in their largest component.

    Args:
        process: runs the networks.
        workload: some of its products, of each part of its mix, are embedded by both.
        load: says where the server is.

    Raises:
        LikenessError: one side fails.
    """
    products = [product for pool in workload.pools.values() for product in pool[:_CHECKED]]
    async with open_client(load) as client:
        served = await client.embed(products, on_error="return")
    alone = await process.embed([item_of(product, workload.info) for product in products])
    apart = np.abs(served.vectors - alone)
    if np.isnan(apart).all():
        raise CeilingError(f"none of {len(products)} products was embedded by both sides, so nothing can be compared")
    return float(np.nanmax(apart))


def check_same_space(repository: Path, info: ServerInfo, address: str) -> None:
    """See that a server serves this repository.

    Raises:
        SpaceMismatchError: it serves another one.
        InputError: this is no repository.
    """
    if (space := space_of(repository)) != info.space:
        raise SpaceMismatchError(
            f"{address} serves the space {info.space}, {repository} holds {space}: give the repository that is served"
        )


def drawn_items(workload: Workload) -> list[Item]:
    """Return the products of a load's first requests as the server gets them: as many as it has different ones."""
    count = sum(len(pool) for pool in workload.pools.values())
    requests = workload.requests(workload.config.seed)
    products = chain.from_iterable(request.left for request in requests)
    return [item_of(product, workload.info) for product, _ in zip(products, range(count), strict=False)]


def item_of(product: Product, info: ServerInfo) -> Item:
    """Return a product as the server gets it.

    Raises:
        ProductError: it has nothing that the server embeds, or a part cannot be read.
    """
    found = payloads(product, info.schema, info.modalities)
    signature = signature_of(found)
    return Item(signature, tuple(found[name] for name in modalities_of(signature)))


def p50_ms(measured: Measured) -> float:
    """Return the median time of a batch."""
    return 1000 * float(np.median(measured.batch_s))
