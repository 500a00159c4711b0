from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from likeness_client import _files
from likeness_client.errors import InputError, MissingExtraError, ProductError, SpaceMismatchError
from likeness_client.results import Embeddings


def embeddings(space: str = "space-1") -> Embeddings:
    return Embeddings(
        vectors=np.array([[0.6, 0.8], [np.nan, np.nan], [1, 0]], dtype=np.float32),
        modality_weights=({"text": 0.25, "image": 0.75}, {}, {"text": 1.0}),
        signatures=("text_image", "", "text"),
        product_ids=("a", "b\0", ""),
        space=space,
        errors={1: ProductError("is empty", "b\0", "image", 1)},
    )


def assert_equal(one: Embeddings, other: Embeddings) -> None:
    np.testing.assert_array_equal(one.vectors, other.vectors)
    assert one.vectors.dtype == other.vectors.dtype
    names = ("modality_weights", "signatures", "product_ids", "space")
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]
    assert {i: e.args for i, e in one.errors.items()} == {i: e.args for i, e in other.errors.items()}


def test_embeddings_show_themselves_without_their_numbers() -> None:
    assert repr(embeddings()) == "Embeddings(vectors of shape [3, 2], space 'space-1', 1 failed)"


def test_vectors_of_a_database_are_embeddings_again() -> None:
    kept = Embeddings.from_vectors(np.array([[0.6, 0.8], [np.nan, np.nan]]), "space-1")
    assert (kept.vectors.dtype.name, len(kept), kept.space) == ("float32", 2, "space-1")
    assert (kept.signatures, kept.product_ids, kept.modality_weights, kept.errors) == (("", ""), ("", ""), ({}, {}), {})
    assert len(Embeddings.concatenate([kept, embeddings()])) == 5
    listed = Embeddings.from_vectors([[0.6, 0.8], [float("nan")] * 2], "space-1")  # as databases answer
    np.testing.assert_array_equal(listed.vectors, kept.vectors)
    with pytest.raises(InputError, match=r"\[n, d\], found \[2\]"):
        Embeddings.from_vectors(np.array([0.6, 0.8]), "space-1")
    for wrong in ([[0.6, 0.8], [0.6]], [None, [0.6, 0.8]], [["a", "b"]]):
        with pytest.raises(InputError, match=r"numbers of the shape \[n, d\]"):
            Embeddings.from_vectors(wrong, "space-1")  # type: ignore[arg-type]


def test_files_hold_everything(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    path.write_text("old")
    embeddings().save(path)
    assert_equal(Embeddings.load(path), embeddings())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    (other := tmp_path / "other").touch()
    assert path.stat().st_mode == other.stat().st_mode  # not private, as temporary files are


def test_empty_embeddings_keep_their_dimension(tmp_path: Path, suffix: str) -> None:
    empty = Embeddings(
        vectors=np.empty((0, 5), np.float32), modality_weights=(), signatures=(), product_ids=(), space="s"
    )
    empty.save(tmp_path / f"empty{suffix}")
    assert Embeddings.load(tmp_path / f"empty{suffix}").vectors.shape == (0, 5)


@pytest.mark.usefixtures("with_pyarrow")
def test_parts_are_written_one_after_the_other(tmp_path: Path, suffix: str) -> None:
    path, parts = tmp_path / f"vectors{suffix}", [embeddings(), embeddings(), embeddings()]
    with _files.writing(path) as writer:
        for number, part in enumerate(parts):
            assert writer.rows == number * len(part)
            writer.add(part)
    assert_equal(Embeddings.load(path), Embeddings.concatenate(parts))


def test_saving_leaves_the_umask_of_the_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(mask: int) -> int:
        raise AssertionError(f"other threads would make files with {mask:o}")

    monkeypatch.setattr(os, "umask", changed)
    embeddings().save(tmp_path / "vectors.npz")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vectors.npz"
    embeddings().save(path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files, "_member", full_disk)
    with pytest.raises(InputError, match=r"cannot write .*No space left"):
        embeddings("space-2").save(path)
    assert Embeddings.load(path).space == "space-1"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"other{suffix}"
    with pytest.raises(InputError, match="does not hold embeddings"):
        Embeddings.load(path)
    for content in (b"", b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="does not hold embeddings"):
            Embeddings.load(path)


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"damaged{suffix}"
    embeddings().save(path)
    whole = path.read_bytes()
    # Of Parquet the values: nothing guards the names of the columns, which stand behind them.
    behind = int.from_bytes(whole[-8:-4], "little") + 8 if suffix == ".parquet" else 0
    for place in range(len(whole) - behind):
        path.write_bytes(bytes([*whole[:place], whole[place] ^ 1, *whole[place + 1 :]]))
        with suppress(InputError):
            assert_equal(Embeddings.load(path), embeddings())  # nothing that counts was damaged


def test_a_file_of_another_format_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "FORMAT", "likeness-embeddings-1")
        embeddings().save(tmp_path / f"old{suffix}")
    with pytest.raises(InputError, match="likeness-embeddings-2"):
        Embeddings.load(tmp_path / f"old{suffix}")


@pytest.mark.usefixtures("with_pyarrow")
def test_foreign_files_of_the_same_kind_are_refused(tmp_path: Path) -> None:
    pa, pq = _files._pyarrow()
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    embeddings().save(tmp_path / "ours.parquet")
    table = pq.read_table(tmp_path / "ours.parquet")
    lists = table.set_column(2, "vector", table["vector"].cast(pa.list_(pa.float32())))
    pq.write_table(lists, tmp_path / "lists.parquet")
    for name in ("other.npz", "other.parquet", "lists.parquet"):
        with pytest.raises(InputError, match="does not hold embeddings"):
            Embeddings.load(tmp_path / name)


def test_paths_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"\.npz or \.parquet"):
        embeddings().save(tmp_path / "a.csv")
    embeddings().save(tmp_path / "new" / "a.npz")
    with pytest.raises(InputError, match="cannot write"):
        embeddings().save(tmp_path / "new" / "a.npz" / "b.npz")
    with pytest.raises(InputError, match=r"\.npz or \.parquet"):
        Embeddings.load(tmp_path / "a.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"likeness\[parquet\]"):
        embeddings().save(tmp_path / "a.parquet")


def test_concatenation_counts_positions_on() -> None:
    joined = Embeddings.concatenate([embeddings(), embeddings()])
    assert len(joined) == 6
    assert {index: error.index for index, error in joined.errors.items()} == {1: 1, 4: 4}
    with pytest.raises(SpaceMismatchError):
        Embeddings.concatenate([embeddings(), embeddings("space-2")])
    with pytest.raises(InputError, match="nothing"):
        Embeddings.concatenate([])


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot write .*\.npz \(File name too long\)"):
        _files.check_path(tmp_path / f"{'x' * 300}.npz")
