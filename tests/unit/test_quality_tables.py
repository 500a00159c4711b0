"""Declaration, aggregation and writing of quality tables, and going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from likeness_client.errors import InputError
from likeness_client.writing import write_text
from likeness_export.quality import running
from likeness_export.quality.bars import colours_of, draw_bars, panels_of
from likeness_export.quality.kept import kept_results
from likeness_export.quality.kinds import Ranking, Table, Variant
from likeness_export.quality.lines import Line, over_seeds, spread
from likeness_export.quality.report import UNTRAINED, TableResult, VariantResult, markdown, plain
from likeness_export.quality.running import Plan, run_tables
from likeness_export.quality.tables import TABLES, tables_named, tables_with
from likeness_export.quality.units import Finished, Unit, read_finished, units_of
from likeness_export.quality.workers import Work
from likeness_export.recipe import BUILT_IN, load_recipe
from PIL import Image

TABLE = Table(
    name="small",
    title="A small table",
    products="products.jsonl",
    variants=(Variant(name="one", recipe="demo", what="as it is"), Variant(name="two", recipe="demo")),
    measures=(Ranking(name="T", labels=("group",)),),
    notes=("A note.",),
)


def line(hit: float, what: str = "text", task: str = "T", label: str = "group") -> Line:
    return Line(task=task, label=label, what=what, count=10, figures={"hit@1": hit})


def finished(*lines: Line) -> Finished:
    cost = {"parameters": 2_000_000, "epochs_s": 12.34, "peak_mb": None, "threads": 1, "cores": 2}
    return Finished(lines=lines, cost=cost, recipe={"name": "demo", "seed": 1}, digest="d")


def result(**changes: Any) -> TableResult:
    one, two = TABLE.variants
    variants = (
        VariantResult(variant=one, wanted=2, seeds={1: finished(line(0.5)), 2: finished(line(0.7))}, failed={}),
        VariantResult(variant=two, wanted=2, seeds={1: finished(line(0.4))}, failed={2: "went\nwrong"}),
    )
    return replace(TableResult(table=TABLE, seeds=(1, 2), variants=variants, baselines=(line(0.25, "v2"),)), **changes)


def empty(table: Table) -> TableResult:
    return TableResult(table=table, seeds=(), variants=())


# Declarations


def test_every_declared_recipe_and_override_can_be_read() -> None:
    for table in TABLES:
        for variant in table.variants:
            if (BUILT_IN / f"{variant.recipe}.toml").is_file():
                recipe = load_recipe(Path(variant.recipe), variant.overrides)
                assert recipe.data.products == table.products
            else:
                assert variant.joins


def test_tables_are_declared_of_one_split_and_can_be_made_of_another() -> None:
    for table in TABLES:
        assert table.on(table.split) == table
        other = table.on("test")
        assert (other.split, other.file_stem) == ("test", f"{table.name}-test")
        asked = {side for one in other.measures if isinstance(one, Ranking) for side in one.queries}
        assert asked <= {"test"}
        assert other.sheet is None or set(other.sheet.queries) == {"test"}
        assert "test" in other.splits
        assert ("val" in other.splits) == (table.name == "matching")  # whose products may stand in pairs of both
        assert not any("val" in note.split() or "queries:" in note for note in plain(empty(other))["notes"])
    (measure,) = tables_named(["matching"])[0].on("test").measures
    assert measure.splits == ("train", "val", "test")


def test_json_says_which_split_was_measured() -> None:
    assert [plain(empty(table))["split"] for table in (TABLE, TABLE.on("test"))] == ["val", "test"]


def test_figures_of_another_split_lie_beside_the_others(plan: Plan) -> None:
    assert run_tables(plan, train) == {}
    before = (plan.out / "small.json").read_text(encoding="utf-8")
    assert run_tables(replace(plan, tables=[TABLE.on("test")]), train) == {}
    assert sorted(place.name for place in plan.out.iterdir()) == [
        f"small{split}.{kind}" for split in ("-test", "") for kind in ("json", "md", "png")
    ]
    assert (plan.out / "small.json").read_text(encoding="utf-8") == before
    assert "of the split `test`." in (plan.out / "small-test.md").read_text(encoding="utf-8")


def test_what_joins_others_has_their_joined_recipe(tmp_path: Path) -> None:
    found = {
        (table.name, variant.name): unit.recipe()
        for table in TABLES
        for variant in table.variants
        if variant.joins
        for unit in units_of(table, [1], [variant.name], tmp_path, tmp_path)[-1:]
    }
    recipe = found["matching", "walmart-amazon-and-model"]
    assert recipe is not None
    assert list(recipe.towers) == ["text", "terms", "model"]


def test_names_are_unique_and_can_be_folders() -> None:
    for table in TABLES:
        names = [table.name, *(variant.name for variant in table.variants)]
        assert len(set(names)) == len(names)
        assert all(name.replace("-", "").isalnum() for name in names)


def test_tables_are_found_by_name() -> None:
    assert [table.name for table in tables_named(["luma", "grocery", "luma"])] == ["luma", "grocery"]
    assert [table.name for table in tables_named(["all", "luma"])] == [t.name for t in TABLES if not t.rendered]
    with pytest.raises(InputError, match=r"there is no table shoes; there are: grocery, fashion, .*, all"):
        tables_named(["luma", "shoes"])


def test_variants_choose_their_tables() -> None:
    some = tables_named(["grocery", "fashion", "luma"])
    assert tables_with([], some) == some
    assert [table.name for table in tables_with(["frozen", "colour"], some)] == ["grocery", "luma"]
    with pytest.raises(
        InputError, match=r"grocery, fashion, luma: there is no variant finetunned; there are: .*finetuned"
    ):
        tables_with(["finetuned", "finetunned"], some)


# Aggregation


def test_mean_and_sample_deviation() -> None:
    found = spread([0.5, 0.7])
    assert (round(found.mean, 6), round(found.deviation or 0, 6), found.seeds) == (0.6, 0.141421, 2)
    assert str(found) == "0.600 ± 0.141"
    assert str(spread([0.25])) == "0.250"


def test_seeds_are_joined_line_by_line() -> None:
    extra = replace(line(0.7), figures={"hit@1": 0.7, "lost": 0.1})
    joined = over_seeds([[line(0.5), line(0.1, "image")], [line(0.3, "image"), extra]])
    assert [(found.what, str(found.figures["hit@1"])) for found in joined] == [
        ("text", "0.600 ± 0.141"),
        ("image", "0.200 ± 0.141"),
    ]
    assert (joined[0].figures["lost"].mean, joined[0].figures["lost"].seeds) == (0.1, 1)


# Files

GOLDEN = """\
# A small table

