from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from likeness_client.contract import Metric
from likeness_export.networks.similarity import SCORES, LearnedMetric, Similarity
from torch import Tensor

BLOCKS, QUERIES, CANDIDATES, DIMENSION = 2, 4, 5, 8


@pytest.fixture
def similarity() -> Similarity:
    metric = LearnedMetric(DIMENSION, hidden=6)
    generator = torch.Generator().manual_seed(1)
    for parameter in metric.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return Similarity(metric).eval()


def block(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(BLOCKS, count, DIMENSION, generator=torch.Generator().manual_seed(seed)), dim=-1)


def scores(similarity: Similarity, left: Tensor, right: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        return dict(zip(SCORES, similarity(left, right), strict=True))


def test_the_scores_are_those_of_the_contract_in_its_order() -> None:
    assert [Metric(score) for score in SCORES] == list(Metric)


def test_every_score_is_its_formula(similarity: Similarity) -> None:
    left, right = block(QUERIES, 2), block(CANDIDATES, 3)
    found = scores(similarity, left, right)
    metric = {name: value.detach().numpy().astype(np.float64) for name, value in similarity.metric.named_parameters()}
    for b, q, c in np.ndindex(BLOCKS, QUERIES, CANDIDATES):
        u, v = left[b, q].numpy().astype(np.float64), right[b, c].numpy().astype(np.float64)
        cosine = u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
        features = np.concatenate([np.abs(u - v), u * v, [cosine]])
        hidden = np.maximum(metric["hidden.weight"] @ features + metric["hidden.bias"], 0)
        correction = metric["correction.weight"] @ hidden + metric["correction.bias"]
        logit = float(metric["scale"] * cosine + metric["bias"] + correction[0])
        assert float(found["cosine"][b, q, c]) == pytest.approx(cosine, abs=1e-6)
        assert float(found["euclidean"][b, q, c]) == pytest.approx(np.linalg.norm(u - v), abs=1e-6)
        assert float(found["learned"][b, q, c]) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_symmetric(similarity: Similarity, score: str) -> None:
    left, right = block(QUERIES, 2), block(CANDIDATES, 3)
    there, back = scores(similarity, left, right)[score], scores(similarity, right, left)[score]
    torch.testing.assert_close(there, back.transpose(1, 2))


@pytest.mark.parametrize("score", SCORES)
def test_a_block_is_its_pairs(similarity: Similarity, score: str) -> None:
    left, right = block(QUERIES, 2), block(CANDIDATES, 3)
    whole = scores(similarity, left, right)[score]
    assert whole.shape == (BLOCKS, QUERIES, CANDIDATES)
    for q, c in np.ndindex(QUERIES, CANDIDATES):
        pair = scores(similarity, left[:, q : q + 1], right[:, c : c + 1])[score]
        torch.testing.assert_close(pair[:, 0, 0], whole[:, q, c])


def test_a_product_is_at_distance_0_of_itself(similarity: Similarity) -> None:
    left = block(QUERIES, 2)
    found = scores(similarity, left, left)
    assert (found["euclidean"].diagonal(dim1=1, dim2=2) == 0).all()
    torch.testing.assert_close(found["cosine"].diagonal(dim1=1, dim2=2), torch.ones(BLOCKS, QUERIES))


def test_the_learned_metric_starts_as_a_cosine() -> None:
    left, right = block(QUERIES, 2), block(CANDIDATES, 3)
    found = scores(Similarity(LearnedMetric(DIMENSION, 6)), left, right)
    torch.testing.assert_close(found["learned"], torch.sigmoid(10 * found["cosine"] - 5))
