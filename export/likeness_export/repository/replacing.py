"""Putting a folder in the place of an earlier one: whole or not at all, and nothing of anybody else's."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from likeness_client.contract import SPACE_PARAMETER
from likeness_client.errors import InputError
from likeness_client.writing import told, told_if_full

from likeness_export.repository.servable import MANIFEST

_NEW, _OLD = "partial", "old"
_NOT_SO_OPENED = (errno.EACCES, errno.EBADF, errno.EINVAL)  # what some network file systems say of files open to read
_TUNED = r"tune-\d+"  # the copies that `likeness tune` serves


@contextmanager
def replaced_repository(folder: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of a model repository; see `replaced_folder`.

    Raises:
        InputError: there is something else than a repository of this project, or the place cannot be written to.
    """
    _check(folder)
    with replaced_folder(folder) as aside:
        yield aside


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside another one that takes its place when the block ends well, its files on the disk.

    What a killed process has left of it is cleared away, or put back.

    Raises:
        InputError: the place cannot be written to.
    """
    folder = folder.resolve()
    if folder.is_mount() or (folder.exists() and folder.samefile(os.curdir)):
        raise InputError(
            f"{folder} is a mount point or the folder you are in, which cannot be replaced: name one inside of it"
        )
    aside, old = _beside(folder, _NEW), _beside(folder, _OLD)
    with told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        tidy(folder)
        aside.mkdir()
    try:
        with told_if_full(folder):
            yield aside
            _flush(aside)
        try:
            if folder.exists():
                folder.rename(old)
            aside.rename(folder)
        except BaseException:  # Ctrl-C between the two, too
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Wait until all files of a folder are on the disk: after a power cut they could be there, and empty."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                try:
                    os.fsync(file.fileno())
                except OSError as error:
                    if error.errno not in _NOT_SO_OPENED:
                        raise


def _check(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another place")
    for entry in sorted(folder.iterdir()) if folder.exists() else ():
        if entry.name != MANIFEST and not _is_ours(entry):
            raise InputError(f"{folder} holds {entry.name}, which no export has written: choose another folder")


def _is_ours(entry: Path) -> bool:
    config = entry / "config.pbtxt"  # every model that is rendered names its space
    return config.is_file() and f'key: "{SPACE_PARAMETER}"' in config.read_text(encoding="utf-8", errors="replace")


def tidy(folder: Path) -> None:
    """Clear away what killed processes have left; one killed between its two renames left the last good folder."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.\d+\.({_NEW}|{_OLD}|{_TUNED})")
    left = [path for path in folder.parent.iterdir() if name.fullmatch(path.name)]
    # In a container every process may have the same number: one's own was another process's, too.
    dead = [path for path in left if not _of_another_process(path)]
    last_good = [path for path in dead if path.suffix == f".{_OLD}"]
    if last_good and not folder.exists():
        max(last_good, key=lambda path: path.stat().st_mtime).rename(folder)
    for path in dead:
        shutil.rmtree(path, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.{what}")


def _of_another_process(path: Path) -> bool:
    """Say whether the process that made a folder still runs, and is not this one."""
    number = int(path.stem.rpartition(".")[2])
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)  # asks, and does nothing
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user, or no number of a process at all
        return True
    return True