Mean ± standard deviation over seeds (3 of 4 runs finished); queries and pairs of the split `val`.

## T: `group`

| variant | by | n | hit@1 |
| --- | --- | --- | --- |
| untrained | v2 | 10 | 0.250 |
| one | text | 10 | **0.600 ± 0.141** |
| two | text | 10 | 0.400 (1 of 2 seeds) |

## Cost

| variant | parameters | trained | preparing, s | epochs, s | peak, MiB | ms per product | threads of cores |
| --- | --- | --- | --- | --- | --- | --- | --- |
| one | 2,000,000 | - | - | 12.3 | - | - | 1 of 2 |
| two | 2,000,000 | - | - | 12.3 | - | - | 1 of 2 |

## Variants

| variant | seeds | what | recipe |
| --- | --- | --- | --- |
| one | 2 of 2 | as it is | `demo` |
| two | 1 of 2 |  | `demo` |

## Failed

- two, seed 2: went wrong

## Notes

- A note.
"""


def test_markdown() -> None:
    assert markdown(result()) == GOLDEN


def test_a_figure_that_a_seed_lacks_is_marked_though_all_seeds_are_finished() -> None:
    both = replace(line(0.7), figures={"hit@1": 0.7, "lost": 0.1})
    seeds = {1: finished(line(0.5)), 2: finished(both)}
    (one, _) = result().variants
    text = markdown(result(variants=(replace(one, seeds=seeds),), baselines=()))
    assert "| one | text | 10 | **0.600 ± 0.141** | 0.100 (1 of 2 seeds) |" in text
    many = [tuple(replace(part, label=f"set {place}") for place in range(4)) for part in (line(0.5), both)]
    seeds = {place: finished(*lines) for place, lines in enumerate(many, 1)}
    text = markdown(result(variants=(replace(one, seeds=seeds),), baselines=()))
    assert "| `set 3` | one | text | 10 | **0.600 ± 0.141** | 0.100 (1 of 2 seeds) |" in text


def test_many_labels_share_a_table_and_have_a_panel_each() -> None:
    lines = tuple(line(0.1 * place, label=f"set {place}") for place in range(1, 5))
    found = result(baselines=lines, variants=())
    assert "## T\n" in markdown(replace(found, variants=result().variants[:1]))
    assert "| of | variant |" in markdown(replace(found, variants=result().variants[:1]))
    bars = panels_of(found)
    assert list(bars) == [(f"T: set {place}", "hit@1") for place in range(1, 5)]
    assert [(bar.place, bar.series) for bar in bars["T: set 1", "hit@1"]] == [("untrained", "untrained")]
    assert bars["T: set 1", "hit@1"][0].name == "text"


def test_json_holds_every_seed() -> None:
    found = json.loads(json.dumps(plain(result())))
    two = found["variants"]["two"]
    assert (two["failed"], list(two["seeds"]), two["recipe"]["seed"]) == ({"2": "went\nwrong"}, ["1"], None)
    assert found["variants"]["one"]["seeds"]["2"]["lines"][0]["figures"] == {"hit@1": 0.7}
    assert found["baselines"][0]["what"] == "v2"


def test_bars(tmp_path: Path) -> None:
    draw_bars(result(), tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.size[0] > 1000
    draw_bars(result(variants=(), baselines=()), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert [(bar.place, bar.series, bar.name) for bar in panels_of(result())["T: group", "hit@1"]] == [
        ("image", "untrained", "v2"),
        ("text", "one", ""),
        ("text", "two", ""),
    ]


def test_an_untrained_method_stands_beside_what_looks_at_the_same() -> None:
    methods = ("text", "masked text", "v2 (image)", "masked text+lite")
    bars = panels_of(result(baselines=[line(0.5, what=method) for method in methods], variants=()))
    assert [bar.place for bar in bars["T: group", "hit@1"]] == ["text", "text", "image", "text\nimage"]


def test_eighteen_variants_have_colours_of_their_own() -> None:
    names = [f"variant {place}" for place in range(18)]
    colours = colours_of([UNTRAINED, *names])
    assert len(set(colours.values())) == 19
    assert next(iter(colours)) == UNTRAINED
    assert UNTRAINED not in colours_of(names)


# Resumption


def pretend(unit: Unit) -> None:
    """Stand in for a training: counts its calls, and fails for the second variant's second seed."""
    write_text(unit.folder / f"call-{len(list(unit.folder.glob('call-*')))}", "")
    if unit.variant == TABLE.variants[1] and unit.seed == 2:
        raise InputError("no luck")
    recipe = unit.recipe()
    kept = {"key": unit.key(), "digest": "d", "recipe": {}, "lines": [asdict(line(0.5))], "cost": finished().cost}
    assert recipe is not None
    write_text(unit.folder / "figures.json", json.dumps(kept))


