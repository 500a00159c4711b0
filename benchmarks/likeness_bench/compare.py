"""Two reports side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, TypeAlias

from likeness_client import InputError

from likeness_bench import ceiling_report, figures, sweep
from likeness_bench.files import read_report
from likeness_bench.load_tables import load_name, source_name, work_name
from likeness_bench.report import Report, now
from likeness_bench.search import SETTLED, decisive, late
from likeness_bench.tables import Table, number

FORMAT = "likeness-compare-1"
_INFINITE: Literal["infinite"] = "infinite"
Figure: TypeAlias = float | Literal["infinite"] | None
"""None where a report does not know it."""
Plain: TypeAlias = Mapping[str, Any]
"""A report as plain data."""
_OF_ALL_RUNS = ("label", "recall", "source", "machine", "software")
"""What a sweep says once for all of its runs."""
_NOISE = (
    f"a machine's speed drifts, and runs of one load differ by up to {100 * SETTLED:g} % when they have settled: of "
    "smaller differences believe only those that come again, in turns"
)
_FIGURES = {
    "products/s": ("products_per_s",),
    "requests/s": ("requests_per_s",),
    "requests/s due": ("offered_per_s",),
    "mean ms": ("latency", "mean_ms"),
    "p50 ms": ("latency", "p50_ms"),
    "p90 ms": ("latency", "p90_ms"),
    "p95 ms": ("latency", "p95_ms"),
    "p99 ms": ("latency", "p99_ms"),
    "p99.9 ms": ("latency", "p99_9_ms"),
    "max ms": ("latency", "max_ms"),
    "mean ms outside the server": ("outside_server_ms",),
    "ceiling products/s": ("ceiling", "products_per_s"),
    "served / ceiling": ("ceiling", "throughput_ratio"),
    "server CPU s": ("server", "cpu_s"),
    "server cores": ("server", "cores"),
    "server peak RSS MB": ("server", "peak_rss_mb"),
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A figure of two reports.

    Attributes:
        first: of the first one.
        second: of the other.
        ratio: second / first; None where that is no number.
    """

    first: Figure
    second: Figure
    ratio: float | None


Found: TypeAlias = tuple[dict[str, Pair], list[str]]
"""The figures of both reports by name, and notes on what else differs."""


@dataclass(frozen=True, kw_only=True)
class ComparisonReport(Report):
    """Two reports side by side.

    Attributes:
        format: of this report.
        first: where the first one was read.
        second: where the other was.
        figures: those that either of them knows, by name.
        notes: what to know before the ratios are believed.
    """

    format: str = FORMAT
    first: str
    second: str
    figures: Mapping[str, Pair]
    notes: tuple[str, ...]

    def table(self) -> Table:
        """Return the figures with their ratios."""
        rows = tuple(
            (name, _shown(name, pair.first), _shown(name, pair.second), number(pair.ratio, 3))
            for name, pair in self.figures.items()
        )
        return Table(
            title=f"{self.first} and {self.second}", header=("", "first", "second", "second / first"), rows=rows
        )


def compare_reports(first: Path, second: Path) -> ComparisonReport:
    """Compare two reports of one kind.

    Raises:
        InputError: one cannot be read or lacks something, or they are of two kinds.
    """
    paths = (first, second)
    reports = [read_report(path, tuple(_KINDS)) for path in paths]
    kinds = [_KINDS[report["format"]] for report in reports]
    if kinds[0] != kinds[1]:
        names = " and ".join(f"a {name}" for name, _ in kinds)
        raise InputError(f"{first} and {second} are of two kinds, {names}: compare two of one kind")
    try:
        figures, notes = kinds[0][1](reports, paths)
    except InputError:
        raise
    except (LookupError, StopIteration, TypeError, AttributeError, ValueError) as error:
        reason = f"is not whole, or of another version ({error!r}): make it anew"
        raise InputError(f"{first} or {second} {reason}") from error
    known = {name: pair for name, pair in figures.items() if (pair.first, pair.second) != (None, None)}
    return ComparisonReport(made_at=now(), first=str(first), second=str(second), figures=known, notes=tuple(notes))


