"""One answer, whichever way it is computed: eager torch, the files on onnxruntime, Triton through both clients."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from likeness_client import AsyncClient, Client, Embeddings, Metric, Product, SpaceMismatchError
from likeness_client.contract import (
    EMBEDDING,
    LEFT,
    MATRIX_MODEL,
    MODALITY_WEIGHTS,
    RIGHT,
    SIMILARITY_MODEL,
    all_signatures,
    encoder_model,
    fusion_model,
    modalities_of,
    pair_model,
    preprocess_model,
    sided,
    tower_error,
)
from likeness_client.payloads import payloads
from likeness_export.encoders.base import ASSETS
from likeness_export.networks.similarity import Similarity
from likeness_export.recipe import Recipe
from likeness_export.run import Run
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.conftest import Infer

pytestmark = pytest.mark.server

FloatArray = NDArray[np.float32]
SIGNATURES = all_signatures(("text", "image", "attributes"))
COUNT = 20  # more than two full batches of the fixture's server


class Eager:
    """The reference: the trained network in torch, with the one fusion head that all signatures share."""

    def __init__(self, run: Run) -> None:
        self.recipe, self.network = run.read_network()
        self.preprocessors = {
            name: tower.preprocessing.Preprocessor(run.towers / name / ASSETS)
            for name, tower in self.recipe.towers.items()
        }

    @torch.inference_mode()
    def embed(self, products: Sequence[Product], signature: str) -> tuple[FloatArray, FloatArray]:
        tensors = preprocess(self.recipe, self.preprocessors, products, signature)
        vectors = torch.zeros(len(products), len(self.recipe.towers), self.recipe.dimension)
        for place, (name, tower) in enumerate(self.recipe.towers.items()):
            if name in tensors:
                given = [torch.from_numpy(tensors[name][spec.name]) for spec in tower.tensors()]
                vectors[:, place] = self.network.tower(name)(*given)
        present = torch.tensor([[modality in modalities_of(signature) for modality in self.network.modalities]])
        embedding, weights = self.network.fuse(vectors, present)
        return embedding.numpy(), weights[:, present[0]].numpy()

    @torch.inference_mode()
    def block(self, left: FloatArray, right: FloatArray) -> dict[Metric, FloatArray]:
        scores = Similarity(self.network.metric)(torch.from_numpy(left)[None], torch.from_numpy(right)[None])
        return {metric: score[0].numpy() for metric, score in zip(Metric, scores, strict=True)}

    def pairs(self, left: FloatArray, right: FloatArray) -> dict[Metric, FloatArray]:
        return {metric: block.diagonal() for metric, block in self.block(left, right).items()}


class Exported:
    """The files of a repository on onnxruntime, fed by the repository's own copy of the preprocessing."""

    def __init__(self, recipe: Recipe, repository: Path) -> None:
        self.recipe, self.repository = recipe, repository
        self.preprocessors = {name: self._preprocessor(name) for name in recipe.towers}

    def _preprocessor(self, tower: str) -> Any:
        version = self.repository / preprocess_model(tower) / "1"
        return load_module(f"{tower}_served", version / "preprocessing.py").Preprocessor(version / ASSETS)

    def run(self, model: str, **tensors: NDArray[Any]) -> dict[str, NDArray[Any]]:
        (network,) = self.repository.glob(f"{model}/*/model.onnx")
        session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, tensors), strict=True))

    def embed(self, products: Sequence[Product], signature: str) -> tuple[FloatArray, FloatArray]:
        tensors = preprocess(self.recipe, self.preprocessors, products, signature)
        vectors: dict[str, NDArray[Any]] = {}
        for name, given in tensors.items():
            vectors |= self.run(encoder_model(name), **given)
        if signature not in self.recipe.fused_signatures():
            (vector,) = vectors.values()
            return vector, np.ones((len(vector), 1), np.float32)
        fused = self.run(fusion_model(signature), **vectors)
        return fused[EMBEDDING], fused[MODALITY_WEIGHTS]


