from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness_client import _calls, _operations
from likeness_client._calls import Answer, Call, Item, Vector, read_errors
from likeness_client.contract import MAX_BLOCK_LEFT, MAX_BLOCK_RIGHT, NOTHING_KNOWN, Metric, all_signatures
from likeness_client.errors import (
    BatchError,
    InputError,
    ProductError,
    ServerError,
    ServerUnavailableError,
    SpaceMismatchError,
)
from likeness_client.records import Product
from likeness_client.results import Embeddings, ScoreMatrix, Scores
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.client.conftest import FakeServer

METRICS = list(Metric)


def text(title: str) -> Product:
    return Product(product_id=f"id-{title}", title=title)


def full(title: str) -> Product:
    return Product(title=title, images=(b"image of " + title.encode(),), attributes={"colour": "red"})


def embed(fake: FakeServer, *products: Product, on_error: _operations.OnError = "return") -> Embeddings:
    return fake.drive(_operations.embed(products, None, on_error, fake.info))


def pairs(
    fake: FakeServer, left: list[Product], right: list[Product], metric: Metric = Metric.COSINE
) -> tuple[Scores, Embeddings, Embeddings]:
    """Return the scores, and what both sides embed to."""
    found = fake.drive(_operations.similarity(left, right, metric, "return", fake.info))
    apart = type(fake)()
    return found, embed(apart, *left), embed(apart, *right)


def matrix(
    fake: FakeServer,
    queries: list[Product] | Embeddings,
    candidates: list[Product] | Embeddings,
    metric: Metric = Metric.COSINE,
    on_error: _operations.OnError = "return",
) -> ScoreMatrix:
    return fake.drive(_operations.similarity_matrix(queries, candidates, metric, on_error, fake.info))


def reference(metric: Metric, left: Embeddings, right: Embeddings) -> NDArray[np.float64]:
    a, b = left.vectors[:, None].astype(np.float64), right.vectors[None].astype(np.float64)
    cosine = (a * b).sum(-1)
    euclidean = np.sqrt(((a - b) ** 2).sum(-1))
    values: dict[Metric, NDArray[np.float64]] = {
        Metric.COSINE: cosine,
        Metric.EUCLIDEAN: euclidean,
        Metric.LEARNED: (1 + cosine) / 2,
    }
    return values[metric]


products = st.builds(
    Product,
    title=st.sampled_from(["", "a", "b", "BAD", "long title"]),
    images=st.sampled_from([(), (b"one",), (b"two",), (b"BAD",)]),
    attributes=st.sampled_from([{}, {"colour": "red"}, {"colour": True}]),
)


