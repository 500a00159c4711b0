"""Embeddings on disk: ``.npz`` with NumPy alone, ``.parquet`` with pyarrow."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from likeness_client.contract import MODALITIES
from likeness_client.errors import InputError, LikenessError, MissingExtraError, ProductError
from likeness_client.writing import check_place, told, written_aside

FORMAT = "likeness-embeddings-2"
SUFFIXES = (".npz", ".parquet")


class Part(Protocol):
    """What a file holds of products, one after the other; `Embeddings` are such."""

    @property
    def vectors(self) -> NDArray[np.float32]: ...
    @property
    def product_ids(self) -> tuple[str, ...]: ...
    @property
    def signatures(self) -> tuple[str, ...]: ...
    @property
    def modality_weights(self) -> tuple[Mapping[str, float], ...]: ...
    @property
    def errors(self) -> Mapping[int, ProductError]: ...
    @property
    def space(self) -> str: ...


def check_path(path: Path) -> None:
    """Refuse early what `writing` would refuse after the work is done.

    Raises:
        InputError: not one of `SUFFIXES`, or it cannot be written.
        LikenessError: parquet, but pyarrow does not load; `MissingExtraError` when it is not installed.
    """
    _check_suffix(path)
    check_place(path)
    if path.suffix == ".parquet":
        _pyarrow()


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: embeddings are kept as {' or '.join(SUFFIXES)}, by suffix")


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Write embeddings part by part; what was added lies on disk, so that memory does not grow with the catalogue.

    The file is put in its place when the block ends; when it fails, an earlier one is left as it was.

    Raises:
        InputError: another suffix, or the file cannot be written.
        MissingExtraError: parquet without pyarrow.
    """
    check_path(path)
    with ExitStack() as stack:
        with told(path):  # what else fails while the file is open is not its fault
            aside = stack.enter_context(written_aside(path))
            writer = stack.enter_context((_npz if path.suffix == ".npz" else _parquet)(aside))
        yield _ToldWriter(writer, path)
        with told(path):
            stack.close()


class Writer(Protocol):
    """Takes embeddings of one space in parts, at least one."""

    @property
    def rows(self) -> int:
        """How many were added."""

    def add(self, part: Part) -> None:
        """Append a part; the positions of its errors count on."""


@dataclass(frozen=True)
class _ToldWriter:
    writer: Writer
    path: Path

    @property
    def rows(self) -> int:
        return self.writer.rows

    def add(self, part: Part) -> None:
        with told(self.path):
            self.writer.add(part)


def load(path: Path) -> dict[str, Any]:
    """Read the fields of embeddings; see `Embeddings.load`."""
    _check_suffix(path)
    try:
        return _load_npz(path) if path.suffix == ".npz" else _load_parquet(path)
    except (OSError, TypeError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} does not hold embeddings: {error}") from error


@contextmanager
def _npz(path: Path) -> Iterator[Writer]:
    """Two members: ``vectors``, and ``products``, the bytes of JSON lines: format and space, then one per product."""
    # A member of a zip file begins with its length: both are gathered beside it first.
    with tempfile.TemporaryFile(dir=path.parent) as vectors, tempfile.TemporaryFile(dir=path.parent) as lines:
        writer = _NpzWriter(vectors, lines)
        yield writer
        with zipfile.ZipFile(path, "w") as archive:
            _member(archive, "vectors", vectors, (writer.rows, writer.dimension), "<f4")
            _member(archive, "products", lines, (lines.tell(),), "|u1")


@dataclass
class _NpzWriter:
    vectors: IO[bytes]
    lines: IO[bytes]
    rows: int = 0
    dimension: int = 0

    def add(self, part: Part) -> None:
        if not self.dimension:
            self._line({"format": FORMAT, "space": part.space})
            self.dimension = part.vectors.shape[1]
        self.vectors.write(part.vectors.astype("<f4").tobytes())
        rows = zip(part.product_ids, part.signatures, part.modality_weights, strict=True)
        for index, (name, signature, weights) in enumerate(rows):
            error = part.errors.get(index)
            self._line([name, signature, dict(weights), error and [error.reason, error.modality]])
        self.rows += len(part.vectors)

    def _line(self, content: Any) -> None:
        # Strings travel as JSON: NumPy's own string arrays lose trailing NULs and are as wide as the longest string.
        self.lines.write(json.dumps(content).encode("ascii") + b"\n")


