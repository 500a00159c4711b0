from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import likeness_export.uses.cluster as cluster_module
import likeness_export.uses.pairs as pairs_module
import numpy as np
import pytest
import torch
from likeness_client import Client, Embeddings, InputError, Product
from likeness_export.networks.similarity import LearnedMetric
from likeness_export.products.named_pairs import NamedPair, hold_out, read_named_pairs
from likeness_export.uses.cli import BETRAYED, TURNED, uses_app
from likeness_export.uses.cluster import agreement, cluster, silhouette
from likeness_export.uses.decision import best_threshold, figures, fit_decision
from likeness_export.uses.inputs import EmbeddedProducts, Vectors, read_embedded
from likeness_export.uses.match import HeldOut, as_logit, cosine, folds_of, match, match_by_all, scorer_of, sides_of
from likeness_export.uses.mine import check_keys, elect, mine
from likeness_export.uses.neighbourhood import alone, among_neighbours
from likeness_export.uses.pairs import label_pairs, pairs_of
from likeness_export.uses.related import Neighbours, nearest, nearest_apart
from likeness_export.uses.tables import write_lines
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, f1_score, silhouette_score
from typer.testing import CliRunner


def unit(values: Any) -> Vectors:
    array = np.asarray(values, dtype=np.float32)
    normed: Vectors = array / np.linalg.norm(array, axis=1, keepdims=True)
    return normed


def blobs(clusters: int, each: int, noise: float = 0.4, seed: int = 0) -> Vectors:
    random = np.random.default_rng(seed)
    centres = np.repeat(random.normal(size=(clusters, 16)), each, axis=0)
    return unit(centres + noise * random.normal(size=centres.shape))


def save(path: Path, ids: list[str], vectors: Vectors, signature: str = "text") -> Path:
    count = len(ids)
    Embeddings(
        vectors=vectors,
        modality_weights=({},) * count,
        signatures=(signature,) * count,
        product_ids=tuple(ids),
        space="s",
    ).save(path)
    return path


def write(path: Path, records: list[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Inputs


def test_products_and_embeddings_meet_by_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["a", "b", "", "b", "c", "d"]
    products = write(tmp_path / "p.jsonl", [{"product_id": name, "title": str(i)} for i, name in enumerate(names)])
    vectors = unit([[1, 2], [3, 1], [1, 1], [2, 2]])
    vectors[1] = np.nan
    found = read_embedded(products, save(tmp_path / "e.npz", ["b", "c", "x", "a"], vectors))
    assert found.ids == ["a", "b"]
    np.testing.assert_array_equal(found.vectors, vectors[[3, 0]])
    assert [record["title"] for record in found.catalogue.records] == ["0", "1"]
    assert (set(found.modalities), found.space) == ({"text"}, "s")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "products left out, no product_id: 1",
        "products left out, product_id of an earlier one: 1",
        f"products left out, not in {tmp_path / 'e.npz'}: 1, the first is 'd'",
        "products left out, embedding failed: 1, the first is 'c'",
    ]


def test_only_products_of_the_named_splits_are_read(tmp_path: Path) -> None:
    products = write(
        tmp_path / "p.jsonl", [{"product_id": name, "split": split} for name, split in zip("abc", "xyx", strict=True)]
    )
    embeddings = save(tmp_path / "e.npz", ["a", "b", "c"], unit(np.eye(3)))
    assert read_embedded(products, embeddings, ["x"]).ids == ["a", "c"]
    with pytest.raises(InputError, match="no product has split z; there are: x, y"):
        read_embedded(products, embeddings, ["z"])


def test_a_split_is_read_of_the_products_that_were_embedded(tmp_path: Path) -> None:
    """Two products of one id have one embedding here, the first one's, whatever split the second is of."""
    records = [("a", "x"), ("a", "y"), ("b", "y")]
    products = write(tmp_path / "p.jsonl", [{"product_id": name, "split": split} for name, split in records])
    embeddings = save(tmp_path / "e.npz", ["a", "a", "b"], unit(np.eye(3)))
    assert read_embedded(products, embeddings, ["y"]).ids == ["b"]
    assert read_embedded(products, embeddings, ["x"]).ids == ["a"]


@pytest.mark.parametrize(("ids", "rows"), [([], np.empty((0, 2))), (["z"], [[1.0, 0.0]]), (["a"], [[np.nan] * 2])])
def test_files_that_do_not_meet_are_refused(tmp_path: Path, ids: list[str], rows: Any) -> None:
    products = write(tmp_path / "p.jsonl", [{"product_id": "a"}])
    embeddings = save(tmp_path / "e.npz", ids, np.asarray(rows, dtype=np.float32))
    with pytest.raises(InputError, match=r"no product of .*p\.jsonl has an embedding in .*e\.npz: .*`likeness embed"):
        read_embedded(products, embeddings)


def test_where_all_of_a_split_have_failed_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    products = write(tmp_path / "p.jsonl", [{"product_id": name, "split": name} for name in "ab"])
    embeddings = save(tmp_path / "e.npz", ["a", "b"], np.array([[np.nan] * 2, [1, 0]], dtype=np.float32))
    with pytest.raises(InputError, match=r"no product of split a of .*p\.jsonl has an embedding"):
        read_embedded(products, embeddings, ["a"])
    assert "products left out, embedding failed: 1, the first is 'a'" in caplog.text


# Related


@pytest.mark.parametrize("k", [1, 7, 10_000])
def test_nearest_is_brute_force(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likeness_export.uses.related._BLOCK_ROWS", 64)
    vectors = blobs(30, 5)
    found = nearest(vectors, k)
    scores = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(vectors) - 1)]
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_allclose(found.cosines, np.take_along_axis(scores, order, 1), atol=1e-6)


