"""What the commands of all packages have in common."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

DataRoot = Annotated[
    Path,
    typer.Option(help="The folder that a recipe's relative paths start from.", envvar="LIKENESS_DATA", file_okay=False),
]


def start() -> None:
    """Show this project's messages, of the libraries only warnings; keep their progress bars and telemetry silent."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("likeness_export").setLevel(logging.INFO)
