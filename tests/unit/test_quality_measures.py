"""What is measured of a trained run, and of untrained baselines."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from likeness_client import Embeddings, InputError, InputSchema, Product, ProductError
from likeness_export.catalogue import Catalogue, read_catalogue
from likeness_export.cli import app
from likeness_export.contact_sheet import card_of, draw_rows
from likeness_export.evaluation import AS_THEY_ARE, OfflineEmbedder, ServedEmbedder, Task, complete, evaluate
from likeness_export.metrics import retrieval
from likeness_export.named_pairs import NamedPair, without_repeats
from likeness_export.quality.baselines import _Source, measure_baselines, standardised
from likeness_export.quality.costs import Cost
from likeness_export.quality.kinds import Incomplete, PairSets, Ranking, Table, Variant, Views
from likeness_export.quality.lines import Line
from likeness_export.quality.pair_sets import (
    Scorer,
    decide,
    familiarity,
    find,
    measure_pair_sets,
    trained_scores,
)
from likeness_export.quality.tables import BACKBONES, TABLES
from likeness_export.quality.trained import take, train_and_measure, views_of
from likeness_export.quality.units import read_finished, units_of, work_on
from likeness_export.run import Run
from likeness_export.uses.neighbourhood import Rows
from numpy.typing import NDArray
from PIL import ExifTags, Image
from typer.testing import CliRunner

if TYPE_CHECKING:
    from tests.unit.conftest import Exported, Tiny


DATA = Path(os.environ.get("LIKENESS_DATA") or Path(__file__).parents[3] / "shared" / "data")
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


def test_pairs_of_unseen_products_have_a_figure_of_their_own_where_there_are_enough() -> None:
    train = [pair("a", "b"), pair("a", "c", 0)]
    unseen = [pair(f"left {number}", f"right {number}") for number in range(30)]
    seen = [pair("b", "c", 0)]
    names = [name for one in (*train, *unseen, *seen) for name in (one.left, one.right)]
    place = {name: row for row, name in enumerate(dict.fromkeys(names))}
    alike = {(place[one.left], place[one.right]) for one in (train[0], *unseen[:15])}

    def features(left: Rows, right: Rows) -> NDArray[np.float32]:
        return np.array([[both in alike] for both in zip(left.tolist(), right.tolist(), strict=True)], np.float32)

    found, _ = decide(train, [(train, features)], ([*unseen, *seen], features), place)
    assert found["F1 neither"] == pytest.approx(2 / 3)  # half of them are found
    assert "F1 both" not in found  # of one pair
    assert "F1 either" not in found  # of none


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
    vectors[0] = np.nan  # without an embedding nothing is found
    assert find(measured, search, row_of, members, none) == ({"R@1": 0.0, "R@10": 1.0}, 1)


def test_sets_are_measured_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(
        "left_id,right_id,label,split\na,b,1,train\na,c,0,train\nc,d,1,val\nd,a,0,val\n"
        "e,f,1,train\ne,g,0,train\ng,h,1,val\nnowhere,h,1,val\n",
        encoding="utf-8",
    )
    products = tuple(Product(product_id=name) for name in "abcdefgh")
    records = tuple({"product_id": name, "coarse_label": "one" if name < "e" else "two"} for name in "abcdefgh")
    catalogue = Catalogue(products=products, records=records)
    twins = np.arange(8) // 2

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


def test_the_learned_metric_scores_pairs(exported: Exported) -> None:
    _, network = exported.run.read_network()
    vectors = np.eye(4, 16, dtype=np.float32)
    scorers = trained_scores(vectors, network)
    left, right = np.array([0, 0]), np.array([0, 1])
    np.testing.assert_allclose(scorers["cosine"].pairs(left, right), [1, 0])
    learned = scorers["learned"].pairs(left, right)
    assert learned[0] > learned[1]


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
    sides: dict[str, tuple[str, ...]] = {"labels": ("product_id",), "queries": ("train",), "gallery": ("train",)}
    for measure in (Ranking(name="T", **sides), Incomplete(name="T", **sides)):
        assert list(take(measure, exported.run, embedder, catalogue, root)) == []
    (tmp_path / "products.jsonl").write_text('{"product_id": "a", "split": "train", "title": "red mug"}\n')
    ranking = Ranking(name="T", **sides)
    asked = Table(name="t", title="T", products="products.jsonl", variants=(), measures=(ranking,), baselines=("text",))
    assert measure_baselines(asked, tmp_path, tmp_path) == []


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


# Whole units


@pytest.fixture
def table(tiny: Tiny, tmp_path: Path) -> Table:
    """A table of the tiny catalogue; its recipe is a file."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\ndimension = 16\n[data]\nproducts = "products.jsonl"\nlabels = ["group"]\n'
        '[towers.image]\nencoder = "small_cnn"\nimage_px = 32\nwidth = 8\n'
        '[towers.attributes]\nencoder = "one_hot"\nkeys = ["kind", "colour"]\n'
        "[training]\nepochs = 2\ngroups_per_batch = 6\ngroup_size = 2\n",
        encoding="utf-8",
    )
    assert tiny.products.is_file()
    return Table(
        name="tiny",
        title="Tiny",
        products="products.jsonl",
        variants=(Variant(name="one", recipe=str(recipe)),),
        measures=(RANKING,),
        sheet=RANKING,
    )