def test_copies_are_neighbours_of_each_other_but_never_of_themselves() -> None:
    vectors = np.repeat(np.eye(2, 4, dtype=np.float32), 5, axis=0)
    found = nearest(vectors, 4)
    for row, others in enumerate(found.rows):
        same = set(range(5)) if row < 5 else set(range(5, 10))
        assert others.tolist() == sorted(same - {row})
    np.testing.assert_array_equal(found.cosines, 1.0)
    few = nearest(vectors, 2)  # more copies than neighbours: the query itself may not even be found
    assert not (few.rows == np.arange(10)[:, None]).any()
    np.testing.assert_array_equal(few.cosines, 1.0)


@pytest.mark.parametrize("count", [0, 1])
def test_nobody_has_no_neighbours(count: int) -> None:
    vectors = np.ones((count, 1), dtype=np.float32)
    for found in (nearest(vectors, 3), nearest_apart(vectors, 3, np.array([""] * count, dtype=np.str_))):
        assert found.rows.shape == found.cosines.shape == (count, 0)


@pytest.mark.parametrize("k", [1, 4, 100])
def test_related_products_are_of_other_groups_and_one_of_each(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likeness_export.uses.related._BLOCK_SCORES", 300)
    vectors = blobs(8, 5)
    groups = np.array([f"g{row % 6}" if row % 7 else "" for row in range(40)])  # those with "" are alone
    found = nearest_apart(vectors, k, groups)
    for row, near in enumerate(nearest(vectors, 39).rows):
        firsts: dict[str, int] = {}
        for other in near:
            if not groups[row] or groups[other] != groups[row]:
                firsts.setdefault(groups[other] or f"row {other}", other)
        assert found.rows[row].tolist() == [*firsts.values()][:k]
        np.testing.assert_allclose(found.cosines[row], vectors[found.rows[row]] @ vectors[row], atol=1e-6)


def test_without_a_value_all_are_as_near_as_otherwise() -> None:
    vectors = np.repeat(blobs(3, 4), 2, axis=0)  # with ties
    found, expected = nearest_apart(vectors, 23, np.array([""] * 24)), nearest(vectors, 23)
    np.testing.assert_allclose(found.cosines, expected.cosines, atol=1e-6)


# Cluster


@pytest.mark.parametrize("threshold", [0.9, 0.5, 0.1])
def test_clusters_are_those_of_scikit_learn(threshold: float) -> None:
    vectors = blobs(20, 6, noise=0.7)
    reference = AgglomerativeClustering(
        n_clusters=None, distance_threshold=1 - threshold, metric="cosine", linkage="average"
    )
    found = cluster(vectors, threshold)
    assert adjusted_rand_score(reference.fit_predict(vectors.astype(np.float64)), found.labels) == pytest.approx(1)
    assert found.silhouette == pytest.approx(silhouette_score(vectors, found.labels, metric="cosine"), abs=1e-5)
    assert (np.diff(found.sizes) <= 0).all()
    assert found.sizes.sum() == len(vectors)


def test_auto_takes_the_threshold_with_the_best_silhouette() -> None:
    vectors = blobs(12, 8, noise=0.3)
    found = cluster(vectors, None)
    assert found.silhouette == max(
        score for score in (cluster(vectors, t).silhouette for t in cluster_module.THRESHOLDS) if score == score
    )
    truth = np.repeat(np.arange(12), 8).astype(np.str_)
    agreed = agreement(found.labels, truth)
    assert (len(found.sizes), agreed.rand, agreed.mutual_information, agreed.homogeneity) == (12, 1, 1, 1)


def test_auto_divides_more_than_an_outlier_from_all_others() -> None:
    alike = unit(blobs(10, 20, noise=0.6) + 0.25)  # as in a trained space: even unlike products have much in common
    vectors = np.concatenate([alike, unit(-np.ones((1, 16)))])
    found = cluster(vectors, None)
    assert silhouette(vectors, np.repeat([0, 1], [200, 1])) > found.silhouette
    assert agreement(found.labels[:200], np.repeat(np.arange(10), 20).astype(np.str_)).rand > 0.7
    copies = np.concatenate([np.repeat(unit([[1, 0]]), 20, 0), unit([[0, 1]])])  # there is nothing else to divide
    assert cluster(copies, None).sizes.tolist() == [20, 1]


@pytest.mark.parametrize("threshold", [0.8, None])
def test_clusters_are_joined_across_the_parts_of_a_large_catalogue(
    threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = blobs(50, 4, noise=0.3)[np.random.default_rng(0).permutation(200)]
    whole = cluster(vectors, threshold)
    monkeypatch.setattr(cluster_module, "PART", 40)
    monkeypatch.setattr(cluster_module, "_BLOCK_COSINES", 700)
    found = cluster(vectors, threshold)
    assert adjusted_rand_score(whole.labels, found.labels) > 0.985  # without joining at most 0.979
    assert found.silhouette == pytest.approx(silhouette(vectors, found.labels))
    same = cluster(np.ones((100, 1), dtype=np.float32), threshold)  # k-means cannot divide them
    assert same.sizes.tolist() == [100]


def test_clusters_that_are_all_equally_near_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of matrices rounds differently at the edges of its blocks: no two are each other's nearest then."""
    monkeypatch.setattr(cluster_module, "PART", 4)
    monkeypatch.setattr(cluster_module, "_BLOCK_COSINES", 60)
    for seed in range(10):
        same = np.repeat(unit(np.random.default_rng(seed).normal(size=(1, 128))), 30, axis=0)
        assert cluster_module._joined(same, np.arange(30), 0.9).tolist() == [0] * 30
    around = unit(np.concatenate([np.full((12, 1), 3.0), np.eye(12)], 1))
    assert cluster(around, 0.85).sizes.tolist() == [12]


def test_what_lies_around_a_core_is_joined_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    core = np.eye(1, 24)
    around = np.concatenate([np.zeros((60, 1)), random.normal(size=(60, 23))], 1)
    vectors = unit(np.concatenate([np.repeat(core, 40, 0), 0.75 * core + 0.66 * unit(around)]))
    whole = cluster(vectors, 0.6)
    monkeypatch.setattr(cluster_module, "PART", 30)
    assert whole.sizes[0] > 90
    assert abs(cluster(vectors, 0.6).sizes[0] - whole.sizes[0]) < 5


def test_the_threshold_of_a_large_catalogue_is_that_of_its_joined_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one cloud the parts of k-means look best, and are joined into the whole catalogue again."""
    random = np.random.default_rng(0)
    vectors = unit(1.2 * random.normal(size=16) + 0.3 * random.normal(size=(120, 16)))
    monkeypatch.setattr(cluster_module, "PART", 40)
    found = cluster(vectors, None)
    assert found.sizes.max() < 60
    every = [cluster(vectors, threshold) for threshold in cluster_module.THRESHOLDS]
    assert found.silhouette == max(one.silhouette for one in every if one.sizes.max() < 108)


def test_parts_stay_apart_below_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "PART", 4)
    apart = unit(np.repeat([[1, 0, 0], [0.7, 0.72, 0], [0, 0, 1]], 3, axis=0))
    assert cluster(apart, 0.75).sizes.tolist() == [3, 3, 3]
    assert cluster(apart, 0.65).sizes.tolist() == [6, 3]


def test_equal_products_in_several_clusters_are_neither_near_nor_far() -> None:
    vectors = np.concatenate([np.repeat(blobs(1, 1, noise=0.3), 6, 0), blobs(4, 5, noise=0.3)])
    labels = np.array([0, 0, 0, 1, 1, 1, *np.repeat([2, 3, 4, 5], 5)])
    distances = np.maximum(1 - vectors.astype(np.float64) @ vectors.T.astype(np.float64), 0)
    distances[distances < 1e-6] = 0
    expected = silhouette_score(distances, labels, metric="precomputed")
    assert silhouette(vectors, labels) == pytest.approx(expected, abs=1e-5)


def test_pairs_at_the_very_threshold_belong_together() -> None:
    for x, y, threshold in ((4, 3, 0.8), (24, 7, 0.96)):  # rounded up, and down
        assert cluster(unit([[1, 0], [x, y], [-1, 0]]), threshold).labels.tolist() == [0, 0, 1]


def test_a_product_without_a_vector_is_named() -> None:
    vectors = np.vstack([unit([[1, 0], [0, 1]]), np.full((2, 2), np.nan, np.float32)])
    told = r"2 of 4 vectors are NaN, first that of row 2: leave out the products"
    for use in (
        partial(nearest, k=1),
        partial(nearest_apart, k=1, values=np.array(["a"] * 4)),
        partial(cluster, threshold=None),
    ):
        with pytest.raises(InputError, match=told):
            use(vectors)


def test_clusters_of_next_to_nothing() -> None:
    assert cluster(np.empty((0, 3), dtype=np.float32), None).labels.tolist() == []
    for vectors in (unit([[1, 0]]), unit([[1, 0], [1, 0]])):
        found = cluster(vectors, None)
        assert found.labels.tolist() == [0] * len(vectors)
        assert np.isnan(found.silhouette)
        assert found.threshold == 0.95
    assert np.isnan(silhouette(unit([[1, 0], [0, 1]]), np.array([0, 1])))


def test_agreement_is_over_labelled_products() -> None:
    agreed = agreement(np.array([0, 0, 1, 1]), np.array(["a", "a", "b", ""]))
    assert (agreed.products, agreed.rand) == (3, 1)
    with pytest.raises(InputError, match="no product has this label"):
        agreement(np.array([0]), np.array([""]))
    with pytest.raises(InputError, match=r"threshold 1\.5 is no cosine"):
        cluster(unit([[1, 0]]), 1.5)


# Match


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_has_a_better_f1(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 12, 60).astype(np.float32) / 12  # many ties
    labels = (scores + random.normal(0, 0.3, 60) > 0.5).astype(np.intp)
    scores[random.integers(0, 60, 25)] = np.nan
    best = best_threshold(scores, labels)
    found = figures(scores, labels, best)
    assert found.f1 == pytest.approx(f1_score(labels, scores >= best))
    assert found.f1 == max(figures(scores, labels, float(t)).f1 for t in np.unique(scores[~np.isnan(scores)]))


def test_the_threshold_lies_between_scores() -> None:
    labels = np.array([1, 1, 0])
    assert best_threshold(np.array([0.9, 0.75, 0.25], dtype=np.float32), labels) == 0.5
    assert best_threshold(np.array([0.5, 0.5, 0.5], dtype=np.float32), labels) == 0.5
    next_to_it = np.nextafter(np.float32(0.5), np.float32(1))
    close = np.array([0.9, next_to_it, 0.5], dtype=np.float32)
    assert figures(close, labels, best_threshold(close, labels)).f1 == 1
    with pytest.raises(InputError, match="none of 2 pairs is positive"):
        best_threshold(np.array([0.5, np.nan], dtype=np.float32), np.array([0, 1]))


def drawn(seed: int, count: int, slope: float = 6.0) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Scores of pairs, and labels that are drawn with the probability 1 / (1 + exp(-slope (score - 0.7)))."""
    random = np.random.default_rng(seed)
    scores = random.random(count).astype(np.float32)
    return scores, (random.random(count) < 1 / (1 + np.exp(-slope * (scores - 0.7)))).astype(np.intp)


def test_probabilities_are_those_that_labels_were_drawn_with() -> None:
    scores, labels = drawn(0, 20_000)
    decision = fit_decision(scores[:, None], labels)
    expected = 1 / (1 + np.exp(-6 * (scores.astype(np.float64) - 0.7)))
    np.testing.assert_allclose(decision.probabilities(scores[:, None]), expected, atol=0.02)
    assert np.isnan(decision.probabilities(np.array([[np.nan]], np.float32))).all()


def test_the_decision_nears_the_best_f1_more_closely_than_the_threshold_that_was_best() -> None:
    """Sixty pairs to learn from, twenty thousand to measure on, a hundred times."""
    scores, labels = drawn(1, 20_000)
    ceiling = figures(scores, labels, best_threshold(scores, labels)).f1
    lost = []
    for seed in range(2, 102):
        few, few_labels = drawn(seed, 60)
        decision = fit_decision(few[:, None], few_labels)
        thresholds = (decision.score_threshold, best_threshold(few, few_labels))
        lost.append([ceiling - figures(scores, labels, threshold).f1 for threshold in thresholds])
    learned, happened = np.mean(lost, 0)
    assert 0 <= learned < happened / 2


def test_the_threshold_is_lower_where_positive_pairs_cannot_be_matched() -> None:
    scores, labels = drawn(5, 20_000)
    scores[::2] = np.nan
    found = fit_decision(scores[:, None], labels).score_threshold
    assert found == pytest.approx(best_threshold(scores, labels), abs=0.03)
    assert found < fit_decision(scores[1::2, None], labels[1::2]).score_threshold - 0.05


def test_a_score_threshold_decides_as_the_probability_does() -> None:
    scores, labels = drawn(3, 500)
    decision = fit_decision(scores[:, None], labels)
    by_score = scores.astype(np.float64) >= decision.score_threshold
    assert (by_score == (decision.probabilities(scores[:, None]) >= decision.threshold)).all()
    assert np.isnan(fit_decision(np.stack([scores, scores], 1), labels).score_threshold)
    assert np.isnan(fit_decision(-scores[:, None], labels).score_threshold)  # a higher score means less alike


def test_what_does_not_vary_costs_nothing() -> None:
    scores, labels = drawn(4, 500)
    alone = fit_decision(scores[:, None], labels)
    beside = fit_decision(np.stack([scores, np.ones_like(scores)], 1), labels)
    assert beside.weights == pytest.approx((alone.weights[0], 0.0))
    assert beside.threshold == pytest.approx(alone.threshold)


@pytest.mark.parametrize(("labels", "kind"), [([0, 0, 1], "positive"), ([1, 1, 0], "negative")])
def test_a_decision_needs_both_kinds_of_pairs(labels: list[int], kind: str) -> None:
    features = np.array([[0.5], [0.6], [np.nan]], np.float32)
    with pytest.raises(InputError, match=f"none of the 3 train pairs is {kind} and has embeddings.*--train-split"):
        fit_decision(features, np.array(labels))


def pair(left: str, right: str, label: int) -> NamedPair:
    return NamedPair(left=left, right=right, label=label)


def test_the_threshold_never_looks_at_the_measured_pairs() -> None:
    vectors, row_of = blobs(6, 3), {str(i): i for i in range(18)}
    train = [pair("0", "1", 1), pair("3", "4", 1), pair("0", "3", 0), pair("1", "4", 0)]
    measured = [pair("6", "7", 1), pair("0", "4", 0), pair("0", "8", 0)]
    flipped = [pair(p.left, p.right, 1 - p.label) for p in measured]
    calls: list[int] = []

    def score(left: Vectors, right: Vectors) -> Vectors:
        calls.append(len(left))
        return cosine(left, right)

    features = alone(scorer_of(vectors, score))
    taught, asked, other, fewer = ((p, features) for p in (train, measured, flipped, measured[:1]))
    found = match(row_of, [taught], asked)
    assert found.decision == match(row_of, [taught], other).decision
    assert found.decision == match(row_of, [taught], fewer).decision
    cosines = np.array([vectors[int(p.left)] @ vectors[int(p.right)] for p in train])
    assert found.decision == fit_decision(cosines[:, None], np.array([1, 1, 0, 0]))
    assert calls[:2] == [4, 3]
    assert (found.train.pairs, found.every.pairs, found.seen.pairs, found.unseen.pairs) == (4, 3, 1, 2)
    assert (found.seen.positives, found.unseen.positives) == (0, 1)
    trained = [pair("6", "7", 1)]  # which the decision is not learned from
    assert match(row_of, [taught], asked, trained).seen.positives == 1


def test_pairs_without_an_embedding_are_not_matched_but_count() -> None:
    vectors = unit([[1, 0], [1, 0.1], [0, 1]])
    train = [pair("a", "b", 1), pair("a", "c", 0), pair("a", "gone", 1)]
    measured = [pair("b", "a", 1), pair("a", "gone", 1), pair("x", "y", 0)]
    features, row_of = alone(scorer_of(vectors, cosine)), {"a": 0, "b": 1, "c": 2}
    found = match(row_of, [(train, features)], (measured, features))
    assert (found.train_unscored, found.unscored) == (1, 2)
    assert (found.every.pairs, found.every.positives, found.every.recall, found.every.precision) == (3, 2, 0.5, 1)
    assert found.every.f1 == pytest.approx(2 / 3)
    assert found.train.recall == 0.5
    assert np.isnan(found.scores).tolist() == [False, True, True]
    assert (found.seen.pairs, found.unseen.pairs) == (2, 1)
    assert np.isnan([found.unseen.f1, found.unseen.recall, found.unseen.precision]).all()
    with pytest.raises(InputError, match="no pairs to measure on"):
        match(row_of, [(train, features)], ([], features))
    with pytest.raises(InputError, match="none of the 1 train pairs is positive"):
        match(row_of, [([pair("x", "y", 1)], features)], (measured, features))


def test_a_joined_run_is_taught_by_each_part_with_the_pairs_that_this_part_has_not_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = [f"p{i}" for i in range(40)]
    train = [pair(names[i], names[i + 1], i % 2) for i in range(39)]
    parts = [unit(np.random.default_rng(place).normal(size=(40, 8))) for place in range(5)]
    joined = np.concatenate(parts, 1) / 5**0.5
    taught = folds_of(joined, train, HeldOut(share=0.2, folds=(3, 1, 0, 4, 2)))
    assert all(pairs for pairs, _ in taught)
    assert sorted(p.left for pairs, _ in taught for p in pairs) == sorted(p.left for p in train)
    for (pairs, vectors), part, fold in zip(taught, parts, [3, 1, 0, 4, 2], strict=True):
        assert vectors == pytest.approx(part, abs=1e-6)
        assert pairs == hold_out(train, 0.2, fold)[1]
    ((pairs, _),) = folds_of(joined, train, HeldOut())
    assert pairs == train
    assert caplog.text == ""
    folds_of(joined, train, HeldOut(share=0.2, folds=(0, 1, 2, 4)))
    assert "do not look like embeddings of 4 joined runs, whose parts are equally long" in caplog.text
    with pytest.raises(InputError, match="not joined of 3 equal parts"):
        folds_of(joined, train, HeldOut(share=0.2, folds=(0, 1, 2)))
    held, measured = cast("EmbeddedProducts", SimpleNamespace(ids=names, vectors=joined)), train[:9]
    found = match_by_all(held, (train, measured), HeldOut(share=0.2, folds=(3, 1, 0, 4, 2)), None)["cosine"]
    of_parts = [(pairs, alone(scorer_of(vectors, cosine))) for pairs, vectors in taught]
    row_of, of_all = {name: row for row, name in enumerate(names)}, alone(scorer_of(joined, cosine))
    assert found.decision == match(row_of, of_parts, (measured, of_all)).decision


def test_certainty_has_a_logit_too() -> None:
    logits = as_logit(lambda *_: np.array([0, 0.5, 1], np.float32))(*np.zeros((2, 3, 1), np.float32))
    assert logits.tolist() == pytest.approx([-16.6, 0, 16.6], abs=0.1)


def test_a_servers_learned_metric_is_judged_as_the_networks_own_logit(files: tuple[str, str]) -> None:
    """A server answers with probabilities, near 0 or 1 most of them: how far one stands out must not be lost."""
    torch.manual_seed(0)
    metric = LearnedMetric(16, 8).eval()
    metric.scale.data *= 1.5
    torch.nn.init.normal_(metric.correction.weight, std=0.5)

    @torch.inference_mode()
    def logit(left: Vectors, right: Vectors) -> Vectors:
        found: Vectors = metric(torch.from_numpy(left), torch.from_numpy(right)).numpy()
        return found

    class Server:
        def similarity(self, left: Embeddings, right: Embeddings, **_: object) -> SimpleNamespace:
            scores = logit(left.vectors, right.vectors)
            return SimpleNamespace(values=(1 / (1 + np.exp(-scores))).astype(np.float32))

    held = read_embedded(Path(files[0]), Path(files[1]))
    random = np.random.default_rng(3)
    rows = [tuple(random.choice(len(held.ids), 2, replace=False)) for _ in range(200)]
    pairs = [pair(held.ids[i], held.ids[j], int(abs(i - j) < 4)) for i, j in rows]
    train, measured = pairs[::2], pairs[1::2]
    found = match_by_all(held, (train, measured), HeldOut(), cast("Client", Server()))
    assert list(found) == ["cosine", "cosine, among neighbours", "learned", "learned, among neighbours"]
    row_of, scorer = {name: row for row, name in enumerate(held.ids)}, scorer_of(held.vectors, logit)
    near = among_neighbours(scorer, np.arange(len(held.ids)), sides_of(held.ids, pairs)[0])
    expected = match(row_of, [(train, near)], (measured, near))
    assert expected.scores.max() > 3
    np.testing.assert_allclose(found["learned, among neighbours"].scores, found["learned"].scores)
    assert np.isnan(found["learned, among neighbours"].score_threshold)
    np.testing.assert_allclose(found["learned, among neighbours"].probabilities, expected.probabilities, atol=2e-3)
    by_itself = match(row_of, [(train, alone(scorer))], (measured, alone(scorer)))
    np.testing.assert_allclose(found["learned"].probabilities, by_itself.probabilities, atol=2e-3)
    np.testing.assert_allclose(found["learned"].scores, 1 / (1 + np.exp(-by_itself.scores)), atol=1e-6)
    matched = found["learned"].probabilities >= found["learned"].decision.threshold
    np.testing.assert_array_equal(found["learned"].scores >= found["learned"].score_threshold, matched)


def test_pairs_of_a_label_have_the_hardest_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "_BLOCK_SCORES", 100)
    vectors = blobs(8, 3, noise=1.0)
    ids, labels = [f"p{i}" for i in range(24)], np.repeat(np.arange(8), 3).astype(np.str_)
    labels[5] = ""
    found = label_pairs(ids, vectors, labels)
    known = [i for i in range(24) if i != 5]
    every = [(i, j) for i in known for j in known if i < j]
    positives = {(f"p{i}", f"p{j}") for i, j in every if labels[i] == labels[j]}
    assert {(p.left, p.right) for p in found if p.label == 1} == positives
    others = sorted((float(vectors[i] @ vectors[j]) for i, j in every if labels[i] != labels[j]), reverse=True)
    scores = [float(vectors[int(p.left[1:])] @ vectors[int(p.right[1:])]) for p in found if p.label == 0]
    np.testing.assert_allclose(scores, others[: len(positives)], atol=1e-6)
    assert label_pairs([], vectors[:0], labels[:0]) == []
    assert label_pairs(ids[:1], vectors[:1], labels[:1]) == []
    monkeypatch.setattr(pairs_module, "MAX_POSITIVES", 3)
    with pytest.raises(InputError, match="22 positive pairs, more than 3: name a finer one"):
        label_pairs(ids, vectors, labels)


def test_named_pairs_keep_products_that_nobody_knows(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("left_id,right_id,label,split\na,x,1,train\na,b,0,val\n", encoding="utf-8")
    assert read_named_pairs(path, ["train"]) == [pair("a", "x", 1)]


def test_a_pair_counts_once_and_never_with_itself(
    files: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pairs.csv"
    said = ["a,b,1,val", "b,a,1,val", "a,c,0,val", "a,b,1,val", "b,b,1,val", "c,a,1,val", "a,b,0,train"]
    path.write_text("\n".join(["left_id,right_id,label,split", *said]), encoding="utf-8")
    held = read_embedded(Path(files[0]), Path(files[1]))
    # Which of two labels is the wrong one only a person knows: both stay, and are told.
    assert pairs_of(held, path, "val") == [pair("a", "b", 1), pair("a", "c", 0), pair("c", "a", 1)]
    contradicted, spare = (record.getMessage() for record in caplog.records if "split val" in record.getMessage())
    assert "labelled both 1 and 0" in contradicted
    assert spare == (
        f"{path}, split val: left out: 3 pairs that an earlier line has, in either order, or of a product with itself"
    )
    assert pairs_of(held, path, "train") == [pair("a", "b", 0)]


# Mine


def neighbours(rows: list[list[int]], cosines: list[list[float]]) -> Neighbours:
    shape = len(rows), -1 if rows and rows[0] else 0
    return Neighbours(
        rows=np.array(rows, dtype=np.intp).reshape(shape), cosines=np.array(cosines, dtype=np.float32).reshape(shape)
    )


def test_neighbours_vote_with_their_cosine() -> None:
    codes = np.array([0, 0, 1, -1, 2])
    votes = elect(
        codes, neighbours([[0, 1, 2, 3], [2, 0, 1, 3], [3, 4, 0, 1]], [[0.5, 0.25, 0.25, 0.9]] * 2 + [[-1] * 4])
    )
    assert votes.codes.tolist() == [0, 1, -1]
    np.testing.assert_allclose(votes.shares, [0.75, 0.5, 0])
    assert votes.supports.tolist() == [2, 1, 0]


def test_a_share_of_one_is_reached_where_all_agree() -> None:
    products = [Product(), *(Product(attributes={"kind": "mug"}) for _ in range(3))]
    near = neighbours([[1, 2, 3], *([0, 0, 0] for _ in range(3))], [[0.9, 0.7, 0.1]] * 4)
    (found,), _ = mine(products, near, ["kind"], 1.0)
    assert (found.row, found.value, found.support) == (0, "mug", 3)


def test_a_tie_goes_to_the_nearest() -> None:
    votes = elect(np.array([0, 1, 1]), neighbours([[1, 0]], [[0.5, 0.5]]))
    assert (votes.codes.tolist(), votes.shares.tolist()) == ([1], [0.5])


def test_mining_against_a_plain_loop() -> None:
    random, vectors = np.random.default_rng(1), blobs(15, 6, noise=1.0)
    products = []
    for row in range(90):
        attributes: dict[str, str | float] = {"kind": f"k{row // 12}", "size": float(row // 6 % 4), "empty": ""}
        products.append(
            Product(product_id=str(row), attributes={key: v for key, v in attributes.items() if random.random() < 0.7})
        )
    near = nearest(vectors, 60)  # some of them turn away
    proposals, reports = mine(products, near, ["kind", "size"], 0.3)
    expected, right, predicted, known = [], 0, 0, 0
    for row, product in enumerate(products):
        for key in ("kind", "size"):
            totals: dict[Any, float] = {}
            for other, score in zip(near.rows[row], near.cosines[row], strict=True):
                value = products[other].attributes.get(key)
                if value is not None and score > 0:
                    totals[value] = totals.get(value, 0.0) + float(score)
            winner = max(totals, key=lambda value: totals[value]) if totals else None
            sure = winner is not None and totals[winner] / sum(totals.values()) >= 0.3
            if key not in product.attributes:
                expected += [(row, key, winner)] if sure else []
            elif key == "kind":
                known, predicted = known + 1, predicted + sure
                right += sure and winner == product.attributes[key]
    assert [(p.row, p.key, p.value) for p in proposals] == expected
    assert 0 < right < predicted < known
    kind = reports[0]
    assert (kind.known, kind.missing) == (known, 90 - known)
    assert kind.precision == pytest.approx(right / predicted)
    assert kind.coverage == pytest.approx(predicted / known)
    assert sum(report.proposed for report in reports) == len(proposals)
    assert all(0.3 <= p.share <= 1 and p.support >= 1 for p in proposals)


def test_mining_next_to_nothing() -> None:
    lonely = Product(product_id="a", attributes={"kind": "mug", "size": ""})
    proposals, (kind, size) = mine([lonely], nearest(unit([[1, 0]]), 5), ["kind", "size"], 0.6)
    assert proposals == []
    assert (kind.known, kind.coverage, size.known, size.missing) == (1, 0, 0, 1)
    assert np.isnan(kind.precision)
    assert mine([], nearest(np.empty((0, 2), dtype=np.float32), 5), [], 0.6) == ([], [])


def test_blanks_in_a_value_neither_hide_that_it_is_missing_nor_make_it_another_one() -> None:
    products = [Product(attributes={"kind": kind}) for kind in ("mug", " mug", "big  mug", "\t")]
    proposals, (report,) = mine(products, nearest(unit([[1, 0]] * 4), 3), ["kind"], 0.6)
    assert [(proposal.row, proposal.value) for proposal in proposals] == [(3, "mug")]
    assert (report.known, report.missing) == (3, 1)


def test_another_spelling_of_a_value_is_no_other_value() -> None:
    near = nearest(unit([[1, 0]] * 6), 5)
    kinds = ("Caf\u00e9", "cafe\u0301", "CAF\u00c9", "Caf\u00e9", "thing", "")
    proposals, (report,) = mine([Product(attributes={"kind": kind}) for kind in kinds], near, ["kind"], 0.7)
    assert [(found.row, found.value, found.support) for found in proposals] == [(5, "Caf\u00e9", 4)]
    assert (report.precision, report.coverage) == (0.8, 1.0)
    sizes: tuple[str | float, ...] = (16, 16.0, "16")
    products = [*(Product(attributes={"size": size}) for size in sizes), Product()]
    (found,), _ = mine(products, nearest(unit([[1, 0]] * 4), 3), ["size"], 1.0)
    assert (found.value, type(found.value)) == (16, int)


def test_keys_are_checked() -> None:
    products = [Product(attributes={"b": 1.0}), Product(attributes={"a": "x"})]
    assert check_keys(products, []) == ["a", "b"]
    assert check_keys(products, ["b", "b"]) == ["b"]
    accented = [Product(attributes={key: "x"}) for key in ("o\u0308l", "\u00f6l")]
    assert check_keys(accented, []) == check_keys(accented, ["o\u0308l"]) == ["\u00f6l"]
    with pytest.raises(InputError, match=r"no product has the attribute c; there are: b, a$"):
        check_keys(products, ["c"])
    near = nearest(unit([[1, 0], [1, 0]]), 1)
    with pytest.raises(InputError, match="no product has the attribute c"):
        mine(products, near, ["c"], 0.6)
    assert [report.key for report in mine(products, near, [], 0.6)[1]] == ["a", "b"]
    products.append(Product(attributes={f"k{place:03}": 1.0 for place in range(500)} | {"a": "y"}))
    with pytest.raises(InputError, match=r"there are: a, b, k000, .*k009, and 490 more$"):
        check_keys(products, ["c"])


# The commands


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Ten groups of four products; one has no embedding, one failed, some lack a colour."""
    vectors = blobs(10, 4, noise=0.2)
    records: list[Mapping[str, Any]] = []
    for row in range(40):
        group = row // 4
        attributes = {} if row % 4 == 1 else {"colour": f"c{group}"}
        split = "train" if group < 6 else "val"
        records.append({"product_id": f"p{row}", "split": split, "group": f"g{group}", "attributes": attributes})
    vectors[7] = np.nan
    ids = [f"p{row}" for row in range(39)]
    return str(write(tmp_path / "p.jsonl", records)), str(save(tmp_path / "e.npz", ids, vectors[:39]))


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(uses_app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_related_and_cluster_commands(files: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    assert "3 related products for each of 38" in run("related", *files, "--out", out, "-k", "3")
    found = lines(out)
    assert [line["product_id"] for line in found][6:8] == ["p6", "p8"]
    assert {other["product_id"] for other in found[0]["related"]} == {"p1", "p2", "p3"}
    assert "9 related products for each of 38" in run("related", *files, "--out", out, "--one-per", "group")
    assert {int(other["product_id"][1:]) // 4 for other in lines(out)[0]["related"]} == {*range(1, 10)}
    with pytest.raises(InputError, match="no product has the label 'item_group_id'; products have: split, group"):
        run("related", *files, "--out", out, "--one-per", "item_group_id")
    shown = run("cluster", *files, "--out", out, "--label", "group")
    assert "adjusted mutual information │ 1.000" in " ".join(shown.split())
    assert lines(out)[0] == {"product_id": "p0", "cluster": 0, "size": 4}
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]
    assert "number 0 (p0 and others)" in shown
    assert "number 0 (p0) " in run("cluster", *files, "--out", out, "--threshold", "1")  # each alone
    with pytest.raises(InputError, match="threshold 'high' is neither a cosine"):
        run("cluster", *files, "--out", out, "--threshold", "high")
    out.unlink()
    with pytest.raises(InputError, match="no product has the label 'colour'; products have: split, group"):
        run("cluster", *files, "--out", out, "--label", "colour")
    assert not out.exists()


@pytest.mark.parametrize("command", ["related", "cluster", "mine", "match"])
def test_no_command_writes_over_what_it_reads(files: tuple[str, str], command: str) -> None:
    label = ["--label", "group"] if command == "match" else []
    for file in files:
        before = Path(file).read_bytes()
        with pytest.raises(InputError, match=f"{Path(file).name} is what is read"):
            run(command, *files, *label, "--out", file)
        assert Path(file).read_bytes() == before


def test_match_command(files: tuple[str, str], tmp_path: Path) -> None:
    out, pairs = tmp_path / "m.json", tmp_path / "pairs.csv"
    run("match", *files, "--label", "group", "--out", out)
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["metrics"]["cosine"]["every"]["f1"] == 1
    assert report["metrics"]["cosine"]["seen"] == {
        "pairs": 0, "positives": 0, "precision": None, "recall": None, "f1": None
    }  # fmt: skip
    assert len(report["pairs"]) == 2 * (3 * 6 + 3)
    pairs.write_text("left_id,right_id,label,split\np0,p1,1,a\np0,p9,0,a\np7,p5,1,b\np0,p2,1,b\n", encoding="utf-8")
    shown = run("match", *files, "--pairs", pairs, "--train-split", "a", "--split", "b", "--out", out)
    assert "1 pairs of b have a product without an embedding" in shown
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["pairs"][0]["cosine"] == {"score": None, "probability": None, "matched": False}
    assert report["metrics"]["cosine"]["every"]["recall"] == 0.5
    pairs.write_text("left_id,right_id,label,split\np0,p1,1,a\np0,p9,0,a\np1,p0,1,b\np0,p2,1,b\n", encoding="utf-8")
    shown = run("match", *files, "--pairs", pairs, "--train-split", "a", "--split", "b", "--out", out)
    assert "1 of 2 pairs of b are also pairs of a: left out" in shown
    (asked,) = json.loads(out.read_text(encoding="utf-8"))["pairs"]
    assert (asked["left_id"], asked["right_id"]) == ("p0", "p2")
    for wrong in ([], ["--label", "group", "--pairs", str(pairs)]):
        with pytest.raises(InputError, match="either a file of labelled pairs"):
            run("match", *files, *wrong)
    with pytest.raises(InputError, match="measure on another"):
        run("match", *files, "--label", "group", "--split", "train")
    with pytest.raises(InputError, match=r"--held-out 0\.2 has no such fold"):
        run("match", *files, "--label", "group", "--held-out", "0.2", "--fold", "5")
    with pytest.raises(InputError, match="--held-out 0 has no such fold"):
        run("match", *files, "--label", "group", "--fold", "1")
    folds = ("--fold", "0", "--fold", "1")
    with pytest.raises(InputError, match="has seen all pairs: leave --server out"):
        run("match", *files, "--label", "group", "--held-out", "0.2", *folds, "--server", "localhost:1")
    with pytest.raises(InputError, match=r"--timeout-s 5 is of calls to a server: leave it out, or give --server, too"):
        run("match", *files, "--label", "group", "--timeout-s", "5")
    with pytest.raises(InputError, match="timeout_s must be positive, and at most"):
        run("match", *files, "--label", "group", "--server", "localhost:1", "--timeout-s", "inf")


def test_a_label_that_makes_no_pairs_is_named(files: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="no product of split train has the label 'colour'"):
        run("match", *files, "--label", "colour")
    with pytest.raises(InputError, match="no two products of split 'train' have the same 'product_id'"):
        run("match", *files, "--label", "product_id")


def test_figures_of_a_turned_decision_come_with_a_warning(files: tuple[str, str], tmp_path: Path) -> None:
    assert TURNED not in run("match", *files, "--label", "group")
    noise = unit(np.random.default_rng(1).normal(size=(40, 16)))
    random = str(save(tmp_path / "r.npz", [f"p{row}" for row in range(40)], noise))
    assert f"cosine: {TURNED}" in run("match", files[0], random, "--label", "group")


def test_mine_command(files: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "proposals.jsonl"
    assert "10 proposals" in run("mine", *files, "colour", "--out", out, "-k", "3")
    assert [(line["product_id"], line["value"]) for line in lines(out)][:2] == [("p1", "c0"), ("p5", "c1")]


def test_mining_from_embeddings_that_know_the_answers_comes_with_a_warning(tmp_path: Path) -> None:
    records: list[Mapping[str, Any]] = [
        {"product_id": f"p{row}", "attributes": {"weight [kg]": str(row // 4), "a [/b]": "x"}} for row in range(20)
    ]
    products, vectors = write(tmp_path / "p.jsonl", records), blobs(5, 4)
    ids = [f"p{row}" for row in range(20)]
    blind, seeing = (save(tmp_path / f"{name}.npz", ids, vectors, name) for name in ("text", "text_attributes"))
    shown = run("mine", products, blind, "--out", tmp_path / "o.jsonl", "-k", "3")
    assert BETRAYED not in shown
    assert "weight [kg]" in shown
    assert "a [/b]" in shown
    assert BETRAYED in run("mine", products, seeing, "--out", tmp_path / "o.jsonl", "-k", "3")


def test_what_utf_8_cannot_hold_is_written_all_the_same(tmp_path: Path) -> None:
    line = {"product_id": "half of a pair: \ud83d"}
    write_lines(tmp_path / "o.jsonl", [line])
    assert lines(tmp_path / "o.jsonl") == [line]
