"""What a tuning is told: every field is an option of the command. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from likeness_client import InputError

from likeness_bench import options
from likeness_bench.load_config import LoadConfig
from likeness_bench.option_groups import Asked

FINAL_ROUNDS = 7
"""Of a last comparison, which decides whether anything is written."""
_FEWEST_TRIALS = 2  # what a budget must hold, or nothing would be found out
_CALLERS_PER_CORE = 4  # enough for all cores to have work while answers travel
_WARM_UP = 0.25  # of a turn, before its measured time


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How to tune. No trial begins that would leave no time for the final comparison.

    Raises:
        InputError: a number is out of range, or the budget does not hold the final comparison and two trials.
    """

    signature: options.Mix = None
    batch_size: options.BatchSize = None
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Callers that await answers; default: four for every core.")
    ] = None
    target_ms: options.TargetMs = 100.0
    budget_s: Annotated[float, typer.Option(min=0.0, help="How long all of it may take.")] = 900.0
    turn_s: Annotated[float, typer.Option(min=0.1, help="Measured time of a turn; a round has two.")] = 4.0
    rounds: Annotated[int, typer.Option(min=1, help="Alternations of a candidate with the best so far.")] = 5
    timeout_s: options.TimeoutS = 10.0
    seed: options.Seed = 7

    def __post_init__(self) -> None:
        if not 0 < self.target_ms < float("inf"):
            raise InputError(f"--target-ms {self.target_ms:g}: give a number above 0")
        if self.budget_s == float("inf"):
            raise InputError("--budget-s inf: a report cannot hold it; give seconds")
        turns = 2 + 2 * _FEWEST_TRIALS * (self.rounds + 1) + 2 * (FINAL_ROUNDS + 1)
        if not self.budget_s >= turns * self.load.length_s:  # NaN neither
            raise InputError(
                f"--budget-s {self.budget_s:g} does not hold {_FEWEST_TRIALS} trials and the final comparison, "
                f"{turns * self.load.length_s:.0f} s of load: give more, or a shorter --turn-s"
            )

    @property
    def load(self) -> LoadConfig:
        """A turn: a closed loop; each trial has an address of its own."""
        from joblib import cpu_count

        return LoadConfig(
            address="",
            concurrency=self.concurrency or _CALLERS_PER_CORE * cpu_count(),
            duration_s=self.turn_s,
            warm_up_s=_WARM_UP * self.turn_s,
            timeout_s=self.timeout_s,
            workload=Asked(batch_size=self.batch_size, signature=self.signature).workload(self.seed),
        )
