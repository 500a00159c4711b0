"""Products with interactions through the real server: its answers are eager torch's, cold products just lack them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from likeness_client import Client, Product
from likeness_client.contract import NOTHING_KNOWN
from likeness_export.demo.shoppers import log_shoppers
from likeness_export.evaluation.evaluate import Embedder, OfflineEmbedder, ServedEmbedder, complete
from likeness_export.exporting.export import export_run
from likeness_export.preprocessing import interactions
from likeness_export.products.catalogue import Catalogue, read_catalogue
from likeness_export.products.interaction_log import join_log
from likeness_export.recipe import parse_recipe
from likeness_export.run import Run
from likeness_export.server.serve import ServeConfig, serving
from likeness_export.training.train import train

pytestmark = pytest.mark.server

TOLERANCE = 1e-4
BOTH = ("attributes", "interactions")
RECIPE = {
    "name": "shoppers",
    "dimension": 32,
    "data": {"products": "with.jsonl", "labels": ["group"]},
    "towers": {
        "attributes": {"encoder": "one_hot", "keys": ["kind", "brand"]},
        "interactions": {"encoder": "als", "factors": 16},
    },
    "training": {"epochs": 2, "groups_per_batch": 8, "group_size": 3},
    "serving": {"max_batch_size": 8},
}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A run, its catalogue and its repository, and a client of the server that serves it."""

    run: Run
    catalogue: Catalogue
    repository: Path
    client: Client


def write_products(path: Path) -> None:
    """Four kinds of five designs, six listings each, no photos; every seventh lacks its attributes."""
    lines = []
    for number in range(120):
        kind, design = f"kind-{number % 4}", f"kind-{number % 4}-{number % 20}"
        record = {
            "product_id": f"p{number}",
            "split": "train",
            "coarse_label": kind,
            "fine_label": design,
            "group": f"{design}-red",
            "attributes": {"kind": kind, "brand": f"brand-{number % 5}"} if number % 7 else {},
        }
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("shoppers")
    write_products(root / "products.jsonl")
    join_log(
        root / "products.jsonl",
        log_shoppers(root / "products.jsonl", root / "log.csv", shoppers=100),
        root / "with.jsonl",
    )
    run, repository = Run(root / "run"), root / "repository"
    train(parse_recipe(RECIPE, "test"), run, root)
    export_run(run, repository)
    config = ServeConfig.on_unused_ports(repository, root / "tritonserver.log")
    with serving(config), Client(config.address) as client:
        yield Served(run=run, catalogue=read_catalogue(root / "with.jsonl"), repository=repository, client=client)


def test_the_servers_answers_are_eager_torchs(served: Served) -> None:
    offline = OfflineEmbedder(served.run, served.catalogue)
    for modalities in (BOTH, ("interactions",)):
        expected = offline.embed(modalities)
        answer = served.client.embed(served.catalogue.products, modalities=modalities, on_error="return")
        assert np.array_equal(np.isnan(answer.vectors), np.isnan(expected))
        assert np.nanmax(np.abs(answer.vectors - expected)) < TOLERANCE


def test_cold_products_lack_the_modality_and_nothing_else(served: Served) -> None:
    products = served.catalogue.products
    answer = served.client.embed(products, on_error="return")
    expected = [
        "_".join(name for name in BOTH if getattr(product, name)) if product.attributes or product.interactions else ""
        for product in products
    ]
    assert list(answer.signatures) == expected
    assert {"attributes", "interactions", "attributes_interactions"} <= set(expected)
    for signature, weights in zip(expected, answer.modality_weights, strict=True):
        assert list(weights) == [name for name in signature.split("_") if name]
        assert not weights or sum(weights.values()) == pytest.approx(1, abs=1e-4)


def test_a_new_product_works_from_its_first_known_shopper_on(served: Served) -> None:
    names = json.loads((served.repository / "interactions_preprocess/1/assets/users.json").read_text(encoding="utf-8"))
    batch = [
        Product(product_id="new", interactions={names[0]: 1}),
        Product(product_id="strange", interactions={"nobody": 3}),
        Product(product_id="both", interactions={names[0]: 1, "nobody": 3}),
    ]
    answer = served.client.embed(batch, on_error="return")
    assert list(answer.errors) == [1]
    assert answer.errors[1].modality == "interactions"
    assert NOTHING_KNOWN in str(answer.errors[1])
    np.testing.assert_allclose(answer.vectors[0], answer.vectors[2], atol=1e-6)


def test_what_is_unknown_takes_nothing_from_what_else_there_is_offline_as_served(served: Served) -> None:
    names = json.loads((served.repository / "interactions_preprocess/1/assets/users.json").read_text(encoding="utf-8"))
    facts, strangers = {"kind": "kind-1", "brand": "brand-1"}, {"nobody": 3}
    unheard, known = {"kind": "unheard of"}, {names[0]: 1}
    products = (
        Product(attributes=facts, interactions=strangers),
        Product(attributes=facts),
        Product(interactions=strangers),
        Product(attributes=unheard, interactions=known),
        Product(interactions=known),
        Product(attributes=unheard, interactions=strangers),
    )
    catalogue = Catalogue(products=products, records=({},) * len(products))
    space = served.client.info().space
    embedders: tuple[Embedder, ...] = (
        OfflineEmbedder(served.run, catalogue),
        ServedEmbedder(served.client, catalogue, space),
    )
    offline, online = (embedder.embed(BOTH) for embedder in embedders)
    np.testing.assert_allclose(online, offline, atol=TOLERANCE)
    np.testing.assert_allclose(offline[[0, 3]], offline[[1, 4]], atol=1e-6)
    assert np.isnan(offline).all(1).tolist() == [False, False, True, False, False, True]
    for embedder, vectors in zip(embedders, (offline, online), strict=True):
        assert not complete(embedder.present, [vectors]).any()


def test_the_server_runs_the_very_code_of_the_training(served: Served) -> None:
    copied = served.repository / "interactions_preprocess" / "1" / "preprocessing.py"
    assert copied.read_bytes() == Path(interactions.__file__).read_bytes()
