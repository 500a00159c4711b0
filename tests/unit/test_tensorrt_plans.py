"""What is asked of TensorRT; the package itself is not there."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from likeness_client.errors import InputError
from likeness_export.encoders.base import ASSETS
from likeness_export.exporting import export_run
from likeness_export.pipeline import StepSpec
from likeness_export.run import Run
from likeness_export.tensorrt_plans import PlanStep, Range, TensorRTBuilder, _lengths, _shapes, plan_ranges
from likeness_export.tensors import TensorSpec

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
    builder, repository = FakeBuilder(), tmp_path / "repository"
    export_run(exported.run, repository, [PlanStep(exported.run, builder)])
    networks = {path.parent.parent.name for path in repository.rglob("model.onnx")}
    assert builder.asked.keys() == networks
    for name in networks:
        assert (repository / name / "1" / "model.plan").read_bytes() == f"plan of {name}".encode()
    section = json.loads((repository / "manifest.json").read_text(encoding="utf-8"))["tensorrt"]
    assert section["tensorrt"] == "11.4"
    assert section["ranges"]["image_encoder"]["pixels"]["largest"] == [4, 32, 32, 3]


def test_batches_are_those_that_are_served(exported: Exported) -> None:
    ranges = plan_ranges(exported.run)
    assert ranges["image_encoder"]["pixels"] == Range(
        smallest=(1, 32, 32, 3), usual=(4, 32, 32, 3), largest=(4, 32, 32, 3)
    )
    assert ranges["fusion_image_attributes"].keys() == {"image_embedding", "attributes_embedding"}
    assert ranges["similarity"]["left"] == Range(smallest=(1, 1, 16), usual=(4, 1, 16), largest=(4, 1, 16))
    block = ranges["similarity_matrix"]["right"]
    assert (block.smallest, block.largest[0]) == ((1, 1, 16), 1)


def test_lengths_are_those_that_the_preprocessing_pads_to(tmp_path: Path) -> None:
    assets = tmp_path / "towers" / "text" / ASSETS
    assets.mkdir(parents=True)
    (assets / "text.json").write_text(json.dumps({"length_buckets": [16, 32, 64]}), encoding="utf-8")
    tensors = tuple(TensorSpec(name, "INT64", (-1,)) for name in ("input_ids", "attention_mask"))
    spec = StepSpec(name="text_encoder", inputs=tensors, outputs=(), tower="text")
    lengths = _lengths(Run(tmp_path), spec)
    wanted = Range(smallest=(1, 16), usual=(8, 16), largest=(32, 64))
    assert _shapes(spec, (1, 8, 32), lengths) == {"input_ids": wanted, "attention_mask": wanted}


def test_without_the_package_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match=r"--tensorrt needs the package tensorrt.*pip install 'likeness\[gpu\]'"):
        TensorRTBuilder(tmp_path / "timing")
