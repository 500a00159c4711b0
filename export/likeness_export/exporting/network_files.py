"""A network as files: one, or two where its weights are more than a file of ONNX takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx

LARGEST_BYTES = 2_100_000_000  # protobuf's 2 GiB, less what is not weights


def save_network(model: onnx.ModelProto, path: Path) -> None:
    """Write a network in place of an earlier one, its weights into a second file where they have to be.

    Args:
        model: what is in the second file it has no more.
        path: where to; the file names the second one, so that neither can be renamed.
    """
    weights, beside = _weights_beside(path), weight_bytes(model) > LARGEST_BYTES
    weights.unlink(missing_ok=True)  # onnx would write behind what is there
    if beside:
        weights.touch()  # with the access that any new file has: onnx would give it to its owner alone
    onnx.save(model, path, save_as_external_data=beside, location=weights.name)


def move_network(source: Path, target: Path) -> None:
    """Put a network in the place of an earlier one, whose file has the same name."""
    _weights_beside(target).unlink(missing_ok=True)
    for file in _files(source):
        shutil.move(file, target.with_name(file.name))


def megabytes(path: Path) -> float:
    """Return the size of a network's files."""
    return sum(file.stat().st_size for file in _files(path)) / 1e6


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the size of a network's weights, wherever they are."""
    return sum(_bytes(tensor) for tensor in model.graph.initializer)


def _files(path: Path) -> list[Path]:
    return [file for file in (path, _weights_beside(path)) if file.exists()]


def _weights_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
