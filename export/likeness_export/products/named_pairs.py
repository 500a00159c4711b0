"""Labelled pairs of products, and which of them training may see."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from likeness_client.errors import InputError
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from likeness_export.products.csv_lines import read_lines

log = logging.getLogger(__name__)
_PAIR_COLUMNS = ("left_id", "right_id", "label", "split")
_LEAST_SHARE = 1e-6


@dataclass(frozen=True, kw_only=True)
class NamedPair:
    """A labelled pair of a file: the product ids of its sides, and 1: alike, 0: not."""

    left: str
    right: str
    label: int


def hold_out(pairs: Sequence[NamedPair], share: float, fold: int = 0) -> tuple[list[NamedPair], list[NamedPair]]:
    """Divide pairs into those that are trained on and those that are held out.

    A hash of the two ids decides, so that everyone who knows the share divides alike, whatever the order of the pairs,
    and that a pair and its mirror image stay together.

    Args:
        pairs: the pairs.
        share: how many are held out, 0 to 1, on average.
        fold: which of them, below `fold_count`; no pair is held out by two folds.
    """
    parts: tuple[list[NamedPair], list[NamedPair]] = ([], [])
    for pair in pairs:
        name = "\0".join(sorted((pair.left, pair.right)))
        chance = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
        parts[fold * share <= chance < (fold + 1) * share].append(pair)
    return parts


def fold_count(share: float) -> int:
    """Return how many folds of this share there are; three of 0.3334 count, though they are a little more than all.

    Raises:
        InputError: the share is so small that it holds out nothing.
    """
    if share < _LEAST_SHARE:
        raise InputError(f"a held-out share of {share:g} holds out no pair: give 0, or at least {_LEAST_SHARE:g}")
    return int(1.001 / share)


def without_repeats(measured: Sequence[NamedPair], train: Sequence[NamedPair]) -> list[NamedPair]:
    """Return the pairs that are no train pair in either order."""
    known = {frozenset((pair.left, pair.right)) for pair in train}
    return [pair for pair in measured if frozenset((pair.left, pair.right)) not in known]


def warn_of_contradictions(pairs: Sequence[NamedPair], where: str) -> None:
    """Say which pairs, in either order, are labelled both 1 and 0; one of the two labels is wrong."""
    labels = defaultdict[frozenset[str], set[int]](set)
    for pair in pairs:
        labels[frozenset((pair.left, pair.right))].add(pair.label)
    if both := [sorted(pair) for pair, said in labels.items() if len(said) > 1]:
        log.warning(
            "%s: %d pairs are labelled both 1 and 0, the first is %s: remove the wrong lines",
            where,
            len(both),
            " and ".join(both[0]),
        )


def groups_of_pairs(ids: Sequence[str], pairs: Sequence[NamedPair]) -> NDArray[np.str_]:
    """Return what pairs say as a label per id: equal for products that a chain of pairs labelled 1 connects.

    It is empty for products without a match; pairs that name another product are left out.
    """
    row_of = {name: row for row, name in enumerate(ids)}
    alike = [pair for pair in pairs if pair.label == 1 and pair.left in row_of and pair.right in row_of]
    sides = [row_of[pair.left] for pair in alike], [row_of[pair.right] for pair in alike]
    links = coo_array((np.ones(len(alike), bool), sides), shape=(len(ids), len(ids)))
    _, group = connected_components(links, directed=False)
    matched = np.bincount(group, minlength=len(ids))[group] > 1
    return np.where(matched, group.astype(np.str_), "")


def read_named_pairs(path: Path, splits: Sequence[str]) -> list[NamedPair]:
    """Read labelled pairs.

    Args:
        path: CSV with the columns ``left_id``, ``right_id``, ``label`` (1: alike, 0: not) and ``split``.
        splits: the splits to read.

    Raises:
        InputError: the file is missing, lacks a column, or a line has values too few or too many, or a label that is
            not 0 or 1.
    """
    pairs = []
    for where, line in read_lines(path, "file of pairs", _PAIR_COLUMNS):
        if line["split"] not in splits:
            continue
        if line["label"] not in ("0", "1"):
            raise InputError(f"{where}: label {line['label']!r}, 0 or 1 is needed")
        pairs.append(NamedPair(left=line["left_id"], right=line["right_id"], label=int(line["label"])))
    return pairs
