"""The real thing, small: a rendered catalogue, a trained run, an exported repository, a running tritonserver.

All of it is made once per session, and only when a test asks for it. Tests that need the server come last.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from likeness_client import Client, Product, read_products
from likeness_export.demo.catalogue import render_catalogue
from likeness_export.evaluation.evaluate import OfflineEmbedder, Row, Task, evaluate, read_task_catalogue
from likeness_export.exporting import export as exporting
from likeness_export.exporting.export import export_run
from likeness_export.exporting.onnx_export import ExportReport
from likeness_export.pipeline import StepSpec
from likeness_export.recipe import load_recipe
from likeness_export.repository.servable import MANIFEST
from likeness_export.run import Run
from likeness_export.server import serve
from likeness_export.server.serve import ServeConfig, serving, unused_ports
from likeness_export.training.train import train
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import np_to_triton_dtype

Infer: TypeAlias = Callable[[str, Mapping[str, NDArray[Any] | list[bytes]]], dict[str, NDArray[Any]]]
"""Calls a model with these tensors (a list: one item per product), and returns all of its outputs."""

OVERRIDES = (
    "dimension=64",
    "towers.image.image_px=48",
    "towers.image.width=16",
    "training.epochs=12",  # a second; with fewer, all images would be embedded alike
    "training.groups_per_batch=12",
    "serving.max_batch_size=8",  # small, so that a few products are already more than one batch
)


signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit "ignore", and pass it on


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("server") is not None)


@pytest.fixture(scope="session", autouse=True)
def _one_registry() -> Iterator[None]:
    """Before each network torch makes its table of ONNX operators anew, in the time that tracing a small one takes."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError, AttributeError):  # it is torch's own: where it moves, tests only take longer
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _servers_are_killed() -> Iterator[None]:
    """Triton takes seconds to end in order, which `likeness serve`, a process of its own, is tested for.

    Where one is killed, Triton leaves an empty folder in /tmp.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "_STOP_S", 0.0)
        yield


@pytest.fixture(scope="session")
def demo_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product file of a small demo catalogue."""
    return render_catalogue(tmp_path_factory.mktemp("demo") / "catalogue", designs=24)


@pytest.fixture(scope="session")
def trained_run(demo_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The built-in demo recipe, with a smaller image tower, briefly trained."""
    run = Run(tmp_path_factory.mktemp("run") / "run")
    train(load_recipe(Path("demo"), OVERRIDES), run, demo_catalogue.parent)
    return run


@pytest.fixture(scope="session")
def repository(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model repository of `trained_run`."""
    folder = tmp_path_factory.mktemp("repository") / "repository"
    export_run(trained_run, folder)
    return folder


@pytest.fixture(scope="session")
def already_verified(repository: Path) -> Callable[[], AbstractContextManager[None]]:
    """Inside the block `trained_run` is exported with the networks of `repository`: they take most of its time."""
    manifest = json.loads((repository / MANIFEST).read_text(encoding="utf-8"))
    reports = {report["name"]: ExportReport(**report) for report in manifest["networks"]}

    def copied(_: object, spec: StepSpec, path: Path, *__: int) -> ExportReport:
        shutil.copyfile(repository.joinpath(*path.parts[-3:]), path)
        return reports[spec.name]

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporting, "export_network", copied)
            yield

    return patched


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running tritonserver."""

    config: ServeConfig
    pid: int

    @property
    def address(self) -> str:
        """Its gRPC endpoint."""
        return self.config.address


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tritonserver with `repository`."""
    config = ServeConfig.on_unused_ports(repository, tmp_path_factory.mktemp("server") / "tritonserver.log")
    with serving(config) as process:
        yield Server(config=config, pid=process.pid)


@pytest.fixture(scope="session")
def address(server: Server) -> str:
    """The gRPC endpoint of `server`."""
    return server.address


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[Client]:
    """A client of `server`."""
    with Client(address) as opened:
        yield opened


@pytest.fixture(scope="session")
def infer(address: str) -> Iterator[Infer]:
    """A raw call to `server`, without this project's client and its checks."""
    with InferenceServerClient(address) as stub:

        def call(model: str, tensors: Mapping[str, NDArray[Any] | list[bytes]]) -> dict[str, NDArray[Any]]:
            inputs = []
            for name, given_data in tensors.items():
                data = column(given_data) if isinstance(given_data, list) else given_data
                given = InferInput(name, list(data.shape), np_to_triton_dtype(data.dtype))
                inputs.append(given.set_data_from_numpy(data))
            result = stub.infer(model, inputs, client_timeout=60.0)
            return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

        yield call


@pytest.fixture(scope="session")
def offline_rows(trained_run: Run, demo_catalogue: Path) -> list[Row]:
    """The evaluation of `trained_run` with eager torch, alike by group."""
    task = Task(labels=("group",))
    catalogue = read_task_catalogue(trained_run, demo_catalogue.parent, task)
    modalities = trained_run.read_recipe().modalities()
    return list(evaluate(OfflineEmbedder(trained_run, catalogue), catalogue, modalities, task))


@pytest.fixture(scope="session")
def products(demo_catalogue: Path) -> list[Product]:
    """All products of the demo catalogue."""
    return [product for product, _ in read_products(demo_catalogue)]


@pytest.fixture(scope="session")
def complete(products: list[Product]) -> list[Product]:
    """Those products that have text, image and attributes."""
    return [product for product in products if product.title and product.images and product.attributes]


@pytest.fixture
def ports() -> list[int]:
    """Three ports that nothing listens on."""
    return unused_ports(3)


def column(items: list[bytes]) -> NDArray[np.object_]:
    """Return a BYTES tensor [n, 1]."""
    tensor = np.empty((len(items), 1), dtype=np.object_)
    tensor[:, 0] = items
    return tensor
