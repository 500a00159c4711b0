"""Attributes that name a product, by feature hashing: equal or not (article, 3.2.3, where one-hot has no end)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

from likeness_client.contract import MAX_BYTES
from pydantic import Field
from torch import Tensor

from likeness_export.encoders.base import Encoder, EncoderConfig, write_asset
from likeness_export.encoders.one_hot import require_keys
from likeness_export.preprocessing import hashing
from likeness_export.tensors import TensorSpec


class HashedConfig(EncoderConfig):
    """``encoder = "hashed"``.

    One-hot knows the values of the training and no others. A model number is seen once or twice, and says most where it
    is new: here it needs no vocabulary.
    """

    modality: ClassVar[str] = "attributes"
    preprocessing: ClassVar[ModuleType] = hashing

    encoder: Literal["hashed"]
    keys: tuple[str, ...] = Field(
        min_length=1, description="the attributes that are read: model number, GTIN; never one that is the label"
    )
    bits: int = Field(
        default=256,
        ge=64,
        le=4096,
        multiple_of=8,
        description="length of the hash: different values have cosine 0 up to about 1 / sqrt(bits)",
    )

    def tensors(self) -> tuple[TensorSpec, ...]:
        """The sum of the values' signs."""
        return (TensorSpec("signs", "FP32", (self.bits,)),)

    def attribute_keys(self) -> tuple[str, ...]:
        """Return the keys that are hashed."""
        return self.keys

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:  # noqa: ARG002 (no pretrained part)
        """Write the settings.

        Raises:
            InputError: no product has one of the keys.
        """
        require_keys(self.keys, [json.loads(item) for item in items], tower.name)
        settings = {"keys": self.keys, "bits": self.bits, "max_bytes": MAX_BYTES["attributes"]}
        write_asset(tower, hashing.SETTINGS_FILE, settings)

    def build(self, tower: Path, source_root: Path | None) -> Encoder:  # noqa: ARG002 (it has no parameters)
        """Build it."""
        return Hashed(self.bits)


class Hashed(Encoder):
    """The signs, scaled so that a product of one value has unit length."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.feature_dim = bits

    def forward(self, *tensors: Tensor) -> Tensor:
        """Scale ``signs``, FP32 [n, bits]."""
        return tensors[0].div(self.feature_dim**0.5)
