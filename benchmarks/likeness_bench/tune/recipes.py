"""Settings in recipes: as they are in memory, and in TOML files that keep their comments and their layout."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomlkit
from likeness_client import InputError
from likeness_export.recipe import Recipe, load_recipe, parse_recipe, with_serving
from likeness_export.serving_section import ServingSection
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from likeness_bench.tune.settings import Changes, Settings, changes


def settings_of(recipe: Recipe) -> Settings:
    """Return how the steps of a recipe are executed."""
    return Settings.of(recipe.serving, recipe.step_keys())


def recipe_with(recipe: Recipe, settings: Settings) -> Recipe:
    """Return a recipe with other settings; what they have in common with its own stays as it is."""
    steps = {name: section.model_dump(exclude_none=True) for name, section in recipe.serving.steps.items()}
    for step, keys in _missing(recipe, settings).items():
        steps[step] = {**steps.get(step, {}), **keys}
    return with_serving(recipe, ServingSection.model_validate(recipe.serving.model_dump() | {"steps": steps}))


def recipe_text(path: Path, settings: Settings) -> str:
    """Return a recipe file with these settings in ``[serving.steps]``; all else stays as it is, comments included.

    Raises:
        InputError: the file cannot be read, or is written in a way that cannot take them.
    """
    recipe = load_recipe(path)
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8-sig"))
        for step, keys in _missing(recipe, settings).items():
            _section(document, ("serving", "steps", step)).update(keys)
        text = tomlkit.dumps(document).rstrip("\n") + "\n"
        found = parse_recipe(tomllib.loads(text), str(path))
        # The file may have steps more: those of towers that share another one's preprocessing once they are exported.
        taken = {*settings.steps} <= {*settings_of(found).steps} and found.digest() == recipe.digest()
    except (OSError, ValueError, TOMLKitError):
        taken = False
    if not taken:
        raise InputError(
            f"{path} cannot take settings of steps: write [serving.steps.<model>] as sections, not as keys"
        )
    return text


def _section(document: tomlkit.TOMLDocument, names: tuple[str, ...]) -> Any:
    """Return a section, made where it is not there; inside an inline one, an inline one."""
    place: Any = document
    for depth, name in enumerate(names, 1):
        if name not in place:
            inline = isinstance(place, InlineTable)
            place[name] = tomlkit.inline_table() if inline else tomlkit.table(is_super_table=depth < len(names))
        place = place[name]
    return place


def _missing(recipe: Recipe, settings: Settings) -> Changes:
    """Return what has to be written into a recipe for these settings."""
    return changes(settings_of(recipe), settings, recipe.step_keys())
