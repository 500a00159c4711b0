"""The adapters without a server: a stand-in for what Triton's python backend gives them."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from likeness_client.contract import MAX_BLOCK_LEFT, MAX_BLOCK_RIGHT
from likeness_export.repository import adapters
from likeness_export.repository.adapters import lengths, session
from numpy.typing import NDArray

FOLDER = Path(str(adapters.__file__)).parent


@dataclass
class Tensor:
    name: str
    data: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.data


class Error(str):
    """What a request fails with, and whose fault it is."""

    INTERNAL, INVALID_ARG = "INTERNAL", "INVALID_ARG"
    code: str

    def __new__(cls, message: str, code: str) -> Error:
        error = super().__new__(cls, message)
        error.code = code
        return error


@dataclass
class Response:
    tensors: list[Tensor] = field(default_factory=list)
    error: Error | None = None


class Request(dict[str, NDArray[Any]]):
    wanted: tuple[str, ...] = ("rows",)

    def requested_output_names(self) -> list[str]:
        return [*self.wanted]


class Family:
    """A stand-in for a family of metrics, whose one counter it is itself."""

    COUNTER = 0
    counted: ClassVar[list[tuple[dict[str, str], int]]] = []

    def __init__(self, **_: object) -> None:
        self.counted.clear()

    def Metric(self, labels: dict[str, str]) -> Family:  # noqa: N802
        self.labels = labels
        return self

    def increment(self, by: int) -> None:
        self.counted.append((self.labels, by))


LOG: list[str] = []
"""What was written into the server's log."""


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in, and the files that lie beside an adapter, where it imports them from."""
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])
    utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Response, Error
    utils.Logger, utils.MetricFamily = SimpleNamespace(log_error=LOG.append), Family
    LOG.clear()
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    beside = {"lengths": lengths, "session": session, "answering": load("answering"), "counting": load("counting")}
    for name, module in beside.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def network(tmp_path: Path) -> Any:
    """A network that looks rows of a table of three up, and says which; any other row is an error."""
    table = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "table")
    place = onnx.helper.make_tensor_value_info("places", onnx.TensorProto.INT64, ["n"])
    found = onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["n", 2])
    said = onnx.helper.make_tensor_value_info("said", onnx.TensorProto.INT64, ["n"])
    nodes = [
        onnx.helper.make_node("Gather", ["table", "places"], ["rows"]),
        onnx.helper.make_node("Identity", ["places"], ["said"]),
    ]
    graph = onnx.helper.make_graph(nodes, "table", [place], [found, said], [table])
    (tmp_path / "1").mkdir()
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "1" / "model.onnx")
    adapter = load("network_model").TritonPythonModel()
    adapter.initialize(arguments(tmp_path, cpu_threads="1"))
    return adapter


def test_a_block_of_too_many_pairs_is_refused_and_the_next_is_answered(network: Any) -> None:
    network.batched, network.inputs = False, ["left", "right"]
    network.gather = lambda columns, _: [sum(part.sum() for (part,) in columns) * np.ones((1, 1))]
    small, large = np.ones((1, 128, 2), np.float32), np.ones((1, 1025, 2), np.float32)
    many = np.ones((1025, 1, 2), np.float32)  # each of them is scored with the same 128
    refused, refused_too, answered = network.execute(
        [
            Request({"left": left, "right": right})
            for left, right in ((small, large), (small, many), (small, large[:, 1:]))
        ]
    )
    assert load("network_model").MAX_PAIRS == MAX_BLOCK_LEFT * MAX_BLOCK_RIGHT
    assert "131200 pairs, 131072 are allowed: send smaller blocks" in refused.error
    assert refused_too.error == refused.error
    assert refused.error.code == Error.INVALID_ARG
    assert answered.error is None


def arguments(repository: Path, **parameters: str) -> dict[str, str]:
    config = {
        "name": "table",
        "input": [{"name": "places"}],
        "max_batch_size": 8,
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }
    return {"model_config": json.dumps(config), "model_repository": str(repository), "model_version": "1"}


def requests_of(*places: list[int]) -> list[Request]:
    return [Request(places=np.array(rows, np.int64)) for rows in places]


def test_a_network_answers_requests_together(network: Any) -> None:
    one, other = network.execute(requests_of([2], [0, 1]))
    assert (one.error, other.error) == (None, None)
    assert one.tensors[0].data.tolist() == [[4, 5]]
    assert other.tensors[0].data.tolist() == [[0, 1], [2, 3]]


def test_each_request_gets_the_outputs_that_it_asks_for(network: Any) -> None:
    one, other = requests_of([2], [0, 1])
    other.wanted = ("said", "rows")
    answers = network.execute([one, other])
    found = [{tensor.name: tensor.data.tolist() for tensor in answer.tensors} for answer in answers]
    assert found == [{"rows": [[4, 5]]}, {"said": [0, 1], "rows": [[0, 1], [2, 3]]}]


def test_runs_go_side_by_side_and_every_request_gets_its_own_rows(network: Any, tmp_path: Path) -> None:
    network.initialize(arguments(tmp_path, cpu_threads="2", run_rows="2"))
    answers = network.execute(requests_of([2, 0], [1], [0, 1, 2, 2]))
    rows = [answer.tensors[0].data.tolist() for answer in answers]
    assert rows == [[[4, 5], [0, 1]], [[2, 3]], [[0, 1], [2, 3], [4, 5], [4, 5]]]
    good, bad = network.execute(requests_of([2, 0, 1], [9]))
    assert (good.error, good.tensors[0].data.tolist()) == (None, [[4, 5], [0, 1], [2, 3]])
    assert "out of data bounds" in bad.error


def test_a_request_that_cannot_be_computed_fails_alone(network: Any) -> None:
    good, bad, last = network.execute(requests_of([2], [9], [0, 1]))
    assert bad.error.startswith("model 'table' failed: ")
    assert bad.error.code == Error.INTERNAL
    assert [line.startswith(f"{bad.error}\nTraceback ") for line in LOG] == [True]
    assert "out of data bounds" in bad.error
    assert bad.tensors == []
    assert (good.error, last.error) == (None, None)
    assert good.tensors[0].data.tolist() == [[4, 5]]
    assert last.tensors[0].data.tolist() == [[0, 1], [2, 3]]
    network.batched = False
    assert [bool(answer.error) for answer in network.execute(requests_of([1], [7]))] == [False, True]


class Letters:
    """Numbers letters, padded to the bucket of the longest text of all."""

    buckets = (2, 4)

    def __call__(self, items: list[bytes]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        longest = max(map(len, items))
        ids = np.zeros((len(items), next(bucket for bucket in self.buckets if bucket >= longest)), np.int64)
        for row, item in enumerate(items):
            ids[row, : len(item)] = list(item)
        return {"ids": ids}, ["" if item else "is empty" for item in items]


def test_each_request_gets_its_own_rows_and_no_more_padding_than_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "preprocessing", ModuleType("preprocessing"))
    monkeypatch.setattr(sys.modules["preprocessing"], "Preprocessor", lambda _: Letters(), raising=False)
    adapter = load("preprocess_model").TritonPythonModel()
    config = {"name": "letters", "input": [{"name": "text"}], "output": [{"name": "ids"}, {"name": "text_error"}]}
    adapter.initialize({"model_config": json.dumps(config), "model_repository": "", "model_version": "1"})
    given = [Request(text=np.array([[item] for item in items], np.object_)) for items in ([b"\1\5"], [b"", b"\2\3\4"])]
    found = [[tensor.data.tolist() for tensor in answer.tensors] for answer in adapter.execute(given)]
    assert found == [[[[1, 5]], [[b""]]], [[[0] * 4, [2, 3, 4, 0]], [[b"is empty"], [b""]]]]


def test_preprocessing_that_fails_costs_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def preprocess(items: list[bytes]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        if b"trap" in items:
            raise ValueError("it snapped")
        return {"sizes": np.array([[len(item)] for item in items])}, ["too long" * (len(item) > 2) for item in items]

    monkeypatch.setitem(sys.modules, "preprocessing", ModuleType("preprocessing"))
    monkeypatch.setattr(sys.modules["preprocessing"], "Preprocessor", lambda _: preprocess, raising=False)
    adapter = load("preprocess_model").TritonPythonModel()
    config = {"name": "trap", "input": [{"name": "text"}], "output": [{"name": "sizes"}, {"name": "text_error"}]}
    adapter.initialize({"model_config": json.dumps(config), "model_repository": "", "model_version": "1"})
    given = [Request(text=np.array([[item]], np.object_)) for item in (b"a", b"trap", b"abc")]
    first, trapped, last = adapter.execute(given)
    assert trapped.error == "model 'trap' failed: ValueError: it snapped"
    assert [answer.tensors[0].data.tolist() for answer in (first, last)] == [[[1]], [[3]]]
    assert Family.counted == [({"model": "trap"}, 1)]
