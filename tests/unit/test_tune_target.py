"""The repository that is tuned: copies that leave it as it is, and the result in its files and in a recipe's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from likeness_bench.tune.copying import trial_repository
from likeness_bench.tune.recipes import recipe_text, recipe_with, settings_of
from likeness_bench.tune.settings import Settings
from likeness_bench.tune.target import read_target
from likeness_bench.tune.writing import write_result
from likeness_client import InputError
from likeness_client.contract import space_version
from likeness_client.writing import write_text
from likeness_export.recipe import BUILT_IN, load_recipe, with_serving
from likeness_export.repository.rendering import render, write_configs
from likeness_export.repository.servable import MANIFEST

DEMO = (BUILT_IN / "demo.toml").read_text(encoding="utf-8").partition("\n[serving")[0]


@pytest.fixture
def repository(rendered_repository: Path) -> Path:
    return rendered_repository


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other(settings: Settings) -> Settings:
    return settings.changed("text_encoder", instances=3, preferred_batch_size=(8,)).changed(
        "image_preprocess", instances=2, queue_delay_us=300
    )


def test_a_copy_has_other_configurations_and_the_same_weights(repository: Path) -> None:
    target, before = read_target(repository), content(repository)
    with trial_repository(target, other(target.settings)) as folder:
        assert folder.parent == repository.parent
        found = content(folder)
        assert found.keys() == before.keys()
        assert {name for name in found if found[name] != before[name]} == {
            "image_preprocess/config.pbtxt",
            "text_encoder/config.pbtxt",
            "text_encoder/configs/cpu.pbtxt",
            "text_encoder/configs/tensorrt.pbtxt",
        }
        weights = "text_encoder/1/model.onnx"
        assert (folder / weights).samefile(repository / weights)
        with trial_repository(target, target.settings) as another:
            assert another != folder
            assert content(another) == before  # with the manifest, by which a server sees that the copy is whole
    assert content(repository) == before
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_a_copy_goes_when_it_is_interrupted(repository: Path) -> None:
    target = read_target(repository)
    with pytest.raises(KeyboardInterrupt), trial_repository(target, target.settings):
        raise KeyboardInterrupt
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_copies_work_where_files_cannot_be_linked(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    target = read_target(repository)
    with trial_repository(target, target.settings) as folder:
        assert (folder / "text_encoder/1/model.onnx").read_bytes() == b"weights"


def test_the_result_reaches_configurations_manifest_and_recipe(repository: Path, tmp_path: Path) -> None:
    recipe_file = tmp_path / "shop.toml"
    recipe_file.write_text(DEMO, encoding="utf-8")
    target, before = read_target(repository, recipe_file), content(repository)
    tuned = other(target.settings)
    written = write_result(target, tuned)
    again = read_target(repository, recipe_file)  # which checks that configurations and manifest agree
    assert again.settings == tuned
    assert again.space == target.space
    assert again.recipe.digest() == target.recipe.digest()
    assert again.manifest["created"] == "then"
    found = content(repository)
    del found[MANIFEST]
    assert again.manifest["sha256"] == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    assert {path.resolve() for path in written} == {
        recipe_file,
        repository / MANIFEST,
        *(repository / name for name, data in found.items() if data != before[name]),
    }
    assert settings_of(load_recipe(recipe_file)) == tuned
    assert list(tmp_path.rglob("*.partial")) == []
    # And back again: what a step says itself is changed, too.
    write_result(again, target.settings)
    assert read_target(repository).settings == target.settings


def test_either_all_files_are_written_or_none(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, before = read_target(repository), content(repository)

    def interrupted(path: Path, text: str) -> None:
        write_text(path, text)
        if path.name == MANIFEST and '"instances": 3' in text:
            raise KeyboardInterrupt

    monkeypatch.setattr("likeness_bench.tune.writing.write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_result(target, other(target.settings))
    assert content(repository) == before


def test_a_repository_that_was_exported_again_meanwhile_is_left_as_it_is(repository: Path) -> None:
    target = read_target(repository)
    version, another = (str(space_version(space)) for space in (target.space, "another"))
    for path in [repository / MANIFEST, *repository.rglob("*.pbtxt")]:
        text = path.read_text(encoding="utf-8").replace(target.space, "another").replace(version, another)
        path.write_text(text, encoding="utf-8")
    before = content(repository)
    with pytest.raises(InputError, match="was exported again while it was tuned"):
        write_result(target, other(target.settings))
    assert content(repository) == before


def test_a_recipe_whose_towers_share_their_preprocessing_is_the_repositorys_own(tmp_path: Path) -> None:
    second = '\n[towers.back]\nencoder = "small_cnn"\nimage_px = 64\n'
    own = tmp_path / "shop.toml"
    own.write_text(DEMO + second, encoding="utf-8")
    recipe = load_recipe(own)
    shared = recipe.serving.model_copy(update={"shared_preprocessing": {"back": "image"}})
    recipe = with_serving(recipe, shared)
    folder = tmp_path / "repository"
    write_configs(render(recipe, "space"), folder)
    (folder / MANIFEST).write_text(json.dumps({"space": "space", "recipe": recipe.model_dump(mode="json")}))
    target = read_target(folder, own)
    write_result(target, target.settings.changed("back_encoder", instances=3))
    assert load_recipe(own).serving.of("back_encoder").instances == 3


# --- repositories that cannot be tuned


def test_what_is_no_export_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"{tmp_path} has no manifest.json: give the folder that `likeness export` made"
    ):
        read_target(tmp_path)
    (repository / MANIFEST).write_text('{"recipe": {"name": "x"}}', encoding="utf-8")
    with pytest.raises(InputError, match="is not a valid recipe"):
        read_target(repository)


def test_configurations_that_were_changed_by_hand_are_not_overwritten(repository: Path) -> None:
    place = repository / "text_encoder" / "config.pbtxt"
    place.write_text(place.read_text().replace("dynamic_batching", "# by hand\ndynamic_batching"), encoding="utf-8")
    read_target(repository)  # it says the same
    place.write_text(place.read_text().replace("max_batch_size: 32", "max_batch_size: 16"), encoding="utf-8")
    with pytest.raises(InputError, match=r"text_encoder/config\.pbtxt is not what the recipe .*another version"):
        read_target(repository)


def test_a_model_that_the_recipe_does_not_know_is_refused(repository: Path) -> None:
    (repository / "mine").mkdir()
    (repository / "mine" / "config.pbtxt").write_text('name: "mine"', encoding="utf-8")
    with pytest.raises(InputError, match=r"models that are not of its recipe \(mine\)"):
        read_target(repository)


@pytest.mark.parametrize(
    "text", [DEMO.replace("[towers.image]", "[towers.photo]"), f"{DEMO}\n[serving]\nmax_batch_size = 4\n"]
)
def test_a_recipe_of_other_steps_is_refused(text: str, repository: Path, tmp_path: Path) -> None:
    recipe_file = tmp_path / "shop.toml"
    recipe_file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="has other steps, or another max_batch_size"):
        read_target(repository, recipe_file)


# --- recipes in TOML

ENDINGS = {
    "no section": "",
    "a section": "\n[serving]\nqueue_delay_us = 0 # none\n",
    "a step of its own": "\n[serving.steps.text_encoder] # mine\ninstances = 1 # one\ncpu_threads = 2 # two\n",
    "another step": "\n[serving]\ncpu_threads = 2\n\n[serving.steps.similarity]\ninstances = 2\n",
    "an inline step": '\n[serving]\nsteps = { text_encoder = { instances = 1 } } # short\nsignatures = ["text"]\n',
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("last", [True, False], ids=["at the end", "before another section"])
def test_a_recipe_keeps_its_comments_and_its_layout(tmp_path: Path, ending: str, last: bool) -> None:
    path = tmp_path / "shop.toml"
    middle = DEMO.index("[training]")
    path.write_text(DEMO + ending if last else DEMO[:middle] + ending.lstrip() + "\n" + DEMO[middle:], encoding="utf-8")
    recipe = load_recipe(path)
    tuned = settings_of(recipe).changed("text_encoder", instances=2, preferred_batch_size=(8, 16))
    tuned = tuned.changed("fusion_text", cpu_threads=1)
    text = recipe_text(path, tuned)
    before, after = path.read_text(encoding="utf-8").splitlines(), text.splitlines()
    # A line whose value changes may be another one; every comment and every other line is still there, in order.
    kept = [line for line in before if "instances = 1" not in line and line.strip()]
    rest = iter(after)
    assert all(line in rest for line in kept), text
    for comment in ("# mine", "# one", "# two", "# short", "# none"):
        assert (comment in text) == (comment in "\n".join(before))
    path.write_text(text, encoding="utf-8")
    again = load_recipe(path)
    assert settings_of(again) == tuned
    assert again.model_copy(update={"serving": recipe.serving}) == recipe
    assert recipe_text(path, tuned) == text


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(DEMO, encoding="utf-8-sig")
    assert recipe_text(path, settings_of(load_recipe(path))).startswith(DEMO[:20])


def test_a_recipe_that_cannot_take_the_settings_is_refused_first(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(DEMO + "\n[serving]\nsteps.text_encoder.instances = 1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"write \[serving\.steps\.<model>\] as sections, not as keys"):
        read_target(repository, path)


def test_nothing_to_change_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(DEMO, encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe_text(path, settings_of(recipe)) == DEMO


def test_a_recipe_with_other_settings_says_no_more_than_it_must(repository: Path) -> None:
    target = read_target(repository)
    recipe = recipe_with(target.recipe, other(target.settings))
    assert recipe.serving.steps["text_encoder"].model_dump(exclude_none=True) == {
        "instances": 3,
        "preferred_batch_size": (8,),
    }
    assert recipe.serving.steps.keys() == {"text_encoder", "image_preprocess"}
    assert recipe_with(target.recipe, target.settings) == target.recipe
