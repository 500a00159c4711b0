"""A, B, A, B, ...: whose turn it is, what each turn gave, and why some gave nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import typer
from likeness_client import LikenessError


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one contender reached in one round: figures by the names of their quantities, as far as it has them."""

    contender: str
    number: int
    values: Mapping[str, float]


class Turns:
    """The turns of some contenders, round after round; iterating says whose turn is next: name and round, from 1.

    What was measured stays, whatever happens later. A contender whose turn fails has no other one; no turn follows
    when only one of several contenders is left, or after Ctrl-C.

    Attributes:
        found: what the turns gave, in their order.
        failures: why a contender was left out, by its name.
        interrupted: whether Ctrl-C came.
        remarks: what else stands in the way of believing a contender's turns, by its name: the first such thing.
    """

    def __init__(self, contenders: Iterable[str], rounds: int) -> None:
        self._contenders = tuple(contenders)
        self._rounds = rounds
        self.found: list[Turn] = []
        self.failures: dict[str, str] = {}
        self.interrupted = False
        self.remarks: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for number in range(1, self._rounds + 1):
            for name in self._contenders:
                if self._over():
                    return
                if name not in self.failures:
                    yield name, number

    @contextmanager
    def of(self, name: str, number: int) -> Iterator[None]:
        """Hold one turn: what goes wrong in the block ends that turn, and not the comparison."""
        try:
            yield
        except LikenessError as error:
            self.failures[name] = f"{name} failed in round {number} and had no other turn: {error}"
            typer.echo(self.failures[name], err=True)
        except KeyboardInterrupt:
            self.interrupted = True
            typer.echo("interrupted: reporting what was measured", err=True)

    def add(self, name: str, number: int, values: Mapping[str, float], said: str) -> None:
        """Keep what a turn gave, and say it on stderr."""
        self.found.append(Turn(contender=name, number=number, values=values))
        typer.echo(f"round {number} of {self._rounds}: {name}: {said}", err=True)

    def doubts(self) -> Iterator[str]:
        """Yield why turns are missing, and the remarks."""
        yield from self.failures.values()
        if self.interrupted:
            yield "interrupted: later rounds are missing"
        yield from self.remarks.values()

    def _over(self) -> bool:
        left = len(self._contenders) - len(self.failures)
        return self.interrupted or left < min(2, len(self._contenders))
