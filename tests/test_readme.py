"""The README's blocks do what they show: Python is executed, the commands are run, on the real server."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from likeness_export.run import Run

pytestmark = pytest.mark.server

ROOT = Path(__file__).parent.parent
GUIDES = [ROOT / "README.md", *(ROOT / part / "README.md" for part in ("client", "export", "benchmarks"))]
GUIDES.append(ROOT / "export" / "choices.md")
ELSEWHERE = (
    "likeness serve",
    "likeness train",
    "likeness export",
    "likeness evaluate runs/mine",
    "likeness evaluate runs/fashion",
    "likeness quality",
    "likeness tune",
)
"""Commands that tests of their own cover, or that need data which is not there."""
ON_FILES = {"related", "cluster", "mine"}
"""Commands that ask no server."""


def blocks(guide: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def here(address: str, demo_catalogue: Path, trained_run: Run, repository: Path, tmp_path: Path) -> dict[str, str]:
    """What stands in the README, and what stands for it in this test."""
    return {
        "localhost:8001": address,
        "runs/demo/catalogue": str(demo_catalogue.parent),
        "runs/demo/run": str(trained_run.folder),
        "runs/demo/repository": str(repository),
        "runs/demo": str(tmp_path),
        "(2, 128)": "(2, 64)",
        "--seconds 30": "--seconds 2 --products 20",
        "--duration-s 30": "--duration-s 2 --warm-up-s 0.5 --budget-s 4 --timeout-s 60",
        "--rounds 5": "--rounds 1 --round-s 0.5 --warm-up-s 0.1 --trial-s 0.05 --timeout-s 60",
        "--target-ms 100 --budget-s 300": "--target-ms 60000 --budget-s 6 --duration-s 1 --warm-up-s 0 --timeout-s 60",
    }


def localised(text: str, here: dict[str, str]) -> str:
    for stands, means in here.items():
        text = text.replace(stands, means)
    return text


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_python_runs(guide: Path, here: dict[str, str]) -> None:
    for block in blocks(guide, "python"):
        code = localised(block, here)
        photo = next((Path(here["runs/demo/catalogue"]) / "images").glob("*.jpg"))
        code = re.sub(r"p\d{4}-s\d\.jpg", photo.name, code)  # a smaller catalogue has other listings
        exec(compile(code, str(guide), "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_commands_run(guide: Path, here: dict[str, str]) -> None:
    program = Path(sys.executable).parent / "likeness"
    lines = [line.strip() for block in blocks(guide, "sh") for line in block.splitlines()]
    for line in lines:
        if line.startswith("likeness ") and not line.startswith(ELSEWHERE):
            words = shlex.split(localised(line, here), comments=True)[1:]
            asks_nobody = words[0] in ON_FILES or words[:2] == ["bench", "compare"]
            address = [] if "--server" in words or asks_nobody else ["--server", here["localhost:8001"]]
            done = subprocess.run([program, *words, *address], capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_every_command_is_documented() -> None:
    text = "".join(guide.read_text(encoding="utf-8") for guide in GUIDES)
    program = Path(sys.executable).parent / "likeness"
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^│ (\w+) +\S", shown[shown.index("Commands") :], flags=re.MULTILINE)
    assert len(commands) >= 7
    assert [
        command for command in commands if f"likeness {command}" not in text and f"make {command}" not in text
    ] == []
