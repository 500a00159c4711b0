"""What every report says of itself, whatever was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


def now() -> str:
    """Return this moment as reports have it: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Report:
    """When, of what and by what it was made. As plain data, a report is JSON.

    Attributes:
        made_at: when measuring began, see `now`.
        source: which products were sent, the `SourceConfig` as plain data; empty where it is not known.
        machine: the machine that measured; likewise.
        software: the version of likeness that measured; likewise.
    """

    made_at: str
    source: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    software: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a figure in it: a report without one takes no other's place."""
        return True
