"""The client for code that waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from tritonclient.grpc import InferenceServerClient

from likeness_client import _channel, _operations
from likeness_client._calls import Answer, Call, Done, Operation, step
from likeness_client._discovery import ServerInfo, discover, embed_models
from likeness_client._operations import OnError
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

_CLOSES_S = 2.0
"""So long may a channel take to close; usually it is a matter of a millisecond."""


class Client(_channel.BaseClient):
    """Embeds and compares products on a Triton server; see `BaseClient` for the arguments.

    One client may be shared by any number of threads. It connects when it is first used. Close it, or use it in a
    ``with`` statement.
    """

    _opened: Any = None

    def embed(
        self,
        products: Iterable[Product],
        *,
        modalities: Collection[str] | None = None,
        on_error: OnError = "raise",
    ) -> Embeddings:
        """Embed products; each is computed once however often it occurs.

        Args:
            products: any number, of any mix of modalities. All of it is held in memory, images too.
            modalities: look at these only, as if the products had nothing else; None means all that the server embeds.
            on_error: what to do when some of them fail.

        Returns:
            The embeddings in the same order.

        Raises:
            InputError: the server does not embed one of ``modalities``.
            BatchError: some products failed, and ``on_error`` is ``raise``.
            ServerError: the server failed as a whole.
        """
        items = tuple(products)
        return self._run(lambda info: _operations.embed(items, modalities, on_error, info))

    def similarity(
        self,
        left: Iterable[Product] | Embeddings,
        right: Iterable[Product] | Embeddings,
        *,
        metric: Metric = Metric.COSINE,
        on_error: OnError = "raise",
    ) -> Scores:
        """Score pairs: the first of ``left`` with the first of ``right``, and so on.

        Given embeddings are scored as in `similarity_matrix`: here, or by the server for the learned metric.

        Args:
            left: one side of each pair: products, or embeddings that are already there.
            right: the other side.
            metric: the measure.
            on_error: what to do when some pairs fail; gaps of given embeddings are not raised.

        Returns:
            One score per pair.

        Raises:
            InputError: the sides differ in length.
            SpaceMismatchError: given embeddings are of another space.
            BatchError: some pairs failed, and ``on_error`` is ``raise``.
            ServerError: the server failed as a whole.
        """
        sides = _operations.held(left), _operations.held(right)
        if not _operations.needs_server(*sides, metric):
            return self._drive(_operations.similarity(*sides, metric, on_error, None))
        return self._run(lambda info: _operations.similarity(*sides, metric, on_error, info))

    def similarity_matrix(
        self,
        queries: Iterable[Product] | Embeddings,
        candidates: Iterable[Product] | Embeddings,
        *,
        metric: Metric = Metric.COSINE,
        on_error: OnError = "raise",
    ) -> ScoreMatrix:
        """Score every query with every candidate.

        Cosine and Euclidean scores are computed here, the learned ones by the server. For two given embeddings and a
        score of the first kind no server is asked.

        Args:
            queries: products, or embeddings that are already there.
            candidates: the same.
            metric: the measure.
            on_error: what to do when some products fail; gaps of given embeddings are not raised.

        Returns:
            One row per query, one column per candidate.

        Raises:
            SpaceMismatchError: given embeddings are of another space.
            BatchError: some products failed, and ``on_error`` is ``raise``.
            ServerError: the server failed as a whole.
        """
        sides = _operations.held(queries), _operations.held(candidates)
        if not _operations.needs_server(*sides, metric):
            return self._drive(_operations.similarity_matrix(*sides, metric, on_error, None))
        return self._run(lambda info: _operations.similarity_matrix(*sides, metric, on_error, info))

    def compare(self, left: Product, right: Product) -> Comparison:
        """Score one pair by every metric, and say how much each modality counted.

        Raises:
            ProductError: one of the two failed.
            ServerError: the server failed.
        """
        return self._run(lambda info: _operations.compare(left, right, info))

    def info(self, *, refresh: bool = False) -> ServerInfo:
        """Return what the server offers; asked again every half minute, and when a model or the server has gone.

        Args:
            refresh: ask now, e.g. before vectors are put beside earlier ones: the server may have been replaced.

        Raises:
            SpaceMismatchError: its repository is half rolled out, or of another space than ``space``.
            ServerError: it cannot be reached, or is not a Likeness server.
        """
        self._check_place()
        if refresh:
            return self._ask(alone=True)
        known, due = self._known()
        if known and not due:
            return known
        try:
            return self._ask(alone=False)
        except _channel.OUT_OF_REACH:
            if known is None:
                raise
            return known  # calls name the space that they want: if it is gone, they will say so

    def close(self) -> None:
        """Close the channel; calls in flight fail. Closing twice does no harm."""
        self._closed = True
        with self._lock:
            stub, self._opened = self._opened, None
        if stub is not None:
            # A signal that raises in the midst of gRPC's code, as Ctrl-C does, may leave a call there that nobody ends;
            # gRPC would wait for it for ever.
            closing = threading.Thread(target=stub.close, daemon=True)
            try:
                closing.start()
            except RuntimeError:  # a Python that ends starts no threads any more (atexit)
                stub.close()
            else:
                closing.join(_CLOSES_S)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        self._slots = threading.Semaphore(self.max_concurrency)
        self._lock = threading.Lock()
        self._asking: Future[ServerInfo] | None = None

    def _here(self) -> tuple[object, str]:
        return os.getpid(), "was first used before its process was forked: make one in each process"

    def _stub(self) -> Any:
        """Return the channel, opened at first use: one that exists before a fork does not work after it."""
        with self._lock:
            if self._closed:
                raise self._closed_error()
            if self._opened is None:
                self._opened = InferenceServerClient(**self._channel())
                self._place, _ = self._here()
            return self._opened

    def _ask(self, *, alone: bool) -> ServerInfo:
        """Ask the server what it offers; who comes meanwhile waits for the same answer, except to ask ``alone``."""
        with self._lock:
            waited_for = None if alone else self._asking
            asking: Future[ServerInfo] = waited_for or Future()
            self._asking = asking
        if waited_for:
            return asking.result()
        try:
            self._info = found = self._discover(needed=alone or self._info is None)
            asking.set_result(found)
        except BaseException as error:
            if alone or not isinstance(error, _channel.OUT_OF_REACH):
                self._info = None  # what is known may be wrong by now
            # Ctrl-C, for one, is meant for the thread that it reached.
            interrupted = ServerError("the thread that asked it was interrupted", self.address, code="CANCELLED")
            asking.set_exception(error if isinstance(error, Exception) else interrupted)
            raise
        finally:
            with self._lock:
                if self._asking is asking:
                    self._asking = None
        return found

    def _discover(self, *, needed: bool) -> ServerInfo:
        stub = self._stub()

        def config_of(name: str, settings: dict[str, Any]) -> Any:
            return stub.get_model_config(name, **settings).config

        with self._open(), translate(self.address):
            index = stub.get_model_repository_index(**self._question_settings(needed=needed))
            models = embed_models(index.models)
            ready = [name for name, reason in models.items() if not reason]
            # Side by side: five modalities have 31 ensembles, and a server may be far away.
            # The caller's function for the headers is asked here: what it reads may belong to this thread.
            settings = [self._question_settings(needed=needed) for _ in ready]
            with ThreadPoolExecutor(self.max_concurrency) as pool:
                return self._accepted(discover([*pool.map(config_of, ready, settings)], models))

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

    def _run(self, operation: Callable[[ServerInfo], Operation[T]]) -> T:
        info = self.info()
        try:
            return self._drive(operation(info))
        except (ModelNotFoundError, SpaceMismatchError):
            self._forget(info)  # the repository may have changed since it was asked
        except ServerUnavailableError:
            self._forget(info)  # another one may stand in its place when it is back
            if not info.unready:  # what was not ready when it was asked may be by now
                raise
        return self._drive(operation(self.info()))

    def _drive(self, operation: Operation[T]) -> T:
        with translate(self.address):
            state = step(operation, None)
            while not isinstance(state, Done):
                state = step(operation, self._execute(state))
            return state.value

    def _execute(self, calls: list[Call]) -> list[Answer]:
        """Run calls at the same time; after the first failure no more are sent, and those on their way end.

        They are not cancelled: that can end a server of before 2025. Only Ctrl-C and its like do.
        """
        if len(calls) == 1:  # the usual case; waiting for another thread would cost more than it brings
            self._take_slot()
            try:
                return [self._ask_alone(calls[0])]
            finally:
                self._slots.release()
        failed = threading.Event()
        sent: list[tuple[Future[Answer], Any]] = []
        try:
            for call in calls:
                self._take_slot()
                if failed.is_set():
                    self._slots.release()
                    break
                sent.append(self._send(call, failed))
            wait(future for future, _ in sent)
        except BaseException as stop:
            if not isinstance(stop, Exception):
                for _, context in sent:
                    context.cancel()
            raise
        return [future.result() for future, _ in sent]

    def _take_slot(self) -> None:
        if not self._slots.acquire(timeout=self.timeout_s):
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
