"""The command ``bench``. Imports nothing heavy before a command runs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
_bench = typer.Typer(help="Load a running server and report what it did.", no_args_is_help=True)
app.add_typer(_bench, name="bench")


@_bench.callback()
def _main() -> None:
    """Load a running server and report what it did."""


@_bench.command()
def soak(
    file: Annotated[Path, typer.Argument(help="Products, one JSON object per line.", exists=True, dir_okay=False)],
    server: Annotated[str, typer.Option(help="The gRPC endpoint, host:port.")] = "localhost:8001",
    clients: Annotated[int, typer.Option(min=1, help="Connections at once.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1)] = 30.0,
    products: Annotated[int, typer.Option(min=1, help="How many products of the file to use.")] = 200,
) -> None:
    """Many clients at once with mixed signatures; every answer is compared with the one that the product got alone."""
    from likeness_client import read_products
    from rich.console import Console
    from rich.table import Table

    from likeness_bench.soak import SoakConfig
    from likeness_bench.soak import soak as run_soak

    chosen = [product for product, _ in islice(read_products(file), products)]
    report = run_soak(chosen, SoakConfig(address=server, clients=clients, seconds=seconds))
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
