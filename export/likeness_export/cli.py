"""The commands that train, serve and show; those of other packages are added to them.

The module itself imports nothing heavy, so that ``likeness --help`` answers at once and without any extra.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Literal

import typer
from likeness_client import MissingExtraError

from likeness_export.commands import DataRoot, OptionalTimeout, optional_client, start
from likeness_export.quality.cli import quality_app
from likeness_export.uses.cli import uses_app

app = typer.Typer()
app.add_typer(uses_app)  # related, cluster, match, mine
app.add_typer(quality_app)

RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, or the name of a built-in recipe, e.g. demo.")],
    out: Annotated[
        Path, typer.Option(help="The folder of the run. One that was interrupted goes on.", file_okay=False)
    ],
    data_root: DataRoot = Path(),
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="dotted.key=value, instead of what the recipe says; dotted.key= takes it out. Repeatable."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="What trains, as torch names it: cpu, cuda, cuda:1.")] = "cpu",
) -> None:
    """Train a recipe."""
    start()
    from likeness_export.recipe import load_recipe
    from likeness_export.run import Run
    from likeness_export.training.train import train as run_training

    run_training(load_recipe(recipe, override or ()), Run(out), data_root, device)
    typer.echo(f"trained: {out}")


@app.command()
def join(
    runs: Annotated[list[Path], typer.Argument(help="Folders of trained runs, e.g. of one recipe with three seeds.")],
    out: Annotated[Path, typer.Option(help="The folder of the joined run.", file_okay=False)],
) -> None:
    """Join trained runs into one whose similarity is the mean of theirs.

    It usually answers better than each of them, and costs as much as all of them. Each run has one tower, or fuses
    late.
    """
    start()
    from likeness_export.run import Run
    from likeness_export.training.joining import join_runs

    join_runs([Run(run) for run in runs], Run(out))
    typer.echo(f"joined: {out}")


@app.command()
def evaluate(
    context: typer.Context,
    run: RunFolder,
    data_root: DataRoot = Path(),
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Field whose equality makes two alike; a+b means both; product_id: a product by another modality of "
            "it. Repeatable."
        ),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split that the queries come from; default: val. Repeatable.")
    ] = None,
    gallery: Annotated[
        list[str] | None, typer.Option(help="Split that is ranked; default: the queries'. Repeatable.")
    ] = None,
    server: Annotated[str, typer.Option(help="Embed through this server (host:port) instead of in this process.")] = "",
    timeout_s: OptionalTimeout = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.", dir_okay=False)] = None,
) -> None:
    """Measure retrieval on labelled products, per signature."""
    start()
    from likeness_client.writing import check_place

    from likeness_export.evaluation.evaluate import (
        Embedder,
        OfflineEmbedder,
        ServedEmbedder,
        Task,
        evaluate,
        labels_to_judge_by,
        read_task_catalogue,
    )
    from likeness_export.exporting.export import fingerprint
    from likeness_export.reports import retrieval_table, write_rows
    from likeness_export.run import Run

    source = Run(run)
    recipe = source.read_recipe()
    check_place(out, data_root / recipe.data.products)
    queries = tuple(split or ["val"])
    task = Task(labels=labels_to_judge_by(source, label or ()), queries=queries, gallery=tuple(gallery or queries))
    with optional_client(context, server, timeout_s) as client:
        catalogue = read_task_catalogue(source, data_root, task)
        embedder: Embedder = (
            ServedEmbedder(client, catalogue, fingerprint(recipe, source))
            if client
            else OfflineEmbedder(source, catalogue)
        )
        rows = list(evaluate(embedder, catalogue, recipe.modalities(), task))
    retrieval_table(rows, f"{recipe.name}: {'+'.join(task.queries)} against {'+'.join(task.gallery)}")
    if out:
        write_rows(rows, out)


@app.command()
def export(
    run: RunFolder,
    repository: Annotated[Path, typer.Option(help="The model repository to make; an earlier one is replaced.")],
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(
            help="Of the towers' networks: int8 for CPUs, fp16 for GPUs. Each has to pass a gate, or stays fp32."
        ),
    ] = "fp32",
    max_recall_loss: Annotated[
        float,
        typer.Option(
            min=0,
            help="Points of a hundred that recall@1, as measured, may fall below that of fp32: with each network by "
            "itself, and in the mean of all signatures.",
        ),
    ] = 0.5,
    recall_slack: Annotated[
        float,
        typer.Option(
            min=0,
            help="Standard errors by which a single signature may exceed that, as one of many does by chance; 0: none.",
        ),
    ] = 2.0,
    data_root: DataRoot = Path(),
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="Also build TensorRT plans, on the GPU that will run them.")
    ] = False,
    serving: Annotated[
        Path | None, typer.Option(help="A recipe whose section `serving` takes the place of the run's.")
    ] = None,
) -> None:
    """Export a run's networks to ONNX, verify them, and make a Triton model repository.

    Exits with 1 and leaves an earlier repository if a network cannot be exported; exits with 1, too, if one stays fp32
    because no file of the wanted precision passes the gate. Reduced files are calibrated and judged on real products.
    """
    start()
    from likeness_export.exporting.export import ExportStep, export_run
    from likeness_export.exporting.tensorrt_plans import PlanStep, TensorRTBuilder
    from likeness_export.precision.gate import Limits
    from likeness_export.precision.reducing import PrecisionChoice, Reducer
    from likeness_export.recipe import load_recipe
    from likeness_export.reports import export_table, precision_tables
    from likeness_export.run import Run

    source = Run(run, load_recipe(serving).serving if serving else None)
    steps: list[ExportStep] = []
    reducer = None
    if precision != "fp32":
        limits = Limits(recall_loss=max_recall_loss, signature_slack=recall_slack)
        choice = PrecisionChoice(precision=precision, data_root=data_root, limits=limits, for_tensorrt=tensorrt)
        reducer = Reducer(source, choice)
        steps.append(reducer)
    if tensorrt:
        place = repository.resolve()  # "." has no name
        steps.append(PlanStep(source, TensorRTBuilder(place.with_name(f"{place.name}.tensorrt-timing"))))
    reports = export_run(source, repository, steps)
    export_table(reports)
    typer.echo(f"exported: {repository}")
    if reducer and reducer.report:
        precision_tables(reducer.report)
        if not reducer.report.mean_recall_loss:
            typer.echo("recall@1 was not measured: no two of the judged products are known to be alike", err=True)
        if refused := reducer.report.refused():
            # Where there were too few products to judge, no limit helps.
            judged = any(found.refused and found.drift for found in reducer.report.networks)
            limits_said = "; --max-recall-loss and --recall-slack say what recall@1 may lose" if judged else ""
            typer.echo(f"not {precision}, because nothing passed the gate: {', '.join(refused)}{limits_said}", err=True)
            raise typer.Exit(1)


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(help="A model repository.")],
    profile: Annotated[
        str, typer.Option(help="cpu, onnx or tensorrt; default: cpu with the server from pip, else onnx.")
    ] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="Where clients connect.")] = 8001,
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="HTTP, for health checks too.")] = 8000,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Prometheus metrics.")] = 8002,
    ready_timeout_s: Annotated[float, typer.Option(min=1, help="How long the models may take to load.")] = 120.0,
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Options of tritonserver itself, after --.", metavar="-- [TRITONSERVER OPTIONS]"),
    ] = None,
) -> None:
    """Serve a model repository with a real tritonserver until Ctrl-C, SIGTERM or the end of the terminal."""
    from likeness_export.server.serve import ServeConfig, serving
    from likeness_export.server.watch import watch

    # SIGTERM ends the block below just as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    config = ServeConfig(
        repository=repository,
        profile=profile,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        ready_timeout_s=ready_timeout_s,
        options=tuple(options or ()),
    )
    try:
        with serving(config) as process:
            typer.echo(
                f"ready: gRPC {config.address}  HTTP {config.at(http_port)}  metrics {config.at(metrics_port)}/metrics"
            )
            watch(process, config.address)
    except KeyboardInterrupt:
        typer.echo("stopped")


@app.command()
def explain(
    run: RunFolder,
    image: Annotated[Path, typer.Argument(help="A photo.")],
    out: Annotated[Path, typer.Option(help="The picture to write, PNG.", dir_okay=False)] = Path("explained.png"),
) -> None:
    """Show where the attended parts of a run's image tower look in a photo."""
    start()
    from likeness_client.writing import check_place

    from likeness_export.evaluation.explain import explain as draw_explanation
    from likeness_export.run import Run

    source = Run(run)
    source.read_recipe()  # what is no run leaves no folder behind
    check_place(out, image)
    draw_explanation(source, image, out)
    typer.echo(f"drawn: {out}")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Where everything goes; what is already there is used again.", file_okay=False)
    ] = Path("runs/demo"),
) -> None:
    """Render a catalogue, train, export, serve, query: the whole path, nothing downloaded."""
    try:
        start()
        from likeness_export.demo.tour import run_demo
    except ModuleNotFoundError as error:  # the extra of that module alone would not be enough
        raise MissingExtraError("demo", f"`{error.name}`") from error

    run_demo(out)


