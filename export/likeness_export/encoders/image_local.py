"""Images by their local features: what tells fine-grained neighbours apart is often one small part (article, 3.2.2).

Two poolings that keep detail which a plain mean drowns: the generalised mean (Radenović et al. 2018) and attended parts
(after Zheng et al. 2017), whose attention also shows where the network looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from likeness_export.encoders.base import Encoder, LearningRate
from likeness_export.encoders.image_backbone import load_backbone, write_architecture
from likeness_export.encoders.image_common import Normalise, PhotoConfig, PhotoEncoder, seen_at

_WIDTH = 256  # channels of the map that the parts are read from
_PHOTOS_AT_ONCE = 4  # of a frozen network, while the rest learns
_FLOOR, _SHARPEST = 1e-3, 8.0  # of the generalised mean: 1e-3 ** 8 is still a number in FP32, and so is its slope


class LocalFeaturesConfig(PhotoConfig):
    """``encoder = "local_features"``."""

    never_frozen: ClassVar[str] = "the parts have to learn; freeze_backbone keeps the pretrained network"

    encoder: Literal["local_features"]
    source: str = Field(description="directory, package or hub name of a Hugging Face vision network")
    image_px: int = Field(default=224, ge=32, le=1024, description="side of the square that photos are squashed to")
    parts: int = Field(default=4, ge=1, le=32, description="attended parts; each has a map and a descriptor")
    scales: int = Field(default=2, ge=1, le=4, description="sizes of map that the parts see, from the smallest up")
    # `freeze` means that features are computed once and kept. Here they come out of parts and pooling that start at
    # random and have to learn, so there is nothing to keep but whole maps: 0.3 MB of every photo, and no augmentation.
    # What can stay fixed is the backbone; gradients then end at its maps, which saves more than half of a step.
    freeze: bool = False
    freeze_backbone: bool = Field(default=True, description="keep the pretrained network; only parts and pooling learn")
    learning_rate: LearningRate = Field(default=1e-3, description="of parts, pooling and a backbone that learns")

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:
        """Store the decoder's settings and the architecture."""
        super().prepare(items, tower, data_root)
        write_architecture(self.source, tower, data_root)

    def build_one(self, tower: Path, source_root: Path | None) -> Encoder:
        """Load the pretrained network, or its bare architecture, and put parts and pooling on top."""
        backbone, mean, std = load_backbone(self.source, tower, source_root)
        return LocalFeatures(backbone, Normalise(mean, std), self)


class LocalFeatures(PhotoEncoder):
    """The generalised mean of the last map, and of a joined map of several scales that mean and its parts.

    The scales are joined as in a feature pyramid (Lin et al. 2017). The generalised mean cuts at zero, as after a ReLU;
    of backbones whose last map has negative values (ConvNeXt, ViT) those reach the features through the joined map.
    """

    def __init__(self, backbone: nn.Module, normalise: Normalise, config: LocalFeaturesConfig) -> None:
        super().__init__()
        self.backbone, self.normalise = backbone, normalise
        self.scales, self.freeze_backbone = config.scales, config.freeze_backbone
        maps = seen_at(config.image_px, self.eval().maps)
        self.lateral = nn.ModuleList(nn.Conv2d(found.shape[1], _WIDTH, 1) for found in maps)
        self.level = nn.GroupNorm(1, _WIDTH)
        self.look = nn.Conv2d(_WIDTH, config.parts, 1)
        nn.init.orthogonal_(self.look.weight)  # parts that start alike would learn alike
        self.pool_last, self.pool_joined = GeneralisedMean(), GeneralisedMean()
        self.feature_dim = maps[-1].shape[1] + (1 + config.parts) * _WIDTH

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``pixels``, UINT8 [n, px, px, 3]."""
        maps = self.maps(tensors[0])
        joined = self.join(maps)  # (n, 256, h, w)
        places = joined.flatten(2).transpose(1, 2)  # (n, h w, 256)
        parts = self.attend(joined).flatten(2) @ places  # (n, p, 256)
        features = [self.pool_last(maps[-1]), self.pool_joined(joined), *parts.unbind(1)]
        return torch.cat([F.normalize(feature.float(), dim=1) for feature in features], 1)  # (n, f)

    def attention_maps(self, pixels: Tensor) -> Tensor:
        """Return where each part looked.

        Args:
            pixels: UINT8 [n, px, px, 3].

        Returns:
            FP32 [n, parts, h, w], of the largest scale's size; every map sums to 1.
        """
        return self.attend(self.join(self.maps(pixels)))

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Return the backbone's maps FP32 [n, c, h, w]: of every size the last one, large to small."""
        if self.training and self.freeze_backbone and pixels.device.type == "cpu":
            # Without gradients nothing of a photo's hundred maps has to last, and few photos at a time fit the caches.
            of_parts = zip(*map(self._maps, torch.split(pixels, _PHOTOS_AT_ONCE)), strict=True)
            return [torch.cat(found) for found in of_parts]
        return self._maps(pixels)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        answer = self.backbone(self.normalise(pixels), output_hidden_states=True)
        registers = getattr(self.backbone.config, "num_register_tokens", 0)
        found = [as_map(hidden, registers) for hidden in (*answer.hidden_states, answer.last_hidden_state)]
        of_size = {hidden.shape[2:]: hidden for hidden in found}
        return list(of_size.values())[-self.scales :]

    def join(self, maps: list[Tensor]) -> Tensor:
        """Add all scales up, at the size of the largest: FP32 [n, 256, h, w]."""
        size = maps[0].shape[2:]
        narrow = [lateral(found) for lateral, found in zip(self.lateral, maps, strict=True)]
        grown = [F.interpolate(found, size=size, mode="bilinear", align_corners=False) for found in narrow[1:]]
        return F.relu(self.level(torch.stack([narrow[0], *grown]).sum(0)))

    def attend(self, joined: Tensor) -> Tensor:
        """Return every part's share of attention per place, FP32 [n, p, h, w]."""
        scores: Tensor = self.look(joined)
        return scores.flatten(2).softmax(2).reshape(scores.shape)

    def requires_grad_(self, requires_grad: bool = True) -> LocalFeatures:
        """Let everything learn but a frozen backbone."""
        super().requires_grad_(requires_grad)
        if self.freeze_backbone:
            self.backbone.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> LocalFeatures:
        """Train everything but a frozen backbone, and of any other the statistics of batch normalisation."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self


class GeneralisedMean(nn.Module):
    """``(mean x^p)^(1/p)`` over the places of a map, with a learned p: 1 is the mean, large values near the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))  # where Radenović et al. start

    def forward(self, found: Tensor) -> Tensor:
        """Pool FP32 [n, c, h, w] to [n, c]."""
        p = self.p.clamp(1.0, _SHARPEST)
        pooled: Tensor = found.float().clamp(min=_FLOOR).pow(p).mean((2, 3)).pow(1 / p)
        return pooled


def as_map(hidden: Tensor, registers: int = 0) -> Tensor:
    """Turn a transformer's tokens [n, t, c] into a map [n, c, h, h] without its class and register tokens."""
    if hidden.dim() == 4:
        return hidden
    side = int((hidden.shape[1] - registers) ** 0.5)  # few other tokens stand in front of a square of patches
    # Not `len(hidden)`: tracing would take that for a constant.
    return hidden[:, -side * side :].transpose(1, 2).reshape(hidden.shape[0], -1, side, side)
