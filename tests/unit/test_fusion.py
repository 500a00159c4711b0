from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from likeness_client.contract import all_signatures, modalities_of
from likeness_export.encoders.base import Encoder
from likeness_export.networks import unit as unit_module
from likeness_export.networks.fusion import (
    AttentionConfig,
    AttentionFusion,
    ConcatenationConfig,
    ConcatenationFusion,
    FusionConfig,
    LateConfig,
    LateFusion,
)
from likeness_export.product_network import ProductNetwork, SignatureFusion, Tower
from likeness_export.recipe import parse_recipe
from torch import Tensor

if TYPE_CHECKING:
    from likeness_export.networks.fusion import Fusion
    from numpy.typing import NDArray

ROWS, TOWERS, DIMENSION = 5, 3, 8


def test_a_vector_of_zeros_leaves_the_others_their_gradient() -> None:
    vectors, target = torch.randn(6, DIMENSION), torch.randn(6, DIMENSION)
    vectors[2] = 0
    plain, given = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    (expected,) = torch.autograd.grad((F.normalize(plain, dim=1) * target).sum(), plain)
    found = unit_module.unit(unit_module.unit(given, training=True), training=True)
    (gradient,) = torch.autograd.grad((found * target).sum(), given)
    assert expected[2].abs().max() > 1e10
    assert gradient[2].abs().max() == 0
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(gradient[others], expected[others])
    torch.testing.assert_close(found, F.normalize(vectors, dim=1))


PRESENT = [present for present in product([False, True], repeat=TOWERS) if any(present)]
CONFIGS = [AttentionConfig(score="linear"), AttentionConfig(score="mlp"), ConcatenationConfig(kind="concatenation")]


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter a value: heads start with zeros, which would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module.eval()


def unit_vectors(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(4)), dim=-1)


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


@pytest.mark.parametrize("score", ["linear", "mlp"])
@pytest.mark.parametrize("present", PRESENT)
def test_attention_is_the_article_s_formula_over_the_present_modalities(score: str, present: tuple[bool, ...]) -> None:
    head = AttentionFusion(TOWERS, DIMENSION, hidden=4 if score == "mlp" else 0)
    randomised(head)
    vectors = unit_vectors(ROWS, TOWERS, DIMENSION)
    embedding, weights = head(vectors, torch.tensor([present]))

    x = vectors.numpy().astype(np.float64)
    there = [j for j in range(TOWERS) if present[j]]
    f = {}
    for j in there:
        parameters = [p.detach().numpy().astype(np.float64) for p in head.scores[j].parameters()]
        hidden = x[:, j]
        if score == "mlp":
            hidden = np.tanh(hidden @ parameters[0].T + parameters[1])
        f[j] = (hidden @ parameters[-2].T + parameters[-1])[:, 0]
    total = sum(np.exp(f[j]) for j in there)
    alpha = {j: np.exp(f[j]) / total for j in there}
    z = sum(alpha[j][:, None] * x[:, j] for j in there)

    for j in range(TOWERS):
        np.testing.assert_allclose(weights[:, j].detach().numpy(), alpha.get(j, np.zeros(ROWS)), atol=1e-6)
    np.testing.assert_allclose(embedding.detach().numpy(), unit(np.asarray(z)), atol=1e-5)


@pytest.mark.parametrize("present", PRESENT)
def test_concatenation_is_one_linear_map_of_the_parts_with_learned_stand_ins(present: tuple[bool, ...]) -> None:
    head = ConcatenationFusion(TOWERS, DIMENSION)
    randomised(head)
    vectors = unit_vectors(ROWS, TOWERS, DIMENSION)
    embedding, weights = head(vectors, torch.tensor([present]))

    missing = head.missing.detach().numpy().astype(np.float64)
    parts = head.parts.detach().numpy().astype(np.float64)
    x = vectors.numpy().astype(np.float64)
    filled = np.stack([x[:, j] if present[j] else np.tile(missing[j], (ROWS, 1)) for j in range(TOWERS)], 1)
    z = filled.reshape(ROWS, -1) @ parts.reshape(-1, DIMENSION) + head.bias.detach().numpy()
    lengths = np.stack([np.linalg.norm(filled[:, j] @ parts[j], axis=1) * present[j] for j in range(TOWERS)], 1)

    np.testing.assert_allclose(embedding.detach().numpy(), unit(z), atol=1e-5)
    np.testing.assert_allclose(weights.detach().numpy(), lengths / lengths.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("present", PRESENT)
def test_the_cosine_of_late_fusion_is_the_weighted_mean_of_the_towers_cosines(present: tuple[bool, ...]) -> None:
    head = LateFusion(TOWERS)
    randomised(head)
    vectors = unit_vectors(2, TOWERS, DIMENSION)
    embedding, weights = head(vectors, torch.tensor([present]))
    cosines = (vectors[0] * vectors[1]).sum(1)
    torch.testing.assert_close(embedding[0] @ embedding[1], (weights[0] * cosines).sum())
    logits = head.logits.masked_fill(~torch.tensor(present), float("-inf"))
    torch.testing.assert_close(weights, torch.softmax(logits, 0).expand(2, -1))


def test_late_fusion_is_of_unit_length_where_a_tower_knows_nothing() -> None:
    vectors = unit_vectors(1, TOWERS, DIMENSION)
    vectors[:, 0] = 0  # a text without a known term, before anything was learned
    embedding, _ = LateFusion(TOWERS).eval()(vectors, torch.ones(1, TOWERS, dtype=torch.bool))
    torch.testing.assert_close(embedding, F.normalize(vectors.flatten(1), dim=1))


def test_late_fusion_learns_its_weights_while_towers_are_missing() -> None:
    head = LateFusion(TOWERS)
    embedding, _ = head(unit_vectors(len(PRESENT), TOWERS, DIMENSION), torch.tensor(PRESENT))
    embedding.square().sum(1).mul(torch.arange(len(PRESENT))).sum().add(embedding.sum()).backward()
    assert head.logits.grad is not None
    assert torch.isfinite(head.logits.grad).all()
    assert head.logits.grad.any()


@pytest.mark.parametrize("config", [*CONFIGS, LateConfig(kind="late")], ids=str)
def test_what_is_absent_has_no_weight_and_no_influence(config: FusionConfig) -> None:
    head: Fusion = config.build(TOWERS, DIMENSION)
    randomised(head)
    present = torch.tensor(PRESENT)
    vectors = unit_vectors(len(PRESENT), TOWERS, DIMENSION)
    garbage = torch.where(present.unsqueeze(-1), vectors, 1e4 * torch.randn_like(vectors))
    embedding, weights = head(vectors, present)
    again, weights_again = head(garbage, present)
    torch.testing.assert_close(again, embedding)
    torch.testing.assert_close(weights_again, weights)
    assert not weights[~present].any()
    assert (weights[present] > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(PRESENT)))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(PRESENT)))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_head_starts_as_the_plain_mean(config: FusionConfig) -> None:
    vectors = unit_vectors(ROWS, TOWERS, DIMENSION)
    embedding, _ = config.build(TOWERS, DIMENSION)(vectors, torch.ones(1, TOWERS, dtype=torch.bool))
    torch.testing.assert_close(embedding, F.normalize(vectors.mean(1), dim=1))


