"""Many callers at once: nobody fails, nobody gets the answer of another, and no answer depends on the company.

`LIKENESS_LOAD_S` sets how long each test keeps it up.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from threading import Barrier

import numpy as np
import pytest
from likeness_client import AsyncClient, Client, Embeddings, Metric, Product, Scores
from likeness_client.contract import all_signatures, modalities_of
from numpy.typing import NDArray

pytestmark = pytest.mark.server

CALLERS = 16
MOST_PRODUCTS = 20  # per call; more than two full batches of the fixture's server
LOAD_S = float(os.environ.get("LIKENESS_LOAD_S", "2"))


@dataclass(frozen=True)
class Known:
    """Products of all signatures, and what each is answered when it is asked alone.

    Attributes:
        products: the products.
        vectors: the embedding of each.
        weights: its modality weights.
        scores: of each with the one before it, by metric.
    """

    products: list[Product]
    vectors: NDArray[np.float32]
    weights: list[list[float]]
    scores: dict[Metric, NDArray[np.float32]]

    def check_embedded(self, rows: NDArray[np.intp], found: Embeddings) -> None:
        assert found.product_ids == tuple(self.products[row].product_id for row in rows)
        assert not found.errors
        np.testing.assert_allclose(found.vectors, self.vectors[rows], rtol=0, atol=1e-4)
        for row, weights in zip(rows, found.modality_weights, strict=True):
            assert list(weights.values()) == pytest.approx(self.weights[row], abs=1e-4)

    def check_scored(self, rows: NDArray[np.intp], found: Scores) -> None:
        assert not found.errors
        np.testing.assert_allclose(found.values, self.scores[found.metric][rows], rtol=0, atol=1e-4)

    def pairs(self, rows: NDArray[np.intp]) -> tuple[list[Product], list[Product]]:
        return [self.products[row] for row in rows], [self.products[row - 1] for row in rows]


@pytest.fixture(scope="module")
def known(client: Client, complete: list[Product]) -> Known:
    products = [reduced(product, name) for product, name in zip(complete[:42], cycle(signatures()), strict=False)]
    alone = [client.embed([product]) for product in products]
    return Known(
        products=products,
        vectors=np.concatenate([found.vectors for found in alone]),
        weights=[list(found.modality_weights[0].values()) for found in alone],
        scores={metric: np.array([score(client, products, row, metric) for row in range(42)]) for metric in Metric},
    )


def signatures() -> list[str]:
    """Each twice, so that half of the pairs are of one signature and go through a pair ensemble."""
    return [name for name in all_signatures(("text", "image", "attributes")) for _ in range(2)]


def reduced(product: Product, signature: str) -> Product:
    has = modalities_of(signature)
    return replace(
        product,
        title=product.title if "text" in has else "",
        description=product.description if "text" in has else "",
        images=product.images if "image" in has else (),
        attributes=product.attributes if "attributes" in has else {},
    )


def score(client: Client, products: list[Product], row: int, metric: Metric) -> np.float32:
    value: np.float32 = client.similarity([products[row]], [products[row - 1]], metric=metric).values[0]
    return value


def draws(seed: int, count: int) -> Iterator[tuple[NDArray[np.intp], Metric | None]]:
    """Draw calls until the time is over: rows of the products, duplicates included, to score or (None) to embed."""
    rng = np.random.default_rng(seed)
    end = time.monotonic() + LOAD_S
    while time.monotonic() < end:
        rows = rng.integers(0, count, rng.integers(1, MOST_PRODUCTS + 1))
        yield rows, list(Metric)[rng.integers(3)] if rng.random() < 0.4 else None


@pytest.mark.parametrize("shared", [True, False], ids=["one client", "a client each"])
def test_threads(address: str, known: Known, shared: bool) -> None:
    together = Barrier(CALLERS)

    def caller(seed: int, client: Client) -> int:
        together.wait(60)
        calls = 0
        for rows, metric in draws(seed, len(known.products)):
            if metric is None:
                known.check_embedded(rows, client.embed([known.products[row] for row in rows]))
            else:
                known.check_scored(rows, client.similarity(*known.pairs(rows), metric=metric))
            calls += 1
        return calls

    with ExitStack() as stack:
        clients = [stack.enter_context(Client(address)) for _ in range(1 if shared else CALLERS)]
        pool = stack.enter_context(ThreadPoolExecutor(CALLERS))
        futures = [
            pool.submit(caller, seed, client) for seed, client in zip(range(CALLERS), cycle(clients), strict=False)
        ]
        assert all(future.result() > 0 for future in futures)


def test_tasks(address: str, known: Known) -> None:
    async def caller(seed: int, client: AsyncClient) -> int:
        calls = 0
        for rows, metric in draws(seed, len(known.products)):
            if metric is None:
                known.check_embedded(rows, await client.embed([known.products[row] for row in rows]))
            else:
                known.check_scored(rows, await client.similarity(*known.pairs(rows), metric=metric))
            calls += 1
        return calls

    async def all_callers() -> list[int]:
        async with AsyncClient(address) as client:
            return await asyncio.gather(*(caller(100 + seed, client) for seed in range(CALLERS)))

    assert all(asyncio.run(all_callers()))
