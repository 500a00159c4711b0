"""How both clients reach a server: options of the gRPC channel, and calls in tritonclient's classes."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import np_to_triton_dtype

from likeness_client._calls import MAX_CALL_BYTES, Answer, Call
from likeness_client._discovery import ServerInfo
from likeness_client.contract import MAX_BYTES
from likeness_client.errors import (
    DeadlineExceededError,
    InputError,
    LikenessError,
    OverloadedError,
    ServerUnavailableError,
    SpaceMismatchError,
)

DEFAULT_ADDRESS = "localhost:8001"  # Triton's own default for gRPC
DEFAULT_TIMEOUT_S = 30.0
Headers: TypeAlias = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""Names and values that are sent with calls, or what is asked for them before each."""
_OTHER_SCHEME = re.compile(r"(?!dns:|unix:|xds:)[\w+.-]*://")  # gRPC would look up a host of that name
_WITHOUT_PORT = re.compile(  # a host or [ipv6] alone, also as a name of gRPC's resolver; gRPC would call its port 443
    r"(?:dns:(?://[^/]*/)?)?(?:[^:/\[\]]+|\[[^\]]*\]):?"
)
_HEADER_NAME = re.compile(r"(?!.*-bin$)[a-z0-9_.-]+")  # gRPC takes bytes only under a name in -bin
_HEADER_VALUE = re.compile(r"[ -~]*")
_INFO_S = 30.0  # how long what the server has said of itself is trusted
_LONGEST_S = 365 * 86_400.0  # clocks of gRPC and of threads end after some centuries
_REFRESH_S = 5.0  # how long each question may take of those that follow
OUT_OF_REACH = (ServerUnavailableError, DeadlineExceededError, OverloadedError)
"""What says nothing about what a server offers: one replica of several may be down, or hang, or a gateway be full."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """An encrypted channel; without files, gRPC's own root certificates and no client certificate.

    Attributes:
        root_certificates: PEM file of the authorities to trust.
        private_key: PEM file of the client's key, for mutual TLS.
        certificate_chain: PEM file of the client's certificates, for mutual TLS.

    Raises:
        InputError: a file cannot be read, or there is a key without certificates or the reverse.
    """

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):  # gRPC would abort the process
            raise InputError("mutual TLS needs both private_key and certificate_chain")
        for path in filter(None, (self.root_certificates, self.private_key, self.certificate_chain)):
            try:
                whole = path.read_bytes()
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from error
            if b"-----BEGIN " not in whole:  # gRPC would say that no server answers
                raise InputError(f"{path} is no PEM file: give one with a line that begins with -----BEGIN")


class BaseClient:
    """What both clients have in common: where the server is and how it is called."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_concurrency: int = 8,
        max_attempts: int = 4,
        tls: Tls | None = None,
        headers: Headers | None = None,
        space: str | None = None,
    ) -> None:
        """Say where the server is and how it is called; it connects when it is first used.

        Args:
            address: ``host:port``; calls are balanced over all addresses that the host's name has, as with
                ``dns:///host:port``. Or ``xds:///service`` of a service mesh, which then balances and tries again.
            timeout_s: the deadline of each call, retries included; before that, a call waits for its turn, at most as
                long.
            max_concurrency: the most inferences in flight at a time, over all threads or tasks that share the client. 8
                keep the batchers of a few steps busy; more only wait in the server's queues.
            max_attempts: how often a call is tried in all, 1 to 5, while the server is unavailable or overloaded.
            tls: set for an encrypted channel.
            headers: sent with every call, e.g. ``{"authorization": "Bearer ..."}`` for a gateway before the server; or
                a function that returns them, asked before every call (once for all questions about the server), in the
                caller's thread and context, for tokens that change and for tracing.
            space: the only embedding space to accept, of the vectors that a database holds, say; None: whichever
                is served.

        Raises:
            InputError: an argument is out of range.
        """
        if not address or _OTHER_SCHEME.match(address):
            expected = "host:port of the gRPC endpoint, or dns:///host:port, or xds:///service, without another scheme"
            raise InputError(f"address must be {expected}, not {address!r}")
        if _WITHOUT_PORT.fullmatch(address):
            raise InputError(f"{address}: the port is missing; e.g. {address.rstrip(':')}:8001")
        check_timeout(timeout_s)
        if max_concurrency < 1:
            raise InputError("max_concurrency must be positive")
        if not 1 <= max_attempts <= 5:  # gRPC caps it at 5, silently
            raise InputError("max_attempts must be 1 to 5")
        self.address = address
        self.timeout_s = timeout_s
        self.max_concurrency = max_concurrency
        self.space = space
        self._max_attempts = max_attempts
        self._tls = tls
        self._headers = headers if callable(headers) else _sendable(headers or {})
        self._info: ServerInfo | None = None
        self._asked_s = 0.0
        self._closed = False
        self._place: tuple[object, ...] = ()  # where the channel was opened, first of all in which process
        self._prepare()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, timeout_s={self.timeout_s})"

    def __reduce__(self) -> NoReturn:
        raise LikenessError(f"{self!r} can be neither copied nor sent to another process: make one in each process")

    def _known(self) -> tuple[ServerInfo | None, bool]:
        """Return what the server offers, as far as it is known, and whether it is time to ask again.

        Where one caller is told that it is, the others go by what is known meanwhile.
        """
        known, now = self._info, time.monotonic()
        due = known is None or now - self._asked_s >= _INFO_S
        if due:
            self._asked_s = now
        return known, due

    def _accepted(self, info: ServerInfo) -> ServerInfo:
        """Return what the server offers.

        Raises:
            SpaceMismatchError: it is of another space than this client accepts.
        """
        if self.space not in (None, info.space):
            raise SpaceMismatchError(
                f"the server at {self.address} embeds in the space {info.space}, this client accepts {self.space} "
                "only: ask a server of that space, or embed everything anew in the server's"
            )
        return info

    def _forget(self, info: ServerInfo) -> None:
        """Ask the server again before the next call, unless another caller has done so already."""
        if self._info is info:
            self._info = None

    def _check_place(self) -> None:
        """See that the channel can be used here.

        Raises:
            LikenessError: it was opened elsewhere; says where a client can be used.
        """
        here, where = self._here()
        if self._place not in ((), here):
            raise LikenessError(f"this client of {self.address} {where}")

    def _is_inherited(self) -> bool:
        """Say whether a fork has brought the channel here, where closing it could hang, or end the process."""
        return self._place[:1] not in ((), (os.getpid(),))

    def _here(self) -> tuple[tuple[object, ...], str]:
        """Return what a channel that is opened now belongs to, and how to say so of one that is used elsewhere."""
        raise NotImplementedError

    def _no_slot(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"no turn in {self.timeout_s:g} s: all {self.max_concurrency} calls of max_concurrency were in flight",
            self.address,
            code="DEADLINE_EXCEEDED",
        )

    def _late(self, timeout_s: float) -> DeadlineExceededError:
        return DeadlineExceededError(f"not over in the {timeout_s:g} s given", self.address, code="DEADLINE_EXCEEDED")

    def _closed_error(self) -> LikenessError:
        return LikenessError(f"this client of {self.address} is closed")

    def _prepare(self) -> None:
        """Make what one kind of client needs before its first call."""
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        """Return the arguments that every call has."""
        headers = _sendable(self._headers()) if callable(self._headers) else self._headers
        return {"client_timeout": self.timeout_s, "headers": headers}

    def _question_settings(self, *, needed: bool) -> dict[str, Any]:
        """Return the arguments of a question about the server; where nobody needs the answer, it may not take long."""
        return self._settings() | ({} if needed else {"client_timeout": min(self.timeout_s, _REFRESH_S)})

    def _channel(self) -> dict[str, Any]:
        """Return the arguments of tritonclient's ``InferenceServerClient``."""
        encrypted = {"ssl": True, **asdict(self._tls)} if self._tls else {}
        return {"url": self.address, "channel_args": channel_args(self._max_attempts), **encrypted}


