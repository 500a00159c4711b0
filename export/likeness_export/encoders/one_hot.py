"""Attributes as one-hot vectors, one block per key (article, 3.2.3)."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from likeness_client.contract import MAX_BYTES
from likeness_client.errors import InputError
from pydantic import Field
from torch import Tensor

from likeness_export.encoders.base import ASSETS, Encoder, EncoderConfig, write_asset
from likeness_export.preprocessing import attributes
from likeness_export.tensors import TensorSpec

log = logging.getLogger(__name__)
_NUMBER_BINS = 8
_MOSTLY = 0.9  # of the values are numbers: the attribute is one


def require_keys(keys: Sequence[str], records: Sequence[Mapping[str, object]], tower: str) -> None:
    """See that some training product has each of the keys of a tower.

    Raises:
        InputError: none has one of them; names those that there are.
    """
    if missing := [name for name in keys if not any(name in record for record in records)]:
        known = ", ".join(sorted({name for record in records for name in record}))
        raise InputError(
            f"towers.{tower}.keys: no training product has {', '.join(missing)}; of the keys it reads there are: "
            f"{known}"
        )


class OneHotConfig(EncoderConfig):
    """``encoder = "one_hot"``."""

    modality: ClassVar[str] = "attributes"
    preprocessing: ClassVar[ModuleType] = attributes

    encoder: Literal["one_hot"]
    keys: tuple[str, ...] = Field(min_length=1, description="the attributes that are read; never one that is the label")
    min_count: int = Field(default=2, ge=1, description="values seen less often in training count as unknown")

    def tensors(self) -> tuple[TensorSpec, ...]:
        """One category per key."""
        return (TensorSpec("categories", "INT64", (len(self.keys),)),)

    def attribute_keys(self) -> tuple[str, ...]:
        """Return the keys of the blocks."""
        return self.keys

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:  # noqa: ARG002 (no pretrained part)
        """Fit the vocabulary.

        Raises:
            InputError: no product has one of the keys.
        """
        records = [json.loads(item) for item in items]
        require_keys(self.keys, records, tower.name)
        vocabulary = {
            "keys": [self._key(name, [record[name] for record in records if name in record]) for name in self.keys],
            "max_bytes": MAX_BYTES["attributes"],
        }
        write_asset(tower, attributes.VOCABULARY_FILE, vocabulary)

    def _key(self, name: str, values: list[object]) -> dict[str, Any]:
        numbers = [number for value in values if (number := attributes.as_number(value)) is not None]
        typed = sum(isinstance(value, int | float) for value in values)
        if typed > _MOSTLY * len(values):
            if typed < len(values):  # one "n/a" must not make words of all prices
                log.warning(
                    "attribute %r is a number in %d of %d products; in the others it is read as one where it can be",
                    name,
                    typed,
                    len(values),
                )
            return {"name": name, "edges": _edges(numbers)}
        counts = Counter(attributes.normalised(value) for value in values)
        kept = sorted(value for value, count in counts.items() if count >= self.min_count)
        unknown = len(values) - sum(counts[value] for value in kept)
        mostly_unknown = unknown > len(values) / 2
        if len(numbers) > _MOSTLY * len(values) and mostly_unknown:
            log.warning(
                "attribute %r is a number in quotation marks, and most are too rare to be known: as a number, without "
                "the marks, it would be known by its size; if it names the product, give it a tower `hashed`",
                name,
            )
        elif typed and len(numbers) > len(values) / 2:
            log.warning(
                "attribute %r is a number in %d of %d products, and text in the others, so that all are read as words: "
                "if it is a number, write it as one everywhere",
                name,
                typed,
                len(values),
            )
        elif mostly_unknown:
            log.warning(
                "attribute %r is mostly unknown: in %d of the %d training products that have it the value, e.g. %r, "
                "is that of fewer than %d; a number without its unit would be known by its size, a tower `hashed` "
                "compares what names a product, min_count = 1 keeps all",
                name,
                unknown,
                len(values),
                next(value for value in values if counts[attributes.normalised(value)] < self.min_count),
                self.min_count,
            )
        return {"name": name, "values": kept}

    def build(self, tower: Path, source_root: Path | None) -> Encoder:  # noqa: ARG002 (there are no pretrained weights)
        """Build it for the fitted vocabulary."""
        vocabulary = json.loads((tower / ASSETS / attributes.VOCABULARY_FILE).read_text(encoding="utf-8"))
        return OneHot(
            [1 + len(key["values"]) if "values" in key else 2 + len(key["edges"]) for key in vocabulary["keys"]]
        )


def _edges(numbers: Sequence[float]) -> list[float]:
    """Return the inner edges of a number's quantile bins.

    A value that fills a whole bin gets an edge above it: where nine of ten packs hold one piece, a dozen is no single.
    """
    ordered = np.sort(np.array(numbers))
    bounds = np.quantile(ordered, np.linspace(0, 1, _NUMBER_BINS + 1)[:-1])
    inner = bounds[1:]
    filling = inner[np.diff(bounds) == 0]
    above = ordered[np.searchsorted(ordered, filling[filling < ordered[-1]], "right")]
    return sorted({*inner.tolist(), *above.tolist()})


class OneHot(Encoder):
    """One block of zeros and a one per key; the first place of a block means unknown."""

    starts: Tensor
    places: Tensor

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.feature_dim = sum(sizes)
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("starts", starts)
        self.register_buffer("places", torch.arange(self.feature_dim))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``categories``, INT64 [n, keys]."""
        columns = tensors[0] + self.starts  # (n, keys)
        return (columns.unsqueeze(-1) == self.places).to(torch.float32).sum(1)  # (n, f)

    def sample(self, specs: Sequence[TensorSpec], batch: int, length: int) -> tuple[Tensor, ...]:  # noqa: ARG002 (the vocabulary says it)
        """Draw a category of every key."""
        return (torch.stack([torch.randint(0, size, (batch,)) for size in self.sizes], 1),)
