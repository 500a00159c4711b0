"""Embeddings that no server made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from likeness_client import Embeddings
from numpy.typing import NDArray


def drawn(count: int, dimension: int, space: str, seed: int) -> Embeddings:
    """Return embeddings that are drawn at random, of unit length."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return embeddings_of(vectors, space)


def parts_of(embeddings: Embeddings, size: int) -> Iterator[Embeddings]:
    """Cut embeddings into parts of so many."""
    for start in range(0, len(embeddings), size):
        yield embeddings_of(embeddings.vectors[start : start + size], embeddings.space)


def embeddings_of(vectors: NDArray[np.float32], space: str) -> Embeddings:
    """Return vectors as the client would have made them, of products that nothing else is known of."""
    count = len(vectors)
    nothing = ("",) * count
    return Embeddings(
        vectors=vectors, modality_weights=({},) * count, signatures=nothing, product_ids=nothing, space=space
    )
