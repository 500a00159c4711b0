"""Retrieval metrics of a ranking by similarity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_normalized_dcg,
)


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
    """Rank the gallery for each query by cosine; see `ranking`.

    Args:
        queries: unit vectors [q, d].
        gallery: unit vectors [g, d].
        query_labels: see `ranking`.
        gallery_labels: see `ranking`.
        itself: see `ranking`.
    """
    # Row by row: the whole matrix of a large catalogue would not fit into memory.
    return ranking((gallery @ query for query in queries), query_labels, gallery_labels, itself)


def places_in(gallery: NDArray[np.intp], queries: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return each query's place in the gallery, -1 if it is not there; both are rows of one catalogue."""
    place = {row: column for column, row in enumerate(gallery)}
    return np.array([place.get(row, -1) for row in queries], dtype=np.intp)


def ranking(
    similarities: Iterable[NDArray[np.float32]],
    query_labels: NDArray[np.str_],
    gallery_labels: NDArray[np.str_],
    itself: NDArray[np.intp],
) -> Retrieval:
    """Rank the gallery for each query by similarity; ties keep the gallery's order.

    Args:
        similarities: [g] per query.
        query_labels: a label per query; empty: the query is skipped.
        gallery_labels: an item is relevant if its label equals the query's.
        itself: per query, its own place in the gallery, which is left out of its ranking; -1 if it is not there.
    """
    recall: dict[int, list[float]] = {1: [], 5: [], 10: []}
    precision, gain = [], []
    for row, (similarity, label) in enumerate(zip(similarities, query_labels, strict=True)):
        order = np.argsort(-similarity, kind="stable")
        relevant = torch.from_numpy(gallery_labels[order[order != itself[row]]] == label)
        if not label or not relevant.any():
            continue
        by_rank = torch.arange(len(relevant), 0, -1, dtype=torch.float32)  # scores without ties, and positive
        for k, found in recall.items():
            found.append(float(retrieval_hit_rate(by_rank, relevant, top_k=min(k, len(relevant)))))
        precision.append(float(retrieval_average_precision(by_rank, relevant)))
        gain.append(float(retrieval_normalized_dcg(by_rank, relevant, top_k=min(10, len(relevant)))))
    if not gain:
        nan = float("nan")
        return Retrieval(queries=0, recall_at=dict.fromkeys(recall, nan), mean_average_precision=nan, ndcg_at_10=nan)
    return Retrieval(
        queries=len(gain),
        recall_at={k: float(np.mean(found)) for k, found in recall.items()},
        mean_average_precision=float(np.mean(precision)),
        ndcg_at_10=float(np.mean(gain)),
    )
