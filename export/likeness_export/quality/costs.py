"""What a run costs: parameters, seconds, memory, and milliseconds per product."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from joblib import cpu_count
from likeness_client.writing import write_text

from likeness_export.features.tower_inputs import present_modalities, read_inputs
from likeness_export.product_network import ProductNetwork
from likeness_export.products.catalogue import Catalogue
from likeness_export.recipe import Recipe
from likeness_export.run import Run
from likeness_export.training.train import train

_TIMED = 64


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one unit took; None: not known, or nothing was trained.

    Attributes:
        parameters: of the whole network.
        trained_parameters: those that training changes.
        preparing_s: reading, fitting and encoding with frozen encoders, before the first epoch.
        epochs_s: all epochs, those before an interruption among them.
        peak_mb: largest resident memory of the process that trained, in MB of 2^20 bytes.
        product_ms: reading, preprocessing, encoding and fusing one product, in a batch of up to 64.
        threads: that torch used.
        cores: of the machine.
    """

    parameters: int | None = None
    trained_parameters: int | None = None
    preparing_s: float | None = None
    epochs_s: float | None = None
    peak_mb: float | None = None
    product_ms: float | None = None
    threads: int = 0
    cores: int = 0


def train_measured(recipe: Recipe, run: Run, data_root: Path) -> None:
    """Train, and keep in ``training.json`` what the end of it took: ``preparing_s`` and ``peak_mb``."""
    done = run.weights.is_file()
    before, started = epochs_seconds(run), time.perf_counter()
    train(recipe, run, data_root)
    if done:
        return
    seconds = time.perf_counter() - started - (epochs_seconds(run) - before)
    write_text(
        run.folder / "training.json", json.dumps({"preparing_s": round(seconds, 2), "peak_mb": round(peak_mb(), 1)})
    )


def cost_of(recipe: Recipe, network: ProductNetwork, run: Run, trained: Sequence[Run], catalogue: Catalogue) -> Cost:
    """Return what a run took; the first products of the catalogue are embedded once more, against the clock.

    ``trained`` are the runs that were trained for it: itself, or those that it joins, one after the other.
    """
    training = [_training_of(one) for one in trained]
    for name, tower in recipe.towers.items():  # as training does; a network inside of an encoder may stay frozen
        network.tower(name).encoder.requires_grad_(not tower.freeze)
    if not recipe.learns:
        network.requires_grad_(False)
    parameters = list(network.parameters())
    return Cost(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        preparing_s=sum(one["preparing_s"] for one in training) if all(training) else None,
        epochs_s=round(sum(epochs_seconds(one) for one in trained), 2),
        peak_mb=max(one["peak_mb"] for one in training) if all(training) else None,
        product_ms=round(_product_ms(recipe, network, run, catalogue), 3),
        threads=torch.get_num_threads(),
        cores=cpu_count(),
    )


def _training_of(run: Run) -> dict[str, float]:
    """Return what `train_measured` kept; empty if the run was trained by other means."""
    place = run.folder / "training.json"
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}


def epochs_seconds(run: Run) -> float:
    """Return the seconds of all epochs in a run's log; 0 without one."""
    if not run.log.is_file():
        return 0.0
    lines = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    return float(sum(line["seconds"] for line in lines))


def peak_mb() -> float:
    """Return the largest resident memory that this process has had, in MB of 2^20 bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):  # ru_maxrss would count what the parent had when it started this process
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.inference_mode()
def _product_ms(recipe: Recipe, network: ProductNetwork, run: Run, catalogue: Catalogue) -> float:
    some = catalogue.select(range(min(_TIMED, len(catalogue))))
    started = time.perf_counter()
    parts = some.parts(recipe.input_schema(), recipe.modalities())
    inputs = read_inputs(recipe.towers, run.towers, parts, some.ids)
    towers = [network.tower(name) for name in recipe.towers]
    encoded = [inputs[name].encode(tower.encoder) for name, tower in zip(inputs, towers, strict=True)]
    vectors = [tower.project(torch.from_numpy(found)) for tower, found in zip(towers, encoded, strict=True)]
    present = torch.from_numpy(present_modalities(network.tower_modalities, inputs))
    network.fuse(torch.stack(vectors, 1), present)
    return 1000 * (time.perf_counter() - started) / len(some)
