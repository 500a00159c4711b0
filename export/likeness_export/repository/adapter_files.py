"""The Python files that a repository's steps consist of, copied as they are."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path

from likeness_client.contract import preprocess_model

from likeness_export.recipe import Recipe
from likeness_export.repository.rendering import RenderedModel

_ADAPTERS = Path(__file__).parent / "adapters"


def write_adapters(recipe: Recipe, models: Mapping[str, RenderedModel], folder: Path) -> None:
    """Copy ``model.py`` beside every network, and byte-identical preprocessing beside every preprocessing step."""
    preprocessing = {preprocess_model(name): recipe.towers[name].preprocessing for name in recipe.preprocessed_towers()}
    for name, model in models.items():
        version = folder / name / str(model.version)
        if name in preprocessing:
            shutil.copyfile(_ADAPTERS / "preprocess_model.py", version / "model.py")
            shutil.copyfile(_ADAPTERS / "counting.py", version / "counting.py")
            shutil.copyfile(inspect.getfile(preprocessing[name]), version / "preprocessing.py")
        elif "cpu" in model.profiles:
            shutil.copyfile(_ADAPTERS / "network_model.py", version / "model.py")
            shutil.copyfile(_ADAPTERS / "session.py", version / "session.py")
        else:
            continue
        for shared in ("answering.py", "lengths.py"):
            shutil.copyfile(_ADAPTERS / shared, version / shared)
