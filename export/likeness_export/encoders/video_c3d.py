"""Videos by a small 3-D convolutional network, trained from scratch (article, 3.2.3: C3D).

Its shape is that of Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks" (2015): kernels of
3 x 3 x 3 throughout, and a first pooling that spares time. It has four stages where C3D has five, a quarter of its
channels by default, and batch normalisation, which came later.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from likeness_export.encoders.base import Encoder
from likeness_export.encoders.image_common import Normalise
from likeness_export.encoders.video_common import VideoConfig, VideoEncoder

_HALF = (0.5, 0.5, 0.5)


class C3dConfig(VideoConfig):
    """``encoder = "c3d"``."""

    encoder: Literal["c3d"]
    # With fewer than 12 the last convolution sees two steps of time, of which PyTorch on CPUs computes wrong gradients
    # in bf16 (seen with 2.13: uninitialised memory). It halves time twice before.
    frames: int = Field(default=16, ge=12, le=64, description="how many frames are taken, evenly over the clip")
    width: int = Field(
        default=16, ge=8, le=64, description="channels of the first of four stages; each later one has twice as many"
    )

    def build(self, tower: Path, source_root: Path | None) -> Encoder:  # noqa: ARG002 (there are no pretrained weights)
        """Build it with random weights."""
        return C3d(self.width)


class C3d(VideoEncoder):
    """Four stages of 3-D convolutions; mean and maximum over what is left of space and time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalise = Normalise(_HALF, _HALF)
        sizes = [3, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(_stage(*pair, keep_time=pair[0] == 3) for pair in itertools.pairwise(sizes)),
        )
        self.feature_dim = 2 * sizes[-1]

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``frames``, UINT8 [n, t, px, px, 3]."""
        frames = tensors[0]
        pixels = self.normalise(frames.float().flatten(0, 1))  # (n t, 3, px, px); TensorRT only converts bytes
        clips = pixels.unflatten(0, (-1, frames.shape[1])).transpose(1, 2)  # (n, 3, t, px, px)
        maps = self.stages(clips)  # (n, 8 width, t // 8, px // 16, px // 16)
        return torch.cat([maps.mean((2, 3, 4)), maps.amax((2, 3, 4))], 1)  # (n, 16 width)


def _stage(before: int, after: int, *, keep_time: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm3d(after),
        nn.ReLU(),
        nn.MaxPool3d((1 if keep_time else 2, 2, 2)),
    )
