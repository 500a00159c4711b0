"""Progress bars on standard error; silent where nobody watches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Column

T = TypeVar("T")


def each(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield the items under a bar that goes away when it is full."""
    console = Console(stderr=True)
    yield from track(items, label, transient=True, console=console, disable=not console.is_terminal)


def stages(unit: str, *fields: str) -> Progress:
    """Return a bar for long work, e.g. ``3/30 epochs``.

    Args:
        unit: what is counted.
        fields: names of figures beside the bar, given to ``update`` as ``field="0.123"``.
    """
    console = Console(stderr=True)
    shown = [TextColumn(f"{name} {{task.fields[{name}]}}") for name in fields]
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),  # on a narrow screen the bar gives way, not the figures
        TextColumn(unit),
        *shown,
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
        disable=not console.is_terminal,
    )
