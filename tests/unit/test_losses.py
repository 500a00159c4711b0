from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from likeness_export.networks.similarity import LearnedMetric
from likeness_export.training.losses import across, contrastive, decoupled, metric_loss, proxy_loss
from torch import Tensor

N, DIMENSION, TAU = 9, 6, 0.3


def embeddings(n: int = N) -> Tensor:
    return F.normalize(torch.randn(n, DIMENSION, generator=torch.Generator().manual_seed(n)), dim=1)


def alike(labels: list[int]) -> Tensor:
    codes = torch.tensor(labels)
    return codes[:, None] == codes[None]


def formula_4_1(z: Tensor, positives: Tensor) -> float:
    """Sum over j, mean over i's partners, mean over the i that have any; the sum over k leaves out i itself."""
    per_product = []
    for i in range(len(z)):
        terms = []
        for j in range(len(z)):
            if i != j and positives[i, j]:
                below = sum(math.exp(float(z[i] @ z[k]) / TAU) for k in range(len(z)) if k != i)
                terms.append(-math.log(math.exp(float(z[i] @ z[j]) / TAU) / below))
        if terms:
            per_product.append(sum(terms) / len(terms))
    return sum(per_product) / len(per_product) if per_product else 0.0


@pytest.mark.parametrize(
    "labels", [[0, 0, 1, 1, 2, 2, 3, 3, 3], [0] * N, [0, 0, 0, 0, 0, 0, 1, 1, 2], [0, 0, *range(1, N - 1)], [*range(N)]]
)
def test_contrastive_is_formula_4_1(labels: list[int]) -> None:
    z, positives = embeddings(), alike(labels)
    assert float(contrastive(z, positives, TAU)) == pytest.approx(formula_4_1(z, positives), abs=1e-5)
    positives[0] = positives[:, 0] = True  # two that are alike to a third need not be so
    assert float(contrastive(z, positives, TAU)) == pytest.approx(formula_4_1(z, positives), abs=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        contrastive,
        decoupled,
        lambda z, positives, tau: across(z, z.flip(0), positives, tau),
        lambda z, positives, tau: across(z, z.flip(0), positives, tau, decouple=True),
    ],
)
def test_the_diagonal_does_not_matter(loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    z, positives = embeddings(), alike([0, 0, 1, 1, 2, 2, 3, 3, 3])
    without = positives & ~torch.eye(N, dtype=torch.bool)
    assert float(loss(z, positives, TAU)) == float(loss(z, without, TAU))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 0, 0]])
def test_the_gradient_of_contrastive_is_finite(labels: list[int]) -> None:
    z = embeddings(4).requires_grad_()
    contrastive(z, alike(labels), 0.05).backward()  # type: ignore[no-untyped-call]  # torch's own gap
    assert z.grad is not None
    assert z.grad.isfinite().all()


def metric() -> LearnedMetric:
    torch.manual_seed(0)
    return LearnedMetric(DIMENSION, 5)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0, 0, 1, 1], id="both"),
        pytest.param([0, 1, 2, 3], id="no positives"),
        pytest.param([0, 0, 0, 0], id="no negatives"),
        pytest.param([0, 0], id="one pair"),
        pytest.param([0, 1], id="one negative pair"),
    ],
)
@pytest.mark.parametrize("nothing_judged", [False, True])
def test_metric_loss_is_finite(labels: list[int], nothing_judged: bool) -> None:
    network, z = metric(), embeddings(len(labels)).requires_grad_()
    judged = torch.full((len(labels), len(labels)), not nothing_judged)
    loss = metric_loss(network, z, alike(labels), judged)
    assert loss.isfinite()
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own gap
        assert z.grad is not None
        assert z.grad.isfinite().all()
        assert network.scale.grad is not None
        assert network.scale.grad.isfinite()


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 3, 3, 3], [0] * 10 + [1] * 10], ids=["few", "many"])
def test_metric_loss_takes_as_many_of_the_hardest_judged_negatives_as_positives_or_two_per_product(
    labels: list[int],
) -> None:
    n = len(labels)
    network, z, positives = metric(), embeddings(n), alike(labels)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    same = [(i, j) for i, j in pairs if positives[i, j]]
    i, j = max((pair for pair in pairs if pair not in same), key=lambda pair: float(z[pair[0]] @ z[pair[1]]))
    judged = ~torch.zeros(n, n, dtype=torch.bool)
    judged[i, j] = judged[j, i] = False  # the hardest of all
    other = sorted(
        (pair for pair in pairs if pair not in same and judged[pair]), key=lambda pair: -float(z[pair[0]] @ z[pair[1]])
    )
    wanted = max(len(same), 2 * n)
    assert wanted < len(other)
    probability = {(i, j): torch.sigmoid(network(z[i], z[j])).item() for i, j in pairs}
    terms = [-math.log(probability[pair]) for pair in same]
    terms += [-math.log(1 - probability[pair]) for pair in other[:wanted]]
    assert metric_loss(network, z, positives, judged).item() == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_proxy_loss_is_the_smoothed_cross_entropy_of_scaled_cosines() -> None:
    z, proxies = embeddings(3), torch.randn(4, DIMENSION, generator=torch.Generator().manual_seed(2))
    classes = torch.tensor([0, -1, 3])
    logits = 16 * z @ F.normalize(proxies, dim=1).T
    expected = F.cross_entropy(logits[[0, 2]], classes[[0, 2]], label_smoothing=0.1)
    assert proxy_loss(z, proxies, classes).item() == pytest.approx(expected.item(), abs=1e-6)
    assert proxy_loss(z, proxies, torch.full((3,), -1)) == 0


