"""The command ``likeness``: its own commands, and those of the packages that are installed beside it."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from dataclasses import asdict
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from likeness_client import _files
from likeness_client._bulk import EmbedRun, chunks, own_steps
from likeness_client._channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, Tls
from likeness_client.client import Client
from likeness_client.contract import MODALITIES, Metric
from likeness_client.errors import (
    InputError,
    LikenessError,
    MissingExtraError,
    RecordError,
    SpaceMismatchError,
)
from likeness_client.records import Product
from likeness_client.results import Comparison
from likeness_client.writing import WAYS_OUT

COMMAND_GROUP = "likeness.commands"
"""Entry points that add commands; each is a ``typer.Typer``."""
EXTRA_OF = {
    "gensim": "export",
    "implicit": "export",
    "matplotlib": "export",
    "onnx": "export",
    "onnxscript": "export",
    "pydantic": "export",
    "rich": "export",
    "safetensors": "export",
    "scipy": "export",
    "sklearn": "export",
    "threadpoolctl": "export",
    "torch": "export",
    "transformers": "export",
    "huggingface_hub": "export",
    "PIL": "serve",
    "av": "serve",
    "onnxruntime": "serve",
    "pytriton": "serve",
    "tokenizers": "serve",
    "joblib": "bench",
    "psutil": "bench",
    "tomlkit": "bench",
    "pyarrow": "parquet",
}
"""Optional package -> the extra that brings it."""
BULK_TIMEOUT_S = 300.0
"""Deadline where nobody waits for a single answer, and a call queues behind seven others of the same command."""
_INTERRUPTED = 130  # what typer, as shells, makes of Ctrl-C

app = typer.Typer(
    name="likeness",
    help="How alike are two products?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # else paragraphs after the first keep the line breaks of their docstring
    pretty_exceptions_show_locals=False,  # locals hold whole images
)
Server = Annotated[str, typer.Option(help="The gRPC endpoint, host:port.")]
Timeout = Annotated[float, typer.Option(min=0.01, help="Deadline of each call to the server.")]


def main() -> None:
    """Run the command; every error of this project becomes one line on stderr and exit code 1."""
    signal.signal(signal.SIGTERM, _terminated)  # what is half-written has to go, as after Ctrl-C
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that it cannot hold is no reason to fail; stderr's default
        sys.stdout.reconfigure(errors="backslashreplace")
    hints: list[str] = []
    try:
        hints += _load_commands()
        app()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # and says nothing
            _stop("interrupted", _INTERRUPTED)
        known = {command.name or "" for command in typer.main.get_group(app).commands.values()}
        if stop.code == 2 and sys.argv[1:] and sys.argv[1] not in known:
            for hint in hints:  # why a command that exists is not known here
                typer.echo(hint, err=True)
        raise
    except LikenessError as error:
        _stop(str(error), 1)
    except ModuleNotFoundError as error:
        missing = _missing_extra(error)
        if missing is None:
            raise
        _stop(str(missing), 1)
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename is None:
            if error.strerror == os.strerror(errno.ENOENT):  # the system names no file only where asked for this one
                _stop("the folder that this was started in is gone: change into another one", 1)
            # tempfile's own words: nothing can be written there
            _stop(f"{error.strerror}: make room in one of them, or name another folder by TMPDIR", 1)
        if error.errno not in WAYS_OUT:
            raise
        _stop(f"{error.filename or 'a file'}: {error.strerror}; {WAYS_OUT[error.errno]}", 1)
    except KeyboardInterrupt:
        _stop("interrupted", _INTERRUPTED)


@app.callback()
def _likeness(
    context: typer.Context,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt calls to a server.")] = False,
    root_certificates: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities to trust; with --tls.", dir_okay=False)
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option(help="PEM file of your key, for mutual TLS; with --tls.", dir_okay=False)
    ] = None,
    certificate_chain: Annotated[
        Path | None, typer.Option(help="PEM file of your certificates, for mutual TLS; with --tls.", dir_okay=False)
    ] = None,
    authorization: Annotated[
        str,
        typer.Option(envvar="LIKENESS_AUTHORIZATION", show_envvar=True, help="The header of that name, for a gateway."),
    ] = "",
    show_version: Annotated[  # noqa: ARG001 (its callback ends the command)
        bool, typer.Option("--version", is_eager=True, callback=lambda on: _show_version(on), help="Show the version.")
    ] = False,
) -> None:
    """How alike are two products? Train, export, serve and query multimodal product similarity."""
    files = {
        "root_certificates": root_certificates,
        "private_key": private_key,
        "certificate_chain": certificate_chain,
    }
    if not tls and (given := next((name for name, path in files.items() if path), None)):
        raise InputError(f"--{given.replace('_', '-')} encrypts nothing by itself: give --tls too")
    if authorization and not tls:
        typer.echo("the authorization header is sent unencrypted: give --tls, unless the network is your own", err=True)
    context.obj = {
        "tls": Tls(**files) if tls else None,
        "headers": {"authorization": authorization} if authorization else None,
    }


def gateway(context: typer.Context) -> dict[str, Any]:
    """Return what the options before the command say of a gateway before the server, as arguments of a client."""
    return context.find_root().obj or {}


def open_client(context: typer.Context, server: str, timeout_s: float) -> Client:
    """Open a client as the options before the command say."""
    return Client(server, timeout_s=timeout_s, **gateway(context))


@app.command()
def embed(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Products, one JSON object per line.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Where to write: .parquet or .npz.")],
    server: Server = DEFAULT_ADDRESS,
    modality: Annotated[
        list[str] | None,
        typer.Option(help="Look at this modality only, as if products had nothing else; default: all. Repeatable."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Products per step; bounds the memory.")] = 256,
    timeout_s: Timeout = BULK_TIMEOUT_S,
    patience_s: Annotated[
        float, typer.Option(min=0, help="How long a server that has answered is waited for when it is gone.")
    ] = 300.0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if anything failed.")] = False,
) -> None:
    """Embed the products of a file. Bad lines and products are reported; the others go on."""
    _files.check_path(out)
    if not file.is_file():  # lines are counted first, for the progress bar
        raise InputError(f"{file} is no file that can be read twice: write it to disk first")
    with file.open("rb") as lines:
        total = sum(1 for _ in lines)
    bar = typer.progressbar(length=total, label="embedding", file=sys.stderr, width=0)  # as wide as the terminal
    with open_client(context, server, timeout_s) as client, own_steps(out) as steps:
        with _files.writing(out) as writer:
            run = EmbedRun(client, writer, steps, modality or None, patience_s)
            try:
                with bar:
                    for chunk in chunks(file, batch_size):
                        run.add(chunk)
                        bar.update(len(chunk))
            except SpaceMismatchError:  # what is kept is of no use to the new server
                raise
            except BaseException:
                run.say_what_is_kept()
                raise
            run.report()
            if not run.succeeded and not run.failed:
                raise InputError(f"{file} holds no products: give a file with one JSON object per line")
            if not run.succeeded:
                raise InputError(f"no product of {file} could be embedded; nothing was written")
        run.forget_steps()
    read = ", ".join(f"{name} {count}" for name, count in run.read.items())  # a misspelt key is seen here
    typer.echo(f"{run.succeeded} products embedded to {out}; read: {read}", err=True)
    if strict and run.failed:
        raise typer.Exit(1)


@app.command()
def compare(
    context: typer.Context,
    left: Annotated[str, typer.Argument(help="A product: a JSON object, or the path of a JSON file.")],
    right: Annotated[str, typer.Argument(help="The other product.")],
    server: Server = DEFAULT_ADDRESS,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Compare two products, and show how much each modality counted."""
    products = _product(left, "left"), _product(right, "right")
    with open_client(context, server, timeout_s) as client:
        typer.echo(_table(client.compare(*products)))