def one_by_one(units: list[Unit], work: Work[Unit], jobs: int) -> Iterator[tuple[Unit, str]]:
    """Stand in for the processes, which take their time to start."""
    assert jobs == 2
    for unit in units:
        try:
            work(unit)
            yield unit, ""
        except InputError as error:
            yield unit, str(error)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """What to run of the small table, one unit after the other."""
    monkeypatch.setattr(running, "side_by_side", one_by_one)
    return Plan(tables=[TABLE], seeds=[1, 2], data_root=tmp_path, work=tmp_path / "work", out=tmp_path / "out", jobs=2)


def test_joined_seeds_wait_for_all_trainings(plan: Plan) -> None:
    one = replace(TABLE.variants[0], overrides=('fusion={kind="late"}',), joined=True)
    two = replace(one, name="two", joined=False)
    table = replace(TABLE, variants=(one, two))
    plan = replace(plan, tables=[table])
    order: list[str] = []

    def note(unit: Unit) -> None:
        order.append(unit.name)
        pretend(unit)

    assert run_tables(plan, note) == {}
    assert order == [
        *("small/one/seed-1", "small/two/seed-1", "small/one/seed-2", "small/two/seed-2"),
        "small/one-joined/seeds-1-2",
    ]
    text = (plan.out / "small.md").read_text(encoding="utf-8")
    assert "all of 2 seeds" in text
    assert "| one-joined | 1 of 1 | the seeds of `one` joined" in text


def test_variants_that_are_joined_seed_by_seed(plan: Plan) -> None:
    one = replace(TABLE.variants[0], overrides=('fusion={kind="late"}',))
    both = Variant(name="both", joins=("one", "two"), joined=True)
    table = replace(TABLE, variants=(both, one, replace(one, name="two"), replace(one, name="three")))
    plan = replace(plan, tables=[table], only=["both"])
    order: list[str] = []

    def note(unit: Unit) -> None:
        order.append(unit.name)
        pretend(unit)

    assert run_tables(plan, note) == {}
    assert order == [
        *("small/one/seed-1", "small/two/seed-1", "small/one/seed-2", "small/two/seed-2"),
        *("small/both/seed-1", "small/both/seed-2", "small/both-joined/seeds-1-2"),
    ]
    last = units_of(table, plan.seeds, plan.only, plan.work, plan.data_root)[-1]
    assert [part.name for part in last.parts] == order[4:6]
    assert [one.name for one in last.trained] == order[:4]
    text = (plan.out / "small.md").read_text(encoding="utf-8")
    assert "| both | 2 of 2 |  | `likeness join` of one and two |" in text


