"""Products, and the JSON lines that they are read from."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from likeness_client.errors import InputError, RecordError

ImageSource: TypeAlias = Path | bytes | NDArray[np.uint8]
"""A file, an encoded image (JPEG, PNG, ...), or pixels: uint8 [h, w], [h, w, 3] RGB or [h, w, 4] RGBA, put on white."""
VideoSource: TypeAlias = Path | bytes
"""A file, or an encoded clip (MP4, WebM, GIF, ...)."""
MODALITY_FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("title", "description"),
    "image": ("images",),
    "attributes": ("attributes",),
    "video": ("video",),
    "interactions": ("interactions",),
}
"""Modality -> the fields of a `Product` that hold it; the text may also quote attributes, see `compose_text`."""
_UTF_16 = "is in UTF-16: save it as UTF-8, e.g. with `iconv -f UTF-16 -t UTF-8`"
_ONE_LIST = "is one JSON list: write each of its elements on a line of its own, e.g. with `jq -c '.[]'`"
Record: TypeAlias = dict[str, Any]
"""One line of a product file as it stands there, labels and all."""
_NO_JSON_LINES: Mapping[bytes, str] = {
    b"\x1f\x8b": "is compressed: unpack it with `gunzip`",
    b"PAR1": "is a Parquet file: write its rows as JSON lines",
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"{\0": _UTF_16,
    b"\0{": _UTF_16,
    b"[{": _ONE_LIST,
    b"[\n": _ONE_LIST,
    b"[\r": _ONE_LIST,
}
"""How a file begins that holds no line to read -> what it is, and the way out."""
_TABLES = (".csv", ".tsv")
_MARKS = "".join(letter for letter in map(chr, range(0x300, 0x1EF00)) if unicodedata.combining(letter))
_HEAP = re.compile(rf"[{_MARKS}]{{30}}(?=[{_MARKS}])")
"""More marks on one letter than any language has."""
_GAPS = ("NAType", "NaTType")  # the types of pandas' own gaps, which does not have to be installed
_LONGEST_PATH = 4096  # of Linux, in bytes
_PERHAPS_A_HEAP = re.compile("[\u0300-\U0001eeff]{31}")  # which is found, or not, thirty times as fast


class _Short(reprlib.Repr):
    """Shows values in part: a line of a log is no place for the megabytes of a photo."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100  # characters

    def repr_bytes(self, value: bytes, _level: int) -> str:
        return repr(value) if len(value) <= self.maxother else f"<{len(value)} bytes>"


_SHORT = _Short()


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """What is known about one product; every part may be missing.

    Attributes:
        product_id: the caller's own name for it; only reported back, never sent.
        title: a short name. Bytes are taken as UTF-8.
        description: a longer text. Bytes are taken as UTF-8.
        attributes: flat facts, e.g. ``{"colour": "red", "price_usd": 52.0}``.
        images: views of the product, the main view first. The server says how many of the first ones it reads.
        video: a clip of the product.
        interactions: who viewed or bought it, and how often: ``{"user 17": 3}``. The names go to the server, and from
            training into its model; use pseudonyms.
    """

    product_id: str = ""
    title: str | bytes = ""
    description: str | bytes = ""
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    images: tuple[ImageSource, ...] = ()
    video: VideoSource | None = None
    interactions: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = (f"{one.name}={_SHORT.repr(getattr(self, one.name))}" for one in fields(self))
        return f"{type(self).__name__}({', '.join(parts)})"

    @classmethod
    def from_record(cls, record: Mapping[str, Any], base: Path | str) -> Product:
        """Read one record of a product file.

        Only the keys that this class has attributes for are read. All are optional, and null means missing, because
        catalogues write both; so do NaN and pandas' NA, which data frames write into gaps.

        Args:
            record: one decoded line, or a row of a data frame as a dict.
            base: the folder that paths of images and videos are relative to.

        Raises:
            RecordError: a value has the wrong type; names the product and the key.
        """
        product_id, base = _text(record, "product_id", ""), Path(base)
        return cls(
            product_id=product_id,
            title=_text(record, "title", product_id),
            description=_text(record, "description", product_id),
            attributes=_attributes(record, product_id),
            images=_images(record, base, product_id),
            video=_video(record, base, product_id),
            interactions=_interactions(record, product_id),
        )


def read_products(path: Path | str) -> Iterator[tuple[Product, Record]]:
    """Stream the products of a JSON-lines file, each with its raw record (which holds the labels).

    Raises:
        RecordError: at the first line that is not a product; names file, line and reason.
        InputError: the file cannot be read.
    """
    for item in scan_products(path):
        if isinstance(item, RecordError):
            raise item
        yield item


