"""Join trained runs into one whose similarity is the mean of theirs.

Networks that were trained from different seeds err in different places, so their mean is better than each of them
(deep ensembles, Lakshminarayanan et al. 2017). Late fusion makes the mean an embedding like any other, so that a joined
run is evaluated, exported and served like one that was trained.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from likeness_client.errors import InputError
from likeness_client.writing import told_if_full

from likeness_export.networks.fusion import LateConfig, LateFusion
from likeness_export.networks.similarity import mean_metric
from likeness_export.product_network import ProductNetwork, build_network
from likeness_export.recipe import Recipe, parse_recipe
from likeness_export.run import Run

TEXT = "text"


def join_runs(runs: Sequence[Run], out: Run) -> None:
    """Join trained runs into a new one, ``z = [z_1; ...; z_k] / sqrt(k)``.

    Cosine and learned metric are the means of the runs' own, exactly, for products that have the modalities of every
    run, and of which every tower knows something; for others, late fusion shares out the weights anew.

    Args:
        runs: what to join; each has one tower, or fuses late.
        out: the folder to fill; an earlier join of the same recipes is made anew.

    Raises:
        InputError: a run is not trained to its end or named twice, they do not fit together, or ``out`` holds something
            else.
    """
    named = Counter(run.folder.resolve() for run in runs)
    if twice := [folder for folder, times in named.items() if times > 1]:
        raise InputError(f"{twice[0]} is named twice: joined with itself, a run answers as it does alone; name another")
    parts = [run.read_network() for run in runs]
    recipe = joined_recipe([recipe for recipe, _ in parts])
    if out.holds_recipe and out.read_recipe().digest() != recipe.digest():
        raise InputError(f"{out.folder} holds a run of another recipe: choose another folder or remove it")
    out.weights.unlink(missing_ok=True)  # until all is there again, the run counts as not trained
    out.write_recipe(recipe)
    names = _tower_names([recipe for recipe, _ in parts])
    for run, renamed in zip(runs, names, strict=True):
        for name, new in renamed.items():
            with told_if_full(out.towers):
                shutil.copytree(run.towers / name, out.towers / new, dirs_exist_ok=True)
    network = build_network(recipe, out.towers, None)
    _fill(network, [part for _, part in parts], names)
    out.write_trained_on("", sorted(frozenset().union(*(run.trained_on()[1] for run in runs))))
    out.write_weights(network)


def joined_recipe(recipes: Sequence[Recipe]) -> Recipe:
    """Return the recipe of a joined run: all towers, late fusion, and for the rest what the first recipe says.

    Raises:
        InputError: the recipes do not fit together.
    """
    if len(recipes) < 2:
        raise InputError("one run is nothing to join: name at least two")
    first = recipes[0]
    _check_fit(recipes)
    towers = {
        new: recipe.towers[name]
        for recipe, renamed in zip(recipes, _tower_names(recipes), strict=True)
        for name, new in renamed.items()
    }
    hidden = sum(recipe.similarity.hidden for recipe in recipes) + 1
    joined = first.model_copy(
        update={
            "data": first.data.model_copy(update={**_text_keys(recipes), "joined_folds": _folds(recipes)}),
            "towers": towers,
            "fusion": LateConfig(kind="late"),
            "similarity": first.similarity.model_copy(update={"hidden": hidden}),
            # The first run's steps have other names here, and its signatures may be too few.
            "serving": first.serving.model_copy(update={"steps": {}, "signatures": (), "shared_preprocessing": {}}),
        }
    )
    return parse_recipe(joined.model_dump(mode="json"), f"{first.name}, joined")


def _check_fit(recipes: Sequence[Recipe]) -> None:
    """Check that every run's embedding can be a part of a joined one.

    Raises:
        InputError: names the first run whose embedding cannot.
    """
    for place, recipe in enumerate(recipes):
        if not (isinstance(recipe.fusion, LateConfig) or recipe.fusion.keeps(len(recipe.towers), len(recipe.towers))):
            taught = ", and by a label that products share: so fused, no two modalities can learn from each other"
            raise InputError(
                f"{_who(recipes, place)} fuses {len(recipe.towers)} towers by {recipe.fusion.kind}: only runs of one "
                "tower, or with late fusion, can be joined; train it with --set 'fusion={kind=\"late\"}'"
                f"{taught if recipe.data.alike_to_itself else ''}"
            )
        if recipe.dimension != recipes[0].dimension:
            raise InputError(
                f"{_who(recipes, place)} has dimension {recipe.dimension}, the first has {recipes[0].dimension}: "
                "train them alike"
            )


def _text_keys(recipes: Sequence[Recipe]) -> dict[str, tuple[str, ...]]:
    """Return the keys of ``data`` that say what text is; a joined run reads one text, so its parts must agree on them.

    Raises:
        InputError: they do not.
    """
    reading = [place for place, recipe in enumerate(recipes) if TEXT in recipe.modalities()] or [0]
    said = recipes[reading[0]].data
    for place in reading:
        data = recipes[place].data
        if data.text_fields != said.text_fields:
            raise InputError(
                f"{_who(recipes, place)} composes text of {', '.join(data.text_fields)}, one before it of "
                f"{', '.join(said.text_fields)}: train them with the same data.text_fields"
            )
        if data.masked != said.masked:
            raise InputError("the runs have different data.masked, but a joined one reads one text: train them alike")
    return {"text_fields": said.text_fields, "masked": said.masked}


def _who(recipes: Sequence[Recipe], place: int) -> str:
    return f"run {place + 1} of {len(recipes)} ({recipes[place].name}, seed {recipes[place].seed})"


def _folds(recipes: Sequence[Recipe]) -> tuple[int, ...]:
    """Return the fold of the pairs that each recipe holds out; nothing if it is the same for all of them.

    Raises:
        InputError: folds of different sizes, of a run that was itself joined of several, or of parts of different size.
    """
    if any(recipe.data.joined_folds for recipe in recipes):
        raise InputError("a run is itself joined of several folds: join the trained runs, all at once")
    shares = {recipe.data.held_out for recipe in recipes}
    folds = tuple(recipe.data.fold for recipe in recipes)
    if len(shares) > 1:
        raise InputError(f"the runs hold out different shares of the pairs, {sorted(shares)}: train them alike")
    if len(set(folds)) == 1:
        return ()
    if len({len(recipe.towers) for recipe in recipes}) > 1:
        raise InputError(
            "the runs hold out different folds of the pairs and have different numbers of towers, but each part of the "
            "embedding is judged on its own fold: train them alike, or with the same data.fold"
        )
    return folds


def _tower_names(recipes: Sequence[Recipe]) -> list[dict[str, str]]:
    """Return, for each recipe, its towers' names -> their names in the joined one, with its place behind if need be."""
    every = [name for recipe in recipes for name in recipe.towers]
    if len(set(every)) == len(every):
        return [{name: name for name in recipe.towers} for recipe in recipes]
    renamed = [{name: f"{name}{place}" for name in recipe.towers} for place, recipe in enumerate(recipes, 1)]
    if len({new for names in renamed for new in names.values()}) < len(every):  # text of run 11, text1 of run 1
        raise InputError(
            f"the towers' names, {', '.join(sorted(set(every)))}, cannot be told apart with numbers behind"
        )
    return renamed


def _fill(network: ProductNetwork, parts: Sequence[ProductNetwork], names: Sequence[Mapping[str, str]]) -> None:
    """Give a joined network the weights of its parts."""
    shares = []
    for part, renamed in zip(parts, names, strict=True):
        for name, new in renamed.items():
            network.tower(new).load_state_dict(part.tower(name).state_dict())
        logits = part.fusion.logits.detach() if isinstance(part.fusion, LateFusion) else torch.zeros(1)
        shares.append(torch.softmax(logits, 0) / len(parts))
    assert isinstance(network.fusion, LateFusion)
    network.fusion.logits.data = torch.cat(shares).log()
    network.metric = mean_metric([part.metric for part in parts])
