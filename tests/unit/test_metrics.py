from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from likeness_export.evaluation.evaluate import Row
from likeness_export.evaluation.metrics import Retrieval, retrieval
from likeness_export.json_values import without_nan
from likeness_export.reports import retrieval_table, write_rows
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, ndcg_score

NOWHERE = -1


def vectors(n: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)
    unit: NDArray[np.float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def ranked(scores: list[float], relevant: list[bool], itself: int = NOWHERE) -> Retrieval:
    """Measure one query whose cosine with each item of the gallery is given."""
    gallery = np.array([[score, np.sqrt(1 - score**2)] for score in scores], dtype=np.float32)
    labels = np.array(["yes" if there else "no" for there in relevant])
    return retrieval(np.array([[1, 0]], dtype=np.float32), gallery, np.array(["yes"]), labels, np.array([itself]))


@pytest.mark.parametrize("seed", range(6))
def test_the_figures_are_scikit_learn_s(seed: int) -> None:
    random = np.random.default_rng(seed)
    queries, gallery = vectors(15, seed), vectors(40, seed + 100)
    query_labels, gallery_labels = random.choice(list("abcdef"), 15), random.choice(list("abcde"), 40)
    found = retrieval(queries, gallery, query_labels, gallery_labels, np.full(15, NOWHERE))

    precision, gain = [], []
    hits: dict[int, list[bool]] = {1: [], 5: [], 10: []}
    for query, label in zip(queries, query_labels, strict=True):
        scores, relevant = gallery @ query, gallery_labels == label
        if relevant.any():
            precision.append(average_precision_score(relevant, scores))
            gain.append(ndcg_score([relevant.astype(float)], [scores], k=10))
            best = relevant[np.argsort(-scores)]
            for k, of_k in hits.items():
                of_k.append(bool(best[:k].any()))
    assert found.queries == len(precision) < 15
    assert found.mean_average_precision == pytest.approx(np.mean(precision), abs=1e-6)
    assert found.ndcg_at_10 == pytest.approx(np.mean(gain), abs=1e-6)
    assert found.recall_at == pytest.approx({k: np.mean(of_k) for k, of_k in hits.items()})


@pytest.mark.parametrize(
    ("place", "recall"), [(0, (1, 1, 1)), (1, (0, 1, 1)), (4, (0, 1, 1)), (9, (0, 0, 1)), (10, (0, 0, 0))]
)
def test_recall_asks_whether_a_relevant_item_is_among_the_first_k(place: int, recall: tuple[int, ...]) -> None:
    scores = np.linspace(0.9, 0.1, 12)
    found = ranked(scores.tolist(), [row == place for row in range(12)])
    assert tuple(found.recall_at.values()) == recall
    assert found.mean_average_precision == pytest.approx(1 / (place + 1))
    assert found.ndcg_at_10 == pytest.approx(1 / np.log2(place + 2) if place < 10 else 0, abs=1e-6)


def test_a_gallery_smaller_than_k_is_ranked_all_the_same() -> None:
    found = ranked([0.9, 0.8, 0.7], [False, False, True])
    assert found.recall_at == {1: 0, 5: 1, 10: 1}


def test_ties_keep_the_order_of_the_gallery() -> None:
    assert ranked([0.5] * 4, [True, False, False, False]).recall_at[1] == 1
    many = ranked([0.5, 0.4] * 20, [row == 38 for row in range(40)])  # so many that not every way to sort keeps it
    assert many.mean_average_precision == pytest.approx(1 / 20)


def test_a_query_does_not_find_itself() -> None:
    scores, relevant = [1.0, 0.9, 0.8], [True, False, True]
    assert ranked(scores, relevant).recall_at[1] == 1
    without = ranked(scores, relevant, itself=0)
    assert without.recall_at[1] == 0
    assert without.mean_average_precision == pytest.approx(0.5)


def test_queries_without_a_label_or_without_anything_relevant_do_not_count() -> None:
    assert ranked([0.9, 0.8], [True, False], itself=0).queries == 0
    query = np.array([[1, 0]], dtype=np.float32)
    empty = retrieval(query, query, np.array([""]), np.array([""]), np.array([NOWHERE]))
    assert empty.queries == 0
    assert all(map(math.isnan, (*empty.recall_at.values(), empty.mean_average_precision, empty.ndcg_at_10)))


def test_no_json_holds_nan_wherever_it_stands() -> None:
    nan = float("nan")
    assert without_nan({"a": nan, "b": ({"c": nan}, [nan, 1.0]), "d": "nan"}) == {
        "a": None,
        "b": [{"c": None}, [None, 1.0]],
        "d": "nan",
    }


def test_what_was_not_measured_is_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = np.array([[1, 0]], dtype=np.float32)
    empty = retrieval(query, query, np.array([""]), np.array([""]), np.array([NOWHERE]))
    rows = [Row(label="group", signature="text", figures=empty)]
    write_rows(rows, tmp_path / "rows.json")
    (found,) = json.loads((tmp_path / "rows.json").read_text())
    assert found["figures"]["recall_at"] == {"1": None, "5": None, "10": None}
    retrieval_table(rows, "val against val")
    assert "0.000" not in capsys.readouterr().out


def test_equal_vectors_keep_the_gallery_s_order_wherever_they_stand() -> None:
    kinds, queries, count = vectors(3, 5), vectors(64, 6), 1001
    of_kind = np.arange(count) % 3
    labels = np.array([f"{row}" for row in range(count)])
    sizes, cosines = np.bincount(of_kind), queries @ kinds.T
    for row in (0, 500, 1000):
        better = cosines > cosines[:, [of_kind[row]]]
        ranks = (better * sizes).sum(1) + row // 3 + 1
        found = retrieval(queries, kinds[of_kind], np.repeat(labels[row], 64), labels, np.full(64, NOWHERE))
        assert found.mean_average_precision == pytest.approx((1 / ranks).mean(), rel=1e-12)


def test_a_large_gallery_is_ranked_in_blocks_to_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, labels = vectors(23, 1), np.array(list("abc") * 8)[:23]
    whole = retrieval(queries, queries, labels, labels, np.arange(23))
    monkeypatch.setattr("likeness_export.evaluation.metrics._BLOCK_SCORES", 60)  # two queries at a time, in the end one
    assert retrieval(queries, queries, labels, labels, np.arange(23)) == whole
