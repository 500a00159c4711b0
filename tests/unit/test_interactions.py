from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from likeness_client.contract import MAX_BYTES, MODALITIES, NOTHING_KNOWN, InputSchema
from likeness_client.errors import InputError, ProductError, RecordError
from likeness_client.payloads import payloads
from likeness_client.records import Product
from likeness_export.demo.shoppers import COLD_SHARE, draw_interactions, log_shoppers
from likeness_export.encoders.als import AlsConfig
from likeness_export.evaluation.evaluate import OfflineEmbedder
from likeness_export.exporting.export import export_run
from likeness_export.exporting.onnx_export import TOLERANCE
from likeness_export.preprocessing.interactions import Preprocessor
from likeness_export.products.catalogue import read_catalogue
from likeness_export.products.interaction_log import join_log
from likeness_export.recipe import parse_recipe
from likeness_export.run import Run
from likeness_export.training.train import train
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.unit.conftest import LittleRoom

GROUPS, LISTINGS, SHOPPERS = 8, 12, 25  # of each group
FACTORS = 16
CONFIG = AlsConfig(encoder="als", factors=FACTORS)
Counts = dict[str, int]


def co_purchases(seed: int = 3) -> list[tuple[int, Counts]]:
    """Return (group, counts): five shoppers of the group's own, and two from anywhere, per product."""
    rng = np.random.default_rng(seed)
    found = []
    for group in range(GROUPS):
        for _ in range(LISTINGS):
            own = group * SHOPPERS + rng.choice(SHOPPERS, 5, replace=False)
            stray = rng.integers(0, GROUPS * SHOPPERS, 2)
            found.append((group, {f"u{user}": int(rng.integers(1, 5)) for user in [*own, *stray]}))
    return found


def encode(counts: object) -> bytes:
    return json.dumps(counts).encode()


def fit(folder: Path, items: list[bytes], config: AlsConfig = CONFIG) -> Preprocessor:
    config.prepare(items, folder, folder)
    return Preprocessor(folder / "assets")


