from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from comparisons.__main__ import app
from comparisons.configs import repositories_of
from comparisons.contenders import json_body
from comparisons.infinity import named
from comparisons.mixed_traffic.comparison import ensemble_call, masked_plan, router_call, shares
from comparisons.mixed_traffic.masked_fusion import MaskedFusion
from comparisons.perf_analyzer import entry, read_csv
from comparisons.report import ComparisonReport, deliver, notes, tables
from comparisons.rounds import ComparisonError, Embed, LoadTurn, add_load, alternate, of_load, of_loads
from comparisons.turns import Turns
from likeness_bench.load_config import LoadConfig
from likeness_bench.workload import OperationKind, Request
from likeness_client import InputError, Product, ServerInfo
from likeness_client.contract import InputSchema
from likeness_export.product_network import SignatureFusion, Tower, build_network
from likeness_export.recipe import parse_recipe
from numpy.typing import NDArray
from typer.testing import CliRunner

SHORT = LoadConfig(address="", concurrency=2, duration_s=0.1, warm_up_s=0.02, timeout_s=1)
CHAIR = Product(title="red chair")
INFO = ServerInfo(
    space="s",
    modalities=("text", "image"),
    signatures=("text", "image", "text_image"),
    dimension=4,
    max_batch_size=4,
    schema=InputSchema(),
    error_outputs={},
)


def chairs(_number: int) -> Iterator[Request]:
    return repeat(Request(operation=OperationKind.EMBED, signature="text", left=(CHAIR, CHAIR)))


def takes(seconds: float) -> Embed:
    async def embed(products: Sequence[Product]) -> NDArray[np.float32]:
        await asyncio.sleep(seconds)
        return np.zeros((len(products), 4), np.float32)

    return embed


def test_contenders_take_turns_and_the_faster_one_has_the_higher_ratio() -> None:
    rounds = asyncio.run(alternate({"a": takes(0.002), "b": takes(0.01)}, chairs, SHORT, 2))
    assert [(found.contender, found.number) for found in rounds.found] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert all(found.values["p50 ms"] >= 2 and not found.values["failed"] for found in rounds.found)
    assert of_loads("T", rounds, (("a", "b"),)).ratios[0].median > 1.5


def test_products_are_counted_and_not_requests() -> None:
    (found,) = asyncio.run(alternate({"a": takes(0.005)}, chairs, SHORT, 1)).found
    assert found.values["products/s"] == pytest.approx(2 * found.values["requests"] / 0.1)


def test_a_contender_that_hangs_is_named_with_the_deadline_and_costs_the_others_nothing() -> None:
    contenders = {"a": takes(0.001), "b": takes(1.0), "c": takes(0.001)}
    turns = asyncio.run(alternate(contenders, chairs, replace(SHORT, timeout_s=0.05), 2))
    assert [(found.contender, found.number) for found in turns.found] == [("a", 1), ("c", 1), ("a", 2), ("c", 2)]
    section = of_loads("T", turns, (("a", "b"), ("a", "c")))
    assert [(found.ours, found.theirs) for found in section.ratios] == [("a", "c")]
    assert "b failed in round 1 and had no other turn: it answered nothing: no answer within 0.05 s" in section.notes
    assert section.failed


def test_a_turn_in_which_a_contender_dies_is_not_in_the_ratios() -> None:
    calls = iter(range(10_000))

    async def embed(products: Sequence[Product]) -> NDArray[np.float32]:
        await asyncio.sleep(0.005)
        if next(calls) > 20:
            raise ComparisonError("it is gone")
        return np.zeros((len(products), 4), np.float32)

    load = LoadConfig(address="", concurrency=2, duration_s=0.6, warm_up_s=0, timeout_s=0.1)
    contenders = {"a": embed, "b": takes(0.005), "c": takes(0.005)}
    turns = asyncio.run(alternate(contenders, chairs, load, 1))
    assert [found.contender for found in turns.found] == ["b", "c"]
    assert "nothing any more in the second half of its turn: " in turns.failures["a"]
    assert next(calls) < 21 + 2 * (0.6 / 0.1 + 1)  # who fails at once is not hammered


def test_ctrl_c_ends_the_rounds_and_what_was_measured_stays() -> None:
    async def embed(_: Sequence[Product]) -> NDArray[np.float32]:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(10)
        raise AssertionError

    async def measured() -> Turns:
        contenders = {"a": takes(0.001), "b": embed}
        turns = await alternate(contenders, chairs, replace(SHORT, concurrency=1), 2)
        await asyncio.sleep(0)  # what follows is not cancelled: sessions and servers are closed in order
        assert asyncio.all_tasks() == {asyncio.current_task()}  # and nothing is asked any more
        return turns

    section = of_loads("T", asyncio.run(measured()), (("a", "b"),))
    assert [turn.contender for turn in section.turns] == ["a"]
    assert section.interrupted
    assert "interrupted: later rounds are missing" in section.notes


