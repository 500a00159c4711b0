"""What is measured of a trained run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from likeness_client import Embeddings, InputError, InputSchema, Product, ProductError, SpaceMismatchError
from likeness_export.evaluation.evaluate import (
    AS_THEY_ARE,
    OfflineEmbedder,
    ServedEmbedder,
    Task,
    complete,
    evaluate,
    labels_to_judge_by,
)
from likeness_export.evaluation.metrics import retrieval
from likeness_export.products.catalogue import Catalogue, read_catalogue
from likeness_export.products.named_pairs import NamedPair, hold_out, without_repeats
from likeness_export.quality.baselines import measure_baselines
from likeness_export.quality.kinds import Incomplete, PairSets, Ranking, Table, Views
from likeness_export.quality.lines import Line
from likeness_export.quality.pair_sets import Lesson, decide, familiarity, find, measure_pair_sets, trained_scores
from likeness_export.quality.trained import take, views_of
from likeness_export.uses.match import cosine, scorer_of
from likeness_export.uses.neighbourhood import Rows, Scorer
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.unit.conftest import Exported

RANKING = Ranking(name="T", labels=("group",), queries=("train",), gallery=("train",))


def pair(left: str, right: str, label: int = 1) -> NamedPair:
    return NamedPair(left=left, right=right, label=label)


# Pairs


def test_rows_that_repeat_a_train_pair_are_left_out_in_either_order() -> None:
    train = [pair("a", "b"), pair("c", "d", 0)]
    measured = [pair("b", "a"), pair("c", "d"), pair("a", "c"), pair("x", "y")]
    assert without_repeats(measured, train) == measured[2:]


def test_pairs_are_told_apart_by_what_training_has_seen() -> None:
    found = familiarity(
        [pair("a", "c"), pair("a", "x"), pair("y", "b"), pair("x", "y")], [pair("a", "b"), pair("c", "c")]
    )
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "both": [True, False, False, False],
        "either": [False, True, True, False],
        "neither": [False, False, False, True],
    }


def test_a_lesson_is_of_the_pairs_that_its_network_has_not_seen() -> None:
    train = [pair(f"l{number}", f"r{number}") for number in range(50)]
    assert Lesson(scorers={}, held_out=0.2, fold=3).pairs(train) == hold_out(train, 0.2, 3)[1]
    assert Lesson(scorers={}).pairs(train) == train


def test_the_threshold_is_chosen_on_train_pairs_alone() -> None:
    """On the measured pairs another threshold would be better: that one is only the ceiling."""
    place = {name: row for row, name in enumerate("abcdefgh")}
    scores = {("a", "b"): 0.9, ("a", "c"): 0.5, ("e", "f"): 0.8, ("e", "g"): 0.55, ("a", "h"): 0.95}
    by_row = {(place[left], place[right]): score for (left, right), score in scores.items()}

    def features(left: Rows, right: Rows) -> NDArray[np.float32]:
        return np.array([[by_row[pair]] for pair in zip(left.tolist(), right.tolist(), strict=True)], np.float32)

    train = [pair("a", "b"), pair("a", "c", 0)]  # matched from 0.6 to 0.7
    measured = [pair("a", "b"), pair("e", "f"), pair("e", "g"), pair("a", "h", 0)]
    found, count = decide(train, [(train, features)], (measured, features), place)
    assert count == 3  # a-b repeats a train pair
    assert found["F1"] == pytest.approx(0.5)
    assert found["F1 best"] == pytest.approx(0.8)
    assert found["F1 repeats"] == pytest.approx(2 / 3)
    assert found["F1 fitted"] == 1.0


@pytest.mark.parametrize("fresh", [29, 30])
def test_pairs_have_figures_by_what_training_knows_of_them_without_those_that_it_repeats(fresh: int) -> None:
    train = [*(pair(f"l{n}", f"r{n}") for n in range(30)), pair("x", "y", 0)]
    both = [pair(f"l{n}", f"r{(n + 1) % 30}") for n in range(fresh)]
    either = [pair(f"l{n}", f"right {n}") for n in range(30)]
    neither = [pair(f"left {n}", f"right {n}") for n in range(30)]
    repeats = [pair(one.right, one.left) for one in train[:30]]  # in the other order
    names = [name for one in (*train, *neither) for name in (one.left, one.right)]
    place = {name: row for row, name in enumerate(dict.fromkeys(names))}
    found_pairs = (*train[:30], *repeats, *both[:15], *either[:10], *neither)
    alike = {(place[one.left], place[one.right]) for one in found_pairs}

    def features(left: Rows, right: Rows) -> NDArray[np.float32]:
        return np.array([[both in alike] for both in zip(left.tolist(), right.tolist(), strict=True)], np.float32)

    measured = [*repeats, *both, *either, *neither]
    found, count = decide(train, [(train[:9] + train[-1:], features)], (measured, features), place)
    assert count == fresh + 60
    assert found.get("F1 both") == (pytest.approx(2 * 15 / (15 + 30)) if fresh == 30 else None)
    assert found["F1 either"] == pytest.approx(2 * 10 / (10 + 30))
    assert found["F1 neither"] == 1.0
    assert found["F1"] == pytest.approx(2 * 55 / (55 + count))
    assert found["F1 repeats"] == pytest.approx(2 * 85 / (85 + count + 30))


def test_searching_ranks_the_right_sides_or_all_others() -> None:
    vectors = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32)
    row_of = {name: row for row, name in enumerate("abcd")}

    def search(left: Rows, right: Rows) -> NDArray[np.float32]:
        found: NDArray[np.float32] = vectors[left] @ vectors[right].T
        return found

    members = np.arange(4)
    measured = [pair("a", "c"), pair("a", "d", 0), pair("a", "a")]
    none = np.array(["", "", "", ""])
    assert find(measured, search, row_of, members, none) == ({"R@1": 0.0, "R@10": 1.0}, 1)
    sides = np.array(["left", "left", "right", "right"])
    assert find(measured, search, row_of, members, sides) == ({"R@1": 1.0, "R@10": 1.0}, 1)
    vectors[1] = vectors[2]  # a twin that stands before it
    assert find(measured, search, row_of, members, none) == ({"R@1": 0.0, "R@10": 1.0}, 1)
    vectors[0] = np.nan  # without an embedding nothing is found
    assert find(measured, search, row_of, members, none) == ({"R@1": 0.0, "R@10": 1.0}, 1)


def test_a_set_is_measured_as_if_it_were_the_whole_catalogue(tmp_path: Path) -> None:
    """Two shops each: who is whose neighbour, and on which side, must not shift by the sets before it."""
    random = np.random.default_rng(4)
    records = [
        {"product_id": f"{name}-{side}{number}", "coarse_label": name, "side": side}
        for name, number, side in [
            *(("one", number, side) for number in range(40) for side in ("left", "right")),
            *(("two", number, side) for side in ("left", "right") for number in range(40)),
        ]
    ]
    lines = [
        f"{name}-left{number},{name}-right{(number + off) % 40},{int(not off)},{split}"
        for name in ("one", "two")
        for number in range(40)
        for off in (0, 1, 2)
        for split in (["val"] if number % 2 else ["train"])
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(["left_id,right_id,label,split", *lines]) + "\n", encoding="utf-8")
    centres = random.normal(size=(80, 8))
    vectors = np.concatenate([np.repeat(centres[:40], 2, 0), np.tile(centres[40:], (2, 1))])
    vectors = vectors + random.normal(scale=0.7, size=(160, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    measure = PairSets(name="T11", search="T12", pairs="pairs.csv", side_field="side")

    def lines_of(rows: slice) -> list[Line]:
        some = tuple(Product(product_id=str(record["product_id"])) for record in records[rows])
        catalogue = Catalogue(products=some, records=tuple(records[rows]))
        scorer = scorer_of(vectors[rows], cosine)
        return list(measure_pair_sets(measure, {"cosine": scorer}, catalogue, tmp_path))

    both, alone = lines_of(slice(None)), [*lines_of(slice(80)), *lines_of(slice(80, None))]
    assert [replace(line, figures={}) for line in both] == [replace(line, figures={}) for line in alone]
    for ours, theirs in zip(both, alone, strict=True):
        assert ours.figures == pytest.approx(theirs.figures)
    assert len({str(line.figures) for line in both}) == len(both)  # figures that could have been another's


def test_sets_are_measured_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(
        "left_id,right_id,label,split\na,b,1,train\na,c,0,train\nc,d,1,val\nd,a,0,val\n"
        "e,f,1,train\ne,g,0,train\ng,h,1,val\nnowhere,h,1,val\ng,nowhere,1,val\n"
        "i,j,1,val\n",  # a set that teaches nothing
        encoding="utf-8",
    )
    products = tuple(Product(product_id=name) for name in "abcdefghij")
    records = tuple(
        {"product_id": name, "coarse_label": "one" if name < "e" else "two" if name < "i" else "three"}
        for name in "abcdefghij"
    )
    catalogue = Catalogue(products=products, records=records)
    twins = np.arange(10) // 2

    def alike(left: Rows, right: Rows) -> NDArray[np.float32]:
        same: NDArray[np.bool_] = twins[left] == twins[right]
        return same.astype(np.float32)

    scorer = Scorer(pairs=alike, search=lambda left, right: (twins[left][:, None] == twins[right]).astype(np.float32))
    measure = PairSets(name="T11", search="T12", pairs="pairs.csv")
    lines = list(measure_pair_sets(measure, {"twins": scorer}, catalogue, tmp_path))
    assert [(line.task, line.label, line.count) for line in lines] == [
        *(("T11", "one", 2), ("T11", "one", 2), ("T12", "one", 1)),
        *(("T11", "two", 1), ("T11", "two", 1), ("T12", "two", 1)),
    ]
    assert [line.what for line in lines[:3]] == ["twins", "twins, among neighbours", "twins"]
    assert all(line.figures.get("F1", line.figures.get("R@1")) == 1.0 for line in lines)
    turned = replace(scorer, pairs=lambda left, right: 1 - alike(left, right))
    lesson = Lesson(scorers={"twins": turned})
    lines = list(measure_pair_sets(measure, {"twins": scorer}, catalogue, tmp_path, [lesson]))
    assert [line.figures["F1"] for line in lines if line.what == "twins" and line.task == "T11"] == [0.0, 0.0]
    lines = list(measure_pair_sets(measure, {"twins": scorer, "turned": turned}, catalogue, tmp_path))
    assert [line.what for line in lines if line.task == "T12"] == ["twins", "twins"]  # once for each set
    with (tmp_path / "pairs.csv").open("a", encoding="utf-8") as pairs:
        pairs.write("d,c,1,test\nb,c,0,test\n")
    of_test = measure_pair_sets(measure.on("test"), {"twins": scorer}, catalogue, tmp_path)
    assert [(line.task, line.label, line.count) for line in of_test][::2] == [("T11", "one", 2), ("T12", "one", 1)]
    with pytest.raises(InputError, match=r"pairs\.csv: no pair of known products has split later"):
        list(measure_pair_sets(measure.on("later"), {"twins": scorer}, catalogue, tmp_path))


def test_the_learned_metric_scores_pairs(exported: Exported) -> None:
    _, network = exported.run.read_network()
    vectors = np.eye(4, 16, dtype=np.float32)
    scorers = trained_scores(vectors, network)
    left, right = np.random.default_rng(3).integers(0, 4, (2, 1100))
    np.testing.assert_allclose(scorers["cosine"].pairs(left, right), left == right)
    with torch.inference_mode():
        expected = network.metric(torch.from_numpy(vectors[left]), torch.from_numpy(vectors[right])).numpy()
    np.testing.assert_allclose(scorers["learned"].pairs(left, right), expected, rtol=1e-5)
    assert expected[left == right].min() > expected[left != right].max()


# Rankings


def test_views_are_the_last_and_the_first_photo() -> None:
    photos = [Path(f"{place}.png") for place in range(3)]
    products = (Product(product_id="a", images=tuple(photos)), Product(product_id="b", images=(photos[0],)))
    catalogue = Catalogue(products=products, records=({"product_id": "a"}, {"product_id": "b"}))
    last, first = views_of(catalogue)
    assert [product.images for product in last.products] == [(photos[2],)]
    assert [product.images for product in first.products] == [(photos[0],)]


def test_complete_products_are_searched_with_less(exported: Exported) -> None:
    root = exported.run.folder.parent / "data"
    catalogue = read_catalogue(root / "products.jsonl")
    embedder = OfflineEmbedder(exported.run, catalogue)
    measure = Incomplete(name="T", labels=("group",), queries=("train",), gallery=("train",))
    lines = {line.what: line for line in take(measure, exported.run, embedder, catalogue, root)}
    assert list(lines) == ["image", "attributes", "image_attributes"]
    plain = {line.what: line for line in take(RANKING, exported.run, embedder, catalogue, root)}
    assert list(plain) == ["image", "attributes", "image_attributes", AS_THEY_ARE]
    both = lines["image_attributes"].figures
    assert {name: both[name] for name in plain["image_attributes"].figures} == plain["image_attributes"].figures
    assert both.get("lost", 0.0) == 0.0
    with pytest.raises(InputError, match="a list of some of image, attributes: 'text' is none of them"):
        embedder.embed(["image", "text"])
    nothing = OfflineEmbedder(exported.run, catalogue.select([]))
    assert (nothing.present.shape, nothing.embed(["image"]).shape) == ((0, 2), (0, embedder.recipe.dimension))
    reduced, whole = embedder.embed(["image"]), embedder.embed(["image", "attributes"])
    rows = np.flatnonzero(complete(embedder.present, [whole]) & catalogue.in_splits(["train"]))
    labels, itself = catalogue.labels("group")[rows], np.arange(len(rows))
    expected = retrieval(reduced[rows], whole[rows], labels, labels, itself).mean_average_precision
    assert lines["image"].figures["mAP"] == expected != plain["image"].figures["mAP"]


def test_a_view_that_cannot_be_read_is_neither_asked_for_nor_with(exported: Exported) -> None:
    root = exported.run.folder.parent / "data"
    catalogue = read_catalogue(root / "products.jsonl").of_splits(["train"])
    some = catalogue.select([row for row, product in enumerate(catalogue.products) if product.images][:4])
    photos = [product.images[0] for product in some.products]
    views = [(photos[0], photos[0]), (b"none", photos[1]), (photos[2], b"none"), (photos[3], photos[3])]
    products = tuple(replace(product, images=two) for product, two in zip(some.products, views, strict=True))
    shown = replace(some, products=products)
    measure = Views(name="T", splits=("train",))
    (line,) = take(measure, exported.run, OfflineEmbedder(exported.run, shown), shown, root)
    assert (line.what, line.count, line.figures["hit@1"]) == ("image", 2, 1.0)


def test_what_no_query_asks_has_no_line(exported: Exported, tmp_path: Path) -> None:
    """Figures of nothing are no numbers, which JSON does not hold."""
    root = exported.run.folder.parent / "data"
    catalogue = read_catalogue(root / "products.jsonl")
    embedder = OfflineEmbedder(exported.run, catalogue)
    sides: dict[str, tuple[str, ...]] = {"labels": ("serial",), "queries": ("train",), "gallery": ("train",)}
    for measure in (Ranking(name="T", **sides), Incomplete(name="T", **sides)):
        assert list(take(measure, exported.run, embedder, catalogue, root)) == []
    (tmp_path / "products.jsonl").write_text('{"product_id": "a", "split": "train", "title": "red mug"}\n')
    ranking = Ranking(name="T", **sides)
    asked = Table(name="t", title="T", products="products.jsonl", variants=(), measures=(ranking,), baselines=("text",))
    assert measure_baselines(asked, tmp_path, tmp_path) == []


def test_a_label_that_no_query_has_costs_the_others_nothing(
    exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    root = exported.run.folder.parent / "data"
    catalogue = read_catalogue(root / "products.jsonl")
    embedder = OfflineEmbedder(exported.run, catalogue)
    both = replace(RANKING, labels=("nobody has it", "group"))
    alone, beside = (list(take(one, exported.run, embedder, catalogue, root)) for one in (RANKING, both))
    assert alone == beside != []
    assert list(take(replace(both, labels=both.labels[:1]), exported.run, embedder, catalogue, root)) == []
    assert "T: nothing is measured by nobody has it, which no query has" in caplog.text


def test_only_the_signatures_that_are_there_are_measured(exported: Exported) -> None:
    root = exported.run.folder.parent / "data"
    catalogue = read_catalogue(root / exported.recipe.data.products)
    embedder = OfflineEmbedder(exported.run, catalogue)
    task = Task(labels=("group",), queries=("train",), gallery=("train",))
    every = {row.signature: row for row in evaluate(embedder, catalogue, exported.recipe.modalities(), task)}
    embedder.signatures = ["image"]
    found = {row.signature: row for row in evaluate(embedder, catalogue, exported.recipe.modalities(), task)}
    assert list(found) == ["image", AS_THEY_ARE]
    assert found["image"] == every["image"]  # by complete products, though nothing embeds them as a whole
    assert found["image"].figures.queries > 0


def test_by_its_own_id_one_modality_of_a_product_asks_for_another(exported: Exported) -> None:
    catalogue = read_catalogue(exported.run.folder.parent / "data" / "products.jsonl")
    embedder = OfflineEmbedder(exported.run, catalogue)
    task = Task(labels=("product_id", "group"), queries=("train",), gallery=("train",))
    rows = list(evaluate(embedder, catalogue, exported.recipe.modalities(), task))
    found = {row.signature: row.figures for row in rows if row.label == "product_id"}
    assert list(found) == ["image -> attributes", "attributes -> image"]
    assert {row.signature for row in rows if row.label == "group"} == {*embedder.signatures, AS_THEY_ARE}
    whole = embedder.present.all(1)
    photos, kinds = (embedder.embed([name])[whole] for name in ("image", "attributes"))
    for name, scores in (("image -> attributes", photos @ kinds.T), ("attributes -> image", kinds @ photos.T)):
        own = np.diag(scores)[:, None]
        best, worst = (scores > own).sum(1), (scores >= own).sum(1) - 1  # equal attributes are ties
        assert found[name].queries == whole.sum()
        assert (worst < 5).mean() <= found[name].recall_at[5] <= (best < 5).mean()
        assert 0 < found[name].recall_at[5] < 1


def test_modalities_that_have_no_number_in_common_are_not_ranked(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with late fusion, where each tower has a part of the embedding for itself: all cosines would be 0."""
    catalogue = read_catalogue(exported.run.folder.parent / "data" / "products.jsonl")
    embedder = OfflineEmbedder(exported.run, catalogue)
    parts = {"image": [1.0, 0.0], "attributes": [0.0, 1.0]}
    apart = {name: np.tile(np.array(part, np.float32), (len(catalogue), 1)) for name, part in parts.items()}
    monkeypatch.setattr(embedder, "embed", lambda names: sum(apart[name] for name in names))
    task = Task(labels=("product_id",), queries=("train",), gallery=("train",))
    assert list(evaluate(embedder, catalogue, exported.recipe.modalities(), task)) == []
    assert "measured by product_id: it asks for a product by another modality" in caplog.text