def scan_products(path: Path | str) -> Iterator[tuple[Product, Record] | RecordError]:
    """Stream a JSON-lines file like `read_products`, but yield the error of a bad line and go on behind it.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    for item in _scan(path):
        if isinstance(item, RecordError):
            yield item
            continue
        line, record = item
        try:
            yield Product.from_record(record, path.parent), record
        except RecordError as error:
            yield RecordError(f"{error}", str(path), line)


def read_jsonl(path: Path | str) -> Iterator[Record]:
    """Stream the raw records of a JSON-lines file; blank lines are skipped.

    Raises:
        RecordError: at the first line that is not a JSON object in UTF-8; names file, line and reason.
        InputError: the file cannot be read.
    """
    for item in _scan(Path(path)):
        if isinstance(item, RecordError):
            raise item
        yield item[1]


def field_value(record: Mapping[str, Any], field: str) -> str:
    """Return one value of a record as a string, e.g. to use as a label.

    Args:
        record: a raw record.
        field: a key, a dotted path (``attributes.baseColour``, ``extra.mid_label``), or several joined with ``+``. A
            key that itself holds a dot, a ``+`` or blanks at its ends wins.

    Returns:
        The value in its `canonical` form; lists joined with ``/``, several fields with ``+``. Empty when any part is
        missing or empty.
    """
    if whole := _scalar(_find(record, field)):
        return whole
    parts = [_scalar(_find(record, part.strip())) for part in field.split("+")]
    return "+".join(parts) if all(parts) else ""


def compose_text(product: Product, fields: tuple[str, ...]) -> str:
    """Join the parts of a product that make up its text.

    Args:
        product: the product.
        fields: ``title``, ``description`` or ``attributes.<key>``, in the order of the text.

    Returns:
        The non-empty parts with one space between, in their `canonical` form; always valid Unicode.

    Raises:
        InputError: a field is none of these.
    """
    return canonical(" ".join(_part(product, field) for field in fields))


def canonical(text: str) -> str:
    """Return text in the form in which it is compared: in NFC, and runs of whitespace become one space.

    An accented letter may be one character or two, which look the same: files from macOS and texts from PDFs have two.
    """
    return " ".join(composed(text).split())


def composed(text: str) -> str:
    """Return text in NFC, where an accented letter is one character if there is one for it.

    Python orders the marks of a letter in a time that grows with the square of their number: heaps of them are parted
    as in Unicode's Stream-Safe Text Format (UAX 15).
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _HEAP.sub("\\g<0>\u034f", text) if _PERHAPS_A_HEAP.search(text) else text)


def not_utf_8(error: UnicodeDecodeError) -> str:
    """Return what is wrong with a text in another encoding, and the way out."""
    found = f"not UTF-8 ({error.reason} at byte {error.start})"
    return f"{found}: save the file as UTF-8, e.g. with `iconv -f WINDOWS-1252 -t UTF-8`"


def own_key(values: Mapping[str, Any], key: str) -> str:
    """Return how a mapping itself writes a key, in NFC or in NFD; the key as it is, where it has neither."""
    if key in values or key.isascii():
        return key
    forms = (unicodedata.normalize(form, key) for form in ("NFC", "NFD"))
    return next((form for form in forms if form in values), key)


def is_number(value: object) -> TypeGuard[float]:
    """Say whether an attribute's value is a finite number; booleans are not, NumPy's numbers are."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def characters(value: object) -> str:
    """Return what a string says, whatever a subclass shows itself as, an enum for instance; of others, ``str``."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def plain_number(value: float) -> int | float:
    """Return a finite number in its canonical form: 16.0 and NumPy's 16 are the same as 16."""
    if isinstance(value, Integral):  # a long article number keeps all its digits
        return int(value)
    number = float(value)
    if number.is_integer():
        # Up to 2**53 every whole number is exact as a float; beyond, its digits would be made up.
        return int(number) if abs(number) <= 2**53 else number
    if isinstance(value, np.floating) and not isinstance(value, float):
        return float(np.format_float_positional(value))  # 0.1 in FP32 means 0.1, and not 0.10000000149011612
    return number


def _part(product: Product, field: str) -> str:
    value: str | bytes | float
    if field == "title":
        value = product.title
    elif field == "description":
        value = product.description
    elif field.startswith("attributes."):
        value = product.attributes.get(own_key(product.attributes, field.removeprefix("attributes.")), "")
    else:
        raise InputError(f"no text field '{field}'; there are title, description and attributes.<key>")
    # Broken text (bytes in another encoding, half a surrogate pair) loses the broken characters, not the product.
    if is_number(value):
        value = plain_number(value)  # 16 and 16.0 are one value: a data frame with gaps makes one of the other
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else characters(value)
    return text.encode("utf-8", "replace").decode("utf-8")


