"""Embeddings that no server made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from likeness_client import Embeddings


def drawn(count: int, dimension: int, space: str, seed: int) -> Embeddings:
    """Return embeddings that are drawn at random, of unit length."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings.from_vectors(vectors, space)


def parts_of(embeddings: Embeddings, size: int) -> Iterator[Embeddings]:
    """Cut embeddings into parts of ``size``."""
    for start in range(0, len(embeddings), size):
        yield Embeddings.from_vectors(embeddings.vectors[start : start + size], embeddings.space)
