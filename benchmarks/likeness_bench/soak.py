"""Soak test: many callers at once, every answer checked against the one that the product got alone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from likeness_client import AsyncClient, InputError, Product, ProductError, ServerInfo
from likeness_client.payloads import payloads
from numpy.typing import NDArray

from likeness_bench.drive import LoadConfig, open_client
from likeness_bench.figures import LoadReport
from likeness_bench.load import run_load
from likeness_bench.tables import Table
from likeness_bench.view import UNSEEN, View
from likeness_bench.workload import AS_THEY_ARE, Request, Workload, WorkloadConfig, reduce_to


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """What load to make.

    Attributes:
        address: the server's gRPC endpoint.
        clients: callers who each send their next request when the answer to the last one has come (closed loop).
        seconds: how long.
        max_batch: requests hold 1 to this many products, each number as often.
        tolerance: largest absolute difference between a product's embedding in the load and alone. Dynamic int8 makes
            embeddings that depend on their batch: it needs more than the rounding of fp32.
        timeout_s: the deadline of every request.
        seed: of the draws.
        gateway: see `LoadConfig`.
    """

    address: str
    clients: int = 16
    seconds: float = 30.0
    max_batch: int = 8
    tolerance: float = 1e-4
    timeout_s: float = 10.0
    seed: int = 7
    gateway: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(kw_only=True)
class Checked:
    """What the answers were like.

    Attributes:
        tolerance: from which difference on an embedding is wrong.
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

    async def ask(self, client: AsyncClient, request: Request, _: WorkloadConfig) -> None:
        """Send one request, and check and count its answer."""
        answer = await client.embed(request.left)
        expected = np.stack([self.expected[id(product)] for product in request.left])
        differences = np.abs(answer.vectors - expected).max(axis=1)
        self.signatures.update(answer.signatures)
        self.wrong += int((~(differences <= self.tolerance)).sum())
        self.largest_difference = max(self.largest_difference, float(differences.max()))


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
            ("largest difference to the answer alone", f"{found.largest_difference:.1e}"),
            ("wrong answers", str(found.wrong)),
        )
        return Table(title="Every answer beside the one that the product got alone", header=("", "value"), rows=rows)


async def run_soak(
    products: Sequence[Product], config: SoakConfig, *, stop: asyncio.Event, view: View = UNSEEN
) -> SoakReport:
    """Load a server with mixed batches and check every answer, to the end or until ``stop`` is set. Nothing is retried.

    Args:
        products: what the batches are drawn from. Each loses some of its parts first, at random, so that all
            signatures meet.
        config: the load.
        stop: set it to get the report so far.
        view: is shown the load while it runs.

    Raises:
        LikenessError: no product can be sent, or one of them cannot be embedded even alone.
    """
    load = LoadConfig(
        address=config.address,
        concurrency=config.clients,
        duration_s=config.seconds,
        warm_up_s=0.0,
        timeout_s=config.timeout_s,
        workload=WorkloadConfig(seed=config.seed),
        gateway=config.gateway,
    )
    async with open_client(load) as client:
        info = await client.info()
        workload = await asyncio.to_thread(_workload, products, info, load.workload, config.max_batch)
        pool = workload.pools[AS_THEY_ARE]
        alone = {id(product): (await client.embed([product])).vectors[0] for product in pool if not stop.is_set()}
    checked = Checked(tolerance=config.tolerance, expected=alone)
    load = replace(load, workload=workload.config)
    return SoakReport(load=await run_load(workload, load, stop=stop, view=view, ask=checked.ask), checked=checked)


def _workload(products: Sequence[Product], info: ServerInfo, config: WorkloadConfig, max_batch: int) -> Workload:
    """Return requests of mixed signatures and sizes."""
    mixed = list(_mixed(products, info, random.Random(config.seed)))
    if not mixed:
        raise InputError(f"none of {len(products)} products has {', '.join(info.modalities)}: give other products")
    (pool,) = Workload(mixed, info, config).pools.values()  # without those that travel alike
    sizes = range(1, min(max_batch, len(pool)) + 1)
    return Workload(pool, info, replace(config, batch_size=dict.fromkeys(sizes, 1.0)))


def _mixed(products: Sequence[Product], info: ServerInfo, draw: random.Random) -> Iterator[Product]:
    """Keep each modality of a product by the toss of a coin, and one of them for certain."""
    for product in products:
        try:
            there = list(payloads(product, info.schema, info.modalities))
        except ProductError:
            continue
        certain = draw.choice(there)
        yield reduce_to(product, [name for name in there if name == certain or draw.random() < 0.5], info)
