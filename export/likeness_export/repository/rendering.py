"""Triton's model repository: configurations rendered from protobuf."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from google.protobuf import text_format
from likeness_client.contract import (
    EMBEDDING,
    LEFT,
    RIGHT,
    SCHEMA_PARAMETER,
    SIMILARITY_MODEL,
    SPACE_PARAMETER,
    embed_model,
    encoder_model,
    modalities_of,
    pair_model,
    sided,
    space_version,
    tower_embedding,
    tower_error,
)
from tritonclient.grpc import model_config_pb2

from likeness_export.encoders.base import EncoderConfig
from likeness_export.networks.similarity import SCORES
from likeness_export.pipeline import (
    StepSpec,
    embedding_outputs,
    encoder_networks,
    fusion_networks,
    preprocess_steps,
    raw_input,
    similarity_networks,
    towers_of,
)
from likeness_export.recipe import Recipe
from likeness_export.repository.servable import KEPT_FOLDER
from likeness_export.serving_section import StepSettings
from likeness_export.tensors import TensorSpec

ModelConfig: TypeAlias = model_config_pb2.ModelConfig
VERSION = 1
"""The version of the steps, which ensembles pin: nothing else is to be taken for them."""
UNTRAINED = "untrained"
"""The space of configurations that were rendered without weights."""


@dataclass(frozen=True, kw_only=True)
class RenderedModel:
    """The configurations of one model, one for each way to execute it.

    Attributes:
        default: ``config.pbtxt``, the profile ``onnx``; of what no profile changes, the only one.
        profiles: the others, which lie in ``configs/``.
        version: of what callers ask that of the space, see `space_version`; of what only ensembles ask `VERSION`.
    """

    default: ModelConfig
    profiles: Mapping[str, ModelConfig]
    version: int = VERSION

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield (path inside the model's folder, text)."""
        yield "config.pbtxt", text_format.MessageToString(self.default)
        for profile, config in self.profiles.items():
            yield f"configs/{profile}.pbtxt", text_format.MessageToString(config)


def cpu_parameters(encoder: EncoderConfig | None, settings: StepSettings) -> dict[str, str]:
    """Return what the ``cpu`` profile tells a network's adapter; ``encoder`` is None where it is no tower's."""
    found = {"cpu_threads": str(settings.cpu_threads)}
    if encoder and encoder.run_tokens is not None and any(tensor.varies for tensor in encoder.tensors()):
        found["run_tokens"] = str(encoder.run_tokens)
    if encoder and encoder.run_rows:
        found["run_rows"] = str(encoder.run_rows)
    return found


def render(recipe: Recipe, space: str = UNTRAINED) -> dict[str, RenderedModel]:
    """Render every model of a recipe's repository, by name; each names the space by its fingerprint."""
    renderer = _Renderer(recipe, space)
    return {model.default.name: model for model in renderer.models()}