class Identity(Encoder):
    feature_dim = DIMENSION

    def forward(self, *tensors: Tensor) -> Tensor:
        return tensors[0]


def network_of(kind: str) -> ProductNetwork:
    """Two towers read the image, so that towers and modalities differ, and the recipe's order is not the contract's."""
    towers = {
        "facts": {"encoder": "one_hot", "keys": ["colour"]},
        "shape": {"encoder": "small_cnn"},
        "words": {"encoder": "transformer", "source": "none"},
        "texture": {"encoder": "small_cnn"},
    }
    data = {"products": "p.jsonl", "labels": ["group"]}
    raw = {"name": "x", "dimension": DIMENSION, "data": data, "towers": towers, "fusion": {"kind": kind}}
    recipe = parse_recipe(raw, "test")
    network = ProductNetwork({name: Tower(Identity(), DIMENSION) for name in towers}, recipe)
    randomised(network)
    return network


@pytest.mark.parametrize("kind", ["attention", "concatenation", "late"])
@pytest.mark.parametrize("signature", all_signatures(["text", "image", "attributes"]))
def test_the_head_of_a_signature_is_the_masked_network(kind: str, signature: str) -> None:
    network = network_of(kind)
    there = modalities_of(signature)
    present = torch.tensor([[modality in there for modality in network.modalities]])
    vectors = unit_vectors(ROWS, 4, DIMENSION)
    embedding, weights = network.fuse(vectors, present.expand(ROWS, -1))

    head = SignatureFusion(network, signature)
    columns = [j for j, modality in enumerate(network.tower_modalities.values()) if modality in there]
    assert head.towers == [list(network.tower_modalities)[j] for j in columns]
    alone, *weights_alone = head(*(vectors[:, j] for j in columns))
    torch.testing.assert_close(alone, embedding)
    if len(there) == 1:
        assert not weights_alone
        torch.testing.assert_close(weights[:, present[0]], torch.ones(ROWS, 1))
    for found in weights_alone:
        torch.testing.assert_close(found, weights[:, present[0]])
        assert found.shape == (ROWS, len(there))
        torch.testing.assert_close(found.sum(1), torch.ones(ROWS))


@pytest.mark.parametrize(
    "config", [AttentionConfig(score="mlp"), ConcatenationConfig(kind="concatenation"), LateConfig(kind="late")]
)
@pytest.mark.parametrize(("towers", "of"), [(1, 1), (1, 3), (2, 3)])
def test_a_head_is_left_out_exactly_where_it_changes_nothing(config: FusionConfig, towers: int, of: int) -> None:
    fusion = config.build(of, DIMENSION)
    randomised(fusion)
    vectors = unit_vectors(ROWS, of, DIMENSION)
    embedding, _ = fusion(vectors, (torch.arange(of) < towers).unsqueeze(0))
    unchanged = embedding.shape == vectors[:, 0].shape and torch.allclose(embedding, vectors[:, 0], atol=1e-6)
    assert config.keeps(towers, of) == unchanged


def test_a_modality_s_weight_is_the_sum_of_its_towers() -> None:
    network = network_of("attention")
    assert network.modalities == ("text", "image", "attributes")
    vectors = unit_vectors(ROWS, 4, DIMENSION)
    _, of_towers = network.fusion(vectors, torch.ones(1, 4, dtype=torch.bool))
    _, of_modalities = network.fuse(vectors, torch.ones(1, 3, dtype=torch.bool))
    facts, shape, words, texture = of_towers.unbind(1)
    torch.testing.assert_close(of_modalities, torch.stack([words, shape + texture, facts], 1))


def test_a_modality_s_own_vector_is_the_mean_of_its_towers() -> None:
    vectors = unit_vectors(ROWS, 4, DIMENSION)
    facts, shape, words, texture = vectors.unbind(1)
    for place, expected in enumerate((words, (shape + texture) / 2, facts)):
        found = network_of("attention").modality_vector(vectors, place)
        torch.testing.assert_close(found, F.normalize(expected, dim=1))
