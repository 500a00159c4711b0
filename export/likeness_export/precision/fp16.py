"""Files in fp16, by onnxruntime's converter. For GPUs: on a CPU they are loaded and judged, but are no faster."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from likeness_export.precision.graph import layers

_TYPES = ("Conv", "Gemm", "LayerNormalization", "LSTM", "MatMul", "Softmax")


class Half:
    """Weights and arithmetic in fp16; inputs and outputs keep their types, so that no configuration changes.

    Lengths of vectors are rounded, too, up to 5e-4 off one; fusion heads, which stay fp32, make them exact again.

    Args:
        source: the fp32 file.
    """

    form = "fp16"

    def __init__(self, source: Path) -> None:
        self.source = source
        self.layers = layers(onnx.load(source), _TYPES)

    def write(self, target: Path, kept: Collection[str] = ()) -> None:
        """Write the reduced file; the layers in ``kept`` stay fp32."""
        model = convert_float_to_float16(onnx.load(self.source), keep_io_types=True, node_block_list=list(kept))
        onnx.save(model, target)