def neighbours_of_the_same_group(vectors: NDArray[Any], groups: NDArray[np.int_], count: int) -> float:
    """Return the share of each product's nearest neighbours that are of its group."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    nearest = np.argsort(-scores, axis=1)[:, :count]
    return float((groups[nearest] == groups[:, None]).mean())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Preprocessor:
    return fit(tmp_path_factory.mktemp("als"), [encode(counts) for _, counts in co_purchases()])


# --- from a record to the wire


def test_counts_are_canonical_json() -> None:
    first = Product(interactions={"b": 3.0, "a": 1, "idle": 0})
    second = Product(interactions={"a": np.float32(1), "b": np.int64(3)})  # type: ignore[dict-item]  # callers have these
    sent = [payloads(product, InputSchema(), MODALITIES) for product in (first, second)]
    assert sent[0] == sent[1] == {"interactions": b'{"a":1,"b":3}'}


def test_a_cold_product_sends_nothing() -> None:
    assert payloads(Product(title="new", interactions={"u": 0}), InputSchema(), MODALITIES) == {"text": b"new"}
    with pytest.raises(ProductError, match="has none of interactions"):
        payloads(Product(title="new"), InputSchema(), ["interactions"])


@pytest.mark.parametrize("count", [-1, float("nan"), float("inf"), True, "3", None])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(ProductError, match="the count of 'u' must") as caught:
        payloads(Product(interactions={"u": count}), InputSchema(), MODALITIES)
    assert caught.value.modality == "interactions"


def test_more_than_the_limit_is_refused_with_a_way_out() -> None:
    crowd = Product(interactions={f"user {number}": 1.0 for number in range(100)})
    with pytest.raises(ProductError, match="leave out the users who did least"):
        payloads(crowd, InputSchema(max_bytes={"interactions": 1000}), MODALITIES)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1], "'interactions' must be an object, found a list"),
        ({"u": -2}, "'interactions.u' must be a number of times, found -2"),
        ({"u": "often"}, "found a string"),
        ({"u": True}, "found a boolean"),
    ],
)
def test_a_record_with_something_else_is_refused(value: object, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        Product.from_record({"product_id": "p", "interactions": value}, Path())


def test_a_record_may_lack_them() -> None:
    for record in ({}, {"interactions": None}, {"interactions": {"u": None}}):
        assert Product.from_record(record, Path()).interactions == {}


# --- the fit and the fold-in


def test_folding_in_is_the_step_that_training_took(tmp_path: Path) -> None:
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    config = AlsConfig(encoder="als", factors=FACTORS, min_interactions=1, alpha=7.0, regularization=0.3)
    counts = [found for _, found in co_purchases()]
    items = [encode(found) for found in counts]
    tensors, errors = fit(tmp_path, items, config)(items)
    assert not any(errors)
    users = sorted({user for found in counts for user in found})
    matrix = csr_matrix(config.confidences(users, [dict(found) for found in counts]), shape=(len(users), len(counts)))
    model = AlternatingLeastSquares(
        factors=FACTORS, regularization=0.3, alpha=1.0, use_cg=False, num_threads=1, random_state=config.seed
    )
    model.fit(matrix, show_progress=False)
    again = model.recalculate_item(np.arange(len(counts)), matrix.T.tocsr())
    for expected in (model.item_factors, again):
        assert np.abs(tensors["item_factors"] - expected).max() < 1e-5 * np.abs(expected).max()


def test_folding_in_is_the_formula(fitted: Preprocessor) -> None:
    counts = {"u1": 2.0, "u30": 1.0, "nobody": 9.0}
    factors = fitted.factors.astype(np.float64)
    preference = np.zeros(len(factors))
    confidence = np.ones(len(factors))
    for user in ("u1", "u30"):
        preference[fitted.places[user]] = 1
        confidence[fitted.places[user]] += CONFIG.alpha * counts[user]
    left = factors.T @ np.diag(confidence) @ factors + CONFIG.regularization * np.eye(FACTORS)
    expected = np.linalg.inv(left) @ factors.T @ np.diag(confidence) @ preference
    np.testing.assert_allclose(fitted.fold_in(counts), expected, rtol=1e-8)


def test_the_fit_is_the_same_every_time_and_keeps_active_users_only(tmp_path: Path) -> None:
    items = [encode({"a": 1, "b": 1, "once": 5}), encode({"a": 2, "b": 1}), encode({"b": 1, "c": 1}), encode({"c": 1})]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        assert list(fit(folder, items).places) == ["a", "b", "c"]
    for path in (folders[0] / "assets").iterdir():
        assert path.read_bytes() == (folders[1] / "assets" / path.name).read_bytes()


def test_a_fit_needs_a_user_of_two_products(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"towers\.\w+: no user has interacted with 2 of the 2 training products"):
        fit(tmp_path, [encode({"a": 1}), encode({"b": 1})])


def test_factors_that_cannot_be_computed_are_named_with_the_way_out(tmp_path: Path) -> None:
    config = AlsConfig(encoder="als", factors=64, regularization=1e-12)
    items = [encode({f"u{user}": 1 + user for user in range(10)}) for _ in range(4)]
    with pytest.raises(InputError, match=r"towers\.\w+: the factors of 10 users cannot .*: raise regularization, or"):
        fit(tmp_path, items, config)


def test_factors_of_which_nothing_is_left_are_refused(tmp_path: Path) -> None:
    """Such products would all have the same features."""
    items = [encode({f"u{user}": 1 + user for user in range(10)}) for _ in range(4)]
    config = AlsConfig(encoder="als", regularization=1e5)
    with pytest.raises(InputError, match=r"towers\.\w+: regularization 100000 leaves nothing .* of 10 users: lower it"):
        fit(tmp_path, items, config)


def test_factors_that_find_no_room_are_named(tmp_path: Path, little_room: LittleRoom) -> None:
    items = [encode({f"u{user}": 1 + user for user in range(10)}) for _ in range(4)]
    with little_room(2000), pytest.raises(InputError, match=r"^cannot write .*factors\.npy \(.*\): make room there"):
        fit(tmp_path, items, AlsConfig(encoder="als", factors=64))


def test_unknown_users_are_skipped_and_a_bad_item_fails_alone(fitted: Preprocessor) -> None:
    known, strange = encode({"u1": 2}), encode({"u1": 2, "stranger": 50})
    items = [known, encode({"stranger": 1}), strange, b"{}", b"[1]", b"\xff{", encode({"u1": -1}), known]
    tensors, errors = fitted(items)
    factors = tensors["item_factors"]
    assert factors.shape == (len(items), FACTORS)
    assert factors.dtype == np.float32
    good = [0, 2, 7]
    assert [not error for error in errors] == [row in good for row in range(len(items))]
    assert all(np.array_equal(factors[row], factors[0]) and factors[row].any() for row in good)
    assert not factors[[row for row in range(len(items)) if row not in good]].any()
    assert errors[1] == errors[3] == NOTHING_KNOWN
    assert "not an object" in errors[4]
    assert "not JSON" in errors[5]
    assert "send a number above 0" in errors[6]


def test_too_many_bytes_are_refused(fitted: Preprocessor) -> None:
    _, (error,) = fitted([b" " * (MAX_BYTES["interactions"] + 1)])
    assert "leave the rarest users out" in error


numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
objects = st.dictionaries(st.sampled_from(["u1", "u2", "stranger", ""]), numbers, max_size=3).map(encode)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(item=st.one_of(st.binary(max_size=40), objects))
def test_whatever_comes_the_neighbours_are_not_touched(fitted: Preprocessor, item: bytes) -> None:
    good = encode({"u1": 2, "u3": 1})
    alone = fitted([good])[0]["item_factors"][0]
    tensors, errors = fitted([good, item, good])
    assert np.isfinite(tensors["item_factors"]).all()
    assert [errors[0], errors[2]] == ["", ""]
    for row in (0, 2):
        assert np.array_equal(tensors["item_factors"][row], alone)


# --- a similarity of its own


def test_a_new_products_neighbours_are_of_its_group(tmp_path: Path) -> None:
    """Products that the fit has not seen, and no label anywhere: chance is 11 %."""
    train_items = [encode(counts) for _, counts in co_purchases()]
    new = co_purchases(seed=4)
    tensors, _ = fit(tmp_path, train_items)([encode(counts) for _, counts in new])
    share = neighbours_of_the_same_group(tensors["item_factors"], np.array([group for group, _ in new]), LISTINGS - 1)
    assert share > 0.6


def test_a_recipe_of_interactions_alone_trains_and_exports(tmp_path: Path) -> None:
    """Neighbours are measured among products that training has not seen."""
    lines = []
    for number, (group, counts) in enumerate(co_purchases()):
        split = "val" if number % 3 == 0 else "train"
        record = {"product_id": str(number), "split": split, "group": f"g{group}", "interactions": counts}
        lines.append(json.dumps(record) + "\n")
    (tmp_path / "products.jsonl").write_text("".join(lines), encoding="utf-8")
    raw = {
        "name": "shoppers",
        "dimension": 16,
        "data": {"products": "products.jsonl", "labels": ["group"]},
        "towers": {"shoppers": {"encoder": "als", "factors": FACTORS}},
        "training": {"epochs": 20, "groups_per_batch": 4},
        "serving": {"max_batch_size": 4},
    }
    recipe, run = parse_recipe(raw, "test"), Run(tmp_path / "run")
    train(recipe, run, tmp_path)
    catalogue = read_catalogue(tmp_path / "products.jsonl").of_splits(["val"])
    vectors = OfflineEmbedder(run, catalogue).embed(["interactions"])
    groups = np.array([int(label[1:]) for label in catalogue.labels("group")])
    assert neighbours_of_the_same_group(vectors, groups, 3) > 0.6  # chance is 10 %
    reports = export_run(run, tmp_path / "repository")
    assert all(report.largest_difference <= TOLERANCE for report in reports)
    assert (tmp_path / "repository" / "embed_interactions" / "config.pbtxt").is_file()
    preprocess = tmp_path / "repository" / "shoppers_preprocess" / "1"
    assert {path.name for path in (preprocess / "assets").iterdir()} == {
        "interactions.json",
        "user_factors.npy",
        "users.json",
    }


def test_without_a_label_it_is_collaborative_filtering_and_nothing_else(tmp_path: Path) -> None:
    lines = [
        json.dumps({"product_id": str(number), "split": "train", "interactions": counts}) + "\n"
        for number, (_, counts) in enumerate(co_purchases())
    ]
    (tmp_path / "products.jsonl").write_text("".join(lines), encoding="utf-8")
    raw = {
        "name": "shoppers",
        "dimension": 24,
        "data": {"products": "products.jsonl"},
        "towers": {"shoppers": {"encoder": "als", "factors": FACTORS}},
    }
    recipe, run = parse_recipe(raw, "test"), Run(tmp_path / "run")
    train(recipe, run, tmp_path)
    train(recipe, run, tmp_path)  # it is already trained
    vectors = OfflineEmbedder(run, read_catalogue(tmp_path / "products.jsonl")).embed(["interactions"])
    tensors, _ = Preprocessor(run.towers / "shoppers" / "assets")([encode(counts) for _, counts in co_purchases()])
    factors = tensors["item_factors"] / np.linalg.norm(tensors["item_factors"], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, factors @ factors.T, atol=1e-5)
    assert all(report.largest_difference <= TOLERANCE for report in export_run(run, tmp_path / "repository"))


def test_features_that_do_not_fit_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [json.dumps({"split": "train", "interactions": counts}) + "\n" for _, counts in co_purchases()]
    (tmp_path / "products.jsonl").write_text("".join(lines), encoding="utf-8")
    tower = {"encoder": "als", "factors": FACTORS}
    raw = {"name": "s", "dimension": 8, "data": {"products": "products.jsonl"}, "towers": {"shoppers": tower}}
    with caplog.at_level("WARNING"):
        train(parse_recipe(raw, "test"), Run(tmp_path / "run"), tmp_path)
    assert "towers.shoppers: 16 features go into 8 numbers; dimension = 16 would keep all of them" in caplog.text


# --- the demo's shoppers


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "product_id": f"p{number}",
            "coarse_label": f"kind-{number % 4}",
            "fine_label": f"kind-{number % 4}-{number % 20}",
            "group": f"kind-{number % 4}-{number % 20}-{rng.choice(['red', 'blue'])}",
            "attributes": {"brand": f"brand-{number % 5}"} if number % 3 else {},
        }
        for number in range(200)
    ]


def test_shoppers_are_seeded_and_leave_some_listings_cold(records: list[dict[str, Any]]) -> None:
    first, again, other = (draw_interactions(records, seed=seed, shoppers=80) for seed in (1, 1, 2))
    assert first == again != other
    assert 0.2 <= sum(not counts for counts in first) / len(first) <= 0.3
    assert COLD_SHARE == 0.25
    assert all(count > 0 for counts in first for count in counts.values())


def test_shoppers_have_tastes(records: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "products.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    log = log_shoppers(tmp_path / "products.jsonl", tmp_path / "log.csv", shoppers=150)
    joined = join_log(tmp_path / "products.jsonl", log, tmp_path / "with.jsonl")
    assert (joined.products, joined.known, joined.strange) == (200, 150, {})
    catalogue = read_catalogue(tmp_path / "with.jsonl")
    assert [product.interactions for product in catalogue.products] == draw_interactions(records, seed=7, shoppers=150)
    assert [record["product_id"] for record in catalogue.records] == [record["product_id"] for record in records]
    warm = [row for row, product in enumerate(catalogue.products) if product.interactions]
    items = [encode(dict(catalogue.products[row].interactions)) for row in warm]
    tensors, _ = fit(tmp_path / "tower", items)(items)
    kinds = np.array([int(label[-1]) for label in catalogue.labels("coarse_label")])[warm]
    assert neighbours_of_the_same_group(tensors["item_factors"], kinds, 5) > 0.6  # chance is 25 %
