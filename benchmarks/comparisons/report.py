"""What a comparison found, as data, as tables, and on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]  # ships no type information
import typer
from likeness_bench import processes
from likeness_bench.files import write_json, write_text
from likeness_bench.tables import Table, markdown, number, print_tables

from comparisons.rounds import Progress, Ratio, Round, RoundsConfig, ratio

FORMAT = "likeness-comparison-1"
BUSY = "cores busy before"
BUSY_CORES = 0.3
"""From so many on, something else ran when the comparison began (a load average counts what has ended, too)."""
LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that hold some servers back, and others not."""


ENOUGH = 5
"""So many rounds a median should have."""


class Section(Protocol):
    """One part of a comparison: what was measured in one way."""

    @property
    def title(self) -> str:
        """What was measured."""

    @property
    def ratios(self) -> Sequence[Any]:
        """Who is compared with whom: dataclasses."""

    def tables(self) -> Iterator[Table]:
        """Yield the figures."""

    def doubts(self) -> Iterator[str]:
        """Yield what stands in the way of believing them."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One kind of load, and what all contenders made of it.

    Attributes:
        title: what was sent, and by how many.
        config: how it was measured.
        rounds: every turn of every contender, as they came.
        pairs: who is compared with whom: the name above the line, the one below it.
    """

    title: str
    config: RoundsConfig
    rounds: tuple[Round, ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def ratios(self) -> list[Ratio]:
        """One ratio per pair."""
        return [ratio(self.rounds, ours, theirs) for ours, theirs in self.pairs]

    def tables(self) -> Iterator[Table]:
        """Yield speeds and latencies, then the ratios."""
        names = list(dict.fromkeys(found.contender for found in self.rounds))
        header = ("", "products/s", "lowest", "highest", "p50 ms", "p99 ms", "client cores", "requests", "failed")
        rows = tuple(_row(name, [found for found in self.rounds if found.contender == name]) for name in names)
        yield Table(title=f"{self.title} (medians of {self.config.rounds} rounds)", header=header, rows=rows)
        ratios = tuple(
            (
                f"{found.ours} / {found.theirs}",
                number(found.median, 2),
                number(found.lowest, 2),
                number(found.highest, 2),
                str(found.rounds),
            )
            for found in self.ratios
        )
        heads = ("", "median", "lowest", "highest", "rounds")
        yield Table(title=f"{self.title}: ratio of products/s", header=heads, rows=ratios)

    def doubts(self) -> Iterator[str]:
        """Yield what stands in the way of believing it."""
        failed = {found.contender: found for found in reversed(self.rounds) if found.failures}
        for name, found in failed.items():
            yield f"{self.title}: requests of {name} failed, the first one said: {found.example}"
        if self.config.rounds < ENOUGH:
            yield f"{self.title}: {self.config.rounds} rounds; make at least {ENOUGH}"
        if any((found.harness_cores or 0) > 0.9 for found in self.rounds):
            yield f"{self.title}: the measuring process used a whole core: it may be the limit, not the server"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A whole comparison.

    Attributes:
        title: of the report.
        settings: what was measured, part by part.
        facts: what was compared: versions, weights, products.
        notes: what to know before the figures are believed.
        made_at: when the report was made, ISO 8601 in UTC.
    """

    title: str
    settings: tuple[Section, ...]
    facts: Mapping[str, str]
    notes: tuple[str, ...] = ()
    made_at: str = field(default_factory=_now)


def machine() -> dict[str, str]:
    """Describe this machine, and how busy it is now."""
    found = processes.machine()
    busy = psutil.cpu_percent(interval=0.5) / 100 * int(found["cores"])
    return found | {BUSY: f"{busy:.2f}"} | {name: os.environ[name] for name in LIMITS if name in os.environ}


def announced(rounds: int) -> Progress:
    """Return a progress that says each turn on stderr when it is over."""

    def tell(found: Round) -> None:
        failed = f", {found.failures} failed ({found.example})" if found.failures else ""
        line = f"round {found.number} of {rounds}: {found.contender} {found.products_per_s:.1f} products/s{failed}"
        typer.echo(line, err=True)

    return tell


def tables(comparison: Comparison) -> list[Table]:
    """Return the tables of a comparison: those of every setting, then the facts."""
    facts = Table(title="Compared", header=("", ""), rows=tuple(comparison.facts.items()))
    return [*(table for setting in comparison.settings for table in setting.tables()), facts]


def notes(comparison: Comparison) -> list[str]:
    """Return what stands in the way of believing a comparison."""
    return [*_doubts(comparison), *comparison.notes]


def deliver(comparison: Comparison, out: Path | None) -> None:
    """Print a comparison; with ``out``, first write it as JSON there, and as Markdown beside it.

    Raises:
        InputError: a file cannot be written.
    """
    shown, said = tables(comparison), notes(comparison)
    if out:
        ratios = {setting.title: [asdict(found) for found in setting.ratios] for setting in comparison.settings}
        write_json(out, {"format": FORMAT, **asdict(comparison), "notes": said, "ratios": ratios})
        title = f"{comparison.title} ({comparison.made_at})"
        write_text(out.with_suffix(".md"), markdown(title, shown, said))
    print_tables(shown, said)


def _row(name: str, rounds: Sequence[Round]) -> tuple[str, ...]:
    speeds = [found.products_per_s for found in rounds]
    return (
        name,
        number(median(speeds)),
        number(min(speeds)),
        number(max(speeds)),
        number(_median([found.p50_ms for found in rounds])),
        number(_median([found.p99_ms for found in rounds])),
        number(_median([found.harness_cores for found in rounds]), 2),
        str(sum(found.requests for found in rounds)),
        str(sum(found.failures for found in rounds)),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _doubts(comparison: Comparison) -> Iterator[str]:
    busy = comparison.facts.get(BUSY, "0")
    if float(busy) > BUSY_CORES:
        yield f"{busy} cores were busy when the comparison began: something else ran, figures are indicative only"
    for name in LIMITS:
        if name in comparison.facts:
            yield f"{name} was {comparison.facts[name]}: that holds back torch, but not our server; unset it"
    for setting in comparison.settings:
        yield from setting.doubts()
