"""Tables where nobody has set a width."""

from __future__ import annotations

from io import StringIO

import pytest
from likeness_export.console import console, cut, figures_table
from likeness_export.progress import stages
from rich.console import Console
from rich.table import Table


def table() -> Table:
    found = Table()
    found.add_column("product")
    found.add_column("cosine", no_wrap=True)
    found.add_row(cut("a product with a name that never ends " * 5), "0.123")
    return found


def test_a_file_is_wide_enough(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console().print(table())
    assert max(map(len, capsys.readouterr().out.splitlines())) == 160


@pytest.mark.parametrize("width", [30, 80, 160])
def test_names_give_way_and_figures_do_not(width: int) -> None:
    out = StringIO()
    Console(width=width, file=out).print(table())
    shown = out.getvalue()
    assert "0.123" in shown
    assert "…" in shown
    assert len(shown.splitlines()) == 5  # one line per row: names are cut, not folded


def test_a_name_cannot_break_a_line_or_colour_the_terminal() -> None:
    out = StringIO()
    Console(width=80, file=out, force_terminal=True).print(cut("a\n\x1b[31mb"))
    assert out.getvalue() == "'a\\n\\x1b[31mb'\n"


def test_a_bar_gives_way_and_figures_do_not() -> None:
    progress, out = stages("epochs", "loss"), StringIO()
    progress.add_task("training", total=30, completed=7, loss="4.0253")
    Console(width=42, file=out).print(progress.get_renderable())
    assert out.getvalue().split() == ["training", "7/30", "epochs", "loss", "4.0253", "-:--:--"]


@pytest.mark.parametrize("name", ["Länge [cm]", "[/x]", ":heart:"])
def test_names_are_shown_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = figures_table(f"alike by {name}", name, [name])
    table.add_row(name, name)
    console().print(table)
    assert capsys.readouterr().out.count(name) == 5
