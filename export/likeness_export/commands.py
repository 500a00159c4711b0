"""What the commands of all packages have in common."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from likeness_client import Client, InputError
from likeness_client.cli import BULK_TIMEOUT_S, open_client

DataRoot = Annotated[
    Path,
    typer.Option(help="The folder that a recipe's relative paths start from.", envvar="LIKENESS_DATA", file_okay=False),
]
OptionalTimeout = Annotated[
    float | None,
    typer.Option(
        min=0.01, help="Deadline of each call to the server; with --server.", show_default=f"{BULK_TIMEOUT_S:g}"
    ),
]


def start() -> None:
    """Show this project's messages, of the libraries only warnings; keep their telemetry silent."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("likeness_export").setLevel(logging.INFO)


def optional_client(
    context: typer.Context, server: str, timeout_s: float | None
) -> AbstractContextManager[Client | None]:
    """Open a client of the server that an option may name; None without one.

    Raises:
        InputError: a deadline, but no server.
    """
    if server:
        return open_client(context, server, BULK_TIMEOUT_S if timeout_s is None else timeout_s)
    if timeout_s is not None:
        raise InputError(f"--timeout-s {timeout_s:g} is of calls to a server: leave it out, or give --server, too")
    return nullcontext()
