"""From a product to the bytes that a server expects: pure functions, one per modality."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from likeness_client.contract import SEVERAL_PHOTOS, InputSchema
from likeness_client.errors import ProductError
from likeness_client.records import Product, canonical, characters, compose_text, is_number, own_key, plain_number


def payloads(product: Product, schema: InputSchema, modalities: Iterable[str]) -> dict[str, bytes]:
    """Encode what a product has.

    Args:
        product: the product.
        schema: what the server expects.
        modalities: the modalities that the server embeds; others are not looked at.

    Returns:
        One entry per modality that the product really has; never empty.

    Raises:
        ProductError: a part cannot be read or is too large, or nothing is left. Its index is not known here.
    """
    _check_types(product)
    wanted = tuple(modalities)
    found = {name: data for name in wanted if (data := ENCODERS[name](product, schema)) is not None}
    for name, data in found.items():
        if name != "image":  # each photo has been checked by itself
            _check_size(product, name, len(data), schema)
    if not found:
        raise ProductError(f"has none of {', '.join(wanted)}; give it at least one", product.product_id)
    return found


def sendable(product: Product, schema: InputSchema, modalities: Iterable[str]) -> dict[str, bytes]:
    """Encode what a product has, as `payloads` does; nothing of one that it refuses."""
    try:
        return payloads(product, schema, modalities)
    except ProductError:
        return {}


_TYPES: Mapping[str, tuple[type, ...]] = {
    "title": (str, bytes),
    "description": (str, bytes),
    "attributes": (Mapping,),
    "images": (tuple, list),
    "interactions": (Mapping,),
}
"""What the parts of a product may be. Python does not check, and rows of a data frame bring None and NaN."""


def _check_types(product: Product) -> None:
    if not isinstance(product.product_id, str):
        reason = f"product_id must be a string, found {product.product_id!r:.80}; make it one"
        raise ProductError(reason, str(product.product_id))
    for name, kinds in _TYPES.items():
        value = getattr(product, name)
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            reason = f"{name} must be a {expected}, found {type(value).__name__}; make it one, or leave it out"
            raise ProductError(reason, product.product_id)


def _text(product: Product, schema: InputSchema) -> bytes | None:
    """Return the composed text as UTF-8; None when blank."""
    quoted = [name.removeprefix("attributes.") for name in schema.text_fields if name.startswith("attributes.")]
    for key, value in _given(product, quoted).items():
        _plain(product, key, value)  # refuses what is no text and no number
    return compose_text(product, schema.text_fields).encode("utf-8") or None


def _image(product: Product, schema: InputSchema) -> bytes | None:
    """Return the photos that the server reads, several joined behind `SEVERAL_PHOTOS`; None when there is none."""
    sources = product.images[: schema.max_photos]
    photos = []
    for place, source in enumerate(sources, 1):
        try:
            photos.append(_photo(product, source, schema))
        except ProductError as error:
            if len(sources) == 1:
                raise
            raise _bad(product, "image", f"photo {place} of {len(sources)}: {error.reason}") from error
    if len(photos) < 2:
        return photos[0] if photos else None
    return SEVERAL_PHOTOS + b"".join(len(photo).to_bytes(4, "little") + photo for photo in photos)


def _photo(product: Product, source: object, schema: InputSchema) -> bytes:
    """Return one photo as an encoded image."""
    if isinstance(source, np.ndarray):
        photo = _pnm(product, source)
    elif isinstance(source, Path | bytes):
        photo = _encoded(product, "image", source, schema)
    else:
        way_out = "make Path(...) of a name, numpy.asarray(image.convert('RGB')) of PIL's image"
        found = type(source).__name__
        raise _bad(product, "image", f"expected a Path, bytes or a uint8 array, found {found}; {way_out}")
    _check_size(product, "image", len(photo), schema)
    return photo


def _attributes(product: Product, schema: InputSchema) -> bytes | None:
    """Return the attributes that the server reads as canonical JSON; None when none is left."""
    values = _given(product, schema.attribute_keys)
    return _json({key: plain for key, value in values.items() if (plain := _plain(product, key, value)) != ""})


def _given(product: Product, keys: Iterable[str]) -> dict[str, object]:
    """Return those of the schema's attributes that a product has, under the schema's own keys."""
    held = product.attributes
    return {key: held[own] for key in keys if (own := own_key(held, key)) in held}


def _video(product: Product, schema: InputSchema) -> bytes | None:
    """Return the clip as an encoded video; None when there is none."""
    source = product.video
    if source is None:
        return None
    if not isinstance(source, Path | bytes):
        raise _bad(product, "video", f"expected a Path or bytes, found {type(source).__name__}")
    return _encoded(product, "video", source, schema)


def _interactions(product: Product, schema: InputSchema) -> bytes | None:  # noqa: ARG001 (every user is sent)
    """Return the counts per user as canonical JSON; None when nobody has interacted."""
    counts: dict[str, int | float] = {}
    for user, value in product.interactions.items():
        if not is_number(value) or value < 0:
            reason = f"the count of '{user}' must be a number from 0, found {_shown(value)}"
            raise _bad(product, "interactions", reason)
        if value > 0:
            counts[characters(user)] = plain_number(value)
    return _json(counts)


ENCODERS: Mapping[str, Callable[[Product, InputSchema], bytes | None]] = {
    "text": _text,
    "image": _image,
    "attributes": _attributes,
    "video": _video,
    "interactions": _interactions,
}
"""One function per modality; a new modality is one function and one line."""


_WAYS_OUT: Mapping[str, str] = {
    "image": "send a smaller or more strongly compressed image",
    "video": "send a shorter or smaller clip",
    "interactions": "leave out the users who did least",
}
"""What to do about an input that is too large; the rest can be shortened."""


def _plain(product: Product, key: str, value: object) -> str | int | float:
    """Return an attribute in its canonical form; empty when blank."""
    if isinstance(value, str):
        return canonical(value)
    if not is_number(value):
        reason = f"'{key}' must be a string or a finite number, found {_shown(value)}; make it one, or leave it out"
        raise _bad(product, "attributes", reason)
    return plain_number(value)


def _json(values: Mapping[str, str | int | float]) -> bytes | None:
    """Return values as canonical JSON, so that equal ones are equal bytes: sorted keys, no spaces; None without any."""
    if not values:
        return None
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def _encoded(product: Product, modality: str, source: Path | bytes, schema: InputSchema) -> bytes:
    """Return an encoded image or clip."""
    # Of a subclass of bytes, such as NumPy's, tritonclient would send the text of its repr.
    data = bytes(source) if isinstance(source, bytes) else _read(product, modality, source, schema)
    if not data:
        raise _bad(product, modality, "is empty; leave it out if there is none")
    return data


def _read(product: Product, modality: str, path: Path, schema: InputSchema) -> bytes:
    """Read a file, but never more of it than may be sent."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a device or a pipe might never end
            raise _bad(product, modality, f"{path} is not a file")
        _check_size(product, modality, status.st_size, schema)
        return path.read_bytes()
    except ProductError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = getattr(error, "strerror", None) or str(error)
        raise _bad(product, modality, f"cannot read {path}: {reason}{_way_out(path)}") from error


