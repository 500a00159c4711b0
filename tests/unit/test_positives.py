from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness_client.errors import InputError
from likeness_export.products.catalogue import read_catalogue
from likeness_export.products.named_pairs import NamedPair, hold_out
from likeness_export.recipe import TrainingSection, parse_recipe
from likeness_export.training.objective import drop_modalities
from likeness_export.training.positives import LabelPositives, OwnPositives, PairPositives, positives_of
from likeness_export.training.training_data import training_pairs
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

LABELS = np.array(["a", "a", "a", "b", "b", "c", "", ""])
"""Two groups; one label that only one product has; two products without a label."""


NONE = np.zeros((0, 2), np.float32)  # embeddings of no epoch


def all_of(products: int) -> NDArray[np.bool_]:
    return np.ones(products, dtype=bool)


def batch_of(groups: int, size: int = 2, hard_negatives: float = 0.0) -> TrainingSection:
    return TrainingSection(groups_per_batch=groups, group_size=size, hard_negatives=hard_negatives)


def test_equal_and_known_labels_are_alike() -> None:
    (mask,) = LabelPositives([LABELS], batch_of(2, 2)).judge(np.array([0, 2, 3, 5, 6, 7])).alike
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[0:2, 0:2] = True
    expected[2, 2] = expected[3, 3] = True
    assert torch.equal(mask, expected)


def test_several_labels_are_several_notions_in_their_order() -> None:
    coarse = np.array(["x", "x", "x", "x", "x", "y", "y", "y"])
    masks = LabelPositives([coarse, LABELS], batch_of(2, 2)).judge(np.arange(8)).alike
    assert [int(mask.sum()) for mask in masks] == [25 + 9, 9 + 4 + 1]
    assert not (masks[1] & ~masks[0]).any()


def test_a_batch_draws_several_of_each_of_its_groups_and_no_product_twice() -> None:
    labels = np.array([f"g{row // 5}" for row in range(50)])
    positives = LabelPositives([labels], batch_of(4, 3))
    drawn = list(positives.batches(np.random.default_rng(0), NONE))
    assert len(drawn) == round(50 / 12)
    for rows in drawn:
        assert len(set(rows.tolist())) == len(rows) == 12
        assert sorted(np.unique(labels[rows], return_counts=True)[1]) == [3, 3, 3, 3]
    epochs = [rows for seed in range(20) for rows in positives.batches(np.random.default_rng(seed), NONE)]
    assert {*np.concatenate(epochs).tolist()} == {*range(50)}  # not the same of a group each time


def test_large_groups_come_up_by_the_root_of_their_size() -> None:
    labels = np.array([*["large"] * 100, *(f"g{row // 4}" for row in range(80))])
    positives = LabelPositives([labels], batch_of(2, 2))
    drawn = [rows for seed in range(20) for rows in positives.batches(np.random.default_rng(seed), NONE)]
    share = np.mean([(rows < 100).any() for rows in drawn])
    assert share == pytest.approx(1 - 40 / 50 * 38 / 48, abs=0.05)  # 10 beside twenty times 2


def test_the_draws_of_a_group_take_turns_over_the_sources() -> None:
    labels = np.array([f"g{row // 10}" for row in range(40)])
    source = np.array(["shop" if row % 10 == 0 else "photo" for row in range(40)])  # one of ten
    for rows in LabelPositives([labels], batch_of(2, 3), source).batches(np.random.default_rng(0), NONE):
        assert (source[rows] == "shop").sum() == 2


def test_a_group_with_one_member_and_products_without_a_label_are_not_drawn() -> None:
    positives = LabelPositives([LABELS], batch_of(8, 3))
    for seed in range(20):
        for rows in positives.batches(np.random.default_rng(seed), NONE):
            assert set(rows.tolist()) <= {0, 1, 2, 3, 4}


