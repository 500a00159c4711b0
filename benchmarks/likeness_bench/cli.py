"""The command ``bench``. Imports nothing heavy before a command runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from likeness_client import InputError, Metric, MissingExtraError, Product, read_products

from likeness_bench.arrivals import Arrivals
from likeness_bench.drive import LoadConfig
from likeness_bench.workload import OperationKind, WorkloadConfig

if TYPE_CHECKING:
    from likeness_bench.figures import LoadReport
    from likeness_bench.sweep import SweepReport

app = typer.Typer()
_bench = typer.Typer(help="Load a running server and report what it did.", no_args_is_help=True)
app.add_typer(_bench, name="bench")

File = Annotated[Path, typer.Argument(help="Products, one JSON object per line.", exists=True, dir_okay=False)]
Server = Annotated[str, typer.Option(help="The gRPC endpoint, host:port.")]
Products = Annotated[int, typer.Option(min=1, help="How many products of the file to use; all are held in memory.")]
DurationS = Annotated[float, typer.Option(min=0.1, help="Measured time of a run, after its warm-up.")]
WarmUpS = Annotated[float, typer.Option(min=0.0, help="Load before that, which is not counted.")]
TimeoutS = Annotated[float, typer.Option(min=0.01, help="Deadline of every request.")]
Spread = Annotated[Arrivals, typer.Option(help="How the requests of a rate are spread.")]
Operation = Annotated[OperationKind, typer.Option(help="What every request asks for.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Products per request, or per side of it.")]
Mix = Annotated[
    list[str] | None,
    typer.Option(help="NAME=SHARE of the requests, repeatable, e.g. text_image=0.5. Default: products as they are."),
]
RepeatShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Requests that send an earlier one again.")]
OfMetric = Annotated[Metric, typer.Option(help="Of the similarities.")]
Seed = Annotated[int, typer.Option(help="Of the schedule and of the requests.")]
Out = Annotated[Path | None, typer.Option(help="Report as .json; .md and .html are written beside it.")]


@_bench.callback()
def _main() -> None:
    """Load a running server and report what it did."""


@_bench.command()
def load(
    file: File,
    server: Server = "localhost:8001",
    rate: Annotated[float | None, typer.Option(help="Open loop: requests/s, sent by schedule.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Closed loop: callers that await answers.")] = None,
    arrivals: Spread = Arrivals.POISSON,
    duration_s: DurationS = 30.0,
    warm_up_s: WarmUpS = 5.0,
    timeout_s: TimeoutS = 10.0,
    operation: Operation = OperationKind.EMBED,
    batch_size: BatchSize = 1,
    signature: Mix = None,
    repeat_share: RepeatShare = 0.0,
    metric: OfMetric = Metric.COSINE,
    seed: Seed = 7,
    products: Products = 1000,
    out: Out = None,
) -> None:
    """Make a load for some time; report throughput, latency, errors, and where the time went in the server.

    Failed requests are part of the report; only when none was answered does it exit with 1.
    """
    with _needs_extra():
        from likeness_bench.files import check_out
        from likeness_bench.load import prepare, run_load
        from likeness_bench.output import deliver_load
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
            batch_size=batch_size,
            signatures=parse_mix(signature or ()),
            repeat_share=repeat_share,
            metric=metric,
            seed=seed,
        ),
    )
    check_out(out)
    chosen = _read(file, products)
    with live_view("load") as view:

        async def work(stop: asyncio.Event) -> LoadReport:
            workload, info = await prepare(chosen, config)
            return await run_load(workload, info, config, stop=stop, progress=view.show)

        report = run_until_interrupted(work)
    with _needs_extra():
        deliver_load(report, out)
    if report.latency is None:
        raise typer.Exit(1)


@_bench.command()
def sweep(
    file: File,
    server: Server = "localhost:8001",
    target_ms: Annotated[float, typer.Option(help="The p99 to keep; failures count as infinitely late.")] = 100.0,
    rate: Annotated[float, typer.Option(help="Where the search begins, in requests/s.")] = 8.0,
    budget_s: Annotated[float, typer.Option(help="No run begins that would end later.")] = 600.0,
    max_repeats: Annotated[int, typer.Option(min=1, help="Of one rate, while its figures do not settle.")] = 4,
    precision: Annotated[float, typer.Option(help="How close to the answer, as a share of the rate.")] = 0.05,
    arrivals: Spread = Arrivals.POISSON,
    duration_s: DurationS = 10.0,
    warm_up_s: WarmUpS = 2.0,
    timeout_s: TimeoutS = 5.0,
    operation: Operation = OperationKind.EMBED,
    batch_size: BatchSize = 1,
    signature: Mix = None,
    repeat_share: RepeatShare = 0.0,
    metric: OfMetric = Metric.COSINE,
    seed: Seed = 7,
    products: Products = 1000,
    out: Out = None,
) -> None:
    """Find the highest rate whose p99 keeps a target, and say whether the figures settled or the time was up."""
    with _needs_extra():
        from likeness_bench.files import check_out
        from likeness_bench.load import prepare
        from likeness_bench.output import deliver_sweep
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
            batch_size=batch_size,
            signatures=parse_mix(signature or ()),
            repeat_share=repeat_share,
            metric=metric,
            seed=seed,
        ),
    )
    config = SweepConfig(
        load=load, target_ms=target_ms, budget_s=budget_s, max_repeats=max_repeats, precision=precision
    )
    check_out(out)
    chosen = _read(file, products)
    with live_view("sweep") as view:

        async def work(stop: asyncio.Event) -> SweepReport:
            workload, info = await prepare(chosen, load)
            return await run_sweep(workload, info, config, stop=stop, starts=view.step, progress=view.show)

        report = run_until_interrupted(work)
    with _needs_extra():
        deliver_sweep(report, out)
    if report.best_rate is None:
        raise typer.Exit(1)


@_bench.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A report of `load` or `sweep`.", exists=True, dir_okay=False)],
    second: Annotated[Path, typer.Argument(help="Another one of the same kind.", exists=True, dir_okay=False)],
) -> None:
    """Compare two reports: the figures of both, and the second divided by the first."""
    with _needs_extra():
        from likeness_bench.compare import compare_reports
        from likeness_bench.tables import print_tables

    table, notes = compare_reports(first, second)
    print_tables([table], notes)


@_bench.command()
def soak(
    file: File,
    server: Server = "localhost:8001",
    clients: Annotated[int, typer.Option(min=1, help="Connections at once.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1)] = 30.0,
    products: Annotated[int, typer.Option(min=1, help="How many products of the file to use.")] = 200,
) -> None:
    """Many clients at once with mixed signatures; every answer is compared with the one that the product got alone."""
    with _needs_extra():
        from rich.console import Console
        from rich.table import Table

    from likeness_bench.soak import SoakConfig
    from likeness_bench.soak import soak as run_soak

    report = run_soak(_read(file, products), SoakConfig(address=server, clients=clients, seconds=seconds))
    table = Table(title=f"{clients} clients, closed loop, {report.seconds:.1f} s", show_header=False)
    table.add_row("requests", f"{len(report.latency_ms)}")
    table.add_row("products", f"{report.products}  ({report.products / report.seconds:.1f}/s)")
    table.add_row("signatures", ", ".join(f"{name} {count}" for name, count in sorted(report.signatures.items())))
    table.add_row("latency ms", "  ".join(f"p{share} {report.percentile_ms(share):.0f}" for share in (50, 90, 99)))
    table.add_row("largest difference to the answer alone", f"{report.largest_difference:.1e}")
    table.add_row("wrong answers", f"{report.wrong}")
    table.add_row("errors", ", ".join(f"{name} {count}" for name, count in report.errors.items()) or "none")
    Console().print(table)
    if not report.passed:
        raise typer.Exit(1)


def parse_mix(given: Iterable[str]) -> dict[str, float]:
    """Read ``NAME=SHARE`` options; a name alone has the share 1.

    Raises:
        InputError: a share is no number, or a name is given twice.
    """
    mix: dict[str, float] = {}
    for text in given:
        name, equals, share = text.partition("=")
        try:
            value = float(share) if equals else 1.0
        except ValueError as error:
            raise InputError(f"--signature {text}: '{share}' is no number; give NAME=SHARE") from error
        if name in mix:
            raise InputError(f"--signature {text}: '{name}' is given twice; add its shares up")
        mix[name] = value
    return mix


def _read(file: Path, count: int) -> list[Product]:
    """Read the first products of a file.

    Raises:
        InputError: it holds none, or cannot be read.
    """
    products = [product for product, _ in islice(read_products(file), count)]
    if not products:
        raise InputError(f"{file} holds no products: give a file with one JSON object per line")
    return products


@contextmanager
def _needs_extra() -> Iterator[None]:
    """Name the extra that brings a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"matplotlib", "psutil", "rich"}:
            raise
        raise MissingExtraError("bench", f"`{package}`") from error