def _way_out(path: Path) -> str:
    if {"http:", "https:"} & {*path.parts}:
        return "; nothing is fetched from the web: give a file"
    return "; write / between folders" if "\\" in path.name else ""  # as Windows does not


def _pnm(product: Product, pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels as PNM (P5 grey, P6 RGB), which every image library reads; without loss but for transparency."""
    shape = pixels.shape
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not is_image or pixels.size == 0:
        found = f"found {pixels.dtype} {list(shape)}"
        raise _bad(product, "image", f"an array must be uint8 [h, w], [h, w, 3] or [h, w, 4], {found}")
    if pixels.ndim == 3 and shape[2] == 4:
        # On white, as shops show cut-out products. 16 bits hold 255 * 255 plus the rounding term.
        alpha = pixels[..., 3:].astype(np.uint16)
        blended = (pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
        pixels = blended.astype(np.uint8)
    magic = "P5" if pixels.ndim == 2 else "P6"
    return f"{magic}\n{shape[1]} {shape[0]}\n255\n".encode("ascii") + pixels.tobytes()


def _check_size(product: Product, modality: str, size: int, schema: InputSchema) -> None:
    limit = schema.max_bytes.get(modality)
    if limit is not None and size > limit:
        way_out = _WAYS_OUT.get(modality, "shorten it")
        raise _bad(product, modality, f"{size:,} bytes, the server's limit is {limit:,}; {way_out}")


def _shown(value: object) -> str:
    """Return a value as an error shows it; Python refuses to write numbers of some thousand digits."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"something of type {type(value).__name__}"


def _bad(product: Product, modality: str, reason: str) -> ProductError:
    return ProductError(reason, product.product_id, modality)
