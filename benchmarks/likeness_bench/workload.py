"""What is asked: requests drawn from real products, with a mix of signatures and a share of repeats."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from likeness_client import InputError, Metric, Product, ServerInfo
from likeness_client.contract import modalities_of, signature_of
from likeness_client.payloads import sendable
from likeness_client.records import MODALITY_FIELDS, compose_text

AS_THEY_ARE = "as they are"
"""Name of the mix in which every product keeps all that it has."""


class OperationKind(StrEnum):
    """What a request asks for."""

    EMBED = "embed"  # the embeddings of a batch
    SIMILARITY = "similarity"  # the scores of a batch of pairs: twice as many products
    SIMILARITY_MATRIX = "similarity_matrix"  # a batch with another one, all with all: twice as many products


@dataclass(frozen=True, kw_only=True)
class WorkloadConfig:
    """What to ask.

    Attributes:
        operation: what every request asks for; or several operations, each with its share of the requests, which need
            not sum to 1.
        batch_size: products per request, or per side of it where two sides are compared; or several sizes, each with
            its share of the requests, which need not sum to 1.
        signatures: signature -> its share of the requests; shares need not sum to 1. Empty: products as they are, each
            with all that it has.
        repeat_share: of the requests, how many send the products of an earlier request again, 0 to 1.
        metric: the measure of the similarities.
        seed: of the draws; the same seed gives the same requests.

    Raises:
        InputError: a batch size or a share is out of range.
    """

    operation: OperationKind | Mapping[OperationKind, float] = OperationKind.EMBED
    batch_size: int | Mapping[int, float] = 1
    signatures: Mapping[str, float] = field(default_factory=dict)
    repeat_share: float = 0.0
    metric: Metric = Metric.COSINE
    seed: int = 7

    def __post_init__(self) -> None:
        if not self.operations or not self.batch_sizes:
            raise InputError("operation and batch_size must hold at least one of them, each with its share")
        if (smallest := min(self.batch_sizes)) < 1:
            raise InputError(f"--batch-size {smallest} asks for nothing: give at least 1")
        mixes: Mapping[str, Mapping[Any, float]] = {
            "--operation": self.operations,
            "--batch-size": self.batch_sizes,
            "--signature": self.signatures,
        }
        for option, mix in mixes.items():
            for name, share in mix.items():
                if not 0 < share < float("inf"):
                    raise InputError(f"{option} {name} has the share {share}: give a number above 0, or leave it out")
        if not 0 <= self.repeat_share <= 1:
            raise InputError(f"--repeat-share {self.repeat_share:g} is no share: give a number from 0 to 1")

    @property
    def operations(self) -> Mapping[OperationKind, float]:
        """Operation -> its share of the requests."""
        return {self.operation: 1.0} if isinstance(self.operation, OperationKind) else self.operation

    @property
    def batch_sizes(self) -> Mapping[int, float]:
        """Batch size -> its share of the requests."""
        return {self.batch_size: 1.0} if isinstance(self.batch_size, int) else self.batch_size


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request.

    Attributes:
        operation: what it asks for.
        signature: the part of the mix that it is of.
        left: the products, or those of the left side.
        right: the products of the right side; empty when products are embedded.
        metric: the measure of their similarities.
        again: whether it was drawn as a repeat of an earlier one.
    """

    operation: OperationKind
    signature: str
    left: tuple[Product, ...]
    right: tuple[Product, ...] = ()
    metric: Metric = Metric.COSINE
    again: bool = False

    @property
    def products(self) -> int:
        """How many products it sends."""
        return len(self.left) + len(self.right)


