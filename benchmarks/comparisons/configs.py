"""What each comparison is told: every field is an option of its command. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from likeness_bench import options
from likeness_bench.load_config import LoadConfig
from likeness_bench.workload import WorkloadConfig
from likeness_client import InputError

from comparisons.environments import ENVIRONMENTS

SPEED = Path("runs/speed")
RunFolder = Annotated[Path, typer.Option(help="The trained run.")]
Repository = Annotated[Path, typer.Option(help="The model repository that was exported from the run.")]
Repositories = Annotated[
    list[Path] | None,
    typer.Option(
        help="A model repository of ours; repeatable, e.g. fp32 and int8.", show_default=f"{SPEED}/repository"
    ),
]
Environments = Annotated[Path, typer.Option(help="Where the other servers are installed; logs, too.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Callers that each wait for their answer.")]
Rounds = Annotated[int, typer.Option(min=1, help="Turns of every contender.")]
TurnS = Annotated[float, typer.Option(min=0.01, help="Measured seconds of a turn.")]
TIMEOUT_S = 60.0
"""Deadline of every request."""
Seed = Annotated[int, typer.Option(min=0, help="Random seed of what is rendered.")]


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """What every comparison of servers under load has."""

    file: options.File
    products: options.Products = 1000
    environments: Environments = ENVIRONMENTS
    rounds: Rounds = 5
    turn_s: TurnS = 20.0
    warm_up_s: options.WarmUpS = 3.0

    def __post_init__(self) -> None:
        # What no load can be is refused before anything is installed or started.
        self.closed_loop(getattr(self, "concurrency", 1), getattr(self, "batch_size", 1))

    def closed_loop(self, concurrency: int, batch_size: int = 1) -> LoadConfig:
        """Return the load of every turn; where the servers are is found out when they are started.

        Raises:
            InputError: there cannot be such a load.
        """
        return LoadConfig(
            address="",
            concurrency=concurrency,
            duration_s=self.turn_s,
            warm_up_s=self.warm_up_s,
            timeout_s=TIMEOUT_S,
            workload=WorkloadConfig(batch_size=batch_size),
        )


@dataclass(frozen=True, kw_only=True)
class InfinityConfig(RoundsConfig):
    """Texts; how many callers send how many of them is no option."""

    repository: Repositories = None


@dataclass(frozen=True, kw_only=True)
class EagerConfig(RoundsConfig):
    """The full pipeline."""

    run: RunFolder = SPEED
    repository: Repository = SPEED / "repository"
    concurrency: Concurrency = 16


@dataclass(frozen=True, kw_only=True)
class MixedConfig(EagerConfig):
    """Mixed traffic."""

    router_instances: Annotated[int, typer.Option(min=1, help="Processes of the BLS router.")] = 4


@dataclass(frozen=True, kw_only=True)
class PerfConfig(RoundsConfig):
    """The load harness itself; products that have all of the signature are sent."""

    signature: Annotated[str, typer.Option(help="The ensemble to load: embed_<signature>.")] = "text"
    repository: Repository = SPEED / "repository"
    concurrency: Concurrency = 16
    batch_size: Annotated[int, typer.Option(min=1, help="Products per request.")] = 1
    libb64: Annotated[Path | None, typer.Option(help="libb64.so.0d, where `apt-get download` is not there.")] = None


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """Blocks of similarities."""

    queries: Annotated[int, typer.Option(min=1, help="Rows of the block.")] = 1000
    candidates: Annotated[int, typer.Option(min=1, help="Columns of the block.")] = 10_000
    dimension: Annotated[
        int, typer.Option(min=1, help="Dimension of the embeddings that are scored at the caller.")
    ] = 256
    repository: Annotated[
        Path | None, typer.Option(help="Also the learned metric, through a server of this; its own dimension.")
    ] = None
    chunk: Annotated[int, typer.Option(min=1, help="Candidates of one learned call, beside all at once.")] = 1000
    environments: Environments = ENVIRONMENTS
    rounds: Rounds = 5
    turn_s: TurnS = 1.0


@dataclass(frozen=True, kw_only=True)
class SizeConfig:
    """Catalogues of different size."""

    repository: Repository = SPEED / "repository"
    sizes: Annotated[str, typer.Option(help="Products of each file, with commas.")] = "1000,10000,100000"
    photos: Annotated[int, typer.Option(min=1, help="Products to render; larger files reuse their photos.")] = 300
    environments: Environments = ENVIRONMENTS
    rounds: Rounds = 1
    seed: Seed = 7


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Starts of servers."""

    repository: Repositories = None
    environments: Environments = ENVIRONMENTS
    rounds: Rounds = 5


@dataclass(frozen=True, kw_only=True)
class StepsConfig:
    """Single decisions."""

    file: options.File
    repository: Repository = SPEED / "repository"
    products: options.Products = 1000
    batch_sizes: Annotated[str, typer.Option(help="Texts of a batch, with commas.")] = "8,32"
    batches: Annotated[int, typer.Option(min=1, help="Batches of texts in a turn.")] = 10
    photo_px: Annotated[str, typer.Option(help="Long sides of photos, with commas.")] = "500,1500,4000"
    photos: Annotated[int, typer.Option(min=1, help="Photos of a batch.")] = 8
    rounds: Rounds = 5
    turn_s: TurnS = 1.0
    seed: Seed = 7


def repositories_of(given: list[Path] | None) -> tuple[Path, ...]:
    """Return the repositories that are given, or the one that is taken where none is.

    Raises:
        InputError: one is given twice.
    """
    found = given or [SPEED / "repository"]
    if len(set(found)) < len(found):
        raise InputError("--repository: give one or more different model repositories")
    return tuple(found)


def numbers_of(text: str, option: str) -> tuple[int, ...]:
    """Read ``1000,10000``, the smallest one first.

    Raises:
        InputError: one is no whole number from 1, or is given twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts) or len(set(map(int, parts))) < len(parts):
        raise InputError(f"{option} {text}: give different whole numbers with commas between, e.g. 1000,10000")
    return tuple(sorted(map(int, parts)))
