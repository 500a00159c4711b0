"""Files in fp16, by onnxruntime's converter. For GPUs: on a CPU they are loaded and judged, but are no faster."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from likeness_export.exporting.network_files import save_network
from likeness_export.precision.graph import layers

# Powers leave the range of fp16 soon, a square from 256 on, and so do their means: lengths, root mean squares,
# generalised means. On a CPU, which computes in fp32 all the same, nobody would notice.
_EXACT = [*DEFAULT_OP_BLOCK_LIST, "Pow", "ReduceL2", "ReduceMean", "Sqrt"]
_TYPES = ("Conv", "Gemm", "LayerNormalization", "LSTM", "MatMul", "Softmax")


class Fp16:
    """Weights and arithmetic in fp16; inputs and outputs keep their types, so that no configuration changes.

    The answer, a unit vector, is divided by its length once more in fp32: rounding leaves it up to 5e-4 off one.

    Args:
        source: the fp32 file.
    """

    form = "fp16"

    def __init__(self, source: Path) -> None:
        self.source = source
        model = onnx.load(source, load_external_data=False)
        self.layers = layers(model, _TYPES)
        self.added_to_means = _added_to_means(model.graph)

    def write(self, target: Path, kept: Collection[str] = ()) -> None:
        """Write the reduced file; the layers in ``kept`` stay fp32."""
        exact = [*kept, *self.added_to_means]
        source = str(self.source)  # read by the converter: only in files can it infer shapes where weights exceed 2 GiB
        model = convert_float_to_float16(source, keep_io_types=True, op_block_list=_EXACT, node_block_list=exact)
        _normalise_again(model.graph)
        _join_exact(model)
        del model.graph.value_info[:]  # the converter calls fp16 what stays fp32; what reads the file infers them anew
        save_network(model, target)


def _added_to_means(graph: onnx.GraphProto) -> list[str]:
    """Return what adds to a mean: between one of squares and its root stands a small number."""
    means = {name for node in graph.node if node.op_type == "ReduceMean" for name in node.output}
    return [node.name for node in graph.node if node.op_type == "Add" and means.intersection(node.input)]


def _join_exact(model: onnx.ModelProto) -> None:
    """Let neighbours that both stay fp32 meet without the cast to fp16 that the converter puts between them."""
    graph = OnnxModel(model)
    for back in graph.get_nodes_by_op_type("Cast"):
        there = graph.get_parent(back, 0)
        if there and there.op_type == "Cast":
            kinds = [onnx.helper.get_node_attr_value(cast, "to") for cast in (there, back)]
            if kinds == [TensorProto.FLOAT16, TensorProto.FLOAT]:
                back.input[0] = there.input[0]
    graph.prune_graph(allow_remove_graph_inputs=False)
    graph.topological_sort()


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
