"""Values as JSON can hold them."""

from __future__ import annotations

from math import isnan
from typing import Any


def without_nan(value: Any) -> Any:
    """Return a value as JSON can hold it: None for NaN, also inside dictionaries and lists."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and isnan(value) else value
