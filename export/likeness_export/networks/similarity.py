"""Similarity of two embeddings: cosine, Euclidean distance, and a learned metric (article, 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from likeness_client.contract import Metric
from torch import Tensor, nn

SCORES: tuple[str, ...] = tuple(Metric)
"""The outputs of `Similarity`, in order."""


class LearnedMetric(nn.Module):
    """``f_theta(u, v)``: the logit that two products are the same (3.4.3).

    A scaled cosine plus a small network on ``[|u - v|, u * v, cos]``. The network's last layer starts at zero, so that
    the metric starts as the cosine and can only learn to correct it. Symmetric in its arguments by construction.
    """

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        # A cosine of 0.5 is undecided at first.
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.bias = nn.Parameter(torch.tensor(-5.0))
        self.hidden = nn.Linear(2 * dimension + 1, hidden)
        self.correction = nn.Linear(hidden, 1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Score pairs.

        Args:
            left: FP32 [..., d], unit vectors.
            right: FP32 [..., d], broadcastable to ``left``.

        Returns:
            FP32 [...], the logit; its sigmoid is the probability.
        """
        product = left * right
        cosine = product.sum(-1, keepdim=True)
        features = torch.cat([(left - right).abs(), product, cosine], -1)  # (..., 2d + 1)
        correction = self.correction(F.relu(self.hidden(features)))
        logit: Tensor = self.scale * cosine + self.bias + correction  # (..., 1)
        return logit.squeeze(-1)


@torch.no_grad()
def mean_metric(metrics: Sequence[LearnedMetric]) -> LearnedMetric:
    """Return the mean of k metrics over vectors joined as ``u = [u_1; ...; u_k] / sqrt(k)``, as one metric.

    It is exact: the parts' ``|u_i - v_i|``, ``u_i * v_i`` and cosines are linear in those of the joined vectors, so the
    hidden units stand side by side. One more unit holds by how much the parts' scales differ from their mean.

    Returns:
        A metric whose dimension is the sum of theirs, and its width the sum of theirs plus one.
    """
    k = len(metrics)
    sizes = [metric.hidden.in_features // 2 for metric in metrics]
    joined = LearnedMetric(sum(sizes), sum(metric.hidden.out_features for metric in metrics) + 1)
    scales = torch.stack([metric.scale for metric in metrics])
    joined.scale.copy_(scales.mean())
    weight, bias = joined.hidden.weight.zero_(), joined.hidden.bias.zero_()
    row, column, products = 0, 0, sum(sizes)
    for metric, size in zip(metrics, sizes, strict=True):
        rows = slice(row, row + metric.hidden.out_features)
        differing, multiplied, cosine = torch.split(metric.hidden.weight, [size, size, 1], 1)
        weight[rows, column : column + size] = k**0.5 * differing
        weight[rows, products + column : products + column + size] = k * (multiplied + cosine)
        weight[-1, products + column : products + column + size] = metric.scale - scales.mean()
        bias[rows] = metric.hidden.bias
        joined.correction.weight[:, rows] = metric.correction.weight / k
        row, column = rows.stop, column + size
    # The parts' shares of the joined cosine are 1 together, whichever are there, so that this unit is always linear.
    reach = (scales - scales.mean()).abs().max()
    bias[-1] = reach
    joined.correction.weight[:, -1] = 1.0
    biases = torch.stack([metric.bias + metric.correction.bias.squeeze() for metric in metrics])
    joined.bias.copy_(biases.mean() - reach)
    return joined


class Similarity(nn.Module):
    """All three scores of every query with every candidate; a pair is a block of one by one."""

    def __init__(self, metric: LearnedMetric) -> None:
        super().__init__()
        self.metric = metric

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score blocks.

        Args:
            left: FP32 [b, q, d], unit vectors.
            right: FP32 [b, c, d], unit vectors.

        Returns:
            Cosine, Euclidean distance and learned probability, FP32 [b, q, c] each.
        """
        queries, candidates = left.unsqueeze(2), right.unsqueeze(1)  # (b, q, 1, d), (b, 1, c, d)
        cosine = left @ right.transpose(1, 2)  # (b, q, c)
        # From differences rather than from the cosine: sqrt(2 - 2 cos) loses half of the digits near zero.
        euclidean = (queries - candidates).square().sum(-1).sqrt()
        return cosine, euclidean, torch.sigmoid(self.metric(queries, candidates))
