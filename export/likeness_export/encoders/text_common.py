"""What all text encoders share: the padded lengths, and texts as they are fitted on."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST_BUCKET = 16


def length_buckets(longest: int) -> list[int]:
    """Return the padded lengths: powers of two from 16, and ``longest`` as the last."""
    buckets: list[int] = []
    while (bucket := SHORTEST_BUCKET << len(buckets)) < longest:
        buckets.append(bucket)
    return [*buckets, longest]


def decoded(items: Sequence[bytes]) -> list[str]:
    """Return the texts as every text preprocessing reads them."""
    return [item.decode("utf-8", "replace") for item in items]
