"""The client for code that waits."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from tritonclient.grpc import InferenceServerClient

from likeness_client import _channel, _operations
from likeness_client._calls import Answer, Call, Done, Operation, step
from likeness_client._discovery import ServerInfo, discover, embed_models
from likeness_client._operations import OnError
from likeness_client._shared_answers import SharedByThreads
from likeness_client._threads import close_in_time, side_by_side
from likeness_client.contract import Metric
from likeness_client.errors import (
    LikenessError,
    ModelNotFoundError,
    ServerError,
    ServerUnavailableError,
    SpaceMismatchError,
    translate,
)
from likeness_client.records import Product
from likeness_client.results import Comparison, Embeddings, ScoreMatrix, Scores

T = TypeVar("T")


class Client(_channel.BaseClient):
    """Embeds and compares products on a Triton server.

    One client may be shared by any number of threads. It connects when it is first used. Close it, or use it in a
    ``with`` statement.

    Beside what they name, all methods raise `InputError` for an argument that cannot be used, `SpaceMismatchError`
    where the server is half rolled out or of another space than ``space``, and `LikenessError` once the client is
    closed, or where its process was forked after it was first used.
    """

    _opened: Any = None

    def embed(
        self,
        products: Iterable[Product],
        *,
        modalities: Collection[str] | None = None,
        on_error: OnError = "raise",
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Embed products; each is computed once however often it occurs.

        Args:
            products: any number, of any mix of modalities. All of it is held in memory, images too.
            modalities: look at these only, as if the products had nothing else; None means all that the server embeds.
            on_error: what to do when some of them fail.
            timeout_s: how long all of it may take, whatever it waits for; None: as long as its calls and their turns.
                Who leaves then cancels no call: they end by themselves, and count in ``max_concurrency`` until then.

        Returns:
            The embeddings in the same order.

        Raises:
            InputError: the server does not embed one of ``modalities``.
            BatchError: some products failed, and ``on_error`` is ``raise``.
            DeadlineExceededError: it was not over in ``timeout_s``, or a call not in the client's.
            ServerError: the server failed as a whole.
        """
        items = _operations.listed(products)
        return self._run(lambda info: _operations.embed(items, modalities, on_error, info), timeout_s)

    def similarity(
        self,
        left: Iterable[Product] | Embeddings,
        right: Iterable[Product] | Embeddings,
        *,
        metric: Metric = Metric.COSINE,
        on_error: OnError = "raise",
        timeout_s: float | None = None,
    ) -> Scores:
        """Score pairs: the first of ``left`` with the first of ``right``, and so on.

        Given embeddings are scored as in `similarity_matrix`: here, or by the server for the learned metric.

        Args:
            left: one side of each pair: products, or embeddings that are already there.
            right: the other side.
            metric: the measure.
            on_error: what to do when some pairs fail; gaps of given embeddings are not raised.
            timeout_s: how long all of it may take, see `embed`; of no account where no server is asked.

        Returns:
            One score per pair.

        Raises:
            InputError: the sides, or their vectors, differ in length.
            SpaceMismatchError: given embeddings are of another space.
            BatchError: some pairs failed, and ``on_error`` is ``raise``.
            ServerError: the server failed as a whole.
        """
        sides = _operations.held(left), _operations.held(right)
        if not _operations.needs_server(*sides, metric):
            return self._drive(_operations.similarity(*sides, metric, on_error, None))
        return self._run(lambda info: _operations.similarity(*sides, metric, on_error, info), timeout_s)

    def similarity_matrix(
        self,
        queries: Iterable[Product] | Embeddings,
        candidates: Iterable[Product] | Embeddings,
        *,
        metric: Metric = Metric.COSINE,
        on_error: OnError = "raise",
        timeout_s: float | None = None,
    ) -> ScoreMatrix:
        """Score every query with every candidate.

        Cosine and Euclidean scores are computed here, the learned ones by the server. For two given embeddings and a
        score of the first kind no server is asked.

        Args:
            queries: products, or embeddings that are already there.
            candidates: the same.
            metric: the measure.
            on_error: what to do when some products fail; gaps of given embeddings are not raised.
            timeout_s: how long all of it may take, see `embed`; of no account where no server is asked.

        Returns:
            One row per query, one column per candidate.

        Raises:
            InputError: the vectors of the two sides differ in length.
            SpaceMismatchError: given embeddings are of another space.
            BatchError: some products failed, and ``on_error`` is ``raise``.
            ServerError: the server failed as a whole.
        """
        sides = _operations.held(queries), _operations.held(candidates)
        if not _operations.needs_server(*sides, metric):
            return self._drive(_operations.similarity_matrix(*sides, metric, on_error, None))
        return self._run(lambda info: _operations.similarity_matrix(*sides, metric, on_error, info), timeout_s)

    def compare(self, left: Product, right: Product, *, timeout_s: float | None = None) -> Comparison:
        """Score one pair by every metric, and say how much each modality counted.

        Args:
            left: one product.
            right: the other.
            timeout_s: how long all of it may take, see `embed`.

        Raises:
            ProductError: one of the two failed.
            ServerError: the server failed.
        """
        return self._run(lambda info: _operations.compare(left, right, info), timeout_s)

    def info(self, *, refresh: bool = False, timeout_s: float | None = None) -> ServerInfo:
        """Return what the server offers; asked again every half minute, and when a model or the server has gone.

        Args:
            refresh: ask now, e.g. before vectors are put beside earlier ones: the server may have been replaced.
            timeout_s: how long it may take, see `embed`; the question goes on, but is no call and takes no turn.

        Raises:
            SpaceMismatchError: its repository is half rolled out, or of another space than ``space``.
            ServerError: it cannot be reached, or is not a Likeness server.
        """
        with self._within(timeout_s) as until:
            return self._offered(until, refresh=refresh)

    def close(self) -> None:
        """Close the channel; calls in flight fail. Closing twice does no harm, nor does it in a child of a fork."""
        self._closed = True
        if self._is_inherited():
            return
        with self._lock:
            stub, self._opened = self._opened, None
        if stub is not None:
            self._closing()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        self._slots = threading.Semaphore(self.max_concurrency)
        self._lock = threading.RLock()  # `close` may be called by a signal's handler, in the midst of a call
        self._offer = SharedByThreads[ServerInfo]()

    def _here(self) -> tuple[tuple[object, ...], str]:
        where = "was first used before its process was forked: use none before that, and make one in each process"
        return (os.getpid(),), where

    def _stub(self) -> Any:
        """Return the channel, opened at first use: one that exists before a fork does not work after it."""
        with self._lock:
            if self._closed:
                raise self._closed_error()
            stub = self._opened
            if stub is None:
                stub = InferenceServerClient(**self._channel())
                # Or tritonclient closes what is forgotten.
                self._closing = weakref.finalize(self, close_in_time, stub, os.getpid())
                self._closing.atexit = False
                self._place, _ = self._here()
                self._opened = stub
                if self._closed:  # meanwhile, by a signal's handler
                    self.close()
                    raise self._closed_error()
            return stub

    @contextmanager
    def _within(self, timeout_s: float | None) -> Iterator[float]:
        """Yield the moment at which what is done inside has to be over; it raises ``TimeoutError`` then."""
        if timeout_s is None:
            yield math.inf
            return
        _channel.check_timeout(timeout_s)
        until = time.monotonic() + timeout_s
        try:
            yield until
        except TimeoutError as error:
            if time.monotonic() < until:  # one of the caller's own, from a function that returns the headers
                raise
            raise self._late(timeout_s) from error

    def _offered(self, until: float, *, refresh: bool = False) -> ServerInfo:
        """Return what the server offers, see `info`."""
        self._check_place()
        known, due = (None, True) if refresh else self._known()
        if known is None:
            return self._ask(until, alone=refresh)
        if not due:
            return known
        try:
            return self._ask(until if until == math.inf else (time.monotonic() + until) / 2, alone=False)
        except (TimeoutError, *_channel.OUT_OF_REACH):
            return known  # calls name the space that they want: if it is gone, they will say so

    def _ask(self, until: float, *, alone: bool) -> ServerInfo:
        """Ask the server what it offers, with those who come meanwhile; see `SharedByThreads` for ``alone``."""
        return self._offer.get(lambda: self._question(alone=alone), lambda: _left_s(until), alone=alone)

    def _question(self, *, alone: bool) -> Callable[[], ServerInfo]:
        # The caller's function for the headers is asked here: what it reads may belong to this thread.
        settings = self._question_settings(needed=alone or self._info is None)
        return lambda: self._learn(settings, alone=alone)

    def _learn(self, settings: dict[str, Any], *, alone: bool) -> ServerInfo:
        try:
            self._info = found = self._discover(settings)
        except BaseException as error:
            if alone or not isinstance(error, _channel.OUT_OF_REACH):
                self._info = None  # what is known may be wrong by now
            raise
        return found

    def _discover(self, settings: dict[str, Any]) -> ServerInfo:
        stub = self._stub()

        def config_of(name: str) -> Any:
            return stub.get_model_config(name, **settings).config

        with self._open(), translate(self.address):
            models = embed_models(stub.get_model_repository_index(**settings).models)
            ready = [name for name, reason in models.items() if not reason]
            return self._accepted(discover(side_by_side(config_of, ready), models))

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Say that the client is closed where another thread closes the channel under a call."""
        try:
            yield
        except (ValueError, ServerError) as error:
            cancelled = isinstance(error, ServerError) and error.code == "CANCELLED"
            if self._closed and (cancelled or not isinstance(error, LikenessError)):
                raise self._closed_error() from error
            raise

    def _run(self, operation: Callable[[ServerInfo], Operation[T]], timeout_s: float | None) -> T:
        with self._within(timeout_s) as until:
            info = self._offered(until)
            try:
                return self._drive(operation(info), until)
            except (ModelNotFoundError, SpaceMismatchError):
                self._forget(info)  # the repository may have changed since it was asked
            except ServerUnavailableError:
                self._forget(info)  # another one may stand in its place when it is back
                if not info.unready:  # what was not ready when it was asked may be by now
                    raise
            return self._drive(operation(self._offered(until)), until)

    def _drive(self, operation: Operation[T], until: float = math.inf) -> T:
        with translate(self.address):
            state = step(operation, None)
            while not isinstance(state, Done):
                state = step(operation, self._execute(state, until))
            return state.value

    def _execute(self, calls: list[Call], until: float) -> list[Answer]:
        """Run calls at the same time; after the first failure no more are sent, and those on their way end.

        They are not cancelled: that can end a server of before 2025. Only Ctrl-C and its like do.

        Raises:
            TimeoutError: they have not ended ``until`` then.
        """
        if len(calls) == 1 and until == math.inf:  # the usual case; another thread would cost more than it brings
            self._take_slot(until)
            try:
                return [self._ask_alone(calls[0])]
            finally:
                self._slots.release()
        failed = threading.Event()
        sent: list[tuple[Future[Answer], Any]] = []
        try:
            for call in calls:
                self._take_slot(until)
                if failed.is_set():
                    self._slots.release()
                    break
                sent.append(self._send(call, failed))
            if wait([future for future, _ in sent], _left_s(until)).not_done:
                raise TimeoutError
        except BaseException as stop:
            if not isinstance(stop, Exception):
                for _, context in sent:
                    context.cancel()
            raise
        return [future.result() for future, _ in sent]

    def _take_slot(self, until: float) -> None:
        left_s = min(self.timeout_s, until - time.monotonic())
        if left_s <= 0 or not self._slots.acquire(timeout=left_s):
            if left_s < self.timeout_s:
                raise TimeoutError
            raise self._no_slot()

    def _ask_alone(self, call: Call) -> Answer:
        inputs, outputs = _channel.encode(call)
        with self._open(), translate(self.address, call.model):
            result = self._stub().infer(call.model, inputs, call.version, outputs, **self._settings())
        return _channel.decode(call, result)

    def _send(self, call: Call, failed: threading.Event) -> tuple[Future[Answer], Any]:
        """Send one call; its slot is taken, and given back when the answer is there."""
        future: Future[Answer] = Future()

        def receive(result: Any, error: Exception | None) -> None:
            try:
                with self._open(), translate(self.address, call.model):
                    if error is not None:
                        raise error
                    future.set_result(_channel.decode(call, result))
            except Exception as failure:
                future.set_exception(failure)
                failed.set()
            finally:
                self._slots.release()

        try:
            stub = self._stub()
            inputs, outputs = _channel.encode(call)
            settings = self._settings()  # may ask the caller's own function for the headers
            # tritonclient keeps the call in an attribute until its callback is attached: two threads at once would
            # swap their answers.
            with self._lock, self._open():
                context = stub.async_infer(call.model, inputs, receive, call.version, outputs, **settings)
        except BaseException:
            self._slots.release()
            raise
        return future, context


def _left_s(until: float) -> float | None:
    """Return how long there is to wait; None: as long as it takes."""
    return None if until == math.inf else max(0.0, until - time.monotonic())
