"""From products to model calls, and from answers to vectors. No I/O, and no order of events: that is `_operations`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from likeness_client._discovery import ServerInfo
from likeness_client.contract import (
    EMBEDDING,
    LEFT,
    MATRIX_MODEL,
    MAX_BLOCK_LEFT,
    MAX_BLOCK_RIGHT,
    MODALITY_WEIGHTS,
    NOTHING_KNOWN,
    RIGHT,
    SIMILARITY_MODEL,
    Metric,
    embed_model,
    modalities_of,
    pair_model,
    sided,
    signature_of,
)
from likeness_client.errors import InputError, ProductError, ServerError, ServerUnavailableError
from likeness_client.payloads import payloads
from likeness_client.records import Product
from likeness_client.results import FloatArray

T = TypeVar("T")

MAX_CALL_BYTES = 64_000_000
"""The most payload in one call. A full batch of large images would come near gRPC's 2 GB, and would wait as a whole."""
MAX_CALL_CELLS = 16_384
"""The most scores in one call of the matrix model: it computes 2 d + 1 features for each."""
_OVERFLOWN = (
    "its embedding holds NaN or infinity, so a network has overflowed, as fp16 may on a GPU: serve the fp32 export, or "
    "leave out the modality with which it fails"
)
_BLOCK_SIDE = 128  # of a square block, which carries the fewest vectors per score


@dataclass(frozen=True)
class Call:
    """One inference request.

    Attributes:
        model: the model to ask.
        version: its version, see `space_version`.
        inputs: tensors by name; object arrays hold bytes.
        outputs: the tensors to answer with.
    """

    model: str
    version: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]


