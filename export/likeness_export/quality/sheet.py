"""A contact sheet of a run: queries and their nearest neighbours, some where that goes well and some where it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from likeness_export.evaluation.contact_sheet import Card, card_of, draw_rows
from likeness_export.evaluation.evaluate import Task
from likeness_export.products.catalogue import Catalogue

_NEIGHBOURS = 5
_ROWS = 5


def draw_sheet(vectors: NDArray[np.float32], catalogue: Catalogue, task: Task, path: Path, rows: int = _ROWS) -> bool:
    """Draw queries with their first neighbours: first those whose nearest is right, then those where it is wrong.

    Args:
        vectors: unit vectors [n, d] of the catalogue; NaN where a product has none.
        catalogue: the products.
        task: what is ranked against what; its first label says what is right.
        path: the picture to write, PNG.
        rows: how many of each kind at most.

    Returns:
        Whether there was a query to draw: one with another product of its label in the gallery.
    """
    labels = catalogue.labels(task.labels[0])
    usable = ~np.isnan(vectors).any(1)
    gallery = np.flatnonzero(usable & catalogue.in_splits(task.gallery))
    good: list[list[Card]] = []
    bad: list[list[Card]] = []
    queries = np.flatnonzero(usable & catalogue.in_splits(task.queries))
    for query in np.random.default_rng(0).permutation(queries):
        others = gallery[gallery != query]
        if not labels[query] or not (labels[others] == labels[query]).any():
            continue
        cosines = vectors[others] @ vectors[query]
        first = np.argsort(-cosines, kind="stable")[:_NEIGHBOURS]
        kind = good if labels[others[first[0]]] == labels[query] else bad
        if len(kind) < rows:
            found = [
                card_of(catalogue.products[row], f"{cosine:.3f}, {labels[row]}", bool(labels[row] == labels[query]))
                for row, cosine in zip(others[first], cosines[first], strict=True)
            ]
            kind.append([card_of(catalogue.products[query], labels[query], None), *found])
        if len(good) == len(bad) == rows:
            break
    if good or bad:
        draw_rows([*good, *bad], path)
    return bool(good or bad)
