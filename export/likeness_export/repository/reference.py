"""The reference: a recipe's model repository without weights and assets, committed for people to read.

``python -m likeness_export.repository.reference model_repository`` renders it again; a test compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from likeness_export.recipe import Recipe, load_recipe
from likeness_export.repository.adapter_files import write_adapters
from likeness_export.repository.check import check
from likeness_export.repository.rendering import render, write_configs
from likeness_export.repository.replacing import replaced_repository


def write_reference(recipe: Recipe, folder: Path) -> None:
    """Render a recipe's repository as far as that needs no training; an earlier one is replaced.

    Raises:
        InputError: ``folder`` is a folder of something else.
    """
    models = render(recipe)
    check(models)
    with replaced_repository(folder) as aside:
        write_configs(models, aside)
        write_adapters(recipe, models, aside)


def main(
    folder: Annotated[Path, typer.Argument(help="The repository to render; an earlier one is replaced.")],
    recipe: Annotated[Path, typer.Option(help="A TOML file, or the name of a built-in recipe.")] = Path("demo"),
) -> None:
    """Render a recipe's model repository without weights."""
    write_reference(load_recipe(recipe), folder)


if __name__ == "__main__":
    typer.run(main)
