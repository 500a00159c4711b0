"""What every encoder provides: a configuration that can prepare, describe and build it, and a network."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar, TypeAlias

import torch
from likeness_client.errors import InputError
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from likeness_export.tensors import TensorSpec

ASSETS = "assets"
"""Folder inside a tower's folder: the files that its preprocessing reads, and that the server gets a copy of."""
BACKBONE = "backbone"
"""Folder inside a tower's folder: the architecture of a pretrained network, without its weights."""
LearningRate: TypeAlias = Annotated[float, Field(gt=0, le=10)]
"""AdamW's; beyond the bound a step is no number."""


def write_asset(tower: Path, name: str, value: object) -> None:
    """Write what a preprocessing reads, as JSON, into a tower's assets."""
    assets = tower / ASSETS
    assets.mkdir(parents=True, exist_ok=True)
    (assets / name).write_text(json.dumps(value, indent=1), encoding="utf-8")


class Encoder(nn.Module, ABC):
    """A network from the tensors of one modality to a feature vector.

    Attributes:
        feature_dim: the length of that vector.
    """

    feature_dim: int

    @property
    def device(self) -> torch.device:
        """Where its weights are; an encoder without any is on the CPU."""
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @abstractmethod
    def forward(self, *tensors: Tensor) -> Tensor:
        """Return features FP32 [n, feature_dim] of the tensors that the configuration declares, in that order."""

    def augment(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return a random variation of the tensors, for training; by default none."""
        return tensors

    def sample(self, specs: Sequence[TensorSpec], batch: int, length: int) -> tuple[Tensor, ...]:
        """Draw valid random inputs, for tracing and verification; by default any numbers, whole ones from 0 to 255.

        Args:
            specs: the tensors that the configuration declares.
            batch: how many products.
            length: the size of dimensions that vary.
        """
        shapes = [spec.shape(batch, length) for spec in specs]
        return tuple(
            torch.randn(shape) if spec.datatype == "FP32" else torch.randint(0, 256, shape, dtype=spec.torch_dtype)
            for spec, shape in zip(specs, shapes, strict=True)
        )


class EncoderConfig(BaseModel, ABC):
    """The part of a recipe that belongs to one tower. A subclass adds its own keys and a literal ``encoder``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    modality: ClassVar[str]
    preprocessing: ClassVar[ModuleType]
    run_tokens: ClassVar[int | None] = None
    """What one more run costs on a CPU, in tokens of padding, where lengths vary; None: the whole batch is one run."""
    run_rows: ClassVar[int | None] = None
    """How many products of length 1 a thread of a CPU computes at a time; None: the whole batch, or run."""

    never_frozen: ClassVar[str] = ""
    """Why the encoder cannot be kept as it is; empty: it can."""

    freeze: bool = Field(
        default=True,
        validate_default=True,  # `never_frozen` alone would leave a network at random
        description="keep the encoder as it is and cache its features; only its projection learns",
    )
    learning_rate: LearningRate = Field(
        default=1e-4, description="of the encoder's own parameters, when it is not frozen"
    )

    @field_validator("freeze")
    @classmethod
    def _nothing_random_is_frozen(cls, value: bool) -> bool:
        if value and cls.never_frozen:
            raise ValueError(f"must be false, {cls.never_frozen}")
        return value

    @abstractmethod
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Describe the tensors that the preprocessing puts out and the network takes, in order."""

    def padded_lengths(self, tower: Path) -> list[int]:
        """Return the lengths that the preprocessing pads to, ascending; none where no size varies.

        Raises:
            InputError: lengths vary, and the preprocessing has no `buckets`, or there are other sizes beside them.
        """
        if not any(tensor.varies for tensor in self.tensors()):
            return []
        tensors = self.tensors()
        if others := [tensor.name for tensor in tensors if tensor.dims[0] != -1 or -1 in tensor.dims[1:]]:
            raise InputError(
                f"towers.{tower.name}: where a length varies, it is the first size of every tensor, and the only one "
                f"that does, which it is not of {', '.join(others)}: give them one fixed size, cut or padded"
            )
        if all(len(tensor.dims) > 1 for tensor in tensors):  # the server cuts behind the last number that is not zero
            raise InputError(
                f"towers.{tower.name}: where a length varies, a tensor of that size alone says how long each row is, "
                f"and {', '.join(tensor.name for tensor in tensors)} have others: add one, say of 1 and 0"
            )
        buckets: list[int] = getattr(self.preprocessing.Preprocessor(tower / ASSETS), "buckets", [])
        if not buckets:
            raise InputError(f"towers.{tower.name}: the preprocessing of varying lengths needs `buckets`, to pad to")
        return buckets

    def attribute_keys(self) -> tuple[str, ...]:
        """Return the attributes that the preprocessing reads; callers send no others."""
        return ()

    def shared_space(self, tower: Path) -> str:  # noqa: ARG002 (few encoders share one)
        """Name the space of the features; those of towers that give it one name are comparable. Empty: their own.

        Args:
            tower: the folder that `prepare` wrote.
        """
        return ""

    @abstractmethod
    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:
        """Write what preprocessing and `build` need into the tower's folder; fitted on the training items only.

        Args:
            items: the training products' bytes of the modality, read again each time they are asked for.
            tower: the folder.
            data_root: where to look for pretrained weights.

        Raises:
            InputError: there is nothing to fit to, or no such network.
        """

    @abstractmethod
    def build(self, tower: Path, source_root: Path | None) -> Encoder:
        """Build the network.

        Args:
            tower: the folder that `prepare` wrote.
            source_root: where to look for pretrained weights; None for a network whose trained weights follow.

        Raises:
            InputError: the weights are not there, or do not fit.
            MissingExtraError: a package is not installed.
        """