def test_products_that_share_only_a_coarser_label_are_drawn_by_that() -> None:
    coarse = np.array(["x", "x", "x", "y", "y", "y", "z", "z", ""])
    finest = np.array(["a", "a", "b", "c", "d", "", "e", "e", "f"])
    positives = LabelPositives([coarse, finest], batch_of(8, 8))
    # 0, 1 and 6, 7 by the finest; 3, 4, 5 by the coarse one; 2 with its mates, as nobody else is left there.
    assert sorted(map(sorted, (group.tolist() for group in positives.groups))) == [[0, 1], [0, 1, 2], [3, 4, 5], [6, 7]]
    (rows,) = positives.batches(np.random.default_rng(0), NONE)  # one batch, however few they are
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4, 5, 6, 7]  # nobody twice


def test_a_batch_is_never_of_hard_groups_alone() -> None:
    positives = LabelPositives([LABELS], batch_of(2, 2, hard_negatives=0.99))
    rows = next(iter(positives.batches(np.random.default_rng(0), np.eye(8, dtype=np.float32))))
    assert len(rows) == 4


def test_the_same_seed_draws_the_same_batches() -> None:
    positives = LabelPositives([LABELS], batch_of(2, 2))
    first, again, other = (
        [rows.tolist() for rows in positives.batches(np.random.default_rng(seed), NONE)] for seed in (1, 1, 9)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("labels", "count", "other"),
    [
        (["a", "a", "b", ""], 1, "coarser"),
        (["a", "b", "", ""], 0, "coarser"),
        (["", "", "", ""], 0, "coarser"),
        (["a", "a", "a", ""], 1, "finer"),
    ],
)
def test_too_few_shared_labels_are_refused(labels: list[str], count: int, other: str) -> None:
    with pytest.raises(
        InputError, match=f"{count} values are shared by several training products, .* name a {other} label"
    ):
        LabelPositives([np.array(labels)], batch_of(2, 2))


def test_products_alike_to_themselves_alone_are_drawn_once_in_an_epoch() -> None:
    rows = np.arange(3, 17)
    positives = OwnPositives(rows, batch_of(2, 2))
    batches = list(positives.batches(np.random.default_rng(0), NONE))
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    assert {len(batch) for batch in batches} <= {3, 4}  # none of a single product, which has nothing to differ from
    judgement = positives.judge(batches[0])
    assert not judgement.alike[0].any()
    assert judgement.judged.all()


def test_only_products_of_several_modalities_teach_themselves(tiny: Tiny) -> None:
    recipe = parse_recipe(tiny.recipe.model_dump(mode="json") | {"data": own_labels(tiny)}, "test")
    catalogue = read_catalogue(tiny.products)
    present = np.zeros((len(catalogue), 2), dtype=bool)
    present[:, 0] = True
    with pytest.raises(InputError, match=r"product_id .* 0 training products have several"):
        positives_of(recipe, catalogue, (), present)
    present[[2, 5, 7], 1] = True
    (rows,) = positives_of(recipe, catalogue, (), present).batches(np.random.default_rng(0), NONE)
    assert sorted(rows.tolist()) == [2, 5, 7]


def own_labels(tiny: Tiny) -> dict[str, Any]:
    return tiny.recipe.data.model_dump(mode="json") | {"labels": ["product_id"]}


