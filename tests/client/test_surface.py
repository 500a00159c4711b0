from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from collections.abc import Sequence

import likeness_client
import pytest
from likeness_client import AsyncClient, Client

HEAVY = ("PIL", "hypothesis", "likeness_export", "onnxruntime", "pandas", "pyarrow", "rich", "torch", "typer")


def test_the_public_surface_is_deliberate() -> None:
    assert likeness_client.__all__ == [
        "AsyncClient",
        "BatchError",
        "Client",
        "Comparison",
        "DeadlineExceededError",
        "Embeddings",
        "ImageSource",
        "InputError",
        "InputSchema",
        "LikenessError",
        "Metric",
        "MissingExtraError",
        "ModelNotFoundError",
        "OnError",
        "OverloadedError",
        "Product",
        "ProductError",
        "RecordError",
        "ScoreMatrix",
        "Scores",
        "ServerError",
        "ServerInfo",
        "ServerUnavailableError",
        "SpaceMismatchError",
        "Tls",
        "VideoSource",
        "__version__",
        "read_products",
        "scan_products",
    ]
    assert likeness_client.__all__ == sorted(likeness_client.__all__)
    assert all(hasattr(likeness_client, name) for name in likeness_client.__all__)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_help_explains_every_argument_of_a_client(kind: type) -> None:
    shown = pydoc.plain(pydoc.render_doc(kind))
    for name in inspect.signature(kind).parameters:
        assert re.search(rf"^ \|  +{name}: [`\w]", shown, flags=re.MULTILINE), name


@pytest.mark.parametrize(
    ("module", "heavy"), [("likeness_client", HEAVY), ("likeness_client.cli", ("rich", "torch", "PIL"))]
)
def test_importing_it_loads_nothing_heavy(module: str, heavy: Sequence[str]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
