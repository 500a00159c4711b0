"""The trainer: fits towers, runs epochs, keeps the state from which an interrupted training goes on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from likeness_client.errors import InputError
from likeness_client.records import MODALITY_FIELDS
from likeness_client.writing import told_if_full, write_text
from torch import Tensor, nn

from likeness_export.encoders import Encoder
from likeness_export.encoders.base import ASSETS
from likeness_export.exporting.beforehand import refuse_unexportable
from likeness_export.features.cache import cached_features
from likeness_export.features.tower_inputs import TowerInputs, present_modalities, read_inputs
from likeness_export.product_network import ProductNetwork, build_network
from likeness_export.products.parts import Part, Read
from likeness_export.progress import stages
from likeness_export.recipe import Recipe
from likeness_export.run import Run, load_state, save_state
from likeness_export.training.objective import Objective
from likeness_export.training.positives import Positives, Rows, positives_of
from likeness_export.training.training_data import TrainingData, alike_key, data_key

log = logging.getLogger(__name__)
_WARM_UP = 0.06  # share of all steps in which the learning rate rises


def prepare_towers(recipe: Recipe, run: Run, parts: Sequence[Mapping[str, Part]], data_root: Path) -> None:
    """Write every tower's folder, fitted on the training products.

    Raises:
        InputError: no training product has the modality of a tower, or its preprocessing does not say how it pads.
    """
    for name, tower in recipe.towers.items():
        items = Read([found[tower.modality] for found in parts if tower.modality in found])
        if not items:
            fields = recipe.data.text_fields if tower.modality == "text" else MODALITY_FIELDS[tower.modality]
            keys = [f"attributes.{key}" for key in tower.attribute_keys()] or fields
            missing = f"{tower.modality} (read from: {', '.join(keys)})"
            raise InputError(f"towers.{name}: no training product has {missing}: leave the tower out")
        with told_if_full(run.towers / name):
            (run.towers / name / ASSETS).mkdir(parents=True, exist_ok=True)
            tower.prepare(items, run.towers / name, data_root)
        tower.padded_lengths(run.towers / name)  # the export would be a late place to refuse it


def untrained_network(recipe: Recipe, run: Run, data_root: Path) -> ProductNetwork:
    """Build the network as training begins with it, of towers that are prepared.

    Raises:
        InputError: an encoder cannot be built, or could not be exported; names the tower.
    """
    network = build_network(recipe, run.towers, data_root)
    for name, tower in recipe.towers.items():
        try:
            refuse_unexportable(network.tower(name).encoder, tower, *tower.padded_lengths(run.towers / name)[-1:])
        except InputError as error:
            raise InputError(f"towers.{name}: {error}") from error
    return network


def _refuse_unusable(inputs: Mapping[str, TowerInputs], product_ids: Sequence[str]) -> None:
    """Refuse a tower to which no training product says anything: it would answer without having learned.

    Raises:
        InputError: names the tower, and what is wrong with the first product.
    """
    for name, found in inputs.items():
        if not found.known.any():
            row, reason = next(iter(found.errors.items()))
            raise InputError(
                f"towers.{name}: no training product has anything that it can learn from; of the {len(found.errors)} "
                f"that it reads the first is {product_ids[row]}: {reason}. Mend them, or leave the tower out"
            )


class Trainer:
    """The state of one training."""

    def __init__(self, recipe: Recipe, run: Run, data: TrainingData, data_root: Path, device: torch.device) -> None:
        self.recipe, self.run, self.device = recipe, run, device
        catalogue = data.catalogue
        positives_of(recipe, catalogue, data.pairs)  # to refuse what is wrong before photos are read and encoded
        parts = catalogue.parts(recipe.input_schema(), recipe.modalities(), in_part=True)
        if not run.checkpoint.is_file():  # what was fitted goes with the weights that were trained on it
            prepare_towers(recipe, run, parts, data_root)
        self.network = untrained_network(recipe, run, data_root).to(device)
        self.data_key, self.alike_key = data_key(catalogue.ids, parts), alike_key(recipe, data)
        self.frozen = [name for name, tower in recipe.towers.items() if tower.freeze]
        self.inputs: dict[str, TowerInputs] = read_inputs(
            recipe.towers, run.towers, parts, catalogue.ids, once=self.frozen
        )
        self.features = {name: self._features(name) for name in self.frozen}
        _refuse_unusable(self.inputs, catalogue.ids)
        present = present_modalities(self.network.tower_modalities, self.inputs)
        self.present = torch.from_numpy(present).to(device)
        self.positives: Positives = positives_of(recipe, catalogue, data.pairs, present)
        self.objective = Objective(recipe, self.positives.class_counts).to(device)
        # Every product's embedding when it was last in a batch; zeros before.
        self.latest = torch.zeros(len(catalogue), recipe.embedding_dimension(), device=device)
        self.optimizer = torch.optim.AdamW(self._parameter_groups(), weight_decay=recipe.training.weight_decay)
        self.log = ""  # kept with the state: the file has every epoch once, wherever a training was stopped

    def _parameter_groups(self) -> list[dict[str, object]]:
        encoders = {name: self.network.tower(name).encoder for name in self.recipe.towers}
        for name, encoder in encoders.items():
            encoder.requires_grad_(not self.recipe.towers[name].freeze)
        groups: list[dict[str, object]] = [
            {"params": list(encoder.parameters()), "lr": self.recipe.towers[name].learning_rate}
            for name, encoder in encoders.items()
            if not self.recipe.towers[name].freeze
        ]
        inside = {id(parameter) for encoder in encoders.values() for parameter in encoder.parameters()}
        rest = [parameter for parameter in self.network.parameters() if id(parameter) not in inside]
        return [
            *groups,
            {"params": [*rest, *self.objective.parameters()], "lr": self.recipe.training.learning_rate},
        ]

    def _features(self, name: str) -> Tensor:
        """Return what a tower's encoder, as it is now, makes of every product."""
        encoder, config = self.network.tower(name).encoder, self.recipe.towers[name]
        features = cached_features(self.inputs[name], encoder, config, self.run.features)
        return torch.from_numpy(features).to(self.device)

    def fit(self) -> None:
        """Run all epochs that are left."""
        head_epochs = self.recipe.training.head_epochs
        epochs = head_epochs + self.recipe.training.epochs
        # Every epoch draws from its own seed: a resumed training takes on a CPU the very steps of an uninterrupted one.
        per_epoch = len(list(self.positives.batches(np.random.default_rng(0), self.latest.cpu().numpy())))
        factor = _schedule(head_epochs * per_epoch, self.recipe.training.epochs * per_epoch)
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        first = self._restore(schedule)
        write_text(self.run.log, self.log)
        if first < head_epochs:
            self.features |= {name: self._features(name) for name in self.recipe.towers if name not in self.frozen}
        with stages("epochs", "loss") as progress:
            task = progress.add_task("training", total=epochs, completed=first, loss="")
            for epoch in range(first, epochs):
                started = time.perf_counter()
                if epoch == head_epochs:
                    self.features = {name: self.features[name] for name in self.frozen}
                with self.device:  # where everything is made that a step draws or counts
                    loss = self._epoch(epoch, schedule)
                seconds = time.perf_counter() - started
                line = {"epoch": epoch + 1, "loss": round(loss, 5), "seconds": round(seconds, 3)}
                self.log += json.dumps(line) + "\n"
                self._save(epoch, schedule)
                write_text(self.run.log, self.log)
                progress.update(task, advance=1, loss=f"{loss:.4f}")

    def _epoch(self, epoch: int, schedule: torch.optim.lr_scheduler.LambdaLR) -> float:
        torch.manual_seed(self.recipe.seed * 100_003 + epoch)
        losses = []
        embeddings = self.latest.cpu().numpy().copy()  # hard negatives are mined in the last epoch's
        self.network.train()
        for rows in self.positives.batches(np.random.default_rng([self.recipe.seed, epoch]), embeddings):
            judgement = self.positives.judge(rows).to(self.device)
            loss, whole = self.objective(self.network, self._vectors(rows), self.present[rows], judgement)
            self.latest[rows] = whole.detach()
            self.optimizer.zero_grad(set_to_none=True)
            if not torch.isfinite(loss):
                raise InputError(
                    f"the loss of epoch {epoch + 1} is {loss.item()}: training has run away; lower the learning rates, "
                    "or train with training.precision = 'fp32'"
                )
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def _vectors(self, rows: Rows) -> Tensor:
        """Return the towers' vectors of a batch, FP32 [n, t, d]; zeros where a product lacks the modality."""
        columns = []
        for name, inputs in self.inputs.items():
            tower, there = self.network.tower(name), inputs.present[rows]
            if name in self.features:
                found = tower.project(self.features[name][rows[there]])
            elif there.any():
                found = tower.project(inputs.map(rows[there], partial(self._encode, tower.encoder)))
            else:
                found = torch.zeros(0, self.recipe.dimension)
            blank = torch.zeros(len(rows), self.recipe.dimension)
            columns.append(blank.index_put((torch.from_numpy(np.flatnonzero(there)),), found))
        return torch.stack(columns, 1)

    def _encode(self, encoder: Encoder, *tensors: Tensor) -> Tensor:
        given = tuple(tensor.to(self.device) for tensor in tensors)
        reduced = self.recipe.training.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if reduced else nullcontext():
            features: Tensor = encoder(*encoder.augment(*given))
        return features.float()

    def _trained_state(self) -> dict[str, Tensor]:
        """Return the parameters that training changes; frozen encoders are reloaded from their source."""
        frozen = tuple(f"towers.{name}.encoder." for name in self.frozen)
        return {key: value for key, value in self.network.state_dict().items() if not key.startswith(frozen)}

    def _save(self, epoch: int, schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
        state = {
            "epoch": epoch,
            "data": self.data_key,
            "alike": self.alike_key,
            "network": self._trained_state(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "latest": self.latest,
            "log": self.log,
        }
        save_state(state, self.run.checkpoint)

    def _restore(self, schedule: torch.optim.lr_scheduler.LambdaLR) -> int:
        """Load the checkpoint if there is one; return the next epoch.

        Raises:
            InputError: it was made with other products, labels or pairs, is of another network, or is damaged.
        """
        if not self.run.checkpoint.is_file():
            return 0
        # On the CPU, where AdamW counts its steps: it would ask a GPU for each parameter's count in every step.
        state = load_state(self.run.checkpoint)
        try:
            return self._take(state, schedule)
        except InputError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:  # torch's, of another shape
            raise InputError(
                f"{self.run.checkpoint} does not fit the network of {self.run.folder / 'recipe.json'}, or was written "
                "by another version: train into another folder, or remove that file to begin again"
            ) from error

    def _take(self, state: dict[str, Any], schedule: torch.optim.lr_scheduler.LambdaLR) -> int:
        if state.get("data") != self.data_key or state.get("alike", self.alike_key) != self.alike_key:
            raise InputError(
                f"the training products, or what makes them alike, have changed since {self.run.checkpoint} was "
                "written: train into another folder, or remove that file to begin again"
            )
        self.network.load_state_dict(state["network"], strict=False)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        self.latest = state["latest"].to(self.device)
        self.log = state.get("log", "")
        log.info("going on after epoch %d", state["epoch"] + 1)
        return int(state["epoch"]) + 1


def _schedule(head_steps: int, steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate per step: 1 for the head alone, then half a cosine; each after a rise."""
    warm_head, warm = max(1, round(_WARM_UP * head_steps)), max(1, round(_WARM_UP * steps))

    def factor(step: int) -> float:
        if step < head_steps:
            return min(1.0, (step + 1) / warm_head)
        step -= head_steps
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + float(np.cos(np.pi * min(1.0, (step - warm) / max(1, steps - warm)))))

    return factor