def test_decoupled_is_the_articles_listing_for_two_views() -> None:
    # Listing of section 5: -log(pos / (sum - pos)), one positive per row; the views are rows i and i + 4.
    z = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    positives = torch.eye(4, dtype=torch.bool).repeat(2, 2)
    terms = []
    for i in range(8):
        others = [j for j in range(8) if j % 4 != i % 4]
        positive = math.exp(float(z[i] @ z[(i + 4) % 8]) / 0.1)
        terms.append(-math.log(positive / sum(math.exp(float(z[i] @ z[j]) / 0.1) for j in others)))
    assert decoupled(z, positives, 0.1).item() == pytest.approx(sum(terms) / 8, abs=1e-4)
    alone = torch.zeros(5, 5, dtype=torch.bool)
    alone[0] = alone[:, 0] = True  # without a negative, the first does not count
    cosines = z[:5] @ z[:5].T / 0.1
    below = cosines[1:, 1:].masked_fill(torch.eye(4, dtype=torch.bool), float("-inf")).logsumexp(1)
    assert decoupled(z[:5], alone, 0.1).item() == pytest.approx((below - cosines[1:, 0]).mean().item(), abs=1e-4)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 2]])
def test_decoupled_has_a_finite_gradient(labels: list[int]) -> None:
    z = torch.randn(4, 3, requires_grad=True)
    loss = decoupled(F.normalize(z, dim=1), alike(labels), 0.1)
    assert (loss.item() == 0) == (len(set(labels)) in (1, 4))  # nothing to contrast, or nothing to compare with
    loss.backward()  # type: ignore[no-untyped-call]
    assert z.grad is None or torch.isfinite(z.grad).all()


def test_across_is_formula_4_1_from_one_modality_to_the_other() -> None:
    draw = torch.Generator().manual_seed(2)
    left, right = (F.normalize(torch.randn(4, 3, generator=draw), dim=1) for _ in range(2))
    positives = alike([0, 0, 1, 2])
    terms = []
    for one, other in ((left, right), (right, left)):
        for i in range(4):
            scores = [math.exp(float(one[i] @ other[k]) / 0.2) for k in range(4)]
            partners = [j for j in range(4) if j == i or positives[i, j]]
            terms.append(-sum(math.log(scores[j] / sum(scores)) for j in partners) / len(partners))
    assert across(left, right, positives, 0.2).item() == pytest.approx(sum(terms) / 8, abs=1e-5)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 1, 1, 2, 2, 3, 3, 3]])
def test_the_listing_contrasts_two_modalities_without_the_positives_below(labels: list[int]) -> None:
    left, right, pairs = embeddings(), embeddings(N + 1)[:N], alike(labels)

    def one_way(logits: Tensor) -> float:
        rows = []
        for i in range(N):
            below = math.log(sum(math.exp(float(logits[i, k])) for k in range(N) if not pairs[i, k]))
            rows.append(sum(below - float(logits[i, j]) for j in range(N) if pairs[i, j]) / int(pairs[i].sum()))
        return sum(rows) / N

    logits = left @ right.T / TAU
    expected = (one_way(logits) + one_way(logits.T)) / 2
    assert float(across(left, right, pairs, TAU, decouple=True)) == pytest.approx(expected, abs=1e-5)
