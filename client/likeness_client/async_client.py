"""The client for code that awaits: the methods, arguments and errors of `Client`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

from tritonclient.grpc.aio import InferenceServerClient

from likeness_client import _channel, _operations
from likeness_client._calls import Answer, Call, Done, Operation, step
from likeness_client._discovery import ServerInfo, discover, embed_models
from likeness_client._operations import OnError
from likeness_client._shared_answers import SharedByTasks, has_failed
from likeness_client.contract import Metric
from likeness_client.errors import ModelNotFoundError, ServerUnavailableError, SpaceMismatchError, translate
from likeness_client.records import Product
from likeness_client.results import Comparison, Embeddings, ScoreMatrix, Scores

T = TypeVar("T")

_FEW = 8
"""Up to this many products without files are prepared sooner than a thread is woken for them."""
_SMALL = 200_000
"""Bytes of an image that are hashed in that time."""
_LARGE = 1_000_000
"""From this many bytes on, a call is put together in a thread: that takes a millisecond and more."""
_MANY = 1_000
"""Shoppers of a product who are put into JSON in the time in which a thread is woken."""


class AsyncClient(_channel.BaseClient):
    """Embeds and compares products on a Triton server.

    One client may be shared by any number of tasks of one event loop: the one that it is first used in. Close it, or
    use it in an ``async with`` statement. Files are read, and products that are many or large encoded, in a thread, so
    that the loop stays free for all but what gRPC does with the message.
    """

    _opened: Any = None

    async def embed(
        self,
        products: Iterable[Product],
        *,
        modalities: Collection[str] | None = None,
        on_error: OnError = "raise",
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Embed products; see `Client.embed`."""
        items = _operations.listed(products)
        brief = _brief(items)
        return await self._run(lambda info: _operations.embed(items, modalities, on_error, info), timeout_s, brief)

    async def similarity(
        self,
        left: Iterable[Product] | Embeddings,
        right: Iterable[Product] | Embeddings,
        *,
        metric: Metric = Metric.COSINE,
        on_error: OnError = "raise",
        timeout_s: float | None = None,
    ) -> Scores:
        """Score pairs; see `Client.similarity`."""
        sides = _operations.held(left), _operations.held(right)
        if not _operations.needs_server(*sides, metric):
            return await self._drive(_operations.similarity(*sides, metric, on_error, None), brief=False)
        brief = _brief(*sides)
        return await self._run(lambda info: _operations.similarity(*sides, metric, on_error, info), timeout_s, brief)

    async def similarity_matrix(
        self,
        queries: Iterable[Product] | Embeddings,
        candidates: Iterable[Product] | Embeddings,
        *,
        metric: Metric = Metric.COSINE,
        on_error: OnError = "raise",
        timeout_s: float | None = None,
    ) -> ScoreMatrix:
        """Score every query with every candidate; see `Client.similarity_matrix`."""
        sides = _operations.held(queries), _operations.held(candidates)
        if not _operations.needs_server(*sides, metric):
            return await self._drive(_operations.similarity_matrix(*sides, metric, on_error, None), brief=False)
        brief = _brief(*sides)
        return await self._run(
            lambda info: _operations.similarity_matrix(*sides, metric, on_error, info), timeout_s, brief
        )

    async def compare(self, left: Product, right: Product, *, timeout_s: float | None = None) -> Comparison:
        """Score one pair by every metric; see `Client.compare`."""
        brief = _brief([left, right])
        return await self._run(lambda info: _operations.compare(left, right, info), timeout_s, brief)

    async def info(self, *, refresh: bool = False, timeout_s: float | None = None) -> ServerInfo:
        """Return what the server offers; see `Client.info`."""
        async with self._within(timeout_s) as until:
            return await self._offered(until, refresh=refresh)

    async def close(self) -> None:
        """Close the channel; calls in flight fail. Closing twice does no harm, nor does it in a child of a fork."""
        self._closed = True
        if self._is_inherited():
            return
        stub, self._opened = self._opened, None
        if stub is not None:
            await stub.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _prepare(self) -> None:
        self._slots = asyncio.Semaphore(self.max_concurrency)
        self._sending: set[asyncio.Task[Answer]] = set()
        self._offer = SharedByTasks[ServerInfo]()

    def _here(self) -> tuple[tuple[object, ...], str]:
        place = os.getpid(), asyncio.get_running_loop()
        return place, "belongs to the event loop, and the process, that it was first used in: make one in each"

    def _stub(self) -> Any:
        """Return the channel, opened at first use: it belongs to the event loop that is running then."""
        if self._closed:
            raise self._closed_error()
        if self._opened is None:
            self._opened = InferenceServerClient(**self._channel())
            self._place, _ = self._here()
        return self._opened

    @asynccontextmanager
    async def _within(self, timeout_s: float | None) -> AsyncIterator[float | None]:
        """Leave what is done inside after this time, as a caller who is cancelled does; yield when that is."""
        if timeout_s is None:
            yield None
            return
        _channel.check_timeout(timeout_s)
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                yield limit.when()
        except TimeoutError as error:
            if not limit.expired():  # one of the caller's own, from a function that returns the headers
                raise
            raise self._late(timeout_s) from error

    async def _offered(self, until: float | None, *, refresh: bool = False) -> ServerInfo:
        """Return what the server offers, see `info`."""
        self._check_place()
        known, due = (None, True) if refresh else self._known()
        if known is None:
            return await self._ask(alone=refresh)
        if not due:
            return known
        try:
            async with asyncio.timeout_at(until and (asyncio.get_running_loop().time() + until) / 2):
                return await self._ask(alone=False)
        except (TimeoutError, *_channel.OUT_OF_REACH):
            return known  # calls name the space that they want: if it is gone, they will say so

    async def _ask(self, *, alone: bool) -> ServerInfo:
        """Ask the server what it offers, with those who come meanwhile; see `SharedByTasks` for ``alone``."""
        return await self._offer.get(lambda: self._learn(alone=alone), alone=alone)

    async def _learn(self, *, alone: bool) -> ServerInfo:
        try:
            self._info = found = await self._discover(needed=alone or self._info is None)
        except BaseException as error:
            if alone or not isinstance(error, _channel.OUT_OF_REACH):
                self._info = None  # what is known may be wrong by now
            raise
        return found

    async def _discover(self, *, needed: bool) -> ServerInfo:
        stub, settings = self._stub(), self._question_settings(needed=needed)

        async def config_of(name: str) -> Any:
            return (await stub.get_model_config(name, **settings)).config

        with translate(self.address), self._open():
            index = await stub.get_model_repository_index(**settings)
            models = embed_models(index.models)
            asked = (config_of(name) for name, reason in models.items() if not reason)
            return self._accepted(discover(await asyncio.gather(*asked), models))

    async def _run(self, operation: Callable[[ServerInfo], Operation[T]], timeout_s: float | None, brief: bool) -> T:
        async with self._within(timeout_s) as until:
            info = await self._offered(until)
            try:
                return await self._drive(operation(info), brief)
            except (ModelNotFoundError, SpaceMismatchError):
                self._forget(info)  # the repository may have changed since it was asked
            except ServerUnavailableError:
                self._forget(info)  # another one may stand in its place when it is back
                if not info.unready:  # what was not ready when it was asked may be by now
                    raise
            return await self._drive(operation(await self._offered(until)), brief)

    async def _drive(self, operation: Operation[T], brief: bool) -> T:
        with translate(self.address):
            answers: list[Answer] | None = None
            while True:
                state = step(operation, answers) if brief else await asyncio.to_thread(step, operation, answers)
                if isinstance(state, Done):
                    return state.value
                answers = await self._execute(state)

    async def _execute(self, calls: list[Call]) -> list[Answer]:
        """Run calls at the same time; after the first failure no more are sent, and those on their way end.

        A caller who is cancelled leaves at once; its calls end by themselves, and hold their slots as long. To cancel
        them would save the server nothing, which computes on, and one of before 2025 may then fail the calls of others,
        or end.
        """
        sent: list[asyncio.Task[Answer]] = []
        failed = False

        def ended(task: asyncio.Task[Answer]) -> None:
            nonlocal failed
            failed |= has_failed(task)
            self._slots.release()
            self._sending.discard(task)

        for call in calls:
            # One slot after the other, so that operations which share the client take turns.
            await self._take_slot()
            if failed:
                self._slots.release()
                break
            sent.append(asyncio.create_task(self._send(call)))
            sent[-1].add_done_callback(ended)
            self._sending.add(sent[-1])  # the event loop alone would not keep it alive
        if sent:
            await asyncio.wait(sent)  # unlike gather, it does not cancel them with the caller
        return [task.result() for task in sent]

    async def _take_slot(self) -> None:
        if not self._slots.locked():  # the usual case, without a timer
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise self._no_slot() from error

    async def _send(self, call: Call) -> Answer:
        """Send one call."""
        large = _channel.size(call) > _LARGE
        inputs, outputs = await asyncio.to_thread(_channel.encode, call) if large else _channel.encode(call)
        with translate(self.address, call.model), self._open():
            result = await self._stub().infer(call.model, inputs, call.version, outputs, **self._settings())
        return _channel.decode(call, result)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Say that the client is closed where closing it cancels a call; a caller that is cancelled stays so."""
        try:
            yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise self._closed_error() from error
            raise


def _brief(*sides: Sequence[Product] | Embeddings) -> bool:
    """Say whether preparing these sides is over sooner than a thread is woken for it."""
    products = chain(*(side for side in sides if not isinstance(side, Embeddings)))
    return sum(map(len, sides)) <= _FEW and all(isinstance(item, Product) and _at_hand(item) for item in products)


def _at_hand(product: Product) -> bool:
    """Say whether a product can be sent as it is: no file to read, no array to encode, no clip to hash, no long log."""
    if not (isinstance(product.images, tuple | list) and isinstance(product.interactions, Mapping)):
        return False  # nothing that could be sent: preparing it says so
    if len(product.interactions) > _MANY:
        return False
    parts = [*product.images, *([] if product.video is None else [product.video])]
    return all(isinstance(part, bytes) and len(part) <= _SMALL for part in parts)
