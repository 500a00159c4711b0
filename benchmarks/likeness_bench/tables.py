"""Tables as data, and their three forms: on the terminal, as Markdown, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

NOTHING = "-"
"""A cell that has no figure."""
_FILE_WIDTH = 160  # a file or a pipe has no width of its own


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; its first column is text, the others are figures.

    Attributes:
        title: what it shows.
        header: one name per column.
        rows: cells as they are read.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def print_tables(tables: Sequence[Table], notes: Sequence[str]) -> None:
    """Print tables, and notes below them."""
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text  # taken as it is: in a plain string, brackets would be markup

    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    for table in tables:
        drawn = Drawn(title=Text(table.title, "table.title"), title_justify="left")
        for number, name in enumerate(table.header):
            drawn.add_column(Text(name), justify="right" if number else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn)
    for note in notes:
        console.print(Text.assemble(("note", "yellow"), f": {note}"))


def markdown(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Return a document in Markdown."""
    lines = [f"# {title}", ""]
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    for table in tables:
        lines += [f"## {table.title}", "", _line(table.header), "|---" + "|---:" * (len(table.header) - 1) + "|"]
        lines += [_line(row) for row in table.rows] + [""]
    return "\n".join(lines)


def html(table: Table) -> str:
    """Return one table as HTML, with its heading."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<h2>{escape(table.title)}</h2>\n<table>\n<tr>{head}</tr>\n{rows}\n</table>"


def number(value: float | None, digits: int = 1) -> str:
    """Return a figure as it is read; a dash where there is none."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def counted(count: int, what: str) -> str:
    """Return a number of things in words; with an s, unless it is one."""
    return f"{count} {what}{'s' * (count != 1)}"


def or_infinite(value: float | None, digits: int = 1) -> str:
    """Return a figure that failures can make infinite, which reports hold as None, as it is read."""
    return "infinite" if value is None else number(value, digits)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
