"""Train a recipe, and take the measures of a table on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from likeness_client.contract import all_signatures, modalities_of, signature_of
from numpy.typing import NDArray

from likeness_export.evaluation.evaluate import OfflineEmbedder, Task, complete, evaluate
from likeness_export.evaluation.metrics import Retrieval, places_in, retrieval
from likeness_export.products.catalogue import Catalogue, recipe_catalogue
from likeness_export.quality.costs import Cost, cost_of, train_measured
from likeness_export.quality.kinds import Incomplete, Measure, PairSets, Ranking, Table, Views
from likeness_export.quality.lines import Line
from likeness_export.quality.needed import needed_products
from likeness_export.quality.pair_sets import Lesson, measure_pair_sets, trained_scores
from likeness_export.quality.sheet import draw_sheet
from likeness_export.recipe import Recipe
from likeness_export.run import Run
from likeness_export.training.joining import join_runs
from likeness_export.uses.neighbourhood import Scorer

log = logging.getLogger(__name__)
IMAGE = "image"


def train_and_measure(table: Table, recipe: Recipe, folder: Path, data_root: Path) -> tuple[list[Line], Cost]:
    """Train a recipe, or go on where that was interrupted, then measure it and draw its contact sheet.

    Returns:
        The figures, and what they cost.

    Raises:
        InputError: the folder holds a run of another recipe, or the data cannot be used.
    """
    run = Run(folder)
    needed_products(table, recipe_catalogue(recipe.data, data_root), data_root)  # not after hours of training
    _share_features(run)
    train_measured(recipe, run, data_root)
    return _measure(table, run, [run], [run], data_root)


def join_and_measure(
    table: Table, parts: Sequence[Run], trained: Sequence[Run], folder: Path, data_root: Path
) -> tuple[list[Line], Cost]:
    """Join runs, themselves trained or joined, then measure what comes of it and draw its contact sheet.

    Returns:
        The figures, and what they cost: seconds are those of all runs that were trained for it together, memory that of
        the largest.

    Raises:
        InputError: a run is not trained, or they do not fit together.
    """
    joined = Run(folder)
    _share_features(joined)
    join_runs(parts, joined)
    return _measure(table, joined, parts, trained, data_root)


def _measure(
    table: Table, run: Run, parts: Sequence[Run], trained: Sequence[Run], data_root: Path
) -> tuple[list[Line], Cost]:
    recipe = run.read_recipe()
    catalogue = needed_products(table, recipe_catalogue(recipe.data, data_root), data_root)
    embedder = OfflineEmbedder(run, catalogue)
    lines = [line for measure in table.measures for line in take(measure, run, embedder, catalogue, data_root, parts)]
    if table.sheet:
        task = Task(labels=table.sheet.labels[:1], queries=table.sheet.queries, gallery=table.sheet.gallery)
        place = run.folder / "sheet.png"
        place.unlink(missing_ok=True)  # where there is nothing to draw, one of another split would stay
        draw_sheet(embedder.embed(recipe.modalities()), catalogue, task, place)
    return lines, cost_of(recipe, embedder.network, run, trained, catalogue)


def _share_features(run: Run) -> None:
    """Let all runs of a table keep features in one place, named by content: many are the same, joined runs' all are."""
    shared = run.folder.parent.parent / "features"
    shared.mkdir(parents=True, exist_ok=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    if not run.features.exists():
        run.features.symlink_to(Path("..", "..", "features"))


def take(
    measure: Measure,
    run: Run,
    embedder: OfflineEmbedder,
    catalogue: Catalogue,
    data_root: Path,
    parts: Sequence[Run] = (),
) -> Iterator[Line]:
    """Take one measure of a trained run, whose embedder embeds the products of all splits that the measure needs.

    ``parts`` are the runs that a joined one was made of.
    """
    match measure:
        case Incomplete():
            yield from _incomplete(measure, embedder, catalogue)
        case Ranking():
            yield from _ranking(measure, embedder, catalogue)
        case Views():
            yield _views(measure, run, catalogue)
        case PairSets():
            scores = _scores_of(embedder)
            yield from measure_pair_sets(
                measure, scores, catalogue, data_root, _lessons(embedder, scores, catalogue, parts)
            )


def _scores_of(embedder: OfflineEmbedder) -> dict[str, Scorer]:
    return trained_scores(embedder.embed(embedder.recipe.modalities()), embedder.network)


def _lessons(
    embedder: OfflineEmbedder, scores: dict[str, Scorer], catalogue: Catalogue, parts: Sequence[Run]
) -> list[Lesson]:
    """Return what decisions are learned from: pairs that nothing was trained on, or each part's own such pairs."""
    data = embedder.recipe.data
    if not data.joined_folds:
        return [Lesson(scorers=scores, held_out=data.held_out, fold=data.fold)]
    return [
        Lesson(scorers=_scores_of(OfflineEmbedder(part, catalogue)), held_out=data.held_out, fold=fold)
        for part, fold in zip(parts, data.joined_folds, strict=True)
    ]


def line_of(task: str, label: str, what: str, found: Retrieval) -> Line:
    """Return a ranking as a line, its figures under the names of the tables."""
    hits = {f"hit@{k}": value for k, value in found.recall_at.items()}
    figures = {**hits, "mAP": found.mean_average_precision, "nDCG@10": found.ndcg_at_10}
    return Line(task=task, label=label, what=what, count=found.queries, figures=figures)


def views_of(catalogue: Catalogue) -> tuple[Catalogue, Catalogue]:
    """Return the products with at least two photos, once with the last alone and once with the first alone."""
    rows = [row for row, product in enumerate(catalogue.products) if len(product.images) > 1]
    some = catalogue.select(rows)
    last, first = (
        replace(some, products=tuple(replace(product, images=(product.images[place],)) for product in some.products))
        for place in (-1, 0)
    )
    return last, first


def _ranking(measure: Ranking, embedder: OfflineEmbedder, catalogue: Catalogue) -> Iterator[Line]:
    asked = catalogue.of_splits(measure.queries)
    known = tuple(label for label in measure.labels if (asked.labels(label) != "").any())
    for label in (label for label in measure.labels if label not in known):  # which costs the others nothing
        log.warning("%s: nothing is measured by %s, which no query has", measure.name, label)
    task = Task(labels=known, queries=measure.queries, gallery=measure.gallery)
    for row in evaluate(embedder, catalogue, embedder.recipe.modalities(), task):
        if row.figures.queries:
            yield line_of(measure.name, row.label, row.signature, row.figures)


def _incomplete(measure: Incomplete, embedder: OfflineEmbedder, catalogue: Catalogue) -> Iterator[Line]:
    """Rank complete products for complete ones that are reduced to fewer modalities.

    ``lost`` is the share of fusion's gain over the best single modality (on both sides) that such queries lose; it is
    left out where fusing gains nothing.
    """
    modalities = embedder.recipe.modalities()
    embedded = {name: embedder.embed(modalities_of(name)) for name in all_signatures(modalities)}
    whole = embedded[signature_of(modalities)]
    usable = complete(embedder.present, [whole])
    asking, ranked = (np.flatnonzero(usable & catalogue.in_splits(side)) for side in (measure.queries, measure.gallery))
    itself = places_in(ranked, asking)
    for label in measure.labels:
        labels = catalogue.labels(label)

        def rank(
            queries: NDArray[np.float32], gallery: NDArray[np.float32], labels: NDArray[np.str_] = labels
        ) -> Retrieval:
            return retrieval(queries[asking], gallery[ranked], labels[asking], labels[ranked], itself)

        fused = rank(whole, whole)
        if not fused.queries:
            continue
        best = fused.recall_at[1]
        single = max(rank(embedded[name], embedded[name]).recall_at[1] for name in modalities)
        for name, reduced in embedded.items():
            found = rank(reduced, whole)
            line = line_of(measure.name, label, name, found)
            lost = {"lost": (best - found.recall_at[1]) / (best - single)} if best > single else {}
            yield replace(line, figures={**line.figures, **lost})


def _views(measure: Views, run: Run, catalogue: Catalogue) -> Line:
    last, first = views_of(catalogue.of_splits(measure.splits))
    queries, gallery = (OfflineEmbedder(run, side).embed([IMAGE]) for side in (last, first))
    usable = ~np.isnan(queries).any(1) & ~np.isnan(gallery).any(1)
    names = np.array(last.ids)[usable]
    nowhere = np.full(len(names), -1, dtype=np.intp)  # the answer is the product itself
    found = retrieval(queries[usable], gallery[usable], names, names, nowhere)
    return line_of(measure.name, "product_id", IMAGE, found)
