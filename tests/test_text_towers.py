"""Two text towers at once, and two such runs joined, without any pretrained network: served as eager torch has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from likeness_client import Client, Product
from likeness_client.contract import NOTHING_KNOWN, Metric, modalities_of
from likeness_export.evaluation.evaluate import OfflineEmbedder
from likeness_export.exporting.export import export_run
from likeness_export.products.catalogue import Catalogue, read_catalogue
from likeness_export.recipe import parse_recipe
from likeness_export.run import Run
from likeness_export.server.serve import ServeConfig, serving
from likeness_export.training.joining import join_runs
from likeness_export.training.train import train

pytestmark = pytest.mark.server

RECIPE = {
    "name": "words",
    "dimension": 32,
    "data": {"products": "products.jsonl", "labels": ["group"]},
    "towers": {
        "terms": {"encoder": "tfidf", "max_features": 3000},
        "vectors": {"encoder": "word_vectors", "vector_size": 24, "epochs": 10, "freeze": False},
        "attributes": {"encoder": "one_hot", "keys": ["kind", "material", "colour", "price_usd"]},
        "code": {"encoder": "hashed", "keys": ["size", "brand"]},
    },
    "training": {"epochs": 6, "groups_per_batch": 12, "group_size": 2},
    "serving": {"max_batch_size": 8},
}


@pytest.fixture(scope="module", params=["concatenated", "joined"])
def run(request: pytest.FixtureRequest, demo_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("words")
    if request.param == "concatenated":
        return trained(folder / "run", demo_catalogue, fusion={"kind": "concatenation"})
    late = {"fusion": {"kind": "late"}}
    parts = [trained(folder / f"run-{seed}", demo_catalogue, seed=seed, **late) for seed in (1, 2)]
    join_runs(parts, Run(folder / "run"))
    return Run(folder / "run")


def trained(folder: Path, demo_catalogue: Path, **changes: Any) -> Run:
    run = Run(folder)
    train(parse_recipe({**RECIPE, **changes}, "test"), run, demo_catalogue.parent)
    return run


@pytest.fixture(scope="module")
def words_client(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("words-server")
    export_run(run, folder / "repository")
    config = ServeConfig.on_unused_ports(folder / "repository", folder / "tritonserver.log")
    with serving(config), Client(config.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def catalogue(demo_catalogue: Path) -> Catalogue:
    """Products of the held-out part, of which some have no text or no attributes."""
    return read_catalogue(demo_catalogue).of_splits(["val"]).select(range(60))


@pytest.mark.parametrize("signature", ["text", "attributes", "text_attributes"])
def test_embeddings_are_those_of_eager_torch(
    run: Run, words_client: Client, catalogue: Catalogue, signature: str
) -> None:
    eager = OfflineEmbedder(run, catalogue)
    expected = eager.embed(modalities_of(signature))
    served = words_client.embed(catalogue.products, modalities=modalities_of(signature), on_error="return")
    np.testing.assert_allclose(served.vectors, expected, rtol=0, atol=1e-4, equal_nan=True)
    there = np.isfinite(expected).all(1)
    assert there.sum() > 50
    assert np.abs(expected[there] - expected[there][0]).max() > 0.1, "all products have one embedding"


def test_scores_are_those_of_eager_torch(run: Run, words_client: Client, catalogue: Catalogue) -> None:
    _, network = run.read_network()
    found = torch.from_numpy(OfflineEmbedder(run, catalogue).embed(("text", "attributes")))
    rows = torch.nonzero(found.isfinite().all(1)).flatten()[:20]
    expected = torch.sigmoid(network.metric(found[rows][:, None], found[rows][None])).detach().numpy()
    products = [catalogue.products[row] for row in rows.tolist()]
    served = words_client.similarity_matrix(products, products, metric=Metric.LEARNED)
    np.testing.assert_allclose(served.values, expected, rtol=0, atol=1e-4)


def test_listings_of_one_product_are_found_by_their_words(words_client: Client, catalogue: Catalogue) -> None:
    rows = [row for row, product in enumerate(catalogue.products) if product.title]
    vectors = words_client.embed([catalogue.products[row] for row in rows], modalities=["text"]).vectors
    groups = catalogue.labels("group")[rows]
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -1)
    alike = groups[:, None] == groups
    found = np.mean([alike[row, place] for row, place in enumerate(scores.argmax(1))])
    by_chance = (alike.sum(1) - 1).mean() / (len(rows) - 1)
    assert found > 5 * by_chance


def test_long_texts_and_what_few_or_no_towers_know_are_served_as_in_eager_torch(
    run: Run, words_client: Client, catalogue: Catalogue
) -> None:
    long = " ".join(f"word{number} vase" for number in range(3000))
    unheard = "qqq zzz"
    kind = next(product.attributes["kind"] for product in catalogue.products if "kind" in product.attributes)
    odd = (
        Product(product_id="a", title=long, description="?! 🏺"),
        Product(product_id="b", title=unheard, attributes={"kind": kind}),
        Product(product_id="c", attributes={"kind": kind}),
        Product(product_id="d", attributes={"kind": unheard, "brand": unheard}),  # a code needs no vocabulary
        Product(product_id="e", title=unheard, attributes={"kind": unheard}),
    )
    expected = OfflineEmbedder(run, Catalogue(products=odd, records=({},) * len(odd))).embed(["text", "attributes"])
    served = words_client.embed(odd, on_error="return")
    np.testing.assert_allclose(served.vectors, expected, rtol=0, atol=1e-4, equal_nan=True)
    assert served.signatures == ("text", "attributes", "attributes", "attributes", "")
    assert str(served.errors[4]) == f"product 4 ('e'), attributes: {NOTHING_KNOWN}"
    np.testing.assert_allclose(served.vectors[1], served.vectors[2], atol=1e-6)
