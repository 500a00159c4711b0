"""The commands ``bench`` and ``tune``. Imports nothing heavy before a command runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from likeness_client import InputError, Product
from likeness_client.cli import gateway

from likeness_bench import options
from likeness_bench.arrivals import Arrivals
from likeness_bench.files import check_out
from likeness_bench.load_config import LoadConfig
from likeness_bench.option_groups import Asked, Ranked, Sent, with_groups
from likeness_bench.options import parse_cases
from likeness_bench.recall import LabelConfig, Labelled, Recall, labelled, served_recalls
from likeness_bench.sources import SourceConfig, read_sources, varied
from likeness_bench.tune.cli import tune_app
from likeness_bench.view import View
from likeness_bench.workload import AS_THEY_ARE, WorkloadConfig

if TYPE_CHECKING:
    from likeness_bench.figures import LoadReport
    from likeness_bench.sweep import SweepReport

R = TypeVar("R", "LoadReport", "SweepReport")
app = typer.Typer()
_bench = typer.Typer(help="Load a running server and report what it did.", no_args_is_help=True)
app.add_typer(_bench, name="bench")
app.add_typer(tune_app)


@_bench.command()
@with_groups
def load(
    *,
    context: typer.Context,
    server: options.Server = "localhost:8001",
    rate: Annotated[float | None, typer.Option(min=0.001, help="Open loop: requests/s, sent by schedule.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Closed loop: callers that await answers.")] = None,
    arrivals: Annotated[
        Arrivals | None,
        typer.Option(help="How the requests of a --rate are spread.", show_default=str(Arrivals.POISSON)),
    ] = None,
    duration_s: options.DurationS = 30.0,
    warm_up_s: options.WarmUpS = 5.0,
    budget_s: options.BudgetS = 120.0,
    timeout_s: options.TimeoutS = 10.0,
    asked: Asked,
    ranked: Ranked,
    repository: options.Beside = None,
    sent: Sent,
    out: options.Out = None,
) -> None:
    """Make a load until its figures settle; report throughput, latency, errors, and where the time went in the server.

    With a label also how good the server's embeddings are, measured before the load. With a repository also the
    ceiling: the same networks in one process, without a server, in alternation with the runs.

    Failed requests are part of the report; only when none was answered does it exit with 1.
    """
    from likeness_bench.output import deliver_load, signed
    from likeness_bench.repeated import run_repeated

    config = LoadConfig(
        address=server,
        rate=rate,
        arrivals=arrivals or Arrivals.POISSON,
        concurrency=concurrency,
        duration_s=duration_s,
        warm_up_s=warm_up_s,
        timeout_s=timeout_s,
        gateway=gateway(context),
        workload=asked.workload(sent.seed),
    )
    if arrivals and rate is None:
        raise InputError(
            f"--arrivals {arrivals}: callers who await answers send when these arrive: leave it out, or give --rate "
            "in place of --concurrency"
        )
    source, alike = sent.source(config.workload.signatures), ranked.config()
    check_out(out, source.file)
    report = _run("load", config, source, alike, repository, partial(run_repeated, config=config, budget_s=budget_s))
    deliver_load(signed(report, source), out)
    if report.latency is None:
        raise typer.Exit(1)


@_bench.command()
@with_groups
def sweep(
    *,
    context: typer.Context,
    server: options.Server = "localhost:8001",
    target_ms: options.TargetMs = 100.0,
    rate: Annotated[float, typer.Option(min=0.001, help="Where the search begins, in requests/s.")] = 8.0,
    budget_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds for the search; no run begins that would end later.")
    ] = 600.0,
    max_repeats: Annotated[int, typer.Option(min=1, help="Runs of one rate while its figures do not settle.")] = 4,
    precision: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="How close to the answer, as a share of the rate.")
    ] = 0.05,
    arrivals: options.Spread = Arrivals.POISSON,
    duration_s: Annotated[
        float,
        typer.Option(
            min=0.1, help="Measured time of a run; longer at low rates: for a p99, some 100 requests have to be due."
        ),
    ] = 10.0,
    warm_up_s: options.WarmUpS = 2.0,
    timeout_s: options.TimeoutS = 5.0,
    asked: Asked,
    ranked: Ranked,
    repository: options.Beside = None,
    sent: Sent,
    out: options.Out = None,
) -> None:
    """Find the highest rate whose p99 keeps a target, and say whether the figures settled or the time was up.

    With a label also how good the server's embeddings are, measured before the search. With a repository also the
    ceiling: the same networks in one process, without a server, in alternation with the runs.
    """
    from likeness_bench.output import deliver_sweep, signed
    from likeness_bench.sweep import SweepConfig, run_sweep

    load = LoadConfig(
        address=server,
        rate=rate,
        arrivals=arrivals,
        duration_s=duration_s,
        warm_up_s=warm_up_s,
        timeout_s=timeout_s,
        gateway=gateway(context),
        workload=asked.workload(sent.seed),
    )
    config = SweepConfig(
        load=load, target_ms=target_ms, budget_s=budget_s, max_repeats=max_repeats, precision=precision
    )
    source, alike = sent.source(load.workload.signatures), ranked.config()
    check_out(out, source.file)
    report = _run("sweep", load, source, alike, repository, partial(run_sweep, config=config))
    deliver_sweep(signed(report, source), out)
    if report.best_rate is None:
        raise typer.Exit(1)


@_bench.command()
@with_groups
def ceiling(
    *,
    context: typer.Context,
    repository: Annotated[
        Path, typer.Option(help="The model repository that is served.", exists=True, file_okay=False)
    ],
    server: options.Server = "localhost:8001",
    signature: Annotated[
        list[str] | None,
        typer.Option(help="Signature to measure by itself, repeatable; A=SHARE,B=SHARE: a mix. Default: as they are."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Callers that saturate the server.")] = 16,
    batch_size: options.BatchSize = None,
    rounds: Annotated[int, typer.Option(min=1, help="Alternations of ceiling and server per signature.")] = 5,
    turn_s: Annotated[float, typer.Option(min=0.1, help="Measured time of a turn; a round has five.")] = 5.0,
    warm_up_s: options.WarmUpS = 1.0,
    trial_s: Annotated[float, typer.Option(min=0.05, help="Seconds for each way that is tried for the ceiling.")] = 1.0,
    timeout_s: options.TimeoutS = 10.0,
    ranked: Ranked,
    sent: Sent,
    out: options.Out = None,
) -> None:
    """Compare a server with its ceiling: the same networks in one process, without a server, in alternation."""
    from likeness_bench.ceiling import CeilingConfig, run_ceiling
    from likeness_bench.output import deliver_ceiling, signed
    from likeness_bench.running import run_shown

    config = CeilingConfig(
        load=LoadConfig(
            address=server,
            concurrency=concurrency,
            duration_s=turn_s,
            warm_up_s=warm_up_s,
            timeout_s=timeout_s,
            gateway=gateway(context),
            workload=Asked(batch_size=batch_size).workload(sent.seed),
        ),
        repository=repository,
        cases=parse_cases(signature or ()) or {AS_THEY_ARE: {}},
        rounds=rounds,
        trial_s=trial_s,
        label=ranked.config(),
    )
    source = sent.source(name for mix in config.cases.values() for name in mix)
    check_out(out, source.file)
    chosen, labels = _read(source, config.label)
    report = run_shown("ceiling", partial(run_ceiling, chosen, config, labels=labels))
    deliver_ceiling(signed(report, source), out)
    if report.failures or not report.cases:
        raise typer.Exit(1)


@_bench.command()
def compare(
    first: Annotated[
        Path, typer.Argument(help="A report of `load`, `sweep` or `ceiling`.", exists=True, dir_okay=False)
    ],
    second: Annotated[Path, typer.Argument(help="Another one of the same kind.", exists=True, dir_okay=False)],
    out: options.Out = None,
) -> None:
    """Compare two reports: the figures of both, and the second divided by the first."""
    from likeness_bench.compare import compare_reports
    from likeness_bench.output import deliver

    check_out(out, first, second)
    report = compare_reports(first, second)
    table = report.table()
    deliver(report, out, table.title, [table], report.notes)


@_bench.command()
def soak(
    context: typer.Context,
    file: options.File,
    server: options.Server = "localhost:8001",
    concurrency: Annotated[int, typer.Option(min=1, help="Callers at once, each awaiting its answers.")] = 16,
    duration_s: Annotated[float, typer.Option(min=0.1, help="How long the load lasts.")] = 30.0,
    timeout_s: options.TimeoutS = 10.0,
    seed: options.Seed = 7,
    products: Annotated[int, typer.Option(min=1, help="How many products of the file to use.")] = 200,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="By how much a component may differ; int8 depends on its batch: needs more."),
    ] = 1e-4,
) -> None:
    """Many callers at once with mixed signatures; every answer is compared with the one that the product got alone.

    It exits with 1 if an answer was wrong, a request failed, or nothing was answered.
    """
    from likeness_bench.load_tables import load_tables
    from likeness_bench.running import run_shown
    from likeness_bench.soak import run_soak
    from likeness_bench.tables import print_tables

    load = LoadConfig(
        address=server,
        concurrency=concurrency,
        duration_s=duration_s,
        warm_up_s=0.0,
        timeout_s=timeout_s,
        gateway=gateway(context),
        workload=WorkloadConfig(seed=seed),
    )
    chosen, _ = _read(SourceConfig(file=file, count=products))
    report = run_shown("soak", partial(run_soak, chosen, load, tolerance=tolerance))
    print_tables([*load_tables(report.load), report.table()], report.load.notes)
    if not report.passed:
        raise typer.Exit(1)


def _read(source: SourceConfig, alike: LabelConfig | None = None) -> tuple[list[Product], list[Labelled]]:
    """Return the products that are sent, and those that recall is measured on."""
    rows = read_sources(source, everything=bool(alike))
    labels = labelled(rows, alike) if alike else []
    return varied((product for product, _ in rows[: source.count]), source), labels


def _run(
    name: str,
    load: LoadConfig,
    source: SourceConfig,
    alike: LabelConfig | None,
    repository: Path | None,
    measure: Callable[..., Awaitable[R]],
) -> R:
    """Measure a load under the eyes of the user: after the recall, and with the ceiling beside its runs, if asked for.

    Args:
        name: what is shown first.
        load: the load, at any rate.
        source: which products are sent.
        alike: what recall is measured on; None: it is not.
        repository: for the ceiling; None: without one.
        measure: takes the workload, and what every measurement of several runs takes; see `run_repeated`.
    """
    from likeness_bench.beside import ceiling_beside
    from likeness_bench.load import prepare
    from likeness_bench.running import run_shown

    chosen, labels = _read(source, alike)

    async def work(stop: asyncio.Event, view: View) -> R:
        workload = await prepare(chosen, load)
        recall: dict[str, Recall] = {}
        if labels:
            view.say(f"recall of {len(labels)} products")
            signatures = load.workload.signatures
            recall = await asyncio.to_thread(served_recalls, load, labels, signatures, stopped=stop.is_set)
        async with ceiling_beside(workload, load, repository, stop=stop, view=view) as run_once:
            report = await measure(workload, stop=stop, view=view, run_once=run_once)
        return replace(report, label=alike.name if alike else "", recall=recall)

    return run_shown(name, work)
