"""What all video encoders share: the configuration of the frames, the size guards, augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from likeness_client.contract import MAX_BYTES
from pydantic import Field
from torch import Tensor

from likeness_export.encoders.base import Encoder, EncoderConfig, LearningRate, write_asset
from likeness_export.encoders.image_common import MIN_PX, vary
from likeness_export.preprocessing import video
from likeness_export.tensors import TensorSpec

LIMITS = {
    "min_px": MIN_PX,
    "max_pixels": 4096 * 2304,  # 4K, upright or lying; a decoded frame takes 14 MB
    "max_decoded_pixels": 15_000_000_000,  # two minutes of Full HD at 60 frames a second: about half a minute of work
    "max_frames": 7_200,
    "max_seconds": 180,
    "max_bytes": MAX_BYTES["video"],
}


class VideoConfig(EncoderConfig):
    """The part of a video tower's configuration that says which frames the network sees."""

    modality: ClassVar[str] = "video"
    preprocessing: ClassVar[ModuleType] = video
    run_rows: ClassVar[int] = 1  # a clip is a batch of photos by itself
    never_frozen: ClassVar[str] = "it, or at least its LSTM, starts at random and has to learn"

    frames: int = Field(default=16, ge=2, le=64, description="how many frames are taken, evenly over the clip")
    video_px: int = Field(default=64, ge=32, le=512, description="side of the square that frames are squashed to")
    freeze: bool = False
    learning_rate: LearningRate = 2e-3

    def tensors(self) -> tuple[TensorSpec, ...]:
        """RGB bytes of the frames."""
        return (TensorSpec("frames", "UINT8", (self.frames, self.video_px, self.video_px, 3)),)

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:  # noqa: ARG002 (nothing is fitted)
        """Store the decoder's settings."""
        settings = {"frames": self.frames, "video_px": self.video_px, **LIMITS}
        write_asset(tower, video.SETTINGS_FILE, settings)


class VideoEncoder(Encoder):
    """What encoders of clips share in training, the only tensor being ``frames``, UINT8 [n, t, px, px, 3]."""

    def augment(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Vary clips as `image_common.augment_pixels` varies photos, all frames of a clip alike."""
        n, t, h, w, _ = tensors[0].shape
        stacked = tensors[0].permute(0, 1, 4, 2, 3).reshape(n, 3 * t, h, w).float()
        varied = vary(stacked).round().to(torch.uint8)
        return (varied.view(n, t, 3, h, w).permute(0, 1, 3, 4, 2),)  # (n, t, h, w, 3)
