"""Plots as ``<img>`` elements that hold their SVG: in one page, no two share an id. Nothing asks for a display."""

from __future__ import annotations

import io
from base64 import b64encode
from html import escape
from math import inf
from statistics import median
from typing import TYPE_CHECKING

from likeness_bench.ceiling_report import Case
from likeness_bench.figures import LoadReport
from likeness_bench.sweep import SweepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SIZE_IN = (7.0, 3.2)
MEDIAN_COLOUR, TAIL_COLOUR, FAILED_COLOUR = "#4477aa", "#ee6677", "#cc3311"  # Tol's bright: told apart by everyone
_PARTS = {
    "queue_ms": ("queue", "#bbbbbb"),
    "compute_input_ms": ("input", "#ccbb44"),
    "compute_infer_ms": ("infer", "#4477aa"),
    "compute_output_ms": ("output", "#228833"),
}


def load_plots(report: LoadReport) -> list[str]:
    """Return the plots of a load report: distribution, course over time, steps inside the server."""
    plots = []
    if report.distribution_ms:
        plots.append(_distribution(report))
    if report.timeline:
        plots.append(_timeline(report))
    if any(step.mean_batch is not None for step in report.steps):
        plots.append(_steps(report))
    return plots


def sweep_plots(report: SweepReport) -> list[str]:
    """Return throughput against latency, a point for every repeat that answered anything; empty where none did."""
    answered = [(run.latency, run, step.kept) for step in report.steps for run in step.repeats if run.latency]
    if not answered:
        return []
    figure, axes = _axes()
    served = [run.products_per_s for _, run, _ in answered]
    axes.plot(served, [latency.p50_ms for latency, _, _ in answered], "o", color=MEDIAN_COLOUR, label="p50")
    for state, marker, label in ((True, "o", "p99, target kept"), (False, "x", "p99, target missed")):
        points = [(run.products_per_s, run.p99_with_failures_ms) for _, run, kept in answered if kept is state]
        if finite := [(x, y) for x, y in points if y is not None]:
            axes.plot(*zip(*finite, strict=True), marker, color=TAIL_COLOUR, label=label)
        if failed := [x for x, y in points if y is None]:  # at the upper edge
            label, edge = f"{label}: infinite by failures", axes.get_xaxis_transform()
            axes.plot(failed, [1.0] * len(failed), "^", color=FAILED_COLOUR, label=label, transform=edge, clip_on=False)
    axes.axhline(report.target_ms, color="grey", linestyle="--", linewidth=1, label=f"target {report.target_ms:g} ms")
    if ceilings := [run.ceiling.products_per_s for step in report.steps for run in step.repeats if run.ceiling]:
        axes.axvline(median(ceilings), color="grey", linestyle=":", linewidth=1, label="ceiling, products/s")
    axes.set(xlabel="products/s answered", ylabel="latency, ms", yscale="log", title="Throughput and latency")
    axes.set_xlim(0, 1.05 * axes.dataLim.x1 or None)  # no mark is at the edge
    _plain_numbers(axes.yaxis)
    axes.legend(fontsize="small")
    return [_img(figure)]


def rounds_plot(case: Case) -> str:
    """Return the throughput of the server and of its ceiling, round by round."""
    figure, axes = _axes()
    numbers = range(1, len(case.rounds) + 1)
    series = (("ceiling_products_per_s", "ceiling", MEDIAN_COLOUR), ("served_products_per_s", "served", TAIL_COLOUR))
    for name, label, colour in series:
        axes.plot(numbers, [getattr(round_, name) for round_ in case.rounds], "o-", color=colour, label=label)
    axes.set(xlabel="round", ylabel="products/s", title=case.name)
    _from_zero(axes)
    axes.legend(fontsize="small")
    return _img(figure)


def _distribution(report: LoadReport) -> str:
    figure, axes = _axes()
    percent, values = zip(*report.distribution_ms, strict=True)
    axes.plot(values, percent, color=MEDIAN_COLOUR)
    if report.latency:
        axes.axvline(report.latency.p99_ms, color=TAIL_COLOUR, linestyle="--", linewidth=1, label="p99")
        axes.legend(fontsize="small")
    axes.set(xlabel="latency, ms", ylabel="% answered within", xscale="log", title="Distribution of the latency")
    _plain_numbers(axes.xaxis)
    return _img(figure)


def _timeline(report: LoadReport) -> str:
    figure, axes = _axes()
    seconds = [row.second for row in report.timeline]
    for name, colour in (("p50_ms", MEDIAN_COLOUR), ("p99_ms", TAIL_COLOUR)):
        values = [getattr(row, name) for row in report.timeline]
        shown = [float("nan") if value is None else value for value in values]
        axes.plot(seconds, shown, ".-", color=colour, label=name.removesuffix("_ms"))
    if failed := [row.second for row in report.timeline if row.errors]:
        axes.plot(failed, [0.0] * len(failed), "x", color=FAILED_COLOUR, label="failures", clip_on=False)
    axes.set(xlabel="second in which requests were due", ylabel="latency, ms", title="Course over time")
    _from_zero(axes)
    axes.legend(fontsize="small")
    return _img(figure)


def _steps(report: LoadReport) -> str:
    steps = [step for step in report.steps if step.mean_batch is not None][::-1]
    figure, axes = _axes(height=1.2 + 0.28 * len(steps))
    left = [0.0] * len(steps)
    for part, (label, colour) in _PARTS.items():
        widths = [float(getattr(step, part)) for step in steps]
        axes.barh([step.model for step in steps], widths, left=left, label=label, color=colour)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="mean ms per request", title="Inside the server")
    figure.legend(fontsize="small", loc="outside right upper")  # it would lie on a bar
    return _img(figure)


def _axes(height: float = SIZE_IN[1]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE_IN[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    return figure, axes


def _from_zero(axes: Axes) -> None:
    """Count whole things from left to right, and from 0 upwards to a little above the highest mark."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    highest = axes.dataLim.y1
    axes.set_ylim(0, 1.05 * highest if 0 < highest < inf else None)


def _plain_numbers(axis: Axis) -> None:
    """Write 0.2, 20 and 20000 on a logarithmic axis, not powers of ten; of close marks, not all."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(minor_thresholds=(2, 1)))


def _img(figure: Figure) -> str:
    """Return the ``<img>`` element; its text is the title of the plot."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    title = escape(figure.axes[0].get_title())
    return f'<img alt="{title}" src="data:image/svg+xml;base64,{b64encode(out.getvalue()).decode()}">'
