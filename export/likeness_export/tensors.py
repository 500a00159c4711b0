"""What the networks exchange: tensor specifications, as declared to Triton and checked after export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

DataType = Literal["FP32", "INT64", "UINT8", "BYTES"]

_TORCH = {"FP32": torch.float32, "INT64": torch.int64, "UINT8": torch.uint8}
_NUMPY: dict[str, type[np.generic]] = {"FP32": np.float32, "INT64": np.int64, "UINT8": np.uint8, "BYTES": np.object_}


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor without its batch dimension.

    Attributes:
        name: a noun of the domain, e.g. ``pixels``.
        datatype: Triton's name of the type.
        dims: sizes; -1 where the size varies.
    """

    name: str
    datatype: DataType
    dims: tuple[int, ...]

    @property
    def varies(self) -> bool:
        """Whether a size varies."""
        return -1 in self.dims

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """Return its shape in a batch of ``batch`` rows, where sizes that vary are ``length``."""
        return (batch, *(length if size == -1 else size for size in self.dims))

    def fits(self, batch: NDArray[np.generic], rows: int) -> bool:
        """Say whether a batch has so many rows of the declared type and sizes."""
        declared = (rows, *self.dims)
        same = batch.ndim == len(declared) and all(
            size in (-1, has) for size, has in zip(declared, batch.shape, strict=True)
        )
        return same and batch.dtype == self.numpy_dtype

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type in torch."""
        return _TORCH[self.datatype]

    @property
    def numpy_dtype(self) -> type[np.generic]:
        """The type in numpy."""
        return _NUMPY[self.datatype]
