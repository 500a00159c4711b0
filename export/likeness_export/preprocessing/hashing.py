"""A JSON object of attributes that name a product (model number, GTIN) to signs that are a hash of their values."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SETTINGS_FILE = "hashing.json"
NOTHING_KNOWN = "nothing in it is known from training: leave the modality out"
# Vowel signs and the like: what Python takes for no letter. Behind them stand the marks that choose a letter's picture.
_MARKS = "".join(letter for letter in map(chr, range(0x300, 0xFE00)) if unicodedata.category(letter) in ("Mn", "Mc"))
_KEPT = re.compile(rf"[^\W_]+[{_MARKS}]*")


class Preprocessor:
    """Hash attribute values: equal ones give equal vectors, different ones nearly orthogonal ones; no vocabulary.

    A value's vector holds ``bits`` signs, 1 or -1, drawn by SHAKE-128 from key and value; a product's vector is the
    sum over its keys (signed feature hashing, Weinberger et al. 2009). Two different values have a cosine of 0 with a
    standard deviation of ``1 / sqrt(bits)``. Values are compared by their letters and digits alone, in lower case:
    ``DS-3`` equals ``ds3``.

    Args:
        assets: folder with ``hashing.json``: ``keys``, ``bits`` (a multiple of 8) and ``max_bytes``.
    """

    def __init__(self, assets: Path) -> None:
        settings = json.loads((assets / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.keys: list[str] = settings["keys"]
        self.bits: int = settings["bits"]
        self.max_bytes: int = settings["max_bytes"]

    def __call__(self, items: list[bytes]) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
        """Turn JSON objects into tensors.

        Args:
            items: UTF-8 JSON objects of strings and numbers; other keys are ignored.

        Returns:
            ``signs``, FP32 [n, bits], and the reasons of failed items; those that have none of the keys are such.
        """
        signs = np.zeros((len(items), self.bits), dtype=np.float32)
        errors = []
        for row, item in enumerate(items):
            try:
                attributes = self._parse(item)
            except ValueError as error:
                errors.append(str(error))
                continue
            found = {key: value for key in self.keys if (value := letters_and_digits(attributes.get(key)))}
            errors.append("" if found else NOTHING_KNOWN)
            for key, value in found.items():
                signs[row] += self._signs(key, value)
        return {"signs": signs}, errors

    def _signs(self, key: str, value: str) -> NDArray[np.float32]:
        digest = hashlib.shake_128(f"{key}={value}".encode()).digest(self.bits // 8)
        return 2.0 * np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float32) - 1.0

    def _parse(self, item: bytes) -> dict[str, object]:
        if len(item) > self.max_bytes:
            raise ValueError(f"the attributes have {len(item)} bytes, {self.max_bytes} are allowed: send fewer")
        try:
            attributes = json.loads(item.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:  # not only JSONDecodeError: a number may have too many digits
            raise ValueError(f"the attributes are not JSON ({error}): send an object of strings and numbers") from error
        if not isinstance(attributes, dict):
            raise ValueError("the attributes are JSON, but not an object: send an object of strings and numbers")
        return attributes


def letters_and_digits(value: object) -> str:
    """Return what is compared of a value; nothing of one that is neither text nor a finite number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        value = int(value) if value.is_integer() else value  # 5389.0 is the number that others write as "5389"
    # Python puts a second dot on the i of a Turkish capital.
    return "".join(_KEPT.findall(str(value).lower().replace("i\u0307", "i")))
