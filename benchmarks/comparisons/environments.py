"""Environments of the other servers, each in a folder of its own, with the versions that are known to work together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from comparisons.rounds import ComparisonError

ENVIRONMENTS = Path("runs/envs")
"""Where they go unless told otherwise; relative to where the command runs."""
REQUIREMENTS = Path(__file__).parent / "requirements"
_DONE = ".installed"


def virtual_environment(name: str, root: Path) -> Path:
    """Make a virtual environment with the requirements of this name, unless it is there.

    Returns:
        Its ``bin`` folder.

    Raises:
        ComparisonError: pip failed; the message is pip's.
    """
    folder, requirements = root / name, REQUIREMENTS / f"{name}.txt"
    if not _is_done(folder, requirements):
        typer.echo(f"installing {requirements.name} into {folder}, once", err=True)
        run([sys.executable, "-m", "venv", "--clear", str(folder)])
        run([str(folder / "bin" / "pip"), "install", "--quiet", "--requirement", str(requirements)])
        _mark(folder, requirements)
    return (folder / "bin").absolute()


def extra_packages(name: str, root: Path) -> Path:
    """Install the requirements of this name beside the running environment, unless they are there.

    Returns:
        The folder to put on ``PYTHONPATH``.

    Raises:
        ComparisonError: pip failed; the message is pip's.
    """
    folder, requirements = root / name, REQUIREMENTS / f"{name}.txt"
    if not _is_done(folder, requirements):
        typer.echo(f"installing {requirements.name} into {folder}, once", err=True)
        target = ["--target", str(folder), "--upgrade"]
        run([sys.executable, "-m", "pip", "install", "--quiet", *target, "--requirement", str(requirements)])
        _mark(folder, requirements)
    return folder.absolute()


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run a command to its end.

    Returns:
        What it wrote to its standard output.

    Raises:
        ComparisonError: it is not installed, or it failed; with the end of what it said.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    except OSError as error:
        raise ComparisonError(f"cannot run {command[0]} ({error.strerror}): install it") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip()[-1500:]
        raise ComparisonError(f"`{' '.join(command)}` ended with code {error.returncode}: {said}") from error
    return done.stdout


def _is_done(folder: Path, requirements: Path) -> bool:
    done = folder / _DONE
    return done.is_file() and done.read_text(encoding="utf-8") == requirements.read_text(encoding="utf-8")


def _mark(folder: Path, requirements: Path) -> None:
    (folder / _DONE).write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
