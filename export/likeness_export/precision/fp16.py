"""Files in fp16, by onnxruntime's converter. For GPUs: on a CPU they are loaded and judged, but are no faster."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from likeness_export.precision.graph import layers

# A length is a sum of squares, which leaves the range of fp16 from a length of 256 on; on a CPU, which computes in fp32
# all the same, nobody would notice.
_EXACT = [*DEFAULT_OP_BLOCK_LIST, "ReduceL2"]
_TYPES = ("Conv", "Gemm", "LayerNormalization", "LSTM", "MatMul", "Softmax")


class Half:
    """Weights and arithmetic in fp16; inputs and outputs keep their types, so that no configuration changes.

    The answer, a unit vector, is divided by its length once more in fp32: rounding leaves it up to 5e-4 off one.

    Args:
        source: the fp32 file.
    """

    form = "fp16"

    def __init__(self, source: Path) -> None:
        self.source = source
        self.layers = layers(onnx.load(source), _TYPES)

    def write(self, target: Path, kept: Collection[str] = ()) -> None:
        """Write the reduced file; the layers in ``kept`` stay fp32."""
        model = convert_float_to_float16(
            onnx.load(self.source), keep_io_types=True, op_block_list=_EXACT, node_block_list=list(kept)
        )
        _normalise_again(model.graph)
        onnx.save(model, target)


def _normalise_again(graph: onnx.GraphProto) -> None:
    (output,) = graph.output
    rounded, length, axes, smallest = (f"{output.name}_{part}" for part in ("rounded", "length", "axes", "smallest"))
    for node in graph.node:
        node.output[:] = [rounded if name == output.name else name for name in node.output]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), axes))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e-12, np.float32), smallest))
    graph.node.append(onnx.helper.make_node("ReduceL2", [rounded, axes], [f"{length}_exact"], keepdims=1))
    graph.node.append(onnx.helper.make_node("Max", [f"{length}_exact", smallest], [length]))
    graph.node.append(onnx.helper.make_node("Div", [rounded, length], [output.name]))
