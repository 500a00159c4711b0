"""Options of the commands: how they are read, and that those without any effect are refused, not passed over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from likeness_bench import cli, options
from likeness_bench.option_groups import Asked, Ranked, Sent
from likeness_bench.recall import LabelConfig
from likeness_bench.sources import Span
from likeness_bench.workload import OperationKind
from likeness_client import InputError, Metric
from typer.testing import CliRunner


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of one product."""
    found = tmp_path / "p.jsonl"
    found.write_text('{"title": "vase", "split": "val", "kind": "vase"}\n')
    return found


def refused(command: str, file: Path) -> str:
    """Run a command and return why it is refused; no server is there."""
    words = [word.replace("FILE", str(file)).replace("FOLDER", str(file.parent)) for word in command.split()]
    found = CliRunner().invoke(cli.app, ["bench", *words, "--server", "127.0.0.1:1"])
    assert isinstance(found.exception, InputError), found.exception
    return str(found.exception)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("load FILE --concurrency 1 --arrivals poisson", r"--arrivals poisson: .*leave it out, or give --rate"),
        ("load FILE --rate 1 --metric cosine", r"--metric cosine .*leave it out, or give --operation similarity"),
        ("sweep FILE --operation embed --metric learned", r"--metric learned .*--operation similarity"),
        ("load FILE --rate 1 --split val", r"--split val .*leave it out, or give the --label"),
        ("sweep FILE --split test", r"--split test .*--label"),
        ("ceiling FILE --repository FOLDER --split test", r"--split test .*--label"),
        ("load --rendered 5 --products 1000 --rate 1", r"--products 1000 .*--rendered 5 .*leave one of them out"),
        ("ceiling --rendered 5 --products 5 --repository FOLDER", r"--products 5 .*--rendered 5"),
        (
            "load FILE --rate 1 --signature image --text-words 5:6",
            r"--text-words 5:6 .* image: leave it out, or give a",
        ),
        ("sweep FILE --signature text --signature attributes --image-px 9:9", r"--image-px 9:9 .* text, attributes:"),
        ("ceiling FILE --repository FOLDER --signature text --image-px 9:9", r"--image-px 9:9 .* text:"),
        ("ceiling FILE --repository FOLDER --signature text=1,image=1 --label kind", r"--label kind: .*only mixes"),
    ],
)
def test_options_without_any_effect_are_refused(command: str, reason: str, file: Path) -> None:
    assert re.search(reason, refused(command, file))


@pytest.mark.parametrize(
    "command",
    [
        "bench load FILE --rate 1",
        "bench sweep FILE",
        "bench ceiling FILE --repository FOLDER",
        "tune FOLDER FILE",
    ],
)
def test_a_report_does_not_take_the_place_of_the_products(command: str, file: Path) -> None:
    products = file.rename(file.with_suffix(".json"))
    words = [word.replace("FILE", str(products)).replace("FOLDER", str(file.parent)) for word in command.split()]
    found = CliRunner().invoke(cli.app, [*words, "--out", str(products)])
    assert isinstance(found.exception, InputError), found.exception
    assert "is what is read, and would be lost" in str(found.exception)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("bench load --rendered 5 --rate 0", "--rate"),
        ("bench load --rendered 5 --rate 1 --seed -1", "--seed"),
        ("bench sweep --rendered 5 --target-ms 0", "--target-ms"),
        ("bench sweep --rendered 5 --rate -1", "--rate"),
        ("bench sweep --rendered 5 --precision 0", "--precision"),
        ("bench sweep --rendered 5 --budget-s -1", "--budget-s"),
        ("tune FOLDER FILE --target-ms 0", "--target-ms"),
        ("tune FOLDER FILE --budget-s -1", "--budget-s"),
    ],
)
def test_a_number_that_is_out_of_range_is_a_usage_error(command: str, option: str, file: Path) -> None:
    words = [word.replace("FILE", str(file)).replace("FOLDER", str(file.parent)) for word in command.split()]
    found = CliRunner().invoke(cli.app, words)
    assert found.exit_code == 2, found.exception
    assert f"Invalid value for '{option}'" in found.output


def test_options_have_their_effect_where_there_is_one(file: Path) -> None:
    assert Sent(file=file).source().count == 1000
    assert Sent(file=file, products=5).source().count == 5
    assert Sent(rendered=5).source().count == 5
    sizes = Sent(file=file, text_words="5:6", image_px="9:9")
    assert sizes.source().text_words == sizes.source(["text", "image_attributes"]).text_words == Span(low=5, high=6)
    assert Asked().workload(1).metric is Metric.COSINE
    mixed = Asked(operation=["embed=0.9", "similarity=0.1"], metric=Metric.LEARNED)
    assert mixed.workload(1).metric is Metric.LEARNED
    assert Asked(operation=[OperationKind.SIMILARITY_MATRIX]).workload(1).metric is Metric.COSINE
    assert [Ranked(label="kind", split=split).config() for split in (None, "")] == [
        LabelConfig(field="kind", split="val"),
        LabelConfig(field="kind", split=""),
    ]
    assert Ranked().config() is None


@pytest.mark.parametrize(("given", "sizes"), [(None, 1), (["8"], 8), (["1=0.5", "8"], {1: 0.5, 8: 1.0})])
def test_batch_sizes_are_read(given: list[str] | None, sizes: int | dict[int, float]) -> None:
    assert options.parse_sizes(given) == sizes


@pytest.mark.parametrize("given", [["many"], ["1", "1"], ["8=x"], ["1.5"]])
def test_batch_sizes_that_cannot_be_read(given: list[str]) -> None:
    with pytest.raises(InputError, match="--batch-size"):
        options.parse_sizes(given)


def test_operations_are_read() -> None:
    assert options.parse_operations(None) is OperationKind.EMBED
    assert options.parse_operations(["similarity"]) is OperationKind.SIMILARITY
    mix = {OperationKind.EMBED: 0.8, OperationKind.SIMILARITY_MATRIX: 1.0}
    assert options.parse_operations(["embed=0.8", "similarity_matrix"]) == mix


@pytest.mark.parametrize("given", [["dance"], ["embed", "embed"], ["embed=x"]])
def test_operations_that_cannot_be_read(given: list[str]) -> None:
    with pytest.raises(InputError, match="--operation"):
        options.parse_operations(given)


def test_cases_are_read() -> None:
    assert options.parse_cases(["text", "text=0.5,image=2"]) == {
        "text": {"text": 1.0},
        "text=0.5,image=2": {"text": 0.5, "image": 2.0},
    }


@pytest.mark.parametrize("text", ["5", "9:5", "0:5", "a:b", ":"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=f"--text-words {text}: give MIN:MAX"):
        options.parse_span(text, "--text-words")


def test_ranges_are_read() -> None:
    assert options.parse_span("5:60", "--text-words") == Span(low=5, high=60)
    assert options.parse_span("", "--text-words") is None
