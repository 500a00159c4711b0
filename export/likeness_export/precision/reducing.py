"""Reduced precision for a whole repository: every network by itself, then all of them together."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import onnx
from likeness_client.contract import encoder_model

from likeness_export.exporting.network_files import move_network
from likeness_export.pipeline import StepSpec, encoder_networks
from likeness_export.precision.fp16 import Fp16
from likeness_export.precision.gate import Drift, Limits, mean_points
from likeness_export.precision.graph import kind_of
from likeness_export.precision.int8 import DynamicInt8, StaticInt8
from likeness_export.precision.network import FP32, Outcome, Task, Writer, reduce_network
from likeness_export.precision.pipeline_drift import FusionHeads
from likeness_export.precision.products import Products, calibration_products, judged_products
from likeness_export.progress import each
from likeness_export.repository.rendering import VERSION, cpu_parameters
from likeness_export.run import Run

log = logging.getLogger(__name__)
Precision: TypeAlias = Literal["fp16", "int8"]
_SMALL = "so small that nothing is gained"
LEAST_PRODUCTS = 50
"""Of fewer products no network is judged or calibrated on: one of them would be two points of recall@1 and more."""


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """What was reduced, and what it costs.

    Attributes:
        precision: what was asked for.
        split: where the products come from that everything was judged on.
        limits: of the gate.
        networks: one outcome per tower. Fusion heads and similarity are never reduced: too small to gain.
        signatures: per served signature, the drift of its embeddings with the repository as it was left.
        mean_recall_loss: label -> recall@1 lost, points of a hundred, mean over signatures.
    """

    precision: Precision
    split: str
    limits: Limits
    networks: tuple[Outcome, ...]
    signatures: Mapping[str, Drift]
    mean_recall_loss: Mapping[str, float]

    def refused(self) -> list[str]:
        """Return the networks that stay fp32 because nothing else passed."""
        return [outcome.name for outcome in self.networks if outcome.refused]


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """What is wanted.

    Attributes:
        precision: of the towers' networks.
        data_root: what the recipe's paths start from; real products calibrate and judge.
        limits: of the gate.
        for_tensorrt: int8 as TensorRT takes it, transformers too; nothing is timed on this machine's CPU.
    """

    precision: Precision
    data_root: Path
    limits: Limits
    for_tensorrt: bool = False


class Reducer:
    """A step of the export: replaces verified fp32 files by reduced ones that pass.

    Args:
        run: the trained run.
        choice: what is wanted.

    Attributes:
        section: where its report stands in the manifest.
        judged: the products that files are judged on, once it is prepared.
        report: what was done; None until it was called.
    """

    section = "precision"
    judged: Products

    def __init__(self, run: Run, choice: PrecisionChoice) -> None:
        self.run, self.choice = run, choice
        self.recipe = run.read_recipe()
        self.report: PrecisionReport | None = None

    def prepare(self) -> None:
        """Read the products that files are judged on.

        Raises:
            InputError: the recipe's data cannot be read below the data root.
        """
        self.judged = judged_products(self.run, self.choice.data_root)

    @cached_property
    def calibration(self) -> Products:
        """The products that activations are calibrated on."""
        return calibration_products(self.run, self.choice.data_root)

    def __call__(self, folder: Path) -> PrecisionReport:
        """Work on the repository in ``folder``; its files are fp32 and verified."""
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            specs = encoder_networks(self.recipe)
            heads = self._heads(folder)
            outcomes = {spec.tower: self._reduce(spec, heads, work) for spec in each(specs, "reducing")}
            drifts = self._together(heads, outcomes, work)
            for tower, outcome in outcomes.items():
                if outcome.form != FP32:
                    move_network(_file(work, tower), _file(folder, tower))
        self.report = PrecisionReport(
            precision=self.choice.precision,
            split=self.judged.split,
            limits=self.choice.limits,
            networks=tuple(outcomes.values()),
            signatures=drifts,
            mean_recall_loss=mean_points([drift.recall_loss for drift in drifts.values()]),
        )
        return self.report

    def _heads(self, folder: Path) -> FusionHeads:
        return FusionHeads(
            recipe=self.recipe,
            folder=folder,
            fp32={name: self.judged.embed(name, _file(folder, name)) for name in self.recipe.towers},
            labels=self.judged.labels,
            limits=self.choice.limits,
        )

    def _reduce(self, spec: StepSpec, heads: FusionHeads, work: Path) -> Outcome:
        source = _file(heads.folder, spec.tower)
        target = _file(work, spec.tower)
        target.parent.mkdir(parents=True)
        writer = self._writer(spec, source, target.parent)
        if writer is None:
            return Outcome(name=spec.name, form=FP32, reason=_SMALL)
        if too_few := self._too_few(spec.tower, writer):
            return Outcome(name=spec.name, form=FP32, refused=True, reason=too_few)
        timed = self.choice.precision == "int8" and not self.choice.for_tensorrt
        task = Task(
            spec=spec,
            source=source,
            fp32=heads.fp32[spec.tower],
            products=self.judged,
            limits=self.choice.limits,
            signature_faults=lambda vectors: heads.faults(heads.drifts({spec.tower: vectors})),
            served=cpu_parameters(self.recipe.towers[spec.tower], self.recipe.serving.of(spec.name)) if timed else None,
        )
        outcome = reduce_network(task, writer, target)
        log.info("%s: %s%s", spec.name, outcome.form, f", {outcome.reason}" if outcome.reason else "")
        return outcome

    def _writer(self, spec: StepSpec, source: Path, work: Path) -> Writer | None:
        """Choose how a network is reduced; None if it is not worth it."""
        kind = kind_of(onnx.load(source, load_external_data=False))
        if kind == "small":
            return None
        if self.choice.precision == "fp16":
            return Fp16(source)
        if kind == "transformer" and not self.choice.for_tensorrt:
            return DynamicInt8(source, work)
        return StaticInt8(source, work, spec.tower, self.calibration, for_tensorrt=self.choice.for_tensorrt)

    def _too_few(self, tower: str, writer: Writer) -> str:
        """Return why there are too few products for a network, in words; empty if there are enough."""
        needed = {"judge": self.judged}
        if isinstance(writer, StaticInt8):
            needed["calibrate"] = self.calibration
        modality = self.recipe.towers[tower].modality
        for purpose, products in needed.items():
            if (count := products.count(tower)) < LEAST_PRODUCTS:
                return (
                    f"the split {products.split} has {count} products with a usable {modality} to {purpose} it on, "
                    f"{LEAST_PRODUCTS} are needed: add some, or stay with fp32"
                )
        return ""

    def _together(self, heads: FusionHeads, outcomes: dict[str, Outcome], work: Path) -> dict[str, Drift]:
        """Judge all reduced networks together; while they fail, the one that has moved most goes back to fp32."""
        reduced = {
            name: self.judged.embed(name, _file(work, name))
            for name, outcome in outcomes.items()
            if outcome.form != FP32
        }
        while True:
            drifts = heads.drifts(reduced)
            faults = heads.faults(drifts)
            if not faults or not reduced:
                return heads.drifts(reduced, everywhere=True)
            worst = min(reduced, key=lambda name: _moved(outcomes[name]))
            reason = f"together with the others: {'; '.join(faults)}"
            outcomes[worst] = replace(outcomes[worst], form=FP32, refused=True, reason=reason)
            del reduced[worst]
            log.info("%s: back to fp32, %s", outcomes[worst].name, reason)


def _moved(outcome: Outcome) -> float:
    return outcome.drift.cosine_mean if outcome.drift else 1.0


def _file(folder: Path, tower: str) -> Path:
    return folder / encoder_model(tower) / str(VERSION) / "model.onnx"
