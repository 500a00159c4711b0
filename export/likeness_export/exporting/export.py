"""Export of a run: verified ONNX files, configurations, adapters, assets and a manifest, moved into place together."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from likeness_client.contract import preprocess_model

from likeness_export.encoders.base import ASSETS
from likeness_export.exporting.onnx_export import OPSET, ExportError, ExportReport, export_network, module_of
from likeness_export.json_values import without_nan
from likeness_export.pipeline import networks
from likeness_export.product_network import ProductNetwork
from likeness_export.progress import each
from likeness_export.recipe import Recipe, with_serving
from likeness_export.repository.adapter_files import write_adapters
from likeness_export.repository.check import check
from likeness_export.repository.rendering import VERSION, RenderedModel, render, write_configs
from likeness_export.repository.replacing import replaced_repository
from likeness_export.repository.servable import MANIFEST, sha256, space_of
from likeness_export.run import Run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)
_LIBRARIES = (
    "likeness",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tokenizers",
    "pillow",
    "joblib",
    "av",
    "scikit-learn",
    "gensim",
    "implicit",
    "numpy",
    "tritonclient",
)


class ExportStep(Protocol):
    """Work on the verified files before they take their place.

    Attributes:
        section: where its report stands in the manifest.
    """

    section: str

    def prepare(self) -> None:
        """Read and check what the work will need, before the networks are exported, which takes its time.

        Raises:
            InputError: it is not there.
        """

    def __call__(self, folder: Path) -> DataclassInstance:
        """Work on the repository in ``folder`` and report."""


def export_run(run: Run, repository: Path, steps: Sequence[ExportStep] = ()) -> list[ExportReport]:
    """Export a trained run.

    Everything is built beside ``repository`` and takes its place only when all of it is verified: a failed export
    leaves an earlier repository as it was.

    Args:
        run: the trained run.
        repository: the model repository to make.
        steps: what else is done to the files once they are verified, e.g. a reduction of their precision.

    Returns:
        What was verified, per network.

    Raises:
        InputError: the run is not trained, a step lacks what it needs, or ``repository`` is a folder of something else.
        ExportError: networks failed; the message names every one.
        RepositoryError: the configurations do not fit together.
    """
    recipe, network = run.read_network()
    recipe = share_preprocessing(recipe, run)
    space = fingerprint(recipe, run)
    models = render(recipe, space)
    check(models)
    _warn_of_another_space(repository, space)
    with replaced_repository(repository) as aside:
        for step in steps:
            step.prepare()
        write_configs(models, aside)
        write_adapters(recipe, models, aside)
        for tower in recipe.preprocessed_towers():
            shutil.copytree(run.towers / tower / ASSETS, aside / preprocess_model(tower) / str(VERSION) / ASSETS)
        reports = _export_networks(run, recipe, network, models, aside)
        del network  # as large as all its files, which the steps load
        sections = {step.section: asdict(step(aside)) for step in steps}
        manifest = _manifest(recipe, space, aside, reports) | sections
        text = json.dumps(without_nan(manifest), indent=1, allow_nan=False)
        (aside / MANIFEST).write_text(text, encoding="utf-8")
    return reports


def share_preprocessing(recipe: Recipe, run: Run) -> Recipe:
    """Let towers whose preprocessing is the same code with the same assets share one step: a photo is decoded once.

    A tower whose step has settings of its own, ``[serving.steps.<tower>_preprocess]``, keeps it.

    Args:
        recipe: the run's recipe.
        run: holds the towers' assets.

    Returns:
        The recipe with ``serving.shared_preprocessing`` as it was found.
    """
    first: dict[tuple[object, ...], str] = {}
    shared = {}
    for name, tower in recipe.towers.items():
        assets = run.towers / name / ASSETS
        files = sorted(path for path in assets.rglob("*") if path.is_file())
        hashes = tuple((path.relative_to(assets), sha256(path)) for path in files)
        same = first.setdefault((tower.modality, tower.preprocessing, tower.tensors(), hashes), name)
        if same != name and preprocess_model(name) not in recipe.serving.steps:
            shared[name] = same
    return with_serving(recipe, recipe.serving.model_copy(update={"shared_preprocessing": shared}))


def fingerprint(recipe: Recipe, run: Run) -> str:
    """Return the space: a hash of recipe, weights, tokenizers, vocabularies and preprocessing code.

    Two exports have the same space exactly if their embeddings may be compared.
    """
    digest = hashlib.sha256(recipe.digest().encode())
    files = [run.weights, *sorted(path for path in run.towers.glob(f"*/{ASSETS}/**/*") if path.is_file())]
    code = sorted({Path(inspect.getfile(tower.preprocessing)) for tower in recipe.towers.values()})
    for path in [*files, *code]:
        digest.update(sha256(path))
    return digest.hexdigest()[:16]


def _warn_of_another_space(repository: Path, space: str) -> None:
    """Say before it is gone that a repository would be replaced by one whose embeddings cannot be compared with its."""
    if (earlier := space_of(repository)) not in (None, space):
        log.warning(
            "%s holds the space %s, the new one is of %s: embeddings that are kept of it have to be made anew, at the "
            "moment when it is served; to have both, export into another folder",
            repository,
            earlier,
            space,
        )


def _export_networks(
    run: Run, recipe: Recipe, network: ProductNetwork, models: Mapping[str, RenderedModel], folder: Path
) -> list[ExportReport]:
    reports, failures = [], []
    for spec in each(networks(recipe), "exporting"):
        path = folder / spec.name / str(models[spec.name].version) / "model.onnx"
        tower = recipe.towers.get(spec.tower)
        longest = tower.padded_lengths(run.towers / spec.tower)[-1:] if tower else []
        try:
            module = module_of(network, spec)
            reports.append(export_network(module, spec, path, recipe.serving.max_batch_size, *longest))
        except ExportError as error:
            failures.append(str(error))
    if failures:
        raise ExportError("\n".join(["nothing was exported, because these networks failed:", *failures]))
    return reports


def _manifest(recipe: Recipe, space: str, folder: Path, reports: list[ExportReport]) -> dict[str, object]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "space": space,
        "recipe": recipe.model_dump(mode="json"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "opset": OPSET,
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "networks": [asdict(report) for report in reports],
        "sha256": {str(path.relative_to(folder)): sha256(path).hex() for path in files},
    }


def _version(library: str) -> str | None:
    """Return the version of a library; None where it is not installed, or under another name (onnxruntime-gpu)."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return getattr(sys.modules.get(library), "__version__", None)
