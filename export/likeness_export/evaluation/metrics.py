"""Retrieval metrics of a ranking by similarity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from likeness_export.progress import each

_FIRST = (1, 5, 10)
_DISCOUNTS = 1 / np.log2(np.arange(10) + 2.0)  # of the first ten places
_BLOCK_SCORES = 8_000_000  # at a time; 32 MB


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Means over the queries that have at least one relevant item in the gallery; NaN where there are none.

    Attributes:
        queries: how many those are.
        recall_at: k -> share of queries with a relevant item among the first k (recall@k as metric learning uses it,
            hit@k).
        mean_average_precision: mAP over the whole ranking.
        ndcg_at_10: nDCG@10 with binary relevance.
    """

    queries: int
    recall_at: dict[int, float]
    mean_average_precision: float
    ndcg_at_10: float


def retrieval(
    queries: NDArray[np.float32],
    gallery: NDArray[np.float32],
    query_labels: NDArray[np.str_],
    gallery_labels: NDArray[np.str_],
    itself: NDArray[np.intp],
) -> Retrieval:
    """Rank the gallery [g, d] for each query [q, d] by cosine, all of them unit vectors; for the rest see `ranking`."""
    # Equal vectors are multiplied once: a product of matrices rounds differently at its edges, and ties would be none.
    places: dict[bytes, int] = {}
    distinct = [places.setdefault(vector.tobytes(), len(places)) for vector in gallery]
    kept = gallery[np.unique(distinct, return_index=True)[1]]
    return ranking(lambda rows: (queries[rows] @ kept.T)[:, distinct], query_labels, gallery_labels, itself)


def places_in(gallery: NDArray[np.intp], queries: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return each query's place in the gallery, -1 if it is not there; both are rows of one catalogue."""
    place = {row: column for column, row in enumerate(gallery)}
    return np.array([place.get(row, -1) for row in queries], dtype=np.intp)


def ranking(
    similarities: Callable[[slice], NDArray[np.float32]],
    query_labels: NDArray[np.str_],
    gallery_labels: NDArray[np.str_],
    itself: NDArray[np.intp],
) -> Retrieval:
    """Rank the gallery for each query by similarity; ties keep the gallery's order.

    Args:
        similarities: some queries -> [b, g]; of all of them the matrix of a large catalogue would not fit into memory.
        query_labels: a label per query; empty: the query is skipped.
        gallery_labels: an item is relevant if its label equals the query's.
        itself: per query, its own place in the gallery, which is left out of its ranking; -1 if it is not there.
    """
    codes = np.unique(np.concatenate([[""], query_labels, gallery_labels]), return_inverse=True)[1]
    wanted, given = np.split(codes[1:], [len(query_labels)])  # the empty label is 0
    found: list[tuple[float, ...]] = []
    size = max(1, _BLOCK_SCORES // max(1, len(gallery_labels)))
    for start in each(range(0, len(query_labels), size), "ranking"):
        block = similarities(slice(start, start + size))
        orders = torch.from_numpy(-block).argsort(dim=1, stable=True).numpy()  # by all cores, unlike numpy's
        for query, order in enumerate(orders, start):
            ranks = np.flatnonzero(given[order[order != itself[query]]] == wanted[query])
            if wanted[query] and len(ranks):
                found.append(_figures(ranks))
    *hits, precision, gain = np.mean(found, 0).tolist() if found else [float("nan")] * (len(_FIRST) + 2)
    return Retrieval(
        queries=len(found),
        recall_at=dict(zip(_FIRST, hits, strict=True)),
        mean_average_precision=precision,
        ndcg_at_10=gain,
    )


def _figures(ranks: NDArray[np.intp]) -> tuple[float, ...]:
    """Return hit@k for every k of `_FIRST`, average precision and nDCG@10 of one query.

    Args:
        ranks: where its relevant items stand, ascending from 0.
    """
    count = np.arange(len(ranks))
    gain = _DISCOUNTS[ranks[ranks < len(_DISCOUNTS)]].sum() / _DISCOUNTS[: len(ranks)].sum()
    return *(float(ranks[0] < k) for k in _FIRST), float(((count + 1) / (ranks + 1)).mean()), float(gain)
