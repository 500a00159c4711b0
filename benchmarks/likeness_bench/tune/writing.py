"""The result in its places: the repository's configurations, its manifest, and a recipe file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from likeness_client import InputError
from likeness_client.writing import write_text
from likeness_export.repository.rendering import render
from likeness_export.repository.servable import MANIFEST

from likeness_bench.tune.recipes import recipe_text, recipe_with
from likeness_bench.tune.settings import Settings
from likeness_bench.tune.target import Target, read_target


def write_result(target: Target, settings: Settings) -> list[Path]:
    """Write settings into the repository's configurations and manifest, and into the recipe file if there is one.

    All files are written, or, when one of them cannot be, none.

    Returns:
        The files that were changed.

    Raises:
        InputError: a file cannot be written, the recipe file cannot take the settings, or the repository is no longer
            the one that was tuned.
    """
    if read_target(target.folder, target.recipe_file).manifest != target.manifest:
        raise InputError(f"{target.folder} was exported again while it was tuned: tune it as it is now")
    recipe = recipe_with(target.recipe, settings)
    texts = {
        f"{name}/{path}": text
        for name, model in render(recipe, target.space).items()
        for path, text in model.files()
        if (target.folder / name / path).read_text(encoding="utf-8") != text
    }
    hashes = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in texts.items()}
    known = target.manifest.get("sha256", {})
    manifest = {**target.manifest, "recipe": recipe.model_dump(mode="json"), "sha256": {**known, **hashes}}
    files = {target.folder / path: text for path, text in texts.items()}
    files[target.folder / MANIFEST] = json.dumps(manifest, indent=1)
    if target.recipe_file:
        text = recipe_text(target.recipe_file, settings)
        if text != target.recipe_file.read_text(encoding="utf-8"):
            files[target.recipe_file] = text
    _write_together(files)
    return list(files)


def _write_together(files: Mapping[Path, str]) -> None:
    before = {path: path.read_text(encoding="utf-8") for path in files}
    try:
        for path, text in files.items():
            write_text(path, text)
    except BaseException:  # Ctrl-C, too
        for path, text in before.items():
            write_text(path, text)
        raise
