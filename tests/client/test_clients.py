"""Both clients against the same gRPC server; each test runs for both."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import itertools
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
from likeness_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    Embeddings,
    InputError,
    LikenessError,
    Metric,
    ModelNotFoundError,
    Product,
    ServerError,
    ServerUnavailableError,
    SpaceMismatchError,
    Tls,
    _channel,
)
from likeness_client.contract import all_signatures
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, aio, service_pb2, service_pb2_grpc

if TYPE_CHECKING:
    from tests.client.conftest import Endpoint

BATCH = [Product(product_id=str(i), title=f"title {i}") for i in range(30)]


class AsyncInSync:
    """`AsyncClient` with the calls of `Client`, so that one test can run for both."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def awaited() -> Any:
                answer: Awaitable[Any] = getattr(self._client, name)(*args, **kwargs)
                return await answer

            return self._runner.run(awaited())

        return call

    def __enter__(self) -> AsyncInSync:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()


@pytest.fixture(params=[Client, AsyncInSync], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def client(kind: Any, endpoint: Endpoint) -> Iterator[Any]:
    with kind(endpoint.address, timeout_s=10) as opened:
        yield opened


def wait_until(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not there():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_answers_are_those_of_the_server(client: Any, endpoint: Endpoint) -> None:
    fake = endpoint.servicer.fake
    info = client.info()
    assert info == fake.info
    found = client.embed([*BATCH, Product()], on_error="return")
    assert list(found.errors) == [30]
    assert found.product_ids[:30] == tuple(product.product_id for product in BATCH)
    scores = client.similarity(BATCH[:5], BATCH[5:10])
    expected = np.einsum("nd,nd->n", found.vectors[:5], found.vectors[5:10])
    np.testing.assert_allclose(scores.values, expected, atol=1e-6)
    for metric in Metric:
        values = client.similarity_matrix(BATCH[:3], found, metric=metric).values
        assert values.shape == (3, 31)
        assert np.isnan(values).sum() == 3
    comparison = client.compare(BATCH[0], BATCH[5])
    assert comparison.cosine == pytest.approx(expected[0], abs=1e-6)
    assert comparison.left_weights == {"text": 1.0}


@pytest.mark.parametrize(
    "parts",
    [{"images": None}, {"images": float("nan")}, {"video": np.zeros((2, 2))}],
    ids=["no images", "images nan", "video array"],
)
def test_a_part_of_another_type_costs_its_product_only(client: Any, endpoint: Endpoint, parts: dict[str, Any]) -> None:
    endpoint.servicer.fake.signatures = all_signatures(("text", "video"))
    found = client.embed([BATCH[0], Product(title="x", **parts)], on_error="return")
    assert list(found.errors) == [1]


def test_an_id_that_is_no_string_is_kept_as_one(client: Any, tmp_path: Path) -> None:
    found = client.embed([BATCH[0], Product(product_id=7, title="x")], on_error="return")  # type: ignore[arg-type]
    found.save(tmp_path / "vectors.npz")
    assert Embeddings.load(tmp_path / "vectors.npz").product_ids == ("0", "7")


def test_info_is_asked_once_and_again_when_a_model_is_gone(client: Any, endpoint: Endpoint) -> None:
    client.embed(BATCH[:1])
    gone = ["embed_text"]
    endpoint.servicer.interfere = lambda _: grpc.StatusCode.NOT_FOUND if gone and gone.pop() else None
    endpoint.servicer.fake.space = "space-2"
    assert client.embed(BATCH[:1]).space == "space-2"
    endpoint.servicer.interfere = lambda _: grpc.StatusCode.NOT_FOUND
    with pytest.raises(ModelNotFoundError, match=rf"model 'embed_text' at {endpoint.address}: on purpose"):
        client.embed(BATCH[:1])


def test_a_server_that_was_replaced_is_noticed(client: Any, endpoint: Endpoint) -> None:
    held = client.embed(BATCH[:1])
    assert held.space == "space-1"
    endpoint.servicer.fake.space = "space-2"
    with pytest.raises(SpaceMismatchError):  # not even by the one call that embeds nothing
        client.similarity_matrix(held, held, metric=Metric.LEARNED)
    endpoint.servicer.fake.space = "space-1"
    assert client.similarity_matrix(held, held, metric=Metric.LEARNED).space == "space-1"
    endpoint.servicer.fake.space = "space-2"
    fresh = client.embed(BATCH[:1])
    assert fresh.space == "space-2"
    with pytest.raises(SpaceMismatchError):
        client.similarity_matrix(held, BATCH[:1])


def test_a_server_that_is_replaced_during_an_operation_leaves_nothing_of_the_old_space(
    client: Any, endpoint: Endpoint
) -> None:
    client.info()
    calls = itertools.count()

    def replace(_name: str) -> None:
        if next(calls) == 1:
            endpoint.servicer.fake.space = "space-2"

    endpoint.servicer.interfere = replace
    assert client.embed(BATCH).space == "space-2"
    assert next(calls) > 8  # batches of four; what had its answer already was asked again


def test_info_is_asked_again_after_a_while(kind: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with kind(endpoint.address, max_attempts=1) as client:
        assert client.info().space == "space-1"
        endpoint.servicer.fake.space = "space-2"
        assert client.info().space == "space-1"
        monkeypatch.setattr("likeness_client._channel._INFO_S", 0.0)
        assert client.info().space == "space-2"
        monkeypatch.undo()
        endpoint.servicer.fake.space = "space-3"
        assert client.info(refresh=True).space == "space-3"
        endpoint.servicer.fake.space = "space-4"
        endpoint.servicer.interfere = lambda _: grpc.StatusCode.UNAVAILABLE
        with pytest.raises(ServerUnavailableError):
            client.embed(BATCH[:1])
        endpoint.servicer.interfere = lambda _: None
        assert client.embed(BATCH[:1]).space == "space-4"


@pytest.mark.parametrize(("timeout_s", "at_most_s"), [(60, 10), (2, 3)])
def test_what_is_known_is_not_waited_for_long(
    kind: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, timeout_s: float, at_most_s: float
) -> None:
    with kind(endpoint.address, timeout_s=timeout_s) as client:
        client.embed(BATCH[:1])
        monkeypatch.setattr("likeness_client._channel._INFO_S", 0.0)
        client.embed(BATCH[:1])
        client.info(refresh=True)
        first, second, wanted = endpoint.servicer.patience_s
        assert second < at_most_s
        assert min(first, wanted) > 0.5 * timeout_s


OUT_OF_REACH = [getattr(grpc.StatusCode, name) for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")]


@pytest.mark.parametrize("code", OUT_OF_REACH)
def test_a_replica_that_cannot_say_what_it_offers_costs_nobody_an_answer(
    kind: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode
) -> None:
    with kind(endpoint.address, max_attempts=1) as client:
        client.embed(BATCH[:1])
        monkeypatch.setattr("likeness_client._channel._INFO_S", 0.0)
        endpoint.servicer.index_fails = code
        for _ in range(2):
            assert client.embed(BATCH[:1]).space == "space-1"
        with pytest.raises(ServerError):
            client.info(refresh=True)
        with pytest.raises(ServerError):  # what was asked for explicitly and failed is known no more
            client.embed(BATCH[:1])


def test_what_is_known_is_relied_on_no_more_where_the_server_answers_otherwise(
    kind: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind(endpoint.address, max_attempts=1) as client:
        client.embed(BATCH[:1])
        monkeypatch.setattr("likeness_client._channel._INFO_S", 0.0)
        for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE):
            endpoint.servicer.index_fails = code
            with pytest.raises(ServerError, match=code.name):
                client.embed(BATCH[:1])


def test_a_client_of_one_space_accepts_no_other(kind: Any, endpoint: Endpoint) -> None:
    with kind(endpoint.address, space="space-1") as client:
        held = client.embed(BATCH[:1])
        endpoint.servicer.fake.space = "space-2"
        with pytest.raises(SpaceMismatchError, match="embeds in the space space-2, this client accepts space-1 only"):
            client.embed(BATCH[:1])
        endpoint.servicer.fake.space = "space-1"
        np.testing.assert_array_equal(client.embed(BATCH[:1]).vectors, held.vectors)


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "large"])
def test_grpc_retries_what_can_be_retried(client: Any, endpoint: Endpoint, size: int) -> None:
    client.info()
    codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    endpoint.servicer.interfere = lambda _: codes.pop() if codes else None
    assert len(client.embed([Product(images=(b"x" * size,))])) == 1
    assert codes == []


def test_a_server_that_comes_back_is_found_soon_and_large_answers_and_long_silence_end_no_connection() -> None:
    found: dict[str, Any] = dict(_channel.channel_args(4))
    assert (found["grpc.max_send_message_length"], found["grpc.max_receive_message_length"]) == (-1, -1)
    assert found["grpc.max_reconnect_backoff_ms"] <= 10_000  # gRPC's own are two minutes
    assert found["grpc.keepalive_time_ms"] > 300_000  # Triton drops those who ping more often


def test_retries_end(kind: Any, endpoint: Endpoint) -> None:
    calls: list[str] = []
    endpoint.servicer.interfere = lambda name: calls.append(name) or grpc.StatusCode.UNAVAILABLE  # type: ignore[func-returns-value]
    with kind(endpoint.address, max_attempts=2) as client:
        client.info()
        start = time.monotonic()
        with pytest.raises(ServerUnavailableError, match="embed_text"):
            client.embed(BATCH[:1])
    assert len(calls) == 2
    assert time.monotonic() - start > 0.3  # a server that starts again is given time


def test_calls_are_spread_over_all_addresses_of_a_name(endpoint: Endpoint, other_endpoint: Endpoint) -> None:
    servicers = [endpoint.servicer, other_endpoint.servicer]
    addresses = f"ipv4:{endpoint.address},{other_endpoint.address}"  # what a name would lead to
    with grpc.insecure_channel(addresses, options=_channel.channel_args(1)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        deadline = time.monotonic() + 10  # the first calls go where a connection is first
        while min(servicer.index_calls for servicer in servicers) < 2:
            assert time.monotonic() < deadline
            stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=5)


def test_while_most_attempts_fail_nothing_is_tried_again(endpoint: Endpoint) -> None:
    calls: list[str] = []
    endpoint.servicer.interfere = lambda name: calls.append(name) or grpc.StatusCode.UNAVAILABLE  # type: ignore[func-returns-value]
    with Client(endpoint.address, max_attempts=2, max_concurrency=80) as client, ThreadPoolExecutor(80) as pool:
        client.info()
        failed = [pool.submit(client.embed, BATCH[:1]).exception for _ in range(80)]
        assert all(isinstance(exception(), ServerUnavailableError) for exception in failed)
        before = len(calls)
        with pytest.raises(ServerUnavailableError):
            client.embed(BATCH[:1])
    assert len(calls) == before + 1


def test_what_cannot_be_retried_is_not(client: Any, endpoint: Endpoint) -> None:
    calls: list[str] = []
    endpoint.servicer.interfere = lambda name: calls.append(name) or grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[func-returns-value]
    with pytest.raises(ServerError, match=r"\[INVALID_ARGUMENT\]"):
        client.embed(BATCH[:1])
    assert len(calls) == 1


def test_one_failed_call_fails_the_operation_and_frees_the_client(client: Any, endpoint: Endpoint) -> None:
    client.info()
    calls: list[str] = []

    def second(name: str) -> grpc.StatusCode | None:
        calls.append(name)
        return grpc.StatusCode.INTERNAL if len(calls) == 2 else None

    endpoint.servicer.interfere = second
    with pytest.raises(ServerError, match=r"\[INTERNAL\]"):
        client.embed(BATCH)
    endpoint.servicer.interfere = lambda _: None
    for _ in range(3):  # more calls than there are slots: none was lost
        assert len(client.embed(BATCH)) == len(BATCH)


def test_after_a_failure_no_more_calls_are_sent(kind: Any, endpoint: Endpoint) -> None:
    calls: list[str] = []
    with kind(endpoint.address, max_concurrency=1, timeout_s=5) as client:
        client.info()
        endpoint.servicer.interfere = lambda name: calls.append(name) or grpc.StatusCode.INTERNAL  # type: ignore[func-returns-value]
        with pytest.raises(ServerError, match=r"\[INTERNAL\]"):
            client.embed(BATCH)
        assert len(calls) == 1
        endpoint.servicer.interfere = lambda _: None
        assert len(client.embed(BATCH)) == len(BATCH)  # and its slot is free


def test_calls_beside_a_failed_one_end_by_themselves(client: Any, endpoint: Endpoint) -> None:
    client.info()

    begun = threading.Barrier(3)  # a call that has not begun when another one fails is not made at all

    def first_or_slow(name: str) -> grpc.StatusCode | None:
        begun.wait(10)
        if name == "embed_text":
            return grpc.StatusCode.INTERNAL
        time.sleep(0.3)
        return None

    ended: list[bool] = []
    endpoint.servicer.interfere = first_or_slow
    endpoint.servicer.when_over = ended.append
    with pytest.raises(ServerError, match=r"\[INTERNAL\]"):
        client.embed([Product(title="a"), Product(title="b", attributes={"colour": "red"}), Product(images=(b"c",))])
    assert ended == [True, True]


def test_ctrl_c_cancels_the_calls_on_their_way(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    endpoint.servicer.when_over = wanted.append
    arrived, cancelled = threading.Semaphore(0), threading.Event()

    def held(_: str) -> None:
        arrived.release()
        cancelled.wait(30)

    def interrupted(*_: object) -> None:
        assert all(arrived.acquire(timeout=30) for _ in range(2))
        raise KeyboardInterrupt

    endpoint.servicer.interfere = held

    monkeypatch.setattr("likeness_client.client.wait", interrupted)
    with Client(endpoint.address) as client:
        client.info()
        with pytest.raises(KeyboardInterrupt):
            client.embed(BATCH[:8])
        time.sleep(0.5)  # the server hears of it
        cancelled.set()
        wait_until(lambda: len(wanted) == 2)
        assert wanted == [False, False]


def test_calls_of_a_cancelled_caller_end_by_themselves_and_keep_their_slots(endpoint: Endpoint) -> None:
    ended: list[bool] = []
    endpoint.servicer.when_over = ended.append
    endpoint.servicer.delay_s = 0.5

    async def run() -> None:
        async with AsyncClient(endpoint.address, max_concurrency=2) as client:
            await client.info()
            for products in ([Product(title="a")], [Product(images=(b"b",))], BATCH):  # the last one finds no slot
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.embed(products)
            assert ended == []
            assert client._slots.locked()
            assert len(await client.embed([Product(title="c")])) == 1
            assert ended == [True, True, True]

    asyncio.run(run())


def test_who_leaves_while_the_server_is_asked_what_it_offers_leaves_no_complaint() -> None:
    complaints: list[dict[str, Any]] = []

    async def run(address: str) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with AsyncClient(address, timeout_s=0.2, max_attempts=1) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.embed(BATCH[:1])
            asking = client._offer._asking
            assert asking is not None
            await asyncio.wait([asking])
            del asking
        del client
        gc.collect()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(run("127.0.0.1:{1}".format(*silent.getsockname())))
    assert complaints == []


def test_deadlines_hold(kind: Any, endpoint: Endpoint) -> None:
    endpoint.servicer.delay_s = 1.0
    with kind(endpoint.address, timeout_s=0.3) as client:
        client.info()
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="raise timeout_s"):
            client.embed(BATCH[:1])
        assert time.monotonic() - start < 0.9


AWAY = (
    r"^no server answers at 127\.0\.0\.1:1; start one with `likeness serve REPOSITORY`, and ask its --grpc-port, "
    r"not the one of HTTP \(.*\) \[UNAVAILABLE\]$"
)


def test_no_server(kind: Any) -> None:
    with kind("127.0.0.1:1", max_attempts=1) as client, pytest.raises(ServerUnavailableError, match=AWAY):
        client.embed([])


def test_a_proxy_that_calls_went_to_is_named(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    said = r"not the one of HTTP; http_proxy is set, which gRPC obeys: name the server in no_proxy"
    with kind("127.0.0.1:1", max_attempts=1) as client, pytest.raises(ServerUnavailableError, match=said):
        client.embed([])
    late = DeadlineExceededError("Deadline Exceeded", "127.0.0.1:1", code="DEADLINE_EXCEEDED")  # it took the call
    assert str(late).endswith("http_proxy is set, which gRPC obeys: name the server in no_proxy if it should not")


def test_a_server_that_is_not_ready_says_so(client: Any, endpoint: Endpoint) -> None:
    endpoint.servicer.index_state = "UNAVAILABLE"
    with pytest.raises(ServerUnavailableError, match=f"at {endpoint.address}: not ready"):
        client.info()
    endpoint.servicer.index_state = "READY"
    assert client.info().space == "space-1"


def test_a_modality_whose_network_is_down_is_not_left_out_without_a_word(client: Any, endpoint: Endpoint) -> None:
    endpoint.servicer.down = {"embed_image", "embed_text_image"}
    text, both = Product(title="a vase"), Product(product_id="p-7", title="a vase", images=(b"photo",))
    assert len(client.embed([text])) == 1
    down = r"model 'embed_text_image' at .*: not ready: out of memory; {} needs it"
    with pytest.raises(ServerUnavailableError, match=down.format(r"product \('p-7'\)")):
        client.embed([text, both], on_error="return")
    with pytest.raises(ServerUnavailableError, match=down.format("product 1")):
        client.embed([text, replace(both, product_id="")])
    with pytest.raises(ServerUnavailableError, match=down.format(r"left product \('p-7'\)")):
        client.compare(both, both)
    assert client.embed([both], modalities=["text"]).signatures == ("text",)
    endpoint.servicer.down = set()
    assert client.embed([both]).signatures == ("text_image",)  # it is asked again


def test_waiting_for_a_turn_ends(endpoint: Endpoint) -> None:
    endpoint.servicer.delay_s = 0.6
    waits = {"timeout_s": 0.8, "max_concurrency": 1, "max_attempts": 1}
    full = r"no turn in 0\.8 s: all 1 calls of max_concurrency were in flight"

    with Client(endpoint.address, **waits) as client, ThreadPoolExecutor(3) as pool:  # type: ignore[arg-type]
        client.info()
        found = [pool.submit(client.embed, [product]) for product in BATCH[:3]]
        errors = [future.exception() for future in found]
    assert [str(error) for error in errors if error and re.search(full, str(error))]
    assert any(error is None for error in errors)
    assert all(error is None or isinstance(error, DeadlineExceededError) for error in errors)

    async def run() -> list[Any]:
        async with AsyncClient(endpoint.address, **waits) as client:  # type: ignore[arg-type]
            await client.info()
            return await asyncio.gather(*(client.embed([product]) for product in BATCH[:3]), return_exceptions=True)

    found = asyncio.run(run())
    assert [str(error) for error in found if isinstance(error, DeadlineExceededError) and re.search(full, str(error))]
    assert any(isinstance(answer, Embeddings) for answer in found)


def test_a_client_of_before_a_fork_says_so(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(endpoint.address) as client:
        assert client.info().space == "space-1"
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: -1)
            with pytest.raises(LikenessError, match="used before its process was forked: use none before"):
                client.embed(BATCH[:1])
        assert len(client.embed(BATCH[:1])) == 1


def test_a_child_of_a_fork_leaves_its_parents_channel_alone(
    kind: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    for channel in (InferenceServerClient, aio.InferenceServerClient):

        def end(opened: Any, close: Callable[[Any], Any] = channel.close) -> Any:
            ended.append(id(opened))  # others may end now, too: what earlier tests left is collected at any time
            return close(opened)

        monkeypatch.setattr(channel, "close", end)
    with kind(endpoint.address) as client:
        client.info()
        own = getattr(client, "_client", client)._opened
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: -1)
            client.close()
        assert id(own) not in ended
    assert id(own) in ended


def test_a_child_of_a_fork_may_forget_its_parents_client(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr("likeness_client._threads._INHERITED", kept)
    client = Client(endpoint.address)
    client.info()
    channel = client._opened
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        del client
        gc.collect()
    assert kept == [channel]
    assert channel.get_model_repository_index().models  # it still answers


def test_a_client_of_another_event_loop_says_so(endpoint: Endpoint) -> None:
    client = AsyncClient(endpoint.address)
    assert asyncio.run(client.info()).space == "space-1"
    with pytest.raises(LikenessError, match="belongs to the event loop, and the process, that it was first used in"):
        asyncio.run(client.embed(BATCH[:1]))


def test_large_calls_are_put_together_beside_the_loop(
    kind: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[bool] = []
    encode = _channel.encode

    def watched(call: Any) -> Any:
        encoded.append(threading.current_thread() is threading.main_thread())
        return encode(call)

    monkeypatch.setattr(_channel, "encode", watched)
    with kind(endpoint.address) as client:
        small, large = Product(title="a vase"), Product(images=(b"x" * 2_000_000,))
        client.embed([small])
        assert encoded == [True]
        client.embed([large])
    assert encoded[1:] == [kind is Client]


def test_calls_in_flight_are_bounded(kind: Any, endpoint: Endpoint) -> None:
    lock, now, most = threading.Lock(), [0], [0]
    answer = endpoint.servicer.fake.answer

    def watched(call: Any) -> Any:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return answer(call)

    endpoint.servicer.fake.answer = watched  # type: ignore[method-assign]
    with kind(endpoint.address, max_concurrency=3) as client:
        client.embed(BATCH)
    assert 1 < most[0] <= 3


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_is_neither_copied_nor_sent_to_another_process(kind: type[Client | AsyncClient]) -> None:
    for way in (copy.deepcopy, pickle.dumps):
        with pytest.raises(LikenessError, match=r"Client\('localhost:1', .*: make one in each process"):
            way(kind("localhost:1"))


def test_a_closed_client_says_so(client: Any) -> None:
    client.info()
    client.close()
    client.close()
    with pytest.raises(LikenessError, match="is closed"):
        client.embed(BATCH[:1])


@pytest.mark.parametrize(
    "arguments",
    [
        {"address": ""},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
        {"max_concurrency": 0},
        {"max_attempts": 6},
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InputError):
            kind(**arguments)


@pytest.mark.parametrize("address", ["http://localhost:8001", "grpc://localhost:8001", "tcp://shop"])
def test_an_address_of_another_scheme_is_refused(address: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(
            InputError, match=rf"^address must be host:port .* without another scheme, not '{address}'$"
        ):
            kind(address)


@pytest.mark.parametrize(
    "address", ["localhost", "10.0.0.1", "shop.example:", "[::1]", "dns:///shop", "dns:shop", "dns://10.0.0.1/shop"]
)
def test_an_address_without_a_port_is_refused(address: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InputError, match=rf"^{re.escape(address)}: the port is missing; e\.g\. .*[^:]:8001$"):
            kind(address)


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:8001", "[::1]:8001", "dns:///shop:8001", "dns:shop:8001", "dns://10.0.0.1/shop:8001"),
        *("xds:///shop", "xds://mesh.example/shop"),
        *("unix:/run/likeness", "unix:///run/likeness", "unix:a"),
    ],
)
def test_other_addresses_are_left_to_grpc(address: str) -> None:
    assert Client(address).address == AsyncClient(address).address == address


def test_threads_share_a_client_and_get_their_own_answers(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    # tritonclient looks at `_verbose` between sending a call and attaching its callback; a pause there makes it certain
    # that threads which are let in together swap their answers.
    pause = property(lambda _: time.sleep(0.001), lambda _, value: None)  # noqa: ARG005
    monkeypatch.setattr(InferenceServerClient, "_verbose", pause, raising=False)
    with Client(endpoint.address, timeout_s=5) as client, ThreadPoolExecutor(8) as pool:
        expected = client.embed(BATCH).vectors
        found = list(pool.map(lambda product: client.embed([product]).vectors[0], BATCH))
    np.testing.assert_array_equal(np.stack(found), expected)


def test_tasks_share_a_client_and_get_their_own_answers(endpoint: Endpoint) -> None:
    async def run() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        async with AsyncClient(endpoint.address) as client:
            expected = (await client.embed(BATCH)).vectors
            found = await asyncio.gather(*(client.embed([product]) for product in BATCH))
            return expected, np.concatenate([one.vectors for one in found])

    np.testing.assert_array_equal(*asyncio.run(run()))


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, inspect.Signature]:
        return {name: inspect.signature(found) for name, found in vars(kind).items() if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)


def test_all_callers_get_over_a_model_that_is_gone_and_one_asks_for_all(endpoint: Endpoint) -> None:
    def missing(_: str) -> grpc.StatusCode | None:
        if (place := next(asked)) >= 8:
            return None
        together.wait()  # so that no caller asks anew before all have called
        time.sleep(0.02 * place)  # so that the first one has asked anew before the last one is refused
        return grpc.StatusCode.NOT_FOUND

    together, asked = threading.Barrier(8), iter(range(1000))
    endpoint.servicer.interfere = missing
    with Client(endpoint.address) as client, ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda product: client.embed([product]), BATCH[:8]))) == 8
    assert endpoint.servicer.index_calls == 2

    async def run() -> int:
        async with AsyncClient(endpoint.address) as client:
            return len(await asyncio.gather(*(client.embed([product]) for product in BATCH[:8])))

    asked = iter(range(1000))
    assert asyncio.run(run()) == 8
    assert endpoint.servicer.index_calls == 4


def test_what_the_server_offers_is_asked_once_for_all_who_wait(endpoint: Endpoint) -> None:
    endpoint.servicer.index_delay_s = 0.3
    with Client(endpoint.address) as client, ThreadPoolExecutor(8) as pool:
        assert len({info.space for info in pool.map(lambda _: client.info(), range(8))}) == 1

    async def run() -> None:
        async with AsyncClient(endpoint.address) as client:
            await asyncio.gather(*(client.info() for _ in range(8)))

    asyncio.run(run())
    assert endpoint.servicer.index_calls == 2


def test_who_leaves_takes_the_answer_from_nobody_else(endpoint: Endpoint) -> None:
    endpoint.servicer.index_delay_s = 0.5

    async def run() -> None:
        async with AsyncClient(endpoint.address) as client:
            leaves, stays = (asyncio.create_task(client.info()) for _ in range(2))
            await asyncio.sleep(0.1)
            leaves.cancel()
            assert (await stays).space == "space-1"
            assert leaves.cancelled()

    asyncio.run(run())
    assert endpoint.servicer.index_calls == 1


def test_who_wants_to_know_anew_is_not_given_an_answer_to_an_earlier_question(endpoint: Endpoint) -> None:
    endpoint.servicer.index_delay_s = 0.2
    with Client(endpoint.address) as client, ThreadPoolExecutor(1) as pool:
        earlier = pool.submit(client.info)
        time.sleep(0.1)
        assert client.info(refresh=True) == earlier.result()
    assert endpoint.servicer.index_calls == 2

    async def run() -> None:
        async with AsyncClient(endpoint.address) as client:
            await asyncio.gather(client.info(), client.info(refresh=True))

    asyncio.run(run())
    assert endpoint.servicer.index_calls == 4


def test_an_interrupt_is_meant_for_the_thread_that_it_reached(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    discover, waits = Client._discover, list[Future[Any]]()

    def interrupting(client: Client, settings: Any) -> Any:
        if not waits:
            waits.append(pool.submit(client.info))
            time.sleep(0.3)  # it waits for this answer, too
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return discover(client, settings)

    monkeypatch.setattr(Client, "_discover", interrupting)
    with Client(endpoint.address) as client, ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            client.info()
        assert waits[0].result().space == "space-1"
    assert endpoint.servicer.index_calls == 1


def test_who_could_not_ask_leaves_it_to_those_who_wait(endpoint: Endpoint) -> None:
    began, waits = threading.Event(), threading.Event()

    def headers() -> dict[str, str]:
        if not began.is_set():
            began.set()
            waits.wait(30)
            time.sleep(0.3)
            raise LookupError("no token")
        return {}

    with Client(endpoint.address, headers=headers) as client, ThreadPoolExecutor(2) as pool:
        asks = pool.submit(client.info)
        assert began.wait(30)
        other = pool.submit(client.info)
        waits.set()
        assert other.result().space == "space-1"
        assert isinstance(asks.exception(), LookupError)
    assert endpoint.servicer.index_calls == 1


def test_one_asks_for_all_who_come_before_the_answer_however_long_their_headers_take(endpoint: Endpoint) -> None:
    waits_s = itertools.count(0.0, 0.1)

    def headers() -> dict[str, str]:
        time.sleep(next(waits_s))
        return {}

    with Client(endpoint.address, headers=headers) as client, ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(lambda _: client.info().space, range(8))}) == 1
    assert endpoint.servicer.index_calls == 1


def test_an_answer_that_did_not_come_holds_nothing_of_those_who_waited(kind: Any, endpoint: Endpoint) -> None:
    def left(client: Any) -> weakref.ref[NDArray[np.uint8]]:
        photo = np.zeros((8, 8, 3), np.uint8)
        with pytest.raises(ServerError):
            client.embed([Product(images=(photo,))])
        return weakref.ref(photo)

    endpoint.servicer.index_fails = grpc.StatusCode.INTERNAL
    with kind(endpoint.address) as client:
        photo = left(client)
        gc.collect()
        assert photo() is None


def test_what_is_known_holds_for_those_who_have_no_time_to_wait(
    kind: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind(endpoint.address) as client:
        client.info()
        monkeypatch.setattr("likeness_client._channel._INFO_S", 0.0)
        endpoint.servicer.index_delay_s = 1.0
        assert len(client.embed(BATCH[:1], timeout_s=0.8)) == 1


METHODS: dict[str, Callable[..., Any]] = {
    "embed": lambda client, **limit: client.embed(BATCH, **limit),
    "embed one": lambda client, **limit: client.embed(BATCH[:1], **limit),
    "similarity": lambda client, **limit: client.similarity(BATCH[:9], BATCH[9:18], **limit),
    "similarity_matrix": lambda client, **limit: client.similarity_matrix(BATCH[:9], BATCH[9:18], **limit),
    "compare": lambda client, **limit: client.compare(BATCH[0], BATCH[1], **limit),
    "info": lambda client, **limit: client.info(refresh=True, **limit),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_ends_in_the_time_that_it_is_given(client: Any, endpoint: Endpoint, method: str) -> None:
    ended: list[bool] = []
    client.info()
    endpoint.servicer.when_over = ended.append
    endpoint.servicer.delay_s = endpoint.servicer.index_delay_s = 0.8
    start = time.monotonic()
    late = rf"^server at {endpoint.address}: not over in the 0\.2 s given .*raise timeout_s"
    with pytest.raises(DeadlineExceededError, match=late):
        METHODS[method](client, timeout_s=0.2)
    assert time.monotonic() - start < 0.6
    wait_until(lambda: bool(ended) or method == "info")
    endpoint.servicer.delay_s = endpoint.servicer.index_delay_s = 0.0
    METHODS[method](client, timeout_s=60)  # the client is as good as new, and the time may be longer than its own
    assert all(ended)  # no call was cancelled


def test_who_is_late_is_so_while_waiting_for_a_turn_too(endpoint: Endpoint) -> None:
    endpoint.servicer.delay_s = 0.8
    with Client(endpoint.address, max_concurrency=1) as client, ThreadPoolExecutor(1) as pool:
        client.info()
        first = pool.submit(client.embed, BATCH[:1])
        time.sleep(0.2)
        with pytest.raises(DeadlineExceededError, match=r"not over in the 0\.2 s given"):
            client.embed(BATCH[:1], timeout_s=0.2)
        assert not first.done()
        assert len(first.result()) == 1


def test_who_is_late_takes_the_answer_from_nobody_else(endpoint: Endpoint) -> None:
    endpoint.servicer.index_delay_s = 0.5
    with Client(endpoint.address) as client, ThreadPoolExecutor(1) as pool:
        hurried = pool.submit(client.info, timeout_s=0.1)
        time.sleep(0.05)
        assert client.info().space == "space-1"
        assert isinstance(hurried.exception(), DeadlineExceededError)

    async def run() -> list[Any]:
        async with AsyncClient(endpoint.address) as client:
            return [*await asyncio.gather(client.info(timeout_s=0.1), client.info(), return_exceptions=True)]

    hurried_one, other = asyncio.run(run())
    assert isinstance(hurried_one, DeadlineExceededError)
    assert other.space == "space-1"
    assert endpoint.servicer.index_calls == 2


LATE = """
import sys
from likeness_client import Client, DeadlineExceededError
try:
    Client(sys.argv[1], timeout_s=300).info(timeout_s=2.0)
except DeadlineExceededError:
    print("late")
"""


def test_a_script_does_not_wait_at_its_end_for_questions_that_are_late(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, goes_on = threading.Event(), threading.Event()

    def held_back(_: str) -> None:
        asked.set()
        goes_on.wait()

    monkeypatch.setattr(endpoint.servicer.fake, "config", held_back)
    try:
        script = [sys.executable, "-c", LATE, endpoint.address]
        assert subprocess.run(script, timeout=60, check=True, capture_output=True).stdout == b"late\n"
        assert asked.is_set()
    finally:
        goes_on.set()


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), float("inf"), 1e10])
def test_a_time_that_cannot_be_waited_for_is_refused(client: Any, timeout_s: float) -> None:
    with pytest.raises(InputError, match="timeout_s must be positive, and at most 3\\.1536e\\+07 \\(a year\\), not "):
        client.embed(BATCH[:1], timeout_s=timeout_s)


def test_a_timeout_of_the_callers_own_function_stays_one(kind: Any, endpoint: Endpoint) -> None:
    def headers() -> dict[str, str]:
        raise TimeoutError("no token")

    with kind(endpoint.address, headers=headers) as client, pytest.raises(TimeoutError, match="no token"):
        client.embed(BATCH[:1], timeout_s=10)


def test_a_small_operation_does_not_wait_for_the_end_of_a_large_one(endpoint: Endpoint) -> None:
    order: list[str] = []

    async def run() -> None:
        async with AsyncClient(endpoint.address, max_concurrency=1) as client:

            async def embed(name: str, products: list[Product]) -> None:
                await client.embed(products)
                order.append(name)

            await client.info()
            large = asyncio.create_task(embed("large", [Product(title=f"{place}") for place in range(200)]))
            await asyncio.sleep(0.02)
            await asyncio.gather(large, embed("small", BATCH[:1]))

    endpoint.servicer.delay_s = 0.005
    asyncio.run(run())
    assert order == ["small", "large"]


def test_closing_a_client_under_a_call_is_an_error_of_the_call(endpoint: Endpoint) -> None:
    endpoint.servicer.delay_s = 0.5

    async def run() -> None:
        client = AsyncClient(endpoint.address)
        await client.info()
        call = asyncio.create_task(client.embed(BATCH))
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(LikenessError, match="is closed"):
            await call

    asyncio.run(run())
    client = Client(endpoint.address)
    client.info()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.embed, BATCH)
        time.sleep(0.1)
        client.close()
        with pytest.raises(LikenessError, match="is closed"):
            call.result()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        pytest.param(InferenceServerClient, "async_infer", id="a call is sent"),
        pytest.param(InferenceServerClient, "__init__", id="the channel is opened"),
        pytest.param(weakref, "finalize", id="its end is provided for"),
    ],
)
def test_a_client_can_be_closed_by_the_handler_of_a_signal(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    """It runs in the thread that it interrupts, wherever that is."""
    client = Client(endpoint.address)
    if name == "async_infer":
        client.info()
    goes_on = getattr(place, name)

    def interrupted(*given: Any, **named: Any) -> Any:
        client.close()
        return goes_on(*given, **named)

    monkeypatch.setattr(place, name, interrupted)
    found: list[BaseException] = []

    def embed() -> None:
        with pytest.raises(LikenessError, match="is closed") as raised:
            client.embed(BATCH)
        found.append(raised.value)

    calling = threading.Thread(target=embed, daemon=True)
    calling.start()
    calling.join(5)
    assert found


def test_a_client_closes_where_python_ends_and_starts_no_threads(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(endpoint.address)
    client.info()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    client.close()
    with pytest.raises(LikenessError, match="is closed"):
        client.embed(BATCH)


@pytest.mark.parametrize("closed", [True, False])
def test_a_client_closes_after_a_signal_in_the_midst_of_grpc(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """Also one that is only forgotten, as in a notebook whose cell is run again."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("likeness_client._threads._CLOSES_S", 0.1)
    # Its call is on its way then, and nothing waits for the answer.
    monkeypatch.setattr("grpc._channel._run_channel_spin_thread", interrupted)

    def use() -> None:
        client = Client(endpoint.address)
        client.info()
        with suppress(KeyboardInterrupt):
            client.embed(BATCH)
        if closed:
            client.close()
        del client
        gc.collect()

    using = threading.Thread(target=use, daemon=True)
    using.start()
    using.join(5)
    assert not using.is_alive()


def test_given_embeddings_are_scored_without_a_server(kind: Any, client: Any) -> None:
    found = client.embed(BATCH[:4])
    with kind("127.0.0.1:1", timeout_s=1, max_attempts=1) as away:
        values = away.similarity_matrix(found, found).values
        np.testing.assert_allclose(values, found.vectors @ found.vectors.T, atol=1e-6)
        np.testing.assert_allclose(away.similarity(found, found).values, np.diag(values), atol=1e-6)
        for score in (away.similarity, away.similarity_matrix):
            with pytest.raises(ServerUnavailableError):
                score(found, found, metric=Metric.LEARNED)


def test_headers_go_with_every_call(kind: Any, endpoint: Endpoint) -> None:
    with kind(endpoint.address, headers={"X-Team": "shoes"}) as client:
        client.embed(BATCH)
        client.compare(BATCH[0], BATCH[1])
    assert len(endpoint.servicer.headers) > len(endpoint.servicer.fake.signatures)
    assert all(headers.get("x-team") == "shoes" for headers in endpoint.servicer.headers)


def test_headers_may_be_asked_for_before_every_call(kind: Any, endpoint: Endpoint) -> None:
    tokens = iter(range(1000))
    with kind(endpoint.address, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"}) as client:
        client.embed(BATCH[:1])
        client.embed(BATCH[:1])
    sent = [headers["authorization"] for headers in endpoint.servicer.headers]
    assert len(set(sent)) == 3  # one for all questions about the server, one for each call
    wrong = kind(endpoint.address, headers=lambda: {"a": "line\nbreak"})
    with wrong as client, pytest.raises(InputError, match="header 'a' cannot be sent"):
        client.embed(BATCH[:1])


def test_calls_that_could_not_be_sent_hold_no_slot(kind: Any, endpoint: Endpoint) -> None:
    headers = {"a": "b"}
    with kind(endpoint.address, headers=lambda: headers, max_concurrency=1, timeout_s=5) as client:
        client.info()
        headers["a"] = "line\nbreak"
        for products in (BATCH, BATCH[:1]):
            with pytest.raises(InputError, match="header 'a' cannot be sent"):
                client.embed(products)
        headers["a"] = "c"
        assert len(client.embed(BATCH)) == len(BATCH)


def test_headers_are_asked_for_where_the_caller_is(kind: Any, endpoint: Endpoint) -> None:
    trace: ContextVar[str] = ContextVar("trace")
    trace.set("00-ab-cd-01")
    with kind(endpoint.address, headers=lambda: {"traceparent": trace.get()}) as client:
        client.embed(BATCH)
    assert {headers["traceparent"] for headers in endpoint.servicer.headers} == {"00-ab-cd-01"}


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "line\nbreak"}, {"a": "ü"}, {"a-bin": "trace"}])
def test_headers_that_cannot_be_sent_are_named(kind: Any, headers: dict[str, str]) -> None:
    with pytest.raises(InputError, match="header 'a"):
        kind("localhost:1", headers=headers)


def test_tls_files_are_checked(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("")
    with pytest.raises(InputError, match="both private_key and certificate_chain"):
        Tls(private_key=key)
    with pytest.raises(InputError, match=r"cannot read .*none\.pem: No such file"):
        Tls(root_certificates=tmp_path / "none.pem")
    with pytest.raises(InputError, match=r"key\.pem is no PEM file: give one"):
        Tls(root_certificates=key)
