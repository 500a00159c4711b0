"""Training on another device than the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from likeness_client.errors import InputError
from likeness_export.networks.product import ProductNetwork
from likeness_export.recipe import parse_recipe
from likeness_export.run import Run
from likeness_export.training import train

from tests.unit.second_device import second_device

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

LABELS: dict[str, Any] = {"training": {"epochs": 2, "head_epochs": 1, "proxies": 0.5, "hard_negatives": 0.3}}
PAIRS: dict[str, Any] = {
    "data": {"labels": [], "pairs": "pairs.csv"},
    "towers": {"text": {"encoder": "word_vectors", "vector_size": 8, "min_count": 1, "freeze": False}},
    "fusion": {"kind": "late"},
    "similarity": {"joint": True},
    "training": {"epochs": 3, "loss": "decoupled", "proxies": 0, "groups_per_batch": 6},
}


def write_texts_and_pairs(root: Path) -> None:
    lines = [json.loads(line) for line in (root / "products.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, product in enumerate(lines):
        product["title"] = f"thing of {product['group']}" + " and more" * (number % 3)
    (root / "products.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    pairs = [f"{g}-0,{g + other}-1,{int(not other)},train" for g in range(11) for other in (0, 1)]
    (root / "pairs.csv").write_text("\n".join(["left_id,right_id,label,split", *pairs]), encoding="utf-8")


def losses(run: Run) -> list[float]:
    return [json.loads(line)["loss"] for line in run.log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("sections", [LABELS, PAIRS], ids=["labels", "pairs"])
def test_another_device_learns_the_same_and_leaves_weights_for_the_cpu(
    tiny: Tiny, tmp_path: Path, sections: dict[str, Any]
) -> None:
    write_texts_and_pairs(tiny.root)
    raw = tiny.recipe.model_dump(mode="json")
    for section, values in sections.items():
        raw[section] = values if section == "fusion" else raw[section] | values
    recipe = parse_recipe(raw, "test")
    here, there = Run(tmp_path / "here"), Run(tmp_path / "there")
    train(recipe, here, tiny.root)
    with second_device() as device:
        train(recipe, there, tiny.root, str(device))
    assert losses(there) == pytest.approx(losses(here), rel=1e-4)
    weights = torch.load(there.weights, weights_only=True)
    for name, expected in torch.load(here.weights, weights_only=True).items():
        torch.testing.assert_close(weights[name], expected, atol=1e-4, rtol=1e-3)


def test_a_tensor_that_is_forgotten_on_the_cpu_is_noticed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = ProductNetwork.fuse
    monkeypatch.setattr(ProductNetwork, "fuse", lambda self, vectors, present: fuse(self, vectors, present.cpu()))
    with second_device() as device, pytest.raises(RuntimeError, match="tensors of two devices"):
        train(tiny.recipe, Run(tmp_path), tiny.root, str(device))


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, device: str
) -> None:
    with pytest.raises(
        InputError, match=rf"--device {device}: torch .* cannot use it .*; without --device the CPU trains"
    ):
        train(tiny.recipe, Run(tmp_path / "run"), tiny.root, device)
    assert not (tmp_path / "run").exists()
