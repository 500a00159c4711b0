"""Several photos of a product as one: each is encoded by itself, and the features are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from likeness_export.encoders.base import Encoder
from likeness_export.tensors import TensorSpec


class PhotoSet(Encoder):
    """The mean of the features of a product's photos. In training it sees one of them, each time another one.

    So a step costs no more than with one photo, and a product is learned from all its sides.

    Args:
        one: encodes one photo, ``pixels`` UINT8 [n, px, px, 3].
    """

    def __init__(self, one: Encoder) -> None:
        super().__init__()
        self.one = one
        self.feature_dim = one.feature_dim

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``pixels``, UINT8 [n, k, px, px, 3], and ``photos``, INT64 [n, k], 1 where there is one."""
        pixels, photos = tensors
        # Floats first: TensorRT takes bytes for nothing else.
        features = self.one(pixels.float().flatten(0, 1))  # (n k, f)
        each = features.reshape(photos.shape[0], photos.shape[1], self.feature_dim)
        there = photos.unsqueeze(-1).to(features.dtype)  # (n, k, 1)
        mean: Tensor = (each * there).sum(1) / there.sum(1).clamp(min=1)
        return mean  # (n, f)

    def augment(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Draw one photo of each product, and vary it."""
        pixels, photos = tensors
        drawn = (torch.rand(len(photos)) * photos.sum(1)).long()  # those that there are come first
        varied = self.one.augment(pixels[torch.arange(len(pixels)), drawn])[0]
        return varied.unsqueeze(1), torch.ones_like(photos[:, :1])

    def requires_grad_(self, requires_grad: bool = True) -> PhotoSet:
        """Let learn what the encoder lets learn; it may keep a part of itself as it is."""
        self.one.requires_grad_(requires_grad)
        return self

    def sample(self, specs: Sequence[TensorSpec], batch: int, length: int) -> tuple[Tensor, ...]:
        """Draw products of one to ``length`` photos; behind them is nothing."""
        pixels, _ = super().sample(specs, batch, length)
        photos = (torch.arange(length) < torch.randint(1, length + 1, (batch, 1))).to(torch.int64)
        return pixels * photos[..., None, None, None].to(torch.uint8), photos
