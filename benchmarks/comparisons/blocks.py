"""Blocks of similarities: many queries with many candidates, of products that are embedded already."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from likeness_client import Client, Embeddings, Metric
from numpy.typing import NDArray

from comparisons.configs import BlocksConfig
from comparisons.learned_blocks import measure_learned
from comparisons.measured import Measurement, Quantity, measure, measure_all, per_call_s
from comparisons.report import ComparisonReport, machine
from comparisons.rounds import ComparisonError
from comparisons.servers import likeness_server
from comparisons.vectors import drawn

CALLER_METRICS = (Metric.COSINE, Metric.EUCLIDEAN)
PRODUCT = "numpy matrix product"
NOWHERE = "localhost:1"
WITHIN = 1.5
"""How many times the bare matrix product's time scores at the caller may take."""
MS = Quantity(name="ms", digits=2, compared=True)
PAIRS_PER_S = Quantity(name="10^6 pairs/s", digits=3, higher_is_better=True)
ARRAYS_MB = Quantity(name="MB of arrays", digits=1)


def compare_blocks(config: BlocksConfig) -> ComparisonReport:
    """Measure; see the module.

    Raises:
        LikenessError: the server fails, or the scores are not what they should be.
    """
    facts = machine()
    said = ["embeddings are drawn at random, of unit length: the arithmetic is the same for all"]
    planned = [partial(measure_caller, config)]
    if config.repository:
        planned.append(partial(measure_served, config, config.repository))
    sections = measure_all(planned)
    facts |= {f"{found.ours}, within {WITHIN} x": verdict(found.median) for found in sections[0].ratios}
    if config.repository:
        facts["repository"] = f"{config.repository}, cpu profile, gRPC"
        said.append("learned: the server computes it, the client cuts a block into calls; each turn is a new process")
        said.append("server, peak MB: the sum over its processes; pages that they share count several times")
    return ComparisonReport(title="Blocks of similarities", settings=tuple(sections), facts=facts, notes=tuple(said))


def measure_served(config: BlocksConfig, repository: Path) -> Measurement:
    """Ask a server for a block of learned scores.

    Raises:
        LikenessError: the server cannot be started, or fails.
    """
    with likeness_server(repository, config.environments / "likeness.log") as address:
        return measure_learned(config, address)


def measure_caller(config: BlocksConfig) -> Measurement:
    """Compute cosine and Euclidean scores as the client does for embeddings, and the bare matrix product beside them.

    Raises:
        ComparisonError: a score is not what its definition says.
    """
    left = drawn(config.queries, config.dimension, "here", seed=1)
    right = drawn(config.candidates, config.dimension, "here", seed=2)
    ways: dict[str, Callable[[], object]] = {
        PRODUCT: lambda: left.vectors @ right.vectors.T,
        **{metric.value: partial(scored, left, right, metric) for metric in CALLER_METRICS},
    }
    for metric in CALLER_METRICS:
        check(left, right, metric)
    pairs = config.queries * config.candidates

    peaks_mb = {name: arrays_mb(work) for name, work in ways.items()}

    def take(name: str, _round: int) -> Mapping[str, float]:
        seconds = per_call_s(ways[name], config.turn_s)
        return {MS.name: 1000 * seconds, PAIRS_PER_S.name: pairs / seconds / 1e6, ARRAYS_MB.name: peaks_mb[name]}

    return measure(
        title=f"{config.queries:,} x {config.candidates:,} at the caller, d = {config.dimension}",
        contenders={name: partial(take, name) for name in ways},
        rounds=config.rounds,
        quantities=(MS, PAIRS_PER_S, ARRAYS_MB),
        pairs=tuple((metric.value, PRODUCT) for metric in CALLER_METRICS),
    )


def scored(left: Embeddings, right: Embeddings, metric: Metric) -> NDArray[np.float32]:
    """Score two sides at the caller: for given embeddings and such a metric the client asks no server."""
    return Client(NOWHERE, max_attempts=1).similarity_matrix(left, right, metric=metric).values


def check(left: Embeddings, right: Embeddings, metric: Metric) -> None:
    """See that the scores of some rows are what their definition says.

    Raises:
        ComparisonError: they are not.
    """
    rows, columns = (Embeddings.from_vectors(side.vectors[:8], side.space) for side in (left, right))
    exact = rows.vectors.astype(np.float64) @ columns.vectors.T.astype(np.float64)
    expected = exact if metric is Metric.COSINE else np.sqrt(np.maximum(2.0 - 2.0 * exact, 0.0))
    worst = float(np.abs(scored(rows, columns, metric) - expected).max())
    if not worst <= 1e-5:
        raise ComparisonError(f"{metric} scores differ by {worst:.1e} from their definition: mend them first")


def arrays_mb(work: Callable[[], object]) -> float:
    """Return the most memory that NumPy's arrays take during a call, its result included, in 10^6 bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def verdict(ratio: float) -> str:
    """Say whether a ratio of times keeps the target."""
    return f"{'yes' if ratio <= WITHIN else 'NO'}, {ratio:.2f} x in the median"