def test_a_report_says_what_stands_in_its_way(tmp_path: Path) -> None:
    turns = Turns(("a", "b"), 1)
    add_load(turns, "a", 1, LoadTurn(of_load(40.0, None, None, None, 9, 0)))
    add_load(turns, "b", 1, LoadTurn(of_load(10.0, None, None, None, 9, 3), "why"))
    setting = of_loads("2 clients x 1", turns, (("a", "b"),))
    comparison = ComparisonReport(
        title="A and B", settings=(setting,), facts={"cores busy before": "1.40"}, notes=("n",)
    )
    said = "\n".join(notes(comparison))
    assert "1.40 cores were busy" in said
    assert "requests of b failed, the first one said: why" in said
    assert "too few rounds, 1; make at least 5" in said
    assert tables(comparison)[1].rows == (("a / b", "products/s", "4.00", "4.00", "4.00", "1"),)
    deliver(comparison, tmp_path / "found.json")
    data = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert data["ratios"]["2 clients x 1"][0]["median"] == 4.0
    assert "| a / b | products/s | 4.00 |" in (tmp_path / "found.md").read_text(encoding="utf-8")


def test_contenders_of_ours_are_told_apart() -> None:
    assert named([Path("a")]) == {"likeness": Path("a")}
    assert set(named([Path("a"), Path("b")])) == {"likeness a", "likeness b"}
    assert repositories_of([Path("a"), Path("b")]) == (Path("a"), Path("b"))
    with pytest.raises(InputError, match="--repository"):
        repositories_of([Path("a"), Path("a")])


def test_help_names_the_repository_that_is_taken_where_none_is_given() -> None:
    assert "runs/speed/repository" in CliRunner().invoke(app, ["start", "--help"]).output


@pytest.mark.parametrize("command", ["infinity", "eager", "mixed", "perf-analyzer"])
def test_what_no_load_can_be_is_refused_before_anything_is_installed(command: str, tmp_path: Path) -> None:
    asked = [__file__, "--turn-s", "inf", "--environments", str(tmp_path / "envs")]
    refused = CliRunner().invoke(app, [command, *asked]).exception
    assert isinstance(refused, InputError)
    assert "all of them finite" in str(refused)
    assert not list(tmp_path.iterdir())


def test_json_carries_pictures_as_base64() -> None:
    body = json_body({"text": b"chair", "image": b"\xff\x00", "attributes": b'{"kind":"chair"}'})
    assert body == {"text": "chair", "image": "/wA=", "attributes": {"kind": "chair"}}


def test_each_way_is_asked_for_the_same_products() -> None:
    given = [{"text": b"chair"}]
    model, inputs = ensemble_call(given)
    assert (model, list(inputs)) == ("embed_text", ["text"])
    assert router_call(given)[0] == "router"
    model, inputs = masked_plan(INFO)(given)
    assert model == "masked"
    assert inputs["image"].tolist() == [[b""]]
    assert inputs["present"].tolist() == [[1.0, 0.0]]
    assert shares(("text", "image", "attributes")) == {"text_image_attributes": 0.5, "text": 0.25, "image": 0.25}


def test_the_masked_head_fuses_as_the_head_of_each_signature(tmp_path: Path) -> None:
    keys = ["kind"]
    towers: dict[str, dict[str, object]] = {name: {"encoder": "one_hot", "keys": keys} for name in ("first", "second")}
    towers["photo"] = {"encoder": "small_cnn", "image_px": 32, "width": 8}
    raw = {"name": "tiny", "dimension": 8, "data": {"products": "p", "labels": ["group"]}, "towers": towers}
    recipe = parse_recipe(raw, "test")
    for name in ("first", "second"):
        (tmp_path / name / "assets").mkdir(parents=True)
        vocabulary = {"keys": [{"name": "kind", "values": ["chair"]}], "max_bytes": 10}
        (tmp_path / name / "assets" / "attributes.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    network = build_network(recipe, tmp_path, tmp_path).eval()
    assert isinstance(network.tower("photo"), Tower)
    vectors = {name: torch.nn.functional.normalize(torch.randn(3, 8), dim=1) for name in towers}
    masked = MaskedFusion(network)
    for signature in ("image", "attributes", "image_attributes"):
        head = SignatureFusion(network, signature)
        mask = torch.tensor([[float(name in signature.split("_")) for name in network.modalities]]).expand(3, -1)
        expected, *_ = head(*(vectors[name] for name in head.towers))
        found, weights = masked(*vectors.values(), mask)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(weights.sum(1), torch.ones(3))


def test_perf_analyzer_gets_bytes_and_its_figures_are_read() -> None:
    assert entry({"text": b"chair"}) == {"text": {"content": {"b64": "BQAAAGNoYWly"}, "shape": [1]}}
    text = "Concurrency,Inferences/Second,p50 latency,p99 latency\n16,120.5,130000,200500\n"
    assert read_csv(text) == (120.5, 130.0, 200.5)
    with pytest.raises(ComparisonError, match="another form"):
        read_csv("nothing\n")
