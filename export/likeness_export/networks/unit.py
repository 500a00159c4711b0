"""Vectors of length one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(vectors: Tensor, *, training: bool) -> Tensor:
    """Scale vectors FP32 [n, d] to length one; a vector of zeros stays as it is, and teaches nothing.

    Such is a text without a single known term. The slope is 1e12 there: of two in a row, one such product would leave
    nothing of a batch's gradient once that is clipped.

    Args:
        vectors: the vectors.
        training: whether there will be a gradient; the exported graph is the plain one.
    """
    if training:
        zero = (vectors == 0).all(1, keepdim=True)
        vectors = torch.where(zero, vectors.detach(), vectors)
    return F.normalize(vectors, dim=1)
