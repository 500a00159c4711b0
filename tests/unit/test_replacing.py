"""A model repository takes the place of an earlier one whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from likeness_client.errors import InputError
from likeness_export.repository.replacing import replaced_folder, replaced_repository

OURS = 'parameters {{ key: "space" value {{ string_value: "{}" }} }}'


def write_model(folder: Path, space: str) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.pbtxt").write_text(OURS.format(space), encoding="utf-8")


def spaces(folder: Path) -> dict[str, str]:
    """Return the space of every model below a folder."""
    found = folder.rglob("config.pbtxt")
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8").split('"')[3] for path in found}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "repository", "old")
    return tmp_path / "repository"


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", ["repository", "link"])
def test_the_new_one_takes_the_place_of_the_old_one(repository: Path, name: str) -> None:
    link = repository.with_name("link")
    link.symlink_to("repository")
    with replaced_repository(repository.with_name(name)) as aside:
        write_model(aside, "new")
        assert spaces(repository) == {"model/config.pbtxt": "old"}
    assert link.is_symlink()
    assert spaces(repository.parent) == {"repository/model/config.pbtxt": "new"}


def test_all_of_the_new_one_is_on_the_disk_before_it_takes_the_place(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def fsync(file: int) -> None:
        assert spaces(repository) == {"model/config.pbtxt": "old"}
        flushed.append(Path(f"/proc/self/fd/{file}").readlink().name)

    monkeypatch.setattr(os, "fsync", fsync)
    with replaced_repository(repository) as aside:
        write_model(aside, "new")
        (aside / "manifest.json").touch()
    assert sorted(flushed) == ["config.pbtxt", "manifest.json"]


@pytest.mark.parametrize(("number", "left"), [(errno.EIO, "old"), (errno.EINVAL, "new")])
def test_a_disk_that_fails_is_told_from_one_that_cannot_be_asked(
    repository: Path, monkeypatch: pytest.MonkeyPatch, number: int, left: str
) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    refused = pytest.raises(OSError, match="Input/output") if left == "old" else nullcontext()
    with refused, replaced_repository(repository) as aside:
        write_model(aside, "new")
    assert spaces(repository.parent) == {"repository/model/config.pbtxt": left}


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
@pytest.mark.parametrize("when", ["at first", "before", "between", "after", "and back again"])
def test_one_of_the_two_is_there_whatever_fails_while_they_are_renamed(
    repository: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, when: str
) -> None:
    rename = Path.rename
    before = {"at first": "", "before": ".partial", "and back again": ".old"}.get(when)
    after = {"between": ".old", "after": "", "and back again": ".old"}.get(when)

    def fails(self: Path, target: Path) -> Path:
        if self.suffix == before:
            raise failure
        moved = rename(self, target)
        if target.suffix == after:
            raise failure
        return moved

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(type(failure)), replaced_repository(repository) as aside:
        write_model(aside, "new")
    found = spaces(repository.parent)
    if when == "and back again":
        assert list(found.values()) == ["old"]  # the next export puts it back
    else:
        assert found == {"repository/model/config.pbtxt": "new" if when == "after" else "old"}


def test_a_first_one_that_cannot_take_its_place_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replaced_repository(tmp_path / "of" / "a shop" / "repository") as aside:
        write_model(aside, "new")
    assert spaces(tmp_path) == {}


def test_a_full_disk_is_named(repository: Path) -> None:
    with pytest.raises(InputError, match=rf"^cannot write {repository} \(No space"), replaced_repository(repository):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert spaces(repository.parent) == {"repository/model/config.pbtxt": "old"}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("same_number", [False, True])
def test_the_last_repository_outlives_an_export_that_was_killed_in_its_last_moment(
    tmp_path: Path, swapped: bool, same_number: bool
) -> None:
    folder, number = tmp_path / "repository", os.getpid() if same_number else ended_process()
    for name, process, made_s in (("last", number, 9), ("older", ended_process(), 5)):
        write_model(tmp_path / f".repository.{process}.old", name)
        os.utime(tmp_path / f".repository.{process}.old", (made_s, made_s))
    write_model(tmp_path / f".repository.{number}.partial", "half")
    write_model(tmp_path / f".repository.{number}.tune-1", "of a tuning that was killed")
    if swapped:
        write_model(folder, "newer")
    with pytest.raises(ZeroDivisionError), replaced_repository(folder):
        raise ZeroDivisionError
    assert spaces(tmp_path) == {"repository/model/config.pbtxt": "newer" if swapped else "last"}


def test_what_another_export_is_writing_is_left_alone(repository: Path) -> None:
    aside = repository.with_name(f".repository.{os.getppid()}.partial")
    write_model(aside, "another")
    with replaced_repository(repository) as new:
        write_model(new, "new")
    assert set(spaces(repository.parent).values()) == {"new", "another"}


def test_what_another_user_s_process_is_at_is_left_alone(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_yours(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.kill", not_yours)
    write_model(repository.with_name(f".repository.{ended_process()}.partial"), "another's")
    with replaced_repository(repository) as new:
        write_model(new, "new")
    assert set(spaces(repository.parent).values()) == {"new", "another's"}


@pytest.mark.parametrize("name", ["repository", "repo[1]"])
def test_only_leftovers_of_the_same_name_are_cleared(tmp_path: Path, name: str) -> None:
    number = ended_process()
    others = (f".{name}.v2.{number}.old", f".{name}.backup.old", f".{name}.{number}.old.mine", f".{name}.{10**30}.old")
    for other in others:
        write_model(tmp_path / other, "not ours to clear")
    write_model(tmp_path / f".{name}.{number}.old", "last")
    with pytest.raises(ZeroDivisionError), replaced_repository(tmp_path / name):
        raise ZeroDivisionError
    assert spaces(tmp_path) == {
        **{f"{other}/model/config.pbtxt": "not ours to clear" for other in others},
        f"{name}/model/config.pbtxt": "last",
    }


def test_what_no_export_has_written_is_not_replaced(repository: Path) -> None:
    write_model(repository.parent / "mine", "mine")
    foreign = repository / "reranker"
    foreign.mkdir()
    (foreign / "config.pbtxt").write_text('name: "workspace"', encoding="utf-8")
    with (
        pytest.raises(InputError, match="holds reranker, which no export has written"),
        replaced_repository(repository),
    ):
        pytest.fail("it was replaced")
    assert (foreign / "config.pbtxt").is_file()


def test_a_mount_point_and_an_unwritable_place_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot write .*a \(File exists\)"),
        replaced_repository(tmp_path / "file" / "a"),
    ):
        pytest.fail("it was begun")
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(InputError, match=r"or the folder you are in, which cannot"),
        replaced_folder(Path("../" + tmp_path.name)),
    ):
        pytest.fail("it was begun")
    monkeypatch.chdir("/")
    monkeypatch.setattr(Path, "is_mount", lambda _: True)
    with pytest.raises(InputError, match=r"is a mount point.*name one inside of it"), replaced_folder(tmp_path):
        pytest.fail("it was begun")
