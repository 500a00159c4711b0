"""The loss of a step, put together product by product from the losses that `test_losses` checks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from likeness_export.encoders.base import Encoder
from likeness_export.product_network import ProductNetwork, Tower
from likeness_export.recipe import parse_recipe
from likeness_export.training.losses import across, contrastive, decoupled, metric_loss, proxy_loss
from likeness_export.training.objective import Objective, drop_modalities
from likeness_export.training.positives import LabelPositives
from numpy.typing import NDArray
from torch import Tensor

DIMENSION, TAU, WEIGHTS = 8, 0.2, (0.25, 0.75)
COARSE = np.array(["x", "x", "x", "x", "y", "y", "y", "", "z"])
FINE = np.array(["a", "a", "b", "", "c", "c", "d", "d", ""])
PRESENT = torch.tensor(
    [[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 1, 1], [1, 0, 0], [1] * 3]
)


class Unread(Encoder):
    feature_dim = DIMENSION

    def forward(self, *tensors: Tensor) -> Tensor:
        return tensors[0]


def objective_of(loss: str, *, joint: bool) -> tuple[Objective, ProductNetwork]:
    """Four towers of three modalities; every parameter has a value, as heads start with zeros."""
    torch.manual_seed(1)
    towers = {
        "facts": {"encoder": "one_hot", "keys": ["colour"]},
        "shape": {"encoder": "small_cnn"},
        "words": {"encoder": "transformer", "source": "none"},
        "texture": {"encoder": "small_cnn"},
    }
    training = {"loss": loss, "contrast": 0.7, "proxies": 0.3, "co_learning": 0.4, "temperature": TAU}
    raw = {
        "name": "x",
        "dimension": DIMENSION,
        "data": {"products": "p.jsonl", "labels": ["coarse", "fine"], "label_weights": [1, 3]},
        "towers": towers,
        "similarity": {"joint": joint},
        "training": training,
    }
    recipe = parse_recipe(raw, "test")
    network = ProductNetwork({name: Tower(Unread(), DIMENSION) for name in towers}, recipe)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape)
    return Objective(recipe, LabelPositives([COARSE, FINE], recipe.training).class_counts), network


@pytest.mark.parametrize("loss", ["contrastive", "decoupled"])
def test_the_loss_is_the_weighted_sum_of_its_parts(loss: str) -> None:
    objective, network = objective_of(loss, joint=False)
    present = PRESENT.bool()
    vectors = F.normalize(torch.randn(len(present), 4, DIMENSION), dim=-1)
    judgement = LabelPositives([COARSE, FINE], objective.training_section).judge(np.arange(len(present)))
    torch.manual_seed(2)
    found, whole = objective(network, vectors, present, judgement)

    torch.manual_seed(2)
    kept = drop_modalities(present, objective.training_section.modality_dropout)
    shown = [(row, present[row]) for row in range(len(present))]
    shown += [(row, kept[row]) for row in range(len(present)) if not torch.equal(kept[row], present[row])]
    assert len(present) < len(shown) < 2 * len(present)
    z = torch.cat([network.fuse(vectors[row : row + 1], there[None])[0] for row, there in shown])
    torch.testing.assert_close(whole, z[: len(present)])

    def alike(labels: NDArray[np.str_]) -> Tensor:
        """A product is alike itself, whatever its label."""
        return torch.tensor(
            [[i == j or (labels[i] != "" and labels[i] == labels[j]) for j, _ in shown] for i, _ in shown]
        )

    known = torch.tensor([[i == j or bool(FINE[i] and FINE[j]) for j, _ in shown] for i, _ in shown])
    expected = metric_loss(network.metric, z, alike(FINE), known)
    contrast = {"contrastive": contrastive, "decoupled": decoupled}[loss]
    for labels, weight, proxies in zip((COARSE, FINE), WEIGHTS, objective.proxies, strict=True):
        names = np.unique(labels).tolist()
        classes = torch.tensor([names.index(labels[row]) if labels[row] else -1 for row, _ in shown])
        expected = expected + 0.7 * weight * contrast(z, alike(labels), TAU)
        expected = expected + 0.3 * weight * proxy_loss(z, proxies, classes)
    between = []
    for one, other in combinations(range(3), 2):
        rows = [row for row, there in enumerate(present) if there[one] and there[other]]
        left, right = (network.modality_vector(vectors[rows], place) for place in (one, other))
        same = alike(FINE)[rows][:, rows]
        between.append(across(left, right, same, TAU, decouple=loss == "decoupled"))
    expected = expected + 0.4 * torch.stack(between).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("joint", [False, True])
def test_the_learned_metric_shapes_the_space_only_where_the_recipe_says_so(joint: bool) -> None:
    z = F.normalize(torch.randn(4, DIMENSION), dim=1).requires_grad_()
    alike = torch.eye(2, dtype=torch.bool).repeat_interleave(2, 0).repeat_interleave(2, 1)
    objective, network = objective_of("contrastive", joint=joint)
    error = objective.metric_error(network.metric, z, alike, torch.ones_like(alike))
    error.backward()  # type: ignore[no-untyped-call]  # torch's own gap
    assert (z.grad is not None) == joint
