"""A run: the folder that training fills and evaluation and export read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from likeness_client.errors import InputError
from likeness_client.writing import write_text, written_aside

from likeness_export.product_network import ProductNetwork, build_network
from likeness_export.recipe import Recipe, parse_recipe, with_serving
from likeness_export.serving_section import ServingSection


@dataclass(frozen=True)
class Run:
    """Paths and contents of a run's folder.

    ``recipe.json`` (the recipe with all its defaults), ``towers/<name>/`` (what preprocessing and building need),
    ``features/`` (cache), ``checkpoint.pt`` (while training), ``weights.pt`` and ``trained_on.json`` (when trained),
    ``log.jsonl`` (loss per epoch).

    Attributes:
        folder: the folder.
        serving: how it is to be executed, in place of what its recipe says; nothing that was trained depends on it.
    """

    folder: Path
    serving: ServingSection | None = None

    @property
    def towers(self) -> Path:
        """One prepared folder per tower."""
        return self.folder / "towers"

    @property
    def features(self) -> Path:
        """Cached features of encoders: of frozen ones in training, of all that were evaluated."""
        return self.folder / "features"

    @property
    def checkpoint(self) -> Path:
        """State after the last finished epoch."""
        return self.folder / "checkpoint.pt"

    @property
    def weights(self) -> Path:
        """All parameters of the trained network."""
        return self.folder / "weights.pt"

    @property
    def lock(self) -> Path:
        """Held while a process trains."""
        return self.folder / "lock"

    @property
    def log(self) -> Path:
        """One JSON line per epoch."""
        return self.folder / "log.jsonl"

    def write_trained_on(self, digest: str, product_ids: Sequence[str]) -> None:
        """Store what was trained on: a digest of the product records, empty in a joined run, and their ids."""
        write_text(self.folder / "trained_on.json", json.dumps({"records": digest, "product_ids": [*product_ids]}))

    def trained_on(self) -> tuple[str, frozenset[str]]:
        """Return what `write_trained_on` stored; nothing where it did not.

        Raises:
            InputError: the file is damaged.
        """
        place = self.folder / "trained_on.json"
        if not place.is_file():
            return "", frozenset()
        held = _json(place)
        try:
            return held["records"], frozenset(held["product_ids"])
        except (KeyError, TypeError) as error:
            raise _damaged(place, ValueError("it does not say what was trained on")) from error

    @property
    def holds_recipe(self) -> bool:
        """Whether the folder is a run, trained or not."""
        return (self.folder / "recipe.json").is_file()

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the recipe."""
        write_text(self.folder / "recipe.json", recipe.model_dump_json(indent=1))

    def read_recipe(self) -> Recipe:
        """Return the recipe that the run was trained with, and is to be served with.

        Raises:
            InputError: the folder is not a run, or the file is damaged.
            RecipeError: `serving` names steps or signatures that the run does not have.
        """
        place = self.folder / "recipe.json"
        if not self.holds_recipe:
            raise InputError(f"{self.folder} is not a run: it has no recipe.json; train one with `likeness train`")
        held = _json(place)
        if self.serving is None or not isinstance(held, dict):
            return parse_recipe(held, str(place))
        return with_serving(parse_recipe(held | {"serving": {}}, str(place)), self.serving)

    def read_network(self) -> tuple[Recipe, ProductNetwork]:
        """Return the recipe and the trained network, in evaluation mode.

        Raises:
            InputError: the run is not trained to its end, or a file is damaged or of another run.
        """
        recipe = self.read_recipe()
        if not self.weights.is_file():
            again = "give the `likeness train` or `likeness join` that makes it once more"
            raise InputError(f"{self.folder} is not trained to its end: {again}")
        network = build_network(recipe, self.towers, None)
        state = load_state(self.weights)
        try:
            network.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:  # the latter of what is no state of a network
            raise InputError(
                f"{self.weights} does not fit {self.folder / 'recipe.json'}, or was written by another version: copy "
                "its folder again, or remove it and train anew"
            ) from error
        return recipe, network.eval()

    def write_weights(self, network: ProductNetwork) -> None:
        """Store all parameters."""
        save_state(network.state_dict(), self.weights)


def save_state(state: object, path: Path) -> None:
    """Store what `load_state` reads.

    Raises:
        InputError: it cannot be written.
    """
    # Through a file: a path would stand inside of it, and the space would depend on the process that wrote it.
    with written_aside(path) as aside, aside.open("wb") as out:
        try:
            torch.save(state, out)
        except RuntimeError as error:  # torch's own, about where the file ends, hides what the disk has said
            if isinstance(said := error.__context__, OSError):
                raise OSError(said.errno, said.strerror) from error
            raise


def load_state(path: Path) -> Any:
    """Return what `save_state` has stored, on the CPU.

    Raises:
        InputError: the file is damaged.
    """
    with path.open("rb") as file:
        try:
            return torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # on bytes that were none of its own torch fails with many types
            raise _damaged(path, error) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{path} is damaged ({reason}): copy its folder again, or remove it and train anew")
