"""Soak test: many callers at once, every answer checked against the one that the product got alone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from likeness_client import AsyncClient, BatchError, InputError, LikenessError, Product, ServerInfo
from likeness_client.payloads import sendable
from numpy.typing import NDArray

from likeness_bench.figures import LoadReport
from likeness_bench.load import run_load
from likeness_bench.load_config import LoadConfig, open_client
from likeness_bench.tables import Table, counted
from likeness_bench.view import UNSEEN, View
from likeness_bench.workload import AS_THEY_ARE, Request, Workload, WorkloadConfig, reduce_to

_LARGEST_BATCH = 8
"""Requests hold 1 to this many products, each number equally often."""


@dataclass(kw_only=True)
class Checked:
    """What the answers were like.

    Attributes:
        tolerance: largest absolute difference between a product's embedding in the load and alone. Dynamic int8 makes
            embeddings that depend on their batch: it needs more than the rounding of fp32.
        expected: id of a product -> its embedding alone.
        largest_difference: over all answers, to the answer that the product got alone.
        wrong: embeddings beyond the tolerance, or in another order.
        signatures: answered products by signature.
    """

    tolerance: float
    expected: Mapping[int, NDArray[np.float32]]
    largest_difference: float = 0.0
    wrong: int = 0
    signatures: Counter[str] = field(default_factory=Counter)

    async def ask(self, client: AsyncClient, request: Request) -> None:
        """Send one request, and check and count its answer."""
        answer = await client.embed(request.left)
        expected = np.stack([self.expected[id(product)] for product in request.left])
        differences = np.abs(answer.vectors - expected).max(axis=1)
        self.signatures.update(answer.signatures)
        self.wrong += int((~(differences <= self.tolerance)).sum())
        self.largest_difference = float(np.maximum(self.largest_difference, differences.max()))  # NaN wins


@dataclass(frozen=True, kw_only=True)
class SoakReport:
    """What happened: the load, and whether its answers were right."""

    load: LoadReport
    checked: Checked

    @property
    def passed(self) -> bool:
        """Whether there were answers, and all of them right."""
        return self.load.latency is not None and not self.load.errors and not self.checked.wrong

    def table(self) -> Table:
        """Return what was checked."""
        found = self.checked
        rows = (
            ("products answered", str(found.signatures.total())),
            (
                "by signature",
                ", ".join(f"{name} {count}" for name, count in sorted(found.signatures.items())) or "none",
            ),
            ("largest difference to the answer alone", f"{found.largest_difference:.2g}"),
            ("wrong answers", str(found.wrong)),
        )
        return Table(title="Every answer beside the one that the product got alone", header=("", "value"), rows=rows)


async def run_soak(
    products: Sequence[Product], load: LoadConfig, *, tolerance: float, stop: asyncio.Event, view: View = UNSEEN
) -> SoakReport:
    """Load a server with mixed batches and check every answer, to the end or until ``stop`` is set. Nothing is retried.

    Args:
        products: what the batches are drawn from. Each loses some of its parts first, at random, so that all
            signatures meet.
        load: how the load is made; of its workload only the seed counts.
        tolerance: see `Checked`.
        stop: set it to get the report so far.
        view: is shown the load while it runs.

    Raises:
        LikenessError: no product can be sent, none is embedded alone, or it was stopped before the load.
    """
    alone: list[tuple[Product, NDArray[np.float32]]] = []
    refused: list[str] = []
    async with open_client(load) as client:
        info = await client.info()
        for product in await asyncio.to_thread(_different, products, info, load.workload.seed):
            if stop.is_set():  # what was not embedded alone could not be checked
                raise LikenessError("interrupted before the load: nothing was checked")
            try:
                alone.append((product, (await client.embed([product])).vectors[0]))
            except BatchError as error:  # a broken photo, for instance
                refused += [f"{product.product_id!r}: {found.reason}" for found in error.errors.values()]
    if not alone:
        raise InputError(f"none of {len(refused)} products is embedded, the first for this: {refused[0]}")
    workload = _workload([product for product, _ in alone], info, load.workload.seed)
    vectors = (vector for _, vector in alone)
    expected = {id(held): vector for held, vector in zip(workload.pools[AS_THEY_ARE], vectors, strict=True)}
    checked = Checked(tolerance=tolerance, expected=expected)
    load = replace(load, workload=workload.config)
    report = await run_load(workload, load, stop=stop, view=view, ask=checked.ask)
    if refused:
        note = f"{counted(len(refused), 'product')} not embedded even alone, and left out; the first: {refused[0]}"
        report = replace(report, notes=(*report.notes, note))
    return SoakReport(load=report, checked=checked)


def _different(products: Sequence[Product], info: ServerInfo, seed: int) -> list[Product]:
    """Return products of mixed signatures, one of those that travel alike."""
    mixed = list(_mixed(products, info, random.Random(seed)))
    if not mixed:
        raise InputError(f"none of {len(products)} products has {', '.join(info.modalities)}: give other products")
    (pool,) = Workload(mixed, info, WorkloadConfig()).pools.values()
    return pool


def _workload(pool: Sequence[Product], info: ServerInfo, seed: int) -> Workload:
    """Return requests of mixed sizes."""
    sizes = range(1, min(_LARGEST_BATCH, len(pool)) + 1)
    return Workload(pool, info, WorkloadConfig(batch_size=dict.fromkeys(sizes, 1.0), seed=seed))


def _mixed(products: Sequence[Product], info: ServerInfo, draw: random.Random) -> Iterator[Product]:
    """Keep each modality of a product by the toss of a coin, and one of them for certain."""
    for product in products:
        if there := list(sendable(product, info.schema, info.modalities)):
            certain = draw.choice(there)
            yield reduce_to(product, [name for name in there if name == certain or draw.random() < 0.5], info)
