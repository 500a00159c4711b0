"""TensorRT plans from the repository's ONNX files. Written after the documentation of TensorRT 11; it has not run yet.

Source: https://docs.nvidia.com/deeplearning/tensorrt/11.1.0/inference-library/python-api-docs.html. Networks are
strongly typed: precision is what the ONNX file says, so ``likeness_export.precision`` decides it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from likeness_client.contract import LEFT, MATRIX_MODEL, MAX_BLOCK_LEFT, MAX_BLOCK_RIGHT, RIGHT
from likeness_client.errors import InputError
from likeness_client.writing import written_aside

from likeness_export.exporting.onnx_export import ExportError
from likeness_export.pipeline import StepSpec, networks
from likeness_export.progress import each
from likeness_export.run import Run

Shape: TypeAlias = tuple[int, ...]
_USUAL_BATCH = 8
_USUAL_BLOCK = 128  # products on one side of a block of similarities
_WORKSPACE_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Range:
    """The shapes of one input that a plan takes: the smallest, the one it is tuned for, the largest."""

    smallest: Shape
    usual: Shape
    largest: Shape


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What was built.

    Attributes:
        tensorrt: version of the builder; the plans run with this version, on this kind of GPU, and nowhere else.
        ranges: network -> input -> its shapes.
    """

    tensorrt: str
    ranges: Mapping[str, Mapping[str, Range]]


class Builder(Protocol):
    """Builds plans."""

    version: str

    def build(self, network: Path, ranges: Mapping[str, Range]) -> bytes:
        """Return the plan of an ONNX file.

        Raises:
            ExportError: it cannot be parsed or built; says why.
        """


class PlanStep:
    """A step of the export: puts ``model.plan`` beside every ``model.onnx``.

    Args:
        run: the trained run.
        builder: what builds.

    Attributes:
        section: where its report stands in the manifest.
        ranges: network -> input -> its shapes, once it is prepared.
    """

    section = "tensorrt"
    ranges: Mapping[str, Mapping[str, Range]]

    def __init__(self, run: Run, builder: Builder) -> None:
        self.run, self.builder = run, builder

    def prepare(self) -> None:
        """Find the shapes that plans are built for.

        Raises:
            InputError: lengths vary, and the preprocessing does not say to which ones it pads.
        """
        self.ranges = plan_ranges(self.run)

    def __call__(self, folder: Path) -> PlanReport:
        """Build every network's plan; takes minutes.

        Raises:
            ExportError: one cannot be built.
        """
        for name, shapes in each(list(self.ranges.items()), "building plans"):
            (network,) = folder.glob(f"{name}/*/model.onnx")
            with written_aside(network.with_suffix(".plan")) as aside:
                aside.write_bytes(self.builder.build(network, shapes))
        return PlanReport(tensorrt=self.builder.version, ranges=self.ranges)


def plan_ranges(run: Run) -> dict[str, dict[str, Range]]:
    """Return network -> input -> the shapes that can occur: batches as served, lengths as the preprocessing pads.

    Raises:
        InputError: a tower's lengths vary, and its preprocessing does not say to which ones it pads.
    """
    recipe = run.read_recipe()
    largest = recipe.serving.max_batch_size
    batches = (1, min(_USUAL_BATCH, largest), largest)
    found = {}
    for spec in networks(recipe):
        if spec.name == MATRIX_MODEL:
            # The learned metric computes 2 d + 1 numbers per pair at once: TensorRT counts those of the largest block.
            found[spec.name] = {
                side: _shapes(spec, (1, 1, 1), (1, _USUAL_BLOCK, most))[side]
                for side, most in ((LEFT, MAX_BLOCK_LEFT), (RIGHT, MAX_BLOCK_RIGHT))
            }
            continue
        tower = recipe.towers.get(spec.tower)
        lengths = tower.padded_lengths(run.towers / spec.tower) if tower else []
        varying = lengths or [1]  # 1: nothing varies
        # From 1 on, the length of what a plan is warmed up with.
        found[spec.name] = _shapes(spec, batches, (1, varying[len(varying) // 2], varying[-1]))
    return found


def _shapes(spec: StepSpec, batches: tuple[int, ...], lengths: tuple[int, ...]) -> dict[str, Range]:
    found = {}
    for tensor in spec.inputs:
        smallest, usual, largest = map(tensor.shape, batches, lengths)
        found[tensor.name] = Range(smallest=smallest, usual=usual, largest=largest)
    return found


class TensorRTBuilder:
    """The real builder, on the GPU of this machine.

    Args:
        timing_cache: file in which the timings of kernels are kept, so that the next export builds faster.

    Raises:
        InputError: the package is not installed, or finds no GPU that it can use.
    """

    def __init__(self, timing_cache: Path) -> None:
        try:
            self.trt: Any = importlib.import_module("tensorrt")
        except ImportError as error:
            raise InputError(
                f"--tensorrt needs the package tensorrt and an NVIDIA GPU: pip install 'likeness[gpu]' ({error})"
            ) from error
        self.version = str(self.trt.__version__)
        self.timing_cache = timing_cache
        self.logger = self.trt.Logger(self.trt.Logger.WARNING)
        try:
            self.builder = self.trt.Builder(self.logger)
        except TypeError as error:  # what its binding makes of a builder that could not be had
            raise InputError(
                f"TensorRT {self.version} finds no GPU that it can use; its log above says why. If there is one, its "
                "driver may be older than the CUDA of this package: tensorrt-cu12 is the one for CUDA 12"
            ) from error
        self.trt.init_libnvinfer_plugins(self.logger, "")  # TF-IDF adds up at places, which TensorRT has as a plugin

    def build(self, network: Path, ranges: Mapping[str, Range]) -> bytes:
        """See `Builder`."""
        trt, builder = self.trt, self.builder
        # Version 11 is always strongly typed and ignores the flag; version 10 needs it.
        definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(definition, self.logger)
        if not parser.parse_from_file(str(network)):
            errors = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
            raise ExportError(f"{network.parent.parent.name}: TensorRT cannot parse the file: {errors}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: it would compute what is fp32 in the file with 10 bits
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, shapes.smallest, shapes.usual, shapes.largest)
        config.add_optimization_profile(profile)
        cache = self._use_timings(config)
        plan = builder.build_serialized_network(definition, config)
        if plan is None:
            raise ExportError(f"{network.parent.parent.name}: TensorRT cannot build a plan; its log above says why")
        with written_aside(self.timing_cache) as aside:
            aside.write_bytes(bytes(cache.serialize()))
        return bytes(plan)

    def _use_timings(self, config: Any) -> Any:
        """Give the builder the timings of earlier builds, or none if they are broken or of another version or GPU."""
        known = self.timing_cache.read_bytes() if self.timing_cache.is_file() else b""
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cache
