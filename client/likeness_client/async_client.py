"""The client for code that awaits: the methods, arguments and errors of `Client`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

from tritonclient.grpc.aio import InferenceServerClient

from likeness_client import _channel, _operations
from likeness_client._calls import Answer, Call, Done, Operation, step
from likeness_client._discovery import ServerInfo, discover, embed_models
from likeness_client._operations import OnError
from likeness_client.contract import Metric
from likeness_client.errors import LikenessError, ModelNotFoundError, ServerUnavailableError, translate
from likeness_client.records import Product
from likeness_client.results import Comparison, Embeddings, ScoreMatrix, Scores

T = TypeVar("T")

_FEW = 8
"""So many products that need no file and no encoding are prepared sooner than a thread is woken for them."""


class AsyncClient(_channel.BaseClient):
    """Embeds and compares products on a Triton server; see `BaseClient` for the arguments.

    One client may be shared by any number of tasks of one event loop: the one that it is first used in. Close it, or
    use it in an ``async with`` statement. Files are read and inputs encoded in a thread, so that the loop stays free.
    """

    _opened: Any = None

    async def embed(
        self,
        products: Iterable[Product],
        *,
        modalities: Collection[str] | None = None,
        on_error: OnError = "raise",
    ) -> Embeddings:
        """Embed products; see `Client.embed`."""
        items = tuple(products)
        return await self._run(lambda info: _operations.embed(items, modalities, on_error, info), brief=_brief(items))

    async def similarity(
        self,
        left: Iterable[Product],
        right: Iterable[Product],
        *,
        metric: Metric = Metric.COSINE,
        on_error: OnError = "raise",
    ) -> Scores:
        """Score pairs; see `Client.similarity`."""
        sides = tuple(left), tuple(right)
        brief = _brief(*sides)
        return await self._run(lambda info: _operations.similarity(*sides, metric, on_error, info), brief=brief)

    async def similarity_matrix(
        self,
        queries: Iterable[Product] | Embeddings,
        candidates: Iterable[Product] | Embeddings,
        *,
        metric: Metric = Metric.COSINE,
        on_error: OnError = "raise",
    ) -> ScoreMatrix:
        """Score every query with every candidate; see `Client.similarity_matrix`."""
        sides = _operations.held(queries), _operations.held(candidates)
        return await self._run(lambda info: _operations.similarity_matrix(*sides, metric, on_error, info))

    async def compare(self, left: Product, right: Product) -> Comparison:
        """Score one pair by every metric; see `Client.compare`."""
        brief = _brief([left, right])
        return await self._run(lambda info: _operations.compare(left, right, info), brief=brief)

    async def info(self, *, refresh: bool = False) -> ServerInfo:
        """Return what the server offers; see `Client.info`."""
        if self._must_ask() or refresh or self._info is None:
            self._info = await self._discover()
        return self._info

    async def close(self) -> None:
        """Close the channel; calls in flight fail. Closing twice does no harm."""
        self._closed = True
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

    def _stub(self) -> Any:
        """Return the channel, opened at first use: it belongs to the event loop that is running then."""
        if self._closed:
            raise LikenessError(f"this client of {self.address} is closed")
        if self._opened is None:
            self._opened = InferenceServerClient(**self._channel())
        return self._opened

    async def _discover(self) -> ServerInfo:
        stub = self._stub()
        with translate(self.address):
            index = await stub.get_model_repository_index(client_timeout=self.timeout_s)
            asked = (stub.get_model_config(name, client_timeout=self.timeout_s) for name in embed_models(index.models))
            return discover([answer.config for answer in await asyncio.gather(*asked)])

    async def _run(self, operation: Callable[[ServerInfo], Operation[T]], *, brief: bool = False) -> T:
        try:
            return await self._drive(operation(await self.info()), brief)
        except ModelNotFoundError:
            if self._info is None:  # it was the question itself that failed
                raise
            self._info = None  # the repository has changed since it was asked
        except ServerUnavailableError:
            self._info = None  # another one may stand in its place when it is back
            raise
        return await self._drive(operation(await self.info()), brief)

    async def _drive(self, operation: Operation[T], brief: bool) -> T:
        with translate(self.address):
            answers: list[Answer] | None = None
            while True:
                state = step(operation, answers) if brief else await asyncio.to_thread(step, operation, answers)
                if isinstance(state, Done):
                    return state.value
                answers = await self._execute(state)

    async def _execute(self, calls: list[Call]) -> list[Answer]:
        """Run calls at the same time; the first failure cancels the others."""
        if len(calls) == 1:
            return [await self._send(calls[0])]
        tasks = [asyncio.ensure_future(self._send(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, call: Call) -> Answer:
        async with self._slots:
            inputs, outputs = _channel.encode(call)
            with translate(self.address, call.model):
                result = await self._stub().infer(call.model, inputs, outputs=outputs, client_timeout=self.timeout_s)
            return _channel.decode(call, result)


def _brief(*sides: Sequence[Product]) -> bool:
    """Say whether preparing these products is over sooner than a thread is woken for it."""
    return sum(map(len, sides)) <= _FEW and all(isinstance(item, Product) and _at_hand(item) for item in chain(*sides))


def _at_hand(product: Product) -> bool:
    """Say whether a product can be sent as it is: no file has to be read, no array encoded."""
    return all(isinstance(part, bytes) for part in (*product.images, *filter(None, [product.video])))