@app.command()
def render(
    folder: Annotated[
        Path, typer.Argument(help="Where the catalogue is to be; an earlier one is replaced.", file_okay=False)
    ],
    clips: Annotated[
        bool, typer.Option("--clips", help="Also film products, and name the clips in products_with_clips.jsonl.")
    ] = False,
    interactions: Annotated[
        bool, typer.Option("--interactions", help="Also invent shoppers, and log their views in interactions.csv.")
    ] = False,
    designs: Annotated[int, typer.Option(help="How many designs; each has four or five colourways.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same catalogue.")] = 7,
) -> None:
    """Render the demo's catalogue alone, or with clips and shoppers: something to try a recipe on."""
    from likeness_export.demo.catalogue import render_catalogue
    from likeness_export.demo.clips import PRODUCTS_FILE, add_clips
    from likeness_export.demo.shoppers import LOG_FILE, log_shoppers

    products = render_catalogue(folder, seed=seed, designs=designs)
    typer.echo(f"catalogue: {products}")
    if clips:
        typer.echo(f"with clips: {add_clips(products, folder / PRODUCTS_FILE, seed=seed)}")
    if interactions:
        typer.echo(f"log of its shoppers: {log_shoppers(products, folder / LOG_FILE, seed=seed)}")


@app.command()
def interactions(
    file: Annotated[Path, typer.Argument(help="Products, one JSON object per line.", exists=True, dir_okay=False)],
    log: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns user, item (a product_id) and, unless every line counts 1, count.",
            exists=True,
            dir_okay=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Where to write the products, in the folder that they are in.", dir_okay=False)
    ],
) -> None:
    """Give products the interactions of a log: who viewed or bought them, and how often."""
    from likeness_export.left_out import NAMED
    from likeness_export.products.interaction_log import join_log

    found = join_log(file, log, out)
    if found.strange:
        named = ", ".join(list(found.strange)[:NAMED])
        more = f" and {len(found.strange) - NAMED} more" if len(found.strange) > NAMED else ""
        typer.echo(
            f"left out {sum(found.strange.values())} lines of the log, whose items are no products: {named}{more}",
            err=True,
        )
    typer.echo(f"{found.known} of {found.products} products have interactions: {out}")
