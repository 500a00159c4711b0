"""One network: a reduced file that is faster and passes the gate, or the fp32 file and the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from likeness_export.exporting.network_files import megabytes
from likeness_export.exporting.onnx_export import check_signature, open_session
from likeness_export.pipeline import StepSpec
from likeness_export.precision.gate import Drift, JudgedVectors, Limits, measure
from likeness_export.precision.products import Products
from likeness_export.precision.speed import speed_ratio

log = logging.getLogger(__name__)
FP32 = "fp32"
FASTER = 1.05
"""A reduced file that is meant for the CPU has to be this many times as fast as the fp32 one."""
_GROUPS = 8  # neighbouring layers that stay in fp32 together
_TRIES = (0, 1, 2, 4)  # how many groups stay in fp32, the most sensitive first
_ESTIMATE = 64  # products that sensitivity is estimated on


class Writer(Protocol):
    """Derives reduced files from one fp32 file.

    Attributes:
        form: what it writes, e.g. ``int8 dynamic``.
        layers: the operators that it reduces, in the order of computation.
    """

    form: str
    layers: list[str]

    def write(self, target: Path, kept: Collection[str] = ()) -> None:
        """Write a reduced file; the layers in ``kept`` stay fp32."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one network.

    Attributes:
        name: the network.
        form: ``fp32``, ``fp16``, ``int8 dynamic`` or ``int8 static``.
        reason: why it stays fp32; empty if it does not.
        refused: it stays fp32 because no reduced file passed the gate.
        layers: how many operators could be reduced.
        kept_layers: those of them that stay fp32 inside a reduced file.
        megabytes: size of the fp32 network's files, and of the reduced one that was judged last; 0 if none was written.
        speed: how many times as fast as fp32, batch of 1 or 8, whichever gains less; None if it was not timed.
        drift: of the file that was judged last; None if none came so far.
    """

    name: str
    form: str
    reason: str = ""
    refused: bool = False
    layers: int = 0
    kept_layers: tuple[str, ...] = ()
    megabytes: tuple[float, float] = (0.0, 0.0)
    speed: float | None = None
    drift: Drift | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One network to reduce.

    Attributes:
        spec: its declaration.
        source: the verified fp32 file.
        fp32: its vectors of the products.
        products: on which files are judged.
        limits: how far vectors may move.
        signature_faults: what is wrong with the signatures' embeddings if the network makes these vectors instead.
        served: how a CPU runs it, for timing; None: what is not meant for this machine's CPU is not timed.
    """

    spec: StepSpec
    source: Path
    fp32: JudgedVectors
    products: Products
    limits: Limits
    signature_faults: Callable[[JudgedVectors], list[str]]
    served: Mapping[str, str] | None


def reduce_network(task: Task, writer: Writer, target: Path) -> Outcome:
    """Write a reduced file that passes; if the first does not, keep more and more sensitive layers in fp32.

    Args:
        task: the network.
        writer: how it is reduced.
        target: where to; what lies there is of no use if the outcome's form is fp32.
    """
    groups: list[list[str]] = []
    last = Outcome(name=task.spec.name, form=FP32)
    for count in _TRIES:
        if count == 1:
            groups = _most_sensitive_first(task, writer, target)
        if count and count >= len(groups):  # nothing would be left that is reduced
            break
        kept = tuple(name for group in groups[:count] for name in group)
        outcome = _try(task, writer, target, kept)
        if not outcome.refused:
            # A file that is too slow only since layers stay in fp32 was refused for what the gate said before.
            if last.refused and outcome.form == FP32:
                return replace(last, reason=f"{last.reason}; with more layers in fp32, {outcome.reason}")
            return outcome
        log.info("%s: with %d layers in fp32: %s", task.spec.name, len(kept), outcome.reason)
        last = outcome
        if outcome.drift is None:  # it cannot be written or run, whatever stays in fp32
            break
    return last


def _try(task: Task, writer: Writer, target: Path, kept: tuple[str, ...]) -> Outcome:
    name, speed = task.spec.name, None
    try:
        writer.write(target, kept)
        check_signature(task.spec, target)
        open_session(name, target)
    except OSError:  # a full disk is no fault of the network, and the next one would not fit either
        raise
    except Exception as error:  # quantiser and runtime fail with many types; whichever it is, fp32 is left
        return Outcome(name=name, form=FP32, refused=True, reason=f"{writer.form} cannot be made: {error}")
    sizes = (megabytes(task.source), megabytes(target))
    if task.served is not None:
        speed = speed_ratio(task.source, target, task.spec.tower, task.products, task.served)
        if speed < FASTER:
            reason = f"{writer.form} runs {speed:.2f} times as fast here, {FASTER} is worth it"
            return Outcome(name=name, form=FP32, reason=reason, megabytes=sizes, speed=speed, layers=len(writer.layers))
    reduced = task.products.embed(task.spec.tower, target)
    drift = measure(task.fp32, reduced, task.products.labels)
    faults = task.limits.faults(drift) or task.signature_faults(reduced)
    return Outcome(
        name=name,
        form=FP32 if faults else writer.form,
        reason="; ".join(faults),
        refused=bool(faults),
        layers=len(writer.layers),
        kept_layers=kept,
        megabytes=sizes,
        speed=speed,
        drift=drift,
    )


def _most_sensitive_first(task: Task, writer: Writer, work: Path) -> list[list[str]]:
    """Group neighbouring layers and sort the groups by the harm that reducing nothing but them does."""
    groups = [group.tolist() for group in np.array_split(writer.layers, min(_GROUPS, max(1, len(writer.layers))))]
    return sorted(groups, key=lambda group: _mean_cosine(task, writer, work, group))


def _mean_cosine(task: Task, writer: Writer, work: Path, reduced: Sequence[str]) -> float:
    """Return the mean cosine to fp32 when only these layers are reduced; -1 for a product whose vector overflows."""
    writer.write(work, set(writer.layers) - set(reduced))
    after = task.products.embed(task.spec.tower, work, most=_ESTIMATE).together
    rows = np.flatnonzero(~np.isnan(task.fp32.together).any(1))[:_ESTIMATE]  # those that have the modality
    return float(np.nan_to_num(np.einsum("nd,nd->n", task.fp32.together[rows], after[rows]), nan=-1.0).mean())
