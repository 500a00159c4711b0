"""Videos by a convolutional network per frame and an LSTM over the frames (article, 3.2.3: LSTM).

The shape is that of Donahue et al., "Long-term Recurrent Convolutional Networks" (2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from likeness_export.encoders.base import Encoder
from likeness_export.encoders.image_backbone import ImageBackbone, load_backbone, write_architecture
from likeness_export.encoders.image_small import SmallConvNet
from likeness_export.encoders.video_common import VideoConfig, VideoEncoder


class CnnLstmConfig(VideoConfig):
    """``encoder = "cnn_lstm"``."""

    encoder: Literal["cnn_lstm"]
    source: str | None = Field(
        default=None, description="Hugging Face vision network for the frames; default: a small one, from scratch"
    )
    freeze_source: bool = Field(default=True, description="keep that network as it is; the LSTM learns")
    width: int = Field(default=16, ge=8, le=128, description="channels of the small network's first stage")
    hidden: int = Field(default=128, ge=8, le=2048, description="width of the LSTM, in each direction")
    bidirectional: bool = True
    pool: Literal["mean", "last"] = Field(
        default="mean", description="of the LSTM's states, their mean or where it ends"
    )

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:
        """Store the decoder's settings and the architecture of the source, if there is one."""
        super().prepare(items, tower, data_root)
        if self.source:
            write_architecture(self.source, tower, data_root)

    def build(self, tower: Path, source_root: Path | None) -> Encoder:
        """Build it; only the source's network can have pretrained weights."""
        if not self.source:
            return CnnLstm(SmallConvNet(self.width), self)
        backbone = load_backbone(self.source, tower, source_root)
        return CnnLstm(ImageBackbone(*backbone, image_px=self.video_px), self)


class CnnLstm(VideoEncoder):
    """What the LSTM made of the frames' features."""

    def __init__(self, cnn: Encoder, config: CnnLstmConfig) -> None:
        super().__init__()
        self.cnn = cnn
        self.cnn_learns = not (config.source and config.freeze_source)
        self.pool = config.pool
        self.lstm = nn.LSTM(cnn.feature_dim, config.hidden, batch_first=True, bidirectional=config.bidirectional)
        self.feature_dim = config.hidden * (2 if config.bidirectional else 1)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``frames``, UINT8 [n, t, px, px, 3]."""
        frames = tensors[0]
        seen = self.cnn(frames.float().flatten(0, 1))  # (n t, c); TensorRT only converts bytes
        states, (last, _) = self.lstm(seen.unflatten(0, (-1, frames.shape[1])))  # (n, t, f), (directions, n, hidden)
        mean: Tensor = states.mean(1)  # (n, f)
        return mean if self.pool == "mean" else last.transpose(0, 1).flatten(1)

    def requires_grad_(self, requires_grad: bool = True) -> CnnLstm:
        """Let the network learn; a pretrained part only if it was asked for."""
        super().requires_grad_(requires_grad)
        self.cnn.requires_grad_(requires_grad and self.cnn_learns)
        return self

    def train(self, mode: bool = True) -> CnnLstm:
        """Switch to training; a part that stays as it is has no dropout either."""
        super().train(mode)
        self.cnn.train(mode and self.cnn_learns)
        return self
