"""Two other ways to serve a run's products, added to a copy of its exported repository.

``masked``: one ensemble with all inputs and a mask; what a product lacks is sent empty, and every encoder runs.
``router``: a python-backend model that calls what a product needs by BLS.

Their names do not begin with ``embed_``, so the client does not take them for signatures.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from google.protobuf import text_format
from likeness_bench.configs import parse_config
from likeness_client import InputError
from likeness_client.contract import (
    EMBEDDING,
    MODALITY_WEIGHTS,
    embed_model,
    fusion_model,
    preprocess_model,
    signature_of,
)
from likeness_export.exporting.export import fingerprint, share_preprocessing
from likeness_export.exporting.onnx_export import export_network
from likeness_export.pipeline import StepSpec, fusion_networks
from likeness_export.product_network import ProductNetwork
from likeness_export.recipe import Recipe
from likeness_export.repository.rendering import VERSION
from likeness_export.repository.servable import MANIFEST
from likeness_export.run import Run
from likeness_export.tensors import TensorSpec
from tritonclient.grpc import model_config_pb2

from comparisons.mixed_traffic.masked_fusion import MaskedFusion

MASKED, ROUTER = "masked", "router"
MASKED_FUSION = "fusion_masked"
MASK = "present"
"""Input of the masked ensemble: FP32 [m], 1 or 0 per modality in the contract's order."""


def build_variants(run: Run, repository: Path, out: Path, router_instances: int) -> None:
    """Copy a repository, and add the two models and the fusion head that they need.

    Args:
        run: the trained run; the masked fusion head is exported from it.
        repository: what was exported from it; it is left as it is.
        out: the copy; an earlier one is replaced.
        router_instances: how many processes the router has; each waits while its batch is on its way.

    Raises:
        InputError: the repository is not of this run, or does not serve all signatures.
        ExportError: the fusion head could not be exported.
    """
    recipe, network = run.read_network()
    recipe = share_preprocessing(recipe, run)
    _check(run, recipe, repository)
    if out.exists() and not (out / MASKED).is_dir():
        raise InputError(f"{out} is there, and is not a copy made here: give another folder")
    shutil.rmtree(out, ignore_errors=True)
    (out / MASKED / str(VERSION)).mkdir(parents=True)  # first: by this a copy is known, also one that was interrupted
    shutil.copytree(repository, out, dirs_exist_ok=True)
    full = signature_of(recipe.modalities())
    _add_masked_ensemble(out, full)
    _add_router(out, recipe, full, router_instances)
    _add_masked_fusion(out, recipe, network, full)


def _check(run: Run, recipe: Recipe, repository: Path) -> None:
    place = repository / MANIFEST
    again = f"run `likeness export {run.folder} --repository {repository}` again"
    if not place.is_file():
        raise InputError(f"{repository} has no {MANIFEST}: {again}")
    if json.loads(place.read_text(encoding="utf-8"))["space"] != fingerprint(recipe, run):
        raise InputError(f"{repository} was not exported from {run.folder} as it is now: {again}")
    full = signature_of(recipe.modalities())
    if full not in recipe.signatures():
        raise InputError(f"{run.folder} does not serve {full}: leave serving.signatures out of its recipe")


def _add_masked_fusion(out: Path, recipe: Recipe, network: ProductNetwork, full: str) -> None:
    """Export the fusion head, configured like the one of the full signature."""
    like = next(spec for spec in fusion_networks(recipe) if spec.signature == full)
    mask = TensorSpec(MASK, "FP32", (len(recipe.modalities()),))
    spec = StepSpec(name=MASKED_FUSION, inputs=(*like.inputs, mask), outputs=like.outputs)
    source, folder = out / fusion_model(full), out / MASKED_FUSION
    version = folder / str(VERSION)
    version.mkdir(parents=True)
    for path in [source / "config.pbtxt", *(source / "configs").glob("*.pbtxt")]:
        config = parse_config(path)
        config.name = MASKED_FUSION
        config.input.add(name=MASK, data_type=model_config_pb2.TYPE_FP32, dims=mask.dims)
        config.ClearField("model_warmup")  # without a mask it would fail; the answers that are compared first warm up
        _write(config, folder / path.relative_to(source))
    for file in (source / str(VERSION)).glob("*.py"):
        shutil.copyfile(file, version / file.name)
    module = MaskedFusion(network).eval()
    export_network(module, spec, version / "model.onnx", recipe.serving.max_batch_size)


def _add_masked_ensemble(out: Path, full: str) -> None:
    """Configure it like the ensemble of the full signature, with the mask for the last step."""
    config = parse_config(out / embed_model(full) / "config.pbtxt")
    config.name = MASKED
    (modalities,) = [output.dims[0] for output in config.output if output.name == MODALITY_WEIGHTS]
    config.input.add(name=MASK, data_type=model_config_pb2.TYPE_FP32, dims=[modalities])
    (fusion,) = [step for step in config.ensemble_scheduling.step if step.model_name == fusion_model(full)]
    fusion.model_name = MASKED_FUSION
    fusion.input_map[MASK] = MASK
    _write(config, out / MASKED / "config.pbtxt")


def _add_router(out: Path, recipe: Recipe, full: str, instances: int) -> None:
    """Configure it with optional inputs, and outputs like those of the full signature."""
    ensemble = parse_config(out / embed_model(full) / "config.pbtxt")
    config = model_config_pb2.ModelConfig(name=ROUTER, backend="python", max_batch_size=ensemble.max_batch_size)
    for modality in recipe.modalities():
        config.input.add(name=modality, data_type=model_config_pb2.TYPE_STRING, dims=[1], optional=True)
    for output in ensemble.output:
        if output.name == EMBEDDING:
            config.output.add().CopyFrom(output)
    towers = [
        {
            "name": name,
            "modality": tower.modality,
            "preprocess": preprocess_model(recipe.serving.shared_preprocessing.get(name, name)),
            "tensors": [spec.name for spec in tower.tensors()],
        }
        for name, tower in recipe.towers.items()
    ]
    config.parameters["towers"].string_value = json.dumps(towers)
    config.parameters["modalities"].string_value = json.dumps(recipe.modalities())
    config.parameters["fused"].string_value = json.dumps(recipe.fused_signatures())
    config.instance_group.add(count=instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.max_queue_delay_microseconds = 0
    _write(config, out / ROUTER / "config.pbtxt")
    (out / ROUTER / str(VERSION)).mkdir()
    shutil.copyfile(Path(__file__).parent / "router_model.py", out / ROUTER / str(VERSION) / "model.py")


def _write(config: model_config_pb2.ModelConfig, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