def test_joined_seeds_are_done_again_when_one_has_changed_and_not_when_one_failed(plan: Plan) -> None:
    one = replace(TABLE.variants[0], overrides=('fusion={kind="late"}',), joined=True)
    table = replace(TABLE, variants=(one,))
    plan = replace(plan, tables=[table])
    hit = {"small/one/seed-1": 0.5, "small/one/seed-2": 0.5, "small/one-joined/seeds-1-2": 0.6}
    order: list[str] = []

    def train(unit: Unit) -> None:
        order.append(unit.name)
        if not hit[unit.name]:
            raise InputError("no luck")
        if not unit.parts:
            write_text(unit.folder / "weights.pt", str(hit[unit.name]))
        recipe = unit.recipe()
        assert recipe is not None
        kept = {"key": unit.key(), "weights": unit.weights(), "cost": finished().cost, "digest": recipe.digest()}
        lines = [asdict(line(hit[unit.name]))]
        write_text(
            unit.folder / "figures.json", json.dumps({**kept, "recipe": recipe.model_dump(mode="json"), "lines": lines})
        )

    def shown() -> list[str]:
        held = json.loads((plan.out / "small.json").read_text(encoding="utf-8"))["variants"]
        return [f"{name} {line['figures']['hit@1']['mean']}" for name in held for line in held[name]["over_seeds"]]

    assert run_tables(plan, train) == {}
    first, second, joined = order
    assert shown() == ["one 0.5", "one-joined 0.6"]
    # Trained again with the same outcome: what was joined of it stays.
    (plan.work / second / "figures.json").unlink()
    assert run_tables(plan, train) == {}
    assert order[3:] == [second]
    assert shown() == ["one 0.5", "one-joined 0.6"]
    # With another one: the figures of what was joined before are of runs that are no more.
    hit[second], hit[joined] = 0.75, 0.0
    (plan.work / second / "figures.json").unlink()
    assert run_tables(plan, train) == {joined: "no luck"}
    assert order[4:] == [second, joined]
    assert shown() == ["one 0.625"]
    # Not even tried without one of them.
    hit[second] = 0.0
    (plan.work / second / "figures.json").unlink()
    assert run_tables(plan, train) == {
        second: "no luck",
        joined: f"not joined, because {second} failed; it will be when that is finished",
    }
    assert order[6:] == [second]
    assert first not in order[1:]


@pytest.mark.parametrize("jobs", [1, 2])
def test_side_by_side_the_longest_come_first_of_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    order: list[str] = []

    def note(units: list[Unit], _work: Work[Unit], _jobs: int) -> Iterator[tuple[Unit, str]]:
        order.extend(unit.name for unit in units)
        return iter(())

    monkeypatch.setattr(running, "side_by_side", note)
    new = replace(TABLE.variants[0], name="new")
    table = replace(TABLE, variants=(*TABLE.variants, new))
    work, out = tmp_path / "work", tmp_path / "out"
    plan = Plan(tables=[table], seeds=[1, 2], data_root=tmp_path, work=work, out=out, jobs=jobs)
    seconds: dict[str, list[tuple[float | None, float]]] = {
        "one": [(1.0, 2.0), (None, 5.0)],
        "two": [(0.0, 60.0)],
        "none": [],
    }
    held = {
        name: {"seeds": {str(seed): {"cost": {"preparing_s": a, "epochs_s": b}} for seed, (a, b) in enumerate(found)}}
        for name, found in seconds.items()
    }
    write_text(plan.out / "small.json", json.dumps({"variants": held}))
    assert run_tables(plan) == {}
    declared, longest = ["one", "two", "new"], ["new", "two", "one"]  # what is not known may be the longest of all
    assert order == [f"small/{name}/seed-{seed}" for seed in (1, 2) for name in (longest if jobs > 1 else declared)]


