"""Soak test: many clients at once, every answer checked against the one that the product got alone."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from likeness_client import Client, Embeddings, InputError, LikenessError, Product
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """What load to make.

    Attributes:
        address: the server's gRPC endpoint.
        clients: how many connections, each with a thread of its own that waits for every answer (closed loop).
        seconds: how long.
        max_batch: batches hold 1 to this many products, drawn at random.
        tolerance: largest absolute difference between a product's embedding in the load and alone.
        seed: of the draws.
    """

    address: str
    clients: int = 16
    seconds: float = 30.0
    max_batch: int = 8
    tolerance: float = 1e-4
    seed: int = 7


@dataclass
class SoakReport:
    """What happened.

    Attributes:
        seconds: how long the load lasted.
        products: how many products were answered.
        latency_ms: of every answered request, from sending to answer.
        largest_difference: over all answers, to the answer that the product got alone.
        wrong: answers beyond the tolerance, or in another order.
        errors: failed requests by kind.
        signatures: answered products by signature.
    """

    seconds: float = 0.0
    products: int = 0
    latency_ms: list[float] = field(default_factory=list)
    largest_difference: float = 0.0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    signatures: Counter[str] = field(default_factory=Counter)

    @property
    def passed(self) -> bool:
        """Whether there were answers, and all of them right."""
        return bool(self.latency_ms) and not self.wrong and not self.errors

    def percentile_ms(self, share: float) -> float:
        """Return a percentile of the latency, ``share`` in 0..100; NaN without answers."""
        return float(np.percentile(self.latency_ms, share)) if self.latency_ms else float("nan")


def soak(products: Sequence[Product], config: SoakConfig) -> SoakReport:
    """Load a server with mixed batches and check every answer.

    Args:
        products: what the batches are drawn from; all must be valid. Each loses some of its parts first, at random, so
            that all signatures meet.
        config: the load.

    Raises:
        LikenessError: a product cannot be embedded even alone.
    """
    draw = random.Random(config.seed)
    with Client(config.address) as client:
        modalities = client.info().modalities
        there = [product for product in products if _present(product, modalities)]
        if not there:
            raise InputError(f"none of {len(products)} products has {', '.join(modalities)}: give other products")
        mixed = [_reduced(product, modalities, draw) for product in there]
        alone = [client.embed([product]) for product in mixed]
    run = _Run(mixed, np.concatenate([answer.vectors for answer in alone]), config)
    with ThreadPoolExecutor(config.clients) as pool:
        list(pool.map(run.work, range(config.clients)))
    run.report.seconds = time.perf_counter() - run.started
    return run.report


def _reduced(product: Product, modalities: Sequence[str], draw: random.Random) -> Product:
    """Keep each modality of a product by the toss of a coin, and one of them for certain."""
    there = _present(product, modalities)
    certain = draw.choice(there)
    kept = {name for name in there if name == certain or draw.random() < 0.5}
    nothing = Product()
    lost = {field: getattr(nothing, field) for name in there if name not in kept for field in _fields(name)}
    return replace(product, **lost)


def _present(product: Product, modalities: Sequence[str]) -> list[str]:
    return [name for name in modalities if any(getattr(product, field) for field in _fields(name))]


def _fields(modality: str) -> tuple[str, ...]:
    """Name the fields of a product that hold a modality."""
    return {"text": ("title", "description"), "image": ("images",)}.get(modality, (modality,))


class _Run:
    """One load, shared by its threads."""

    def __init__(self, products: Sequence[Product], expected: NDArray[np.float32], config: SoakConfig) -> None:
        self.products, self.expected, self.config = products, expected, config
        self.report = SoakReport()
        self.lock = threading.Lock()
        self.started = time.perf_counter()

    def work(self, number: int) -> None:
        """Send batches until the time is up."""
        draw = random.Random(f"{self.config.seed}-{number}")
        with Client(self.config.address) as client:
            while time.perf_counter() - self.started < self.config.seconds:
                rows = [draw.randrange(len(self.products)) for _ in range(draw.randint(1, self.config.max_batch))]
                sent = time.perf_counter()
                try:
                    answer = client.embed([self.products[row] for row in rows])
                except LikenessError as error:
                    with self.lock:
                        self.report.errors[type(error).__name__] += 1
                    continue
                self.take(rows, answer, 1000 * (time.perf_counter() - sent))

    def take(self, rows: Sequence[int], answer: Embeddings, latency_ms: float) -> None:
        """Check one answer and count it."""
        differences = np.abs(answer.vectors - self.expected[list(rows)]).max(axis=1)
        with self.lock:
            self.report.latency_ms.append(latency_ms)
            self.report.products += len(rows)
            self.report.signatures.update(answer.signatures)
            self.report.wrong += int((~(differences <= self.config.tolerance)).sum())
            self.report.largest_difference = max(self.report.largest_difference, float(differences.max()))
