"""A server made of one pure function from a call to its answer, and the same function behind a real gRPC socket.

Tests get it through fixtures, and import this module for its types only.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
from likeness_client._calls import Answer, Call, Done, Operation, step
from likeness_client._discovery import ServerInfo, discover
from likeness_client.contract import (
    EMBEDDING,
    LEFT,
    MATRIX_MODEL,
    MODALITY_WEIGHTS,
    NOTHING_KNOWN,
    RIGHT,
    SIMILARITY_MODEL,
    InputSchema,
    all_signatures,
    embed_model,
    modalities_of,
    preprocess_model,
    sided,
    tower_error,
)
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

T = TypeVar("T")
DIMENSION, MAX_BATCH_SIZE, SPACE = 8, 4, "space-1"
UNREADABLE, UNKNOWN = b"BAD", (b'{"stranger":1}', b"gibberish", b'{"colour":"octarine"}')
SCHEMA = InputSchema(attribute_keys=("colour", "price_usd"))


@dataclass
class FakeServer:
    """Embeds a product by the hash of its bytes; parts that start with ``BAD`` cannot be read, and in
    those of `UNKNOWN` it knows nothing."""

    schema: InputSchema = SCHEMA
    signatures: list[str] = field(default_factory=lambda: all_signatures(("text", "image", "attributes")))
    space: str = SPACE
    rounds: list[list[Call]] = field(default_factory=list)

    @property
    def info(self) -> ServerInfo:
        return discover(self.configs())

    @property
    def models(self) -> list[str]:
        """The model of each call so far."""
        return [call.model for calls in self.rounds for call in calls]

    def configs(self) -> list[Any]:
        return [self.config(signature) for signature in self.signatures]

    def config(self, signature: str) -> Any:
        config = model_config_pb2.ModelConfig(name=embed_model(signature), max_batch_size=MAX_BATCH_SIZE)
        config.parameters["space"].string_value = self.space
        config.parameters["input_schema"].string_value = self.schema.to_json()
        for name in modalities_of(signature):
            config.input.add(name=name, dims=[1])
        config.output.add(name=EMBEDDING, dims=[DIMENSION])
        if (count := len(modalities_of(signature))) > 1:
            config.output.add(name=MODALITY_WEIGHTS, dims=[count])
        for name in modalities_of(signature):
            config.output.add(name=tower_error(name), dims=[1])
            step = config.ensemble_scheduling.step.add(model_name=preprocess_model(name))
            step.input_map[name] = name
            step.output_map[tower_error(name)] = tower_error(name)
        return config

    def drive(self, operation: Operation[T]) -> T:
        state = step(operation, None)
        while not isinstance(state, Done):
            assert {call.version for call in state} == {self.info.version}  # an answer of another space is none
            self.rounds.append(state)
            state = step(operation, [self.answer(call) for call in state])
        return state.value

    def answer(self, call: Call) -> Answer:
        if call.model == SIMILARITY_MODEL:
            found: Answer = scores(call.inputs[LEFT][:, None], call.inputs[RIGHT][:, None])
        elif call.model == MATRIX_MODEL:
            found = scores(call.inputs[LEFT][:, :, None], call.inputs[RIGHT][:, None])
        elif call.model.startswith("embed_"):
            found = self._embed(call.inputs)
        else:
            sides = {
                side: self._embed({k.removeprefix(side + "_"): v for k, v in call.inputs.items() if k.startswith(side)})
                for side in (LEFT, RIGHT)
            }
            found = {sided(side, name): data for side, of in sides.items() for name, data in of.items()}
            found |= scores(sides[LEFT][EMBEDDING][:, None], sides[RIGHT][EMBEDDING][:, None])
        return {name: found[name] for name in call.outputs}

    def _embed(self, inputs: Any) -> dict[str, NDArray[Any]]:
        rows = list(zip(*(column[:, 0] for column in inputs.values()), strict=True))
        assert 0 < len(rows) <= MAX_BATCH_SIZE
        weights = np.arange(1, len(inputs) + 1, dtype=np.float32)
        answer: dict[str, NDArray[Any]] = {EMBEDDING: np.stack([unit_vector(b"|".join(parts)) for parts in rows])}
        if len(inputs) > 1:
            answer[MODALITY_WEIGHTS] = np.tile(weights / weights.sum(), (len(rows), 1))
        for name, column in inputs.items():
            reasons = [[self._reason(part)] for part in column[:, 0]]
            answer[tower_error(name)] = np.array(reasons, dtype=np.object_)
        return answer

    def _reason(self, part: bytes) -> bytes:
        if part in UNKNOWN:
            return NOTHING_KNOWN.encode()
        return b"cannot be read" if part.startswith(UNREADABLE) else b""


def unit_vector(data: bytes) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def scores(left: NDArray[np.float32], right: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    cosine = np.einsum("...d,...d->...", left, right)
    return {
        "cosine": cosine,
        "euclidean": np.linalg.norm(left - right, axis=-1),
        "learned": (1 + cosine) / 2,
    }


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated, untyped
    """`FakeServer` behind Triton's protocol.

    ``interfere`` may return a status code to fail a call with; ``when_over`` is told whether the caller of an answer is
    still there.
    """

    def __init__(self) -> None:
        self.fake = FakeServer()
        self.interfere: Callable[[str], grpc.StatusCode | None] = lambda _: None
        self.delay_s = 0.0
        self.when_over: Callable[[bool], None] = lambda _: None
        self.index_delay_s = 0.0
        self.index_calls = 0
        self.patience_s: list[float] = []
        self.index_state = "READY"
        self.index_fails: grpc.StatusCode | None = None
        self.down: set[str] = set()
        self.headers: list[dict[str, str]] = []

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.index_calls += 1
        self.patience_s.append(context.time_remaining())
        self.headers.append(dict(context.invocation_metadata()))
        time.sleep(self.index_delay_s)
        if self.index_fails:
            context.abort(self.index_fails, "on purpose")
        response = service_pb2.RepositoryIndexResponse()
        for name in ["similarity", *(embed_model(signature) for signature in self.fake.signatures)]:
            down = {"state": "UNAVAILABLE", "reason": "out of memory"} if name in self.down else {}
            response.models.add(name=name, version="1", **({"state": self.index_state} | down))
        return response

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.headers.append(dict(context.invocation_metadata()))
        return service_pb2.ModelConfigResponse(config=self.fake.config(request.name.removeprefix("embed_")))

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.headers.append(dict(context.invocation_metadata()))
        time.sleep(self.delay_s)
        if code := self.interfere(request.model_name):
            context.abort(code, "on purpose")
        self.when_over(context.is_active())
        inputs = {
            given.name: (
                deserialize_bytes_tensor(raw) if given.datatype == "BYTES" else np.frombuffer(raw, np.float32)
            ).reshape(list(given.shape))
            for given, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        if request.model_version not in ("", self.fake.info.version):
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"'{request.model_name}' version {request.model_version} not found"
            )
        outputs = tuple(output.name for output in request.outputs)
        call = Call(request.model_name, request.model_version, inputs, outputs)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, data in self.fake.answer(call).items():
            response.outputs.add(name=name, datatype=np_to_triton_dtype(data.dtype), shape=data.shape)
            is_bytes = data.dtype == np.object_
            raw = serialize_byte_tensor(data).item() if is_bytes else data.astype(np.float32).tobytes()
            response.raw_output_contents.append(raw)
        return response


@dataclass(frozen=True)
class Endpoint:
    """A listening `Servicer`."""

    address: str
    servicer: Servicer


@pytest.fixture(scope="session")
def new_fake() -> type[FakeServer]:
    return FakeServer


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture(scope="session")
def with_pyarrow() -> None:
    """Skip where pyarrow is not installed, or does not load with this NumPy."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        pytest.skip(f"pyarrow: {error}")


@pytest.fixture(params=[".npz", ".parquet"])
def suffix(request: pytest.FixtureRequest) -> str:
    """Every kind of file that embeddings are kept in."""
    if request.param == ".parquet":
        request.getfixturevalue("with_pyarrow")
    return str(request.param)


@contextmanager
def listening() -> Iterator[Endpoint]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(max_workers=16), options=options)
    servicer = Servicer()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Endpoint(f"127.0.0.1:{port}", servicer)
    server.stop(grace=None)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with listening() as found:
        yield found


@pytest.fixture
def other_endpoint() -> Iterator[Endpoint]:
    with listening() as found:
        yield found
