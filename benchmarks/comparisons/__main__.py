"""The command ``python -m comparisons``: one subcommand per comparison. Reports are JSON, with Markdown beside it."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Annotated

import typer
from likeness_bench.files import check_out
from likeness_bench.option_groups import with_groups
from likeness_client import LikenessError

from comparisons.configs import (
    BlocksConfig,
    EagerConfig,
    InfinityConfig,
    MixedConfig,
    PerfConfig,
    SizeConfig,
    StartConfig,
    StepsConfig,
)
from comparisons.report import deliver

app = typer.Typer(
    help="Compare with other ways to serve: A, B, A, B ... in one run, medians of the ratios.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals hold whole images
)
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
@with_groups
def infinity(*, config: InfinityConfig, out: Out = None) -> None:
    """Texts: the `text` signature against infinity-emb on the same weights, 16 clients x 1 and 4 clients x 32."""
    from comparisons.infinity import compare_infinity

    check_out(out, config.file)
    deliver(compare_infinity(config), out)


@app.command()
@with_groups
def eager(*, config: EagerConfig, out: Out = None) -> None:
    """The full pipeline: Triton against a FastAPI service with eager torch, one product per request."""
    from comparisons.eager import compare_eager

    check_out(out, config.file)
    deliver(compare_eager(config), out)


@app.command()
@with_groups
def mixed(*, config: MixedConfig, out: Out = None) -> None:
    """Half full, a quarter text, a quarter image: signature ensembles, one ensemble with a mask, a BLS router."""
    from comparisons.mixed_traffic.comparison import compare_mixed

    check_out(out, config.file)
    deliver(compare_mixed(config), out)


@app.command()
@with_groups
def perf_analyzer(*, config: PerfConfig, out: Out = None) -> None:
    """The load harness itself: `likeness bench load --concurrency` against NVIDIA's perf_analyzer."""
    from comparisons.perf_analyzer import compare_perf_analyzer

    check_out(out, config.file)
    deliver(compare_perf_analyzer(config), out)


@app.command()
@with_groups
def blocks(*, config: BlocksConfig, out: Out = None) -> None:
    """Scores of a block of embeddings: the client against a bare matrix product, and the learned metric, served."""
    from comparisons.blocks import compare_blocks

    check_out(out)
    deliver(compare_blocks(config), out)


@app.command()
@with_groups
def size(*, config: SizeConfig, out: Out = None) -> None:
    """What the size of a catalogue costs: `likeness embed` on files of different length, rate and memory."""
    from comparisons.size import compare_sizes

    check_out(out)
    deliver(compare_sizes(config), out)


@app.command()
@with_groups
def start(*, config: StartConfig, out: Out = None) -> None:
    """Seconds from the start of `likeness serve`, and of its tritonserver alone, until all models are ready."""
    from comparisons.start import compare_starts

    check_out(out)
    deliver(compare_starts(config), out)


@app.command()
@with_groups
def steps(*, config: StepsConfig, out: Out = None) -> None:
    """What single decisions gain, without a server: grouping texts by length, decoding photos reduced, on all cores."""
    from comparisons.steps import compare_steps

    check_out(out, config.file)
    deliver(compare_steps(config), out)


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
