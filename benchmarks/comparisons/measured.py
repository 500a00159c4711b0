"""Figures of any kind, taken in turns: every contender in every round, compared within the round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from likeness_bench.tables import NOTHING, Table, counted, number
from likeness_client import LikenessError

from comparisons.turns import Turn, Turns

ENOUGH = 5
"""A median should have at least this many rounds."""
Take = Callable[[int], Mapping[str, float]]
"""Takes the figures of one contender in the round of this number, from 1."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One figure.

    Attributes:
        name: as it is read in tables, with its unit.
        digits: behind the point.
        higher_is_better: which end of it is the favourable one.
        compared: whether contenders are compared by it; its extremes are shown, too.
    """

    name: str
    digits: int = 1
    higher_is_better: bool = False
    compared: bool = False

    def favour(self, values: Sequence[float]) -> tuple[float, float]:
        """Return the least and the most favourable of some values."""
        worst, best = (min, max) if self.higher_is_better else (max, min)
        return worst(values), best(values)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One quantity of a contender as a multiple of another one's, taken within rounds.

    Attributes:
        quantity: which one.
        ours: the contender above the line.
        theirs: the contender below it.
        median: of the ratios of the rounds.
        least_favourable: the worst round for ``ours``.
        most_favourable: its best one.
        rounds: how many ratios there are.
    """

    quantity: str
    ours: str
    theirs: str
    median: float
    least_favourable: float
    most_favourable: float
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Turns of contenders that were measured side by side; a section of a report.

    Attributes:
        title: what was measured.
        quantities: the figures that every turn has.
        turns: as they came.
        pairs: who is compared with whom: the name above the line, the one below it.
        notes: what else stands in the way of believing them.
        failed: whether a contender failed, so that turns of it are missing.
        interrupted: whether Ctrl-C came, so that later rounds are missing.
    """

    title: str
    quantities: tuple[Quantity, ...]
    turns: tuple[Turn, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    failed: bool = False
    interrupted: bool = False

    @classmethod
    def of(
        cls,
        title: str,
        turns: Turns,
        quantities: tuple[Quantity, ...],
        pairs: tuple[tuple[str, str], ...],
        notes: Iterable[str] = (),
    ) -> Measurement:
        """Return what turns gave, with what is to be said of them and these notes."""
        return cls(
            title=title,
            quantities=quantities,
            turns=tuple(turns.found),
            pairs=pairs,
            notes=(*turns.doubts(), *notes),
            failed=bool(turns.failures),
            interrupted=turns.interrupted,
        )

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return len({turn.number for turn in self.turns})

    @property
    def ratios(self) -> list[Compared]:
        """One per pair that has a round in common, and quantity that is compared."""
        compared = [(quantity, *pair) for quantity in self.quantities if quantity.compared for pair in self.pairs]
        return [_compared(*one, found) for one in compared if (found := self._ratios(*one))]

    def tables(self) -> Iterator[Table]:
        """Yield the figures of every contender, then the ratios."""
        names = list(dict.fromkeys(turn.contender for turn in self.turns))
        header = ["", *(head for quantity in self.quantities for head in _heads(quantity))]
        rows = tuple((name, *self._cells(name)) for name in names)
        title = f"{self.title} (medians of {counted(self.rounds, 'round')})"
        yield Table(title=title, header=tuple(header), rows=rows)
        if ratios := tuple(_row(found) for found in self.ratios):
            header = ["", "of", "median", "least favourable", "most favourable", "rounds"]
            yield Table(title=f"{self.title}: ratios", header=tuple(header), rows=ratios)

    def doubts(self) -> Iterator[str]:
        """Yield what stands in the way of believing it."""
        if self.rounds < ENOUGH:
            yield f"{self.title}: too few rounds, {self.rounds}; make at least {ENOUGH}"
        yield from (f"{self.title}: {note}" for note in self.notes)

    def median(self, contender: str, quantity: Quantity) -> float:
        """Return the median of one figure over the rounds."""
        return median(self._values(contender, quantity))

    def _ratios(self, quantity: Quantity, ours: str, theirs: str) -> list[float]:
        taken = {(turn.contender, turn.number): turn.values[quantity.name] for turn in self.turns}
        numbers = sorted({number for name, number in taken if name == ours and taken.get((theirs, number))})
        return [taken[ours, number] / taken[theirs, number] for number in numbers]

    def _values(self, contender: str, quantity: Quantity) -> list[float]:
        mine = (turn.values for turn in self.turns if turn.contender == contender)
        return [values[quantity.name] for values in mine if quantity.name in values]

    def _cells(self, contender: str) -> Iterator[str]:
        for quantity in self.quantities:
            values = self._values(contender, quantity)
            found = [median(values), *(quantity.favour(values) if quantity.compared else ())] if values else []
            shown = [number(value, quantity.digits) for value in found]
            yield from shown or [NOTHING] * len(_heads(quantity))


def measure(
    title: str,
    contenders: Mapping[str, Take],
    rounds: int,
    quantities: tuple[Quantity, ...],
    pairs: tuple[tuple[str, str], ...] = (),
) -> Measurement:
    """Measure all contenders in turn, round after round: A, B, A, B, ...; say the first figure of each on stderr.

    Args:
        title: of the section.
        contenders: what takes the figures of each, by name.
        rounds: how often each has its turn.
        quantities: what every one of them takes; the first one is said.
        pairs: who is compared with whom.
    """
    turns, first = Turns(contenders, rounds), quantities[0]
    for name, round_number in turns:
        with turns.of(name, round_number):
            values = contenders[name](round_number)
            turns.add(name, round_number, values, f"{number(values[first.name], first.digits)} {first.name}")
    return Measurement.of(title, turns, quantities, pairs)


def measure_all(planned: Iterable[Callable[[], Measurement]]) -> list[Measurement]:
    """Measure sections one after the other; what goes wrong in one, or Ctrl-C, ends them and costs none before it.

    Raises:
        LikenessError: the first section cannot be measured.
    """
    sections: list[Measurement] = []
    for section in planned:
        try:
            sections.append(section())
        except (LikenessError, KeyboardInterrupt) as error:
            if not sections:
                raise
            stopped = isinstance(error, KeyboardInterrupt)
            note = f"what was to follow is missing: {'interrupted' if stopped else error}"
            last = sections[-1]
            sections[-1] = replace(
                last, notes=(*last.notes, note), failed=last.failed or not stopped, interrupted=stopped
            )
            break
        if sections[-1].interrupted:
            break
    return sections


def per_call_s(work: Callable[[], object], turn_s: float) -> float:
    """Call something for some time, after one call that does not count.

    Returns:
        The median time of a call in seconds.
    """
    work()
    taken: list[float] = []
    ends = time.perf_counter() + turn_s
    while not taken or time.perf_counter() < ends:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)


def _compared(quantity: Quantity, ours: str, theirs: str, ratios: Sequence[float]) -> Compared:
    worst, best = quantity.favour(ratios)
    return Compared(
        quantity=quantity.name,
        ours=ours,
        theirs=theirs,
        median=median(ratios),
        least_favourable=worst,
        most_favourable=best,
        rounds=len(ratios),
    )


def _heads(quantity: Quantity) -> tuple[str, ...]:
    return (quantity.name, "least favourable", "most favourable") if quantity.compared else (quantity.name,)


def _row(found: Compared) -> tuple[str, ...]:
    figures = (found.median, found.least_favourable, found.most_favourable)
    shown = (number(figure, 2) for figure in figures)
    return (f"{found.ours} / {found.theirs}", found.quantity, *shown, str(found.rounds))
