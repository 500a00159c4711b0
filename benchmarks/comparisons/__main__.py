"""The command ``python -m comparisons``: one subcommand per comparison. Reports are JSON, with Markdown beside it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from likeness_bench import options
from likeness_bench.files import check_out
from likeness_bench.load_config import LoadConfig
from likeness_bench.workload import WorkloadConfig
from likeness_client import InputError, LikenessError

from comparisons.environments import ENVIRONMENTS
from comparisons.measured import parse_numbers
from comparisons.report import deliver

app = typer.Typer(
    help="Compare with other ways to serve: A, B, A, B ... in one run, medians of the ratios.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals hold whole images
)

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
Seed = Annotated[int, typer.Option(min=0, help="Random seed of what is rendered.")]
Out = Annotated[Path | None, typer.Option(help="Report as .json; .md is written beside it.")]


@app.callback()
def _start() -> None:
    """Compare with other ways to serve: A, B, A, B ... in one run, medians of the ratios."""
    # SIGTERM does what Ctrl-C does: finished turns are reported, and servers stopped. A script's jobs in the background
    # begin with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


@app.command()
def infinity(
    file: options.File,
    repository: Repositories = None,
    environments: Environments = ENVIRONMENTS,
    products: options.Products = 1000,
    rounds: Rounds = 5,
    turn_s: TurnS = 20.0,
    warm_up_s: options.WarmUpS = 3.0,
    out: Out = None,
) -> None:
    """Texts: the `text` signature against infinity-emb on the same weights, 16 clients x 1 and 4 clients x 32."""
    from comparisons.infinity import InfinityConfig, compare_infinity

    check_out(out, file)
    config = InfinityConfig(
        products=file,
        count=products,
        repositories=distinct(repository or [SPEED / "repository"]),
        environments=environments,
        load=closed_loop(turn_s, warm_up_s),
        rounds=rounds,
    )
    deliver(compare_infinity(config), out)


@app.command()
def eager(
    file: options.File,
    run: RunFolder = SPEED,
    repository: Repository = SPEED / "repository",
    environments: Environments = ENVIRONMENTS,
    products: options.Products = 1000,
    concurrency: Concurrency = 16,
    rounds: Rounds = 5,
    turn_s: TurnS = 20.0,
    warm_up_s: options.WarmUpS = 3.0,
    out: Out = None,
) -> None:
    """The full pipeline: Triton against a FastAPI service with eager torch, one product per request."""
    from comparisons.eager import EagerConfig, compare_eager

    check_out(out, file)
    config = EagerConfig(
        products=file,
        count=products,
        run=run,
        repository=repository,
        environments=environments,
        load=closed_loop(turn_s, warm_up_s, concurrency),
        rounds=rounds,
    )
    deliver(compare_eager(config), out)


@app.command()
def mixed(
    file: options.File,
    run: RunFolder = SPEED,
    repository: Repository = SPEED / "repository",
    environments: Environments = ENVIRONMENTS,
    products: options.Products = 1000,
    concurrency: Concurrency = 16,
    router_instances: Annotated[int, typer.Option(min=1, help="Processes of the BLS router.")] = 4,
    rounds: Rounds = 5,
    turn_s: TurnS = 20.0,
    warm_up_s: options.WarmUpS = 3.0,
    out: Out = None,
) -> None:
    """Half full, a quarter text, a quarter image: signature ensembles, one ensemble with a mask, a BLS router."""
    from comparisons.mixed_traffic.comparison import MixedConfig, compare_mixed

    check_out(out, file)
    config = MixedConfig(
        products=file,
        count=products,
        run=run,
        repository=repository,
        environments=environments,
        router_instances=router_instances,
        load=closed_loop(turn_s, warm_up_s, concurrency),
        rounds=rounds,
    )
    deliver(compare_mixed(config), out)


@app.command()
def perf_analyzer(
    file: options.File,
    signature: Annotated[str, typer.Option(help="The ensemble to load: embed_<signature>.")] = "text",
    repository: Repository = SPEED / "repository",
    environments: Environments = ENVIRONMENTS,
    products: options.Products = 1000,
    concurrency: Concurrency = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Products per request.")] = 1,
    rounds: Rounds = 5,
    turn_s: TurnS = 20.0,
    warm_up_s: options.WarmUpS = 3.0,
    libb64: Annotated[Path | None, typer.Option(help="libb64.so.0d, where `apt-get download` is not there.")] = None,
    out: Out = None,
) -> None:
    """The load harness itself: `likeness bench load --concurrency` against NVIDIA's perf_analyzer."""
    from comparisons.perf_analyzer import PerfConfig, compare_perf_analyzer

    check_out(out, file)
    config = PerfConfig(
        products=file,
        count=products,
        signature=signature,
        repository=repository,
        environments=environments,
        libb64=libb64,
        load=closed_loop(turn_s, warm_up_s, concurrency, batch_size),
        rounds=rounds,
    )
    deliver(compare_perf_analyzer(config), out)


