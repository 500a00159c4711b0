"""Reports on disk."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from likeness_client import InputError, MissingExtraError
from likeness_client.writing import check_place, write_text


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON in one step; NaN and infinity are refused.

    Raises:
        InputError: it cannot be written.
    """
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_report(path: Path, formats: tuple[str, ...]) -> dict[str, Any]:
    """Read a report of one of these formats as plain data.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as a report ({error}): give what `--out` wrote") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found not in formats:
        raise InputError(f"{path} is no report ({found!r} is not one of {', '.join(formats)}): give what `--out` wrote")
    assert isinstance(data, dict)
    return data


def check_out(path: Path | None, *read: Path | None) -> None:
    """Refuse a place for a report, or plots that cannot be drawn, before time is spent on them.

    Raises:
        InputError: its name does not end in ``.json``, it or what is written beside it cannot be written, or is one of
            the files that are read.
        MissingExtraError: matplotlib is not installed.
    """
    if path is None:
        return
    if find_spec("matplotlib") is None:
        raise MissingExtraError("bench", "`matplotlib`")
    if path.suffix != ".json":
        raise InputError(f"{path} must end in .json; Markdown and HTML are written beside it")
    for suffix in (".json", ".md", ".html"):
        check_place(path.with_suffix(suffix), *filter(None, read))
