"""One answer for all who ask at the same time: the first one asks, the others wait for the same answer.

Who leaves before it is there takes it from nobody else. An answer is forgotten as soon as it is there: the next caller
asks anew, and an error would also hold what those who got it had in hand, such as photos.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedByThreads(Generic[T]):
    """An answer that threads wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking: Future[T] | None = None

    def get(self, prepare: Callable[[], Callable[[], T]], left_s: Callable[[], float | None], *, alone: bool) -> T:
        """Wait for the answer that is on its way, or for a new one.

        Args:
            prepare: makes the question, in the thread of the caller; a thread of its own asks it.
            left_s: says how long there is to wait; None: as long as it takes.
            alone: ask anew even if an answer is on its way; who comes meanwhile waits for this one.

        Raises:
            TimeoutError: it was not there in time.
        """
        while True:
            with self._lock:
                theirs = None if alone else self._asking
                asking = theirs or Future()
                self._asking = asking
            if theirs is None:
                self._begin(asking, prepare)
            try:
                return asking.result(left_s())
            except CancelledError:  # who was to ask could not: somebody else has to
                continue
            finally:
                del theirs, asking  # the traceback of an error holds this frame: it would hold itself

    def _begin(self, asking: Future[T], prepare: Callable[[], Callable[[], T]]) -> None:
        try:
            threading.Thread(target=self._ask, args=(asking, prepare()), daemon=True).start()
        except BaseException:
            self._forget(asking)
            asking.cancel()
            raise

    def _ask(self, asking: Future[T], question: Callable[[], T]) -> None:
        if not asking.set_running_or_notify_cancel():
            return  # who began it was interrupted
        try:
            found = question()
        except BaseException as error:
            self._forget(asking)
            asking.set_exception(error)
        else:
            self._forget(asking)
            asking.set_result(found)

    def _forget(self, asking: Future[T]) -> None:
        with self._lock:
            if self._asking is asking:
                self._asking = None


class SharedByTasks(Generic[T]):
    """An answer that the tasks of one event loop wait for."""

    def __init__(self) -> None:
        self._asking: asyncio.Task[T] | None = None

    async def get(self, question: Callable[[], Coroutine[Any, Any, T]], *, alone: bool) -> T:
        """Wait for the answer that is on its way, or for a new one.

        Args:
            question: asks.
            alone: ask anew even if an answer is on its way; who comes meanwhile waits for this one.
        """
        if alone or self._asking is None:
            self._asking = asyncio.create_task(question())
            self._asking.add_done_callback(self._forget)
        return await asyncio.shield(self._asking)

    def _forget(self, asking: asyncio.Task[T]) -> None:
        has_failed(asking)
        if self._asking is asking:
            self._asking = None


def has_failed(task: asyncio.Task[Any]) -> bool:
    """Look at how a task ended; an error that nobody has looked at, because the caller has left, would be printed."""
    return task.cancelled() or task.exception() is not None
