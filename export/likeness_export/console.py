"""Where tables are printed."""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH = 160  # of a file or a pipe, which has none of its own: a narrow guess would cut figures off


def console() -> Console:
    """Return the standard output, which shows names as they are; what is no terminal is wide enough for every table."""
    found = Console(markup=False, emoji=False)  # a key may be called "length [cm]"
    if not found.is_terminal:
        found.width = _WIDTH
    return found


def figures_table(title: str, named: str, figures: Iterable[str]) -> Table:
    """Return a table without rows yet: a column of what is measured, and one to its right for every figure of it."""
    table = Table(title=title)
    table.add_column(named, no_wrap=True)
    for column in figures:
        table.add_column(column, justify="right")
    return table


def figure(value: float) -> str:
    """Return a number for a cell; a dash for NaN, where there was nothing to measure."""
    return "-" if isnan(value) else f"{value:.3f}"


def cut(text: str, style: str = "") -> Text:
    """Return text for a cell that gives way where a terminal is narrow, so that figures beside it do not.

    Of an id or a key the terminal is told nothing but its letters: line breaks and control characters are escaped.
    """
    shown = text if text.isprintable() else repr(text)
    return Text(shown, style=style, no_wrap=True, overflow="ellipsis")
