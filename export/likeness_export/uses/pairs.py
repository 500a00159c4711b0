"""The labelled pairs that matching learns from and is measured on: those of a file, or made of a label."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from likeness_client.errors import InputError
from numpy.typing import NDArray

from likeness_export.products.named_pairs import NamedPair, read_named_pairs, warn_of_contradictions
from likeness_export.progress import each
from likeness_export.uses.inputs import EmbeddedProducts, Vectors

log = logging.getLogger(__name__)
MAX_POSITIVES = 2_000_000
"""The most pairs of equal labels; as many others are looked for, and all of them held in memory."""
_BLOCK_SCORES = 4_000_000  # at a time; 16 MB


def pairs_of(held: EmbeddedProducts, source: Path | str, split: str) -> list[NamedPair]:
    """Return the pairs of a split, each once.

    Args:
        held: the products.
        source: a file of pairs, see `read_named_pairs`; or a label, see `label_pairs`.
        split: of the pairs in the file, or of the products that have the label.

    Raises:
        InputError: the file cannot be read, or no two products of the split have the same label.
    """
    if isinstance(source, Path):
        pairs = read_named_pairs(source, [split])
        warn_of_contradictions(pairs, where := f"{source}, split {split}")
        return _each_once(pairs, where)
    rows = np.flatnonzero(held.catalogue.in_splits([split]))
    labels = held.catalogue.needed_labels(source, [split])[rows]
    pairs = label_pairs([held.ids[row] for row in rows], held.vectors[rows], labels)
    if not pairs:
        raise InputError(f"no two products of split {split!r} have the same {source!r}: name another label or split")
    return pairs


def _each_once(pairs: Sequence[NamedPair], where: str) -> list[NamedPair]:
    """Leave out what would count for more than it says: repeats in either order, products paired with themselves."""
    firsts: dict[tuple[frozenset[str], int], NamedPair] = {}
    for pair in pairs:
        if pair.left != pair.right:
            firsts.setdefault((frozenset((pair.left, pair.right)), pair.label), pair)
    if spare := len(pairs) - len(firsts):
        log.warning(
            "%s: left out: %d pairs that an earlier line has, in either order, or of a product with itself",
            where,
            spare,
        )
    return list(firsts.values())


def label_pairs(ids: Sequence[str], vectors: Vectors, labels: NDArray[np.str_]) -> list[NamedPair]:
    """Make pairs of n labelled products: all with equal labels, and as many of the hardest others.

    The hardest are the pairs with the highest cosines among those whose labels differ, so that figures on them are far
    below those on pairs drawn at random. Products with an empty label are left out.

    Raises:
        InputError: there would be more than `MAX_POSITIVES` positive pairs.
    """
    rows = np.flatnonzero(labels != "")
    _, codes, sizes = np.unique(labels[rows], return_inverse=True, return_counts=True)
    wanted = int((sizes * (sizes - 1) // 2).sum())
    if wanted > MAX_POSITIVES:
        raise InputError(
            f"the label makes {wanted} positive pairs, more than {MAX_POSITIVES}: name a finer one, e.g. group"
        )
    positives = [
        (int(members[i]), int(members[j]))
        for members in (np.flatnonzero(codes == code) for code in np.flatnonzero(sizes > 1))
        for i, j in zip(*np.triu_indices(len(members), 1), strict=True)
    ]
    negatives = _hardest(vectors[rows], codes, wanted)
    named = [(pair, 1) for pair in positives] + [(pair, 0) for pair in negatives]
    return [NamedPair(left=ids[rows[i]], right=ids[rows[j]], label=label) for (i, j), label in named]


def _hardest(vectors: Vectors, codes: NDArray[np.intp], wanted: int) -> list[tuple[int, int]]:
    """Return the pairs of different codes with the highest cosines, the highest first; blockwise."""
    kept_scores, kept = np.empty(0, dtype=np.float32), np.empty((0, 2), dtype=np.intp)
    count = len(vectors)
    size = max(1, _BLOCK_SCORES // max(1, count))
    for start in each(range(0, count if wanted else 0, size), "hardest negatives"):
        scores = vectors[start : start + size] @ vectors[start:].T  # those before were compared with these
        allowed = np.triu(codes[start : start + size, None] != codes[start:], 1)
        if len(kept) == wanted:
            allowed &= scores > kept_scores[-1]
        i, j = np.nonzero(allowed)
        if not len(i):
            continue
        kept_scores = np.concatenate([kept_scores, scores[i, j]])
        kept = np.concatenate([kept, np.stack([i, j], 1) + start])
        first = np.argsort(-kept_scores, kind="stable")[:wanted]
        kept_scores, kept = kept_scores[first], kept[first]
    return [(int(i), int(j)) for i, j in kept]
