"""Several photos of a product as one: each is encoded by itself, and the features are averaged, the first ones most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from likeness_export.encoders.base import Encoder
from likeness_export.tensors import TensorSpec


class PhotoSet(Encoder):
    """The weighted mean of the features of a product's photos, the k-th one with the weight 1 / k.

    The main view comes first in shops, and tells most: details, backs and packages draw the plain mean away from it,
    and from products that have a main view only.

    In training it sees one photo of each product, drawn anew each time by the same weights. So a step costs no more
    than with one photo, and a product is learned from all its sides.

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
        weights = weights_of(photos).to(features.dtype).unsqueeze(-1)  # (n, k, 1)
        mean: Tensor = (each * weights).sum(1) / weights.sum(1).clamp(min=1)
        return mean  # (n, f)

    def augment(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Draw one photo of each product, and vary it."""
        pixels, photos = tensors
        drawn = torch.multinomial(weights_of(photos), 1).squeeze(1)
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


def weights_of(photos: Tensor) -> Tensor:
    """Return how much each photo counts, FP32 [n, k]: the first one 1; 0 where ``photos``, INT64 [n, k], has none."""
    return photos.float() / photos.cumsum(1).clamp(min=1)