Answer: TypeAlias = Mapping[str, NDArray[Any]]
"""The tensors that a call asked for, by name."""
Operation: TypeAlias = Generator[list[Call], list[Answer], T]
"""Yields calls to be run at the same time, is sent their answers in the same order, returns its result."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """The end of an operation, with its result."""

    value: T


def step(operation: Operation[T], answers: list[Answer] | None) -> list[Call] | Done[T]:
    """Take an operation one step on.

    Args:
        operation: the operation.
        answers: of the calls of the step before; None for the first step.

    Returns:
        The next calls, or the result.
    """
    try:
        return next(operation) if answers is None else operation.send(answers)
    except StopIteration as stop:
        return Done(stop.value)


class Item(NamedTuple):
    """A product as it travels. Products that travel alike are equal, and are computed once.

    Attributes:
        signature: the modalities that it has.
        parts: the bytes of each, in the order of the signature.
    """

    signature: str
    parts: tuple[bytes, ...]


class Vector(NamedTuple):
    """An embedded item: its unit vector float32 [d], and the weight of each of its modalities."""

    values: FloatArray
    weights: Mapping[str, float]


def encode(
    products: Sequence[Product], info: ServerInfo, side: str = ""
) -> tuple[list[Item | None], dict[int, ProductError]]:
    """Encode products for a server.

    Args:
        products: the products.
        info: what the server expects.
        side: which side of a comparison they are on, for the errors.

    Returns:
        Per product its item or None, and the failures by position.

    Raises:
        InputError: something is not a product.
        ServerUnavailableError: what would embed one is not ready.
    """
    items: list[Item | None] = []
    errors: dict[int, ProductError] = {}
    for index, product in enumerate(products):
        if not isinstance(product, Product):
            raise InputError(
                f"item {index} is of type {type(product).__name__}, not Product: make one of it, e.g. by "
                "Product.from_record; of vectors make Embeddings, by Embeddings.from_vectors"
            )
        try:
            items.append(_item(product, info))
        except ProductError as error:
            items.append(None)
            errors[index] = error.at(index, side)
        except ServerUnavailableError as error:
            # Its id is enough: the products of a file come here in parts, and positions in a part would mislead.
            needed_by = ProductError("", product.product_id, None, None if product.product_id else index, side).which
            raise ServerUnavailableError(
                f"{error.message}; {needed_by} needs it", "", error.model, error.code
            ) from None
    return items, errors


def _item(product: Product, info: ServerInfo) -> Item:
    found = payloads(product, info.schema, info.modalities)
    signature = signature_of(found)
    _check_ready(signature, info)
    if signature not in info.signatures:
        offered = ", ".join(info.signatures)
        way_out = "look at fewer of its modalities, or add it to serving.signatures of the recipe and export again"
        raise ProductError(f"the server does not embed '{signature}', only: {offered}; {way_out}", product.product_id)
    return Item(signature, tuple(found[name] for name in modalities_of(signature)))


def embed_calls(items: Iterable[Item], info: ServerInfo) -> list[tuple[Call, list[Item]]]:
    """Plan the calls that embed items; equal items once.

    Returns:
        Each call with the items of its rows.
    """
    groups: dict[str, list[Item]] = {}
    for item in dict.fromkeys(items):
        groups.setdefault(item.signature, []).append(item)
    planned = []
    for signature, members in groups.items():
        # Texts of like length in one batch are padded least.
        members.sort(key=lambda item: len(item.parts[0]))
        for batch in _batches(members, _weight, info.max_batch_size):
            outputs = (EMBEDDING, *_weights(signature), *info.error_outputs[signature])
            planned.append((Call(embed_model(signature), info.version, _columns(batch), outputs), batch))
    return planned


def read_embeddings(
    call: Call, answer: Answer, batch: Sequence[Item], info: ServerInfo
) -> Iterator[Vector | ProductError]:
    """Read the answer of an embedding call, row by row."""
    vectors = tensor(call, answer, EMBEDDING, (len(batch), info.dimension))
    finite = np.isfinite(vectors).all(1)
    weights = read_weights(call, answer, batch[0].signature, len(batch))
    errors = read_errors(call, answer, len(batch), info.error_outputs[batch[0].signature])
    for row, error in enumerate(errors):
        yield error or (Vector(vectors[row], weights[row]) if finite[row] else ProductError(_OVERFLOWN))


def without_unknown(item: Item, answer: Vector | ProductError, info: ServerInfo) -> Item | None:
    """Return what else an item has, if it failed because the server knows nothing in a modality; None otherwise."""
    if not (isinstance(answer, ProductError) and answer.reason == NOTHING_KNOWN):
        return None
    rest = dict(zip(modalities_of(item.signature), item.parts, strict=True))
    rest.pop(str(answer.modality), None)
    signature = signature_of(rest)
    _check_ready(signature, info)
    return Item(signature, tuple(rest.values())) if signature in {*info.signatures} - {item.signature} else None


def _check_ready(signature: str, info: ServerInfo) -> None:
    if reason := info.unready.get(signature):
        raise ServerUnavailableError(f"not ready: {reason}", model=embed_model(signature), code="UNAVAILABLE")


def _weights(signature: str) -> tuple[str, ...]:
    """Name the output that says how much each modality counted; of a single one it goes without saying."""
    return (MODALITY_WEIGHTS,) if len(modalities_of(signature)) > 1 else ()


def read_weights(call: Call, answer: Answer, signature: str, rows: int, side: str = "") -> list[dict[str, float]]:
    """Read how much each modality counted, row by row."""
    names = modalities_of(signature)
    if not _weights(signature):
        return [dict.fromkeys(names, 1.0) for _ in range(rows)]
    weights = tensor(call, answer, sided(side, MODALITY_WEIGHTS) if side else MODALITY_WEIGHTS, (rows, len(names)))
    return [dict(zip(names, row, strict=True)) for row in weights.tolist()]


def pair_calls(
    pairs: Iterable[tuple[int, Item, Item]], metrics: Sequence[Metric], info: ServerInfo
) -> list[tuple[Call, list[int]]]:
    """Plan the calls that embed and score pairs in one round trip.

    Args:
        pairs: position, left and right item of each; both of the same signature.
        metrics: the scores to ask for.
        info: what the server offers.

    Returns:
        Each call with the positions of its rows.
    """
    groups: dict[str, list[tuple[int, Item, Item]]] = {}
    for pair in pairs:
        groups.setdefault(pair[1].signature, []).append(pair)
    planned = []
    for signature, members in groups.items():
        per_side = (*_weights(signature), *info.error_outputs[signature])
        outputs = (*metrics, *(sided(side, name) for side in (LEFT, RIGHT) for name in per_side))
        for batch in _batches(members, lambda pair: _weight(pair[1]) + _weight(pair[2]), info.max_batch_size):
            left = _columns([pair[1] for pair in batch])
            right = _columns([pair[2] for pair in batch])
            inputs = {
                sided(side, name): data for side, of in ((LEFT, left), (RIGHT, right)) for name, data in of.items()
            }
            planned.append((Call(pair_model(signature), info.version, inputs, outputs), [pair[0] for pair in batch]))
    return planned


def vector_pair_calls(
    pairs: Sequence[tuple[int, FloatArray, FloatArray]], metrics: Sequence[Metric], info: ServerInfo
) -> list[tuple[Call, list[int]]]:
    """Plan the calls that score pairs of vectors; each with the positions of its rows."""
    planned = []
    for batch in _batches(pairs, lambda _: 0, info.max_batch_size):
        inputs = {LEFT: np.stack([pair[1] for pair in batch]), RIGHT: np.stack([pair[2] for pair in batch])}
        planned.append((Call(SIMILARITY_MODEL, info.version, inputs, tuple(metrics)), [pair[0] for pair in batch]))
    return planned


def matrix_calls(
    left: FloatArray, right: FloatArray, metric: Metric, info: ServerInfo
) -> list[tuple[Call, slice, slice]]:
    """Plan the calls that score all rows of ``left`` with all rows of ``right``; each with its rows and columns."""
    columns = min(len(right), _BLOCK_SIDE)
    rows = min(len(left), MAX_CALL_CELLS // max(columns, 1), MAX_BLOCK_LEFT)
    columns = min(len(right), MAX_CALL_CELLS // max(rows, 1), MAX_BLOCK_RIGHT)  # few rows leave room for wider blocks
    return [
        (
            Call(MATRIX_MODEL, info.version, {LEFT: left[None, of_rows], RIGHT: right[None, of_columns]}, (metric,)),
            of_rows,
            of_columns,
        )
        for of_rows in _slices(len(left), rows)
        for of_columns in _slices(len(right), columns)
    ]


def read_errors(
    call: Call, answer: Answer, count: int, outputs: Mapping[str, str], side: str = ""
) -> list[ProductError | None]:
    """Read the error outputs of one side (empty: of a call without sides): per row the first failure, or None.

    An input that one of its towers cannot read has failed; one that a tower knows nothing in, only if no other does.

    Args:
        call: the call.
        answer: its answer.
        count: rows.
        outputs: the error outputs -> the modality of each, as `ServerInfo.error_outputs` has them.
        side: of a comparison.
    """
    columns = [tensor(call, answer, sided(side, name) if side else name, (count, 1))[:, 0] for name in outputs]
    found: list[ProductError | None] = []
    for row in zip(*columns, strict=True):
        if not any(row):
            found.append(None)
            continue
        reasons = dict(zip(outputs, map(_text, row), strict=True))
        fault = next((name for name, reason in reasons.items() if reason not in ("", NOTHING_KNOWN)), None)
        known = {outputs[name] for name, reason in reasons.items() if not reason}
        unknown = next((modality for modality in outputs.values() if modality not in known), None)
        if fault:
            found.append(ProductError(reasons[fault], modality=outputs[fault], side=side))
        else:
            found.append(ProductError(NOTHING_KNOWN, modality=unknown, side=side) if unknown else None)
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def tensor(call: Call, answer: Answer, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return one tensor of an answer.

    Raises:
        ServerError: it is missing or has another shape than the contract says.
    """
    found = answer.get(name)
    if found is None or found.shape != shape:
        what = "no such output" if found is None else f"the shape {list(found.shape)}"
        raise ServerError(f"answered {what} for '{name}', expected {list(shape)}", model=call.model, code="INTERNAL")
    return found


def _columns(batch: Sequence[Item]) -> dict[str, NDArray[Any]]:
    """Return one BYTES tensor [n, 1] per modality. All items have the same signature."""
    columns: dict[str, NDArray[Any]] = {}
    for position, name in enumerate(modalities_of(batch[0].signature)):
        columns[name] = np.empty((len(batch), 1), dtype=np.object_)
        columns[name][:, 0] = [item.parts[position] for item in batch]
    return columns


def _weight(item: Item) -> int:
    return sum(len(part) for part in item.parts)


def _batches(rows: Sequence[T], weigh: Callable[[T], int], max_rows: int) -> Iterator[list[T]]:
    """Cut rows into batches of at most ``max_rows`` and `MAX_CALL_BYTES`; a heavier row goes alone."""
    batch: list[T] = []
    total = 0
    for row in rows:
        weight = weigh(row)
        if batch and (len(batch) == max_rows or total + weight > MAX_CALL_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += weight
    if batch:
        yield batch


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)] if length else []
