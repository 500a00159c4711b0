"""What it gains to compute texts of like length together: the text network of a repository, without a server."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from likeness_bench.configs import cpu_parameters, read_config
from likeness_client import InputError, InputSchema, Product
from likeness_client.contract import SCHEMA_PARAMETER, embed_model, encoder_model, preprocess_model
from likeness_client.payloads import sendable
from likeness_export.preprocessing.text import SETTINGS_FILE, TOKENIZER_FILE, Preprocessor
from likeness_export.repository.adapters.lengths import by_length, used_lengths
from likeness_export.repository.adapters.session import open_session
from numpy.typing import NDArray

from comparisons.measured import Measurement, Quantity, measure
from comparisons.rounds import ComparisonError

TO_LIMIT, TO_BATCH, GROUPED = "padded to max_tokens", "padded to the longest", "grouped by length"
TEXTS_PER_S = Quantity(name="texts/s", higher_is_better=True, compared=True)
TOKENS = Quantity(name="tokens computed per text", digits=1)
PADDING = Quantity(name="of them padding %", digits=0)
RUNS = Quantity(name="runs per batch", digits=2)
TOLERANCE = 1e-4
Columns = list[NDArray[Any]]
Compute = Callable[[Columns], Columns]
"""Runs the network: its inputs to its outputs."""
Way = Callable[[Columns, Compute], Columns]
"""Computes a batch: its tensors, and what runs the network, to the network's outputs."""


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """The text tower of a repository.

    Attributes:
        tower: its name.
        preprocessor: texts to the tensors of the network.
        inputs: their names, in the order of the network.
        compute: runs the network with one thread, as every run of the server has.
        max_tokens: of the longest text.
        run_tokens: what one more run costs, in tokens of padding.
    """

    tower: str
    preprocessor: Preprocessor
    inputs: tuple[str, ...]
    compute: Compute
    max_tokens: int
    run_tokens: int

    def columns(self, texts: Sequence[bytes]) -> Columns:
        """Return the tensors of some texts, as long as the longest of them needs."""
        tensors, _ = self.preprocessor(list(texts))
        return [tensors[name][:, : used_lengths(list(tensors.values())).max()] for name in self.inputs]


def text_model(repository: Path) -> TextModel | None:
    """Open the text tower of a repository whose texts differ in length; None where it has none.

    Raises:
        InputError: its network is not there.
    """
    found = sorted(repository.glob(f"{preprocess_model('*')}/*/assets/{TOKENIZER_FILE}"))
    assets = next((path.parent for path in found if (path.parent / SETTINGS_FILE).is_file()), None)
    if assets is None:
        return None
    tower = assets.parents[1].name.removesuffix(preprocess_model(""))
    encoder = encoder_model(tower)
    parameters = cpu_parameters(repository, encoder)
    if "run_tokens" not in parameters:
        raise InputError(f"{repository / encoder} does not group its texts by length: export the repository again")
    preprocessor = Preprocessor(assets)
    inputs = tuple(tensor.name for tensor in read_config(repository, encoder).input)
    return TextModel(
        tower=tower,
        preprocessor=preprocessor,
        inputs=inputs,
        compute=_network(repository / encoder / assets.parent.name / "model.onnx", inputs),
        max_tokens=max(preprocessor.buckets),
        run_tokens=int(parameters["run_tokens"]),
    )


def texts_of(products: Sequence[Product], repository: Path, model: TextModel) -> list[bytes]:
    """Return the texts of products as a client sends them; equal ones once, those that a server refuses left out.

    Raises:
        InputError: there are none.
    """
    config = read_config(repository, embed_model("text"))
    schema = InputSchema.from_json(config.parameters[SCHEMA_PARAMETER].string_value)
    found = dict.fromkeys(text for product in products for text in sendable(product, schema, ["text"]).values())
    _, errors = model.preprocessor(list(found))
    if not (readable := [text for text, error in zip(found, errors, strict=True) if not error]):
        raise InputError(f"none of {len(products)} products has a text that the server takes: give other products")
    return readable


