"""Scores among neighbours."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from likeness_export.products.named_pairs import NamedPair
from likeness_export.uses.match import cosine, match, scorer_of, sides_of
from likeness_export.uses.neighbourhood import (
    NEIGHBOURS,
    Rows,
    Scorer,
    Values,
    alone,
    among_neighbours,
    in_context,
    surroundings,
)


def by_table(table: Values) -> tuple[object, object]:
    def search(left: Rows, right: Rows) -> Values:
        found: Values = table[left][:, right]
        return found

    def score(left: Rows, right: Rows) -> Values:
        found: Values = table[left, right]
        return found

    return search, score


@pytest.mark.parametrize("two_sides", [True, False])
@pytest.mark.parametrize("count", [2, 3, 7, 600])
def test_surroundings_are_the_mean_of_the_nearest(count: int, two_sides: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likeness_export.uses.neighbourhood._BLOCK_VALUES", 50_000)  # 600 are no whole number of blocks
    random = np.random.default_rng(count)
    table = random.random((count, count), np.float32)
    sides = np.where(random.random(count) < 0.5, "left", "right") if two_sides else np.full(count, "")
    found = surroundings(np.arange(count), sides, *by_table(table))  # type: ignore[arg-type]
    for row in range(count):
        others = np.arange(count) != row
        if len(np.unique(sides)) == 2:
            others &= sides != sides[row]
        nearest = -np.sort(-table[row, others])
        expected = [nearest[:k].mean() if len(nearest) else 0.0 for k in NEIGHBOURS]
        np.testing.assert_allclose(found[:, row], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("known", "sides"),
    [([*"01", *"23"], ["left", "right", "left", "right", "4"]), ([*"01", *"12"], [""] * 5)],  # two catalogues, and one
)
def test_neighbours_stand_on_the_other_side_where_pairs_have_two(known: list[str], sides: list[str]) -> None:
    table = np.random.default_rng(0).random((5, 5), np.float32)
    pairs = [NamedPair(left=left, right=right, label=1) for left, right in zip(known[::2], known[1::2], strict=True)]
    found, asked = sides_of("01234", pairs)
    assert found.tolist() == sides
    assert sides_of([*"0123", "left"], pairs)[0].tolist() == sides  # an id says nothing of the side
    assert asked.tolist() == sorted({int(name) for name in known})  # of a large catalogue few may be in a pair
    some, every = (surroundings(np.arange(5), found, *by_table(table), places) for places in (asked, None))  # type: ignore[arg-type]
    np.testing.assert_array_equal(some[:, asked], every[:, asked])
    assert not np.delete(some, asked, 1).any()


def test_one_product_has_no_surroundings() -> None:
    search, score = by_table(np.ones((1, 1), np.float32))
    assert not surroundings(np.arange(1), np.array([""]), search, score).any()  # type: ignore[arg-type]


def test_a_search_of_the_whole_catalogue_copies_none_of_it() -> None:
    vectors = np.random.default_rng(0).random((1000, 256), np.float32)
    search, few, every = scorer_of(vectors, cosine).search, np.array([3, 1]), np.arange(1000)
    tracemalloc.start()
    try:
        found = search(few, every)
        assert tracemalloc.get_traced_memory()[1] < vectors.nbytes / 2
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(search(few, every[::-1]), found[:, ::-1], rtol=1e-5)


def test_the_margins_of_a_pair_are_those_of_both_its_products() -> None:
    table, members, sides = np.random.default_rng(1).random((9, 9), np.float32), np.array([1, 4, 5, 7, 8]), [""] * 5
    search, score = by_table(table)
    scorer = Scorer(search=search, pairs=score)  # type: ignore[arg-type]
    left, right = np.array([4, 8]), np.array([7, 1])
    local = surroundings(np.arange(5), np.array(sides), *by_table(table[np.ix_(members, members)]))  # type: ignore[arg-type]
    expected = in_context(table[left, right], local[:, [1, 4]], local[:, [3, 0]])
    np.testing.assert_array_equal(among_neighbours(scorer, members, np.array(sides))(left, right), expected)


def test_what_is_alike_with_everything_needs_more_to_match() -> None:
    """Cables: all at cosine 0.9 of each other. Cameras: the match has 0.8, the rest nothing. No one threshold fits."""
    random = np.random.default_rng(3)
    cables, cameras = random.normal(size=(2, 40, 64))
    left, right = [], []
    for own, common in ((cables, 3.0), (cameras, 0.0)):
        shared = common * np.ones(64) + own
        left.append(shared)
        right.append(shared + 0.6 * random.normal(size=(40, 64)))
    vectors = np.concatenate([*left, *right]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"{side}{place}" for side in "lr" for place in range(80)]
    pairs = [NamedPair(left=f"l{i}", right=f"r{i}", label=1) for i in range(80)]
    pairs += [NamedPair(left=f"l{i}", right=f"r{(i + 1) % 80}", label=0) for i in range(80)]
    train, measured = pairs[::2], pairs[1::2]
    row_of, scorer = {name: row for row, name in enumerate(ids)}, scorer_of(vectors, cosine)
    by_score, near = alone(scorer), among_neighbours(scorer, np.arange(160), sides_of(ids, pairs)[0])
    assert match(row_of, [(train, by_score)], (measured, by_score)).every.f1 < 0.9
    assert match(row_of, [(train, near)], (measured, near)).every.f1 > 0.97


def test_a_pair_and_its_reverse_are_judged_alike() -> None:
    random = np.random.default_rng(5)
    scores, left, right = random.random(9, np.float32), *random.random((2, 5, 9), np.float32)
    found = in_context(scores, left, right)
    np.testing.assert_array_equal(found, in_context(scores, right, left))
    np.testing.assert_array_equal(found[:, 0], scores)
    np.testing.assert_allclose(found[:, 1:6] + found[:, 6:], (2 * scores - left - right).T, rtol=1e-5, atol=1e-6)
    assert (found[:, 1:6] >= found[:, 6:]).all()