class Workload:
    """The requests that can be drawn. Files are read once, here, so that no disk stands in the way of the load.

    Args:
        products: what requests are made of. Those that the server cannot embed are left out, and so are those that
            travel like an earlier one: the client would send both once, and the load would count what nobody computed.
        info: what the server offers.
        config: what to ask.

    Attributes:
        config: what to ask.
        info: what the server offers.
        pools: per part of the mix, the products that it draws from.

    Raises:
        InputError: a signature is unknown to the server, or too few different products have what it needs.
    """

    def __init__(self, products: Sequence[Product], info: ServerInfo, config: WorkloadConfig) -> None:
        self.config, self.info = config, info
        loaded = [held(product, info.schema.max_photos) for product in products]
        names = config.signatures or {AS_THEY_ARE: 1.0}
        self.pools = {name: _pool(loaded, name, info) for name in names}
        self._shares = list(names.values())
        needed = max(map(_sides, config.operations)) * max(config.batch_sizes)
        for name, pool in self.pools.items():
            if len(pool) < needed:
                raise InputError(
                    f"a request holds up to {needed} products, and only {len(pool)} different ones can be sent as "
                    f"'{name}': give more products, or a smaller --batch-size"
                )

    def requests(self, seed: int) -> Iterator[Request]:
        """Draw requests without end; the same seed draws the same ones.

        New requests walk through the products of their signature in random order, and begin again when all were sent.
        No product is twice in one request.
        """
        draw = random.Random(seed)
        walks = {name: _Walk(pool, draw) for name, pool in self.pools.items()}
        operations, sizes, metric = self.config.operations, self.config.batch_sizes, self.config.metric
        earlier: list[Request] = []
        while True:
            if earlier and draw.random() < self.config.repeat_share:
                yield replace(draw.choice(earlier), again=True)
                continue
            (operation,) = draw.choices(list(operations), list(operations.values()))
            (name,) = draw.choices(list(self.pools), self._shares)
            (size,) = draw.choices(list(sizes), list(sizes.values()))
            batch = walks[name].take(_sides(operation) * size)
            request = Request(operation=operation, signature=name, left=batch[:size], right=batch[size:], metric=metric)
            if len(earlier) < _REMEMBERED:
                earlier.append(request)
            else:
                earlier[draw.randrange(_REMEMBERED)] = request
            yield request


_REMEMBERED = 10_000  # requests that may be repeated; bounds the memory of long runs


def _sides(operation: OperationKind) -> int:
    """Return how many batches of products a request of this operation sends."""
    return 1 if operation is OperationKind.EMBED else 2


class _Walk:
    """Goes through products in random order, again and again."""

    def __init__(self, pool: Sequence[Product], draw: random.Random) -> None:
        self._pool, self._draw = pool, draw
        self._ahead: list[Product] = []

    def take(self, count: int) -> tuple[Product, ...]:
        """Return the next products, all of them different; there must be so many."""
        if len(self._ahead) < count:  # across the end of a walk: what is left of it has a late place in the next one
            left = {id(product) for product in self._ahead}
            self._ahead += sorted(self._draw.sample(self._pool, len(self._pool)), key=lambda one: id(one) in left)
        taken, self._ahead = self._ahead[:count], self._ahead[count:]
        return tuple(taken)


def held(product: Product, max_photos: int = 1) -> Product:
    """Return a product whose files are in memory: its first photos and its clip.

    Args:
        product: the product.
        max_photos: how many of its photos; a server reads no others.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        sources = product.images[:max_photos]
        images = tuple(source.read_bytes() if isinstance(source, Path) else source for source in sources)
        video = product.video.read_bytes() if isinstance(product.video, Path) else product.video
    except (OSError, ValueError) as error:  # ValueError: of a path that no file can have
        raise InputError(
            f"product '{product.product_id}': a file of it cannot be read ({error}); paths are relative to the product "
            "file"
        ) from error
    return replace(product, images=images, video=video)


def _pool(products: Sequence[Product], signature: str, info: ServerInfo) -> list[Product]:
    """Return the products that travel with this signature once reduced to it, one of those that travel alike."""
    if signature != AS_THEY_ARE and signature not in info.signatures:
        raise InputError(f"the server does not embed '{signature}', only: {', '.join(info.signatures)}")
    found: dict[tuple[str | bytes, ...], Product] = {}
    for product in products:
        reduced = product if signature == AS_THEY_ARE else reduce_to(product, modalities_of(signature), info)
        parts = sendable(reduced, info.schema, info.modalities)
        travels = signature_of(parts)
        if travels == signature or (signature == AS_THEY_ARE and travels in info.signatures):
            found.setdefault((travels, *parts.values()), reduced)
    if not found:
        raise InputError(f"none of {len(products)} products can be sent as '{signature}': give other products")
    return list(found.values())


def reduce_to(product: Product, modalities: Sequence[str], info: ServerInfo) -> Product:
    """Return a product without the fields that belong to other modalities of a server; its text stays as it was.

    Where attributes are part of the text, a product cannot have them without a text.
    """
    nothing = Product()
    others = [name for name in info.modalities if name not in modalities]
    parts = info.schema.text_fields
    prose = next((name for name in parts if name in ("title", "description")), None)
    if prose and "text" in modalities and "attributes" in others and any("." in name for name in parts):
        text = compose_text(product, parts)
        title, description = (text, "") if prose == "title" else ("", text)
        product = replace(product, title=title, description=description)
    lost = {field: getattr(nothing, field) for name in others for field in MODALITY_FIELDS[name]}
    return replace(product, **lost)
