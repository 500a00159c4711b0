"""The encoder that the guide adds, added as it says, is trained and exported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

EXPORT = Path(__file__).parents[2] / "export"
RECIPE = """
name = "added"
dimension = 8
[data]
products = "products.jsonl"
labels = ["group"]
[towers.image]
encoder = "mean_colour"
[training]
epochs = 2
groups_per_batch = 6
group_size = 2
"""


def block(after: str, language: str) -> str:
    guide = (EXPORT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"```{language}\n(.*?)```", guide[guide.index(after) :], flags=re.DOTALL)
    assert found
    return found[1]


def test_the_guides_encoder_is_trained_and_exported(tiny: Tiny, tmp_path: Path) -> None:
    encoders = tmp_path / "likeness_export" / "encoders"
    shutil.copytree(EXPORT / "likeness_export", encoders.parent)
    (encoders / "image_mean_colour.py").write_text(block("## Adding", "python"), encoding="utf-8")
    whole = (encoders / "__init__.py").read_text(encoding="utf-8")
    lines = block("In `encoders/__init__.py`", "diff").splitlines()
    imported, member = (line[1:] for line in lines if line.startswith("+"))
    union = "\n".join(line[1:] for line in lines if line.startswith(" "))
    assert union in whole
    whole = whole.replace(union, f"{imported}\n\n{union}\n{member}")
    (encoders / "__init__.py").write_text(whole, encoding="utf-8")
    (tmp_path / "added.toml").write_text(RECIPE, encoding="utf-8")

    run, repository = tmp_path / "run", tmp_path / "repository"
    commands = [
        f"train {tmp_path / 'added.toml'} --out {run} --data-root {tiny.root}",
        f"export {run} --repository {repository}",
    ]
    run_all = "for words in sys.argv[1:]: app(words.split(), standalone_mode=False)"
    code = f"import sys; from likeness_export.cli import app\n{run_all}"
    done = subprocess.run(
        [sys.executable, "-c", code, *commands],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (repository / "image_encoder" / "1" / "model.onnx").is_file()
    assert json.loads((repository / "manifest.json").read_text(encoding="utf-8"))["space"]