@app.command()
def blocks(
    queries: Annotated[int, typer.Option(min=1, help="Rows of the block.")] = 1000,
    candidates: Annotated[int, typer.Option(min=1, help="Columns of the block.")] = 10_000,
    dimension: Annotated[
        int, typer.Option(min=1, help="Dimension of the embeddings that are scored at the caller.")
    ] = 256,
    repository: Annotated[
        Path | None, typer.Option(help="Also the learned metric, through a server of this; its own dimension.")
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Candidates of one learned call, beside all at once.")] = 1000,
    environments: Environments = ENVIRONMENTS,
    rounds: Rounds = 5,
    turn_s: TurnS = 1.0,
    out: Out = None,
) -> None:
    """Scores of a block of embeddings: the client against a bare matrix product, and the learned metric, served."""
    from comparisons.blocks import BlocksConfig, compare_blocks

    check_out(out)
    config = BlocksConfig(
        queries=queries,
        candidates=candidates,
        dimension=dimension,
        rounds=rounds,
        turn_s=turn_s,
        repository=repository,
        chunk=chunk,
        environments=environments,
    )
    deliver(compare_blocks(config), out)


@app.command()
def size(
    repository: Repository = SPEED / "repository",
    sizes: Annotated[str, typer.Option(help="Products of each file, with commas.")] = "1000,10000,100000",
    photos: Annotated[int, typer.Option(min=1, help="Products to render; larger files reuse their photos.")] = 300,
    environments: Environments = ENVIRONMENTS,
    rounds: Rounds = 1,
    seed: Seed = 7,
    out: Out = None,
) -> None:
    """What the size of a catalogue costs: `likeness embed` on files of different length, rate and memory."""
    from comparisons.size import SizeConfig, compare_sizes

    check_out(out)
    config = SizeConfig(
        sizes=parse_numbers(sizes, "--sizes"),
        repository=repository,
        photos=photos,
        rounds=rounds,
        seed=seed,
        environments=environments,
    )
    deliver(compare_sizes(config), out)


@app.command()
def start(
    repository: Repositories = None,
    environments: Environments = ENVIRONMENTS,
    rounds: Rounds = 5,
    out: Out = None,
) -> None:
    """Seconds from the start of `likeness serve`, and of its tritonserver alone, until all models are ready."""
    from comparisons.start import StartConfig, compare_starts

    check_out(out)
    repositories = distinct(repository or [SPEED / "repository"])
    config = StartConfig(repositories=repositories, rounds=rounds, environments=environments)
    deliver(compare_starts(config), out)


@app.command()
def steps(
    file: options.File,
    repository: Repository = SPEED / "repository",
    products: options.Products = 1000,
    batch_sizes: Annotated[str, typer.Option(help="Texts of a batch, with commas.")] = "8,32",
    batches: Annotated[int, typer.Option(min=1, help="Batches of texts in a turn.")] = 10,
    photo_px: Annotated[str, typer.Option(help="Long sides of photos, with commas.")] = "500,1500,4000",
    photos: Annotated[int, typer.Option(min=1, help="Photos of a batch.")] = 8,
    rounds: Rounds = 5,
    turn_s: TurnS = 1.0,
    seed: Seed = 7,
    out: Out = None,
) -> None:
    """What single decisions gain, without a server: grouping texts by length, decoding photos reduced, on all cores."""
    from comparisons.steps import StepsConfig, compare_steps

    check_out(out, file)
    config = StepsConfig(
        products=file,
        count=products,
        repository=repository,
        batch_sizes=parse_numbers(batch_sizes, "--batch-sizes"),
        batches=batches,
        photo_px=parse_numbers(photo_px, "--photo-px"),
        photos=photos,
        rounds=rounds,
        turn_s=turn_s,
        seed=seed,
    )
    deliver(compare_steps(config), out)


def closed_loop(turn_s: float, warm_up_s: float, concurrency: int = 16, batch_size: int = 1) -> LoadConfig:
    """Return the load of every turn; where the servers are is found out when they are started."""
    return LoadConfig(
        address="",
        concurrency=concurrency,
        duration_s=turn_s,
        warm_up_s=warm_up_s,
        timeout_s=60.0,
        workload=WorkloadConfig(batch_size=batch_size),
    )


def distinct(repositories: Sequence[Path]) -> tuple[Path, ...]:
    """Return the repositories that are given.

    Raises:
        InputError: one is given twice.
    """
    if len(set(repositories)) < len(repositories):
        raise InputError("--repository: give one or more different model repositories")
    return tuple(repositories)


def main() -> None:
    """Run the command; every error of this project becomes one line on stderr and exit code 1."""
    try:
        app()
    except LikenessError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
