"""The commands ``related``, ``cluster``, ``match`` and ``mine``: what embeddings are used for, on files.

The module itself imports nothing heavy; see `likeness_export.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likeness_export.commands import OptionalTimeout, optional_client, start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from likeness_export.uses.inputs import EmbeddedProducts

uses_app = typer.Typer()
TURNED = (
    "the learned decision calls less similar pairs matches: these embeddings do not carry this label, or the negatives "
    "were chosen by the same cosine. Do not use these figures."
)

BETRAYED = (
    "these embeddings were made with the attributes: a product still carries the hidden value in its own vector, "
    "so that precision is too high. Embed without them, e.g. `likeness embed ... --modality text --modality image`."
)

Products = Annotated[Path, typer.Argument(help="Products, one JSON object per line.", exists=True, dir_okay=False)]
Vectors = Annotated[
    Path, typer.Argument(metavar="EMBEDDINGS", help="What `likeness embed` made of them.", exists=True, dir_okay=False)
]
Lines = Annotated[Path, typer.Option(help="Where to write, JSON lines.", dir_okay=False)]
Splits = Annotated[list[str] | None, typer.Option(help="Only products of this split; default: all. Repeatable.")]


@uses_app.command()
def related(
    file: Products,
    embeddings: Vectors,
    out: Lines,
    k: Annotated[int, typer.Option("-k", min=1, help="How many for each product.")] = 10,
    one_per: Annotated[
        str, typer.Option(help="Field, e.g. item_group_id: at most one of each value, none of the product's own.")
    ] = "",
) -> None:
    """Find the nearest other products of each product, by cosine."""
    held = _read(file, embeddings, out)
    from likeness_export.uses.related import nearest, nearest_apart
    from likeness_export.uses.tables import write_lines

    if one_per:
        found = nearest_apart(held.vectors, k, held.catalogue.needed_labels(one_per))
    else:
        found = nearest(held.vectors, k)
    ids = held.ids
    lines = (
        {
            "product_id": name,
            "related": [
                {"product_id": ids[row], "cosine": round(float(cosine), 6)}
                for row, cosine in zip(rows, cosines, strict=True)
            ],
        }
        for name, rows, cosines in zip(ids, found.rows, found.cosines, strict=True)
    )
    write_lines(out, lines)
    typer.echo(f"{found.rows.shape[1]} related products for each of {len(ids)}: {out}")


@uses_app.command()
def cluster(
    file: Products,
    embeddings: Vectors,
    out: Lines,
    threshold: Annotated[
        str,
        typer.Option(help="Mean cosine below which clusters stay apart, or auto: the one with the best silhouette."),
    ] = "auto",
    label: Annotated[str, typer.Option(help="Field to compare the clusters with; a+b means both.")] = "",
    split: Splits = None,
) -> None:
    """Divide a catalogue into clusters of products that are alike."""
    cut = None if threshold == "auto" else _number(threshold)
    held = _read(file, embeddings, out, split or ())
    from likeness_export.uses.cluster import agreement
    from likeness_export.uses.cluster import cluster as run_clustering
    from likeness_export.uses.tables import cluster_table, write_lines

    truth = held.catalogue.needed_labels(label, split or ()) if label else None
    found = run_clustering(held.vectors, cut)
    agreed = None if truth is None else agreement(found.labels, truth)
    sizes = found.sizes
    lines = (
        {"product_id": name, "cluster": int(place), "size": int(sizes[place])}
        for name, place in zip(held.ids, found.labels, strict=True)
    )
    write_lines(out, lines)
    cluster_table(found, agreed, held.ids)
    typer.echo(f"clustered: {out}")


@uses_app.command()
def match(
    context: typer.Context,
    file: Products,
    embeddings: Vectors,
    pairs: Annotated[
        Path | None, typer.Option(help="CSV: left_id, right_id, label, split.", exists=True, dir_okay=False)
    ] = None,
    label: Annotated[
        str, typer.Option(help="Instead of pairs: equal values are a match; others with the highest cosines are none.")
    ] = "",
    train_split: Annotated[str, typer.Option(help="Split that the decision is learned from.")] = "train",
    split: Annotated[str, typer.Option(help="Split that is measured.")] = "val",
    held_out: Annotated[
        float, typer.Option(min=0, max=1, help="Learn from the pairs that a recipe with this data.held_out kept aside.")
    ] = 0.0,
    fold: Annotated[
        list[int] | None,
        typer.Option(min=0, help="That recipe's data.fold; of a run joined of several folds, each of them in order."),
    ] = None,
    server: Annotated[
        str, typer.Option(help="Measure this server's learned metric too (host:port), alone and among neighbours.")
    ] = "",
    timeout_s: OptionalTimeout = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the figures and the scored pairs, JSON.", dir_okay=False)
    ] = None,
) -> None:
    """Tell duplicates from others: learn a probability from some labelled pairs, measure the decision on others."""
    from likeness_client import InputError

    if (pairs is None) == (not label):
        raise InputError("name either a file of labelled pairs with --pairs, or a field with --label")
    if split == train_split:
        raise InputError(f"the decision is learned from split {split!r}: measure on another, --split or --train-split")
    from likeness_export.products.named_pairs import without_repeats
    from likeness_export.uses.match import HeldOut, match_by_all
    from likeness_export.uses.pairs import pairs_of
    from likeness_export.uses.tables import matching_table, write_matching

    kept_aside = HeldOut(share=held_out, folds=tuple(fold or ()))
    with optional_client(context, server, timeout_s) as client:
        held = _read(file, embeddings, out, also_read=[pairs] if pairs else ())
        train, every = (pairs_of(held, pairs or label, name) for name in (train_split, split))
        measured = without_repeats(every, train)
        if repeats := len(every) - len(measured):
            typer.echo(
                f"{repeats} of {len(every)} pairs of {split} are also pairs of {train_split}: left out", err=True
            )
        matchings = match_by_all(held, (train, measured), kept_aside, client)
    for metric, matching in matchings.items():
        matching_table(metric, matching, split, train_split)
    if turned := [metric for metric, matching in matchings.items() if matching.decision.is_turned]:
        typer.echo(f"{', '.join(turned)}: {TURNED}", err=True)
    if out:
        write_matching(out, matchings, measured, {"train_split": train_split, "split": split})
        typer.echo(f"matched: {out}")


@uses_app.command()
def mine(
    file: Products,
    embeddings: Vectors,
    out: Lines,
    keys: Annotated[list[str] | None, typer.Argument(help="Attributes; default: all.", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours vote.")] = 10,
    min_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the votes that a value needs.")] = 0.6,
    split: Splits = None,
) -> None:
    """Propose values for missing attributes from a product's neighbours, and measure how good such proposals are."""
    held = _read(file, embeddings, out, split or ())
    from likeness_export.uses.mine import check_keys
    from likeness_export.uses.mine import mine as run_mining
    from likeness_export.uses.related import nearest
    from likeness_export.uses.tables import mining_table, write_lines

    products = held.catalogue.products
    chosen = check_keys(products, keys or [])
    proposals, reports = run_mining(products, nearest(held.vectors, k), chosen, min_share)
    lines = (
        {
            "product_id": products[proposal.row].product_id,
            "key": proposal.key,
            "value": proposal.value,
            "share": round(proposal.share, 4),
            "support": proposal.support,
        }
        for proposal in proposals
    )
    write_lines(out, lines)
    mining_table(reports, min_share)
    if "attributes" in held.modalities:
        typer.echo(BETRAYED, err=True)
    typer.echo(f"{len(proposals)} proposals: {out}")


def _read(
    file: Path, embeddings: Path, out: Path | None, splits: Sequence[str] = (), also_read: Sequence[Path] = ()
) -> EmbeddedProducts:
    """Start as every command does, and read the two files; nothing that is read may be written over."""
    from likeness_client.writing import check_place

    from likeness_export.uses.inputs import read_embedded

    start()
    check_place(out, file, embeddings, *also_read)
    return read_embedded(file, embeddings, splits)


def _number(text: str) -> float:
    from likeness_client import InputError

    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"threshold {text!r} is neither a cosine, e.g. 0.8, nor auto") from error