def check_timeout(timeout_s: float) -> None:
    """See that a time can be waited for.

    Raises:
        InputError: it cannot.
    """
    if not 0 < timeout_s <= _LONGEST_S:
        raise InputError(f"timeout_s must be positive, and at most {_LONGEST_S:g} (a year), not {timeout_s}")


def channel_args(max_attempts: int) -> list[tuple[str, str | int]]:
    """Return the gRPC channel options: retries and balancing are gRPC's own, no loop around it.

    Args:
        max_attempts: how often a call is tried in all; 1 means no retry.

    Returns:
        Option names and values; see gRPC's ``grpc_types.h`` and its proposal A6 (client retries).
    """
    method: dict[str, Any] = {"name": [{"service": "inference.GRPCInferenceService"}]}
    if max_attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": max_attempts,
            # Four attempts in 3.5 s: longer than a server takes to start again.
            "initialBackoff": "0.5s",
            "maxBackoff": "4s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        }
    # round_robin spreads single calls over all addresses of a name, such as a headless service; gRPC's default sends
    # everything to the first.
    service_config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [method],
        # A failed attempt costs a token, an answer earns one: while most attempts fail, nothing is tried again. Retries
        # must not keep a full server full.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 1},
    }
    return [
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Calls that do not fit into this buffer are not retried, without a word; the default is 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", MAX_CALL_BYTES + 2 * sum(MAX_BYTES.values())),
        # Each of the attempts above shall try to connect, not wait for the default of a second; and a server that comes
        # back is found within seconds, where the default backs off to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # No pause, but how long one attempt may take at least: to shake hands with a gateway far away takes its time.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        # Keepalive also sets TCP_USER_TIMEOUT, so that a peer that vanished is noticed after the 20 s. Triton drops
        # clients that ping more often than every 300 s without data (--grpc-http2-min-recv-ping-interval-without-data).
        ("grpc.keepalive_time_ms", 310_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def _sendable(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers as gRPC takes them, which knows no capitals.

    Raises:
        InputError: one cannot be sent.
    """
    found = {name.lower(): value for name, value in headers.items()}
    for name, value in found.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            expected = "name and value must be printable ASCII, and the name not end in -bin"
            raise InputError(f"header {name!r} cannot be sent: {expected}")
    return found


def size(call: Call) -> int:
    """Return the bytes of a call's inputs, about."""
    return sum(
        sum(map(len, data.ravel())) if data.dtype == np.object_ else data.nbytes for data in call.inputs.values()
    )


def encode(call: Call) -> tuple[list[InferInput], list[InferRequestedOutput]]:
    """Return a call's inputs and requested outputs in tritonclient's classes."""
    inputs = []
    for name, data in call.inputs.items():
        given = InferInput(name, list(data.shape), np_to_triton_dtype(data.dtype))
        inputs.append(given.set_data_from_numpy(data))
    return inputs, [InferRequestedOutput(str(name)) for name in call.outputs]


def decode(call: Call, result: InferResult) -> Answer:
    """Return the tensors that a call asked for; one that the server left out is left out."""
    found = {str(name): result.as_numpy(str(name)) for name in call.outputs}
    return {name: data for name, data in found.items() if data is not None}
