"""Writing files so that nothing is ever seen half-written: aside, then renamed."""

from __future__ import annotations

import errno
import glob
import io
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness_client.errors import InputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk's, the user's, the largest file's
WAYS_OUT = {
    **dict.fromkeys(_NO_ROOM, "make room there, or give another path"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "let this user have access, or give another path"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit (ulimit -n)"),
    errno.EROFS: "give another path",
}
"""What to do about a file that cannot be read or written, by the number of the error."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give an empty file beside ``path``; it takes the place of ``path`` if the block ends well, and goes if not.

    It does so when all of it has reached the disk: after a power cut, too, there is the old file or the new one.
    Missing folders are made. Where ``path`` is a link, what it points to is replaced. A device or a pipe, ``/dev/null``
    for instance, is refused: a file would take its place. What a killed process has left goes when the same file is
    written a day or more later.

    Raises:
        InputError: it cannot be written. Other errors of the block are its own and stay as they are.
    """
    with told(path):
        path, aside = _begun(path)
        clear_left(path)
    try:
        with told(path):
            if path.exists():  # or that the one before has; but it must be possible to write it
                aside.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR)
        with told_if_full(path):
            yield aside
        with told(path):
            with aside.open("r+b") as whole:
                os.fsync(whole.fileno())
            aside.replace(path)
    finally:
        with suppress(OSError):  # the error before it says more
            aside.unlink(missing_ok=True)


def _begun(path: Path) -> tuple[Path, Path]:
    """Return what will be replaced, and an empty file beside it."""
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {path}: it is a folder, a device or a pipe; give the path of a file")
    path = path.resolve()
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.touch(exist_ok=False)  # unlike mkstemp's, with the access that any new file has
    return path, aside


def check_place(out: Path | None, *read: Path) -> None:
    """Refuse, before time is spent, a place where `written_aside` would fail, or what is read.

    Args:
        out: what will be written, missing folders are made; None: nothing.
        read: files that must not be lost.

    Raises:
        InputError: ``out`` cannot be written, or is one of these files, by whatever name.
    """
    if out is None:
        return
    with told(out):
        _begun(out)[1].unlink()
    if out.exists() and any(source.exists() and out.samefile(source) for source in read):
        raise InputError(f"{out} is what is read, and would be lost: give another path for what is written")


def clear_left(path: Path, age_s: float = 86_400.0) -> None:
    """Remove what killed processes, of this machine or another one, have left of a file.

    Args:
        path: the file.
        age_s: for how long nobody has written to what they left.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.partial"):
        with suppress(OSError):  # another one's, or somebody else was quicker
            if time.time() - left.lstat().st_mtime >= age_s:
                left.unlink()


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as ``.npy``. To a file numpy writes past Python, and of a small array does not notice a full disk.

    Raises:
        InputError: it cannot be written.
    """
    whole = io.BytesIO()
    np.save(whole, array)
    with written_aside(path) as aside:
        aside.write_bytes(whole.getbuffer())


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays as ``.npz``. NumPy's own leaves its archive open when the disk is full, which is told a second time.

    Raises:
        InputError: it cannot be written.
    """
    with written_aside(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)  # type: ignore[no-untyped-call]


def write_text(path: Path, text: str) -> None:
    r"""Write a small text file in one go; missing folders are made.

    What UTF-8 cannot hold, as in the name of a file that is in another encoding, is written as JSON does: ``\udce9``.

    Raises:
        InputError: it cannot be written.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Say of an `OSError` which file could not be written.

    Raises:
        InputError: in its place.
    """
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def told_if_full(path: Path) -> Iterator[None]:
    """Say where there was no room, of an `OSError` that says so; others stay as they are, but for those of copying.

    Raises:
        InputError: in its place.
    """
    try:
        yield
    except shutil.Error as error:  # copytree's, which lists what became of each file: (from, to, why)
        why = error.args[0][0][-1]
        number = re.match(r"\[Errno (\d+)\]", why)
        raise _unwritable(path, OSError(int(number[1]) if number else 0, why)) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    way_out = WAYS_OUT.get(error.errno or 0, "give another path")
    return InputError(f"cannot write {path} ({error.strerror or error}): {way_out}")