def test_a_unit_is_trained_measured_and_kept(
    table: Table, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unit,) = units_of(table, [3], [], tmp_path / "work", tiny.root)
    assert read_finished(unit) is None
    with pytest.raises(InputError):
        work_on(replace(unit, data_root=tmp_path / "nowhere"))  # nothing is trained there, so nothing stands in the way
    work_on(unit)
    found = read_finished(unit)
    assert found is not None
    assert [line.what for line in found.lines] == ["image", "attributes", "image_attributes", AS_THEY_ARE]
    assert found.recipe["seed"] == 3
    assert found.cost["parameters"] == found.cost["trained_parameters"] > 0
    assert min(found.cost[name] for name in ("preparing_s", "epochs_s", "peak_mb", "product_ms", "threads")) > 0
    with Image.open(unit.folder / "sheet.png") as sheet:
        assert sheet.size[0] > 1000
    # Nothing is trained or measured twice; lost figures are measured again without training.
    monkeypatch.setattr("likeness_export.quality.trained.take", lambda *_: pytest.fail("measured again"))
    work_on(unit)
    monkeypatch.undo()
    (unit.folder / "figures.json").unlink()
    monkeypatch.setattr("likeness_export.training._Trainer", lambda *_: pytest.fail("trained again"))
    work_on(unit)
    again = read_finished(unit)
    assert again is not None
    assert [again.cost[name] for name in ("preparing_s", "peak_mb")] == [
        found.cost[name] for name in ("preparing_s", "peak_mb")
    ]
    monkeypatch.undo()
    tiny.products.write_text(tiny.products.read_text(encoding="utf-8").replace("kind 0", "kind 9"), encoding="utf-8")
    assert read_finished(unit) is None
    (unit.folder / "figures.json").unlink()  # as if measuring had been interrupted
    with pytest.raises(InputError, match=r"was trained on other data than products\.jsonl holds now"):
        work_on(unit)


