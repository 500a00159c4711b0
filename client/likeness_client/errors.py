"""The one error tree of the package, and the one boundary where gRPC's errors enter it.

::

    LikenessError
    ├── InputError (also ValueError)     the caller can put it right
    │   ├── ProductError                 one product cannot be embedded; its neighbours can
    │   └── RecordError                  one line of a file is not a product
    ├── BatchError                       some products of a batch failed; carries the answers of the others
    ├── SpaceMismatchError               embeddings of two spaces would be compared
    ├── MissingExtraError                an optional package is not installed
    └── ServerError                      the server answered with an error, or not at all
        ├── ServerUnavailableError       not reachable, not ready, or refusing work
        ├── DeadlineExceededError        no answer in time
        ├── OverloadedError              a limit of the server is exhausted
        └── ModelNotFoundError           the server does not have this model
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tritonclient.utils import InferenceServerException

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # in the order in which gRPC looks for one


class LikenessError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(LikenessError, ValueError):
    """The call itself is wrong; sending it again cannot help."""


class ProductError(InputError):
    """One product cannot be embedded or compared.

    Attributes:
        reason: what is wrong and how to put it right.
        product_id: the product's own id; may be empty.
        modality: the part that is wrong; None if it is the product as a whole.
        index: position of the product (or pair) in the caller's batch; None until a batch knows it.
        side: ``left``, ``right``, ``query`` or ``candidate`` where two products are compared, else empty.
    """

    def __init__(
        self, reason: str, product_id: str = "", modality: str | None = None, index: int | None = None, side: str = ""
    ) -> None:
        # Everything goes to `args`, so that the error survives pickling between processes.
        super().__init__(reason, product_id, modality, index, side)
        self.reason = reason
        self.product_id = product_id
        self.modality = modality
        self.index = index
        self.side = side

    def at(self, index: int | None, side: str = "", product_id: str | None = None) -> ProductError:
        """Return this error as it reads at a position of a batch; ``product_id`` replaces the id when given."""
        known = self.product_id if product_id is None else product_id
        return ProductError(self.reason, known, self.modality, index, side)

    @property
    def which(self) -> str:
        """The product, as messages name it: side, position and id, as far as they are known."""
        words = [self.side, "product"]
        words += [] if self.index is None else [str(self.index)]
        words += [f"({self.product_id!r})"] if self.product_id else []
        return " ".join(word for word in words if word)

    def __str__(self) -> str:
        return f"{self.which}, {self.modality}: {self.reason}" if self.modality else f"{self.which}: {self.reason}"


class RecordError(InputError):
    """A line of a file, or a record, is not a product.

    Attributes:
        reason: what is wrong, with the key where there is one.
        source: the file's path or the product's id; may be empty.
        line: line number from 1; None if the record came from elsewhere.
    """

    def __init__(self, reason: str, source: str = "", line: int | None = None) -> None:
        super().__init__(reason, source, line)
        self.reason = reason
        self.source = source
        self.line = line

    def __str__(self) -> str:
        # An id may hold what moves a terminal's cursor, or ends a line of a log.
        source = self.source if self.source.isprintable() else repr(self.source)
        where = source if self.line is None else f"{source}:{self.line}"
        return f"{where}: {self.reason}" if where else self.reason


class BatchError(LikenessError):
    """Some products of a batch failed, and the caller did not ask for partial answers.

    Attributes:
        errors: the failures by position in the batch. In a matrix the candidates are counted on after the queries.
        result: the answer for the whole batch, `Embeddings`, `Scores` or a `ScoreMatrix`, NaN where it failed; nothing
            needs to be computed again.
    """

    def __init__(self, errors: Mapping[int, ProductError], result: Any) -> None:
        super().__init__(errors, result)
        self.errors: dict[int, ProductError] = dict(errors)
        self.result = result

    def __str__(self) -> str:
        named = "; ".join(str(error) for error in list(self.errors.values())[:3])
        more = f"; and {len(self.errors) - 3} more" if len(self.errors) > 3 else ""
        return f"{len(self.errors)} failed: {named}{more}. Pass on_error='return' to go on without them."


class SpaceMismatchError(LikenessError):
    """Embeddings of different spaces would be compared; their scores would mean nothing."""


class MissingExtraError(LikenessError):
    """An optional package is not installed.

    Attributes:
        extra: the extra of this distribution that brings it.
        what: what was asked for.
    """

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(extra, what)
        self.extra = extra
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is missing: pip install 'likeness[{self.extra}]'"


class ServerError(LikenessError):
    """The server answered with an error, or not at all.

    Attributes:
        message: what the server or the channel said.
        address: the server that was called.
        model: the model that was called; empty for questions about the server.
        code: name of the gRPC status code, e.g. ``UNAVAILABLE``.
    """

    hint = ""

    def __init__(self, message: str, address: str = "", model: str = "", code: str = "UNKNOWN") -> None:
        super().__init__(message, address, model, code)
        self.message = message
        self.address = address
        self.model = model
        self.code = code

    def __str__(self) -> str:
        # Where an answer is judged without knowing who gave it, the address is empty.
        who = f"model '{self.model}'" if self.model else "server"
        where = f" at {self.address}" if self.address else ""
        return f"{who}{where}: {self.message} [{self.code}]" + (f"; {self.hint}" if self.hint else "")


class ServerUnavailableError(ServerError):
    """The server is not reachable, not ready or refuses work (as a gateway or a bounded queue does), retries included.

    Questions about the server have no queue: where one of them, and not a model, is unavailable, there is no server, or
    it is just starting or ending.
    """

    hint = "is the server running (`likeness serve REPOSITORY`), ready and not overloaded?"

    def __str__(self) -> str:
        if self.model:
            return super().__str__()
        where = f" at {self.address}" if self.address else ""
        way_out = "start one with `likeness serve REPOSITORY`, and ask its --grpc-port, not the one of HTTP"
        return f"no server answers{where}; {way_out}{_proxy_hint()} ({self.message}) [{self.code}]"


class DeadlineExceededError(ServerError):
    """No answer came before the deadline."""

    hint = "raise timeout_s (--timeout-s of a command), or send less at once (--batch-size of `likeness embed`)"

    def __str__(self) -> str:
        return super().__str__() + ("" if self.model else _proxy_hint())  # the first thing asked is a question


class OverloadedError(ServerError):
    """The server, or the channel, has reached a limit of its own."""

    hint = "send less at once"


class ModelNotFoundError(ServerError):
    """The server does not have this model, or not of the space that it named itself: replicas of two are mixed, say."""

    hint = "does its repository come from `likeness export` of this version, and do all replicas serve the same one?"


STATUS_ERRORS: Mapping[str, type[ServerError]] = {
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "NOT_FOUND": ModelNotFoundError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "UNAVAILABLE": ServerUnavailableError,
}
"""gRPC status code -> class; of all others `ServerError` itself."""


def _proxy_hint() -> str:
    proxy = next((name for name in _PROXIES if os.environ.get(name)), "")
    return f"; {proxy} is set, which gRPC obeys: name the server in no_proxy if it should not" if proxy else ""


@contextmanager
def translate(address: str, model: str = "") -> Iterator[None]:
    """Turn tritonclient's exception into one of this package: the only place that knows both.

    The status code decides, never the message. An error of this package that was raised while an answer was judged
    does not know who gave the answer; it gets the address here.

    Args:
        address: the server that is called inside.
        model: the model that is called inside; empty for questions about the server.

    Raises:
        ServerError: or the subclass that `STATUS_ERRORS` names for the code.
    """
    try:
        yield
    except ServerError as error:
        if error.address:
            raise
        raise type(error)(error.message, address, error.model or model, error.code) from error
    except InferenceServerException as error:
        code = str(error.status() or "UNKNOWN").removeprefix("StatusCode.")
        kind = STATUS_ERRORS.get(code, ServerError)
        raise kind(str(error.message() or "no reason given"), address, model, code) from error