def _loads(reports: Sequence[Plain], _paths: Sequence[Path]) -> Found:
    return _pairs(reports), [_NOISE, *_differences(reports, load_name), *_own_notes(reports)]


def _pairs(reports: Sequence[Plain]) -> dict[str, Pair]:
    """Return the figures of two loads."""
    pairs = {name: _pair(*(_find(report, path) for report in reports)) for name, path in _FIGURES.items()}
    pairs["p99 ms with failures"] = _pair(*map(_p99_with_failures, reports))
    pairs["failed %"] = _pair(*map(_failed_percent, reports))
    recalls = [report["recall"] for report in reports]
    for name in dict.fromkeys(name for found in recalls for name in found):
        pairs[f"recall@1 of {name}"] = _pair(*(_recall(found.get(name)) for found in recalls))
    return pairs


def _sweeps(reports: Sequence[Plain], paths: Sequence[Path]) -> Found:
    runs = [_best_run(report, path) for report, path in zip(reports, paths, strict=True)]
    # What holds for all runs of a sweep stands there, and not in its runs.
    shared = [{key: report[key] for key in _OF_ALL_RUNS if key in report} for report in reports]
    runs = [{**run, **found} for run, found in zip(runs, shared, strict=True)]
    # The rate is what was searched for.
    differences = _differences(runs, lambda load: f"{work_name(load)}; {load['arrivals']} arrivals")
    notes = list(_unlike("targets", (f"p99 <= {report['target_ms']:g} ms" for report in reports)))
    for which, report in zip(("first", "second"), reports, strict=True):
        if not report["complete"]:
            notes.append(f"{which}: the search did not come to its end: {report['ended']}")
        elif not _best_step(report)["settled"]:
            notes.append(f"{which}: the figures of the best rate did not settle")
    notes += [_NOISE, *differences, *_own_notes(runs)]
    return {"best requests/s": _pair(*(report["best_rate"] for report in reports))} | _pairs(runs), notes


def _ceilings(reports: Sequence[Plain], paths: Sequence[Path]) -> Found:
    """Compare case by case; what only one of the reports has is named.

    Raises:
        InputError: they have no case in common.
    """
    cases = [{case["name"]: case for case in report["cases"]} for report in reports]
    common = [name for name in cases[0] if name in cases[1]]
    if not common:
        measured = [", ".join(found) or "nothing" for found in cases]
        raise InputError(
            f"{paths[0]} and {paths[1]} have no signature in common, the one has {measured[0]}, "
            f"the other {measured[1]}: measure the same --signature in both"
        )
    pairs: dict[str, Pair] = {}
    notes: list[str] = []
    for name in common:
        both = [found[name] for found in cases]
        medians = [report["medians"][name] for report in reports]
        for figure, (what, _) in ceiling_report.FIGURES.items():
            pairs[f"{name}: {what}"] = _pair(*(_median(found[figure]) for found in medians))
        pairs[f"{name}: recall@1"] = _pair(*(_recall(case["recall"]) for case in both))
        notes += _unlike(f"rounds of {name}", (len(case["rounds"]) for case in both))
    for which, found in zip(("first", "second"), cases, strict=True):
        if alone := [name for name in found if name not in common]:
            notes.append(f"only the {which} has {', '.join(alone)}")
    for key, what in (("repository", "repositories"), ("cores", "numbers of cores"), ("cpu_threads", "threads")):
        notes += _unlike(what, (report[key] for report in reports))
    notes.append("a machine's speed drifts: of two runs, `served / ceiling` says more than products/s")
    return pairs, [*notes, *_differences(reports, load_name), *_own_notes(reports)]


_KINDS: dict[str, tuple[str, Callable[[Sequence[Plain], Sequence[Path]], Found]]] = {
    figures.FORMAT: ("load", _loads),
    sweep.FORMAT: ("sweep", _sweeps),
    ceiling_report.FORMAT: ("ceiling", _ceilings),
}
"""Format -> what it is called, and how two of it are compared."""


