"""The search: knob by knob from a first guess; what is clearly better takes the incumbent's place. No I/O."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from likeness_bench.tune.candidates import Knob, Plan, first_guesses
from likeness_bench.tune.judge import Round, Verdict, judge
from likeness_bench.tune.settings import Changes, Settings, changes, in_words

GUESS = "first guess"
"""Why the first settings are tried; the others are tried because of a knob."""


@dataclass(frozen=True, kw_only=True)
class CandidateRounds:
    """What became of a candidate beside the incumbent.

    Attributes:
        rounds: the alternations that were finished.
        failure: why it could not be measured to the end, e.g. that its server did not start; empty when it could.
    """

    rounds: tuple[Round, ...] = ()
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate that was tried.

    Attributes:
        why: the knob that it turned, or `GUESS`.
        changed: what it changed in the incumbent of that time, in words.
        changes: the same as data, with the new values.
        verdict: what the rounds said; None when there were none.
        failure: why it could not be measured; empty when it could.
        kept: whether it took the incumbent's place.
        rounds: the alternations.
    """

    why: str
    changed: str
    changes: Changes
    verdict: Verdict | None
    failure: str
    kept: bool
    rounds: tuple[Round, ...]

    @classmethod
    def of(cls, why: str, pair: tuple[Settings, Settings], plan: Plan, found: CandidateRounds) -> Trial:
        """Judge a candidate, the second of the pair, by its comparison with the first."""
        verdict = judge(found.rounds, plan.target_ms) if found.rounds else None
        return cls(
            why=str(why),
            changed=in_words(*pair, plan.keys),
            changes=changes(*pair, plan.keys),
            verdict=verdict,
            failure=found.failure,
            kept=verdict is not None and verdict.better and not found.failure,
            rounds=found.rounds,
        )


Compare: TypeAlias = Callable[[Settings, Settings, str], Awaitable[CandidateRounds | None]]
"""Measures (incumbent, candidate, what it is in words); None when it was interrupted: that decides nothing."""
Over: TypeAlias = Callable[[], str]
"""Says why nothing more can be tried; empty while something can."""


@dataclass
class Search:
    """A search and what it has found so far.

    Attributes:
        plan: what may be changed.
        incumbent: the best settings so far.
        compare: measures two settings.
        over: is asked before every trial.
        trials: what was tried, in order.
        accepted: the settings that became the best so far, in order; the last ones are the incumbent.
        ended: why the search ended early; empty: nothing was left to try.
    """

    plan: Plan
    incumbent: Settings
    compare: Compare
    over: Over
    trials: list[Trial] = field(default_factory=list)
    accepted: list[Settings] = field(default_factory=list)
    ended: str = ""

    def __post_init__(self) -> None:
        self._tried = {self.incumbent}

    async def run(self) -> Settings:
        """Search until nothing is left that could be better, or `over` says so; return the best settings."""
        for guess in first_guesses(self.plan, self.incumbent):
            if await self._try(guess, GUESS):
                break  # the others are tamer forms of it
        before = None
        while self.incumbent != before and not self.ended:
            before = self.incumbent  # what was changed may make room for what was refused before
            for knob in Knob:
                for step in self.plan.steps:
                    await self._climb(knob, step)
        return self.incumbent

    async def _climb(self, knob: Knob, step: str) -> None:
        """Turn one knob as long as that makes it better."""
        moved = True
        while moved and not self.ended:
            moved = False
            for candidate in self.plan.alternatives(knob, step, self.incumbent):
                if await self._try(candidate, knob):
                    moved = True
                    break
                if self.ended:
                    return

    async def _try(self, candidate: Settings, why: str) -> bool:
        """Try settings unless that was done before; say whether they are the incumbent now."""
        if candidate in self._tried or self.ended:
            return False
        if reason := self.over():
            self.ended = reason
            return False
        self._tried.add(candidate)
        before = self.incumbent
        changed = in_words(before, candidate, self.plan.keys)
        found = await self.compare(before, candidate, f"trial {len(self.trials) + 1}: {changed}")
        if found is None:
            self.ended = self.over() or "interrupted"
            return False
        trial = Trial.of(why, (before, candidate), self.plan, found)
        self.trials.append(trial)
        if trial.kept:
            self.incumbent = candidate
            self.accepted.append(candidate)
        return trial.kept
