"""What the commands of ``bench`` share: their options, and how those are read. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from likeness_client import InputError, Metric

from likeness_bench.arrivals import Arrivals
from likeness_bench.sources import Span
from likeness_bench.workload import OperationKind

File = Annotated[Path, typer.Argument(help="Products, one JSON object per line.", exists=True, dir_okay=False)]
AnyFile = Annotated[
    Path | None,
    typer.Argument(help="Products, one JSON object per line; or give --rendered.", exists=True, dir_okay=False),
]
Server = Annotated[str, typer.Option(help="The gRPC endpoint, host:port.")]
Products = Annotated[int, typer.Option(min=1, help="How many products of the file to use; all are held in memory.")]
AnyProducts = Annotated[
    int | None,
    typer.Option(min=1, help="How many products of a file to use; all are held in memory.", show_default="1000"),
]
Rendered = Annotated[
    int,
    typer.Option(
        min=0, help="Products of the demo catalogue to render, instead of a file; with clips: `likeness render`."
    ),
]
TextWords = Annotated[
    str, typer.Option(help="MIN:MAX; title and description are cut or repeated to a drawn number of words.")
]
ImagePx = Annotated[str, typer.Option(help="MIN:MAX; photos are scaled to a drawn long side and encoded as JPEG.")]
TargetMs = Annotated[float, typer.Option(min=0.001, help="The p99 to keep; failures count as infinitely late.")]
BudgetS = Annotated[
    float, typer.Option(min=0.0, help="Seconds for all runs; none but the first begins that would end later.")
]
DurationS = Annotated[float, typer.Option(min=0.1, help="Measured time of a run, after its warm-up.")]
WarmUpS = Annotated[float, typer.Option(min=0.0, help="Load before the measured time, which is not counted.")]
TimeoutS = Annotated[float, typer.Option(min=0.01, help="Deadline of every request.")]
Spread = Annotated[Arrivals, typer.Option(help="How the requests of a rate are spread.")]
Operation = Annotated[
    list[str] | None,
    typer.Option(
        help="embed, similarity (pairs) or similarity_matrix (blocks); repeatable, also as NAME=SHARE. Default: embed."
    ),
]
BatchSize = Annotated[
    list[str] | None,
    typer.Option(help="Products per request, or per side of it; repeatable, also as SIZE=SHARE. Default: 1."),
]
Mix = Annotated[
    list[str] | None,
    typer.Option(help="NAME=SHARE of the requests, repeatable, e.g. text_image=0.5. Default: products as they are."),
]
RepeatShare = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of the requests that send an earlier one again.")
]
OfMetric = Annotated[
    Metric | None,
    typer.Option(help="Metric for --operation similarity and similarity_matrix.", show_default=str(Metric.COSINE)),
]
Beside = Annotated[
    Path | None,
    typer.Option(
        help="Also the ceiling: the model repository that is served, run in one process before every run.",
        exists=True,
        file_okay=False,
    ),
]
Label = Annotated[str, typer.Option(help="Also recall@1: the field whose equality makes two alike; a+b: both.")]
Split = Annotated[
    str | None,
    typer.Option(
        help="Products that recall ranks, by their field split; empty: all. With --label.", show_default="val"
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of schedule, requests and rendered products.")]
Out = Annotated[Path | None, typer.Option(help="Report as .json; .md and .html are written beside it.")]


def parse_mix(given: Iterable[str], option: str = "--signature") -> dict[str, float]:
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
            raise InputError(f"{option} {text}: '{share}' is no number; give NAME=SHARE") from error
        if name in mix:
            raise InputError(f"{option} {text}: '{name}' is given twice; add its shares up")
        mix[name] = value
    return mix


def parse_operations(given: Iterable[str] | None) -> OperationKind | dict[OperationKind, float]:
    """Read ``NAME=SHARE`` options; a name alone has the share 1, and nothing means to embed.

    Raises:
        InputError: there is no such operation, a share is no number, or an operation is given twice.
    """
    operations: dict[OperationKind, float] = {}
    for name, share in parse_mix(given or (OperationKind.EMBED,), "--operation").items():
        if name not in set(OperationKind):
            raise InputError(f"--operation {name}: there is no such one; give {', '.join(OperationKind)}")
        operations[OperationKind(name)] = share
    return next(iter(operations)) if len(operations) == 1 else operations


def parse_sizes(given: Iterable[str] | None) -> int | dict[int, float]:
    """Read ``SIZE=SHARE`` options; a size alone has the share 1, and nothing means batches of 1.

    Raises:
        InputError: a size or a share is no number, or a size is given twice.
    """
    sizes: dict[int, float] = {}
    for text, share in parse_mix(given or ("1",), "--batch-size").items():
        if not text.isdecimal():
            raise InputError(f"--batch-size {text}: give a whole number, or SIZE=SHARE")
        sizes[int(text)] = share
    return next(iter(sizes)) if len(sizes) == 1 else sizes


def parse_cases(given: Iterable[str]) -> dict[str, dict[str, float]]:
    """Read signatures that are measured one after the other; ``a=0.5,b=0.5`` is a mix that is measured as one.

    Raises:
        InputError: a share is no number, or a name is given twice in a mix.
    """
    return {text: parse_mix(text.split(",")) for text in given}


def parse_span(text: str, option: str) -> Span | None:
    """Read ``MIN:MAX``; None where nothing is given.

    Raises:
        InputError: it is something else.
    """
    if not text:
        return None
    low, _, high = text.partition(":")
    try:
        return Span(low=int(low), high=int(high))
    except ValueError as error:  # an InputError is one, too
        raise InputError(f"{option} {text}: give MIN:MAX with 1 <= MIN <= MAX, e.g. 5:60") from error
