"""A catalogue of coloured squares, small enough to train on in a second, and what training and export make of it.

Tests get it through fixtures, and import this module for its types only.
"""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from likeness_export.exporting.export import export_run
from likeness_export.exporting.onnx_export import ExportReport
from likeness_export.recipe import Recipe, load_recipe, parse_recipe
from likeness_export.repository.rendering import render, write_configs
from likeness_export.repository.servable import MANIFEST
from likeness_export.run import Run
from likeness_export.training.train import train
from PIL import Image

LittleRoom: TypeAlias = Callable[[int], AbstractContextManager[None]]
GROUPS, LISTINGS, IMAGE_PX = 12, 3, 32
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "dimension": 16,
    "data": {"products": "products.jsonl", "labels": ["group"]},
    "towers": {
        "image": {"encoder": "small_cnn", "image_px": IMAGE_PX, "width": 8},
        "attributes": {"encoder": "one_hot", "keys": ["kind", "colour", "price_usd"]},
    },
    "similarity": {"hidden": 8},
    "training": {"epochs": 3, "groups_per_batch": 6, "group_size": 2},
    "serving": {"max_batch_size": 4},
}


@dataclass(frozen=True)
class Tiny:
    """A data root with a catalogue, and a recipe for it."""

    root: Path
    recipe: Recipe

    @property
    def products(self) -> Path:
        return self.root / "products.jsonl"


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    run: Run
    recipe: Recipe
    repository: Path
    reports: list[ExportReport]


@pytest.fixture
def little_room() -> LittleRoom:
    """Inside the block no file can become larger, as on a full disk; unlike there, it concerns this process only."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def write_catalogue(root: Path) -> None:
    random = np.random.default_rng(5)
    (root / "images").mkdir(parents=True)
    lines = []
    for group in range(GROUPS):
        colour = random.integers(0, 256, 3)
        for listing in range(LISTINGS):
            product_id = f"{group}-{listing}"
            noisy = colour + random.normal(0, 12, (40, 48, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / f"images/{product_id}.png")
            record: dict[str, Any] = {"product_id": product_id, "split": "train", "group": f"g{group}"}
            record["serial"] = f"no {product_id}"  # which no two share
            # Every fourth product lacks its photo, every fifth its attributes; none lacks both.
            number = group * LISTINGS + listing
            if number % 4 or number % 5 == 0:
                record["images"] = [f"images/{product_id}.png"]
            if number % 5:
                record["attributes"] = {
                    "kind": f"kind {group % 3}",
                    "colour": f"c{group % 4}",
                    "price_usd": 10.0 + group,
                }
            lines.append(json.dumps(record))
    (root / "products.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """More threads only slow such small networks down, and sums in another order are other sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """A catalogue of one's own."""
    write_catalogue(tmp_path / "data")
    return Tiny(tmp_path / "data", parse_recipe(RECIPE, "test"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One trained and exported run for all tests; nobody changes it."""
    root = tmp_path_factory.mktemp("exported")
    write_catalogue(root / "data")
    recipe, run = parse_recipe(RECIPE, "test"), Run(root / "run")
    train(recipe, run, root / "data")
    return Exported(run, recipe, root / "repository", export_run(run, root / "repository"))


SPACE = "0123456789abcdef"


@pytest.fixture
def rendered_repository(tmp_path: Path) -> Path:
    """The demo's repository without networks: configurations, something like a weight, and a manifest."""
    folder, recipe = tmp_path / "repository", load_recipe(Path("demo"))
    write_configs(render(recipe, SPACE), folder)
    (folder / "text_encoder" / "1" / "model.onnx").write_bytes(b"weights")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    hashes = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    manifest = {"space": SPACE, "recipe": recipe.model_dump(mode="json"), "created": "then", "sha256": hashes}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder
