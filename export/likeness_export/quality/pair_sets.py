"""Labelled pairs in several sets: is it the same product, and is it found among all others (T11, T12)?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from likeness_client.errors import InputError
from numpy.typing import NDArray

from likeness_export.product_network import ProductNetwork
from likeness_export.products.catalogue import Catalogue
from likeness_export.products.named_pairs import NamedPair, hold_out, read_named_pairs, without_repeats
from likeness_export.quality.kinds import PairSets
from likeness_export.quality.lines import Line
from likeness_export.uses.decision import best_threshold, figures
from likeness_export.uses.inputs import Vectors
from likeness_export.uses.match import Judged, Scores, cosine, match, scorer_of
from likeness_export.uses.neighbourhood import AMONG_NEIGHBOURS, Rows, Scorer, Search, alone, among_neighbours

_BLOCK = 512
_FEWEST = 30  # pairs that a figure of their own is given for


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What decisions are learned from: train pairs, and scores by a network that has not seen them.

    Attributes:
        scorers: name -> score; the names are those of the measured scores.
        held_out: share of the train pairs that the network was not trained on; 0: it was trained on none.
        fold: which of the shares; see `hold_out`.
    """

    scorers: Mapping[str, Scorer]
    held_out: float = 0.0
    fold: int = 0

    def pairs(self, train: Sequence[NamedPair]) -> list[NamedPair]:
        """Return those of the train pairs that it teaches with."""
        return hold_out(train, self.held_out, self.fold)[1] if self.held_out else list(train)


def trained_scores(vectors: NDArray[np.float32], network: ProductNetwork) -> dict[str, Scorer]:
    """Return the scores of a trained network: ``cosine``, and ``learned`` (its metric's logit).

    ``vectors`` are the products' embeddings, unit length; NaN where a product has none.
    """

    @torch.inference_mode()
    def learned(left: Vectors, right: Vectors) -> Scores:
        found = np.empty(len(left), np.float32)
        for start in range(0, len(left), _BLOCK):
            block = slice(start, start + _BLOCK)
            found[block] = network.metric(torch.from_numpy(left[block]), torch.from_numpy(right[block])).numpy()
        return found

    return {"cosine": scorer_of(vectors, cosine), "learned": scorer_of(vectors, learned)}


def measure_pair_sets(
    measure: PairSets,
    scorers: Mapping[str, Scorer],
    catalogue: Catalogue,
    data_root: Path,
    lessons: Sequence[Lesson] = (),
) -> Iterator[Line]:
    """Measure every set with every score, of the pair alone and among its neighbours; yield the lines of both tasks.

    With the first of the scorers products are also searched for. Decisions are learned from the lessons; without any,
    from all train pairs by the same scores.

    Raises:
        InputError: the file of pairs cannot be read, or there is none to measure on.
    """
    sets = catalogue.labels(measure.set_field)
    sides = catalogue.labels(measure.side_field)
    row_of = {name: row for row, name in enumerate(catalogue.ids)}
    lessons, first = lessons or (Lesson(scorers=scorers),), next(iter(scorers.values()))
    train, asked = pairs_of(measure, catalogue, data_root)
    for name in dict.fromkeys(sets.tolist()):
        known, measured = ([pair for pair in pairs if sets[row_of[pair.left]] == name] for pairs in (train, asked))
        taught = [(lesson, lesson.pairs(known)) for lesson in lessons]
        if not any(pairs for _, pairs in taught) or not measured:
            continue
        members = np.flatnonzero(sets == name)
        in_set = partial(among_neighbours, members=members, sides=sides[members])
        for score, scorer in scorers.items():
            for what, knowing in ((score, alone), (score + AMONG_NEIGHBOURS, in_set)):
                features = knowing(scorer)  # surroundings take a search of the whole set: once is enough
                learned_from = [
                    (pairs, features if lesson.scorers[score] is scorer else knowing(lesson.scorers[score]))
                    for lesson, pairs in taught
                    if pairs
                ]
                found, count = decide(known, learned_from, (measured, features), row_of)
                yield Line(task=measure.name, label=name, what=what, count=count, figures=found)
            if scorer is first:  # the others find the same
                found, count = find(measured, scorer.search, row_of, members, sides)
                yield Line(task=measure.search, label=name, what=score, count=count, figures=found)


def pairs_of(measure: PairSets, catalogue: Catalogue, data_root: Path) -> tuple[list[NamedPair], list[NamedPair]]:
    """Return the pairs of known products that decisions are learned from, and those to measure on.

    Raises:
        InputError: the file of pairs cannot be read, or there is none to measure on.
    """
    path, known = data_root / measure.pairs, {*catalogue.ids}
    train, asked = (
        [pair for pair in read_named_pairs(path, [split]) if {pair.left, pair.right} <= known]
        for split in (measure.splits[0], measure.splits[-1])
    )
    if not asked:
        raise InputError(f"{path}: no pair of known products has split {measure.splits[-1]}")
    return train, asked


def decide(
    train: Sequence[NamedPair],
    taught: Sequence[Judged],
    asked: Judged,
    row_of: Mapping[str, int],
) -> tuple[dict[str, float], int]:
    """Learn a decision from some pairs and measure it on others that do not repeat a train pair.

    Args:
        train: all train pairs.
        taught: those of them to learn from, and what is known of them.
        asked: the pairs to measure on, and what is known of them.
        row_of: product id -> row.

    Returns:
        F1, precision and recall of all pairs; F1 of the pairs of which ``both``, ``either`` (exactly one) or
        ``neither`` product occurs in a train pair, where there are at least 30 such pairs; the ceiling ``F1 best``; F1
        of the fitted pairs; ``F1 repeats``, with the repeated pairs. And how many pairs were measured.
    """
    measured, matching = asked[0], match(row_of, taught, asked)
    threshold, scores = matching.decision.threshold, matching.probabilities
    fresh = {*without_repeats(measured, train)}
    kept = np.array([pair in fresh for pair in measured], dtype=bool)
    labels = np.array([pair.label for pair in measured], dtype=np.intp)
    every = figures(scores[kept], labels[kept], threshold)
    best = figures(scores[kept], labels[kept], best_threshold(scores[kept], labels[kept]))
    found = {"F1": every.f1, "precision": every.precision, "recall": every.recall}
    for name, chosen in familiarity(measured, train).items():
        if (kept & chosen).sum() >= _FEWEST:
            found[f"F1 {name}"] = figures(scores[kept & chosen], labels[kept & chosen], threshold).f1
    found["F1 best"] = best.f1
    found["F1 fitted"] = matching.train.f1
    found["F1 repeats"] = matching.every.f1
    return {name: value for name, value in found.items() if not np.isnan(value)}, int(kept.sum())


def familiarity(measured: Sequence[NamedPair], train: Sequence[NamedPair]) -> dict[str, NDArray[np.bool_]]:
    """Return BOOL [p] per name: which pairs have ``both``, ``either`` or ``neither`` product in a train pair."""
    known = {name for pair in train for name in (pair.left, pair.right)}
    counts = np.array([(pair.left in known) + (pair.right in known) for pair in measured])
    return {"both": counts == 2, "either": counts == 1, "neither": counts == 0}


def find(
    measured: Sequence[NamedPair],
    search: Search,
    row_of: Mapping[str, int],
    members: Rows,
    sides: NDArray[np.str_],
) -> tuple[dict[str, float], int]:
    """Rank the set's right sides, or, where there are no sides, all others of the set, for positive pairs' left sides.

    ``members`` are the rows of the set, ``sides`` the side of every row of the catalogue; empty: none.

    Returns:
        R@1 and R@10: whether the pair's right side is among the first; and of how many pairs.
    """
    positive = [(row_of[pair.left], row_of[pair.right]) for pair in measured if pair.label]
    left, right = np.array(positive, dtype=np.intp).reshape(-1, 2).T
    gallery = members[sides[members] == "right"] if (sides[members] != "").any() else members
    ranks: list[int] = []
    for start in range(0, len(left), _BLOCK):
        block = slice(start, start + _BLOCK)
        for query, wanted, values in zip(left[block], right[block], search(left[block], gallery), strict=True):
            others = gallery != query
            ranks += _rank(values[others], gallery[others] == wanted)
    reached = np.array(ranks)
    return {f"R@{k}": float((reached < k).mean()) if ranks else 0.0 for k in (1, 10)}, len(ranks)


def _rank(values: NDArray[np.float32], wanted: NDArray[np.bool_]) -> list[int]:
    """Return how many come before the wanted one, equal ones in their order; all of them if there is no similarity.

    Nothing if it is not there.
    """
    places = np.flatnonzero(wanted)
    if not len(places):
        return []
    mine = values[places[0]]
    if np.isnan(mine):  # the query has no embedding, and finds nothing
        return [len(values)]
    return [int((values > mine).sum() + (values[: places[0]] == mine).sum())]
