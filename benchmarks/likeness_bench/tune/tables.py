"""The tables and notes of a tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from likeness_bench.load_tables import mix_name
from likeness_bench.tables import NOTHING, Table, counted, number, or_infinite
from likeness_bench.tune.report import TuneReport
from likeness_bench.tune.search import GUESS, Trial


def tune_name(report: TuneReport) -> str:
    """Return a tuning in words."""
    load, name = report.load, Path(report.repository).name
    size = mix_name(load["workload"]["batch_size"])
    return (
        f"Tuning {name}: {counted(load['concurrency'], 'caller')} x {size}, p99 <= {report.target_ms:g} ms, "
        f"{counted(report.cores, 'core')}"
    )


def tune_tables(report: TuneReport) -> list[Table]:
    """Return where the time went, what was tried, and the final comparison."""
    tables = [_steps(report), _trials(report.trials)]
    if report.final and report.final.rounds:
        tables += [_final(found) for found in (*report.refused, report.final) if found.rounds]
    if report.changes:
        tables.append(_changes(report))
    return tables


def tune_notes(report: TuneReport) -> list[str]:
    """Return the conclusion, how the search ended, and what stands in the way of believing it."""
    ended = f"{report.ended}; {len(report.trials)} settings were tried in {report.took_s:.0f} s"
    return [_conclusion(report), ended, *report.notes]


def _conclusion(report: TuneReport) -> str:
    final = report.final
    if report.written:
        return f"tuned: {_figures(final)}; written to {_places(report)}"
    if report.better:
        return f"tuned: {_figures(final)}; not written"
    if not report.changes:
        return f"the configurations are {_known(report)}; nothing was written"
    if final is None:
        return "settings that seemed better were not compared with the untuned ones any more; nothing was written"
    if final.failure:
        return f"the best settings could not be compared with the untuned ones ({final.failure}); nothing was written"
    return (
        f"the configurations are {_known(report)}: what seemed better did not last beside them "
        f"({_figures(final)}); nothing was written"
    )


def _known(report: TuneReport) -> str:
    """Say how far it is known that nothing is better."""
    if report.complete:
        return "already the best found"
    if not report.trials or report.ended == "interrupted":
        return "as they were"
    return f"the best of the {len(report.trials)} settings that the time allowed"


def _places(report: TuneReport) -> str:
    """Return where the result was written; the files themselves stand in the JSON."""
    inside = [path for path in report.written if Path(path).is_relative_to(report.repository)]
    others = [path for path in report.written if path not in inside]
    return ", ".join([f"{counted(len(inside), 'file')} of {report.repository}", *others])


def _figures(final: Trial | None) -> str:
    verdict = final.verdict if final else None
    if verdict is None:
        return NOTHING
    p99 = f"p99 {or_infinite(verdict.candidate_p99_ms)} instead of {or_infinite(verdict.incumbent_p99_ms)} ms"
    wins = f"better in {verdict.wins} of {counted(verdict.rounds, 'round')} by {verdict.counts}"
    return f"{number(verdict.ratio, 3)} times the products/s, {p99}, {wins}"


def _steps(report: TuneReport) -> Table:
    rows = tuple(
        (
            time.step,
            f"{100 * time.share:.1f}",
            number(time.service_ms, 3),
            number(time.mean_batch),
            number(time.batch_ms, 2),
            number(time.queue_ms, 2),
            "yes" if time.step in report.searched else "no",
        )
        for time in report.steps
    )
    header = ("step", "share %", "ms per product", "products per batch", "ms per batch", "queue ms", "searched")
    found = report.untuned
    speed = (
        f": {number(found.products_per_s)} products/s, p99 {or_infinite(found.p99_with_failures_ms)} ms"
        if found
        else ""
    )
    return Table(title=f"Where the time goes as it is{speed}", header=header, rows=rows)


def _trials(trials: Sequence[Trial]) -> Table:
    return Table(
        title="What was tried, each beside the best so far",
        header=(
            "changed in the best so far",
            "products/s, ratio",
            "p99 ms",
            "p99 ms of the best so far",
            "rounds won",
            "kept",
        ),
        rows=tuple(_trial(trial) for trial in trials),
    )


def _trial(trial: Trial) -> tuple[str, ...]:
    changed = f"{GUESS}: {trial.changed}" if trial.why == GUESS else trial.changed
    verdict = trial.verdict
    if trial.failure:
        return (changed, NOTHING, NOTHING, NOTHING, NOTHING, f"failed: {trial.failure}")
    assert verdict is not None
    return (
        changed,
        number(verdict.ratio, 3),
        or_infinite(verdict.candidate_p99_ms),
        or_infinite(verdict.incumbent_p99_ms),
        f"{verdict.wins} of {verdict.rounds}",
        "yes" if trial.kept else "no",
    )


def _final(final: Trial) -> Table:
    rows = tuple(
        (
            str(place),
            number(found.incumbent.products_per_s),
            number(found.candidate.products_per_s),
            number(found.speed_ratio if found.incumbent.products_per_s else None, 3),
            *(or_infinite(turn.p99_with_failures_ms) for turn in (found.incumbent, found.candidate)),
            str(found.incumbent.failed + found.candidate.failed),
        )
        for place, found in enumerate(final.rounds, 1)
    )
    header = ("round", "untuned products/s", "tuned products/s", "tuned / untuned", "untuned p99 ms", "tuned p99 ms")
    return Table(title=f"Tuned against untuned, in alternation: {final.changed}", header=(*header, "failed"), rows=rows)


def _changes(report: TuneReport) -> Table:
    rows = tuple(
        (f"[serving.steps.{step}]", ", ".join(f"{key} = {value}" for key, value in keys.items()))
        for step, keys in report.changes.items()
    )
    return Table(title=_worth(report), header=("section of the recipe", "keys"), rows=rows)


def _worth(report: TuneReport) -> str:
    """Say what the changes are worth."""
    if report.better:
        return "The best settings found"
    compared = report.refused[0] if report.refused else report.final
    if compared is None or compared.failure:
        return "What seemed better, not compared with the untuned settings"
    return "What seemed better, and was not: do not use it"
