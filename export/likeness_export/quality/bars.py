"""Bars of a table: a panel per task and label, error bars over seeds, the untrained baselines beside in grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from likeness_export.files import written_aside
from likeness_export.quality.lines import Spread, SpreadLine
from likeness_export.quality.report import MANY_LABELS, UNTRAINED, TableResult, all_lines, labels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = ("hit@1", "F1", "R@1")
_GREY = "#b9b6b0"
_WIDTH, _HEIGHT, _LEAST_PLACES = 12.0, 3.4, 8


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        place: what it stands over; bars of one place stand side by side.
        series: what its colour means.
        value: its height.
    """

    place: str
    series: str
    value: Spread


def draw_bars(result: TableResult, path: Path) -> bool:
    """Draw a table's main figures: hit@1 of rankings, F1 of pairs, R@1 of searches.

    Args:
        result: the table.
        path: the picture to write, PNG.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.figure import Figure  # without pyplot nothing asks for a display

    panels = panels_of(result)
    if not panels:
        return False
    figure = Figure(figsize=(_WIDTH, _HEIGHT * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, ((title, metric), bars) in zip(axes, panels.items(), strict=True):
        _draw(axis, bars)
        axis.set_ylabel(metric)
        axis.set_title(title, loc="left", fontsize=10)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    return True


def panels_of(result: TableResult) -> dict[tuple[str, str], list[Bar]]:
    """Return the bars of each panel by the panel's title and figure.

    A task of few labels has a panel for each, with a place per set of modalities; one of many has a single panel, with
    a place per label.
    """
    lines = all_lines(result)
    panels: dict[tuple[str, str], list[Bar]] = {}
    for variant, line in lines:
        metric = next((name for name in _SHOWN if name in line.figures), "")
        if not metric:
            continue
        if len(labels_of(lines, line.task)) < MANY_LABELS:
            title = f"{line.task}: {line.label}"
            bar = Bar(place=_place(variant, line), series=variant, value=line.figures[metric])
        else:
            title = line.task
            bar = Bar(place=line.label, series=f"{variant}, {line.what}", value=line.figures[metric])
        panels.setdefault((title, metric), []).append(bar)
    return panels


def _place(variant: str, line: SpreadLine) -> str:
    if variant == UNTRAINED:
        return f"{UNTRAINED}\n{line.what}"
    return line.what.replace("_", "\n")


def _draw(axis: Axes, bars: Sequence[Bar]) -> None:
    places = list(dict.fromkeys(bar.place for bar in bars))
    series = list(dict.fromkeys(bar.series for bar in bars))
    coloured = [name for name in series if not name.startswith(UNTRAINED)]
    beside = {
        place: [name for name in series if any((b.place, b.series) == (place, name) for b in bars)] for place in places
    }
    width = 0.8 / max(len(names) for names in beside.values())
    for name in series:
        own = [bar for bar in bars if bar.series == name]
        shifts = [beside[bar.place].index(name) - (len(beside[bar.place]) - 1) / 2 for bar in own]
        axis.bar(
            [places.index(bar.place) + shift * width for bar, shift in zip(own, shifts, strict=True)],
            [bar.value.mean for bar in own],
            yerr=[bar.value.deviation or 0.0 for bar in own],
            width=0.94 * width,
            color=f"C{coloured.index(name)}" if name in coloured else _GREY,
            error_kw={"elinewidth": 1, "capsize": 2},
            label=name,
        )
    axis.set_xticks(range(len(places)), places, fontsize=8)
    axis.set_xlim(-0.6, max(len(places), _LEAST_PLACES) - 0.4)
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
