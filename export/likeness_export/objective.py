"""What a training step minimises: contrast between products, between modalities, and the learned metric's error."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from likeness_export.losses import across, contrastive, decoupled, metric_loss
from likeness_export.networks.product import ProductNetwork
from likeness_export.recipe import Recipe

_CONTRASTS = {"contrastive": contrastive, "decoupled": decoupled}


class Objective:
    """The loss of a recipe on one batch."""

    def __init__(self, recipe: Recipe, network: ProductNetwork) -> None:
        self.training, self.network = recipe.training, network
        self.contrast = _CONTRASTS[recipe.training.loss]
        self.notion_weights = torch.tensor(recipe.data.label_weights or [1.0] * max(1, len(recipe.data.labels)))

    def __call__(self, vectors: Tensor, present: Tensor, alike: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss.

        Args:
            vectors: FP32 [n, t, d], the towers' unit vectors.
            present: BOOL [n, m], the modalities that each product has.
            alike: one BOOL [n, n] per notion of alikeness, the coarsest first.

        Returns:
            The loss, a scalar, and the embeddings of the whole products, FP32 [n, e].
        """
        # Every product is embedded twice, with all it has and with a random part of it: one space for all signatures.
        whole, _ = self.network.fuse(vectors, present)
        part, _ = self.network.fuse(vectors, drop_modalities(present, self.training.modality_dropout))
        embeddings = torch.cat([whole, part])  # (2n, e)
        masks = [mask | torch.eye(len(vectors), dtype=torch.bool) for mask in alike]
        notions = [self.contrast(embeddings, mask.repeat(2, 2), self.training.temperature) for mask in masks]
        loss = (self.notion_weights * torch.stack(notions)).sum() / self.notion_weights.sum()
        if self.training.co_learning:
            loss = loss + self.training.co_learning * self._co_learning(vectors, present, masks[-1])
        return loss + metric_loss(self.network.metric, embeddings, masks[-1].repeat(2, 2)), whole

    def _co_learning(self, vectors: Tensor, present: Tensor, alike: Tensor) -> Tensor:
        """Contrast every two modalities over the products that have both."""
        losses = []
        for left, right in combinations(range(present.shape[1]), 2):
            both = present[:, left] & present[:, right]
            if both.sum() > 1:
                one = self.network.modality_vector(vectors[both], left)
                other = self.network.modality_vector(vectors[both], right)
                losses.append(across(one, other, alike[both][:, both], self.training.temperature))
        return torch.stack(losses).mean() if losses else vectors.new_zeros(())


def drop_modalities(present: Tensor, probability: float) -> Tensor:
    """Let some products lose some of their modalities, never the last one.

    Args:
        present: BOOL [n, m], what they have.
        probability: how many products are touched at all; those keep each modality with probability one half.
    """
    chance = torch.rand(present.shape).masked_fill(~present, -1.0)
    # The modality with the highest draw always stays, so that nothing is left empty.
    kept = (chance > 0.5) | (chance == chance.amax(1, keepdim=True))
    touched = torch.rand(len(present), 1) < probability
    return present & (kept | ~touched)
