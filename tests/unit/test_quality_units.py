"""Units of work: trained, measured and kept, and not done twice."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from likeness_client import InputError
from likeness_client.writing import write_text
from likeness_export.cli import app
from likeness_export.evaluation.evaluate import AS_THEY_ARE
from likeness_export.products.catalogue import read_catalogue
from likeness_export.quality.costs import Cost
from likeness_export.quality.kinds import PairSets, Ranking, Table, Variant, Views
from likeness_export.quality.lines import Line
from likeness_export.quality.needed import check_split, needed_products
from likeness_export.quality.running import Plan
from likeness_export.quality.trained import train_and_measure
from likeness_export.quality.units import read_finished, units_of, work_on
from likeness_export.run import Run
from PIL import Image
from typer.testing import CliRunner

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

RANKING = Ranking(name="T", labels=("group",), queries=("train",), gallery=("train",))


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


def test_each_seed_holds_out_another_share_of_the_pairs(table: Table, tmp_path: Path) -> None:
    matching = replace(table, variants=(Variant(name="pairs", recipe="matching"),))
    recipes = [unit.recipe() for unit in units_of(matching, range(7), [], tmp_path, tmp_path)]
    assert [recipe and (recipe.seed, recipe.data.fold) for recipe in recipes] == [*enumerate([0, 1, 2, 3, 4, 0, 1])]


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
    monkeypatch.setattr("likeness_export.training.train.Trainer", lambda *_: pytest.fail("trained again"))
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
    (unit.folder / "trained_on.sha256").unlink()  # as in a folder that knows it from the run alone
    with pytest.raises(InputError, match=r"was trained on other data than products\.jsonl holds now"):
        work_on(unit)


def test_what_is_trained_is_measured_on_a_split_that_came_later(
    table: Table, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unit,) = units_of(table, [3], [], tmp_path / "work", tiny.root)
    work_on(unit)
    lines = tiny.products.read_text(encoding="utf-8").splitlines()
    later = [{**json.loads(line), "product_id": f"later {place}", "split": "test"} for place, line in enumerate(lines)]
    write_text(tiny.products, "\n".join([*lines, *map(json.dumps, later)]))
    sheet = Ranking(name="sheet", labels=("product_id",), queries=("test",), gallery=("test",))  # nothing to draw
    of_test = replace(unit, table=replace(table, measures=(replace(RANKING, queries=("test",)),), sheet=sheet))
    monkeypatch.setattr("likeness_export.training.train.Trainer", lambda *_: pytest.fail("trained again"))
    work_on(of_test)
    assert read_finished(of_test)
    assert not (unit.folder / "sheet.png").exists()
    # One of them is trained on now.
    write_text(
        tiny.products, "\n".join([*lines, json.dumps({**later[0], "split": "train"}), *map(json.dumps, later[1:])])
    )
    with pytest.raises(InputError, match=r"was trained on other data than products\.jsonl holds now"):
        work_on(of_test)
    assert "was trained on other data" in (unit.folder / "unit.log").read_text(encoding="utf-8")


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
    monkeypatch.setattr("likeness_export.training.train.Trainer", lambda *_: pytest.fail("trained once more"))
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


def test_a_split_that_is_not_there_is_refused_before_training(table: Table, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="no product has split later; there are: train"):
        train_and_measure(
            replace(table, measures=(RANKING, Views(name="V").on("later"))), tiny.recipe, folder, tiny.root
        )
    assert not folder.exists()


def test_a_split_of_pairs_need_not_have_products_of_its_own(table: Table, tiny: Tiny, tmp_path: Path) -> None:
    measure = PairSets(name="T11", search="T12", pairs="pairs.csv")
    products = read_catalogue(tiny.products)
    lines = tiny.products.read_text(encoding="utf-8")
    write_text(tiny.products, lines + json.dumps({"product_id": "new", "split": "later"}) + "\n")
    write_text(tiny.root / "pairs.csv", f"left_id,right_id,label,split\n{products.ids[0]},{products.ids[1]},1,test\n")
    every = read_catalogue(tiny.products)
    assert needed_products(replace(table, measures=(measure.on("test"),)), every, tiny.root).ids == products.ids
    later = replace(table, measures=(measure.on("later"),))
    with pytest.raises(InputError, match=r"pairs\.csv: no pair of known products has split later"):
        train_and_measure(later, tiny.recipe, tmp_path / "run", tiny.root)
    assert not (tmp_path / "run").exists()


def test_the_split_to_measure_is_there_in_some_table_and_no_variant_trains_on_it(table: Table, tiny: Tiny) -> None:
    lines = tiny.products.read_text(encoding="utf-8")
    write_text(tiny.products, lines + json.dumps({"product_id": "new", "split": "val"}) + "\n")
    one, elsewhere = replace(table, measures=(Views(name="V"),)), replace(table, name="elsewhere", products="no.jsonl")
    check_split([elsewhere, one], tiny.root)  # of tables whose data is not there the others are made
    with pytest.raises(InputError, match=r"there is nothing to measure: elsewhere: cannot read .*no\.jsonl"):
        check_split([elsewhere], tiny.root)
    more = replace(table.variants[0], name="more", overrides=('data.train_splits=["train", "val"]',))
    with pytest.raises(InputError, match="table tiny trains on split 'val': measure another with --split"):
        check_split([replace(one, variants=(*one.variants, more))], tiny.root)


def test_a_folder_of_another_recipe_is_refused(table: Table, tiny: Tiny, tmp_path: Path) -> None:
    train_and_measure(table, tiny.recipe, tmp_path / "run", tiny.root)
    other = tiny.recipe.model_copy(update={"seed": 8})
    with pytest.raises(InputError, match="holds a run of another recipe"):
        train_and_measure(table, other, tmp_path / "run", tiny.root)


# Commands


def test_without_a_command_the_commands_are_shown() -> None:
    assert "sheet" in CliRunner().invoke(app, ["quality"]).output


def test_an_unknown_table_names_the_known_ones() -> None:
    answer = CliRunner().invoke(app, ["quality", "run", "shoes"])
    assert isinstance(answer.exception, InputError)
    assert (
        "there is no table shoes; there are: grocery, fashion, flipkart, luma, matching, clips, shoppers, all"
        in str(answer.exception)
    )


def test_the_command_makes_tables_of_the_split_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Plan] = []

    def ask(plan: Plan) -> dict[str, str]:
        asked.append(plan)
        return {}

    lines = [json.dumps({"product_id": split, "split": split}) for split in ("train", "val", "test")]
    write_text(tmp_path / "luma" / "products.jsonl", "\n".join(lines))
    monkeypatch.setattr("likeness_export.quality.running.run_tables", ask)
    for more, name in ((["--split", "test"], "luma-test"), ([], "luma")):
        answer = CliRunner().invoke(
            app, ["quality", "run", "luma", "--data-root", str(tmp_path), "--out", str(tmp_path), *more]
        )
        assert answer.output.endswith(f"written: {tmp_path / name}.md\n")
    assert [table.split for plan in asked for table in plan.tables] == ["test", "val"]
    for split, fault in (
        ("tset", "there is nothing to measure: luma: no product has split tset; there are: test, train, val"),
        ("train", "table luma trains on split 'train': measure another with --split"),
    ):
        answer = CliRunner().invoke(app, ["quality", "run", "luma", "--data-root", str(tmp_path), "--split", split])
        assert str(answer.exception) == fault
    assert len(asked) == 2


def test_a_folder_without_any_of_the_data_is_refused_at_once(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["quality", "run", "luma", "fashion", "--data-root", str(tmp_path)])
    assert isinstance(answer.exception, InputError)
    for name in ("luma", "fashion"):
        assert f"{name}: cannot read {tmp_path}/{name}/products.jsonl: there is no such file" in str(answer.exception)
