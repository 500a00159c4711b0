"""Where the time goes inside the server: Triton's own statistics, of every model that took part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from likeness_client.contract import MATRIX_MODEL, embed_model, pair_model
from likeness_client.errors import translate
from tritonclient.grpc.aio import InferenceServerClient

_COMPUTE = ("compute_input", "compute_infer", "compute_output")
_PARTS = ("queue", *_COMPUTE)
_DURATIONS = ("success", *_PARTS)
TIMEOUT_S = 5.0
"""How long statistics may take."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One model's part in a run; times are means per request to that model.

    Attributes:
        model: its name.
        requests: how many it answered.
        failures: how many it failed.
        total_ms: from the arrival of a request to its answer; for an ensemble, all of its steps.
        mean_batch: products per execution: how well requests were batched together. Like all that follows, None for
            ensembles: for them Triton adds up steps that ran side by side.
        queue_ms: waiting for the batcher and for a free instance.
        compute_input_ms: gathering and copying inputs.
        compute_infer_ms: the model itself.
        compute_output_ms: copying and scattering outputs.
    """

    model: str
    requests: int
    failures: int
    total_ms: float
    mean_batch: float | None
    queue_ms: float | None
    compute_input_ms: float | None
    compute_infer_ms: float | None
    compute_output_ms: float | None


@dataclass(frozen=True, kw_only=True)
class ModelCounters:
    """Triton's counters of one model since the server started; durations in nanoseconds, with their counts.

    ``busy_ns`` sums over executions, the others over requests: those that shared an execution count all of it each.
    """

    inferences: int
    executions: int
    failures: int
    count: Mapping[str, int]
    ns: Mapping[str, int]
    busy_ns: int = 0


async def read_counters(address: str, timeout_s: float = TIMEOUT_S) -> dict[str, ModelCounters]:
    """Ask a server for the counters of all its models.

    Raises:
        ServerError: it does not answer in time.
    """
    async with InferenceServerClient(address) as stub:
        with translate(address):
            answer = await stub.get_inference_statistics(client_timeout=timeout_s)
    found: dict[str, ModelCounters] = {}
    for model in answer.model_stats:
        stats = model.inference_stats
        counters = ModelCounters(
            inferences=model.inference_count,
            executions=model.execution_count,
            failures=stats.fail.count,
            count={name: getattr(stats, name).count for name in _DURATIONS},
            ns={name: getattr(stats, name).ns for name in _DURATIONS},
            busy_ns=sum(getattr(size, part).ns for size in model.batch_stats for part in _COMPUTE),
        )
        found[model.name] = _sum(found[model.name], counters) if model.name in found else counters  # versions
    return found


def step_times(before: Mapping[str, ModelCounters], after: Mapping[str, ModelCounters]) -> tuple[StepTime, ...]:
    """Return what happened between two readings: ensembles, then the others, those with the most time first.

    A model whose counters fell (its server was started again in between) is left out.
    """
    nothing = ModelCounters(
        inferences=0,
        executions=0,
        failures=0,
        count=dict.fromkeys(_DURATIONS, 0),
        ns=dict.fromkeys(_DURATIONS, 0),
    )
    steps = []
    for model, late in after.items():
        early = before.get(model, nothing)
        requests = late.count["success"] - early.count["success"]
        failures = late.failures - early.failures
        if requests < 0 or failures < 0 or not (requests or failures):
            continue
        ensemble = is_ensemble(model)
        parts = {f"{name}_ms": None if ensemble else _mean_ms(early, late, name) for name in _PARTS}
        executions = 0 if ensemble else late.executions - early.executions
        step = StepTime(
            model=model,
            requests=requests,
            failures=failures,
            total_ms=_mean_ms(early, late, "success"),
            mean_batch=(late.inferences - early.inferences) / executions if executions > 0 else None,
            **parts,
        )
        steps.append(step)
    return tuple(sorted(steps, key=lambda step: (not is_ensemble(step.model), -step.total_ms * step.requests)))


def is_ensemble(model: str) -> bool:
    """Say whether a model only wires others together."""
    return model.startswith((embed_model(""), pair_model(""))) and model != MATRIX_MODEL


def _mean_ms(early: ModelCounters, late: ModelCounters, name: str) -> float:
    count = late.count[name] - early.count[name]
    return (late.ns[name] - early.ns[name]) / count / 1e6 if count > 0 else 0.0


def _sum(one: ModelCounters, other: ModelCounters) -> ModelCounters:
    return ModelCounters(
        inferences=one.inferences + other.inferences,
        executions=one.executions + other.executions,
        failures=one.failures + other.failures,
        count={name: one.count[name] + other.count[name] for name in _DURATIONS},
        ns={name: one.ns[name] + other.ns[name] for name in _DURATIONS},
        busy_ns=one.busy_ns + other.busy_ns,
    )