def test_joined_seeds_are_a_unit_that_trains_nothing(
    table: Table, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = replace(table.variants[0], overrides=("fusion.kind=late",), joined=True)
    table = replace(table, variants=(variant,))
    assert [unit.name for unit in units_of(table, [3], [], tmp_path, tiny.root)] == ["tiny/one/seed-3"]
    *trained, joined = units_of(table, [3, 4], [], tmp_path / "work", tiny.root)
    assert joined.name == "tiny/one-joined/seeds-3-4"
    with pytest.raises(InputError, match="seed-3 is not a run"):
        work_on(joined)
    for unit in trained:
        work_on(unit)
    monkeypatch.setattr("likeness_export.training._Trainer", lambda *_: pytest.fail("trained once more"))
    features = {path.name for path in Run(trained[0].folder).features.iterdir()}
    work_on(joined)
    assert {path.name for path in Run(joined.folder).features.iterdir()} == features  # nothing is encoded again
    found, parts = read_finished(joined), [read_finished(unit) for unit in trained]
    assert found
    assert list(found.recipe["towers"]) == ["image1", "attributes1", "image2", "attributes2"]
    costs = [part.cost for part in parts if part]
    assert found.cost["epochs_s"] == pytest.approx(sum(cost["epochs_s"] for cost in costs), abs=0.02)
    assert found.cost["peak_mb"] == max(cost["peak_mb"] for cost in costs)
    assert found.cost["parameters"] > 2 * costs[0]["parameters"]
    # Other parts make another unit, and so does a part that has been trained anew; one that is gone has not.
    assert read_finished(replace(joined, parts=(joined.parts[0], replace(joined.parts[1], seed=5)))) is None
    part = Run(trained[1].folder)
    recipe, network = part.read_network()
    next(iter(network.parameters())).data += 1
    part.write_weights(network)
    assert read_finished(joined) is None
    work_on(joined)
    assert read_finished(joined)
    part.weights.unlink()
    assert read_finished(joined)
    part.write_weights(network)
    part.write_recipe(recipe.model_copy(update={"seed": 5}))
    (joined.folder / "figures.json").unlink()
    with pytest.raises(InputError, match=r"seeds-3-4 cannot be joined: .*seed-4 holds .* another recipe.*remove that"):
        work_on(joined)


@pytest.mark.parametrize("changed", ["products", "recipe"])
def test_figures_of_what_changed_meanwhile_are_not_kept(
    table: Table, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    (unit,) = units_of(table, [3], [], tmp_path / "work", tiny.root)
    place = {"products": tiny.products, "recipe": Path(table.variants[0].recipe)}[changed]
    before = place.read_text(encoding="utf-8")
    edited = {
        "products": before.replace("kind 0", "kind 9"),
        "recipe": re.sub(r"(?m)^dimension = .*$", "dimension = 24", before),
    }[changed]
    assert edited != before

    def measure_and_edit(*_: object) -> tuple[list[Line], Cost]:
        place.write_text(edited, encoding="utf-8")
        return [], Cost()

    monkeypatch.setattr("likeness_export.quality.trained.train_and_measure", measure_and_edit)
    with pytest.raises(InputError, match=r"tiny/one/seed-3: .* changed while .* undo the change, or remove .*seed-3"):
        work_on(unit)
    assert "undo the change" in (unit.folder / "unit.log").read_text(encoding="utf-8")
    for text in (edited, before):
        place.write_text(text, encoding="utf-8")
        assert read_finished(unit) is None


def test_a_folder_of_another_recipe_is_refused(table: Table, tiny: Tiny, tmp_path: Path) -> None:
    train_and_measure(table, tiny.recipe, tmp_path / "run", tiny.root)
    other = tiny.recipe.model_copy(update={"seed": 8})
    with pytest.raises(InputError, match="holds a run of another recipe"):
        train_and_measure(table, other, tmp_path / "run", tiny.root)


# Commands


def test_an_unknown_table_names_the_known_ones() -> None:
    answer = CliRunner().invoke(app, ["quality", "run", "shoes"])
    assert isinstance(answer.exception, InputError)
    assert (
        "there is no table shoes; there are: grocery, fashion, flipkart, luma, matching, clips, shoppers, all"
        in str(answer.exception)
    )


def test_a_sheet_bears_titles_of_any_length_and_several_lines(tmp_path: Path) -> None:
    title = "a vase\nwith two\r\nlines " + 5_000 * "and more "
    card = card_of(Product(title=title, images=(tmp_path / "gone.jpg",)), "same\ngroup", right=True)
    draw_rows([[card, card]], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] < 600


def test_a_sheet_frames_what_is_right_green_and_what_is_wrong_red(tmp_path: Path) -> None:
    draw_rows([[card_of(Product(title="a"), "", right=right) for right in (None, True, False)]], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        middles = np.asarray(sheet)[14, [left + 105 for left in (14, 252, 476)]]
    assert middles.argmax(1).tolist() == [2, 1, 0]  # blue, green, red


def test_a_sheet_shows_photos_as_networks_see_them(tmp_path: Path) -> None:
    """Upright, and what is transparent on white."""
    sideways, clear = Image.new("RGB", (40, 80), "red"), Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    sideways.paste("blue", (0, 40, 40, 80))
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6  # what is below stands on the left when upright
    sideways.save(tmp_path / "sideways.jpg", exif=orientation)
    clear.save(tmp_path / "clear.png")
    cards = [card_of(Product(images=(tmp_path / name,)), "", right=True) for name in ("sideways.jpg", "clear.png")]
    draw_rows([cards], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    (left, top), photo = (14 + (210 - 160) // 2, 14 + 10), 160
    assert (pixels[top + photo // 2, [left + 20, left + photo - 20]].argmax(1) == [2, 0]).all()
    assert pixels[top + photo // 2, left + photo // 2 + 210 + 28].min() == 255


def test_a_sheet_of_a_run(exported: Exported, tmp_path: Path) -> None:
    root = str(exported.run.folder.parent / "data")
    command = ["quality", "sheet", str(exported.run.folder), "--data-root", root, "--split", "train", "--rows", "1"]
    out = tmp_path / "sheet.png"
    answer = CliRunner().invoke(app, [*command, "--label", "group", "--out", str(out)])
    assert answer.exit_code == 0, answer.exception
    assert answer.output == f"drawn: {out}\n"
    with Image.open(out) as sheet:
        assert sheet.size[1] <= 2 * 260
    answer = CliRunner().invoke(app, [*command, "--signature", "text"])
    assert "has no signature text; there are: image, attributes, image_attributes" in str(answer.exception)
    out.unlink()
    for label, reason in (
        ("nolabel", "no product of split train has the label"),
        ("product_id", "no query has another"),
    ):
        answer = CliRunner().invoke(app, [*command, "--label", label, "--out", str(out)])
        assert reason in str(answer.exception)
    assert not out.exists()


# Baselines


def test_similarities_are_standardised() -> None:
    found = standardised(np.array([[1.0, 2.0], [3.0, 6.0]]))
    assert found.mean() == pytest.approx(0)
    assert found.std() == pytest.approx(1)


def test_text_baseline_ranks_by_shared_characters(tmp_path: Path) -> None:
    (tmp_path / "products.jsonl").write_text(
        "".join(
            f'{{"product_id": "{place}", "split": "val", "group": "{group}", "title": "{title}"}}\n'
            for place, (group, title) in enumerate(
                [("a", "red shirt"), ("b", "blue trousers"), ("a", "dark red shirts"), ("b", "trouser in blue")]
            )
        ),
        encoding="utf-8",
    )
    table = Table(
        name="t",
        title="T",
        products="products.jsonl",
        variants=(),
        measures=(Ranking(name="T", labels=("group",)), Views(name="views", splits=("val",))),
        baselines=("text", "masked text"),
        masked=("title",),
    )
    with pytest.raises(InputError, match="without a single word"):
        measure_baselines(table, tmp_path, tmp_path)
    (line,) = measure_baselines(Table(**{**vars(table), "baselines": ("text",)}), tmp_path, tmp_path)
    assert (line.what, line.count, line.figures["hit@1"]) == ("text", 4, 1.0)


def test_a_baseline_leaves_the_query_out_of_a_gallery_of_several_splits(tmp_path: Path) -> None:
    lines = [("b", "train", "red shirt"), ("a", "train", "green bag"), ("a", "val", "red shirt")]
    (tmp_path / "products.jsonl").write_text(
        "".join(
            f'{{"product_id": "{place}", "group": "{group}", "split": "{split}", "title": "{title}"}}\n'
            for place, (group, split, title) in enumerate(lines)
        )
    )
    ranking = Ranking(name="T", labels=("group",), gallery=("train", "val"))
    table = Table(name="t", title="T", products="products.jsonl", variants=(), measures=(ranking,), baselines=("text",))
    (line,) = measure_baselines(table, tmp_path, tmp_path)
    assert (line.count, line.figures["hit@1"]) == (1, 0.0)  # the same text, of another group, comes first


def test_similarities_of_one_scale_each_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of photos differ by little, and are heard all the same."""
    (tmp_path / "products.jsonl").write_text(
        '{"group": "a", "split": "val"}\n{"group": "a", "split": "train"}\n' + 3 * '{"group": "b", "split": "train"}\n'
    )
    known = {"text": [1.0, 0.0, 0.5, 0.0, 0.5], "v2": [1.0, 0.53, 0.5, 0.5, 0.5]}
    monkeypatch.setattr(_Source, "features", lambda _, part, products: np.array(known[part])[: len(products), None])
    ranking = Ranking(name="T", labels=("group",), gallery=("train",))
    names = ("text", "text+v2")
    table = Table(name="t", title="T", products="products.jsonl", variants=(), measures=(ranking,), baselines=names)
    found = {line.what: line.figures["hit@1"] for line in measure_baselines(table, tmp_path, tmp_path)}
    assert found == {"text": 0.0, "text+v2": 1.0}


def test_a_photo_that_is_not_there_costs_the_baselines_itself_only(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny.root / "images" / "0-1.png").unlink()
    given: list[Path | None] = []

    def counted(photos: Sequence[Path | None], *_: object) -> NDArray[np.float32]:
        given.extend(photos)
        return np.eye(len(photos), dtype=np.float32)

    monkeypatch.setattr("likeness_export.quality.baselines.pooled", counted)
    products = read_catalogue(tiny.products).products
    _Source(tiny.root, tmp_path).features(next(iter(BACKBONES)), products)
    lacking = [product.product_id for product, photo in zip(products, given, strict=True) if photo is None]
    assert "0-1" in lacking
    assert len(lacking) == 1 + sum(not product.images for product in products)
    assert "0-1.png" in caplog.text


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no product data at {DATA}: set LIKENESS_DATA to its folder")
def test_the_text_baseline_of_real_pairs_is_the_published_one(tmp_path: Path) -> None:
    table = next(table for table in TABLES if table.name == "matching")
    lines = [line for line in measure_baselines(table, DATA, tmp_path) if line.what == "text"]
    found = {(line.task, line.label): line.figures for line in lines}
    # Published with the threshold that is best on the train pairs; calibrated it comes to 0.719.
    assert found["T11", "abt-buy"]["F1"] == pytest.approx(0.710, abs=0.015)
    assert found["T12", "wdc-cameras"]["R@1"] == pytest.approx(0.182, abs=0.005)
