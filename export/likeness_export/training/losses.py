"""Training losses: InfoNCE with several positives (article, 4.1), and the learned metric's pair loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from likeness_export.networks.similarity import LearnedMetric

PROXY_SCALE, PROXY_SMOOTHING = 16.0, 0.1  # of the cosines (1 / temperature), and of the labels


def contrastive(embeddings: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """InfoNCE (4.1): ``-log exp(s_ij / tau) / sum_k exp(s_ik / tau)``, k other than i, for pairs (i, j) that are alike.

    With several positives it is the supervised contrastive loss (Khosla et al. 2020).

    Args:
        embeddings: FP32 [n, d], unit vectors; s is their cosine.
        positives: BOOL [n, n], symmetric; the diagonal is ignored.
        temperature: tau.

    Returns:
        A scalar, the mean over the products that have something alike of the mean over that; 0 when none has.
    """
    itself = torch.eye(len(embeddings), dtype=torch.bool)
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, float("-inf"))
    return _info_nce(logits, positives & ~itself)


def decoupled(embeddings: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """The article's listing (5): as `contrastive`, but with the positives left out of the denominator.

    What is alike then never competes with itself, so that large groups are not pushed apart (Yeh et al. 2022, decoupled
    contrastive learning). Arguments and result as in `contrastive`; products without a positive or without
    a negative do not count.
    """
    itself = torch.eye(len(embeddings), dtype=torch.bool)
    return _decoupled(embeddings @ embeddings.T / temperature, positives & ~itself, ~(positives | itself))


def _info_nce(logits: Tensor, pairs: Tensor) -> Tensor:
    log_probability = logits - logits.logsumexp(1, keepdim=True)
    # Each product counts once, however many partners its label has: else large labels drown the small ones.
    partners = pairs.sum(1)
    per_product = -log_probability.masked_fill(~pairs, 0.0).sum(1) / partners.clamp(min=1)
    return per_product.sum() / (partners > 0).sum().clamp(min=1)


def _decoupled(logits: Tensor, pairs: Tensor, negatives: Tensor) -> Tensor:
    counted = pairs.any(1) & negatives.any(1)
    # Rows that do not count get a finite denominator: NaN would survive the masking in the gradient.
    masked = logits.masked_fill(~(negatives | ~counted.unsqueeze(1)), float("-inf"))
    per_pair = masked.logsumexp(1, keepdim=True) - logits
    per_product = per_pair.masked_fill(~pairs, 0.0).sum(1) / pairs.sum(1).clamp(min=1)
    return per_product[counted].sum() / counted.sum().clamp(min=1)


def across(left: Tensor, right: Tensor, positives: Tensor, temperature: float, *, decouple: bool = False) -> Tensor:
    """Co-learning (2.2.3): InfoNCE from one modality to another, so that one can stand in for the other.

    Decoupled, each of its directions is the article's listing (5), from text to image.

    Args:
        left: FP32 [n, d], the products by one modality.
        right: FP32 [n, d], the same products by another.
        positives: BOOL [n, n], symmetric; a product is alike itself.
        temperature: tau.
        decouple: leave what is alike out of the denominator, as `decoupled` does.

    Returns:
        A scalar, the mean over both directions.
    """
    logits = left @ right.T / temperature
    pairs = positives | torch.eye(len(left), dtype=torch.bool)

    def one_way(scores: Tensor) -> Tensor:
        return _decoupled(scores, pairs, ~pairs) if decouple else _info_nce(scores, pairs)

    return (one_way(logits) + one_way(logits.T)) / 2


def proxy_loss(embeddings: Tensor, proxies: Tensor, classes: Tensor) -> Tensor:
    """Classification by the cosine to one learned vector per class (normalised softmax; Zhai and Wu 2019).

    Args:
        embeddings: FP32 [n, d], unit vectors.
        proxies: FP32 [c, d], of any length.
        classes: INT64 [n]; -1: not known, does not count.

    Returns:
        A scalar; 0 when no class is known.
    """
    logits = PROXY_SCALE * embeddings @ F.normalize(proxies, dim=1).T
    known = int((classes >= 0).sum())
    total = F.cross_entropy(logits, classes, ignore_index=-1, label_smoothing=PROXY_SMOOTHING, reduction="sum")
    return total / max(1, known)


def metric_loss(metric: LearnedMetric, embeddings: Tensor, positives: Tensor, judged: Tensor) -> Tensor:
    """Cross-entropy of the learned metric on all positive pairs of a batch and on its hardest negatives.

    There are as many negatives as positives, but no fewer than two per product, as far as there are any.

    Args:
        metric: the network.
        embeddings: FP32 [n, d].
        positives: BOOL [n, n].
        judged: BOOL [n, n]; the pairs that are neither are not looked at.

    Returns:
        A scalar, the mean over these pairs; 0 without any.
    """
    upper = torch.ones_like(positives).triu(1)
    i_positive, j_positive = (positives & upper).nonzero(as_tuple=True)
    negatives = judged & ~positives & upper
    cosine = (embeddings @ embeddings.T).detach().masked_fill(~negatives, float("-inf"))
    wanted = min(max(len(i_positive), 2 * len(embeddings)), int(negatives.sum()))
    hardest = cosine.flatten().topk(wanted).indices
    i_negative, j_negative = hardest // len(embeddings), hardest % len(embeddings)
    i, j = torch.cat([i_positive, i_negative]), torch.cat([j_positive, j_negative])
    if not len(i):
        return embeddings.new_zeros(())
    target = torch.cat([torch.ones(len(i_positive)), torch.zeros(len(i_negative))])
    return F.binary_cross_entropy_with_logits(metric(embeddings[i], embeddings[j]), target)