@app.command()
def info(context: typer.Context, server: Server = DEFAULT_ADDRESS, timeout_s: Timeout = DEFAULT_TIMEOUT_S) -> None:
    """Say as JSON what a server offers: its space, what it embeds and reads, what of it is not ready."""
    with open_client(context, server, timeout_s) as client:
        found = client.info()
    told = {key: value for key, value in asdict(found).items() if key != "error_outputs"}
    typer.echo(json.dumps(told | {"version": found.version}, indent=1))


def _product(text: str, side: str) -> Product:
    """Read a product from JSON text or from a file; image paths are relative to the file, or to where we are."""
    base, way_out = Path(), "give one JSON object, or the path of a file that holds one"
    if not text.lstrip().startswith("{"):
        path = Path(text)
        base = path.parent
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{side}: cannot read {path!s:.200}: {reason}; {way_out}") from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{side}: not JSON: {error}; {way_out}") from error
    if not isinstance(record, dict):
        raise InputError(f"{side}: not a JSON object; {way_out}")
    try:
        return Product.from_record(record, base)
    except RecordError as error:
        raise InputError(f"{side}: {error}") from error


def _table(result: Comparison) -> str:
    meaning = {
        Metric.COSINE: "-1 to 1, higher is more alike",
        Metric.EUCLIDEAN: "0 to 2, lower is more alike",
        Metric.LEARNED: "0 to 1, higher is more alike",
    }
    lines = [f"{metric:<10} {getattr(result, metric):8.4f}   {meaning[metric]}" for metric in Metric]
    sides = {"left": result.left_weights, "right": result.right_weights}
    shown = [name for name in MODALITIES if any(name in weights for weights in sides.values())]
    lines += ["", f"{'weights':<10} " + " ".join(f"{name:>10}" for name in shown)]
    for side, weights in sides.items():
        cells = (f"{weights[name]:10.3f}" if name in weights else f"{'-':>10}" for name in shown)
        lines.append(f"{side:<10} " + " ".join(cells))
    return "\n".join(lines)


def _load_commands() -> list[str]:
    """Add the commands of the other packages.

    Returns:
        For each package that could not be loaded, why.
    """
    hints = []
    for entry in sorted(entry_points(group=COMMAND_GROUP)):
        try:
            app.add_typer(entry.load())
        except ModuleNotFoundError as error:
            reason = _missing_extra(error) or error
            hints.append(f"The commands of {entry.module.partition('.')[0]} are not available: {reason}")
    return hints


def _missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    package = (error.name or "").partition(".")[0]
    return MissingExtraError(EXTRA_OF[package], f"`{package}`") if package in EXTRA_OF else None


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"likeness {version('likeness')}")
        raise typer.Exit


def _terminated(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise SystemExit(code)
