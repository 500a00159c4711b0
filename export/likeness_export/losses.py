"""Training losses: multimodal contrastive learning (article, formula 4.1) and the learned metric's pair loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from likeness_export.networks.similarity import LearnedMetric


def contrastive(embeddings: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Formula 4.1: ``-log exp(s_ij / tau) / sum_k exp(s_ik / tau)``, the mean over the pairs (i, j) that are alike.

    Args:
        embeddings: FP32 [n, d], unit vectors; s is their cosine.
        positives: BOOL [n, n], symmetric; the diagonal is ignored.
        temperature: tau.

    Returns:
        A scalar; 0 when the batch has no positive pair.
    """
    itself = torch.eye(len(embeddings), dtype=torch.bool)
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, float("-inf"))
    log_probability = logits - logits.logsumexp(1, keepdim=True)
    pairs = positives & ~itself
    # Each product counts once, however many partners its label has: else large labels drown the small ones.
    partners = pairs.sum(1)
    per_product = -log_probability.masked_fill(~pairs, 0.0).sum(1) / partners.clamp(min=1)
    return per_product.sum() / (partners > 0).sum().clamp(min=1)


def decoupled(embeddings: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """The article's listing (5): as `contrastive`, but with the positives left out of the denominator.

    What is alike then never competes with itself, so that large groups are not pushed apart (Yeh et al. 2022, decoupled
    contrastive learning). Arguments and result as in `contrastive`; products without a negative do not count.
    """
    logits = embeddings @ embeddings.T / temperature
    itself = torch.eye(len(embeddings), dtype=torch.bool)
    pairs, negatives = positives & ~itself, ~(positives | itself)
    counted = pairs.any(1) & negatives.any(1)
    # Rows that do not count get a finite denominator: NaN would survive the masking in the gradient.
    masked = logits.masked_fill(~(negatives | ~counted.unsqueeze(1)), float("-inf"))
    per_pair = masked.logsumexp(1, keepdim=True) - logits
    per_product = per_pair.masked_fill(~pairs, 0.0).sum(1) / pairs.sum(1).clamp(min=1)
    return per_product[counted].sum() / counted.sum().clamp(min=1)


def across(left: Tensor, right: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Co-learning (2.2.3): formula 4.1 from one modality to another, so that one can stand in for the other.

    Args:
        left: FP32 [n, d], the products by one modality.
        right: FP32 [n, d], the same products by another.
        positives: BOOL [n, n], symmetric; a product is alike itself.
        temperature: tau.

    Returns:
        A scalar, the mean over both directions.
    """
    logits = left @ right.T / temperature
    pairs = positives | torch.eye(len(left), dtype=torch.bool)

    def one_way(scores: Tensor) -> Tensor:
        log_probability = scores - scores.logsumexp(1, keepdim=True)
        return (-log_probability.masked_fill(~pairs, 0.0).sum(1) / pairs.sum(1)).mean()

    return (one_way(logits) + one_way(logits.T)) / 2


def metric_loss(metric: LearnedMetric, embeddings: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy of the learned metric on all positive pairs of a batch and as many of its hardest negatives.

    Args:
        metric: the network.
        embeddings: FP32 [n, d]; detached here, so that the metric adapts to the space and not the space to it.
        positives: BOOL [n, n].
    """
    vectors = embeddings.detach()
    upper = torch.ones_like(positives).triu(1)
    i_positive, j_positive = (positives & upper).nonzero(as_tuple=True)
    cosine = (vectors @ vectors.T).masked_fill(positives | ~upper, float("-inf"))
    available = int((~positives & upper).sum())
    hardest = cosine.flatten().topk(min(max(len(i_positive), 1), available)).indices
    i_negative, j_negative = hardest // len(vectors), hardest % len(vectors)
    i, j = torch.cat([i_positive, i_negative]), torch.cat([j_positive, j_negative])
    target = torch.cat([torch.ones(len(i_positive)), torch.zeros(len(i_negative))])
    return F.binary_cross_entropy_with_logits(metric(vectors[i], vectors[j]), target)
