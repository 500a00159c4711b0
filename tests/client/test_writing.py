"""Files are whole or absent, and what stands in the way is named."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from likeness_client import InputError
from likeness_client.writing import check_place, told, told_if_full, write_text, written_aside


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with written_aside(path) as aside:
        aside.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_what_utf_8_cannot_hold_costs_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "é of \udce9.jsonl")  # as Python has the name of a file in Latin-1
    assert path.read_text(encoding="utf-8") == r"é of \udce9.jsonl"


def test_a_new_file_is_open_to_those_to_whom_the_old_one_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "mine")
    for access in (0o600, 0o400):
        path.chmod(access)
        write_text(path, "still mine")
        assert path.stat().st_mode & 0o777 == 0o600


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(TypeError), written_aside(path) as aside:
        aside.write_text(b"half")  # type: ignore[arg-type]  # fails on purpose
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_has_left_goes_after_a_day_and_what_is_being_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "a[1].txt"
    names = (".a[1].txt.0123abcd.partial", ".a[1].txt.4567cdef.partial", ".a[1].txt.gz.0123abcd.partial")
    left, written, of_another = (tmp_path / name for name in names)
    for place, age_h in ((left, 25), (written, 23), (of_another, 25)):
        place.write_text("half of it")
        os.utime(place, 2 * (time.time() - 3600 * age_h,))
    write_text(path, "all")
    assert sorted(tmp_path.iterdir()) == sorted([path, written, of_another])


def test_who_writes_the_same_file_at_the_same_time_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with written_aside(path) as first:
        first.write_text("first")
        with written_aside(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        with pytest.raises(KeyboardInterrupt), written_aside(path):
            raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    flushed: list[tuple[Path, str]] = []

    def fsync(file: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{file}").readlink(), path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "new")
    ((flushed_file, there),) = flushed
    assert re.fullmatch(r"\.a\.txt\.\w+\.partial", flushed_file.name)
    assert there == "old"


def test_a_file_that_somebody_takes_away_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(InputError, match="No such file"), written_aside(path) as aside:
        aside.unlink()
    assert path.read_text() == "old"


def test_behind_a_link_lies_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "v1.txt").write_text("old")
    link = tmp_path / "current.txt"
    link.symlink_to("v1.txt")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "v1.txt").read_text() == "new"


@pytest.mark.parametrize("name", ["file/below.txt", "folder"])
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"cannot write .*{name}(: it is a folder| \(.+\): .*another path)"):
        write_text(tmp_path / name, "text")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"  # as /dev/null, which root would lose for the whole machine
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"pipe: it is a folder, a device or a pipe; give the path of a file"):
        write_text(pipe, "text")
    assert pipe.is_fifo()


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    read, link = tmp_path / "read.txt", tmp_path / "link.txt"
    check_place(read, read)  # it is not there
    read.touch()
    link.symlink_to(read)
    check_place(tmp_path / "other.txt", read)
    with pytest.raises(InputError, match=r"link.txt is what is read, and would be lost: give another path"):
        check_place(link, tmp_path / "none.txt", read)


def test_a_place_is_checked_before_there_is_something_to_write(tmp_path: Path) -> None:
    check_place(None)
    (tmp_path / "old").write_text("old")
    for name in ("old", "new", "deep/er/new"):
        check_place(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"
    for name in ("old/new", "deep"):
        with pytest.raises(InputError, match="cannot write"):
            check_place(tmp_path / name)


def test_a_full_disk_is_told_from_the_faults_of_others(tmp_path: Path) -> None:
    for full in (errno.ENOSPC, errno.EFBIG):  # EFBIG: of `ulimit -f`, and of file systems with small files only
        with pytest.raises(InputError, match=r"cannot write .*a\.txt"), written_aside(tmp_path / "a.txt"):
            raise OSError(full, os.strerror(full))
    with pytest.raises(ConnectionResetError), written_aside(tmp_path / "a.txt"):
        raise ConnectionResetError(errno.ECONNRESET, "another one's")


def test_of_arrays_that_find_no_room_only_that_is_said(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "from likeness_client import InputError; from likeness_client.writing import write_arrays\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_arrays(Path(sys.argv[1]), whole=np.zeros(3), too_long=np.zeros(1000))\n"
        "except InputError as error: print(error)"
    )
    path = tmp_path / "a.npz"
    said = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    assert said.stdout == f"cannot write {path} (File too large): make room there, or give another path\n"
    assert not said.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.EMFILE, "raise the limit (ulimit -n)"),
        (errno.EACCES, "let this user have access, or give another path"),
        (errno.EROFS, "give another path"),
        (errno.ENOTDIR, "give another path"),
    ],
)
def test_what_is_no_lack_of_room_has_another_way_out(tmp_path: Path, number: int, way_out: str) -> None:
    with pytest.raises(InputError) as caught, told(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"cannot write {tmp_path / 'a.txt'} ({os.strerror(number)}): {way_out}"


@pytest.mark.parametrize(
    ("why", "way_out"),
    [
        ("[Errno 28] No space left on device: 'to'", "make room there, or give another path"),
        ("[Errno 13] Permission denied: 'from'", "let this user have access, or give another path"),
        ("`from` is a named pipe", "give another path"),
    ],
)
def test_a_folder_that_cannot_be_copied_is_named(tmp_path: Path, why: str, way_out: str) -> None:
    with pytest.raises(InputError) as caught, told_if_full(tmp_path / "copy"):
        raise shutil.Error([("from", "to", why)])
    assert str(caught.value) == f"cannot write {tmp_path / 'copy'} ({why}): {way_out}"
