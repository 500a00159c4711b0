"""Where the time goes inside the server: Triton's own statistics, of every model that took part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

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

    def plus(self, other: ModelCounters, sign: int = 1) -> ModelCounters:
        """Return the sums of both, counter by counter; with ``sign = -1`` what happened since the other."""
        return ModelCounters(
            inferences=self.inferences + sign * other.inferences,
            executions=self.executions + sign * other.executions,
            failures=self.failures + sign * other.failures,
            count={name: self.count[name] + sign * other.count[name] for name in _DURATIONS},
            ns={name: self.ns[name] + sign * other.ns[name] for name in _DURATIONS},
            busy_ns=self.busy_ns + sign * other.busy_ns,
        )

    def mean_ms(self, name: str) -> float:
        """Return the mean of one of the durations; 0 where nothing was counted."""
        return self.ns[name] / self.count[name] / 1e6 if self.count[name] > 0 else 0.0


def happened(
    before: Mapping[str, ModelCounters], after: Mapping[str, ModelCounters]
) -> Iterator[tuple[str, ModelCounters]]:
    """Yield every model with what happened to it between two readings; below 0 where its server was started again."""
    for model, late in after.items():
        yield model, late.plus(before[model], -1) if model in before else late


def started_again(before: Mapping[str, ModelCounters], after: Mapping[str, ModelCounters]) -> bool:
    """Say whether counters fell between two readings: then the second ones are of another process."""
    since = [found for _, found in happened(before, after)]
    return any(min(found.executions, found.failures, found.count["success"]) < 0 for found in since)


async def read_counters(
    address: str, timeout_s: float = TIMEOUT_S, gateway: Mapping[str, Any] | None = None
) -> dict[str, ModelCounters]:
    """Ask a server for the counters of all its models.

    Args:
        address: its gRPC endpoint.
        timeout_s: the deadline.
        gateway: see `LoadConfig`.

    Raises:
        ServerError: it does not answer in time.
    """
    tls, headers = ((gateway or {}).get(key) for key in ("tls", "headers"))
    async with InferenceServerClient(address, **({"ssl": True, **asdict(tls)} if tls else {})) as stub:
        with translate(address):
            answer = await stub.get_inference_statistics(client_timeout=timeout_s, headers=headers)
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
        found[model.name] = found[model.name].plus(counters) if model.name in found else counters  # versions
    return found


def step_times(before: Mapping[str, ModelCounters], after: Mapping[str, ModelCounters]) -> tuple[StepTime, ...]:
    """Return what happened between two readings: ensembles, then the others, those with the most time first.

    A model whose counters fell (its server was started again in between) is left out.
    """
    steps = []
    for model, found in happened(before, after):
        requests, failures = found.count["success"], found.failures
        if requests < 0 or failures < 0 or not (requests or failures):
            continue
        ensemble = is_ensemble(model)
        step = StepTime(
            model=model,
            requests=requests,
            failures=failures,
            total_ms=found.mean_ms("success"),
            mean_batch=found.inferences / found.executions if found.executions > 0 and not ensemble else None,
            **{f"{name}_ms": None if ensemble else found.mean_ms(name) for name in _PARTS},
        )
        steps.append(step)
    return tuple(sorted(steps, key=lambda step: (not is_ensemble(step.model), -step.total_ms * step.requests)))


def is_ensemble(model: str) -> bool:
    """Say whether a model only wires others together."""
    return model.startswith((embed_model(""), pair_model(""))) and model != MATRIX_MODEL