class _Renderer:
    def __init__(self, recipe: Recipe, space: str) -> None:
        self.recipe = recipe
        self.space = space

    def models(self) -> Iterator[RenderedModel]:
        for step in preprocess_steps(self.recipe):
            yield RenderedModel(default=self.python(self.step(step)), profiles={})
        for step in (*encoder_networks(self.recipe), *fusion_networks(self.recipe)):
            yield self.network(self.step(step), step.tower)
        pairs, blocks = similarity_networks(self.recipe)
        version = space_version(self.space)
        yield replace(self.network(self.pairs(pairs)), version=version)
        yield replace(self.network(self.blocks(blocks)), version=version)
        for signature in self.recipe.signatures():
            yield RenderedModel(default=self.embed(signature), profiles={}, version=version)
            yield RenderedModel(default=self.pair(signature), profiles={}, version=version)

    def bare(self, name: str, max_batch_size: int) -> ModelConfig:
        config = ModelConfig(name=name, max_batch_size=max_batch_size)
        config.parameters[SPACE_PARAMETER].string_value = self.space
        return config

    def step(self, spec: StepSpec) -> ModelConfig:
        config = self.bare(spec.name, self.recipe.serving.max_batch_size)
        _declare(config, spec.inputs, spec.outputs)
        return self.batching(config)

    def batching(self, config: ModelConfig) -> ModelConfig:
        """Let requests that wait at the same time share an execution."""
        chosen = self.recipe.serving.of(config.name)
        config.dynamic_batching.max_queue_delay_microseconds = chosen.queue_delay_us
        config.dynamic_batching.preferred_batch_size.extend(chosen.preferred_batch_size)
        # No queue policy: with a timeout or a largest size Triton (2.51) prepares no batch while another is computed,
        # and does not wake up in time for it: who comes in that moment waits for the next caller, or half a second.
        return config

    def python(self, config: ModelConfig) -> ModelConfig:
        config.backend = "python"
        instances = self.recipe.serving.of(config.name).instances
        config.instance_group.add(count=instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
        _warm_up(config, most=2)  # one product and several take different ways
        return config

    def network(self, config: ModelConfig, tower: str = "") -> RenderedModel:
        """Give an exported network its three ways of being executed."""
        onnx, cpu, tensorrt = ModelConfig(), ModelConfig(), ModelConfig()
        for copy in (onnx, cpu, tensorrt):
            copy.CopyFrom(config)
        chosen = self.recipe.serving.of(config.name)
        for other, platform in ((onnx, "onnxruntime_onnx"), (tensorrt, "tensorrt_plan")):
            other.platform = platform
            # On each GPU, where there are some. One is said, too: on a CPU Triton's default is two of onnxruntime.
            other.instance_group.add(count=chosen.instances, kind=model_config_pb2.ModelInstanceGroup.KIND_AUTO)
            _warm_up(other, most=other.max_batch_size)
        encoder = self.recipe.towers[tower] if tower else None
        for key, value in cpu_parameters(encoder, chosen).items():
            cpu.parameters[key].string_value = value
        for entry in cpu.input:
            # Texts of all lengths share an execution: the adapter groups them better than buckets do.
            entry.allow_ragged_batch = bool(encoder) and -1 in entry.dims
        if chosen.cpu_threads > 1 and encoder and encoder.run_tokens:
            # Runs of texts are few and unequal: from two full requests threads get more equal shares than from one.
            cpu.max_batch_size *= 2
        if encoder and encoder.modality in ("image", "video"):
            # On GPUs, by heuristics: the default measures all algorithms, anew for every size of batch. Said in the
            # older of two ways: whatever is said in the newer one, other parameters, `space` for one, take back.
            onnx.parameters["cudnn_conv_algo_search"].string_value = "1"
        return RenderedModel(default=onnx, profiles={"cpu": self.python(cpu), "tensorrt": tensorrt})

    def pairs(self, spec: StepSpec) -> ModelConfig:
        """Pairs batch across requests: each is a block of one by one, whose two sizes the reshape takes away."""
        config = self.step(spec)
        for entry in (*config.input, *config.output):
            entry.reshape.shape.extend(entry.dims)
            del entry.dims[0]
        return config

    def blocks(self, spec: StepSpec) -> ModelConfig:
        """Blocks fill a batch by themselves; Triton adds no batch dimension, the graph's own is spelt out."""
        config = self.bare(spec.name, 0)
        _declare(config, [_batched(tensor) for tensor in spec.inputs], [_batched(tensor) for tensor in spec.outputs])
        return config

    def embed(self, signature: str) -> ModelConfig:
        """One product of this signature to its embedding: the towers side by side, then the fusion head, if any."""
        config = self.ensemble(embed_model(signature))
        towers = towers_of(self.recipe, signature)
        preprocessing = [spec for spec in preprocess_steps(self.recipe) if spec.tower in towers]
        errors = [TensorSpec(tower_error(spec.tower), "BYTES", (1,)) for spec in preprocessing]
        heads = [spec for spec in fusion_networks(self.recipe) if spec.signature == signature]
        outputs = [*embedding_outputs(self.recipe, signature), *errors]
        _declare(config, [raw_input(name) for name in modalities_of(signature)], outputs)
        for spec in preprocessing:
            error = tower_error(spec.tower)
            raw = {tensor.name: tensor.name for tensor in spec.inputs}
            _add_step(config, spec.name, raw, {**self.inner_tensors(spec.tower), error: error})
        for name in towers:
            source = self.recipe.serving.shared_preprocessing.get(name, name)
            vector = tower_embedding(name)
            found = {vector: vector if heads else EMBEDDING}
            _add_step(config, encoder_model(name), self.inner_tensors(source), found)
        for head in heads:
            given, taken = ({tensor.name: tensor.name for tensor in side} for side in (head.inputs, head.outputs))
            _add_step(config, head.name, given, taken)
        return config

    def inner_tensors(self, tower: str) -> dict[str, str]:
        """Return the tensors that a tower's preprocessing puts out -> their names inside an ensemble."""
        return {tensor.name: f"{tower}_{tensor.name}" for tensor in self.recipe.towers[tower].tensors()}

    def pair(self, signature: str) -> ModelConfig:
        """Two products of this signature to their scores, in one round trip."""
        config = self.ensemble(pair_model(signature))
        modalities, embed, version = modalities_of(signature), self.embed(signature), space_version(self.space)
        reported = [entry for entry in embed.output if entry.name != EMBEDDING]
        _declare(config, [raw_input(sided(side, name)) for side in (LEFT, RIGHT) for name in modalities], [])
        for score in SCORES:
            config.output.add(name=score, data_type=_TYPES["FP32"], dims=[1])
        for side in (LEFT, RIGHT):
            for entry in reported:
                config.output.add(name=sided(side, entry.name), data_type=entry.data_type, dims=entry.dims)
            outputs = {entry.name: sided(side, entry.name) for entry in embed.output}
            _add_step(config, embed.name, {name: sided(side, name) for name in modalities}, outputs, version)
        both = {side: sided(side, EMBEDDING) for side in (LEFT, RIGHT)}
        _add_step(config, SIMILARITY_MODEL, both, {score: score for score in SCORES}, version)
        return config

    def ensemble(self, name: str) -> ModelConfig:
        config = self.bare(name, self.recipe.serving.max_batch_size)
        config.platform = "ensemble"
        config.parameters[SCHEMA_PARAMETER].string_value = self.recipe.input_schema().to_json()
        return config


_TYPES = {
    "FP32": model_config_pb2.TYPE_FP32,
    "INT64": model_config_pb2.TYPE_INT64,
    "UINT8": model_config_pb2.TYPE_UINT8,
    "BYTES": model_config_pb2.TYPE_STRING,
}


def _declare(config: ModelConfig, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> None:
    for tensor in inputs:
        config.input.add(name=tensor.name, data_type=_TYPES[tensor.datatype], dims=tensor.dims)
    for tensor in outputs:
        config.output.add(name=tensor.name, data_type=_TYPES[tensor.datatype], dims=tensor.dims)


def _warm_up(config: ModelConfig, most: int) -> None:
    """Let a model compute zeros before it is ready, or its first callers wait for what a first execution sets up.

    Args:
        config: of the model.
        most: products of the larger of two batches; the other has one. What takes no batches computes one block.
    """
    for products in sorted({1, most} if config.max_batch_size > 1 else {1}):
        sample = config.model_warmup.add(name=f"batch of {products}", batch_size=products)
        for tensor in config.input:
            zeros = sample.inputs[tensor.name]
            zeros.data_type, zeros.zero_data = tensor.data_type, True
            zeros.dims.extend(1 if size == -1 else size for size in tensor.dims)


def _batched(tensor: TensorSpec) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.datatype, (-1, *tensor.dims))


def _add_step(
    config: ModelConfig, model: str, inputs: Mapping[str, str], outputs: Mapping[str, str], version: int = VERSION
) -> None:
    step = config.ensemble_scheduling.step.add(model_name=model, model_version=version)
    step.input_map.update(inputs)
    step.output_map.update(outputs)


def write_configs(models: Mapping[str, RenderedModel], folder: Path) -> None:
    """Write every model's configurations and an empty version folder for those that need nothing else."""
    for name, model in models.items():
        for path, text in model.files():
            place = folder / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        version = folder / name / str(model.version)
        version.mkdir(exist_ok=True)
        if model.default.platform == "ensemble":
            (version / KEPT_FOLDER).touch()
