"""Embedding the products of a file in steps, each of which is kept until the whole is written."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path

import typer

from likeness_client._files import Writer
from likeness_client.client import Client
from likeness_client.contract import embed_model, modalities_of
from likeness_client.errors import (
    InputError,
    LikenessError,
    RecordError,
    ServerError,
    SpaceMismatchError,
)
from likeness_client.locking import locked
from likeness_client.records import Product, scan_products
from likeness_client.results import Embeddings
from likeness_client.writing import told

NAMED_FAILURES = 10
_PAUSE_S = 2.0
_STEPS = "[0-9a-f]" * 32 + ".npz"
_HOPELESS = ("NOT_FOUND", "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED")
"""What waiting does not cure."""


@contextmanager
def own_steps(out: Path) -> Iterator[Path]:
    """Give the folder in which the steps of an unfinished run are kept; it goes when nothing is kept in it.

    It lies beside the file that the run writes, where a link leads to.

    Raises:
        InputError: another process writes that file, or the folder cannot be made.
    """
    whole = out.resolve()
    steps = whole.with_name(f"{whole.name}.steps")
    with told(steps):
        steps.mkdir(exist_ok=True)
    with locked(steps / "lock", f"{out} is being written"):
        try:
            yield steps
        finally:
            if not any(steps.glob(_STEPS)):
                for left in (*steps.glob(f".{_STEPS}.*.partial"), steps / "lock"):
                    left.unlink(missing_ok=True)
                with suppress(OSError):  # somebody else's files lie there, too
                    steps.rmdir()


def chunks(file: Path, size: int) -> Iterator[list[Product | RecordError]]:
    """Cut the lines of a product file into steps."""
    items = (item if isinstance(item, RecordError) else item[0] for item in scan_products(file))
    while chunk := list(islice(items, size)):
        yield chunk


@dataclass
class EmbedRun:
    """What a run of ``likeness embed`` looks at, and what it has so far.

    Attributes:
        client: whom it asks.
        writer: where the embeddings go.
        steps: the folder of steps that were embedded, by this run or one before it that was interrupted.
        modalities: those to look at; None: all.
        patience_s: how long to wait for a server that was there and is gone.
    """

    client: Client
    writer: Writer
    steps: Path
    modalities: Collection[str] | None
    patience_s: float
    space: str = ""
    offered: Collection[str] = ()  # sets of modalities: by less of them a product has another embedding
    down: Collection[str] = ()  # ensembles that were not ready when it began: nobody knows that they ever will be
    max_photos: int = 1  # of a product; others are not read
    succeeded: int = 0
    failed: int = 0
    read: Counter[str] = field(default_factory=Counter)  # per modality that is looked at, how many products had it
    named: list[str] = field(default_factory=list)

    def add(self, chunk: Sequence[Product | RecordError]) -> None:
        """Embed one step, unless it was before; positions in messages are those of the rows that are written.

        Raises:
            SpaceMismatchError: the server was replaced by one of another space.
            ServerError: it is gone for good.
        """
        for item in chunk:
            if isinstance(item, RecordError):
                self._fail(item)
        products = [item for item in chunk if isinstance(item, Product)]
        if not products:
            return
        if not self.space:
            info = self.client.info()
            self.max_photos = info.schema.max_photos
            self.space, self.down = info.space, [embed_model(signature) for signature in info.unready]
            self.offered = sorted({*info.signatures, *info.unready})
            self.read.update(dict.fromkeys(self.modalities or info.modalities, 0))
        found = self._step(products)
        for index, failed in found.errors.items():
            self._fail(failed.at(self.writer.rows + index))
        self.read.update(name for signature in found.signatures if signature for name in modalities_of(signature))
        self.writer.add(found)
        self.succeeded += len(found) - len(found.errors)

    def report(self) -> None:
        """Name the first failures on stderr, and count the others."""
        if self.failed:
            more = self.failed - len(self.named)
            lines = [f"{self.failed} failed:", *self.named, *([f"and {more} more"] if more else [])]
            typer.echo("\n  ".join(lines), err=True)

    def say_what_is_kept(self) -> None:
        """Say on stderr how an interrupted run goes on."""
        if any(self.steps.glob(_STEPS)):
            typer.echo(f"\nwhat was embedded is kept in {self.steps}: the same command goes on from there", err=True)

    def forget_steps(self) -> None:
        """Remove the kept steps: the whole is written."""
        for step in self.steps.glob(_STEPS):
            step.unlink(missing_ok=True)

    def _step(self, products: Sequence[Product]) -> Embeddings:
        read = [replace(product, images=product.images[: self.max_photos]) for product in products]
        path = self.steps / f"{_digest(read, self.modalities, self.space, self.offered)}.npz"
        try:
            return Embeddings.load(path)
        except InputError:  # there is none, or it was damaged
            found = self._ask(products)
        if found.space != self.space:
            raise SpaceMismatchError(
                f"the server was replaced by one of another space, {found.space} for {self.space}: give the command "
                "again, which embeds all products anew"
            )
        if len(found.errors) < len(found):
            found.save(path)
        return found

    def _ask(self, products: Sequence[Product]) -> Embeddings:
        """Embed products; a server that is gone or overwhelmed after it has answered is probably coming back."""
        gives_up_s = 0.0
        while True:
            try:
                return self.client.embed(products, modalities=self.modalities, on_error="return")
            except ServerError as error:  # a model's process that was killed gives INTERNAL until the server has ended
                hopeless = error.code in _HOPELESS or error.model in self.down
                # A deadline may have taken longer than anybody's patience: one more try is due all the same.
                gives_up_s = gives_up_s or time.monotonic() + self.patience_s
                if hopeless or not self.writer.rows or time.monotonic() >= gives_up_s:
                    raise
                typer.echo(f"\nwaiting, {gives_up_s - time.monotonic():.0f} s at most: {error}", err=True)
                time.sleep(_PAUSE_S)

    def _fail(self, error: LikenessError) -> None:
        self.failed += 1
        if len(self.named) < NAMED_FAILURES:
            self.named.append(str(error))


def _digest(products: Sequence[Product], *asked: object) -> str:
    """Return a name for these products and what they are asked for; a file counts by its size and time."""
    files = [source for product in products for source in (*product.images, product.video)]
    times = [_stamp(source) for source in files if isinstance(source, Path)]
    # Field by field: a product shows itself only in part.
    whole = (asked, [[getattr(product, one.name) for one in fields(product)] for product in products], times)
    return hashlib.sha256(repr(whole).encode("utf-8", "replace")).hexdigest()[:32]


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        known = file.stat()
    except OSError:  # it fails by itself
        return None
    return known.st_size, known.st_mtime_ns, known.st_ctime_ns  # the last also tells when it was made readable
