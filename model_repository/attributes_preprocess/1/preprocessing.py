"""A JSON object of attributes to one category index per key."""

from __future__ import annotations

import bisect
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOCABULARY_FILE = "attributes.json"
NOTHING_KNOWN = "nothing in it is known from training: leave the modality out"


class Preprocessor:
    """Look attribute values up in the vocabulary that was fitted on the training split.

    Index 0 of every key means unknown: the key is absent, or its value was not seen in training.

    Args:
        assets: folder with ``attributes.json``: ``keys``, each with ``name`` and either ``values`` (categories) or
            ``edges`` (inner edges of a number's quantile bins), and ``max_bytes``.
    """

    def __init__(self, assets: Path) -> None:
        vocabulary = json.loads((assets / VOCABULARY_FILE).read_text(encoding="utf-8"))
        self.max_bytes: int = vocabulary["max_bytes"]
        self.keys = [_Key(**key) for key in vocabulary["keys"]]

    def __call__(self, items: list[bytes]) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
        """Turn JSON objects into tensors.

        Args:
            items: UTF-8 JSON objects of strings and numbers; keys that the vocabulary lacks are ignored, and an item
                without a known value fails.

        Returns:
            ``categories``, INT64 [n, keys], and the reasons of failed items.
        """
        categories = np.zeros((len(items), len(self.keys)), dtype=np.int64)
        errors = []
        for row, item in enumerate(items):
            try:
                attributes = self._parse(item)
            except ValueError as error:
                errors.append(str(error))
                continue
            categories[row] = [key.index(attributes.get(key.name)) for key in self.keys]
            errors.append("" if categories[row].any() else NOTHING_KNOWN)
        return {"categories": categories}, errors

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


class _Key:
    def __init__(self, name: str, values: list[str] | None = None, edges: list[float] | None = None) -> None:
        self.name = name
        self.edges = edges
        self.places = {value: place for place, value in enumerate(values or [], start=1)}

    def index(self, value: object) -> int:
        if self.edges is None:
            # An absent key must not meet a category that is called "None", and a nested value is no category at all.
            return self.places.get(normalised(value), 0) if isinstance(value, str | int | float) else 0
        number = as_number(value)
        return 0 if number is None else 1 + bisect.bisect_right(self.edges, number)


def normalised(value: object) -> str:
    """Return the form in which category values are compared: lower case, single spaces, 16.0 as 16."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:  # beyond, digits would be made up
        value = int(value)
    return " ".join(str(value).lower().split())


def as_number(value: object) -> float | None:
    """Read a JSON number, or None if it is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if np.isfinite(number) else None
