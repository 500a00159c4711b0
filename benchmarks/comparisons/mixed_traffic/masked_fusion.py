"""The fusion head of an ensemble with fixed inputs: it takes every tower's vector, and which modalities are there."""

from __future__ import annotations

import torch
from likeness_export.product_network import ProductNetwork
from torch import Tensor, nn

_HALF = 0.4
"""Between 0 and 1, and so low that a random unit vector, which the export verifies with, has something present."""


class MaskedFusion(nn.Module):
    """Fuses the vectors of all towers; those of absent modalities were computed from an empty input, and do not count.

    Args:
        network: the trained network.
    """

    def __init__(self, network: ProductNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse t vectors FP32 [n, d]; the last tensor is the mask, FP32 [n, m], 1 or 0 per modality.

        Returns:
            The embedding FP32 [n, d] and the weights FP32 [n, m], 0 where absent.
        """
        *vectors, mask = tensors
        return self.network.fuse(torch.stack(vectors, 1), mask.abs() > _HALF)
