"""Bars of a table: a panel per task and label, error bars over seeds, the untrained baselines beside in grey."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from likeness_client.writing import written_aside

from likeness_export.quality.lines import Spread, SpreadLine
from likeness_export.quality.report import MANY_LABELS, UNTRAINED, TableResult, all_lines, labels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = ("hit@1", "F1", "R@1")
_GREYS = ("#b9b6b0", "#8d8a85")
_WIDTH, _HEIGHT = 12.0, 3.4
_LEAST_PLACES = 5  # a panel of fewer is not stretched to its whole width
_WIDEST = 0.4  # bar, of a place
_MANY_PANELS = 8  # this many or more stand in two columns
_LABEL_WIDTH = 14  # letters


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
    columns = 2 if len(panels) >= _MANY_PANELS else 1
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).T.ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, ((title, metric), bars) in zip(axes, panels.items(), strict=False):
        _draw(axis, bars)
        axis.set_ylabel(metric)
        axis.set_title(title, loc="left", fontsize=10)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    return True


def panels_of(result: TableResult) -> dict[tuple[str, str], list[Bar]]:
    """Return the bars of each panel by the panel's title and figure.

    Every label of a task has a panel. Few labels are different questions to the same variants, which stand side by side
    for each set of modalities; many are different sets, most variants being of one: there each variant has its place.
    """
    lines = all_lines(result)
    panels: dict[tuple[str, str], list[Bar]] = {}
    for task in dict.fromkeys(line.task for _, line in lines):
        labels = labels_of(lines, task)
        place = _place if len(labels) < MANY_LABELS else _place_of_variant
        for label in labels:
            for variant, line in lines:
                metric = next((name for name in _SHOWN if name in line.figures), "")
                if metric and (line.task, line.label) == (task, label):
                    bars = panels.setdefault((f"{task}: {label}", metric), [])
                    bars.append(place(variant, line, line.figures[metric]))
    return panels


def _place(variant: str, line: SpreadLine, value: Spread) -> Bar:
    where = f"{UNTRAINED}\n{line.what}" if variant == UNTRAINED else line.what
    where = where.replace("_", "\n").replace("+", "\n+ ").replace("masked ", "masked\n")
    return Bar(place=where, series=variant, value=value)


def _place_of_variant(variant: str, line: SpreadLine, value: Spread) -> Bar:
    series = f"{UNTRAINED}, {line.what}" if variant == UNTRAINED else line.what
    return Bar(place="\n".join(textwrap.wrap(variant, _LABEL_WIDTH)), series=series, value=value)


def _draw(axis: Axes, bars: Sequence[Bar]) -> None:
    places = list(dict.fromkeys(bar.place for bar in bars))
    series = list(dict.fromkeys(bar.series for bar in bars))
    grey = [name for name in series if name.startswith(UNTRAINED)]
    coloured = [name for name in series if name not in grey]
    beside = {
        place: [name for name in series if any((b.place, b.series) == (place, name) for b in bars)] for place in places
    }
    width = {place: min(_WIDEST, 0.8 / len(names)) for place, names in beside.items()}
    for name in series:
        own = [bar for bar in bars if bar.series == name]
        shifts = [beside[bar.place].index(name) - (len(beside[bar.place]) - 1) / 2 for bar in own]
        axis.bar(
            [places.index(bar.place) + shift * width[bar.place] for bar, shift in zip(own, shifts, strict=True)],
            [bar.value.mean for bar in own],
            yerr=[bar.value.deviation or 0.0 for bar in own],
            width=[0.94 * width[bar.place] for bar in own],
            color=f"C{coloured.index(name)}" if name in coloured else _GREYS[grey.index(name) % len(_GREYS)],
            error_kw={"elinewidth": 1, "capsize": 2},
            label=name,
        )
    axis.set_xticks(range(len(places)), places, fontsize=8)
    axis.set_xlim(-0.6, max(len(places), _LEAST_PLACES) - 0.4)
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