def measure_texts(model: TextModel, texts: Sequence[bytes], batch_size: int, batches: int, rounds: int) -> Measurement:
    """Compute batches of texts in three ways; every round has other batches, the same ones for each way.

    Raises:
        InputError: there are too few texts for one batch.
        ComparisonError: the ways do not give the same embeddings.
    """
    if len(texts) < batch_size:
        raise InputError(f"{len(texts)} different texts are too few for a batch of {batch_size}: give more products")
    ways = ways_of(model)
    check(ways, model.compute, model.columns(texts[:batch_size]))

    def take(name: str, number: int) -> Mapping[str, float]:
        drawn = [model.columns(chosen) for chosen in draw(texts, batch_size, batches, number)]
        return timed(ways[name], model.compute, drawn)

    return measure(
        title=f"{model.tower} network, batches of {batch_size} texts, one thread",
        contenders={name: partial(take, name) for name in ways},
        rounds=rounds,
        quantities=(TEXTS_PER_S, TOKENS, PADDING, RUNS),
        pairs=((TO_BATCH, TO_LIMIT), (GROUPED, TO_BATCH), (GROUPED, TO_LIMIT)),
    )


def ways_of(model: TextModel) -> dict[str, Way]:
    """Return the ways to compute a batch."""

    def to_limit(columns: Columns, compute: Compute) -> Columns:
        missing = model.max_tokens - columns[0].shape[1]
        return compute([np.pad(tensor, ((0, 0), (0, missing))) for tensor in columns])

    def grouped(columns: Columns, compute: Compute) -> Columns:
        return by_length([[tensor] for tensor in columns], compute, model.run_tokens)

    return {TO_LIMIT: to_limit, TO_BATCH: lambda columns, compute: compute(columns), GROUPED: grouped}


def check(ways: Mapping[str, Way], compute: Compute, columns: Columns) -> None:
    """See that all ways give the same.

    Raises:
        ComparisonError: they do not.
    """
    expected = ways[TO_BATCH](columns, compute)[0]
    for name, way in ways.items():
        worst = float(np.abs(way(columns, compute)[0] - expected).max())
        if not worst <= TOLERANCE:
            raise ComparisonError(f"{name} gives other embeddings, by {worst:.1e}: it does not do the same work")


def draw(texts: Sequence[bytes], batch_size: int, batches: int, number: int) -> list[list[bytes]]:
    """Draw the batches of a round: the same number draws the same ones."""
    rng = random.Random(number)
    return [rng.sample(list(texts), batch_size) for _ in range(batches)]


def timed(way: Way, compute: Compute, drawn: Sequence[Columns]) -> dict[str, float]:
    """Compute batches one after the other, and count what the network had to do."""
    shapes: list[tuple[int, ...]] = []

    def counted(columns: Columns) -> Columns:
        shapes.append(columns[0].shape)
        return compute(columns)

    way(drawn[0], compute)  # not counted
    began = time.perf_counter()
    for columns in drawn:
        way(columns, counted)
    seconds = time.perf_counter() - began
    texts = sum(len(columns[0]) for columns in drawn)
    tokens = sum(rows * length for rows, length, *_ in shapes)
    used = sum(int(used_lengths(columns).sum()) for columns in drawn)
    return {
        TEXTS_PER_S.name: texts / seconds,
        TOKENS.name: tokens / texts,
        PADDING.name: 100 * (tokens - used) / tokens,
        RUNS.name: len(shapes) / len(drawn),
    }


def lengths_name(model: TextModel, texts: Sequence[bytes]) -> str:
    """Say how the lengths of some texts are spread, in tokens."""
    some = list(islice(texts, 1000))
    lengths = used_lengths(model.columns(some))
    low, middle, high = np.percentile(lengths, (5, 50, 95))
    limit = f"cut at {model.max_tokens}"
    return f"{len(texts)} different ones; 5, 50, 95 % have up to {low:.0f}, {middle:.0f}, {high:.0f} tokens, {limit}"


def _network(path: Path, inputs: Sequence[str]) -> Compute:
    if not path.is_file():
        raise InputError(f"{path} is not there: export the repository again")
    session = open_session(path, threads=1)

    def compute(columns: Columns) -> Columns:
        found: Columns = session.run(None, dict(zip(inputs, columns, strict=True)))
        return found

    return compute
