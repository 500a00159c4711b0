"""Where the time of a pipeline goes: the service time of each step, from Triton's own statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from likeness_bench.steps import ModelCounters, happened, is_ensemble

_MINOR, _MINOR_OF_MEAN = 0.05, 0.5


@dataclass(frozen=True, kw_only=True)
class ServiceTime:
    """One step's part in a load.

    Attributes:
        step: the model.
        products: how many went through it.
        executions: in how many batches.
        mean_batch: products per execution.
        service_ms: time in executions per product.
        batch_ms: the same per execution.
        share: of the time in executions of all steps, 0 to 1.
        queue_ms: mean time that a request waited for an execution.
    """

    step: str
    products: int
    executions: int
    mean_batch: float
    service_ms: float
    batch_ms: float
    share: float
    queue_ms: float


def service_times(before: Mapping[str, ModelCounters], after: Mapping[str, ModelCounters]) -> tuple[ServiceTime, ...]:
    """Return the steps that worked between two readings, those with the largest share first."""
    worked = {
        model: found
        for model, found in happened(before, after)
        if found.executions > 0 and found.inferences > 0 and not is_ensemble(model)
    }
    whole_ns = sum(found.busy_ns for found in worked.values()) or 1
    times = [
        ServiceTime(
            step=model,
            products=found.inferences,
            executions=found.executions,
            mean_batch=found.inferences / found.executions,
            service_ms=found.busy_ns / found.inferences / 1e6,
            batch_ms=found.busy_ns / found.executions / 1e6,
            share=found.busy_ns / whole_ns,
            queue_ms=found.mean_ms("queue"),
        )
        for model, found in worked.items()
    ]
    return tuple(sorted(times, key=lambda time: (-time.share, time.step)))


def worth_tuning(times: Sequence[ServiceTime]) -> tuple[ServiceTime, ...]:
    """Return the steps whose execution can make a difference.

    The limit is a share of 5 %, or half of the mean where there are so many steps that each has little.
    """
    limit = min(_MINOR, _MINOR_OF_MEAN / max(1, len(times)))
    return tuple(time for time in times if time.share >= limit)