def test_a_second_run_does_only_what_is_missing(plan: Plan) -> None:
    for _ in range(2):
        assert run_tables(plan, pretend) == {"small/two/seed-2": "no luck"}
    calls = {str(path.parent.relative_to(plan.work)) + path.name[-2:] for path in plan.work.rglob("call-*")}
    assert calls == {
        "small/one/seed-1-0",
        "small/one/seed-2-0",
        "small/two/seed-1-0",
        *("small/two/seed-2-0", "small/two/seed-2-1"),
    }
    text = (plan.out / "small.md").read_text(encoding="utf-8")
    assert "3 of 4 runs finished" in text
    assert "- two, seed 2: no luck" in text
    assert (plan.out / "small.png").is_file()
    # Of another recipe nothing is shown.
    assert run_tables(replace(plan, seeds=[1], only=["one"]), pretend) == {}
    unit = units_of(TABLE, [1], ["one"], plan.work, plan.data_root)[0]
    assert read_finished(unit)
    assert unit.variant is not None
    assert read_finished(replace(unit, variant=replace(unit.variant, overrides=("training.epochs=2",)))) is None
    write_text(unit.folder / "figures.json", "{")
    with pytest.raises(InputError, match=r"figures\.json is damaged"):
        read_finished(unit)


def train(unit: Unit) -> None:
    """Stand in for a training that succeeds."""
    recipe = unit.recipe()
    assert recipe is not None
    raw, digest = recipe.model_dump(mode="json"), recipe.digest()
    kept = {"key": unit.key(), "digest": digest, "recipe": raw, "cost": finished().cost}
    write_text(unit.folder / "figures.json", json.dumps({**kept, "lines": [asdict(line(0.5))]}))


def test_what_another_process_has_finished_has_not_failed(plan: Plan) -> None:
    elsewhere = "small/two/seed-1"

    def refused(unit: Unit) -> None:
        if unit.name == elsewhere:
            raise InputError("is being trained by another process")
        train(next(one for one in plan.units(TABLE) if one.name == elsewhere))  # which comes to its end meanwhile
        train(unit)

    assert list(run_tables(plan, refused)) == [elsewhere]
    assert "(all of 2 seeds)" in (text := (plan.out / "small.md").read_text(encoding="utf-8"))
    assert "Failed" not in text


def test_a_table_keeps_seeds_of_several_folds(tmp_path: Path, plan: Plan) -> None:
    table = replace(TABLE, variants=(Variant(name="pairs", recipe="matching"),), baselines=())
    plan = replace(plan, tables=[table])
    assert run_tables(plan, train) == {}
    units = units_of(table, [1, 2], (), tmp_path / "other", tmp_path)
    kept = kept_results(table, units, plan.out / "small.json", tmp_path)
    assert [kept[unit.name].recipe["data"]["fold"] for unit in units] == [0, 1]


def test_a_table_keeps_what_ran_on_another_machine(tmp_path: Path, plan: Plan) -> None:
    assert run_tables(plan, train) == {}
    place = plan.out / "small.json"
    whole = place.read_text(encoding="utf-8")
    elsewhere = replace(plan, work=tmp_path / "other", only=["two"])
    assert run_tables(elsewhere, train) == {}
    assert place.read_text(encoding="utf-8") == whole
    assert run_tables(replace(elsewhere, work=tmp_path / "third", seeds=[1]), train) == {}
    assert place.read_text(encoding="utf-8") == whole  # a smaller run takes no seed away
    units = units_of(TABLE, [1, 2], (), elsewhere.work, tmp_path)
    assert len(kept_results(TABLE, units, place, tmp_path)) == 4
    # Not what was trained or measured in another way.
    other = replace(units[0], variant=replace(TABLE.variants[0], overrides=("training.epochs=2",)))
    assert kept_results(TABLE, [other], place, tmp_path) == {}
    assert kept_results(replace(TABLE, masked=("colour",)), units, place, tmp_path) == {}
    assert kept_results(TABLE, units, tmp_path / "none.json", tmp_path) == {}
    write_text(tmp_path / TABLE.products, "other products")
    assert kept_results(TABLE, units, place, tmp_path) == {}
    # What is known stays until there is something in its place.
    failing = replace(plan, work=tmp_path / "fourth", seeds=[1], only=["two"])
    (unit,) = units_of(TABLE, [1], ["two"], failing.work, tmp_path)
    assert unit.variant is not None

    def fail(_unit: Unit) -> None:
        assert place.read_text(encoding="utf-8") == whole
        raise InputError("no luck")

    assert run_tables(failing, fail) == {unit.name: "no luck"}
    assert place.read_text(encoding="utf-8") == whole  # nothing was measured: a typo in the data root, say
    write_text(place, "{")
    with pytest.raises(InputError, match=r"small\.json is damaged"):
        kept_results(TABLE, units, place, tmp_path)