def test_scores_stay_within_the_bounds_of_their_metric(
    new_fake: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector with itself has a cosine of 1.0000002 in float32."""
    fake = new_fake()
    answer = fake.answer

    def rounded(call: Call) -> Answer:
        return {name: found * 1.000001 if found.dtype == np.float32 else found for name, found in answer(call).items()}

    monkeypatch.setattr(fake, "answer", rounded)
    product = Product(title="red chair")
    scores, _, _ = pairs(fake, [product], [product])
    assert scores.values.tolist() == [1.0]


@settings(deadline=None)
@given(batch=st.lists(products, max_size=12))
def test_a_batch_equals_its_products_one_by_one(new_fake: type[FakeServer], batch: list[Product]) -> None:
    server = new_fake()
    together = embed(server, *batch)
    assert len(server.rounds) <= 1
    assert set(together.signatures) <= {"", *all_signatures(("text", "image", "attributes"))}
    assert together.vectors.shape == (len(batch), 8)
    for index, product in enumerate(batch):
        alone = embed(new_fake(), product)
        np.testing.assert_array_equal(together.vectors[index], alone.vectors[0])
        assert together.signatures[index] == alone.signatures[0]
        assert together.modality_weights[index] == alone.modality_weights[0]
        assert (index in together.errors) == bool(alone.errors)
        assert np.isnan(together.vectors[index]).all() == bool(alone.errors)


def test_groups_by_signature_and_splits_at_the_servers_batch(fake: FakeServer) -> None:
    found = embed(fake, *(text(f"t{i}") for i in range(9)), *(full(f"f{i}") for i in range(2)))
    assert sorted(fake.models) == ["embed_text"] * 3 + ["embed_text_image_attributes"]
    assert len(fake.rounds) == 1
    assert found.product_ids[3] == "id-t3"
    assert found.signatures == ("text",) * 9 + ("text_image_attributes",) * 2
    assert list(found.modality_weights[-1]) == ["text", "image", "attributes"]
    assert sum(found.modality_weights[-1].values()) == pytest.approx(1)
    assert found.space == "space-1"


def test_equal_products_are_computed_once(fake: FakeServer) -> None:
    found = embed(fake, text("a"), text("b"), Product(title=" a "), text("a"))
    [[call]] = fake.rounds
    assert sorted(call.inputs["text"][:, 0]) == [b"a", b"b"]
    np.testing.assert_array_equal(found.vectors[[0, 0]], found.vectors[[2, 3]])


def test_calls_are_bounded_in_bytes(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_calls, "MAX_CALL_BYTES", 10)
    photos = [Product(images=(bytes([i]) * size,)) for i, size in enumerate([5, 5, 30, 5, 5, 5])]
    embed(fake, *photos)
    assert sorted(len(call.inputs["image"]) for call in fake.rounds[0]) == [1, 1, 2, 2]
    pairs(fake, [Product(images=(bytes([i]),)) for i in (6, 7)], [photos[0], photos[2]])
    assert [len(call.inputs["right_image"]) for call in fake.rounds[1]] == [1, 1]


@pytest.mark.parametrize("modality", [None, "image"])
def test_what_a_product_has_is_not_asked_for_again_where_the_server_knows_nothing_in_what_it_lacks(
    fake: FakeServer, modality: str | None
) -> None:
    answer = ProductError(NOTHING_KNOWN, modality=modality)
    assert _calls.without_unknown(Item("text", (b"a",)), answer, fake.info) is None


def test_texts_of_like_length_share_a_batch(fake: FakeServer) -> None:
    embed(fake, *(text(letter * size) for letter, size in zip("abcdefgh", [9, 1, 9, 1, 9, 1, 9, 1], strict=True)))
    assert [{len(item) for item in call.inputs["text"][:, 0]} for call in fake.rounds[0]] == [{1}, {9}]


def test_failures_keep_to_themselves(fake: FakeServer) -> None:
    found = embed(fake, text("a"), text("BAD b"), Product(product_id="empty"), text("c"))
    assert list(found.errors) == [1, 2]
    assert str(found.errors[1]) == "product 1 ('id-BAD b'), text: cannot be read"
    assert str(found.errors[2]).startswith("product 2 ('empty'): has none of text, image, attributes")
    assert found.signatures == ("text", "", "", "text")
    assert found.modality_weights[1] == {}
    assert np.isnan(found.vectors).any(axis=1).tolist() == [False, True, True, False]


def liked(title: str, *users: str) -> Product:
    return Product(title=title, interactions=dict.fromkeys(users, 1))


def test_what_is_unknown_costs_its_modalities_only_until_nothing_is_left(fake: FakeServer) -> None:
    colour = {"colour": "octarine"}
    found = embed(
        fake,
        Product(title="gibberish", attributes={"colour": "red"}, images=(b"i",)),
        Product(title="gibberish", attributes=colour, images=(b"j",)),
        Product(title="gibberish", attributes=colour),
        Product(attributes={"colour": "red"}, images=(b"i",)),
    )
    assert found.signatures == ("image_attributes", "image", "", "image_attributes")
    assert str(found.errors[2]) == f"product 2, attributes: {NOTHING_KNOWN}"
    np.testing.assert_array_equal(found.vectors[0], found.vectors[3])


def test_a_tower_that_knows_something_stands_in_for_its_neighbour() -> None:
    call = Call("embed_text_image", "", {}, ())
    outputs = {"text_error": "text", "terms_error": "text", "image_error": "image"}
    nothing = NOTHING_KNOWN.encode()
    reasons = {
        "text_error": ["", nothing, nothing, nothing, nothing],
        "terms_error": [nothing, "", nothing, nothing, "bad words"],
        "image_error": ["", "", "", b"bad photo", ""],
    }
    answer = {name: np.array(column, dtype=np.object_)[:, None] for name, column in reasons.items()}
    found = read_errors(call, answer, 5, outputs)
    assert [error and (error.modality, error.reason) for error in found] == [
        None,
        None,
        ("text", NOTHING_KNOWN),
        ("image", "bad photo"),
        ("text", "bad words"),
    ]


def test_what_is_down_is_not_left_out_of_what_else_a_product_has(fake: FakeServer) -> None:
    signatures = tuple(name for name in fake.signatures if name != "text")
    info = replace(fake.info, signatures=signatures, unready={"text": "out of memory"})
    product = Product(product_id="p", title="a", attributes={"colour": "octarine"})
    with pytest.raises(ServerUnavailableError, match="not ready: out of memory"):
        fake.drive(_operations.embed([product], None, "return", info))


def test_users_who_are_all_unknown_cost_the_modality_only(fake: FakeServer) -> None:
    fake.signatures = all_signatures(("text", "interactions"))
    found = embed(
        fake, liked("a", "stranger"), liked("", "stranger"), text("a"), liked("BAD", "stranger"), liked("a", "u")
    )
    assert {index: error.modality for index, error in found.errors.items()} == {1: "interactions", 3: "text"}
    assert found.signatures == ("text", "", "text", "", "text_interactions")
    assert list(found.modality_weights[0]) == ["text"]
    np.testing.assert_array_equal(found.vectors[0], found.vectors[2])
    assert len(fake.rounds) == 2
    fake.signatures.remove("text")
    assert list(embed(fake, liked("a", "stranger")).errors) == [0]


def test_pairs_with_users_who_are_all_unknown_are_scored_by_the_rest(fake: FakeServer) -> None:
    fake.signatures = all_signatures(("text", "interactions"))
    left = [liked("a", "stranger"), liked("b", "u"), liked("", "stranger"), liked("same", "stranger")]
    right = [liked("A", "u"), liked("B", "v"), liked("", "u"), liked("same", "stranger")]
    found = fake.drive(_operations.similarity(left, right, Metric.COSINE, "return", fake.info))
    assert {index: (error.side, error.modality) for index, error in found.errors.items()} == {
        2: ("left", "interactions")
    }
    a, b = embed(fake, *left), embed(fake, *right)
    expected = np.diag(reference(Metric.COSINE, a, b))
    np.testing.assert_allclose(found.values[[0, 1, 3]], expected[[0, 1, 3]], atol=1e-6)
    both = fake.drive(_operations.compare(left[0], right[0], fake.info))
    assert (list(both.left_weights), list(both.right_weights)) == (["text"], ["text", "interactions"])


def test_a_product_whose_embedding_overflows_fails_by_itself(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in fp16 on a GPU: no step gives a reason, but there are no numbers either."""
    embed_batch = fake._embed

    def overflowing(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        answer = embed_batch(inputs)
        answer["embedding"][inputs["text"][:, 0] == b"huge"] = np.nan
        return answer

    monkeypatch.setattr(fake, "_embed", overflowing)
    found = embed(fake, text("a"), text("huge"))
    assert list(found.errors) == [1]
    assert str(found.errors[1]).startswith("product 1 ('id-huge'): its embedding holds NaN or infinity")
    assert found.signatures == ("text", "")
    left, right = [text("a"), text("huge"), text("c")], [text("A"), text("b"), text("huge")]
    for metric in METRICS:
        scores = fake.drive(_operations.similarity(left, right, metric, "return", fake.info))
        assert {index: error.side for index, error in scores.errors.items()} == {1: "left", 2: "right"}
        assert np.isfinite(scores.values).tolist() == [True, False, False]


def test_failures_are_raised_with_the_partial_answer(fake: FakeServer) -> None:
    with pytest.raises(BatchError, match="1 failed: product 1") as caught:
        embed(fake, text("a"), text("BAD"), on_error="raise")
    assert list(caught.value.errors) == [1]
    assert isinstance(caught.value.result, Embeddings)
    assert np.isfinite(caught.value.result.vectors[0]).all()


def test_a_signature_that_the_server_lacks_fails_its_products_only(fake: FakeServer) -> None:
    fake.signatures = ["text", "text_image"]
    found = embed(fake, text("a"), Product(images=(b"i",)))
    assert list(found.errors) == [1]
    assert "does not embed 'image', only: text, text_image; look at fewer" in str(found.errors[1])


def test_products_can_be_reduced_to_some_modalities(fake: FakeServer) -> None:
    batch = [full("a"), Product(title="b", images=(b"BAD",)), Product(images=(b"c",))]
    found = fake.drive(_operations.embed(batch, ("attributes", "text"), "return", fake.info))
    assert found.signatures == ("text_attributes", "text", "")
    assert "has none of text, attributes" in str(found.errors[2])
    wrong: tuple[Any, ...] = ((), ("smell",), "text", (name for name in ["text"]))
    for modalities in wrong:
        with pytest.raises(InputError, match="modalities must be a list of some of text, image, attributes"):
            fake.drive(_operations.embed(batch, modalities, "return", fake.info))


def test_nothing_in_nothing_out(fake: FakeServer) -> None:
    empty = embed(fake)
    assert empty.vectors.shape == (0, 8)
    assert len(pairs(fake, [], [])[0]) == 0
    for metric in METRICS:
        assert matrix(fake, [], [], metric).values.shape == (0, 0)
        assert matrix(fake, empty, empty, metric).values.shape == (0, 0)
    assert fake.rounds == []
    assert matrix(fake, [text("a")], [], Metric.LEARNED).values.shape == (1, 0)
    assert fake.models == ["embed_text"]


def test_what_is_not_a_product_is_the_callers_mistake(fake: FakeServer) -> None:
    with pytest.raises(InputError, match="item 0 is of type dict, not Product"):
        embed(fake, {"title": "a"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"item 0 is of type ndarray.* make Embeddings, by Embeddings\.from_vectors"):
        embed(fake, np.ones(8))  # type: ignore[arg-type]
    for alone in (text("a"), None):
        with pytest.raises(InputError, match=f"found one {type(alone).__name__}: put a product into a list"):
            _operations.held(alone)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="on_error must be one of"):
        embed(fake, text("a"), on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="metric must be one of"):
        matrix(fake, [], [], "manhattan")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="equal length, got 1 and 0"):
        pairs(fake, [text("a")], [])


@pytest.mark.parametrize("metric", METRICS)
def test_pairs_of_one_signature_take_one_round_trip(fake: FakeServer, metric: Metric) -> None:
    left, right = [text(f"l{i}") for i in range(6)], [text(f"r{i}") for i in range(6)]
    left[2], right[2] = full("l2"), full("r2")
    found, a, b = pairs(fake, left, right, metric)
    assert sorted(fake.models) == ["similarity_text"] * 2 + ["similarity_text_image_attributes"]
    assert len(fake.rounds) == 1
    np.testing.assert_allclose(found.values, np.diag(reference(metric, a, b)), atol=1e-6)
    assert (found.metric, found.space, dict(found.errors)) == (metric, "space-1", {})


@pytest.mark.parametrize("metric", METRICS)
def test_other_pairs_go_through_their_embeddings(fake: FakeServer, metric: Metric) -> None:
    left = [text("a"), text("query"), text("query"), text("x"), text("same")]
    right = [full("b"), text("c"), text("d"), text("y"), text("same")]
    found, a, b = pairs(fake, left, right, metric)
    first, second = ([call.model for call in calls] for calls in fake.rounds)
    # Of "a", "b", "query", "c", "d" and "same" five are text; only x and y share a signature and occur once.
    assert sorted(first) == ["embed_text"] * 2 + ["embed_text_image_attributes", "similarity_text"]
    assert second == ["similarity"]
    assert fake.rounds[1][0].outputs == (metric,)
    np.testing.assert_allclose(found.values, np.diag(reference(metric, a, b)), atol=1e-6)


def test_failed_sides_are_named_and_neighbours_keep_their_scores(fake: FakeServer) -> None:
    left = [text("a"), text("BAD l"), text("c"), Product(), text("e"), text("BAD q")]
    right = [text("A"), text("BAD B"), text("BAD r"), Product(), full("E"), full("F")]
    found, a, b = pairs(fake, left, right)
    assert list(found.errors) == [1, 2, 3, 5]
    assert [error.side for error in found.errors.values()] == ["left", "right", "left", "left"]
    assert str(found.errors[2]) == "right product 2 ('id-BAD r'), text: cannot be read"
    expected = np.diag(reference(Metric.COSINE, a, b))
    np.testing.assert_allclose(found.values[[0, 4]], expected[[0, 4]], atol=1e-6)
    assert np.isnan(found.values[[1, 2, 3, 5]]).all()


@pytest.mark.parametrize("metric", METRICS)
def test_pairs_of_products_and_of_embeddings(fake: FakeServer, metric: Metric) -> None:
    left, right = [text("a"), full("b"), text("BAD"), text("c")], [text("c"), Product(), text("a"), full("d")]
    by_products, a, b = pairs(fake, left, right, metric)
    mixed: list[tuple[_operations.Side, _operations.Side]] = [(a, b), (left, b), (a, right)]
    for one, other in mixed:
        found = fake.drive(_operations.similarity(one, other, metric, "return", fake.info))
        np.testing.assert_allclose(found.values, by_products.values, atol=1e-6)
        assert [str(error) for error in found.errors.values()] == [str(error) for error in by_products.errors.values()]
        assert (found.metric, found.space) == (metric, "space-1")
    gaps = {(0, 0): [], (1, 0): [2], (0, 1): [1]}  # which sides are products -> the failures that are new
    for (fresh_left, fresh_right), new in gaps.items():
        sides = left if fresh_left else a, right if fresh_right else b
        operation = _operations.similarity(*sides, metric, "raise", fake.info)
        if new:
            with pytest.raises(BatchError) as caught:
                fake.drive(operation)
            assert list(caught.value.errors) == new
        else:
            fake.drive(operation)


def test_pairs_of_embeddings_that_need_no_server_ask_none(fake: FakeServer) -> None:
    found = embed(fake, text("a"), text("b"))
    fake.rounds.clear()
    for metric in (Metric.COSINE, Metric.EUCLIDEAN):
        fake.drive(_operations.similarity(found, found, metric, "raise", None))
    assert fake.rounds == []
    other = replace(found, space="space-2")
    for metric, sides in ((Metric.COSINE, (found, other)), (Metric.LEARNED, (other, other))):
        with pytest.raises(SpaceMismatchError, match="space-1, space-2"):
            fake.drive(_operations.similarity(*sides, metric, "raise", fake.info))
    with pytest.raises(InputError, match="equal length"):
        fake.drive(_operations.similarity(found, [text("a")], Metric.COSINE, "raise", fake.info))


def test_learned_pairs_of_embeddings_are_asked_in_bounded_rounds(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_operations, "_BLOCKS_AT_ONCE", 2)
    left = embed(type(fake)(), *(text(f"l{i}") for i in range(30)))
    right = embed(type(fake)(), *(text(f"r{i}") for i in range(29)), Product())
    found = fake.drive(_operations.similarity(left, right, Metric.LEARNED, "raise", fake.info))
    np.testing.assert_allclose(found.values, np.diag(reference(Metric.LEARNED, left, right)), atol=1e-6)
    assert {call.model for calls in fake.rounds for call in calls} == {"similarity"}
    assert max(map(len, fake.rounds)) == 2 < len(fake.rounds)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_that_is_not_computed_here_is_asked_of_the_server_by_its_name(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, metric: Metric
) -> None:
    monkeypatch.setattr(_operations, "PAIR_SCORES", {})
    monkeypatch.setattr(_operations, "MATRIX_SCORES", {})
    left, right = (embed(type(fake)(), text(f"{side}1"), text(f"{side}2")) for side in ("l", "r"))
    assert _operations.needs_server(left, right, metric)
    expected = reference(metric, left, right)
    np.testing.assert_allclose(matrix(fake, left, right, metric).values, expected, atol=1e-6)
    pairs = fake.drive(_operations.similarity(left, right, metric, "raise", fake.info))
    np.testing.assert_allclose(pairs.values, np.diag(expected), atol=1e-6)


def test_comparison_has_every_metric_and_both_weights(fake: FakeServer) -> None:
    for left, right in ((text("a"), text("b")), (text("a"), full("b"))):
        found = fake.drive(_operations.compare(left, right, fake.info))
        a, b = embed(type(fake)(), left), embed(type(fake)(), right)
        for metric in METRICS:
            assert getattr(found, metric) == pytest.approx(reference(metric, a, b)[0, 0], abs=1e-6)
        assert found.left_weights == a.modality_weights[0]
        assert found.right_weights == b.modality_weights[0]
    assert len(fake.rounds) == 1 + 2
    with pytest.raises(ProductError, match="right product: has none of") as caught:
        fake.drive(_operations.compare(text("a"), Product(), fake.info))
    assert caught.value.index is None


@pytest.mark.parametrize("metric", METRICS)
def test_matrices_of_products_and_of_embeddings(fake: FakeServer, metric: Metric) -> None:
    queries, candidates = [text("a"), full("b"), text("BAD")], [text("c"), Product(), text("a"), full("d")]
    found = matrix(fake, queries, candidates, metric)
    left, right = embed(type(fake)(), *queries), embed(type(fake)(), *candidates)
    assert (list(found.query_errors), list(found.candidate_errors)) == ([2], [1])
    assert [found.query_errors[2].side, found.candidate_errors[1].side] == ["query", "candidate"]
    np.testing.assert_allclose(found.values, reference(metric, left, right), atol=1e-6)
    assert fake.models.count("embed_text") == 1  # both sides are one batch
    assert ("similarity_matrix" in fake.models) == (metric is Metric.LEARNED)
    again = matrix(type(fake)(), left, right, metric, on_error="raise")  # gaps that the caller knows are not raised
    np.testing.assert_array_equal(again.values, found.values)
    assert list(again.query_errors) == [2]


def test_new_failures_of_a_matrix_are_raised(fake: FakeServer) -> None:
    with pytest.raises(BatchError) as caught:
        matrix(fake, [text("a"), Product()], [Product(), text("b")], on_error="raise")
    assert {index: error.side for index, error in caught.value.errors.items()} == {1: "query", 2: "candidate"}


@pytest.mark.parametrize(("rows", "columns"), [(3, 7), (1, 20), (20, 1), (9, 9)])
def test_learned_blocks_are_bounded_and_complete(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, rows: int, columns: int
) -> None:
    monkeypatch.setattr(_calls, "MAX_CALL_CELLS", 6)
    monkeypatch.setattr(_calls, "_BLOCK_SIDE", 2)
    monkeypatch.setattr(_operations, "_BLOCKS_AT_ONCE", 3)
    left = embed(type(fake)(), *(text(f"l{i}") for i in range(rows)))
    right = embed(type(fake)(), *(text(f"r{i}") for i in range(columns)))
    found = matrix(fake, left, right, Metric.LEARNED)
    np.testing.assert_allclose(found.values, reference(Metric.LEARNED, left, right), atol=1e-6)
    calls = [call for together in fake.rounds for call in together]
    assert all(call.inputs["left"].shape[1] * call.inputs["right"].shape[1] <= 6 for call in calls)
    assert max(map(len, fake.rounds)) <= 3  # what is held beside the matrix does not grow with it


@pytest.mark.parametrize(("rows", "columns", "count"), [(1, 5000, 5), (5000, 3, 40), (2000, 2000, 256)])
def test_no_side_of_a_learned_block_is_larger_than_a_plan_takes_nor_smaller_than_needed(
    fake: FakeServer, rows: int, columns: int, count: int
) -> None:
    left, right = np.zeros((rows, 2), np.float32), np.zeros((columns, 2), np.float32)
    calls = _calls.matrix_calls(left, right, Metric.LEARNED, fake.info)
    shapes = [(call.inputs["left"].shape[1], call.inputs["right"].shape[1]) for call, _, _ in calls]
    assert all(a <= MAX_BLOCK_LEFT and b <= MAX_BLOCK_RIGHT for a, b in shapes)
    assert sum(a * b for a, b in shapes) == rows * columns
    assert len(calls) == count


def test_equal_vectors_are_at_distance_zero(fake: FakeServer) -> None:
    found = embed(fake, text("a"), text("b"))
    assert np.diag(matrix(fake, found, found, Metric.EUCLIDEAN).values).max() < 1e-7
    assert np.diag(matrix(fake, found, found).values).max() <= 1.0


def test_spaces_are_not_mixed(fake: FakeServer) -> None:
    other = type(fake)()
    other.space = "space-2"
    old = embed(other, text("a"))
    for metric, candidates in ((Metric.COSINE, [text("b")]), (Metric.LEARNED, old)):
        with pytest.raises(SpaceMismatchError, match="space-1, space-2"):
            matrix(fake, old, candidates, metric)
    assert fake.rounds == []
    assert matrix(fake, old, old).space == "space-2"  # nothing of this server is needed


@pytest.mark.parametrize("score", [_operations.similarity, _operations.similarity_matrix])
def test_vectors_of_other_lengths_are_refused_before_any_work(fake: FakeServer, score: Any) -> None:
    whole, short, number = (Embeddings.from_vectors(np.ones((1, size)), fake.space) for size in (8, 4, 1))
    for left, right, metric in (
        (whole, short, Metric.COSINE),
        (number, whole, Metric.EUCLIDEAN),  # which NumPy would stretch
        (short, [text("a")], Metric.COSINE),
        (short, short, Metric.LEARNED),
    ):
        with pytest.raises(InputError, match=r"differ in length \([14], [48]\): give all of them whole"):
            fake.drive(score(left, right, metric, "raise", fake.info))
    assert fake.rounds == []
    assert fake.drive(score(short, short, Metric.COSINE, "raise", None)).values == pytest.approx(1)


def test_an_answer_off_the_contract_is_a_server_error(fake: FakeServer) -> None:
    planned = _calls.embed_calls([_calls.Item("text", (b"a",))], fake.info)
    [(call, batch)] = planned
    answer = dict(fake.answer(call))
    [found] = _calls.read_embeddings(call, answer, batch, fake.info)
    assert isinstance(found, Vector)
    for broken in ({**answer, "embedding": np.zeros((1, 3), np.float32)}, {"embedding": answer["embedding"]}):
        with pytest.raises(ServerError, match="model 'embed_text': answered"):
            list(
                _calls.read_embeddings(
                    Call(call.model, call.version, call.inputs, call.outputs), broken, batch, fake.info
                )
            )
