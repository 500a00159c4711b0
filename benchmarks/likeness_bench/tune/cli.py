"""The command ``tune``. Imports nothing heavy before it runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likeness_bench import options
from likeness_bench.option_groups import with_groups
from likeness_bench.sources import SourceConfig, read_sources
from likeness_bench.tune.config import TuneConfig
from likeness_bench.view import View

if TYPE_CHECKING:
    from likeness_bench.tune.report import TuneReport
    from likeness_bench.tune.settings import Settings

tune_app = typer.Typer()


@tune_app.command()
@with_groups
def tune(
    *,
    repository: Annotated[
        Path, typer.Argument(help="A model repository of `likeness export`.", exists=True, file_okay=False)
    ],
    file: options.File,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe file that takes the result, too.", exists=True, dir_okay=False)
    ] = None,
    config: TuneConfig,
    products: options.Products = 1000,
    out: options.Out = None,
) -> None:
    """Find instances, threads, batch sizes and queue delays of every step; write them where they are better.

    Candidates are served beside the best so far, and compared with it in alternation. The result is written into the
    repository's configurations (and RECIPE) only if it beats the untuned ones in the end. Ctrl-C: a report, no changes.
    """
    from likeness_bench.files import check_out
    from likeness_bench.output import deliver, signed
    from likeness_bench.running import run_shown
    from likeness_bench.tune.tables import tune_name, tune_notes, tune_tables
    from likeness_bench.tune.target import read_target
    from likeness_bench.tune.tuning import run_tune
    from likeness_bench.tune.writing import write_result

    check_out(out, file)
    target = read_target(repository, recipe)
    source = SourceConfig(file=file, count=products, seed=config.seed)
    chosen = [product for product, _ in read_sources(source)]

    async def work(stop: asyncio.Event, view: View) -> tuple[TuneReport, Settings]:
        report, settings = await run_tune(chosen, target, config, stop=stop, view=view)
        if stop.is_set():  # also while the last servers were stopped
            report = replace(report, better=False, ended="interrupted", complete=False)
        return report, settings

    report, settings = run_shown("tune", work)
    report = signed(report, source)
    try:
        if report.better:
            report = replace(report, written=tuple(map(str, write_result(target, settings))))
    finally:  # what was found is told even where it cannot be written
        deliver(report, out, tune_name(report), tune_tables(report), tune_notes(report))
    if not report.measured:
        raise typer.Exit(1)
