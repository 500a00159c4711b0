"""One HTML page that needs nothing beside it: no script, no font, no image file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from likeness_bench.tables import Table, html


def page(title: str, made_at: str, notes: Sequence[str], plots: Sequence[str], tables: Sequence[Table]) -> str:
    """Return a report as a page.

    Args:
        title: of the page.
        made_at: when the figures were made.
        notes: what to know before they are believed.
        plots: ``<img>`` elements.
        tables: the figures.
    """
    template = Template(files("likeness_bench").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        made_at=escape(made_at),
        notes="\n".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        plots="\n".join(f"<figure>{plot}</figure>" for plot in plots),
        tables="\n".join(html(table) for table in tables),
    )
