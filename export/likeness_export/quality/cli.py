"""The commands ``quality run`` and ``quality sheet``.

The module itself imports nothing heavy; see `likeness_export.cli`.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from likeness_export.commands import DataRoot, start

FIRST_SEED = 7  # that of the built-in recipes: what `likeness train` makes of them is in the tables

quality_app = typer.Typer(
    name="quality", help="Train with several seeds and measure on real catalogues.", no_args_is_help=True
)


@quality_app.command()
def run(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE...", help="grocery, fashion, flipkart, luma, matching, or all of these; clips, shoppers."
        ),
    ],
    data_root: DataRoot = Path(),
    work: Annotated[Path, typer.Option(help="Where the runs go; finished ones are used again.")] = Path("runs/quality"),
    out: Annotated[Path, typer.Option(help="Where the tables go: JSON, Markdown, PNG.")] = Path("results"),
    seeds: Annotated[int, typer.Option(min=1, help="How many: 7, 8, 9, ...")] = 3,
    jobs: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one per core.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Only this variant. Repeatable.")] = None,
    split: Annotated[str, typer.Option(help="Split that is measured; recipes were chosen by looking at val.")] = "val",
) -> None:
    """Make quality tables. Interrupted, it goes on when it is called again. Exits with 1 if a training fails."""
    from likeness_client.writing import check_place

    from likeness_export.quality.needed import check_split
    from likeness_export.quality.tables import tables_named, tables_with

    start()
    chosen = [table.on(split) for table in tables_with(only or (), tables_named(tables))]
    check_split(chosen, data_root)
    for table in chosen:
        check_place(out / f"{table.file_stem}.md")
    from joblib import cpu_count

    from likeness_export.quality.running import Plan, run_tables

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the trainings too
    plan = Plan(
        tables=chosen,
        seeds=range(FIRST_SEED, FIRST_SEED + seeds),
        only=only or (),
        data_root=data_root,
        work=work,
        out=out,
        jobs=jobs or cpu_count(),
    )
    failed = run_tables(plan)
    for table in chosen:
        typer.echo(f"written: {out / table.file_stem}.md")
    for name, message in failed.items():
        typer.echo(f"failed: {name}: {message} (more in {work / name / 'unit.log'})", err=True)
    if failed:
        raise typer.Exit(1)


@quality_app.command()
def sheet(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    data_root: DataRoot = Path(),
    label: Annotated[str, typer.Option(help="Field whose equality makes two alike; default: the recipe's last.")] = "",
    split: Annotated[str, typer.Option(help="Split that the queries come from.")] = "val",
    gallery: Annotated[
        list[str] | None, typer.Option(help="Split that is ranked; default: the queries'. Repeatable.")
    ] = None,
    signature: Annotated[str, typer.Option(help="Reduce all products to these modalities, e.g. text_image.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="Good and bad cases, at most so many of each.")] = 5,
    out: Annotated[Path, typer.Option(help="The picture to write, PNG.")] = Path("sheet.png"),
) -> None:
    """Draw queries with their nearest products: where that goes well, and where it fails."""
    from likeness_client import InputError
    from likeness_client.contract import all_signatures, modalities_of
    from likeness_client.writing import check_place

    start()
    from likeness_export.evaluation.evaluate import OfflineEmbedder, Task, labels_to_judge_by, read_task_catalogue
    from likeness_export.products.catalogue import named_keys
    from likeness_export.quality.sheet import draw_sheet
    from likeness_export.run import Run

    run, recipe = Run(folder), Run(folder).read_recipe()
    check_place(out, data_root / recipe.data.products)
    labels = labels_to_judge_by(run, [label] if label else ())
    known = all_signatures(recipe.modalities())
    if signature and signature not in known:
        raise InputError(f"{folder} has no signature {signature}; there are: {', '.join(known)}")
    task = Task(labels=labels[-1:], queries=(split,), gallery=tuple(gallery or [split]))
    catalogue = read_task_catalogue(run, data_root, task)
    chosen = modalities_of(signature) if signature else recipe.modalities()
    if not draw_sheet(OfflineEmbedder(run, catalogue).embed(chosen), catalogue, task, out, rows):
        raise InputError(
            f"no query has another product with the same {task.labels[0]!r} in the gallery, so nothing is drawn: name "
            f"what products share with --label; they have: {named_keys(catalogue.label_keys())}"
        )
    typer.echo(f"drawn: {out}")
