"""Fusion heads: from the vectors of the modalities that a product has to one unit vector (article, 3.3 and 4.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from likeness_export.networks.unit import unit


class _FusionConfig(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def build(self, towers: int, dimension: int) -> Fusion:
        """Build the head for a number of towers, whose vectors are ``dimension`` long."""

    def embedding_dimension(self, towers: int, dimension: int) -> int:  # noqa: ARG002 (one kind needs it)
        """Return the length of the embedding."""
        return dimension

    def keeps(self, towers: int, of: int) -> bool:  # noqa: ARG002 (two kinds need it)
        """Say whether a product with ``towers`` of ``of`` vectors is embedded by its only vector as it is."""
        return False


class AttentionConfig(_FusionConfig):
    """``kind = "attention"``."""

    kind: Literal["attention"] = "attention"
    score: Literal["linear", "mlp"] = Field(
        default="linear",
        description="scoring function of the softmax attention (article, 4.2); mlp has one hidden layer, half as wide",
    )

    def build(self, towers: int, dimension: int) -> Fusion:
        """Build the head."""
        return AttentionFusion(towers, dimension, hidden=dimension // 2 if self.score == "mlp" else 0)

    def keeps(self, towers: int, of: int) -> bool:  # noqa: ARG002 (one kind needs it)
        """A single vector has the weight 1."""
        return towers == 1


class ConcatenationConfig(_FusionConfig):
    """``kind = "concatenation"``."""

    kind: Literal["concatenation"]

    def build(self, towers: int, dimension: int) -> Fusion:
        """Build the head."""
        return ConcatenationFusion(towers, dimension)


class LateConfig(_FusionConfig):
    """``kind = "late"``."""

    kind: Literal["late"]

    def build(self, towers: int, dimension: int) -> Fusion:  # noqa: ARG002 (the vectors stay as they are)
        """Build the head."""
        return LateFusion(towers)

    def embedding_dimension(self, towers: int, dimension: int) -> int:
        """Return the length of all vectors side by side."""
        return towers * dimension

    def keeps(self, towers: int, of: int) -> bool:  # noqa: ARG002 (all parts have their places)
        """A single vector stays as it is where no other one has a place beside it."""
        return of == 1


FusionConfig = Annotated[AttentionConfig | ConcatenationConfig | LateConfig, Field(discriminator="kind")]


class Fusion(nn.Module, ABC):
    """Fuses one vector per tower; towers that a product lacks are left out."""

    @abstractmethod
    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            vectors: FP32 [n, t, d], the unit vectors of t towers; any finite values where ``present`` is false.
            present: BOOL [n, t], or [1, t] for all rows; at least one true per row.

        Returns:
            The embedding, FP32 [n, e], unit length (e is d but for late fusion), and the weight of each tower,
            FP32 [n, t], summing to 1, 0 where absent.
        """


class AttentionFusion(Fusion):
    """``z = sum_j alpha_j x_j`` with ``alpha = softmax_j f_j(x_j)`` over the present towers: softmax attention (4.2).

    f is linear, or a network of one hidden layer; each tower has its own. Scores start at zero, so that training starts
    from the plain mean.
    """

    def __init__(self, towers: int, dimension: int, hidden: int) -> None:
        super().__init__()
        self.scores = nn.ModuleList(_score(dimension, hidden) for _ in range(towers))

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse; see `Fusion.forward`."""
        scores = torch.cat([score(vectors[:, j]) for j, score in enumerate(self.scores)], 1)  # (n, t)
        weights = torch.softmax(scores.masked_fill(~present, float("-inf")), 1)  # (n, t)
        return unit((weights.unsqueeze(-1) * vectors).sum(1), training=self.training), weights


class ConcatenationFusion(Fusion):
    """``z = W [x_1; ...; x_t] + b`` (3.3.1), of the space's dimension; a learned vector stands in for what is absent.

    ``W`` starts as the mean of the towers. A tower's weight is its share in the length of the parts: ``|W_j x_j|`` over
    the sum of those that are present.
    """

    def __init__(self, towers: int, dimension: int) -> None:
        super().__init__()
        self.parts = nn.Parameter(torch.eye(dimension).repeat(towers, 1, 1) / towers)  # (t, d, d)
        self.bias = nn.Parameter(torch.zeros(dimension))
        self.missing = nn.Parameter(torch.zeros(towers, dimension))

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse; see `Fusion.forward`."""
        filled = torch.where(present.unsqueeze(-1), vectors, self.missing)  # (n, t, d)
        parts = torch.einsum("ntd,tde->nte", filled, self.parts)  # (n, t, d)
        lengths = parts.norm(dim=2) * present  # (n, t)
        weights = lengths / lengths.sum(1, keepdim=True).clamp(min=1e-12)
        return unit(parts.sum(1) + self.bias, training=self.training), weights


class LateFusion(Fusion):
    """Late fusion (2.2.3): the similarity of two products is the weighted mean of their towers' similarities.

    ``cos(z, z') = sum_j w_j cos(x_j, x'_j)`` holds exactly for ``z = [sqrt(w_1) x_1; ...; sqrt(w_t) x_t]``, so late
    fusion is an embedding like any other, searched and served the same way. Weights are learned, the same for all
    products, and shared out among the towers that are present; two products compare on what both of them have.
    """

    def __init__(self, towers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(towers))

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse; see `Fusion.forward`."""
        shares = torch.softmax(self.logits.masked_fill(~present, float("-inf")), 1)  # (n or 1, t)
        weights = shares.expand(vectors.shape[0], -1)
        # A missing tower's square root has no finite slope; it is cut off instead of multiplied by zero.
        roots = torch.where(present, shares.clamp(min=1e-12).sqrt(), 0.0).unsqueeze(-1)  # (n or 1, t, 1)
        fused = (roots * vectors).flatten(1)  # (n, t d)
        # Of unit length already, unless a tower knows nothing of what it reads, and nothing was learned: zeros.
        return fused if self.training else unit(fused, training=False), weights


def _score(dimension: int, hidden: int) -> nn.Module:
    last = nn.Linear(hidden or dimension, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dimension, hidden), nn.Tanh(), last) if hidden else last