def test_hard_negatives_are_the_groups_that_lie_nearest() -> None:
    labels = np.array([f"g{row // 2}" for row in range(40)])
    angle = (np.arange(40) // 2) * np.pi / 40  # twenty groups along a half circle: neighbours are hard to tell apart
    embeddings = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    positives = LabelPositives([labels], batch_of(4, 2, hard_negatives=0.5))
    for rows in positives.batches(np.random.default_rng(3), embeddings):
        first, second, *hard = dict.fromkeys(int(row) // 2 for row in rows)
        assert len(hard) == 2
        assert all(min(abs(group - first), abs(group - second)) <= 2 for group in hard)


def test_before_the_first_epoch_hard_negatives_are_drawn_at_random() -> None:
    labels = np.array([f"g{row // 2}" for row in range(40)])
    positives = LabelPositives([labels], batch_of(4, 2, hard_negatives=0.5))
    rows = np.concatenate(list(positives.batches(np.random.default_rng(3), np.zeros((40, 2), np.float32))))
    assert len(np.unique(labels[rows])) > 10


PAIRS = [(0, 1, 1), (2, 3, 1), (1, 2, 1), (0, 3, 0), (4, 5, 0)]


def test_pairs_labelled_1_are_alike_and_those_labelled_0_are_judged_in_both_directions() -> None:
    judgement = PairPositives(PAIRS, all_of(6), batch_of(2)).judge(np.arange(6))
    (mask,) = judgement.alike
    assert pairs_in(mask) == {(0, 1), (2, 3), (1, 2), (0, 2), (1, 3)}  # 0 and 2 both match 1
    assert pairs_in(judgement.judged) == {(0, 1), (2, 3), (1, 2), (0, 3), (4, 5)}
    assert torch.equal(mask, mask.T)
    assert torch.equal(judgement.judged, judgement.judged.T)
    (mask,) = PairPositives([*PAIRS, (2, 0, 0)], all_of(6), batch_of(2)).judge(np.arange(6)).alike
    assert pairs_in(mask) == {(0, 1), (2, 3), (1, 2), (1, 3)}  # what somebody has looked at counts more


def test_what_a_product_of_many_matches_makes_alike_is_not_held_in_memory() -> None:
    many = 1500
    tracemalloc.start()
    positives = PairPositives([(row, many, 1) for row in range(many)], all_of(many + 1), batch_of(2))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6  # a bit for each two of them would be 280 kB, an entry of a set for each 90 MB
    assert positives.judge(np.arange(3)).alike[0].sum() == 6


def pairs_in(mask: torch.Tensor) -> set[tuple[int, int]]:
    return {(i, j) for i, j in mask.nonzero().tolist() if i < j}


def test_an_epoch_shows_every_pair_once() -> None:
    positives = PairPositives(PAIRS, all_of(6), batch_of(2))
    shown = [rows.tolist() for rows in positives.batches(np.random.default_rng(0), NONE)]
    assert len(shown) == 2
    assert all(any({i, j} <= set(rows) for rows in shown) for i, j, _ in PAIRS)
    assert all(len(set(rows)) == len(rows) for rows in shown)


def test_left_sides_that_share_candidates_come_together() -> None:
    apart = [(left, 100 + left % 10, int(left < 10)) for left in range(40)]  # ten candidates, each with four left sides
    for rows in PairPositives(apart, all_of(110), batch_of(4)).batches(np.random.default_rng(5), NONE):
        assert len(rows) == 5


def test_hard_negatives_of_pairs_are_mined_for_products_with_a_known_match_only() -> None:
    angle = np.arange(6) * 0.1
    embeddings = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    pairs = [(0, 1, 1), (2, 1, 1)]
    positives = PairPositives(pairs, all_of(6), batch_of(2, hard_negatives=0.4))
    for known, expected in ((embeddings, [0, 1, 2, 3, 4]), (np.zeros_like(embeddings), [0, 1, 2])):
        (rows,) = positives.batches(np.random.default_rng(0), known)
        assert rows.tolist() == expected  # two of five: 3 and 4 lie nearest to one of 0 and 2
    unmatched = [*pairs, (4, 5, 0)]
    positives = PairPositives(unmatched, all_of(6), batch_of(2, hard_negatives=0.4))
    drawn = [rows.tolist() for seed in range(9) for rows in positives.batches(np.random.default_rng(seed), embeddings)]
    assert [4, 5] in drawn  # nothing is mined for 4 alone


def test_hard_negatives_of_pairs_lie_near_to_one_of_the_left_sides_not_between_them() -> None:
    angle = np.radians([0, 0, 90, 90, 5, 45])
    embeddings = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    positives = PairPositives([(0, 1, 1), (2, 3, 1)], all_of(6), batch_of(2, hard_negatives=0.2))
    (rows,) = positives.batches(np.random.default_rng(0), embeddings)
    assert rows.tolist() == [0, 1, 2, 3, 4]


def plainly_grouped(labels: list[NDArray[np.str_]]) -> list[list[int]]:
    """Say what `LabelPositives.groups` is by comparing every label with every product; quadratic."""
    groups, lonely = [], np.ones(len(labels[0]), dtype=bool)
    for of_label in reversed(labels):
        for label in np.unique(of_label[lonely & (of_label != "")]):
            mates = of_label == label
            rows = np.flatnonzero(mates & lonely)
            if len(rows) == 1:
                rows = np.flatnonzero(mates)
            if len(rows) > 1:
                groups.append(rows.tolist())
                lonely[rows] = False
    return groups


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "x", "y"]), st.sampled_from(["", *"abcdefgh"])), min_size=1, max_size=30)
)
def test_groups_are_those_of_comparing_every_label_with_every_product(labels: list[tuple[str, str]]) -> None:
    notions = [np.array([found[place] for found in labels], dtype=np.str_) for place in range(2)]
    expected = plainly_grouped(notions)
    if len(expected) < 2:
        with pytest.raises(InputError, match=f"{len(expected)} values are shared"):
            LabelPositives(notions, batch_of(2))
        return
    assert [rows.tolist() for rows in LabelPositives(notions, batch_of(2)).groups] == expected


