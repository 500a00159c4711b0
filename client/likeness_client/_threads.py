"""What the synchronous client leaves to threads that nobody waits for at the end of a program."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from tritonclient.grpc import InferenceServerClient

T = TypeVar("T")

_CLOSES_S = 2.0
"""The longest that a channel may take to close; usually it is a matter of a millisecond."""
_INHERITED: list[InferenceServerClient] = []
"""Channels that a fork has brought here: to close or forget one could hang."""


def side_by_side(ask: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """Return the answers to all names: five modalities have 31 ensembles, and a server may be far away.

    A script whose questions are late does not wait for these threads when it ends, as it would for those of a pool.
    """
    answers = [Future[T]() for _ in names]

    def fill(answer: Future[T], name: str) -> None:
        try:
            answer.set_result(ask(name))
        except BaseException as error:
            answer.set_exception(error)

    for each in zip(answers, names, strict=True):
        threading.Thread(target=fill, args=each, daemon=True).start()
    return [answer.result() for answer in answers]


def close_in_time(stub: InferenceServerClient, process: int) -> None:
    """Close a channel, in a limited time; in a child of the process that opened it leave it alone.

    A signal that raises in the midst of gRPC's code, as Ctrl-C does, may leave a call there that nobody ends; gRPC
    would wait for it for ever.
    """
    if os.getpid() != process:
        stub.close = _left_alone  # which tritonclient would call at the end
        _INHERITED.append(stub)
        return
    closing = threading.Thread(target=stub.close, daemon=True)
    try:
        closing.start()
    except RuntimeError:  # a Python that ends starts no threads any more (atexit)
        stub.close()
    else:
        closing.join(_CLOSES_S)


def _left_alone() -> None:
    """Take the place of closing."""
