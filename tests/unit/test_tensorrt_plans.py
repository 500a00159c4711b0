"""What is asked of TensorRT; the package itself is not there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from likeness_client.errors import InputError
from likeness_export.encoders.base import ASSETS
from likeness_export.exporting.onnx_export import ExportError
from likeness_export.exporting.tensorrt_plans import PlanStep, Range, TensorRTBuilder, plan_ranges
from likeness_export.recipe import parse_recipe
from likeness_export.run import Run

if TYPE_CHECKING:
    from tests.unit.conftest import Exported


class FakeBuilder:
    version = "11.4"

    def __init__(self) -> None:
        self.asked: dict[str, Mapping[str, Range]] = {}

    def build(self, network: Path, ranges: Mapping[str, Range]) -> bytes:
        assert network.is_file()
        self.asked[network.parent.parent.name] = ranges
        return b"plan of " + network.parent.parent.name.encode()


def test_every_network_gets_a_plan_beside_it(exported: Exported, tmp_path: Path) -> None:
    builder, repository = FakeBuilder(), shutil.copytree(exported.repository, tmp_path / "repository")
    step = PlanStep(exported.run, builder)
    step.prepare()
    report = step(repository)
    networks = {path.parent.parent.name for path in repository.rglob("model.onnx")}
    assert builder.asked.keys() == networks
    for network in repository.rglob("model.onnx"):
        assert network.with_suffix(".plan").read_bytes() == f"plan of {network.parent.parent.name}".encode()
    assert (step.section, report.tensorrt) == ("tensorrt", "11.4")
    assert report.ranges["image_encoder"]["pixels"].largest == (4, 32, 32, 3)


def test_batches_are_those_that_are_served(exported: Exported) -> None:
    ranges = plan_ranges(exported.run)
    assert ranges["image_encoder"]["pixels"] == Range(
        smallest=(1, 32, 32, 3), usual=(4, 32, 32, 3), largest=(4, 32, 32, 3)
    )
    assert ranges["fusion_image_attributes"].keys() == {"image_embedding", "attributes_embedding"}
    assert ranges["similarity"]["left"] == Range(smallest=(1, 1, 16), usual=(4, 1, 16), largest=(4, 1, 16))
    block = ranges["similarity_matrix"]
    assert block["right"] == Range(smallest=(1, 1, 16), usual=(1, 128, 16), largest=(1, 1024, 16))
    assert block["left"].largest == (1, 128, 16)


def test_lengths_are_those_that_the_preprocessing_pads_to(tmp_path: Path) -> None:
    towers = {"text": {"encoder": "word_vectors"}, "shoppers": {"encoder": "als", "factors": 8}}
    raw = {"name": "plans", "data": {"products": "none", "labels": ["group"]}, "towers": towers}
    run = Run(tmp_path)
    run.write_recipe(parse_recipe(raw, "test"))
    text, shoppers = (run.towers / name / ASSETS for name in towers)
    text.mkdir(parents=True)
    vocabulary = {"words": ["vase"], "max_tokens": 64, "length_buckets": [16, 32, 64], "max_bytes": 99}
    (text / "words.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    shoppers.mkdir(parents=True)
    (shoppers / "users.json").write_text(json.dumps(["u1", "u2"]), encoding="utf-8")  # a list, and nothing to pad
    ranges = plan_ranges(run)
    assert ranges["text_encoder"] == {"word_ids": Range(smallest=(1, 1), usual=(8, 32), largest=(32, 64))}
    assert [found.largest for found in ranges["shoppers_encoder"].values()] == [(32, 8)]
    vocabulary["length_buckets"] = []
    (text / "words.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(InputError, match=r"towers\.text: the preprocessing of varying lengths needs `buckets`"):
        plan_ranges(run)


def fake_tensorrt(calls: list[str], fitting: bytes, errors: Sequence[str] = (), plan: bytes | None = b"plan") -> Any:
    """As much of TensorRT as the builder uses; a timing cache fits if it is ``fitting`` or empty.

    Args:
        calls: is told what was asked for.
        fitting: the timings that fit.
        errors: what the parser finds wrong with every file.
        plan: what is built; None: nothing can be.
    """

    class Cache(SimpleNamespace):
        known: bytes

        def serialize(self) -> bytes:
            return b"timings after " + self.known

    def set_cache(cache: Cache, ignore_mismatch: bool) -> bool:
        calls.append(f"cache {cache.known.decode()}")
        return not ignore_mismatch and cache.known in (b"", fitting)

    config = SimpleNamespace(
        set_memory_pool_limit=lambda *_: None,
        add_optimization_profile=lambda profile: calls.append(f"profile {profile.shapes}"),
        create_timing_cache=lambda known: None if known == b"broken" else Cache(known=known),
        set_timing_cache=set_cache,
        clear_flag=lambda flag: calls.append(f"no {flag}"),
    )

    def create_network(flags: int) -> str:
        calls.append(f"flags {flags}")
        return "network"

    def profile() -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *sizes: shapes.update({name: sizes}))

    parser = SimpleNamespace(
        parse_from_file=lambda _: not errors, num_errors=len(errors), get_error=lambda place: errors[place]
    )
    builder = SimpleNamespace(
        create_network=create_network,
        create_builder_config=lambda: config,
        create_optimization_profile=profile,
        build_serialized_network=lambda *given: plan if given == ("network", config) else pytest.fail("of another"),
    )
    return SimpleNamespace(
        __version__="11.4",
        Logger=type("Logger", (), {"WARNING": 1, "__init__": lambda *_: None}),
        Builder=lambda _: builder,
        OnnxParser=lambda network, _: parser if network == "network" else pytest.fail("of another"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=3),
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        BuilderFlag=SimpleNamespace(TF32="TF32"),
        init_libnvinfer_plugins=lambda *_: calls.append("plugins"),
    )


def build(place: Path, monkeypatch: pytest.MonkeyPatch, known: bytes | None, fitting: bytes = b"") -> list[str]:
    """Build one plan with the timings of an earlier build, and return what TensorRT was told."""
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(calls, fitting))
    if known is not None:
        place.write_bytes(known)
    ranges = {"pixels": Range(smallest=(1, 3), usual=(4, 3), largest=(8, 3))}
    assert TensorRTBuilder(place).build(place.parent / "net/1/model.onnx", ranges) == b"plan"
    return calls


@pytest.mark.parametrize(
    ("known", "used"),
    [(None, [""]), (b"fits", ["fits"]), (b"broken", [""]), (b"of another GPU", ["of another GPU", ""])],
)
def test_timings_of_another_gpu_or_version_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bytes | None, used: list[str]
) -> None:
    calls = build(tmp_path / "timing", monkeypatch, known, fitting=b"fits")
    assert [call for call in calls if call.startswith("cache")] == [f"cache {name}" for name in used]
    assert (tmp_path / "timing").read_bytes() == b"timings after " + used[-1].encode()


def test_a_machine_without_a_usable_gpu_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    tensorrt = fake_tensorrt([], b"")
    tensorrt.Builder = nothing
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    with pytest.raises(InputError, match=r"11\.4 finds no GPU that it can use"):
        TensorRTBuilder(tmp_path / "timing")


def test_the_plugins_that_come_with_tensorrt_are_registered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(tmp_path / "timing", monkeypatch, None).count("plugins") == 1


def test_precision_is_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = build(tmp_path / "timing", monkeypatch, None)
    assert "no TF32" in calls
    assert f"flags {1 << 3}" in calls  # a flag is the place of a bit


def test_a_plan_is_of_the_smallest_the_usual_and_the_largest_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "profile {'pixels': ((1, 3), (4, 3), (8, 3))}" in build(tmp_path / "timing", monkeypatch, None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"errors": ("no such node", "nor this one")}, "cannot parse the file: no such node; nor this one"),
        ({"plan": None}, "cannot build a plan; its log above says why"),
    ],
)
def test_a_network_of_which_no_plan_can_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt([], b"", **wrong))
    with pytest.raises(ExportError, match=f"^net: TensorRT {said}$"):
        TensorRTBuilder(tmp_path / "timing").build(tmp_path / "net/1/model.onnx", {})


def test_without_the_package_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match=r"--tensorrt needs the package tensorrt.*pip install 'likeness\[gpu\]'"):
        TensorRTBuilder(tmp_path / "timing")
