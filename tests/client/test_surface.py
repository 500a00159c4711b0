from __future__ import annotations

import subprocess
import sys

import likeness_client

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


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = f"import sys, likeness_client; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_loads_no_torch_for_its_own_commands() -> None:
    code = "import sys, likeness_client.cli; print([name for name in ('rich', 'torch', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