def _scan(path: Path) -> Iterator[tuple[int, Record] | RecordError]:
    """Yield (line number, record), or the error of that line."""
    try:
        lines = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    with lines:
        beginning = lines.peek(4).removeprefix(codecs.BOM_UTF8).lstrip()
        if told := next((told for start, told in _NO_JSON_LINES.items() if beginning.startswith(start)), None):
            raise InputError(f"{path} {told}")
        if path.suffix.lower() in _TABLES and not beginning.startswith(b"{"):
            raise InputError(f"{path} is a table: write its rows as JSON lines, e.g. with Python's csv and json")
        # Read as bytes: only a newline ends a line, and bad UTF-8 costs one line, not the rest of the file.
        for number, raw in enumerate(lines, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text) if text.strip() else None
            except UnicodeDecodeError as error:
                yield RecordError(not_utf_8(error), str(path), number)
            except (ValueError, RecursionError) as error:
                yield RecordError(f"not JSON: {error}; every line is one object", str(path), number)
            else:
                if isinstance(record, dict):
                    yield number, record
                elif text.strip():
                    yield RecordError(f"expected a JSON object, found {_kind(record)}", str(path), number)


def _find(value: Any, path: str) -> Any:
    """Follow a dotted path; a key that itself has dots wins over the path."""
    if not isinstance(value, Mapping):
        return None
    if (whole := own_key(value, path)) in value:
        return value[whole]
    head, dot, rest = path.partition(".")
    return _find(value.get(own_key(value, head)), rest) if dot else None


def _scalar(value: Any) -> str:
    """Return a label's value; empty of what is none: it would be one that all such products share."""
    if isinstance(value, list | np.ndarray):  # the latter in a data frame
        parts = [_scalar(part) for part in value]
        return "/".join(parts) if any(parts) else ""
    if isinstance(value, float) and not math.isfinite(value):
        return ""  # a gap, or no value that could be told from others
    if is_number(value):
        value = plain_number(value)  # and of the whole numbers beside those they make 12.0
    return canonical(str(value)) if isinstance(value, str | int | float) else ""


def _given(value: Any) -> Any:
    """Return a value; None for what data frames write into gaps."""
    is_gap = math.isnan(value) if isinstance(value, float | np.floating) else type(value).__name__ in _GAPS
    return None if is_gap else value


def _text(record: Mapping[str, Any], key: str, product_id: str) -> str:
    value = _given(record.get(key))
    if value is not None and not isinstance(value, str):
        raise RecordError(f"'{key}' must be a string, found {_kind(value)}", product_id)
    return value or ""


def _object(record: Mapping[str, Any], key: str, product_id: str) -> Mapping[str, Any]:
    values = _given(record.get(key))
    if values is not None and not isinstance(values, Mapping):
        raise RecordError(f"'{key}' must be an object, found {_kind(values)}", product_id)
    return {name: value for name, value in (values or {}).items() if _given(value) is not None}


def _attributes(record: Mapping[str, Any], product_id: str) -> dict[str, str | float]:
    raw = _object(record, "attributes", product_id)
    for key, value in raw.items():
        if not (isinstance(value, str) or is_number(value)):
            way_out = "; join its values to one string" if isinstance(value, list) else ""
            found = f"{_kind(value)}{way_out}"
            raise RecordError(f"'attributes.{key}' must be a string or a number, found {found}", product_id)
    return {str(key): value for key, value in raw.items()}


def _images(record: Mapping[str, Any], base: Path, product_id: str) -> tuple[ImageSource, ...]:
    raw = _given(record.get("images"))
    names = [] if raw is None else raw
    if isinstance(names, np.ndarray):  # which data frames make of the lists in a Parquet file
        names = names.tolist()
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        found = f"a list that holds {_SHORT.repr(names)}" if isinstance(names, list) else _kind(names)
        raise RecordError(f"'images' must be a list of paths, e.g. [\"images/1.jpg\"], found {found}", product_id)
    return tuple(_own_path(base, name) for name in names)


def _video(record: Mapping[str, Any], base: Path, product_id: str) -> Path | None:
    name = _text(record, "video", product_id)
    return _own_path(base, name) if name else None


def _own_path(base: Path, name: str) -> Path:
    """Return a path as the disk writes it: archives from macOS have names in NFD, which look as those in NFC do."""
    path = base / name
    if name.isascii() or len(name) > _LONGEST_PATH:
        return path
    forms = (path, *(base / unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    return next((form for form in forms if os.path.exists(form)), path)  # noqa: PTH110 - `Path` raises at a long name


def _interactions(record: Mapping[str, Any], product_id: str) -> dict[str, float]:
    raw = _object(record, "interactions", product_id)
    for user, count in raw.items():
        if not (is_number(count) and count >= 0):
            found = count if is_number(count) else _kind(count)
            raise RecordError(f"'interactions.{user}' must be a number of times, found {found}", product_id)
    return {str(user): count for user, count in raw.items()}


def _kind(value: Any) -> str:
    """Name a decoded value in JSON's words, any other by its type."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, Real) else f"a value of type {type(value).__name__}")
