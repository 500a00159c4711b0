"""Copies of the repository with other settings, for as long as they are served."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from likeness_client import InputError
from likeness_export.repository.rendering import render, write_configs

from likeness_bench.tune.recipes import recipe_with
from likeness_bench.tune.settings import Settings
from likeness_bench.tune.target import Target

_numbers = count(1)


@contextmanager
def trial_repository(target: Target, settings: Settings) -> Iterator[Path]:
    """Give a copy of the repository with other settings, for the length of a block.

    It lies beside the repository, so that weights and assets can be links: it takes no space worth naming.

    Raises:
        InputError: the copy cannot be made.
    """
    folder = target.folder.with_name(f".{target.folder.name}.{os.getpid()}.tune-{next(_numbers)}")
    # Configurations are written, not linked: a write into a link would change the repository itself.
    left_out = shutil.ignore_patterns("*.pbtxt", "__pycache__")
    try:
        try:
            shutil.copytree(target.folder, folder, copy_function=_link, ignore=left_out)
            write_configs(render(recipe_with(target.recipe, settings), target.space), folder)
        except OSError as error:
            raise InputError(f"cannot copy {target.folder} to {folder} ({error}): make room for it") from error
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:  # a file system without links
        shutil.copyfile(source, destination)
