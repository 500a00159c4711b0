"""What all image encoders share: configuration, the size guards, normalisation in the graph, augmentation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from likeness_client.contract import MAX_BYTES
from likeness_client.errors import InputError
from pydantic import Field
from torch import Tensor, nn

from likeness_export.encoders.base import Encoder, EncoderConfig, write_asset
from likeness_export.encoders.photo_set import PhotoSet
from likeness_export.preprocessing import image
from likeness_export.tensors import TensorSpec

_Seen = TypeVar("_Seen")
MIN_PX = 8
MAX_PIXELS = 50_000_000  # a 50-megapixel camera; with transparency it takes 1 GB for a moment


def write_image_assets(tower: Path, image_px: int, max_photos: int = 1) -> None:
    """Write the settings that the image preprocessing reads."""
    limits = {"min_px": MIN_PX, "max_pixels": MAX_PIXELS, "max_bytes": MAX_BYTES["image"]}
    write_asset(tower, image.SETTINGS_FILE, {"image_px": image_px, "max_photos": max_photos, **limits})


class PhotoConfig(EncoderConfig):
    """What the configurations of photo towers have in common; each has its own ``image_px``."""

    modality: ClassVar[str] = "image"
    preprocessing: ClassVar[ModuleType] = image
    # On a CPU. MobileNet V2 gets through 1.4, a small ViT through 1.3 times as many photos as with 32 at a time.
    run_rows: ClassVar[int | None] = 2
    run_tokens: ClassVar[int | None] = 0  # one more run of photos costs next to nothing

    max_photos: int = Field(
        default=1,
        ge=1,
        le=16,
        description="how many photos of a product are read, the first ones; the k-th counts 1 / k",
        exclude_if=lambda photos: photos == 1,  # recipes of before there was a choice keep their digests
    )
    if TYPE_CHECKING:
        image_px: int  # no field of this class: fields have an order, which a recipe's digest knows

    def tensors(self) -> tuple[TensorSpec, ...]:
        """RGB bytes of one square photo; or of several, and which of them there are."""
        photo = (self.image_px, self.image_px, 3)
        if self.max_photos == 1:
            return (TensorSpec("pixels", "UINT8", photo),)
        return (TensorSpec("pixels", "UINT8", (-1, *photo)), TensorSpec("photos", "INT64", (-1,)))

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:  # noqa: ARG002 (nothing is fitted)
        """Store the decoder's settings."""
        write_image_assets(tower, self.image_px, self.max_photos)

    def build(self, tower: Path, source_root: Path | None) -> Encoder:
        """Build the network, for as many photos as it reads."""
        one = self.build_one(tower, source_root)
        return one if self.max_photos == 1 else PhotoSet(one)

    @abstractmethod
    def build_one(self, tower: Path, source_root: Path | None) -> Encoder:
        """Build the network for one photo; see `EncoderConfig.build`."""


class PhotoEncoder(Encoder):
    """What encoders of photos share in training, the only tensor being ``pixels``, UINT8 [n, px, px, 3].

    Attributes:
        train_px: side of the photos in training; None: as they come.
    """

    train_px: int | None = None

    def augment(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Vary the photo."""
        return (augment_pixels(tensors[0], self.train_px),)

    def train(self, mode: bool = True) -> Self:
        """Train everything but the statistics of batch normalisation.

        Converted checkpoints hold placeholders there: one step in training mode ruins the network.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def seen_at(px: int, look: Callable[[Tensor], _Seen]) -> _Seen:
    """Return what a network makes of a photo: not every architecture names its widths, one look at an output does.

    Args:
        px: side of the photo.
        look: takes pixels UINT8 [1, px, px, 3]; of a network in evaluation mode.

    Raises:
        InputError: the network does not take photos of that size.
    """
    try:
        with torch.no_grad():
            return look(torch.zeros(1, px, px, 3, dtype=torch.uint8))
    except Exception as error:  # libraries refuse with many types
        raise InputError(
            f"pictures of {px} px do not fit the network ({error}): give another size or network"
        ) from error


class Normalise(nn.Module):
    """Pixels 0..255 [n, h, w, 3] to FP32 [n, 3, h, w], less ``mean``, divided by ``std`` (both of a 0..1 scale)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255.0 * torch.tensor(mean).view(1, 3, 1, 1), persistent=True)
        self.register_buffer("std", 255.0 * torch.tensor(std).view(1, 3, 1, 1), persistent=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise."""
        # Floats first: TensorRT takes bytes for nothing else. Pixels come as rows of RGB triples, so this is
        # channels-last memory, which convolutions on CPUs like best.
        return (pixels.float().permute(0, 3, 1, 2) - self.mean) / self.std


class StridedDepthwise(nn.Conv2d):
    """A convolution that stays in FP32 under autocast.

    torch's bf16 gradient of a depthwise convolution with a stride takes four times as long as the one in FP32, and was
    a fifth of a training step of MobileNet V2.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Convolve."""
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


class MeanOfMap(nn.AdaptiveAvgPool2d):
    """The mean over the places of a map [n, c, h, w]; torch's own becomes Range and Gather beside it in ONNX."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Pool to [n, c, 1, 1]."""
        return input.mean((2, 3), keepdim=True)


def augment_pixels(pixels: Tensor, size: int | None = None) -> Tensor:
    """Vary photos as other sellers' would: rotation up to 15 degrees, zoom, shift, mirror, brightness and colour cast.

    Args:
        pixels: UINT8 [n, h, w, 3].
        size: side of the result; None: as it is.

    Returns:
        UINT8 [n, h or size, w or size, 3], each photo changed by its own random draw.
    """
    images = pixels.permute(0, 3, 1, 2).float()
    return vary(images, size).round().to(torch.uint8).permute(0, 2, 3, 1)


def vary(images: Tensor, size: int | None = None) -> Tensor:
    """Vary images like `augment_pixels`; the frames of one clip, stacked as channels, all alike.

    Args:
        images: FP32 [n, 3 k, h, w] in 0..255, k RGB frames.
        size: side of the result; None: as it is. Sampled from the whole resolution in one move, so that a part of a
            photo is as sharp as the photo.

    Returns:
        FP32 [n, 3 k, h or size, w or size] in 0..255.
    """
    n, height, width = len(images), size or images.shape[2], size or images.shape[3]
    angle = (torch.rand(n) * 2 - 1) * math.radians(15)
    zoom = 0.75 + 0.35 * torch.rand(n)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    shift = (torch.rand(n, 2) * 2 - 1) * 0.1
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    theta = torch.stack(
        [torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)], 1
    )  # (n, 2, 3)
    grid = F.affine_grid(theta, [n, images.shape[1], height, width], align_corners=False)
    turned = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    brightness = 0.8 + 0.4 * torch.rand(n, 1, 1, 1)
    cast = (0.92 + 0.16 * torch.rand(n, 3, 1, 1)).repeat(1, images.shape[1] // 3, 1, 1)
    return (turned * brightness * cast).clamp(0, 255)
