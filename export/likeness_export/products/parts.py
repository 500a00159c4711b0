"""The parts of products as bytes: what is small is held, files are read again whenever they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

from likeness_client.contract import InputSchema
from likeness_client.payloads import payloads
from likeness_client.records import Product


@dataclass(frozen=True, kw_only=True)
class Part:
    """One modality of one product, as a server gets it.

    Attributes:
        size: in bytes.
        digest: SHA-256 of the bytes.
        read: returns them. Of a file that is gone since it was read first it raises a `ProductError`.
    """

    size: int
    digest: bytes
    read: Callable[[], bytes]

    @classmethod
    def of(cls, data: bytes, read: Callable[[], bytes] | None = None) -> Part:
        """Make a part of its bytes; they are held unless it is said how to read them again."""
        return cls(size=len(data), digest=hashlib.sha256(data).digest(), read=read or (lambda: data))


class Read(Sequence[bytes]):
    """The bytes of parts, each read when it is asked for: the photos of a catalogue may not fit into memory."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Read: ...
    def __getitem__(self, place: int | slice) -> bytes | Read:
        if isinstance(place, slice):
            return Read(self._parts[place])
        return self._parts[place].read()

    def __iter__(self) -> Iterator[bytes]:
        return (part.read() for part in self._parts)


def parts_of(product: Product, schema: InputSchema, modalities: Sequence[str]) -> dict[str, Part]:
    """Return what a product has of some modalities; all of it is read once, so that what cannot be read is known.

    Raises:
        ProductError: see `payloads`.
    """
    found = payloads(product, schema, modalities)  # first: it knows products whose parts are of wrong types
    sources = {"image": product.images[: schema.max_photos], "video": [product.video]}
    files = {name for name, some in sources.items() if any(isinstance(source, Path) for source in some)}
    return {
        name: Part.of(data, partial(_again, product, schema, name) if name in files else None)
        for name, data in found.items()
    }


def _again(product: Product, schema: InputSchema, modality: str) -> bytes:
    return payloads(product, schema, (modality,))[modality]
