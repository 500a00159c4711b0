"""The real products that reduced files are calibrated and judged on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime as ort
from likeness_client.payloads import sendable
from numpy.typing import NDArray

from likeness_export.exporting.onnx_export import open_session
from likeness_export.features.tower_inputs import TowerInputs, read_inputs
from likeness_export.pipeline import towers_of
from likeness_export.precision.gate import JudgedVectors
from likeness_export.products.catalogue import Catalogue, recipe_catalogue
from likeness_export.products.named_pairs import NamedPair, groups_of_pairs, read_named_pairs
from likeness_export.recipe import Recipe
from likeness_export.run import Run
from likeness_export.training.training_data import read_training_data, training_pairs

Feed: TypeAlias = dict[str, NDArray[np.generic]]
"""A network's inputs by name."""
PAIRS = "pairs"
"""Label of what the pairs of a recipe connect."""
_MOST = 1500  # judged products; a point of recall@1 is then fifteen of them
_CALIBRATION = 128
_OF_EACH = 300  # judged products of a modality that few have, or all of them
_ALONE = 64  # products of each signature that are also run in a batch of one


@dataclass(frozen=True, kw_only=True)
class Products:
    """Some products, ready for every tower.

    Attributes:
        split: where they come from, e.g. ``val``.
        inputs: tower -> its tensors.
        signatures: the towers of each served signature.
        labels: label -> its value per product; of a recipe of pairs the one label `PAIRS`.
        batch_size: how many go through a network together.
    """

    split: str
    inputs: Mapping[str, TowerInputs]
    signatures: Collection[Collection[str]]
    labels: Mapping[str, NDArray[np.str_]]
    batch_size: int

    def embed(self, tower: str, network: Path, *, most: int | None = None) -> JudgedVectors:
        """Run a tower's network over the products (or the first ``most`` of them), and over some one by one."""
        session = open_session(tower, network)
        present = np.flatnonzero(self.inputs[tower].known)
        return JudgedVectors(
            together=self._run(session, tower, present[:most], self.batch_size),
            alone=self._run(session, tower, self._sample(tower), 1),
        )

    def _sample(self, tower: str) -> NDArray[np.intp]:
        """Choose products of every signature that the tower has a part in; the most complete, which belong to many."""
        present = {name: inputs.known for name, inputs in self.inputs.items()}
        order = np.argsort(-np.sum([*present.values()], axis=0), kind="stable")
        chosen = np.zeros(len(order), bool)
        for towers in ({tower}, *(towers for towers in self.signatures if tower in towers)):
            whole = np.logical_and.reduce([present[name] for name in towers])
            chosen[order[whole[order]][:_ALONE]] = True
        return np.flatnonzero(chosen)

    def count(self, tower: str) -> int:
        """Return how many have a usable input for this tower."""
        return int(np.count_nonzero(self.inputs[tower].known))

    def feeds(self, tower: str, size: int) -> Iterator[Feed]:
        """Yield the network's inputs of all products with a usable one for the tower, in batches of ``size``."""
        rows = self._unpadded(tower, np.flatnonzero(self.inputs[tower].known))
        for start in range(0, len(rows), size):
            yield self._feed(tower, rows[start : start + size])

    def _run(self, session: ort.InferenceSession, tower: str, rows: NDArray[np.intp], size: int) -> NDArray[np.float32]:
        width = int(session.get_outputs()[0].shape[-1])
        vectors = np.full((len(self.inputs[tower].items), width), np.nan, np.float32)
        rows = self._unpadded(tower, rows)
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            vectors[chunk] = session.run(None, self._feed(tower, chunk))[0]
        return vectors

    def _unpadded(self, tower: str, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the rows, those with as many photos together: a server computes no padding of photos either."""
        return rows[np.argsort(self.inputs[tower].lengths(rows), kind="stable")]

    def _feed(self, tower: str, rows: NDArray[np.intp]) -> Feed:
        inputs = self.inputs[tower]
        return {spec.name: tensor.numpy() for spec, tensor in zip(inputs.specs, inputs.batch(rows), strict=True)}


def judged_products(run: Run, data_root: Path) -> Products:
    """Read the products that reduced files are judged on: those of split ``val``, or else those of the training.

    Of a recipe of pairs those that pairs of that split name, matches first: at random few would meet their match.

    Raises:
        InputError: the recipe's data cannot be read below ``data_root``.
    """
    recipe = run.read_recipe()
    data = recipe.data
    catalogue = recipe_catalogue(data, data_root)
    if data.pairs:
        found = read_named_pairs(data_root / data.pairs, ["val"])
        split, pairs = ("val", found) if found else ("train", training_pairs(data, data_root))
        return _read(run, recipe, _paired(catalogue, pairs), split, pairs)
    if catalogue.in_splits(["val"]).any():
        split = "val (trained on)" if "val" in data.train_splits else "val"
        return _read(run, recipe, some_of(recipe, catalogue.of_splits(["val"]), _MOST, _OF_EACH), split)
    trained_on = read_training_data(recipe, data_root).catalogue
    return _read(run, recipe, some_of(recipe, trained_on, _MOST, _OF_EACH), "train")


def _paired(catalogue: Catalogue, pairs: Sequence[NamedPair]) -> Catalogue:
    """Draw the products of pairs, always the same ones, in random order; those of matches first, both sides."""
    row_of = {name: row for row, name in enumerate(catalogue.ids)}
    order = np.random.default_rng(0).permutation(len(pairs)).tolist()
    drawn = sorted((pairs[place] for place in order), key=lambda pair: -pair.label)
    rows = dict.fromkeys(row_of[name] for pair in drawn for name in (pair.left, pair.right) if name in row_of)
    return catalogue.select(np.random.default_rng(0).permutation(list(rows)[:_MOST]))


def calibration_products(run: Run, data_root: Path) -> Products:
    """Read the training products that activations are calibrated on.

    Raises:
        InputError: the recipe's data cannot be read below ``data_root``.
    """
    recipe = run.read_recipe()
    trained_on = read_training_data(recipe, data_root).catalogue
    return _read(run, recipe, some_of(recipe, trained_on, _CALIBRATION, _CALIBRATION), "train")


def some_of(recipe: Recipe, catalogue: Catalogue, most: int, of_each: int) -> Catalogue:
    """Draw products, always the same ones, in random order.

    Files often hold what is alike in a row. In that order it would share batches, and dynamic quantisation, which moves
    a whole batch alike, would seem to bring products together.

    Args:
        recipe: what they are embedded with.
        catalogue: what is drawn from.
        most: how many.
        of_each: how many of each modality, if there are so many; what is lacking comes on top of ``most``.
    """
    order = np.random.default_rng(0).permutation(len(catalogue))
    schema, chosen = recipe.input_schema(), set(order[:most].tolist())
    for modality in recipe.modalities():
        having = (row for row in order.tolist() if sendable(catalogue.products[row], schema, (modality,)))
        chosen.update(islice(having, of_each))
    return catalogue.select([row for row in order.tolist() if row in chosen])


def _read(run: Run, recipe: Recipe, catalogue: Catalogue, split: str, pairs: Sequence[NamedPair] = ()) -> Products:
    found = catalogue.parts(recipe.input_schema(), recipe.modalities())
    labels = {label: catalogue.labels(label) for label in recipe.data.labels}
    if pairs:
        labels[PAIRS] = groups_of_pairs(catalogue.ids, pairs)
    return Products(
        split=split,
        inputs=read_inputs(recipe.towers, run.towers, found, catalogue.ids),
        signatures=[towers_of(recipe, signature) for signature in recipe.signatures()],
        labels=labels,
        batch_size=recipe.serving.max_batch_size,
    )
