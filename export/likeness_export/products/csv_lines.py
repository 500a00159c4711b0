"""The lines of a CSV file whose first line names its columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from likeness_client.errors import InputError
from likeness_client.records import not_utf_8


def read_lines(
    path: Path, what: str, needed: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every line, behind the words for its place with which a message about it begins.

    Args:
        path: the file; it may have other columns, too.
        what: it should be, for messages.
        needed: the columns that it must have.
        optional: columns that it may have, for messages.

    Raises:
        InputError: the file cannot be read or lacks a column, or a line has values too few or too many.
    """
    named = ", ".join((*needed, *optional))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file, strict=True)
            columns = lines.fieldnames or ()
            if missing := [name for name in needed if name not in columns]:
                raise InputError(
                    f"{path} lacks the columns {', '.join(missing)}: its first line has to name {named}, with commas "
                    f"between, and is {','.join(columns)!r:.80}"
                )
            for line in lines:
                where = f"{path}, line {lines.line_num}"
                if None in line or None in line.values():
                    raise InputError(f"{where}: not as many values as the first line has columns ({len(columns)})")
                yield where, line
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {not_utf_8(error)}") from error
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a {what} ({named}): {error}") from error
