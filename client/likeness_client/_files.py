"""Embeddings on disk: ``.npz`` with NumPy alone, ``.parquet`` with pyarrow."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from likeness_client.contract import MODALITIES
from likeness_client.errors import InputError, LikenessError, MissingExtraError, ProductError

FORMAT = "likeness-embeddings-1"
SUFFIXES = (".npz", ".parquet")


class Stored(Protocol):
    """What a file holds: the fields of `Embeddings`, which knows this module and not the other way round."""

    @property
    def vectors(self) -> NDArray[np.float32]: ...
    @property
    def modality_weights(self) -> tuple[Mapping[str, float], ...]: ...
    @property
    def signatures(self) -> tuple[str, ...]: ...
    @property
    def product_ids(self) -> tuple[str, ...]: ...
    @property
    def space(self) -> str: ...
    @property
    def errors(self) -> Mapping[int, ProductError]: ...


def check_path(path: Path) -> None:
    """Refuse early what `save` would refuse after the work is done.

    Raises:
        InputError: not one of `SUFFIXES`, or its folder does not exist.
        LikenessError: parquet, but pyarrow does not load; `MissingExtraError` when it is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: embeddings are kept as {' or '.join(SUFFIXES)}, by suffix")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: its folder does not exist")
    if path.suffix == ".parquet":
        _pyarrow()


def save(embeddings: Stored, path: Path) -> None:
    """Write embeddings; see `Embeddings.save`."""
    check_path(path)
    write = _save_npz if path.suffix == ".npz" else _save_parquet
    try:
        with _replacing(path) as aside:
            write(embeddings, aside)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def load(path: Path) -> dict[str, Any]:
    """Read the fields of embeddings; see `Embeddings.load`."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: embeddings are kept as {' or '.join(SUFFIXES)}, by suffix")
    try:
        return _load_npz(path) if path.suffix == ".npz" else _load_parquet(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} does not hold embeddings: {error}") from error


def _save_npz(embeddings: Stored, path: Path) -> None:
    # Strings travel as JSON: NumPy's own string arrays lose trailing NULs and are as wide as the longest string.
    meta = {
        "format": FORMAT,
        "space": embeddings.space,
        "product_ids": embeddings.product_ids,
        "signatures": embeddings.signatures,
        "modality_weights": [dict(weights) for weights in embeddings.modality_weights],
        "errors": {index: [error.reason, error.modality] for index, error in embeddings.errors.items()},
    }
    encoded = np.frombuffer(json.dumps(meta).encode("ascii"), dtype=np.uint8)
    with path.open("wb") as file:
        np.savez(file, vectors=embeddings.vectors, meta=encoded)


def _load_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        vectors, meta = arrays["vectors"], json.loads(arrays["meta"].tobytes())
    if meta["format"] != FORMAT:
        raise ValueError(f"format '{meta['format']}', expected '{FORMAT}'")
    return _build(
        vectors=vectors,
        weights=meta["modality_weights"],
        signatures=meta["signatures"],
        product_ids=meta["product_ids"],
        space=meta["space"],
        reasons={int(index): tuple(error) for index, error in meta["errors"].items()},
    )


def _save_parquet(embeddings: Stored, path: Path) -> None:
    pa, parquet = _pyarrow()
    count, dimension = embeddings.vectors.shape
    errors = [embeddings.errors.get(index) for index in range(count)]
    flat = pa.array(embeddings.vectors.reshape(-1), type=pa.float32())
    columns: dict[str, Any] = {
        "product_id": pa.array([_valid(name) for name in embeddings.product_ids], type=pa.string()),
        "signature": pa.array(embeddings.signatures, type=pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, dimension),
        **{
            f"weight_{name}": pa.array([weights.get(name) for weights in embeddings.modality_weights], pa.float32())
            for name in MODALITIES
        },
        "error": pa.array([error and _valid(error.reason) for error in errors], type=pa.string()),
        "error_modality": pa.array([error and error.modality for error in errors], type=pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({"format": FORMAT, "space": embeddings.space})
    parquet.write_table(table, path)


def _load_parquet(path: Path) -> dict[str, Any]:
    _, parquet = _pyarrow()
    table = parquet.ParquetFile(path).read()
    metadata = table.schema.metadata or {}
    if metadata.get(b"format") != FORMAT.encode():
        raise ValueError(f"its metadata does not say '{FORMAT}'")
    vectors = table["vector"].combine_chunks()
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


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write to; put it in its place only if that went well."""
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        # mkstemp makes files private; the result gets the access that any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        aside.chmod(0o666 & ~mask)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


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
