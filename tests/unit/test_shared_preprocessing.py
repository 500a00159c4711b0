"""Towers that read the same files share one preprocessing step: found by the export, checked, served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from likeness_bench.in_process import InProcessPipeline, Threads
from likeness_client.contract import embed_model, tower_error
from likeness_client.payloads import payloads
from likeness_export.evaluation.evaluate import OfflineEmbedder
from likeness_export.exporting.export import export_run, share_preprocessing
from likeness_export.pipeline import preprocess_steps
from likeness_export.products.catalogue import read_catalogue
from likeness_export.recipe import Recipe, RecipeError, parse_recipe
from likeness_export.repository.check import check
from likeness_export.repository.rendering import render
from likeness_export.run import Run
from likeness_export.training.train import train

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

SMALL: dict[str, Any] = {"encoder": "small_cnn", "image_px": 32, "width": 8}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "dimension": 16,
    "data": {"products": "products.jsonl", "labels": ["group"]},
    "towers": {
        "front": SMALL,
        "back": SMALL | {"width": 12},
        "large": SMALL | {"image_px": 48},
        "attributes": {"encoder": "one_hot", "keys": ["kind", "colour"]},
    },
    "training": {"epochs": 1, "groups_per_batch": 6, "group_size": 2},
    "serving": {"max_batch_size": 4},
}


def recipe_of(**serving: Any) -> Recipe:
    return parse_recipe({**RECIPE, "serving": {"max_batch_size": 4, **serving}}, "test")


def prepared(folder: Path, recipe: Recipe) -> Run:
    """A run that has the towers' assets and nothing else."""
    run = Run(folder)
    for name, tower in recipe.towers.items():
        tower.prepare([b'{"kind": "vase", "colour": "red"}'], run.towers / name, folder)
    return run


def test_towers_with_the_same_assets_share_a_step(tmp_path: Path) -> None:
    found = share_preprocessing(recipe_of(), prepared(tmp_path, recipe_of()))
    assert found.serving.shared_preprocessing == {"back": "front"}
    assert found.digest() == recipe_of().digest()
    assert [step.name for step in preprocess_steps(found)] == [
        "front_preprocess",
        "large_preprocess",
        "attributes_preprocess",
    ]
    assert "back_preprocess" not in found.step_keys()
    models = render(found)
    check(models)
    assert models.keys() == render(recipe_of()).keys() - {"back_preprocess"}
    ensemble = models[embed_model("image")].default
    errors = {output.name for output in ensemble.output if output.name.endswith("_error")}
    assert errors == {tower_error("front"), tower_error("large")}
    taken = {step.model_name: set(step.input_map.values()) for step in ensemble.ensemble_scheduling.step}
    assert taken["front_encoder"] == taken["back_encoder"] != taken["large_encoder"]


def test_other_assets_or_settings_of_its_own_keep_a_step(tmp_path: Path) -> None:
    run = prepared(tmp_path, recipe_of())
    own = recipe_of(steps={"back_preprocess": {"instances": 2}})
    assert share_preprocessing(own, run).serving.shared_preprocessing == {}
    (run.towers / "back" / "assets" / "image.json").write_text("{}", encoding="utf-8")
    assert share_preprocessing(recipe_of(), run).serving.shared_preprocessing == {}


def test_what_an_earlier_export_found_is_found_anew(tmp_path: Path) -> None:
    stale = recipe_of(shared_preprocessing={"front": "back"})
    found = share_preprocessing(stale, prepared(tmp_path, stale))
    assert found.serving.shared_preprocessing == {"back": "front"}


@pytest.mark.parametrize(
    "shared",
    [
        {"back": "large"},
        {"back": "attributes"},
        {"back": "back"},
        {"back": "side"},
        {"side": "back"},
        {"back": "front", "front": "back"},
    ],
)
def test_a_share_that_cannot_be_is_refused(shared: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"serving\.shared_preprocessing\.\w+: must be another tower"):
        recipe_of(shared_preprocessing=shared)


def test_a_shared_step_feeds_both_encoders(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    recipe = recipe_of(signatures=["image"])  # each network takes its time to export
    train(recipe, run, tiny.root)
    export_run(run, tmp_path / "repository")
    assert not (tmp_path / "repository" / "back_preprocess").exists()
    catalogue = read_catalogue(tiny.products)
    expected = OfflineEmbedder(run, catalogue).embed(["image"])
    rows = np.flatnonzero(np.isfinite(expected).all(1))[:4]
    schema = run.read_recipe().input_schema()
    items = [[payloads(catalogue.products[row], schema, ["image"])["image"]] for row in rows]
    found = InProcessPipeline(tmp_path / "repository", Threads()).embed("image", items)
    assert found.errors == [""] * len(rows)
    np.testing.assert_allclose(found.vectors, expected[rows], rtol=0, atol=1e-4)
