"""How every step of a pipeline is executed: one point of what is searched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from likeness_export.serving_section import ServingSection, StepSettings

Changes = Mapping[str, Mapping[str, Any]]
"""Step -> key of ``[serving.steps.<step>]`` -> its value, plain data."""
KeysOf = Mapping[str, tuple[str, ...]]
"""Step -> the keys that mean something for it."""
_NAMED = 3


@dataclass(frozen=True)
class Settings:
    """What holds for each step; hashable, so that nothing is tried twice.

    Attributes:
        steps: pairs of step and settings, in the order of the pipeline.
    """

    steps: tuple[tuple[str, StepSettings], ...]

    @classmethod
    def of(cls, serving: ServingSection, steps: Iterable[str]) -> Settings:
        """Read what a recipe says of these steps."""
        return cls(tuple((name, serving.of(name)) for name in steps))

    def __getitem__(self, step: str) -> StepSettings:
        return dict(self.steps)[step]

    def changed(self, step: str, **keys: Any) -> Settings:
        """Return these settings with other keys of one step."""
        return Settings(tuple((name, replace(held, **keys) if name == step else held) for name, held in self.steps))


def changes(before: Settings, after: Settings, keys: KeysOf) -> dict[str, dict[str, Any]]:
    """Return what has to be written to come from one to the other."""
    found: dict[str, dict[str, Any]] = {}
    for name, held in after.steps:
        earlier = before[name]
        new = {key: getattr(held, key) for key in keys[name] if getattr(held, key) != getattr(earlier, key)}
        if new:
            found[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in new.items()}
    return found


def in_words(before: Settings, after: Settings, keys: KeysOf) -> str:
    """Return the differences as they are read: steps that change alike together, and not all of many by name."""
    alike: dict[str, list[str]] = {}
    for step, new in changes(before, after, keys).items():
        words = ", ".join(
            f"{key} {_shown(getattr(before[step], key))} -> {_shown(value)}" for key, value in new.items()
        )
        alike.setdefault(words, []).append(step)
    return "; ".join(f"{_names(steps)}: {words}" for words, steps in alike.items())


def _names(steps: Sequence[str]) -> str:
    if len(steps) <= _NAMED:
        return ", ".join(steps)
    return f"{', '.join(steps[: _NAMED - 1])} and {len(steps) - _NAMED + 1} other steps"


def _shown(value: Any) -> str:
    return ("+".join(map(str, value)) or "any") if isinstance(value, list | tuple) else str(value)
