"""The commands ``bench`` and ``tune``. Imports nothing heavy before a command runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from likeness_client import Metric, Product

from likeness_bench import options
from likeness_bench.arrivals import Arrivals
from likeness_bench.drive import LoadConfig
from likeness_bench.options import needs_extra, parse_cases, parse_mix, parse_sizes, source_of
from likeness_bench.sources import SourceConfig, read_sources, varied
from likeness_bench.tune.cli import tune_app
from likeness_bench.workload import AS_THEY_ARE, OperationKind, WorkloadConfig

if TYPE_CHECKING:
    from likeness_bench.ceiling_report import CeilingReport
    from likeness_bench.figures import LoadReport
    from likeness_bench.sweep import SweepReport

app = typer.Typer()
_bench = typer.Typer(help="Load a running server and report what it did.", no_args_is_help=True)
app.add_typer(_bench, name="bench")
app.add_typer(tune_app)


@_bench.callback()
def _main() -> None:
    """Load a running server and report what it did."""


@_bench.command()
def load(
    file: options.AnyFile = None,
    server: options.Server = "localhost:8001",
    rate: Annotated[float | None, typer.Option(help="Open loop: requests/s, sent by schedule.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Closed loop: callers that await answers.")] = None,
    arrivals: options.Spread = Arrivals.POISSON,
    duration_s: options.DurationS = 30.0,
    warm_up_s: options.WarmUpS = 5.0,
    timeout_s: options.TimeoutS = 10.0,
    operation: options.Operation = OperationKind.EMBED,
    batch_size: options.BatchSize = None,
    signature: options.Mix = None,
    repeat_share: options.RepeatShare = 0.0,
    metric: options.OfMetric = Metric.COSINE,
    label: options.Label = "",
    split: options.Split = "val",
    seed: options.Seed = 7,
    products: options.Products = 1000,
    rendered: options.Rendered = 0,
    text_words: options.TextWords = "",
    image_px: options.ImagePx = "",
    out: options.Out = None,
) -> None:
    """Make a load for some time; report throughput, latency, errors, and where the time went in the server.

    With a label also how good the server's embeddings are, measured before the load.

    Failed requests are part of the report; only when none was answered does it exit with 1.
    """
    with needs_extra():
        from likeness_bench.files import check_out
        from likeness_bench.load import prepare, run_load
        from likeness_bench.output import deliver_load
        from likeness_bench.processes import machine
        from likeness_bench.recall import LabelConfig, labelled, served_recalls
        from likeness_bench.running import live_view, run_until_interrupted
    config = LoadConfig(
        address=server,
        rate=rate,
        arrivals=arrivals,
        concurrency=concurrency,
        duration_s=duration_s,
        warm_up_s=warm_up_s,
        timeout_s=timeout_s,
        workload=WorkloadConfig(
            operation=operation,
            batch_size=parse_sizes(batch_size),
            signatures=parse_mix(signature or ()),
            repeat_share=repeat_share,
            metric=metric,
            seed=seed,
        ),
    )
    source = source_of(file, products, rendered, text_words, image_px, seed)
    check_out(out)
    alike = LabelConfig(field=label, split=split) if label else None
    rows = read_sources(source, everything=bool(alike))
    labels = labelled(rows, alike) if alike else []
    chosen = varied((product for product, _ in rows[: source.count]), source)
    with live_view("load") as view:

        async def work(stop: asyncio.Event) -> LoadReport:
            workload, info = await prepare(chosen, config)
            if not alike:
                return await run_load(workload, info, config, stop=stop, progress=view.show)
            view.say(f"recall of {len(labels)} products")
            recall = await asyncio.to_thread(served_recalls, server, labels, config.workload.signatures)
            view.say("load")
            report = await run_load(workload, info, config, stop=stop, progress=view.show)
            return replace(report, label=alike.name, recall=recall)

        report = run_until_interrupted(work)
    with needs_extra():
        deliver_load(replace(report, source=source.plain(), machine=machine()), out)
    if report.latency is None:
        raise typer.Exit(1)


@_bench.command()
def sweep(
    file: options.AnyFile = None,
    server: options.Server = "localhost:8001",
    target_ms: Annotated[float, typer.Option(help="The p99 to keep; failures count as infinitely late.")] = 100.0,
    rate: Annotated[float, typer.Option(help="Where the search begins, in requests/s.")] = 8.0,
    budget_s: Annotated[
        float, typer.Option(help="Seconds for the search; no run begins that would end later.")
    ] = 600.0,
    max_repeats: Annotated[int, typer.Option(min=1, help="Runs of one rate while its figures do not settle.")] = 4,
    precision: Annotated[float, typer.Option(help="How close to the answer, as a share of the rate.")] = 0.05,
    arrivals: options.Spread = Arrivals.POISSON,
    duration_s: options.DurationS = 10.0,
    warm_up_s: options.WarmUpS = 2.0,
    timeout_s: options.TimeoutS = 5.0,
    operation: options.Operation = OperationKind.EMBED,
    batch_size: options.BatchSize = None,
    signature: options.Mix = None,
    repeat_share: options.RepeatShare = 0.0,
    metric: options.OfMetric = Metric.COSINE,
    seed: options.Seed = 7,
    products: options.Products = 1000,
    rendered: options.Rendered = 0,
    text_words: options.TextWords = "",
    image_px: options.ImagePx = "",
    out: options.Out = None,
) -> None:
    """Find the highest rate whose p99 keeps a target, and say whether the figures settled or the time was up."""
    with needs_extra():
        from likeness_bench.files import check_out
        from likeness_bench.load import prepare
        from likeness_bench.output import deliver_sweep
        from likeness_bench.processes import machine
        from likeness_bench.running import live_view, run_until_interrupted
        from likeness_bench.sweep import SweepConfig, run_sweep
    load = LoadConfig(
        address=server,
        rate=rate,
        arrivals=arrivals,
        duration_s=duration_s,
        warm_up_s=warm_up_s,
        timeout_s=timeout_s,
        workload=WorkloadConfig(
            operation=operation,
            batch_size=parse_sizes(batch_size),
            signatures=parse_mix(signature or ()),
            repeat_share=repeat_share,
            metric=metric,
            seed=seed,
        ),
    )
    config = SweepConfig(
        load=load, target_ms=target_ms, budget_s=budget_s, max_repeats=max_repeats, precision=precision
    )
    source = source_of(file, products, rendered, text_words, image_px, seed)
    check_out(out)
    chosen = _read(source)
    with live_view("sweep") as view:

        async def work(stop: asyncio.Event) -> SweepReport:
            workload, info = await prepare(chosen, load)
            return await run_sweep(workload, info, config, stop=stop, starts=view.step, progress=view.show)

        report = run_until_interrupted(work)
    with needs_extra():
        deliver_sweep(replace(report, source=source.plain(), machine=machine()), out)
    if report.best_rate is None:
        raise typer.Exit(1)


@_bench.command()
def ceiling(
    repository: Annotated[
        Path, typer.Option(help="The model repository that is served.", exists=True, file_okay=False)
    ],
    file: options.AnyFile = None,
    server: options.Server = "localhost:8001",
    signature: Annotated[
        list[str] | None,
        typer.Option(help="Signature to measure by itself, repeatable; A=SHARE,B=SHARE: a mix. Default: as they are."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Callers that saturate the server.")] = 16,
    batch_size: options.BatchSize = None,
    rounds: Annotated[int, typer.Option(min=1, help="Alternations of ceiling and server per signature.")] = 5,
    round_s: Annotated[float, typer.Option(min=0.1, help="Measured time of a turn; a round has five.")] = 5.0,
    warm_up_s: options.WarmUpS = 1.0,
    trial_s: Annotated[float, typer.Option(min=0.05, help="Seconds for each way that is tried for the ceiling.")] = 1.0,
    timeout_s: options.TimeoutS = 10.0,
    label: options.Label = "",
    split: options.Split = "val",
    seed: options.Seed = 7,
    products: options.Products = 1000,
    rendered: options.Rendered = 0,
    text_words: options.TextWords = "",
    image_px: options.ImagePx = "",
    out: options.Out = None,
) -> None:
    """Compare a server with its ceiling: the same networks in one process, without a server, in alternation."""
    with needs_extra():
        from likeness_bench.ceiling import CeilingConfig, run_ceiling
        from likeness_bench.files import check_out
        from likeness_bench.output import deliver_ceiling
        from likeness_bench.processes import machine
        from likeness_bench.recall import LabelConfig, labelled
        from likeness_bench.running import live_view, run_until_interrupted
    config = CeilingConfig(
        load=LoadConfig(
            address=server,
            concurrency=concurrency,
            duration_s=round_s,
            warm_up_s=warm_up_s,
            timeout_s=timeout_s,
            workload=WorkloadConfig(batch_size=parse_sizes(batch_size), seed=seed),
        ),
        repository=repository,
        cases=parse_cases(signature or ()) or {AS_THEY_ARE: {}},
        rounds=rounds,
        trial_s=trial_s,
        label=LabelConfig(field=label, split=split) if label else None,
    )
    source = source_of(file, products, rendered, text_words, image_px, seed)
    check_out(out)
    rows = read_sources(source, everything=bool(label))
    labels = labelled(rows, config.label) if config.label else []
    chosen = varied((product for product, _ in rows[: source.count]), source)
    with live_view("ceiling") as view:

        async def work(stop: asyncio.Event) -> CeilingReport:
            return await run_ceiling(chosen, config, stop=stop, labels=labels, says=view.say, progress=view.show)

        report = run_until_interrupted(work)
    with needs_extra():
        deliver_ceiling(replace(report, source=source.plain(), machine=machine()), out)
    if report.failures or not report.cases:
        raise typer.Exit(1)


@_bench.command()
def compare(
    first: Annotated[
        Path, typer.Argument(help="A report of `load`, `sweep` or `ceiling`.", exists=True, dir_okay=False)
    ],
    second: Annotated[Path, typer.Argument(help="Another one of the same kind.", exists=True, dir_okay=False)],
) -> None:
    """Compare two reports: the figures of both, and the second divided by the first."""
    with needs_extra():
        from likeness_bench.compare import compare_reports
        from likeness_bench.tables import print_tables

    table, notes = compare_reports(first, second)
    print_tables([table], notes)


@_bench.command()
def soak(
    file: options.File,
    server: options.Server = "localhost:8001",
    clients: Annotated[int, typer.Option(min=1, help="Callers at once, each awaiting its answers.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long the load lasts.")] = 30.0,
    timeout_s: options.TimeoutS = 10.0,
    seed: options.Seed = 7,
    products: Annotated[int, typer.Option(min=1, help="How many products of the file to use.")] = 200,
) -> None:
    """Many callers at once with mixed signatures; every answer is compared with the one that the product got alone.

    It exits with 1 if an answer was wrong, a request failed, or nothing was answered.
    """
    with needs_extra():
        from likeness_bench.load_tables import load_tables
        from likeness_bench.running import live_view, run_until_interrupted
        from likeness_bench.soak import SoakConfig, SoakReport, run_soak
        from likeness_bench.tables import print_tables
    config = SoakConfig(address=server, clients=clients, seconds=seconds, timeout_s=timeout_s, seed=seed)
    chosen = _read(SourceConfig(file=file, count=products))
    with live_view("soak") as view:

        async def work(stop: asyncio.Event) -> SoakReport:
            return await run_soak(chosen, config, stop=stop, progress=view.show)

        report = run_until_interrupted(work)
    with needs_extra():
        print_tables([*load_tables(report.load), report.table()], report.load.notes)
    if not report.passed:
        raise typer.Exit(1)


def _read(config: SourceConfig) -> list[Product]:
    """Return the products that are sent."""
    return varied((product for product, _ in read_sources(config)), config)
