"""Repositories of reduced precision on a real tritonserver: their answers are near what fp32 would answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx
import pytest
from likeness_client import Client, Product
from likeness_export.evaluation.evaluate import OfflineEmbedder, Task, read_task_catalogue
from likeness_export.exporting.export import export_run
from likeness_export.precision import network
from likeness_export.precision.gate import Limits
from likeness_export.precision.reducing import Precision, PrecisionChoice, Reducer
from likeness_export.run import Run
from likeness_export.server.serve import ServeConfig, serving

pytestmark = pytest.mark.server

LIMITS = Limits(recall_loss=100)  # a hundred products are too few to judge by


@pytest.fixture(scope="module", params=["int8", "fp16"])
def precision(request: pytest.FixtureRequest) -> Precision:
    found: Precision = request.param
    return found


@pytest.fixture(scope="module")
def reduced_repository(
    precision: Precision,
    trained_run: Run,
    already_verified: Callable[[], AbstractContextManager[None]],
    demo_catalogue: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp(precision) / "repository"
    choice = PrecisionChoice(precision=precision, data_root=demo_catalogue.parent, limits=LIMITS)
    with pytest.MonkeyPatch.context() as patch, already_verified():
        patch.setattr(network, "speed_ratio", lambda *_: 2.0)  # a busy machine must not decide
        export_run(trained_run, folder, [Reducer(trained_run, choice)])
    return folder


@pytest.fixture(scope="module")
def reduced_client(reduced_repository: Path) -> Iterator[Client]:
    config = ServeConfig.on_unused_ports(reduced_repository, reduced_repository.parent / "tritonserver.log")
    with serving(config), Client(config.address) as opened:
        yield opened


def test_the_text_network_is_reduced(reduced_repository: Path, precision: Precision) -> None:
    section = json.loads((reduced_repository / "manifest.json").read_text(encoding="utf-8"))["precision"]
    forms = {found["name"]: found["form"] for found in section["networks"]}
    assert forms["text_encoder"] == {"int8": "int8 dynamic", "fp16": "fp16"}[precision]
    assert forms["attributes_encoder"] == "fp32"
    graph = onnx.load(reduced_repository / "text_encoder/1/model.onnx").graph
    assert ("MatMulInteger" in {node.op_type for node in graph.node}) == (precision == "int8")


def test_the_server_answers_near_to_fp32(reduced_client: Client, trained_run: Run, demo_catalogue: Path) -> None:
    catalogue = read_task_catalogue(trained_run, demo_catalogue.parent, Task(labels=()))
    modalities = trained_run.read_recipe().modalities()
    expected = OfflineEmbedder(trained_run, catalogue).embed(modalities)
    served = reduced_client.embed(catalogue.products, on_error="return").vectors
    some = ~np.isnan(expected).any(1)
    cosines = np.einsum("nd,nd->n", expected[some], served[some])
    assert cosines.min() > LIMITS.cosine_min
    assert cosines.mean() > 0.98  # near
    assert np.abs(expected[some] - served[some]).max() > 1e-5  # and not the fp32 network


def test_a_product_alone_is_near_to_itself_in_a_batch(reduced_client: Client, complete: list[Product]) -> None:
    together = reduced_client.embed(complete[:8]).vectors
    alone = np.concatenate([reduced_client.embed([product]).vectors for product in complete[:8]])
    assert (1 - np.einsum("nd,nd->n", together, alone)).max() <= LIMITS.batch_distance