def test_a_label_by_which_nothing_can_be_measured_is_named(
    exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = read_catalogue(exported.run.folder.parent / "data" / "products.jsonl")
    embedder = OfflineEmbedder(exported.run, catalogue)
    task = Task(labels=("group", "serial"), queries=("train",), gallery=("train",))
    list(evaluate(embedder, catalogue, exported.recipe.modalities(), task))
    assert "nothing was measured by serial: no query" in caplog.text
    assert "measured by group" not in caplog.text


def test_a_label_that_is_named_twice_is_measured_once(exported: Exported) -> None:
    assert labels_to_judge_by(exported.run, ["group", "kind", "group"]) == ("group", "kind")


def test_what_cannot_be_read_is_refused_as_the_server_does_it(exported: Exported) -> None:
    root = exported.run.folder.parent / "data"
    catalogue = read_catalogue(root / "products.jsonl")
    products = list(catalogue.products)
    place = next(row for row, product in enumerate(products) if product.attributes and product.images)
    products[place] = replace(products[place], images=(b"no photo",))
    damaged = replace(catalogue, products=tuple(products))
    before, after = OfflineEmbedder(exported.run, catalogue), OfflineEmbedder(exported.run, damaged)
    assert after.present[place].all()
    for modalities, lost in ((["image"], [place]), (["attributes"], []), (["image", "attributes"], [place])):
        missing = [np.isnan(embedder.embed(modalities)).any(1) for embedder in (before, after)]
        assert np.flatnonzero(missing[0] != missing[1]).tolist() == lost
    searched = Incomplete(name="T", labels=("group",), queries=("train",), gallery=("train",))
    for measure in (RANKING, searched):  # every signature is measured on the same products, without the damaged one
        counts = []
        for embedder, shown in ((before, catalogue), (after, damaged)):
            lines = take(measure, exported.run, embedder, shown, root)
            counts.append({line.count for line in lines if line.what != AS_THEY_ARE})
        assert [len(found) for found in counts] == [1, 1]
        assert max(counts[1]) < max(counts[0])


def test_a_server_of_another_space_is_not_measured_under_the_run_s_name() -> None:
    client: Any = SimpleNamespace(info=lambda: SimpleNamespace(space="s"), address="here:8001")
    said = "here:8001 serves the space s, not the run's t: .*another version of Likeness"
    with pytest.raises(SpaceMismatchError, match=said):
        ServedEmbedder(client, Catalogue(products=(), records=()), "t")


def test_what_a_server_refuses_is_named(caplog: pytest.LogCaptureFixture) -> None:
    products = (Product(product_id="a", title="a"), Product(product_id="b", images=(b"no photo",)), Product())
    answer = Embeddings(
        vectors=np.array([[1, 0], [np.nan, np.nan], [np.nan, np.nan]], np.float32),
        modality_weights=({},) * 3,
        signatures=("text", "", ""),
        product_ids=("a", "b", ""),
        space="s",
        errors={1: ProductError("damaged", "b", "image", 1), 2: ProductError("has none of text, image", index=2)},
    )
    info = SimpleNamespace(space="s", signatures=("text",), schema=InputSchema(), modalities=("text", "image"))
    client: Any = SimpleNamespace(info=lambda: info, embed=lambda *_, **__: answer)
    embedder = ServedEmbedder(client, Catalogue(products=products, records=({},) * 3), "s")
    caplog.clear()
    embedder.embed(["text"])
    assert caplog.text == ""
    embedder.embed(["text", "image"])
    assert [record.getMessage() for record in caplog.records] == ["left out: product 1 ('b'), image: damaged"]


def test_of_much_that_a_server_refuses_the_first_is_named(caplog: pytest.LogCaptureFixture) -> None:
    names = tuple(f"p{place}" for place in range(40))
    answer = Embeddings(
        vectors=np.full((40, 2), np.nan, np.float32),
        modality_weights=({},) * 40,
        signatures=("",) * 40,
        product_ids=names,
        space="s",
        errors={place: ProductError("damaged", name, "text", place) for place, name in enumerate(names)},
    )
    info = SimpleNamespace(space="s", signatures=("text",), schema=InputSchema(), modalities=("text",))
    client: Any = SimpleNamespace(info=lambda: info, embed=lambda *_, **__: answer)
    products = tuple(Product(product_id=name, title="a") for name in names)
    ServedEmbedder(client, Catalogue(products=products, records=({},) * 40), "s").embed(["text"])
    messages = [record.getMessage() for record in caplog.records]
    assert messages[9:] == ["left out: product 9 ('p9'), text: damaged", "left out: 30 more products"]
