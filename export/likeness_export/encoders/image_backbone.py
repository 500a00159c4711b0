"""Images by a pretrained vision network of the Hugging Face library (article, 3.2.2: ResNet, MobileNet, ViT, ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from likeness_client.errors import InputError
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from likeness_export.encoders.base import BACKBONE, Encoder
from likeness_export.encoders.halves import OF_PHOTOS, space_of
from likeness_export.encoders.image_common import (
    MeanOfMap,
    Normalise,
    PhotoConfig,
    PhotoEncoder,
    StridedDepthwise,
    seen_at,
)
from likeness_export.encoders.sources import load_network, load_pretrained, locate


class ImageBackboneConfig(PhotoConfig):
    """``encoder = "vision"``."""

    encoder: Literal["vision"]
    source: str = Field(description="directory, package or hub name of a Hugging Face vision network")
    image_px: int = Field(default=224, ge=32, le=1024, description="side of the square that photos are squashed to")
    train_px: int | None = Field(
        default=None,
        ge=32,
        le=1024,
        description="side of the photos while the network is fine-tuned; default: image_px",
    )

    def shared_space(self, tower: Path) -> str:
        """Of the image half of a network of two: that of both."""
        return space_of(self.source, tower)

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:
        """Store the decoder's settings and the architecture, the network's own mean and deviation in it."""
        super().prepare(items, tower, data_root)
        write_architecture(self.source, tower, data_root)

    def build_one(self, tower: Path, source_root: Path | None) -> Encoder:
        """Load the pretrained network, or its bare architecture."""
        return ImageBackbone(
            *load_backbone(self.source, tower, source_root), image_px=self.image_px, train_px=self.train_px
        )


def write_architecture(source: str, tower: Path, data_root: Path) -> None:
    """Store a network's architecture in a tower's folder, the mean and deviation that it was trained with in it.

    Also whether it brings weights for its pooling: checkpoints of classifiers often do not, and a pooling layer of
    random weights would spoil every feature.

    Raises:
        InputError: the network or the settings of its image processor are not there, or its pixels are unlike ours.
    """
    config = load_pretrained(AutoConfig, source, data_root)
    network, config.random_pooler = load_network(source, data_root, OF_PHOTOS)
    config.projected = hasattr(network, "visual_projection")
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(locate(source, data_root))
    except OSError as error:  # no guess: a wrong mean would spoil every feature
        raise InputError(
            f"source {source!r} has no preprocessor_config.json, so that the mean and deviation of its pixels are not "
            f"known: save the network's image processor beside it ({error})"
        ) from error
    config.image_mean, config.image_std = _mean_and_std(source, processor)
    config.save_pretrained(tower / BACKBONE)


def _mean_and_std(source: str, processor: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return the mean and deviation, of a 0..1 scale, of the pixels that a network was trained with.

    Raises:
        InputError: its image processor does not say them, or swaps red and blue, which `Normalise` does not.
    """
    if processor.get("do_flip_channel_order"):
        raise InputError(f"source {source!r} takes pixels as blue, green, red (do_flip_channel_order): name another")
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    if not (mean and std):
        raise InputError(
            f"source {source!r}: its preprocessor_config.json lacks image_mean or image_std: add those that it was "
            "trained with"
        )
    # Both are of pixels as the processor scales them, not always to 0..1; EfficientNet's divides by its std twice.
    scale = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255
    shift = 1.0 if processor.get("rescale_offset") else 0.0
    again = std if processor.get("include_top") else [1.0] * 3
    return [(m + shift) / scale for m in mean], [s * t / scale for s, t in zip(std, again, strict=True)]


def load_backbone(
    source: str, tower: Path, source_root: Path | None
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """Load what `write_architecture` described, with its weights unless ``source_root`` is None.

    Returns:
        The network, and the mean and deviation of its pixels.
    """
    config = AutoConfig.from_pretrained(tower / BACKBONE)
    if source_root is None:
        # transformers' own gap in its types
        backbone = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    else:
        backbone, _ = load_network(source, source_root, OF_PHOTOS)
    for module in backbone.modules():
        if type(module) is nn.Conv2d and module.groups > 1 and module.stride != (1, 1):
            module.__class__ = StridedDepthwise  # the same weights under the same names
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
            module.__class__ = MeanOfMap
    # The plain product of matrices, as of texts: torch's fused attention over windows (Swin) or with learned places
    # (BEiT) is not traced for batches that vary.
    backbone.set_attn_implementation("eager")
    # Joint text and image models (CLIP, SigLIP) hold the part that is wanted here.
    found = getattr(backbone, "vision_model", backbone)
    found.random_pooler = bool(getattr(config, "random_pooler", False))
    if getattr(config, "projected", False):  # runs of before it was taken have none
        found.visual_projection = backbone.visual_projection
    return found, tuple(config.image_mean), tuple(config.image_std)


class ImageBackbone(PhotoEncoder):
    """The network's pooled output; of a transformer without a trained pooling its class token's vector, or the mean.

    Of CLIP's image half it is projected into the space of its texts; SigLIP's is there already.

    Raises:
        InputError: the network does not take photos of ``image_px`` or ``train_px``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        image_px: int,
        train_px: int | None = None,
    ) -> None:
        super().__init__()
        self.train_px = train_px
        # As the pixels come; convolutions run up to twice as fast. The annotations of `Module.to` forget the argument.
        self.backbone: nn.Module = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.normalise = Normalise(mean, std)
        self.eval()
        for px in {train_px or image_px, image_px}:
            self.feature_dim = seen_at(px, self).shape[1]

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``pixels``, UINT8 [n, px, px, 3]."""
        answer = self.backbone(self.normalise(tensors[0]))
        pooled: Tensor | None = getattr(answer, "pooler_output", None)
        if pooled is None or self.backbone.random_pooler:
            hidden: Tensor = answer.last_hidden_state  # (n, tokens, f), or a map (n, f, h, w)
            if hidden.dim() == 4:
                return hidden.mean((2, 3))
            # Of a square of patches and nothing else (I-JEPA), the first is no class token, but a corner of the photo.
            return hidden.mean(1) if isqrt(hidden.shape[1]) ** 2 == hidden.shape[1] else hidden[:, 0]
        pooled = pooled.flatten(1)  # (n, f); ResNets pool to (n, f, 1, 1)
        projection: nn.Module | None = getattr(self.backbone, "visual_projection", None)
        return projection(pooled) if projection else pooled
