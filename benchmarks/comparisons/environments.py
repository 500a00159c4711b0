"""Environments of the other servers, each in a folder of its own, with the versions that are known to work together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
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
    folder = root / name
    environment = [sys.executable, "-m", "venv", "--clear", str(folder)]
    _install(name, folder, environment, [str(folder / "bin" / "pip"), "install"])
    return (folder / "bin").absolute()


def extra_packages(name: str, root: Path) -> Path:
    """Install the requirements of this name beside the running environment, unless they are there.

    Returns:
        The folder to put on ``PYTHONPATH``.

    Raises:
        ComparisonError: pip failed; the message is pip's.
    """
    folder = root / name
    _install(name, folder, [sys.executable, "-m", "pip", "install", "--target", str(folder), "--upgrade"])
    return folder.absolute()


def run(
    command: Sequence[str],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> None:
    """Run a command to its end.

    Raises:
        ComparisonError: it is not installed, did not end in time, or failed; with the end of what it said.
    """
    try:
        subprocess.run(command, cwd=cwd, env=environment, timeout=timeout_s, capture_output=True, text=True, check=True)
    except OSError as error:
        raise ComparisonError(f"cannot run {command[0]} ({error.strerror}): install it") from error
    except subprocess.TimeoutExpired as error:
        raise ComparisonError(f"`{' '.join(command)}` did not end within {timeout_s:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip()[-1500:]
        raise ComparisonError(f"`{' '.join(command)}` ended with code {error.returncode}: {said}") from error


def _install(name: str, folder: Path, *commands: Sequence[str]) -> None:
    """Run commands, of which pip's is the last, unless what is in the folder came of the same requirements."""
    requirements, done = REQUIREMENTS / f"{name}.txt", folder / _DONE
    wanted = requirements.read_text(encoding="utf-8")
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return
    typer.echo(f"installing {requirements.name} into {folder}, once", err=True)
    *before, pip = commands
    for command in before:
        run(command)
    run([*pip, "--quiet", "--requirement", str(requirements)])
    done.write_text(wanted, encoding="utf-8")
