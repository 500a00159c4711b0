"""Files in int8, by onnxruntime's quantiser.

Sources: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html and, for the choice of types per
processor, the docstring of ``quantize_static``.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from likeness_export.exporting.network_files import save_network
from likeness_export.precision.graph import kind_of, layers
from likeness_export.precision.products import Feed, Products
from likeness_export.repository.adapters.session import has_vnni

_CALIBRATION_BATCH = 16
_PERCENTILE = 99.99
"""Share of an activation's values inside its range. The very largest would widen the steps between all others: with
them MobileNet V2 on fashion photos came to a mean cosine of 0.88, without to 0.96."""


class DynamicInt8:
    """int8 weights, one scale per output channel; the range of activations is found anew in every batch.

    For transformers: their activations have outliers that differ from text to text. A range that is fixed beforehand
    cost eight times as much cosine on MiniLM; the price is that a product's vector depends a little on its batch.

    Args:
        source: the fp32 file.
        work: folder for intermediate files.
    """

    form = "int8 dynamic"

    def __init__(self, source: Path, work: Path) -> None:
        self.prepared = _prepared(source, work)
        self.layers = layers(onnx.load(self.prepared, load_external_data=False), ("MatMul",))

    def write(self, target: Path, kept: Collection[str] = ()) -> None:
        """Write the reduced file; the layers in ``kept`` stay fp32."""
        with _quantized(target) as quantized:
            quantize_dynamic(
                self.prepared,
                quantized,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=not has_vnni(),
                nodes_to_exclude=list(kept),
                use_external_data_format=True,
            )


class StaticInt8:
    """int8 weights, one scale per output channel, and activations of a range that was calibrated on real products.

    Written as QuantizeLinear and DequantizeLinear around fp32 operators (QDQ), which onnxruntime fuses.

    Args:
        source: the fp32 file.
        work: folder for intermediate files.
        tower: whose products calibrate.
        products: training products.
        for_tensorrt: write what TensorRT takes: ranges around zero, biases in fp32, weights in fp32 behind their own
            pair of nodes, and what layers put out as it is. Slower on a CPU, and less exact behind a ReLU, where half
            of a range stays unused.
    """

    form = "int8 static"

    def __init__(self, source: Path, work: Path, tower: str, products: Products, *, for_tensorrt: bool = False) -> None:
        self.prepared = _prepared(source, work)
        self.ranges = work / "ranges.json"
        self.tower, self.products, self.for_tensorrt = tower, products, for_tensorrt
        model = onnx.load(self.prepared, load_external_data=False)
        # A sum of two maps is quantised with the convolutions around it, or each of them would be converted back. In a
        # transformer sums carry masks and outliers, and a range that cuts outliers off ruins it.
        convolutional = kind_of(model) != "transformer"
        self.types = ("Conv", "Add") if convolutional else ("MatMul",)
        self.method = CalibrationMethod.Percentile if convolutional else CalibrationMethod.MinMax
        self.layers = layers(model, ("Conv",) if convolutional else ("MatMul",))

    def write(self, target: Path, kept: Collection[str] = ()) -> None:
        """Write the reduced file; the layers in ``kept`` stay fp32. The first call calibrates, later ones reuse it."""
        signed = self.for_tensorrt
        reader = None if self.ranges.is_file() else _Reader(self.products.feeds(self.tower, _CALIBRATION_BATCH))
        # The calibration prints its progress.
        with _quantized(target) as quantized, redirect_stdout(io.StringIO()):
            quantize_static(
                self.prepared,
                quantized,
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(self.types),
                per_channel=True,
                reduce_range=not (signed or has_vnni()),
                activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(kept),
                calibrate_method=self.method,
                extra_options=self._options(),
                calibration_cache_path=self.ranges,
                use_external_data_format=True,
            )

    def _options(self) -> dict[str, object]:
        options: dict[str, object] = {
            "MatMulConstBOnly": True,
            "CalibPercentile": _PERCENTILE,
            "CalibStridedMinMax": 1,  # one batch after the other: all activations of all batches fill the memory
        }
        if self.for_tensorrt:
            extra = ("ActivationSymmetric", "AddQDQPairToWeight", "DedicatedQDQPair")
            options |= {**dict.fromkeys(extra, True), "QuantizeBias": False}
            # What a layer puts out is quantised where the next one takes it in, not before. TensorRT advises so, and
            # the second rounding took MiniLM from a mean cosine of 0.98 to 0.85.
            options["OpTypesToExcludeOutputQuantization"] = ["Conv", "MatMul"]
        return options


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands batches to the calibration, whole or a range of them at a time."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self.feeds = list(feeds)
        self.left = iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these batches."""
        self.left = iter(self.feeds[start_index:end_index])

    def get_next(self) -> Feed | None:
        """Return the next batch, None behind the last."""
        return next(self.left, None)


def _prepared(source: Path, work: Path) -> Path:
    """Fold constants, fuse batch normalisation and infer shapes, which the quantiser builds upon."""
    target = work / "prepared.onnx"
    # The symbolic inference trips over sizes that are computed in the graph; nothing here needs it.
    quant_pre_process(
        source,
        target,
        skip_symbolic_shape=True,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        external_data_location=f"{target.name}.data",
    )
    return target


@contextmanager
def _quantized(target: Path) -> Iterator[Path]:
    """Give a place for what the quantiser writes, which it cannot know to fit into one file."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        quantized = Path(folder) / target.name
        yield quantized
        save_network(onnx.load(quantized), target)
