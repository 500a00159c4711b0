"""How good the served embeddings are: recall@1 on labelled products, beside how fast they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from likeness_client import Client, InputError, Product
from likeness_client.contract import modalities_of
from likeness_client.payloads import sendable
from likeness_client.records import Record, canonical, field_value
from likeness_client.results import require_same_space
from numpy.typing import NDArray

from likeness_bench.load_config import LoadConfig
from likeness_bench.workload import AS_THEY_ARE

Labelled: TypeAlias = tuple[Product, str]
"""A product and its label, which is empty where it has none."""
_TIMEOUT_S = 60.0  # of a call; recall is no race
_BLOCK = 1024  # queries at a time; bounds the memory
_STEP = 256  # products that are embedded before it is asked whether to stop
_TIE = 1e-5  # cosines that are nearer to each other than fp32 sums are exact


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What recall is measured on.

    Attributes:
        field: products with the same value of it are alike; ``a+b`` means both, ``a.b`` one inside another.
        split: the products that are ranked against each other, by their field ``split``; empty: all.
    """

    field: str
    split: str = "val"

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.field}, split {self.split or 'any'}"


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Recall of one signature.

    Attributes:
        at_1: share of the queries whose nearest neighbour is alike.
        queries: products with at least one other that is alike.
        gallery: products that were ranked.
    """

    at_1: float
    queries: int
    gallery: int

    @property
    def ranked(self) -> str:
        """What was ranked, in words."""
        return f"{self.queries} queries among {self.gallery} products"


def labelled(rows: Sequence[tuple[Product, Record]], config: LabelConfig) -> list[Labelled]:
    """Return the products of the split, each with its label.

    Raises:
        InputError: there are none, or none has a label.
    """
    wanted = canonical(config.split)
    chosen = [
        (product, field_value(record, config.field))
        for product, record in rows
        if not wanted or field_value(record, "split") == wanted
    ]
    if not any(label for _, label in chosen):
        split = f" in split '{config.split}'" if config.split else ""
        raise InputError(
            f"none of {len(rows)} products has the label '{config.field}'{split}: give another --label or --split"
        )
    return chosen


def served_recall(
    load: LoadConfig, products: Sequence[Labelled], signature: str, stopped: Callable[[], bool] = lambda: False
) -> Recall | None:
    """Embed labelled products on a server and rank them by cosine, each against all others; None when it was stopped.

    As `likeness evaluate` does it: a signature is measured on the products that have all modalities of the server, each
    reduced to the signature; `AS_THEY_ARE` on all products with what they have.

    Args:
        load: says where the server is.
        products: with their labels.
        signature: what to reduce them to, or `AS_THEY_ARE`.
        stopped: is asked now and then whether to go on.

    Raises:
        LikenessError: the server does not answer.
    """
    with Client(load.address, timeout_s=_TIMEOUT_S, **load.gateway) as client:
        info = client.info()
        usable = [
            (product, label)
            for product, label in products
            if signature == AS_THEY_ARE or len(sendable(product, info.schema, info.modalities)) == len(info.modalities)
        ]
        if not usable:
            return Recall(at_1=0.0, queries=0, gallery=0)
        modalities = None if signature == AS_THEY_ARE else modalities_of(signature)
        parts = []
        for start in range(0, len(usable), _STEP):
            if stopped():
                return None
            some = [product for product, _ in usable[start : start + _STEP]]
            parts.append(client.embed(some, modalities=modalities, on_error="return"))
        require_same_space(*(part.space for part in parts))
    vectors = np.concatenate([part.vectors for part in parts])
    if signature != AS_THEY_ARE:  # what is unknown to the server is left out, and then it is another signature
        vectors[[found != signature for part in parts for found in part.signatures]] = np.nan
    return recall_at_1(vectors, [label for _, label in usable])


def served_recalls(
    load: LoadConfig,
    products: Sequence[Labelled],
    signatures: Iterable[str],
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Recall]:
    """Measure the recall of every part of a mix by itself; without a mix, of products as they are. Stopped: of none.

    Args:
        load: says where the server is.
        products: with their labels.
        signatures: the parts.
        stopped: see `served_recall`.

    Raises:
        LikenessError: the server does not answer, or does not embed one of them.
    """
    found = {}
    for name in tuple(signatures) or (AS_THEY_ARE,):
        if (recall := served_recall(load, products, name, stopped)) is None:
            return {}
        found[name] = recall
    return found


def recall_at_1(vectors: NDArray[np.float32], labels: Iterable[str]) -> Recall:
    """Rank every product against all others; of equally near ones the first counts.

    Args:
        vectors: unit vectors [n, d]; rows of NaN are left out.
        labels: one per product; those with an empty one are ranked, but are no queries.
    """
    usable = ~np.isnan(vectors).any(axis=1)
    places = {"": 0}  # in an array every label would take as much room as the longest
    number = np.array([places.setdefault(label, len(places)) for label in labels], dtype=np.intp)[usable]
    vectors, count = vectors[usable], np.bincount(number)
    queries = np.flatnonzero((number > 0) & (count[number] > 1))
    hits = 0
    for start in range(0, len(queries), _BLOCK):
        rows = queries[start : start + _BLOCK]
        scores = vectors[rows] @ vectors.T
        scores[np.arange(len(rows)), rows] = -np.inf  # not itself
        nearest = (scores >= scores.max(axis=1, keepdims=True) - _TIE).argmax(axis=1)
        hits += int((number[nearest] == number[rows]).sum())
    return Recall(at_1=hits / max(1, len(queries)), queries=len(queries), gallery=len(vectors))