def load_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def preprocess(
    recipe: Recipe, preprocessors: dict[str, Any], products: Sequence[Product], signature: str
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the tensors of every tower that the signature has."""
    found = [payloads(product, recipe.input_schema(), modalities_of(signature)) for product in products]
    tensors = {}
    for name, modality in recipe.tower_modalities().items():
        if modality in modalities_of(signature):
            tensors[name], errors = preprocessors[name]([parts[modality] for parts in found])
            assert not any(errors)
    return tensors


@pytest.fixture(scope="module")
def eager(trained_run: Run) -> Eager:
    return Eager(trained_run)


@pytest.fixture(scope="module")
def exported(eager: Eager, repository: Path) -> Exported:
    return Exported(eager.recipe, repository)


@pytest.fixture(scope="module")
def some(complete: list[Product]) -> list[Product]:
    return complete[:COUNT]


@pytest.fixture(scope="module")
def mixed(complete: list[Product]) -> list[Product]:
    """Products of all signatures in turn."""
    return [reduced(product, signature) for product, signature in zip(complete[:30], cycle(SIGNATURES), strict=False)]


def reduced(product: Product, signature: str) -> Product:
    """Return the product as if it had these modalities only."""
    missing = {"text", "image", "attributes"} - set(modalities_of(signature))
    blanks: dict[str, Any] = {"title": "", "description": ""} if "text" in missing else {}
    blanks |= {"images": ()} if "image" in missing else {}
    blanks |= {"attributes": {}} if "attributes" in missing else {}
    return replace(product, **blanks)


def weights_of(found: Embeddings) -> FloatArray:
    return np.array([list(weights.values()) for weights in found.modality_weights], np.float32)


def assert_same(found: FloatArray, expected: FloatArray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def assert_same_vectors(found: FloatArray, expected: FloatArray) -> None:
    assert_same(found, expected)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert (found * expected).sum(1).min() >= 0.9999


@pytest.mark.parametrize("signature", SIGNATURES)
def test_embeddings_and_weights(
    eager: Eager, exported: Exported, client: Client, some: list[Product], signature: str
) -> None:
    vectors, weights = eager.embed(some, signature)
    assert np.abs(vectors[:1] - vectors[1:]).max() > 0.1, "all products have one embedding: nothing is compared"
    from_files = exported.embed(some, signature)
    assert_same_vectors(from_files[0], vectors)
    assert_same(from_files[1], weights)
    served = client.embed(some, modalities=modalities_of(signature))
    assert_same_vectors(served.vectors, vectors)
    assert_same(weights_of(served), weights)
    assert set(served.signatures) == {signature}
    assert {tuple(named) for named in served.modality_weights} == {modalities_of(signature)}
    np.testing.assert_allclose(weights_of(served).sum(1), 1.0, atol=1e-5)


@pytest.mark.parametrize("signature", SIGNATURES)
def test_scores_of_pairs_of_one_signature(
    eager: Eager, client: Client, infer: Infer, some: list[Product], signature: str
) -> None:
    left, right = ([reduced(product, signature) for product in side] for side in (some[:8], some[8:16]))
    left_vectors, left_weights = eager.embed(left, signature)
    right_vectors, right_weights = eager.embed(right, signature)
    expected = eager.pairs(left_vectors, right_vectors)
    for metric in Metric:
        assert_same(client.similarity(left, right, metric=metric).values, expected[metric])
    tensors = {
        sided(side, name): [payloads(product, eager.recipe.input_schema(), [name])[name] for product in products]
        for side, products in ((LEFT, left), (RIGHT, right))
        for name in modalities_of(signature)
    }
    answer = infer(pair_model(signature), tensors)
    for metric in Metric:
        assert_same(answer[metric][:, 0], expected[metric])
    weights = {sided(LEFT, MODALITY_WEIGHTS): left_weights, sided(RIGHT, MODALITY_WEIGHTS): right_weights}
    if len(modalities_of(signature)) == 1:
        weights = {}  # it goes without saying
    for name, expected_weights in weights.items():
        assert_same(answer[name], expected_weights)
    errors = {sided(side, tower_error(name)) for side in (LEFT, RIGHT) for name in modalities_of(signature)}
    assert answer.keys() == {*Metric, *weights, *errors}
    assert not any(answer[name].any() for name in errors)


def test_scores_of_pairs_of_vectors(
    eager: Eager, exported: Exported, infer: Infer, client: Client, some: list[Product]
) -> None:
    left, right = eager.embed(some[:8], "text_image")[0], eager.embed(some[8:16], "attributes")[0]
    expected = eager.pairs(left, right)
    answer = infer(SIMILARITY_MODEL, {LEFT: left, RIGHT: right})
    from_file = exported.run(SIMILARITY_MODEL, left=left[:, None], right=right[:, None])
    sides = [reduced(product, "text_image") for product in some[:8]], [reduced(p, "attributes") for p in some[8:16]]
    for metric in Metric:
        assert_same(answer[metric][:, 0], expected[metric])
        assert_same(from_file[metric][:, 0, 0], expected[metric])
        assert_same(client.similarity(*sides, metric=metric).values, expected[metric])
        assert_same(client.similarity(*map(client.embed, sides), metric=metric).values, expected[metric])


def test_scores_of_blocks(eager: Eager, exported: Exported, infer: Infer, client: Client, some: list[Product]) -> None:
    queries, candidates = some[:7], some[3:]  # some are on both sides: distance 0
    left, right = eager.embed(queries, SIGNATURES[-1])[0], eager.embed(candidates, SIGNATURES[-1])[0]
    expected = eager.block(left, right)
    answer = infer(MATRIX_MODEL, {LEFT: left[None], RIGHT: right[None]})
    from_file = exported.run(MATRIX_MODEL, left=left[None], right=right[None])
    for metric in Metric:
        assert_same(from_file[metric][0], expected[metric])
        assert_same(answer[metric][0], expected[metric])
        # Cosine and Euclidean scores are the client's own arithmetic.
        assert_same(client.similarity_matrix(queries, candidates, metric=metric).values, expected[metric])


def test_two_stacked_blocks_are_two_blocks(eager: Eager, infer: Infer, some: list[Product]) -> None:
    vectors = eager.embed(some, "text_image")[0]
    left, right = vectors[:10].reshape(2, 5, -1), vectors[10:18].reshape(2, 4, -1)
    answer = infer(MATRIX_MODEL, {LEFT: left, RIGHT: right})
    for place in range(2):
        expected = eager.block(left[place], right[place])
        for metric in Metric:
            assert_same(answer[metric][place], expected[metric])


def test_one_pair_by_every_metric(eager: Eager, client: Client, some: list[Product]) -> None:
    left, right = reduced(some[0], "text_image"), reduced(some[1], "text_attributes")
    left_vectors, left_weights = eager.embed([left], "text_image")
    right_vectors, right_weights = eager.embed([right], "text_attributes")
    found = client.compare(left, right)
    for metric, expected in eager.pairs(left_vectors, right_vectors).items():
        assert getattr(found, metric) == pytest.approx(expected[0], abs=1e-4)
    assert list(found.left_weights.values()) == pytest.approx(left_weights[0], abs=1e-4)
    assert list(found.right_weights.values()) == pytest.approx(right_weights[0], abs=1e-4)


def test_both_clients_answer_alike(client: Client, address: str, mixed: list[Product]) -> None:
    left, right = mixed[:12], mixed[12:24]

    async def ask() -> list[Any]:
        async with AsyncClient(address) as other:
            return [
                await other.info(),
                await other.embed(mixed),
                await other.compare(left[0], right[0]),
                *[await other.similarity(left, right, metric=metric) for metric in Metric],
                *[await other.similarity_matrix(left, right, metric=metric) for metric in Metric],
            ]

    info, embedded, comparison, *scored = asyncio.run(ask())
    assert info == client.info()
    mine = client.embed(mixed)
    assert_same_vectors(embedded.vectors, mine.vectors)
    assert (embedded.signatures, embedded.product_ids) == (mine.signatures, mine.product_ids)
    assert (embedded.space, embedded.errors) == (mine.space, mine.errors)
    for found, expected in zip(embedded.modality_weights, mine.modality_weights, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    own_comparison = client.compare(left[0], right[0])
    for metric in Metric:
        assert getattr(comparison, metric) == pytest.approx(getattr(own_comparison, metric), abs=1e-4)
    own: list[Any] = [client.similarity(left, right, metric=metric) for metric in Metric]
    own += [client.similarity_matrix(left, right, metric=metric) for metric in Metric]
    for answer, expected_answer in zip(scored, own, strict=True):
        assert type(answer) is type(expected_answer)
        assert_same(answer.values, expected_answer.values)


def test_a_batch_is_as_many_single_calls_in_order(eager: Eager, client: Client, mixed: list[Product]) -> None:
    together = client.embed(mixed)
    assert len(mixed) > client.info().max_batch_size
    assert together.product_ids == tuple(product.product_id for product in mixed)
    assert together.signatures == tuple(signature for signature, _ in zip(cycle(SIGNATURES), mixed, strict=False))
    for row, product in enumerate(mixed):
        alone = client.embed([product])
        assert_same_vectors(together.vectors[row : row + 1], alone.vectors)
        assert_same_vectors(alone.vectors, eager.embed([product], together.signatures[row])[0])
        assert together.modality_weights[row] == pytest.approx(alone.modality_weights[0], abs=1e-4)


def test_duplicates_are_answered_alike(client: Client, mixed: list[Product]) -> None:
    twice = [*mixed[:9], *reversed(mixed[:9]), mixed[0]]
    found = client.embed(twice).vectors
    np.testing.assert_array_equal(found[:9], found[9:18][::-1])
    np.testing.assert_array_equal(found[0], found[18])
    assert_same_vectors(found[:9], client.embed(mixed[:9]).vectors)
    same = client.similarity(twice, twice, metric=Metric.EUCLIDEAN)
    np.testing.assert_allclose(same.values, 0.0, atol=1e-4)
    one_against_all = client.similarity([mixed[0]] * 9, mixed[:9])
    assert_same(one_against_all.values, found[:9] @ found[0])


def test_the_space_is_the_same_everywhere(client: Client, repository: Path, some: list[Product]) -> None:
    manifest = (repository / "manifest.json").read_text(encoding="utf-8")
    space = client.info().space
    assert f'"space": "{space}"' in manifest
    assert client.embed(some[:1]).space == client.similarity(some[:1], some[1:2]).space == space


def test_another_space_than_the_server_s_is_asked_for_in_vain(address: str, some: list[Product]) -> None:
    with Client(address) as client:
        held = client.embed(some[:2])
        for ask in (
            lambda: client.embed(some[:1]),
            lambda: client.embed(some * 40),
            lambda: client.similarity(some[:1], some[1:2]),
            lambda: client.similarity_matrix(held, held, metric=Metric.LEARNED),
        ):
            # As after a restart with another repository: the server refuses, and is asked what it has now.
            client._info = replace(client.info(), space="of before")
            assert ask().space == held.space
        client._info = replace(client.info(), space="of before")
        with pytest.raises(SpaceMismatchError):
            client.similarity_matrix(replace(held, space="of before"), held, metric=Metric.LEARNED)