def plainly_ordered(positives: PairPositives, random: np.random.Generator) -> list[int]:
    """Say what order left sides come in, looking through all that are left each time; quadratic."""
    unseen = random.permutation(list(positives.candidates)).tolist()
    ordered: list[int] = []
    near: list[int] = []
    while unseen:
        left = next((one for one in near if one in unseen), unseen[0])
        unseen.remove(left)
        ordered.append(left)
        near += [one for other in positives.candidates[left] for one in positives.lefts_of[other]]
        if len(ordered) % positives.lefts_per_batch == 0:
            near = []
    return ordered


@settings(max_examples=300, deadline=None)
@given(
    pairs=st.lists(st.tuples(*[st.integers(0, 15)] * 2, st.integers(0, 1)), min_size=1, max_size=60),
    size=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_left_sides_come_in_the_order_of_looking_through_all_that_are_left(
    pairs: list[tuple[int, int, int]], size: int, seed: int
) -> None:
    positives = PairPositives([(0, 1, 1), (2, 3, 1), *pairs], all_of(16), batch_of(size))
    drawn = positives._ordered(np.random.default_rng(seed))
    assert drawn == plainly_ordered(positives, np.random.default_rng(seed))
    assert sorted(drawn) == sorted(positives.candidates)


def test_the_left_sides_of_a_candidate_that_all_share_are_gone_through_once_per_batch() -> None:
    """Else the epoch of a candidate with n left sides would cost n * n."""

    class Counted(list[int]):
        times = 0

        def __iter__(self) -> Iterator[int]:
            self.times += 1
            return super().__iter__()

    positives = PairPositives([(row, 40, 1) for row in range(40)], all_of(41), batch_of(8))
    lefts = positives.lefts_of[40] = Counted(positives.lefts_of[40])
    assert len(positives._ordered(np.random.default_rng(0))) == 40
    assert lefts.times == 40 / 8


@pytest.mark.parametrize("pairs", [[], [(0, 1, 1)], [(0, 1, 1), (1, 2, 0)]])
def test_too_few_pairs_are_refused(pairs: list[tuple[int, int, int]]) -> None:
    with pytest.raises(
        InputError, match=r"training pairs of usable products are labelled 1, .* ids of the product file"
    ):
        PairPositives(pairs, all_of(3), batch_of(2))


def test_the_recipe_chooses_labels_or_the_pairs_of_its_training_splits(tiny: Tiny) -> None:
    catalogue = read_catalogue(tiny.products)
    assert isinstance(positives_of(tiny.recipe, catalogue, []), LabelPositives)

    (tiny.root / "pairs.csv").write_text(
        "left_id,right_id,label,split\n0-0,0-1,1,mine\n1-0,1-1,1,train\n2-0,2-1,1,train\n3-0,3-1,1,val\n",
        encoding="utf-8",
    )
    raw = tiny.recipe.model_dump(mode="json")
    raw["data"] |= {"labels": [], "pairs": "pairs.csv", "train_splits": ["train", "mine"]}
    recipe = parse_recipe(raw, "test")
    positives = positives_of(recipe, catalogue, training_pairs(recipe.data, tiny.root))
    assert isinstance(positives, PairPositives)
    assert positives.candidates == {0: [1], 3: [4], 6: [7]}


@pytest.mark.parametrize("fold", [0, 1])
def test_pairs_that_the_recipe_holds_out_are_not_learned_from(tiny: Tiny, fold: int) -> None:
    pairs = [NamedPair(left=f"{group}-0", right=f"{group}-{other}", label=1) for group in range(12) for other in (1, 2)]
    lines = [f"{pair.left},{pair.right},1,train" for pair in pairs]
    (tiny.root / "pairs.csv").write_text("\n".join(["left_id,right_id,label,split", *lines]), encoding="utf-8")
    raw = tiny.recipe.model_dump(mode="json")
    raw["data"] |= {"labels": [], "pairs": "pairs.csv", "held_out": 0.5, "fold": fold}
    catalogue = read_catalogue(tiny.products)
    recipe = parse_recipe(raw, "test")
    positives = positives_of(recipe, catalogue, training_pairs(recipe.data, tiny.root))
    assert isinstance(positives, PairPositives)
    drawn = {(catalogue.ids[i], catalogue.ids[j]) for i, others in positives.candidates.items() for j in others}
    kept, held = hold_out(pairs, 0.5, fold)
    assert drawn == {(pair.left, pair.right) for pair in kept}
    assert held


@pytest.mark.parametrize("kind", ["labels", "pairs"])
def test_products_that_nothing_can_be_read_of_are_not_drawn(tiny: Tiny, kind: str) -> None:
    raw = tiny.recipe.model_dump(mode="json")
    if kind == "pairs":
        lines = [f"{group}-0,{group}-{other},1,train" for group in range(12) for other in (1, 2)]
        (tiny.root / "pairs.csv").write_text("\n".join(["left_id,right_id,label,split", *lines]), encoding="utf-8")
        raw["data"] |= {"labels": [], "pairs": "pairs.csv"}
    usable = np.arange(36) % 3 != 1  # of every group the second product is not
    recipe = parse_recipe(raw, "test")
    named = training_pairs(recipe.data, tiny.root)
    positives = positives_of(recipe, read_catalogue(tiny.products), named, np.stack([usable, usable], 1))
    drawn = np.concatenate([rows for seed in range(9) for rows in positives.batches(np.random.default_rng(seed), NONE)])
    assert usable[drawn].all()
    assert set(drawn) == set(np.flatnonzero(usable))


def test_pairs_of_products_that_are_not_there_are_too_few(tiny: Tiny) -> None:
    raw = tiny.recipe.model_dump(mode="json")
    raw["data"] |= {"labels": [], "pairs": "pairs.csv"}
    named = [NamedPair(left="x", right="y", label=1)]
    with pytest.raises(InputError, match="0 training pairs of usable products are labelled 1"):
        positives_of(parse_recipe(raw, "test"), read_catalogue(tiny.products), named)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=20),
    probability=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_dropping_modalities_adds_none_and_never_takes_the_last(
    rows: list[list[bool]], probability: float, seed: int
) -> None:
    present = torch.tensor(rows)
    torch.manual_seed(seed)
    kept = drop_modalities(present, probability)
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(1), present.any(1))


def test_how_often_modalities_are_dropped() -> None:
    present = torch.ones(4000, 3, dtype=torch.bool)
    torch.manual_seed(0)
    assert torch.equal(drop_modalities(present, 0.0), present)
    touched = 1 - drop_modalities(present, 0.5).all(1).float().mean()
    assert float(touched) == pytest.approx(0.5 * (1 - 0.5**3), abs=0.05)
    signatures = {tuple(row) for row in drop_modalities(present, 1.0).tolist()}
    assert len(signatures) == 7


def test_what_nothing_is_known_of_is_never_mined() -> None:
    usable = np.array([True, True, True, True, False, False])
    positives = PairPositives([(0, 1, 1), (2, 3, 1)], usable, batch_of(2, hard_negatives=0.9))
    for rows in positives.batches(np.random.default_rng(0), np.eye(6, dtype=np.float32)):
        assert set(rows.tolist()) == {0, 1, 2, 3}
