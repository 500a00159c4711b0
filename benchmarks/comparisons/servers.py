"""Servers for the length of a block; none is left behind, however the block ends."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships no type information
import typer
from likeness_bench.processes import find_server
from likeness_export.server.serve import ServeConfig, serving, stop_group

from comparisons.rounds import ComparisonError

READY_TIMEOUT_S = 300.0


@contextmanager
def likeness_server(repository: Path, log: Path) -> Iterator[str]:
    """Serve a model repository with the ``cpu`` profile on free ports of the loopback interface.

    Args:
        repository: the model repository.
        log: where the server's log goes.

    Yields:
        The gRPC endpoint, host:port.

    Raises:
        InputError: the repository cannot be served.
        ServeError: the server did not become ready.
    """
    config = ServeConfig.on_unused_ports(repository, log, profile="cpu", ready_timeout_s=READY_TIMEOUT_S)
    typer.echo(f"starting tritonserver on {repository}, log in {log}", err=True)
    with serving(config):
        yield config.address


def process_of(address: str) -> psutil.Process:
    """Return the process of a server of this machine.

    Raises:
        ComparisonError: it cannot be seen.
    """
    server = find_server(address)
    if server is None:
        raise ComparisonError(f"the processes of the server at {address} cannot be seen: run this as their user")
    return server


@contextmanager
def http_server(
    name: str, command: Sequence[str], url: str, log: Path, environment: Mapping[str, str]
) -> Iterator[None]:
    """Run an HTTP server.

    Args:
        name: for messages.
        command: starts it.
        url: answers with 200 when it is ready.
        log: where its output goes.
        environment: variables on top of this process's own.

    Raises:
        ComparisonError: it cannot be started, or did not become ready.
    """
    typer.echo(f"starting {name}, log in {log}", err=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        try:
            # A process group of its own: Ctrl-C reaches this process only, which then stops the group.
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=out, stderr=out, start_new_session=True
            )
        except OSError as error:
            raise ComparisonError(f"{name} cannot be started ({error.strerror}): {command[0]}") from error
        try:
            _wait_until_ready(process, name, url, log)
            yield
        finally:
            stop_group(process)


def _wait_until_ready(process: subprocess.Popen[bytes], name: str, url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ComparisonError(f"{name} ended with code {process.returncode} before it was ready: see {log}")
        with suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=2.0):
            return
        time.sleep(0.2)
    raise ComparisonError(f"{name} was not ready after {READY_TIMEOUT_S:.0f} s: see {log}")
