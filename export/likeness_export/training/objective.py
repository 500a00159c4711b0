"""What a training step minimises: contrast of products and of modalities, class proxies, the learned metric's error."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from likeness_export.networks.similarity import LearnedMetric
from likeness_export.product_network import ProductNetwork
from likeness_export.recipe import Recipe
from likeness_export.training.losses import across, contrastive, decoupled, metric_loss, proxy_loss
from likeness_export.training.positives import Judgement

_CONTRASTS = {"contrastive": contrastive, "decoupled": decoupled}


class Objective(nn.Module):
    """The loss of a recipe on one batch.

    Attributes:
        proxies: per notion of alikeness, one learned vector per class, FP32 [c, e]; empty if the recipe has no use for
            them. They are trained with the network and belong to no export.
    """

    def __init__(self, recipe: Recipe, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.training_section, self.joint = recipe.training, recipe.similarity.joint
        self.contrast = _CONTRASTS[recipe.training.loss]
        weights = recipe.data.label_weights or [1.0] * max(1, len(recipe.data.labels))
        self.notion_weights = [weight / sum(weights) for weight in weights]
        counts = class_counts if recipe.training.proxies else ()
        size = recipe.embedding_dimension()
        self.proxies = nn.ParameterList(torch.randn(count, size) / size**0.5 for count in counts)

    def forward(
        self, network: ProductNetwork, vectors: Tensor, present: Tensor, judgement: Judgement
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss.

        Args:
            network: what is trained.
            vectors: FP32 [n, t, d], the towers' unit vectors.
            present: BOOL [n, m], the modalities that each product has.
            judgement: what is known about the products.

        Returns:
            The loss, a scalar, and the embeddings of the whole products, FP32 [n, e].
        """
        settings = self.training_section
        # Products are embedded with all that they have, and again with a random part of it: one space for all
        # signatures. Not twice alike, though: a copy would be everybody's nearest, and leave nothing to learn.
        whole, _ = network.fuse(vectors, present)
        kept = drop_modalities(present, settings.modality_dropout)
        reduced = (kept != present).any(1).nonzero().flatten()
        part, _ = network.fuse(vectors[reduced], kept[reduced])
        embeddings = torch.cat([whole, part])  # (n + n', e)
        rows = torch.cat([torch.arange(len(vectors)), reduced])
        itself = torch.eye(len(vectors), dtype=torch.bool)
        masks = [mask | itself for mask in judgement.alike]

        positives, judged = masks[-1][rows][:, rows], judgement.judged[rows][:, rows]
        loss = self.metric_error(network.metric, embeddings, positives, judged)
        for place, (weight, mask) in enumerate(zip(self.notion_weights, masks, strict=True)):
            loss = loss + settings.contrast * weight * self.contrast(
                embeddings, mask[rows][:, rows], settings.temperature
            )
            if self.proxies:
                classes = judgement.classes[place][rows]
                loss = loss + settings.proxies * weight * proxy_loss(embeddings, self.proxies[place], classes)
        if settings.co_learning:
            loss = loss + settings.co_learning * self._co_learning(network, vectors, present, masks[-1])
        return loss, whole

    def metric_error(self, metric: LearnedMetric, embeddings: Tensor, positives: Tensor, judged: Tensor) -> Tensor:
        """Return the learned metric's loss; it shapes the space only where the recipe says so."""
        vectors = embeddings if self.joint else embeddings.detach()
        return metric_loss(metric, vectors, positives, judged)

    def _co_learning(self, network: ProductNetwork, vectors: Tensor, present: Tensor, alike: Tensor) -> Tensor:
        """Contrast every two modalities over the products that have both."""
        losses = []
        for left, right in combinations(range(present.shape[1]), 2):
            both = present[:, left] & present[:, right]
            if both.sum() > 1:
                one = network.modality_vector(vectors[both], left)
                other = network.modality_vector(vectors[both], right)
                settings = self.training_section
                decouple = settings.loss == "decoupled"
                losses.append(across(one, other, alike[both][:, both], settings.temperature, decouple=decouple))
        return torch.stack(losses).mean() if losses else vectors.new_zeros(())


def drop_modalities(present: Tensor, probability: float) -> Tensor:
    """Let some products lose some of their modalities, never the last one.

    Args:
        present: BOOL [n, m], what they have.
        probability: how many products are touched at all; those keep each modality with probability one half and, where
            that would leave none, one of them.
    """
    chance = torch.rand(present.shape).masked_fill(~present, -1.0)
    # The modality with the highest draw always stays, so that nothing is left empty.
    kept = (chance > 0.5) | (chance == chance.amax(1, keepdim=True))
    touched = torch.rand(len(present), 1) < probability
    return present & (kept | ~touched)
