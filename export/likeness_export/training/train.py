"""Training: learn one space for all signatures of a recipe."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from likeness_client.errors import InputError
from likeness_client.locking import locked
from likeness_client.writing import clear_left, told, write_text

from likeness_export.product_network import ProductNetwork
from likeness_export.products.catalogue import Catalogue
from likeness_export.products.doubts import warn_of_doubts
from likeness_export.recipe import Recipe
from likeness_export.run import Run
from likeness_export.training.memory import keep_freed_memory
from likeness_export.training.trainer import Trainer, prepare_towers, untrained_network
from likeness_export.training.training_data import read_training_data, records_key

log = logging.getLogger(__name__)


def train(recipe: Recipe, run: Run, data_root: Path, device: str = "cpu") -> None:
    """Train a recipe into a run's folder, or go on where an interrupted training stopped.

    Args:
        recipe: the recipe.
        run: where to; a finished run of the same recipe is left as it is.
        data_root: what the recipe's relative paths start from.
        device: where networks are trained, as torch names it; what they learn differs a little between kinds of device.

    Raises:
        InputError: the folder holds a run of another recipe or something else, another process trains there, the data
            cannot be used, it has changed since the training was interrupted, or there is no such device.
        MissingExtraError: the package of an encoder is not installed.
    """
    place = _usable_device(device)
    torch.backends.cudnn.allow_tf32 = False  # on by default, unlike that of matrix products: fp32 means fp32
    _refuse_another(recipe, run)  # before a large catalogue is read
    if run.weights.is_file():
        log.info("%s is already trained", run.folder)
        _say_what_changed(recipe, run, data_root)
        if run.read_recipe().serving != recipe.serving:
            log.info("its [serving] section stays; `likeness export --serving RECIPE` takes another one")
        return
    data = read_training_data(recipe, data_root)  # before there is a folder: what it refuses leaves none behind
    with told(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    with locked(run.lock, f"{run.folder} is being trained"):
        _claim(recipe, run)
        for path in (run.weights, run.checkpoint, run.log):  # which nobody else writes
            clear_left(path, age_s=0)
        warn_of_doubts(data.catalogue, recipe.data.labels, recipe.read_fields())
        torch.manual_seed(recipe.seed)
        if not recipe.learns:
            write_text(run.log, "")  # no epochs
            network = _untaught(recipe, run, data.catalogue, data_root)
        else:
            trainer = Trainer(recipe, run, data, data_root, place)
            trainer.fit()
            network = trainer.network.cpu()
        run.write_trained_on(records_key(data.catalogue), data.catalogue.ids)
        run.write_weights(network)
        run.checkpoint.unlink(missing_ok=True)


def _usable_device(name: str) -> torch.device:
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # a GPU that this build has no kernels for is there, but answers nothing
    except (RuntimeError, AssertionError) as error:  # torch has no common error for what is not there
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device {name}: torch {torch.__version__} cannot use it ({reason}). For a GPU it has to be the build of "
            "torch for its CUDA; without --device the CPU trains"
        ) from error
    return probe.device


def _say_what_changed(recipe: Recipe, run: Run, data_root: Path) -> None:
    """Warn where the product file holds other training products than the run was trained on, if it is there at all."""
    known, _ = run.trained_on()
    with suppress(InputError):
        if known and records_key(read_training_data(recipe, data_root).catalogue) != known:
            log.warning(
                "the training products of %s are not those of then: train into another folder to learn from them",
                recipe.data.products,
            )


def _untaught(recipe: Recipe, run: Run, catalogue: Catalogue, data_root: Path) -> ProductNetwork:
    """Return the network as training would begin with it: encoders fitted, each tower's features only rotated."""
    prepare_towers(recipe, run, catalogue.parts(recipe.input_schema(), recipe.modalities(), in_part=True), data_root)
    network = untrained_network(recipe, run, data_root)
    for name in recipe.towers:
        if (width := network.tower(name).encoder.feature_dim) > recipe.dimension:
            log.warning(
                "towers.%s: %d features go into %d numbers; dimension = %d would keep all of them",
                name,
                width,
                recipe.dimension,
                width,
            )
    spaces = {tower.shared_space(run.towers / name) for name, tower in recipe.towers.items()} - {""}
    if len(spaces) > 1:
        log.warning(
            "the towers' sources %s do not share a space, so that no text finds a photo: give all of them one source",
            " and ".join(sorted(spaces)),
        )
    log.info("there are neither labels nor pairs: nothing is learned, the encoders answer as they are")
    return network


def _refuse_another(recipe: Recipe, run: Run) -> None:
    """Look whether the folder may be used, and leave it as it is.

    Raises:
        InputError: it holds a run of another recipe, or something else.
    """
    if run.weights.is_file() or run.checkpoint.is_file():
        if run.read_recipe().digest() != recipe.digest():
            raise InputError(f"{run.folder} holds a run of another recipe: choose another folder or remove it")
    elif run.towers.exists() and not run.holds_recipe:
        raise InputError(f"{run.towers} is there, but is not of a run: choose another folder")


def _claim(recipe: Recipe, run: Run) -> None:
    """Store the recipe, in place of one that no epoch was trained with or that differs in [serving] only.

    Raises:
        InputError: the folder holds a run of another recipe, or something else.
    """
    _refuse_another(recipe, run)
    if not (run.weights.is_file() or run.checkpoint.is_file()):
        shutil.rmtree(run.towers, ignore_errors=True)  # those of that recipe would stay
    if not run.weights.is_file():
        run.write_recipe(recipe)  # its [serving] may be another one; nothing that is trained depends on that
