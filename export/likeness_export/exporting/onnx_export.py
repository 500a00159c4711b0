"""Export of one network: trace, verify, write. A file that fails its verification is not left behind."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from likeness_client.errors import LikenessError
from likeness_client.writing import told_if_full
from numpy.typing import NDArray
from torch import Tensor, nn

from likeness_export.encoders import Encoder
from likeness_export.exporting.network_files import megabytes, move_network, save_network
from likeness_export.networks.similarity import Similarity
from likeness_export.pipeline import StepSpec
from likeness_export.product_network import ProductNetwork, SignatureFusion, Tower
from likeness_export.repository.adapters import session as served_session
from likeness_export.repository.adapters.lengths import used_lengths

OPSET = 20
_ALL_CORES = 0  # as onnxruntime has it
TOLERANCE = 1e-4
"""Largest absolute difference to eager torch, fp32; outputs are of the order of 1."""
_LENGTHS = (3, 16, 40)  # tried where a dimension varies; below, at and above the smallest bucket


class ExportError(LikenessError):
    """A network could not be exported, or its file does not do what the network does."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was verified of one file.

    Attributes:
        name: the network.
        megabytes: size of its file, or files.
        seconds: time for tracing and verifying.
        cases: how many batches and lengths were compared with eager torch.
        largest_difference: over all cases and outputs, absolute.
        batch_difference: between a row alone and the same row in the largest batch; where lengths vary, also between
            the row with its padding and without it.
    """

    name: str
    megabytes: float
    seconds: float
    cases: int
    largest_difference: float
    batch_difference: float


def module_of(network: ProductNetwork, spec: StepSpec) -> nn.Module:
    """Return the part of the product network that a declaration means."""
    if spec.tower:
        return network.tower(spec.tower)
    if spec.signature:
        return SignatureFusion(network, spec.signature)
    return Similarity(network.metric)


def export_network(
    module: nn.Module, spec: StepSpec, path: Path, max_batch_size: int, longest: int = _LENGTHS[-1]
) -> ExportReport:
    """Trace a network, compare the file with it, and put it in place.

    Args:
        module: the network, on the CPU.
        spec: its declared tensors.
        path: where to; replaced only by a verified file.
        max_batch_size: the largest batch to verify.
        longest: the largest length to verify, where lengths vary.

    Raises:
        ExportError: names the network and what is wrong with it.
    """
    started = time.perf_counter()
    module = module.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with told_if_full(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        aside = Path(folder) / path.name
        usual = min(_LENGTHS[1], longest)
        model = _trace(module, spec, usual)
        _convert_bytes_first(spec, model)
        save_network(model, aside)
        check_signature(spec, aside)
        session = open_session(spec.name, aside)
        differences = [
            _difference(module, spec, session, case) for case in _cases(module, spec, max_batch_size, longest)
        ]
        largest = float(np.max(differences))  # unlike Python's max, NaN wins
        if not largest <= TOLERANCE:
            raise ExportError(f"{spec.name}: differs from eager torch by {largest:.2e}, allowed is {TOLERANCE:.0e}")
        alone = _batch_difference(module, spec, session, max_batch_size, usual)
        if not alone <= TOLERANCE:
            raise ExportError(
                f"{spec.name}: a row alone (or without its padding) and in a batch differ by {alone:.2e}, "
                f"allowed is {TOLERANCE:.0e}"
            )
        move_network(aside, path)
    return ExportReport(
        name=spec.name,
        megabytes=megabytes(path),
        seconds=time.perf_counter() - started,
        cases=len(differences),
        largest_difference=largest,
        batch_difference=alone,
    )


def _trace(module: nn.Module, spec: StepSpec, length: int) -> onnx.ModelProto:
    sample = _sample(module, spec, 2, length)
    # How varying sizes relate is left to the tracer (both token tensors share a length); `_cases` proves they vary.
    varying = torch.export.Dim.AUTO
    shapes = [
        {0: varying, **{place: varying for place, size in enumerate(tensor.dims, start=1) if size == -1}}
        for tensor in spec.inputs
    ]
    tracer = logging.getLogger("torch.onnx")
    level = tracer.level
    tracer.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns about its own internals
            program = torch.onnx.export(
                _Fixed(module),
                sample,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=(tuple(shapes),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        assert program is not None  # it is where dynamo traces
        return _without_places(program.model_proto)
    except Exception as error:  # the tracer fails with many types; whichever it is, this network is not exported
        raise ExportError(f"{spec.name}: cannot be traced: {error}") from error
    finally:
        tracer.setLevel(level)


def _without_places(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop where in the source each node comes from: the same network gives the same file in any folder."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    return model


def _convert_bytes_first(spec: StepSpec, model: onnx.ModelProto) -> None:
    """Let sizes be read off the converted bytes: TensorRT takes UINT8 for nothing but a Cast, not even for Shape."""
    nodes = model.graph.node
    for name in (tensor.name for tensor in spec.inputs if tensor.datatype == "UINT8"):
        cast = next((node for node in nodes if node.op_type == "Cast" and node.input[0] == name), None)
        if cast is None:
            continue
        for node in nodes:
            if node.op_type == "Shape" and node.input[0] == name:
                node.input[0] = cast.output[0]
        nodes.remove(cast)
        nodes.insert(0, cast)  # before all who read it now


class _Fixed(nn.Module):
    """Gives every network the same variadic signature, whatever the names of its own parameters are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        result: Tensor | tuple[Tensor, ...] = self.module(*tensors)
        return result


