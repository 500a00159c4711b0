"""What the comparisons of cost compute and write, without a server."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from comparisons.blocks import (
    ARRAYS_MB,
    PRODUCT,
    arrays_mb,
    check,
    measure_caller,
    verdict,
)
from comparisons.configs import BlocksConfig, StartConfig, numbers_of
from comparisons.image_steps import FULL, ONE_THREAD, REDUCED, enlarged, image_model, ways_of
from comparisons.learned_blocks import ask, measure_learned
from comparisons.measured import Measurement, Quantity, measure, measure_all, per_call_s
from comparisons.memory import high_water_mb, parse_high_water_mb, watching
from comparisons.report import ComparisonReport, deliver, notes
from comparisons.rounds import ComparisonError
from comparisons.size import CLIENT_MB, SPEED, flatness, name_of, unique_records, write_photos
from comparisons.size import SECONDS as SIZE_S
from comparisons.start import COMMAND, SECONDS, compare_starts, count_models
from comparisons.start import verdict as verdict_of_start
from comparisons.text_steps import GROUPED, PADDING, RUNS, TO_BATCH, TO_LIMIT, TOKENS, TextModel, draw, texts_of, timed
from comparisons.text_steps import check as check_texts
from comparisons.text_steps import ways_of as ways_of_texts
from comparisons.turns import Turn
from comparisons.vectors import drawn, parts_of
from likeness_client import InputError, InputSchema, Metric, Product
from likeness_client._scoring import euclidean_matrix
from likeness_client.contract import NOTHING_KNOWN, SCHEMA_PARAMETER
from likeness_export.preprocessing.image import SETTINGS_FILE, Preprocessor
from PIL import Image
from tritonclient.grpc import model_config_pb2

SPEED_OF = Quantity(name="per s", higher_is_better=True, compared=True)
TIME_OF = Quantity(name="ms", compared=True)
EXTRA = Quantity(name="MB")


def measured(quantity: Quantity, a: Sequence[float], b: Sequence[float]) -> Measurement:
    turns = [
        Turn(contender=name, number=number, values={quantity.name: value, EXTRA.name: 7.0})
        for number, pair in enumerate(zip(a, b, strict=True), 1)
        for name, value in zip("ab", pair, strict=True)
    ]
    return Measurement(title="T", quantities=(quantity, EXTRA), turns=tuple(turns), pairs=(("a", "b"),))


def test_contenders_take_turns() -> None:
    numbers = count(1)
    seen: list[str] = []

    def take(name: str, number: int) -> dict[str, float]:
        seen.append(f"{name}{number}")
        return {EXTRA.name: float(next(numbers))}

    turns = measure("T", {"a": lambda n: take("a", n), "b": lambda n: take("b", n)}, 2, (EXTRA,)).turns
    assert seen == ["a1", "b1", "a2", "b2"]
    assert [(turn.contender, turn.number, turn.values["MB"]) for turn in turns] == [
        ("a", 1, 1.0),
        ("b", 1, 2.0),
        ("a", 2, 3.0),
        ("b", 2, 4.0),
    ]


@pytest.mark.parametrize(
    ("stopped", "code"),
    [(ComparisonError("no room"), 1), (KeyboardInterrupt(), 130)],
    ids=["a failed turn", "Ctrl-C"],
)
def test_a_comparison_that_stops_delivers_its_finished_rounds(
    stopped: BaseException, code: int, tmp_path: Path
) -> None:
    def take(number: int) -> dict[str, float]:
        if number == 3:
            raise stopped
        return {TIME_OF.name: 2.0}

    section = measure("T", {"a": lambda _: {TIME_OF.name: 1.0}, "b": take}, 5, (TIME_OF,), (("b", "a"),))
    assert [(turn.contender, turn.number) for turn in section.turns] == [
        ("a", 1),
        ("b", 1),
        ("a", 2),
        ("b", 2),
        ("a", 3),
    ]
    with pytest.raises(typer.Exit) as ended:
        deliver(ComparisonReport(title="A", settings=(section,), facts={}), tmp_path / "a.json")
    assert ended.value.exit_code == code
    data = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (data["ratios"]["T"][0]["median"], data["ratios"]["T"][0]["rounds"]) == (2.0, 2)
    assert any("no room" in note or "interrupted" in note for note in data["notes"])


@pytest.mark.parametrize("stopped", [InputError("too few texts"), KeyboardInterrupt()], ids=["a failure", "Ctrl-C"])
def test_what_stops_a_later_section_costs_no_earlier_one(stopped: BaseException) -> None:
    def fails() -> Measurement:
        raise stopped

    first = measured(TIME_OF, [2.0], [1.0])
    (found,) = measure_all([lambda: first, fails, lambda: pytest.fail("it went on")])
    assert found.turns == first.turns
    assert found.failed == isinstance(stopped, InputError)
    assert found.interrupted == isinstance(stopped, KeyboardInterrupt)
    assert found.notes[-1].startswith("what was to follow is missing: ")
    with pytest.raises(type(stopped)):
        measure_all([fails])


def test_a_report_that_cannot_be_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ComparisonReport(title="A", settings=(measured(TIME_OF, [2.0] * 5, [1.0] * 5),), facts={}, notes=())
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*a\.json"):
        deliver(found, tmp_path / "a.json")
    assert "2.00" in capsys.readouterr().out


def test_a_comparison_without_any_figure_says_why_and_writes_nothing(tmp_path: Path) -> None:
    def take(_: int) -> dict[str, float]:
        raise ComparisonError("no room")

    section = measure("T", {"a": take, "b": take}, 5, (TIME_OF,), (("a", "b"),))
    with pytest.raises(ComparisonError, match=r"nothing was measured.*no room"):
        deliver(ComparisonReport(title="A", settings=(section,), facts={}), tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("quantity", "worst", "best"), [(SPEED_OF, "3.00", "4.00"), (TIME_OF, "4.00", "3.00")], ids=["speed", "time"]
)
def test_ratios_are_taken_within_rounds_and_say_which_end_is_favourable(
    quantity: Quantity, worst: str, best: str
) -> None:
    # The machine is half as fast in the second round.
    found = replace(measured(quantity, [40, 20, 30], [10, 5, 10]), pairs=(("a", "b"), ("a", "c")))
    figures, ratios = found.tables()
    assert ratios.rows == (("a / b", quantity.name, "4.00", worst, best, "3"),)
    assert figures.header == ("", quantity.name, "least favourable", "most favourable", "MB")
    extremes = ("20.0", "40.0") if quantity is SPEED_OF else ("40.0", "20.0")
    assert figures.rows[0] == ("a", "30.0", *extremes, "7.0")
    assert "too few rounds, 3; make at least 5" in next(found.doubts())


def test_a_report_holds_measurements(tmp_path: Path) -> None:
    found = ComparisonReport(
        title="A", settings=(measured(TIME_OF, [2.0] * 5, [1.0] * 5),), facts={"x": "y"}, notes=("n",)
    )
    assert notes(found) == ["n"]
    deliver(found, tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert data["ratios"]["T"][0]["median"] == 2.0
    assert data["settings"][0]["turns"][0] == {"contender": "a", "number": 1, "values": {"ms": 2.0, "MB": 7.0}}
    assert "| a / b | ms | 2.00 | 2.00 | 2.00 | 5 |" in (tmp_path / "a.md").read_text(encoding="utf-8")


def test_a_call_is_repeated_and_the_first_one_does_not_count() -> None:
    calls: list[float] = []

    def work() -> None:
        calls.append(0.05 if not calls else 0.002)
        time.sleep(calls[-1])

    assert 0.002 <= per_call_s(work, 0.02) < 0.05
    assert len(calls) > 2
    calls.clear()
    per_call_s(work, 0.0)
    assert len(calls) == 2  # at least one that counts


@pytest.mark.parametrize(("text", "numbers"), [("1000", (1000,)), ("50, 7", (7, 50))])
def test_numbers_are_read(text: str, numbers: tuple[int, ...]) -> None:
    assert numbers_of(text, "--sizes") == numbers


@pytest.mark.parametrize("text", ["", "1,", "0", "1,1", "-3", "1.5", "x"])
def test_numbers_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match=f"--sizes {text}.*with commas between"):
        numbers_of(text, "--sizes")


def test_the_most_memory_is_kept() -> None:
    values = iter([3.0, 9.0, *[4.0] * 1000])
    with watching(lambda: next(values), 0.001) as peak:
        time.sleep(0.05)
    assert peak.mb == 9.0
    assert parse_high_water_mb("Name:\tx\nVmHWM:\t    2000 kB\n") == pytest.approx(2.048)
    assert parse_high_water_mb("Name:\tzombie\n") == 0.0
    if Path("/proc/self/status").exists():
        assert high_water_mb(os.getpid()) > 10
        assert high_water_mb(2**22 + 1) == 0.0  # above the highest process number


def blocks(**given: Any) -> BlocksConfig:
    small: dict[str, Any] = {"queries": 20, "candidates": 50, "dimension": 16, "rounds": 2, "turn_s": 0.0}
    return BlocksConfig(**{**small, "repository": None, "chunk": 7, "environments": Path(), **given})


def test_blocks_are_scored_as_the_client_does(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_caller(blocks())
    assert {turn.contender for turn in found.turns} == {"cosine", "euclidean", PRODUCT}
    assert [(ratio.ours, ratio.theirs) for ratio in found.ratios] == [("cosine", PRODUCT), ("euclidean", PRODUCT)]
    assert all(turn.values[ARRAYS_MB.name] >= 20 * 50 * 4 / 1e6 for turn in found.turns)
    assert verdict(1.5).startswith("yes")
    assert verdict(1.51).startswith("NO")
    wrong = {Metric.EUCLIDEAN: lambda *sides: euclidean_matrix(*sides) + np.float32(0.001)}
    monkeypatch.setattr("likeness_client._operations.MATRIX_SCORES", wrong)
    with pytest.raises(ComparisonError, match="euclidean scores differ"):
        check(drawn(3, 4, "s", 1), drawn(3, 4, "s", 2), Metric.EUCLIDEAN)


def test_parts_are_all_of_it() -> None:
    whole = drawn(20, 4, "s", seed=1)
    parts = list(parts_of(whole, 7))
    assert [len(part) for part in parts] == [7, 7, 6]
    np.testing.assert_array_equal(np.concatenate([part.vectors for part in parts]), whole.vectors)
    assert {part.space for part in parts} == {"s"}


def test_a_block_that_fails_says_why() -> None:
    said = ask(blocks(), "127.0.0.1:1", chunk=7)
    assert isinstance(said, str)
    assert "127.0.0.1:1" in said
    with pytest.raises(ComparisonError, match="cannot be seen"):
        measure_learned(blocks(), "127.0.0.1:1")


def test_arrays_are_weighed() -> None:
    assert 8.0 <= arrays_mb(lambda: np.zeros(1_000_000) + 1.0) < 17.0


def test_titles_occur_once_and_photos_again() -> None:
    templates = [{"title": "Mug", "images": ["a.jpg"]}, {"title": "Mug", "images": ["b.jpg"]}]
    found = list(unique_records(templates, 5))
    assert len({record["title"] for record in found}) == len({record["product_id"] for record in found}) == 5
    assert [record["images"] for record in found] == [["a.jpg"], ["b.jpg"], ["a.jpg"], ["b.jpg"], ["a.jpg"]]
    assert templates[0] == {"title": "Mug", "images": ["a.jpg"]}


def test_rendered_products_have_all_and_their_photos_on_disk(tmp_path: Path) -> None:
    templates = write_photos(40, 7, tmp_path)
    assert 20 < len(templates) <= 40
    for record in templates:
        assert record["title"]
        assert record["attributes"]
        assert (tmp_path / record["images"][0]).is_file()


def test_flat_is_said_with_rate_and_memory() -> None:
    turns = [
        Turn(
            contender=name_of(size),
            number=1,
            values={SPEED.name: speed, SIZE_S.name: size / speed, CLIENT_MB.name: memory},
        )
        for size, speed, memory in ((100, 50.0, 100.0), (1100, 45.0, 150.0))
    ]
    pairs = ((name_of(1100), name_of(100)),)
    found = Measurement(title="T", quantities=(SPEED, CLIENT_MB), turns=tuple(turns), pairs=pairs)
    assert flatness(found, (100, 1100)) == {
        "1,100 products against 100 products": "0.90 x the rate, 1.50 x the memory",
        "each product beyond 100 products": "44.6 products/s, 50.00 kB",
    }
    assert flatness(found, (100,)) == {}


def test_starts_are_held_against_the_target(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text("", encoding="utf-8")
    assert count_models(tmp_path) == 2
    turns = tuple(
        Turn(contender=COMMAND, number=number, values={SECONDS.name: seconds})
        for number, seconds in enumerate((4.0, 9.0, 4.5), 1)
    )
    found = Measurement(title="T", quantities=(SECONDS,), turns=turns)
    assert verdict_of_start(tmp_path, found) == {f"{tmp_path}, below 5 s": "yes, 4.50 s in the median"}
    with pytest.raises(InputError, match="is not a folder"):
        compare_starts(StartConfig(repository=[tmp_path, tmp_path / "nowhere"]))


def sums(columns: list[Any]) -> list[Any]:
    """A network that does not see padding."""
    return [columns[0].sum(1, keepdims=True).astype(np.float32)]


def text_model(preprocessor: Any = None) -> TextModel:
    return TextModel(
        tower="text", preprocessor=preprocessor, inputs=("ids",), compute=sums, max_tokens=20, run_tokens=1
    )


def test_texts_are_computed_in_three_ways_that_agree() -> None:
    lengths = np.array([2, 10, 2, 10])
    columns = [(np.arange(10) < lengths[:, None]).astype(np.int64)]
    ways = ways_of_texts(text_model())
    check_texts(ways, sums, columns)
    found = {name: timed(way, sums, [columns, columns]) for name, way in ways.items()}
    assert {name: figures[TOKENS.name] for name, figures in found.items()} == {TO_LIMIT: 20, TO_BATCH: 10, GROUPED: 6}
    assert {name: figures[RUNS.name] for name, figures in found.items()} == {TO_LIMIT: 1, TO_BATCH: 1, GROUPED: 2}
    assert found[GROUPED][PADDING.name] == 0.0
    assert found[TO_LIMIT][PADDING.name] == pytest.approx(70.0)

    def sees_padding(tensors: list[Any]) -> list[Any]:
        return [np.full((len(tensors[0]), 1), tensors[0].shape[1], dtype=np.float32)]

    with pytest.raises(ComparisonError, match="other embeddings"):
        check_texts(ways, sees_padding, columns)


def knows_no_pictures(items: list[bytes]) -> tuple[dict[str, Any], list[str]]:
    return {}, ["" if item.isascii() else NOTHING_KNOWN for item in items]


def test_equal_texts_are_computed_once_and_none_that_a_server_refuses(tmp_path: Path) -> None:
    config = model_config_pb2.ModelConfig()
    config.parameters[SCHEMA_PARAMETER].string_value = InputSchema().to_json()
    (tmp_path / "embed_text").mkdir()
    (tmp_path / "embed_text" / "config.pbtxt").write_text(str(config), encoding="utf-8")
    chair = Product(title="red chair")
    given = [chair, Product(title="red chair", images=(b"x",)), Product(images=(b"y",)), Product(title="table")]
    pictures = Product(title="\N{WATCH}")
    model = text_model(knows_no_pictures)
    assert texts_of([*given, pictures], tmp_path, model) == [b"red chair", b"table"]
    with pytest.raises(InputError, match="none of 2 products has a text that the server takes"):
        texts_of([given[2], pictures], tmp_path, model)


def test_a_round_draws_its_own_batches() -> None:
    texts = [str(number).encode() for number in range(50)]
    assert draw(texts, 8, 3, 1) == draw(texts, 8, 3, 1)
    assert draw(texts, 8, 3, 1) != draw(texts, 8, 3, 2)
    assert [len(set(batch)) for batch in draw(texts, 8, 3, 1)] == [8, 8, 8]


def photo(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((width, height)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    folder = tmp_path / "photo_preprocess" / "1" / "assets"
    folder.mkdir(parents=True)
    settings = {"image_px": 32, "min_px": 8, "max_pixels": 10**7, "max_bytes": 10**7}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_photos_are_enlarged_with_grain() -> None:
    large = enlarged(photo(40, 20), 200)
    with Image.open(io.BytesIO(large)) as image:
        assert image.size == (200, 100)
    assert len(large) > 3 * len(photo(200, 100))


def test_full_decode_takes_only_the_reduced_scale_away(assets: Path, tmp_path: Path) -> None:
    model = image_model(tmp_path)
    assert model is not None
    assert model.tower == "photo"
    assert image_model(assets) is None
    photos = [enlarged(photo(400, 300), 400) for _ in range(3)]
    found = {name: np.asarray(way(), dtype=np.int16) for name, way in ways_of(model.preprocessor, photos).items()}
    assert {pixels.shape for pixels in found.values()} == {(3, 32, 32, 3)}
    np.testing.assert_array_equal(found[REDUCED], found[ONE_THREAD])
    assert 0 < np.abs(found[FULL] - found[REDUCED]).mean() < 5
    with pytest.raises(ComparisonError, match="cannot be read"):
        ways_of(Preprocessor(assets), [b"no photo"])[REDUCED]()
