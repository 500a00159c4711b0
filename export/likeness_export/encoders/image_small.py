"""A small convolutional network for images, trained from scratch in about a minute on two cores."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from likeness_export.encoders.base import Encoder, LearningRate
from likeness_export.encoders.image_common import Normalise, PhotoConfig, augment_pixels

_HALF = (0.5, 0.5, 0.5)


class SmallConvNetConfig(PhotoConfig):
    """``encoder = "small_cnn"``."""

    run_rows: ClassVar[int | None] = None
    never_frozen: ClassVar[str] = "it starts at random and has to learn"

    encoder: Literal["small_cnn"]
    image_px: int = Field(default=96, ge=32, le=256, description="side of the square that photos are squashed to")
    width: int = Field(
        default=32, ge=8, le=128, description="channels of the first of four stages; each later one has twice as many"
    )
    freeze: bool = False
    learning_rate: LearningRate = 2e-3

    def build_one(self, tower: Path, source_root: Path | None) -> Encoder:  # noqa: ARG002 (there are no pretrained weights)
        """Build it with random weights."""
        return SmallConvNet(self.width)


class SmallConvNet(Encoder):
    """Four stages of strided convolutions; mean and maximum over the last map: colour and detail both survive."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalise = Normalise(_HALF, _HALF)
        sizes = [3, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(_stage(before, after) for before, after in itertools.pairwise(sizes)),
        )
        self.feature_dim = 2 * sizes[-1]

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``pixels``, UINT8 [n, px, px, 3]."""
        maps = self.stages(self.normalise(tensors[0]))  # (n, 8 width, px / 16, px / 16)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)  # (n, 16 width)

    def augment(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Vary the photo."""
        return (augment_pixels(tensors[0]),)


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, groups=after // 8, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )
