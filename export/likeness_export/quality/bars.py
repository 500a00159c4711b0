"""Bars of a table: a panel per task and label, error bars over seeds, the untrained baselines in grey."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from likeness_client.contract import signature_of
from likeness_client.writing import written_aside

from likeness_export.quality.lines import Spread, SpreadLine
from likeness_export.quality.report import MANY_LABELS, UNTRAINED, TableResult, all_lines, labels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = ("hit@1", "F1", "R@1")
_GREY = "#c9c6c0"
_TAB20_GREYS = (14, 15)
_WIDTHS, _HEIGHT = {1: 12.0, 2: 16.0}, 3.2  # of a picture with so many columns, and of a panel: inches
_FEW_BARS = 24  # where no panel has more, two stand side by side
_GAP = 1.2  # between places, in bars
_LABEL_WIDTH = 12  # letters


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        place: what it stands over; bars of one place stand side by side.
        series: what its colour means; `UNTRAINED` is grey.
        value: its height.
        name: what is written in it.
    """

    place: str
    series: str
    value: Spread
    name: str = ""


def draw_bars(result: TableResult, path: Path) -> None:
    """Draw a table's main figures as PNG: hit@1 of rankings, F1 of pairs, R@1 of searches; nothing without any."""
    from matplotlib.figure import Figure  # without pyplot nothing asks for a display
    from matplotlib.patches import Patch

    panels = panels_of(result)
    if not panels:
        return
    colours = colours_of([bar.series for bars in panels.values() for bar in bars])
    columns = 2 if len(panels) > 1 and max(map(len, panels.values())) <= _FEW_BARS else 1
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(_WIDTHS[columns], _HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).T.ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, ((title, metric), bars) in zip(axes, panels.items(), strict=False):
        _draw(axis, bars, colours)
        axis.set_xlim(-1.0, max(axis.get_xlim()[1], _FEW_BARS / columns))  # few bars are not stretched
        axis.set_ylabel(metric)
        axis.set_title(title, loc="left", fontsize=10)
    key = [Patch(color=colour, label=series) for series, colour in colours.items()]
    figure.legend(handles=key, loc="outside right upper", fontsize=9, frameon=False)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def panels_of(result: TableResult) -> dict[tuple[str, str], list[Bar]]:
    """Return the bars of each panel by the panel's title and figure.

    Every label of a task has a panel. Few labels are different questions to the same variants, which stand side by side
    for each set of modalities, beside the untrained methods that look at the same; many are different sets, most
    variants being of one: there each variant has its place.
    """
    lines = all_lines(result)
    panels: dict[tuple[str, str], list[Bar]] = {}
    for task in dict.fromkeys(line.task for _, line in lines):
        labels = labels_of(lines, task)
        bar_of = _bar_of_signature if len(labels) < MANY_LABELS else _bar_of_variant
        for label in labels:
            for variant, line in lines:
                metric = next((name for name in _SHOWN if name in line.figures), "")
                if metric and (line.task, line.label) == (task, label):
                    bars = panels.setdefault((f"{task}: {label}", metric), [])
                    bars.append(bar_of(variant, line, line.figures[metric]))
    return panels


def _bar_of_signature(variant: str, line: SpreadLine, value: Spread) -> Bar:
    if variant != UNTRAINED:
        return Bar(place=line.what.replace("_", "\n"), series=variant, value=value)
    looks_at = signature_of("text" if part.endswith("text") else "image" for part in line.what.split("+"))
    return Bar(place=looks_at.replace("_", "\n"), series=UNTRAINED, value=value, name=line.what)


def _bar_of_variant(variant: str, line: SpreadLine, value: Spread) -> Bar:
    place = "\n".join(textwrap.wrap(variant, _LABEL_WIDTH))
    if variant == UNTRAINED:
        return Bar(place=place, series=UNTRAINED, value=value, name=line.what)
    return Bar(place=place, series=line.what, value=value)


def colours_of(series: Sequence[str]) -> dict[str, str]:
    """Return the colour of each series, grey for what is untrained; up to eighteen others differ."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    strong, light = range(0, 20, 2), range(1, 20, 2)  # of each hue
    own = [to_hex(colormaps["tab20"](place)) for place in (*strong, *light) if place not in _TAB20_GREYS]
    trained = [name for name in dict.fromkeys(series) if name != UNTRAINED]
    colours = {name: own[place % len(own)] for place, name in enumerate(trained)}
    return {UNTRAINED: _GREY, **colours} if UNTRAINED in series else colours


def _draw(axis: Axes, bars: Sequence[Bar], colours: Mapping[str, str]) -> None:
    trained = dict.fromkeys(bar.place for bar in bars if bar.series != UNTRAINED)
    places = [*dict.fromkeys(bar.place for bar in bars if bar.place not in trained), *trained]
    groups = [[bar for bar in bars if bar.place == place] for place in places]
    starts = list(accumulate((len(group) + _GAP for group in groups[:-1]), initial=0.0))
    for start, group in zip(starts, groups, strict=True):
        across = [start + place for place in range(len(group))]
        axis.bar(
            across,
            [bar.value.mean for bar in group],
            yerr=[bar.value.deviation or math.nan for bar in group],
            width=0.92,
            color=[colours[bar.series] for bar in group],
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        for x, bar in zip(across, group, strict=True):
            axis.text(x, 0.02, bar.name, rotation=90, ha="center", va="bottom", fontsize=7)
    middles = [start + (len(group) - 1) / 2 for start, group in zip(starts, groups, strict=True)]
    axis.set_xticks(middles, places, fontsize=8)
    axis.set_xlim(-1.0, starts[-1] + len(groups[-1]))
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