def check_signature(spec: StepSpec, path: Path) -> None:
    """Compare a file's names, types and sizes with the declaration.

    Raises:
        ExportError: they differ.
    """
    graph = onnx.load(path, load_external_data=False).graph
    for kind, declared, found in (("input", spec.inputs, graph.input), ("output", spec.outputs, graph.output)):
        names, wanted = [value.name for value in found], [tensor.name for tensor in declared]
        if names != wanted:
            raise ExportError(f"{spec.name}: the file's {kind}s are {names}, declared are {wanted}")
        for tensor, value in zip(declared, found, strict=True):
            numpy_type = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            if numpy_type != tensor.numpy_dtype:
                raise ExportError(f"{spec.name}: {kind} {tensor.name} is {numpy_type}, declared is {tensor.datatype}")
            dims = value.type.tensor_type.shape.dim
            sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in dims]
            # Triton's onnxruntime backend compares outputs exactly: a size that only varies in the file is refused.
            if sizes != [-1, *tensor.dims]:
                raise ExportError(
                    f"{spec.name}: {kind} {tensor.name} has sizes {sizes}, declared are {[-1, *tensor.dims]}"
                )


def _cases(module: nn.Module, spec: StepSpec, max_batch_size: int, longest: int) -> Iterator[tuple[Tensor, ...]]:
    varies = any(tensor.varies for tensor in spec.inputs)
    lengths = [length for length in _LENGTHS if length <= longest] if varies else _LENGTHS[:1]
    for length in lengths:
        for batch in sorted({1, 2, _rows(spec, max_batch_size, length)}):
            yield _sample(module, spec, batch, length)
    if varies and longest not in lengths:
        yield _sample(module, spec, 1, longest)


def _rows(spec: StepSpec, most: int, length: int) -> int:
    """Return how many rows of a length are verified together: of those with several photos as many photos as rows."""
    several = any(tensor.varies and len(tensor.dims) > 1 for tensor in spec.inputs)
    return max(min(2, most), most // length) if several else most


def _sample(module: nn.Module, spec: StepSpec, batch: int, length: int) -> tuple[Tensor, ...]:
    """Draw valid random inputs."""
    if isinstance(module, Tower):
        return module.encoder.sample(spec.inputs, batch, length)
    if isinstance(module, Encoder):
        return module.sample(spec.inputs, batch, length)
    return tuple(F.normalize(torch.randn(tensor.shape(batch, length)), dim=-1) for tensor in spec.inputs)


def open_session(name: str, path: Path) -> ort.InferenceSession:
    """Open a file on all cores of the CPU, but else as it is served.

    Raises:
        ExportError: onnxruntime cannot load it; names the network.
    """
    try:
        return served_session.open_session(path, _ALL_CORES)
    except Exception as error:  # onnxruntime's types are private; whichever it is, this file cannot be served
        raise ExportError(f"{name}: onnxruntime cannot load the file: {error}") from error


def _run(spec: StepSpec, session: ort.InferenceSession, case: tuple[Tensor, ...]) -> list[NDArray[np.float32]]:
    feed = {tensor.name: value.numpy() for tensor, value in zip(spec.inputs, case, strict=True)}
    try:
        answer: list[NDArray[np.float32]] = session.run([tensor.name for tensor in spec.outputs], feed)
    except Exception as error:  # onnxruntime's types are private; whichever it is, this file does not serve the batch
        shapes = {name: list(value.shape) for name, value in feed.items()}
        raise ExportError(f"{spec.name}: onnxruntime fails on {shapes}: {error}") from error
    return answer


@torch.inference_mode()
def _difference(module: nn.Module, spec: StepSpec, session: ort.InferenceSession, case: tuple[Tensor, ...]) -> float:
    try:
        expected = module(*case)
    except Exception as error:  # networks fail with many types; whichever it is, this batch cannot be compared
        shapes = [list(value.shape) for value in case]
        drawn = ", drawn by the encoder's `sample`" if spec.tower else ""
        raise ExportError(f"{spec.name}: eager torch itself fails on {shapes}{drawn}: {error}") from error
    eager = expected if isinstance(expected, tuple) else (expected,)
    worst = 0.0
    for tensor, mine, theirs in zip(spec.outputs, eager, _run(spec, session, case), strict=True):
        if tuple(mine.shape) != theirs.shape:
            raise ExportError(
                f"{spec.name}: output {tensor.name} has shape {theirs.shape}, eager torch {tuple(mine.shape)}"
            )
        worst = float(np.maximum(worst, np.abs(mine.numpy() - theirs).max()))
    return worst


def _batch_difference(
    module: nn.Module, spec: StepSpec, session: ort.InferenceSession, max_batch_size: int, length: int
) -> float:
    case = _sample(module, spec, _rows(spec, max_batch_size, length), length)
    row, without_padding = 0, []
    if isinstance(module, (Tower, Encoder)) and any(tensor.varies for tensor in spec.inputs):
        lengths = used_lengths([value.numpy() for value in case])
        row = int(lengths.argmin())
        without_padding = [tuple(value[row : row + 1, : lengths[row]] for value in case)]  # as the server cuts it
    alone = [tuple(value[row : row + 1] for value in case), *without_padding]
    together = [output[row : row + 1] for output in _run(spec, session, case)]
    answers = [_run(spec, session, single) for single in alone]
    return float(np.max([np.abs(a - b).max() for answer in answers for a, b in zip(together, answer, strict=True)]))