def _best_run(report: Plain, path: Path) -> Plain:
    """Return the repeat that stands for a sweep's best rate."""
    if report["best_rate"] is None:
        raise InputError(f"{path}: no rate kept the target, so there is nothing to compare")
    step = _best_step(report)
    runs: list[Plain] = step["repeats"]
    return runs[decisive([run["p99_with_failures_ms"] for run in runs], settled=step["settled"])]


def _best_step(report: Plain) -> Mapping[str, Any]:
    return next(step for step in report["steps"] if step["kept"] and step["rate"] == report["best_rate"])


def _differences(reports: Sequence[Plain], name_of: Callable[[Mapping[str, Any]], str]) -> Iterator[str]:
    """Say where ratios compare more than one thing, as far as both reports tell."""
    loads = [report["load"] for report in reports]
    known = [key for key in reports[0]["machine"] if key in reports[1]["machine"]]
    yield from _unlike("loads", map(name_of, loads))
    told = {
        "products": [source_name(report["source"]) for report in reports if report["source"]],
        "machines": [", ".join(f"{key} {report['machine'][key]}" for key in known) for report in reports],
        "versions of likeness": [found for report in reports if (found := report.get("software"))],
    }
    for what, values in told.items():
        yield from _unlike(what, values)
    for key, what in (("duration_s", "measured times"), ("warm_up_s", "warm-ups"), ("timeout_s", "deadlines")):
        yield from _unlike(what, (f"{load[key]:g} s" for load in loads))
    for key, what in (("repeat_share", "repeat shares"), ("metric", "metrics")):
        yield from _unlike(what, (load["workload"][key] for load in loads))
    if reports[0]["space"] != reports[1]["space"]:
        yield "the servers have different embedding spaces: another model was measured"
    labels = [report["label"] for report in reports]
    if labels[0] != labels[1]:
        yield f"recall was measured on different things: {labels[0] or 'nothing'} | {labels[1] or 'nothing'}"


def _unlike(what: str, told: Iterable[Any]) -> Iterator[str]:
    """Say that something differs, where both reports tell it."""
    values = list(dict.fromkeys(told))
    if len(values) > 1:
        yield f"the {what} differ: {values[0]} | {values[1]}"


def _own_notes(reports: Sequence[Plain]) -> list[str]:
    return [
        f"{name}: {note}" for name, report in zip(("first", "second"), reports, strict=True) for note in report["notes"]
    ]


def _recall(found: Mapping[str, Any] | None) -> float | None:
    """Return recall@1, where there was anything to ask."""
    return float(found["at_1"]) if found and found["queries"] else None


def _find(report: Plain, path: tuple[str, ...]) -> float | None:
    value: Any = report
    for key in path:
        value = value.get(key) if value is not None else None  # reports of earlier versions have not everything
    return None if value is None else float(value)


def _median(spread: Mapping[str, Any] | None) -> float | None:
    """Return the median of rounds; None there is infinite."""
    return None if spread is None else late(spread["median"])


def _p99_with_failures(report: Plain) -> float | None:
    found = _find(report, ("p99_with_failures_ms",))
    return inf if found is None and report["requests"] else found


def _failed_percent(report: Plain) -> float | None:
    failed = sum(row["count"] for row in report["errors"])
    return 100 * failed / report["requests"] if report["requests"] else None


def _pair(first: float | None, second: float | None) -> Pair:
    ratio = second / first if first and second is not None and inf not in (first, second) else None
    return Pair(first=_figure(first), second=_figure(second), ratio=ratio)


def _figure(value: float | None) -> Figure:
    """Return a figure as JSON can hold it."""
    return _INFINITE if value == inf else value


def _shown(name: str, figure: Figure) -> str:
    return figure if isinstance(figure, str) else number(figure, 3 if "recall@1" in name or "/ ceiling" in name else 2)
