"""The repository that is tuned, and what it says of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from likeness_client import InputError
from likeness_export.recipe import Recipe, load_recipe, parse_recipe, with_serving
from likeness_export.repository.rendering import ModelConfig, render
from likeness_export.repository.servable import MANIFEST

from likeness_bench.configs import parse_config
from likeness_bench.tune.recipes import recipe_text, settings_of
from likeness_bench.tune.settings import Settings

_EXPORT = "export it again with `likeness export RUN --repository DIR`"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A repository and what it says of itself.

    Attributes:
        folder: the repository.
        manifest: its manifest, as plain data.
        recipe: the recipe that it was rendered from.
        recipe_file: a recipe that takes the result, too; None: there is none.
    """

    folder: Path
    manifest: Mapping[str, Any]
    recipe: Recipe
    recipe_file: Path | None

    @property
    def space(self) -> str:
        """Fingerprint of its embedding space."""
        return str(self.manifest["space"])

    @property
    def settings(self) -> Settings:
        """How its steps are executed now."""
        return settings_of(self.recipe)


def read_target(folder: Path, recipe_file: Path | None = None) -> Target:
    """Read a repository, and check that its configurations are those that its recipe makes.

    Raises:
        InputError: it is no exported repository, was changed by hand, or cannot be written; or ``recipe_file`` is a
            recipe of other steps, or cannot be written.
    """
    place = folder / MANIFEST
    if not place.is_file():
        raise InputError(f"{folder} has no {MANIFEST}: give the folder that `likeness export` made")
    try:
        manifest = json.loads(place.read_text(encoding="utf-8"))
        recipe = parse_recipe(manifest["recipe"], str(place))
        rendered = render(recipe, str(manifest["space"]))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place} cannot be read ({error}): give the folder that `likeness export` made") from error
    for name, model in rendered.items():
        for path, text in model.files():
            if parse_config(folder / name / path) != text_format.Parse(text, ModelConfig()):
                raise InputError(
                    f"{folder / name / path} is not what the recipe in {MANIFEST} renders: it was changed by hand, or "
                    f"another version of Likeness exported it, which {MANIFEST} names; tune with that, or {_EXPORT}"
                )
    others = {path.parent.name for path in folder.glob("*/config.pbtxt")} - rendered.keys()
    if others:
        raise InputError(f"{folder} holds models that are not of its recipe ({', '.join(sorted(others))}): {_EXPORT}")
    for written in (folder, folder.parent, *([recipe_file, recipe_file.parent] if recipe_file else [])):
        if not os.access(written, os.W_OK):
            raise InputError(f"cannot write to {written}: give a place that can be written, e.g. a copy")
    if recipe_file:
        _check_recipe(recipe_file, folder, recipe)
    return Target(folder=folder.resolve(), manifest=manifest, recipe=recipe, recipe_file=recipe_file)


def _check_recipe(path: Path, folder: Path, recipe: Recipe) -> None:
    """Check that a recipe file fits the repository and can take settings, before time is spent on finding some."""
    theirs = load_recipe(path)
    if theirs.towers.keys() == recipe.towers.keys():
        shared = {"shared_preprocessing": recipe.serving.shared_preprocessing}  # which the export has found
        theirs = with_serving(theirs, theirs.serving.model_copy(update=shared))
    if (theirs.step_keys(), theirs.serving.max_batch_size) != (recipe.step_keys(), recipe.serving.max_batch_size):
        raise InputError(f"{path} has other steps, or another max_batch_size, than {folder}: give its own recipe")
    settings = settings_of(theirs)
    for step, held in settings.steps:
        settings = settings.changed(step, instances=held.instances + 1)
    recipe_text(path, settings)
    recipe_text(path, settings_of(recipe))  # what the repository has is what a search begins with