def _member(archive: zipfile.ZipFile, name: str, content: IO[bytes], shape: tuple[int, ...], dtype: str) -> None:
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    content.seek(0)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)  # type: ignore[no-untyped-call]  # NumPy's own gap
        shutil.copyfileobj(content, member)


def _load_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        vectors, (head, *lines) = arrays["vectors"], map(json.loads, arrays["products"].tobytes().splitlines())
    if head["format"] != FORMAT:
        raise ValueError(f"format '{head['format']}', expected '{FORMAT}'")
    return _build(
        vectors=vectors,
        weights=[weights for _, _, weights, _ in lines],
        signatures=[signature for _, signature, _, _ in lines],
        product_ids=[name for name, _, _, _ in lines],
        space=head["space"],
        reasons={index: tuple(error) for index, (_, _, _, error) in enumerate(lines) if error},
    )


@contextmanager
def _parquet(path: Path) -> Iterator[Writer]:
    """A row group per part."""
    writer = _ParquetWriter(path)
    try:
        yield writer
    finally:
        if writer.file is not None:
            writer.file.close()


@dataclass
class _ParquetWriter:
    path: Path
    rows: int = 0
    file: Any = None

    def add(self, part: Part) -> None:
        table = _table(part)
        if self.file is None:
            _, parquet = _pyarrow()
            self.file = parquet.ParquetWriter(self.path, table.schema, write_page_checksum=True)
        self.file.write_table(table)
        self.rows += len(part.vectors)


def _table(part: Part) -> Any:
    pa, _ = _pyarrow()
    count, dimension = part.vectors.shape
    errors = [part.errors.get(index) for index in range(count)]
    flat = pa.array(part.vectors.reshape(-1), type=pa.float32())
    columns: dict[str, Any] = {
        "product_id": pa.array([_valid(name) for name in part.product_ids], type=pa.string()),
        "signature": pa.array(part.signatures, type=pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, dimension),
        **{
            f"weight_{name}": pa.array([weights.get(name) for weights in part.modality_weights], pa.float32())
            for name in MODALITIES
        },
        "error": pa.array([error and _valid(error.reason) for error in errors], type=pa.string()),
        "error_modality": pa.array([error and error.modality for error in errors], type=pa.string()),
    }
    return pa.table(columns).replace_schema_metadata({"format": FORMAT, "space": part.space})


def _load_parquet(path: Path) -> dict[str, Any]:
    pa, parquet = _pyarrow()
    table = parquet.ParquetFile(path, page_checksum_verification=True).read()
    metadata = table.schema.metadata or {}
    if metadata.get(b"format") != FORMAT.encode():
        raise ValueError(f"its metadata does not say '{FORMAT}'")
    vectors = table["vector"].combine_chunks()
    if not pa.types.is_fixed_size_list(vectors.type):  # some tools write lists of any length anew
        raise ValueError(f"its vectors are of the type {vectors.type}")
    named = {name: table[f"weight_{name}"].to_pylist() for name in MODALITIES if f"weight_{name}" in table.column_names}
    errors = zip(table["error"].to_pylist(), table["error_modality"].to_pylist(), strict=True)
    return _build(
        vectors=vectors.flatten().to_numpy().reshape(len(vectors), vectors.type.list_size),
        weights=[
            {name: values[row] for name, values in named.items() if values[row] is not None}
            for row in range(len(vectors))
        ],
        signatures=table["signature"].to_pylist(),
        product_ids=table["product_id"].to_pylist(),
        space=metadata[b"space"].decode(),
        reasons={index: error for index, error in enumerate(errors) if error[0] is not None},
    )


def _build(
    *,
    vectors: NDArray[np.float32],
    weights: list[dict[str, float]],
    signatures: list[str],
    product_ids: list[str],
    space: str,
    reasons: Mapping[int, tuple[str, str | None]],
) -> dict[str, Any]:
    if vectors.ndim != 2 or not len(vectors) == len(weights) == len(signatures) == len(product_ids):
        raise ValueError("its parts differ in length")
    return {
        "vectors": vectors.astype(np.float32, copy=False),
        "modality_weights": tuple(weights),
        "signatures": tuple(signatures),
        "product_ids": tuple(product_ids),
        "space": space,
        "errors": {
            index: ProductError(reason, product_ids[index], modality, index)
            for index, (reason, modality) in reasons.items()
        },
    }


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("parquet", "`pyarrow`") from error
    except ImportError as error:  # installed, but at odds with another package, such as an older NumPy
        raise LikenessError(f"`pyarrow` does not load: {error}") from error
    return pyarrow, pyarrow.parquet


def _valid(text: str) -> str:
    """Return text that UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
