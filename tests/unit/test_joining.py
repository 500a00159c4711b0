"""Joined runs: their similarity is the mean of their parts', and what does not fit together is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from likeness_client.contract import encoder_model
from likeness_client.errors import InputError
from likeness_export.cli import app
from likeness_export.evaluation.evaluate import OfflineEmbedder
from likeness_export.exporting.export import export_run
from likeness_export.networks.similarity import LearnedMetric, mean_metric
from likeness_export.products.catalogue import read_catalogue
from likeness_export.recipe import Recipe, parse_recipe
from likeness_export.run import Run
from likeness_export.training import joining
from likeness_export.training.joining import join_runs, joined_recipe
from likeness_export.training.train import train
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from typer.testing import CliRunner

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "dimension": 16,
    "data": {"products": "products.jsonl", "labels": ["group"]},
    "towers": {
        "image": {"encoder": "small_cnn", "image_px": 32, "width": 8},
        "attributes": {"encoder": "one_hot", "keys": ["kind", "colour"]},
    },
    "training": {"epochs": 2, "groups_per_batch": 6, "group_size": 2},
    "serving": {"max_batch_size": 4},
}
IMAGE, ATTRIBUTES = ({name: RECIPE["towers"][name]} for name in ("image", "attributes"))
LATE: dict[str, Any] = {"fusion": {"kind": "late"}}


def recipe_of(seed: int = 7, **changes: Any) -> Recipe:
    return parse_recipe({**RECIPE, "seed": seed, **changes}, "test")


def trained(tiny: Tiny, recipes: Sequence[Recipe]) -> list[Run]:
    runs = [Run(tiny.root.parent / f"run-{place}") for place in range(len(recipes))]
    for run, recipe in zip(runs, recipes, strict=True):
        train(recipe, run, tiny.root)
    return runs


def embedded(run: Run, tiny: Tiny, signature: Sequence[str]) -> NDArray[np.float32]:
    return OfflineEmbedder(run, read_catalogue(tiny.products)).embed(signature)


def learned(run: Run, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    _, network = run.read_network()
    both = torch.from_numpy(vectors)
    found: NDArray[np.float32] = network.metric(both[:, None], both[None]).detach().numpy()
    return found


def units(count: int, size: int) -> Tensor:
    return normalize(torch.randn(count, size), dim=1)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 12, 5)])
def test_the_mean_of_metrics_is_one_metric(sizes: tuple[int, ...]) -> None:
    metrics = []
    for place, size in enumerate(sizes):
        metric = LearnedMetric(size, 4 + place)
        metric.scale.data.fill_(5.0 + 4 * place)
        metric.bias.data.fill_(-1.0 * place)
        torch.nn.init.normal_(metric.correction.weight)
        torch.nn.init.normal_(metric.correction.bias)
        metrics.append(metric)
    left, right = ([units(50, size) for size in sizes] for _ in range(2))
    left[0][0] = right[0][0]  # the cosine at its end
    joined = mean_metric(metrics)
    found = joined(*(torch.cat(side, 1) / len(sizes) ** 0.5 for side in (left, right)))
    wanted = torch.stack([metric(*pair) for metric, *pair in zip(metrics, left, right, strict=True)]).mean(0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_mean_of_metrics_keeps_the_scale_of_one_whose_modality_is_there_alone() -> None:
    metrics = [LearnedMetric(8, 4) for _ in range(3)]
    for metric, scale in zip(metrics, (4.0, 10.0, 10.0), strict=True):
        metric.scale.data.fill_(scale)
    left, right = (torch.cat([units(50, 8), torch.zeros(50, 16)], 1) for _ in range(2))
    left[0] = right[0]  # the cosine at its end
    torch.testing.assert_close(mean_metric(metrics)(left, right), metrics[0](left[:, :8], right[:, :8]))


@pytest.mark.parametrize("changes", [{"towers": IMAGE}, LATE], ids=["one tower", "late fusion"])
def test_a_joined_run_s_scores_are_the_mean_of_its_parts(tiny: Tiny, tmp_path: Path, changes: dict[str, Any]) -> None:
    runs = trained(tiny, [recipe_of(seed, **changes) for seed in (1, 2)])
    joined = Run(tmp_path / "joined")
    join_runs(runs, joined)
    assert joined.trained_on() == ("", runs[0].trained_on()[1])
    recipe = joined.read_recipe()
    names = [f"{name}{place}" for place in (1, 2) for name in runs[0].read_recipe().towers]
    assert list(recipe.towers) == names
    assert recipe.serving.max_batch_size == RECIPE["serving"]["max_batch_size"]
    signature = recipe.modalities()
    parts = [embedded(run, tiny, signature) for run in runs]
    there = OfflineEmbedder(joined, read_catalogue(tiny.products)).present.all(1)
    assert 12 < there.sum() < len(there)
    parts, whole = [part[there] for part in parts], embedded(joined, tiny, signature)[there]
    np.testing.assert_allclose(whole @ whole.T, np.mean([part @ part.T for part in parts], 0), atol=1e-6)
    wanted = np.mean([learned(run, part) for run, part in zip(runs, parts, strict=True)], 0)
    np.testing.assert_allclose(learned(joined, whole), wanted, atol=1e-4)
    if "fusion" not in changes:  # both fuse late now, and export takes time for every network
        # Export verifies every network against torch, with the names that the joined run gives them.
        reports = export_run(joined, tmp_path / "repository")
        assert {encoder_model(name) for name in names} <= {report.name for report in reports}


def test_runs_of_different_modalities_answer_for_products_of_one(tiny: Tiny, tmp_path: Path) -> None:
    runs = trained(tiny, [recipe_of(towers=IMAGE), recipe_of(towers=ATTRIBUTES)])
    joined = Run(tmp_path / "joined")
    runs[1].write_trained_on("of others, too", [*runs[0].trained_on()[1], "another"])
    join_runs(runs, joined)
    assert joined.trained_on() == ("", runs[0].trained_on()[1] | {"another"})  # all that any of them has seen
    assert list(joined.read_recipe().towers) == ["image", "attributes"]
    for run, modality in zip(runs, ("image", "attributes"), strict=True):
        whole, part = embedded(joined, tiny, [modality]), embedded(run, tiny, [modality])
        np.testing.assert_allclose(whole @ whole.T, part @ part.T, atol=1e-6)


def test_how_the_first_run_s_steps_are_executed_says_nothing_of_the_joined_ones() -> None:
    serving = {"max_batch_size": 4, "steps": {"image_encoder": {"instances": 3}}, "signatures": ["image"]}
    joined = joined_recipe([recipe_of(1, towers=IMAGE, serving=serving), recipe_of(2, towers=ATTRIBUTES)])
    assert (joined.serving.max_batch_size, joined.serving.steps) == (4, {})
    assert {*joined.signatures()} == {"image", "attributes", "image_attributes"}


def test_a_join_is_made_anew_but_nothing_else_is_overwritten(tiny: Tiny, tmp_path: Path) -> None:
    first, second, other = trained(
        tiny, [recipe_of(1, towers=IMAGE), recipe_of(2, towers=IMAGE), recipe_of(3, towers=ATTRIBUTES)]
    )
    joined = Run(tmp_path / "joined")
    answer = CliRunner().invoke(
        app, ["join", *(str(run.folder) for run in (first, second)), "--out", str(joined.folder)]
    )
    assert answer.output == f"joined: {joined.folder}\n", answer.exception
    before = joined.weights.read_bytes()
    joined.weights.unlink()
    join_runs([first, second], joined)
    assert joined.weights.read_bytes() == before
    with pytest.raises(InputError, match="holds a run of another recipe: choose another folder or remove it"):
        join_runs([first, other], joined)
    with pytest.raises(InputError, match="run-0 is named twice: joined with itself, a run answers as it does alone"):
        join_runs([first, second, Run(first.folder / ".." / first.folder.name)], Run(tmp_path / "more"))
    other.weights.unlink()
    with pytest.raises(InputError, match="run-2 is not trained to its end"):
        join_runs([first, other], Run(tmp_path / "more"))
    assert not (tmp_path / "more").exists()


def test_a_join_that_is_cut_short_leaves_nothing_that_counts_as_trained(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, out = trained(tiny, [recipe_of(seed=seed, towers=ATTRIBUTES) for seed in (7, 8)]), Run(tmp_path / "joined")
    join_runs(runs, out)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(joining, "build_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        join_runs(runs, out)
    with pytest.raises(InputError, match="not trained to its end: give the `likeness train` or `likeness join` that"):
        out.read_network()


@pytest.mark.parametrize(
    ("recipes", "said"),
    [
        ([recipe_of(towers=IMAGE)], "name at least two"),
        (
            [recipe_of(towers=IMAGE), recipe_of(4)],
            r"run 2 of 2 \(tiny, seed 4\) fuses 2 towers by attention: only runs .*\}'$",
        ),
        (
            [recipe_of(towers=IMAGE), recipe_of(data={**RECIPE["data"], "labels": ["product_id"]})],
            r"train it with .*late.*, and by a label that products share",
        ),
        (
            [recipe_of(towers=IMAGE), recipe_of(towers=IMAGE, fusion={"kind": "concatenation"})],
            "run 2 of 2 .* fuses 1 towers by concatenation",
        ),
        (
            [recipe_of(towers=IMAGE), recipe_of(towers=IMAGE, dimension=8)],
            "run 2 of 2 .* dimension 8, the first has 16",
        ),
        (
            [
                recipe_of(
                    data={**RECIPE["data"], "text_fields": fields},
                    towers={"text": {"encoder": "word_vectors"}},
                )
                for fields in (["title"], ["title", "description"])
            ],
            "run 2 of 2 .* composes text of title, description, one before it of title: train",
        ),
        (
            [recipe_of(**LATE, towers={"image": IMAGE["image"], "image1": IMAGE["image"]}) for _ in range(11)],
            "the towers' names, image, image1, cannot be told apart",
        ),
    ],
)
def test_recipes_that_do_not_fit_together_are_refused(recipes: list[Recipe], said: str) -> None:
    with pytest.raises(InputError, match=said):
        joined_recipe(recipes)


def test_the_joined_recipe_reads_text_as_the_run_that_has_text() -> None:
    text = recipe_of(data={**RECIPE["data"], "text_fields": ["title"]}, towers={"text": {"encoder": "word_vectors"}})
    assert joined_recipe([recipe_of(towers=IMAGE), text]).data.text_fields == ("title",)


def test_the_joined_recipe_masks_as_the_run_that_has_text() -> None:
    def text(*masked: str) -> Recipe:
        return recipe_of(data={**RECIPE["data"], "masked": masked}, towers={"text": {"encoder": "word_vectors"}})

    assert joined_recipe([recipe_of(towers=IMAGE), text("group")]).data.masked == ("group",)
    with pytest.raises(InputError, match=r"different data\.masked"):
        joined_recipe([text("group"), text()])


def test_a_joined_run_knows_which_pairs_its_parts_have_not_seen() -> None:
    def recipe(fold: int, held_out: float = 0.2) -> Recipe:
        data = {"products": "products.jsonl", "pairs": "pairs.csv", "held_out": held_out, "fold": fold}
        return recipe_of(data=data, towers=IMAGE)

    assert joined_recipe([recipe(1), recipe(1)]).data.joined_folds == ()
    joined = joined_recipe([recipe(2), recipe(0), recipe(4)])
    assert joined.data.joined_folds == (2, 0, 4)
    for other in (recipe(1, 0.3), recipe(0, 0.0)):
        with pytest.raises(InputError, match="different shares"):
            joined_recipe([recipe(0), other])
    data, two = recipe(0).data.model_dump(mode="json"), {**IMAGE, "look": IMAGE["image"]}
    wider = recipe_of(data=data, towers=two, fusion={"kind": "late"})
    with pytest.raises(InputError, match="different folds of the pairs and have different numbers of towers"):
        joined_recipe([recipe(1), wider])
    assert joined_recipe([recipe(0), wider]).data.joined_folds == ()
    with pytest.raises(InputError, match="itself joined"):
        joined_recipe([joined, recipe(1)])
    with pytest.raises(InputError, match=r"with held_out = 0.2 there are 5, from 0 on"):
        recipe(5)
    with pytest.raises(InputError, match="nothing is held out"):
        recipe(1, 0.0)
