"""Evaluation: retrieval metrics of a trained run on labelled products, per signature; offline or through a server."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from likeness_client.client import Client
from likeness_client.contract import all_signatures, modalities_of, signature_of
from likeness_client.errors import InputError, SpaceMismatchError
from numpy.typing import NDArray
from torch import Tensor

from likeness_export.evaluation.metrics import Retrieval, places_in, retrieval
from likeness_export.features.cache import cached_features
from likeness_export.features.tower_inputs import (
    TowerInputs,
    present_modalities,
    read_inputs,
    unknown_modalities,
)
from likeness_export.left_out import log_left_out
from likeness_export.products.catalogue import Catalogue, recipe_catalogue
from likeness_export.products.parts import Part
from likeness_export.recipe import OWN_LABEL
from likeness_export.run import Run

log = logging.getLogger(__name__)
_NOTHING = (
    "no query that has an embedding has another product alike in the gallery; name a coarser label with --label, or "
    "other splits with --split and --gallery"
)
_NOTHING_ACROSS = (
    "it asks for a product by another modality of it, and no complete product stands in both query and gallery with "
    "two served modalities that can be compared (late fusion keeps them apart); name other splits with --split and "
    "--gallery, or what products share with --label"
)
AS_THEY_ARE = "as they are"
"""The row of the table in which every product keeps all that it has."""


class Embedder(Protocol):
    """Embeds the products of one catalogue, restricted to some modalities."""

    @property
    def signatures(self) -> Sequence[str]:
        """The sets of modalities that it embeds."""
        ...

    @property
    def present(self) -> NDArray[np.bool_]:
        """BOOL [n, m], the recipe's modalities that each product has, readable or not, but for those wholly unknown."""
        ...

    def embed(self, modalities: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors FP32 [n, d]; NaN rows where none of the modalities is there, or one cannot be read."""
        ...


class OfflineEmbedder:
    """Embeds with eager torch. Towers run once; every signature only fuses again.

    Raises:
        InputError: the run is not trained to its end, or a file of it is damaged.
    """

    def __init__(self, run: Run, catalogue: Catalogue) -> None:
        self.recipe, self.network = run.read_network()
        self.signatures = all_signatures(self.recipe.modalities())
        parts = catalogue.parts(self.recipe.input_schema(), self.recipe.modalities())
        inputs = read_inputs(self.recipe.towers, run.towers, parts, catalogue.ids, once=self.recipe.towers)
        with torch.inference_mode():
            vectors = [self._vectors(run, inputs[name]) for name in self.recipe.towers]
        self.vectors = torch.stack(vectors, 1)  # (n, t, d)
        towers = self.recipe.tower_modalities()
        self.present = _held(parts, self.network.modalities) & ~unknown_modalities(towers, inputs)
        self._readable = present_modalities(towers, inputs)

    def _vectors(self, run: Run, inputs: TowerInputs) -> Tensor:
        tower, config = self.network.tower(inputs.name), self.recipe.towers[inputs.name]
        return tower.project(torch.from_numpy(cached_features(inputs, tower.encoder, config, run.features)))

    @torch.inference_mode()
    def embed(self, modalities: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder`.

        Raises:
            InputError: the run has none of one of the modalities.
        """
        if unknown := [name for name in modalities if name not in self.network.modalities]:
            had = ", ".join(self.network.modalities)
            raise InputError(f"modalities must be a list of some of {had}: {unknown[0]!r} is none of them")
        present = self.present & [name in modalities for name in self.network.modalities]
        # As the server does: what holds something unreadable is refused, not embedded by the rest.
        usable = present.any(1) & (self._readable | ~present).all(1)
        embeddings = np.full((len(present), self.recipe.embedding_dimension()), np.nan, np.float32)
        embeddings[usable] = self.network.fuse(self.vectors[usable], torch.from_numpy(present[usable]))[0].numpy()
        return embeddings


class ServedEmbedder:
    """Embeds through a running server, as any caller would.

    Args:
        client: of the server.
        catalogue: the products.
        space: of the run that is meant; a server of another one would be measured under its name.

    Raises:
        SpaceMismatchError: the server serves another run.
    """

    def __init__(self, client: Client, catalogue: Catalogue, space: str) -> None:
        self.client, self.catalogue = client, catalogue
        info = client.info()
        if info.space != space:
            raise SpaceMismatchError(
                f"{client.address} serves the space {info.space}, not the run's {space}: export the run, and serve "
                "that, or, if another version of Likeness exported it, measure with that version"
            )
        self.signatures = info.signatures
        parts = catalogue.parts(info.schema, info.modalities)
        self._modalities, self.present = info.modalities, _held(parts, info.modalities)

    def embed(self, modalities: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder`."""
        answer = self.client.embed(self.catalogue.products, modalities=modalities, on_error="return")
        if {*self._modalities} <= {*modalities}:  # with fewer, most of what fails just lacks them
            new = [error for place, error in answer.errors.items() if self.present[place].any()]  # others were named
            log_left_out(log, map("left out: {}".format, new), lambda count: f"left out: {count} more products")
        for column, name in enumerate(self._modalities):
            if name in modalities:  # what is held is embedded, all but what is wholly unknown
                self.present[:, column] &= [not found or name in modalities_of(found) for found in answer.signatures]
        vectors: NDArray[np.float32] = answer.vectors
        return vectors


def _held(parts: Sequence[Mapping[str, Part]], modalities: Sequence[str]) -> NDArray[np.bool_]:
    """Return BOOL [n, m]: which of the modalities each product holds, readable or not."""
    held = [[name in found for name in modalities] for found in parts]
    return np.array(held, dtype=bool).reshape(len(parts), len(modalities))  # of no products, too


def complete(present: NDArray[np.bool_], embedded: Iterable[NDArray[np.float32]]) -> NDArray[np.bool_]:
    """Return BOOL [n]: the products that have all modalities, each of them readable.

    Args:
        present: BOOL [n, m], see `Embedder`.
        embedded: FP32 [n, d] each, the embeddings by every signature; NaN rows where there is none.
    """
    found: NDArray[np.bool_] = np.logical_and.reduce(
        [present.all(1), *(~np.isnan(vectors).any(1) for vectors in embedded)]
    )
    return found


def _comparable(left: NDArray[np.float32], right: NDArray[np.float32]) -> bool:
    """Say whether vectors have a number in common that is not 0: by late fusion those of two modalities have none."""
    return bool((left.any(0) & right.any(0)).any())


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the report.

    Attributes:
        label: the label field that defines relevance.
        signature: what every product was reduced to, or `AS_THEY_ARE`; ``text -> image``: what the queries and what the
            gallery were reduced to.
        figures: the metrics.
    """

    label: str
    signature: str
    figures: Retrieval


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is ranked against what.

    Attributes:
        labels: label fields, one report per field.
        queries: splits that the queries come from.
        gallery: splits that the ranked products come from; a query that is in it is left out of its own ranking.
    """

    labels: tuple[str, ...]
    queries: tuple[str, ...] = ("val",)
    gallery: tuple[str, ...] = ("val",)


def labels_to_judge_by(run: Run, named: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that are named, each once, or else those that the run was trained on.

    Raises:
        InputError: none is named, and it was trained on none.
    """
    labels = tuple(dict.fromkeys(named)) or run.read_recipe().data.labels
    if not labels:
        raise InputError(f"{run.folder} was not trained on labels: name what makes two products alike with --label")
    return labels


def read_task_catalogue(run: Run, data_root: Path, task: Task) -> Catalogue:
    """Read the products that a task needs; warns of queries that the run was trained on.

    Raises:
        InputError: the products cannot be read, or no query has one of the labels.
    """
    data = run.read_recipe().data
    catalogue = recipe_catalogue(data, data_root).of_splits([*task.queries, *task.gallery])
    for label in task.labels:
        catalogue.needed_labels(label, task.queries)
    _, known = run.trained_on()
    if not data.pairs:  # products of pairs are known; what is new is who matches whom
        asked = catalogue.of_splits(task.queries).ids
        if seen := sum(name in known for name in asked if name):
            log.warning(
                "%d of %d products of split %s were trained on: the figures flatter%s",
                seen,
                len(asked),
                " and ".join(task.queries),
                "" if {*task.queries} & {*data.train_splits} else "; was the file split anew?",
            )
    return catalogue


def evaluate(embedder: Embedder, catalogue: Catalogue, modalities: Sequence[str], task: Task) -> Iterator[Row]:
    """Measure every signature that the embedder has, on the catalogue that it embeds.

    The rows of single signatures use only products that have all of the recipe's modalities, and readable ones, each
    reduced to the signature: so they compare, the same queries against the same gallery. The row `AS_THEY_ARE` uses
    all products with what they have. By the label `OWN_LABEL` one modality of a product is asked for another one.

    Raises:
        InputError: no query has one of the labels.
    """
    for label in task.labels:
        catalogue.needed_labels(label, task.queries)
    is_query, is_gallery = catalogue.in_splits(task.queries), catalogue.in_splits(task.gallery)
    offered = [name for name in all_signatures(modalities) if name in embedder.signatures]
    embedded = {name: embedder.embed(modalities_of(name)) for name in offered}
    whole_products = complete(embedder.present, embedded.values())
    everything = signature_of(modalities)
    embedded[AS_THEY_ARE] = embedded[everything] if everything in embedded else embedder.embed(modalities)
    single = [name for name in modalities if name in embedded]
    measured = dict.fromkeys(task.labels, 0)
    for asked_by, signature in chain(((name, name) for name in embedded), permutations(single, 2)):
        usable = ~np.isnan(embedded[signature]).any(1) & (whole_products | (signature == AS_THEY_ARE))
        queries, gallery = np.flatnonzero(is_query & usable), np.flatnonzero(is_gallery & usable)
        across = asked_by != signature
        if across and not _comparable(embedded[asked_by][queries], embedded[signature][gallery]):
            continue
        itself = np.full(len(queries), -1) if across else places_in(gallery, queries)
        for label in (label for label in task.labels if (label == OWN_LABEL) == across):
            labels = catalogue.labels(label)
            figures = retrieval(
                embedded[asked_by][queries], embedded[signature][gallery], labels[queries], labels[gallery], itself
            )
            measured[label] += figures.queries
            name = f"{asked_by} -> {signature}" if across else signature
            yield Row(label=label, signature=name, figures=figures)
    for label in (label for label, queries in measured.items() if not queries):
        log.warning("nothing was measured by %s: %s", label, _NOTHING_ACROSS if label == OWN_LABEL else _NOTHING)
