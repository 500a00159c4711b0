from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
from likeness_export.encoders import AnyEncoderConfig
from likeness_export.encoders.hashed import HashedConfig
from likeness_export.networks.fusion import AttentionConfig
from likeness_export.pipeline import networks, preprocess_steps
from likeness_export.recipe import (
    BUILT_IN,
    DataSection,
    Recipe,
    RecipeError,
    SimilaritySection,
    TrainingSection,
    load_recipe,
    parse_recipe,
    with_serving,
)
from likeness_export.serving_section import ServingSection, StepSection, StepSettings
from pydantic import BaseModel, ValidationError

DEMO = Path("demo")

ENCODERS = ", ".join(get_args(config.model_fields["encoder"].annotation)[0] for config in get_args(AnyEncoderConfig))


def raw() -> dict[str, Any]:
    return tomllib.loads((BUILT_IN / "demo.toml").read_text(encoding="utf-8"))


def message(change: Callable[[dict[str, Any]], object]) -> str:
    content = raw()
    change(content)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(content, "shop.toml")
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_IN.glob("*.toml")))
def test_built_in_recipes_load_and_survive_being_stored(name: str) -> None:
    recipe = load_recipe(Path(name))
    assert recipe.name == load_recipe(name).name == name
    again = parse_recipe(json.loads(recipe.model_dump_json()), "recipe.json")
    assert again == recipe
    assert again.digest() == recipe.digest()


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(DEMO).name = "other"


def test_a_file_wins_over_the_built_in_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (BUILT_IN / "demo.toml").read_text(encoding="utf-8")
    (tmp_path / "demo").write_text(content.replace("seed = 7", "seed = 8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(DEMO).seed == 8


def test_a_missing_file_names_the_built_in_recipes() -> None:
    with pytest.raises(RecipeError, match=r"no recipe nothing\.toml: .*built-in recipes: demo, .*fashion"):
        load_recipe(Path("nothing.toml"))


@pytest.mark.parametrize("content", [b"name = ", b"[data]\n[data]\n", b"name = '\xff'"])
def test_what_is_not_toml_is_refused_with_its_place(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "bad.toml"
    place.write_bytes(content)
    with pytest.raises(RecipeError, match=r"bad\.toml cannot be read as a recipe"):
        load_recipe(place)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    plain = (BUILT_IN / "demo.toml").read_text(encoding="utf-8")
    (tmp_path / "saved.toml").write_text(plain, encoding="utf-8-sig")  # as editors on Windows do
    assert load_recipe(tmp_path / "saved.toml") == load_recipe(Path("demo"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"no recipe {tmp_path}: give a TOML file or one of"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda r: r["training"].update(epoch=1),
            "training.epoch: there is no such key; allowed here are: "
            f"{', '.join(TrainingSection.model_fields)} (given: 1)",
        ),
        (
            lambda r: r["towers"]["image"].update(image_size=64),
            "towers.image.image_size: there is no such key; allowed here are: "
            "freeze, learning_rate, max_photos, encoder, image_px, width (given: 64)",
        ),
        (
            lambda r: r["fusion"].update(heads=2),
            "fusion.heads: there is no such key; allowed here are: kind, score (given: 2)",
        ),
        (
            lambda r: r.update(epochs=3),
            "epochs: there is no such key; allowed here are: "
            "name, dimension, seed, data, towers, fusion, similarity, training, serving (given: 3)",
        ),
        (
            lambda r: r["towers"]["image"].update(encoder="resnet"),
            f"towers.image.encoder: is not known; allowed are: {ENCODERS} (given: 'resnet')",
        ),
        (
            lambda r: r["towers"]["image"].pop("encoder"),
            f"towers.image.encoder: is missing; allowed are: {ENCODERS}",
        ),
        (
            lambda r: r["fusion"].update(kind="mean"),
            "fusion.kind: is not known; allowed are: attention, concatenation, late (given: 'mean')",
        ),
        (lambda r: r["fusion"].pop("kind"), "fusion.kind: is missing; allowed are: attention, concatenation, late"),
        (lambda r: r["fusion"].update(score="x"), "fusion.score: must be 'linear' or 'mlp' (given: 'x')"),
        (lambda r: r["training"].update(epochs=0), "training.epochs: must be greater than or equal to 1 (given: 0)"),
        (
            lambda r: r["training"].update(precision="fp8"),
            "training.precision: must be 'fp32' or 'bf16' (given: 'fp8')",
        ),
        (
            lambda r: r["towers"].update({"My Tower": {"encoder": "small_cnn"}}),
            "towers.My Tower: must match pattern '^[a-z][a-z0-9]*$' (given: 'My Tower')",
        ),
        (
            lambda r: r["towers"].update(transformer={"encoder": "transformer"}),
            "towers.transformer.source: is missing (directory, package or hub name of a Hugging Face encoder)",
        ),
        (
            lambda r: r["training"].update(temperature=float("inf")),
            "training.temperature: must be a finite number (given: inf)",
        ),
        (
            lambda r: r["towers"]["image"].update(learning_rate=float("inf")),
            "towers.image.learning_rate: must be a finite number (given: inf)",
        ),
        (
            lambda r: r["towers"]["image"].update(learning_rate=1e38),
            "towers.image.learning_rate: must be less than or equal to 10 (given: 1e+38)",
        ),
        (
            lambda r: r["training"].update(learning_rate=11),
            "training.learning_rate: must be less than or equal to 10 (given: 11)",
        ),
        (lambda r: r.update(name="n" * 65), f"name: must have at most 64 characters (given: '{'n' * 65}')"),
        (
            lambda r: r["towers"].update({"t" * 65: {"encoder": "small_cnn"}}),
            f"towers.{'t' * 65}: must have at most 64 characters (given: '{'t' * 65}')",
        ),
        (
            lambda r: r["towers"].update(text={"encoder": "word_vectors", "seed": 2**32}),
            "towers.text.seed: must be less than 4294967296 (given: 4294967296)",
        ),
        (
            lambda r: r["towers"].update(text={"encoder": "word_vectors", "window": 2**32}),
            "towers.text.window: must be less than or equal to 10000 (given: 4294967296)",
        ),
        (
            lambda r: r.update(serving={"instances": 2**32}),
            "serving.instances: must be less than or equal to 1024 (given: 4294967296)",
        ),
        (
            lambda r: r.update(serving={"steps": {"text_encoder": {"queue_delay_us": 2**64}}}),
            "serving.steps.text_encoder.queue_delay_us: must be less than or equal to 60000000 (given: "
            "18446744073709551616)",
        ),
        (lambda r: r["data"].update(train_splits=[]), "data.train_splits: must not be empty"),
        (lambda r: r.update(towers={}), "towers: must not be empty"),
        (lambda r: r.update(data="x"), "data: must be a section (given: 'x')"),
        (lambda r: r["towers"].update(image=5), "towers.image: must be a section (given: 5)"),
        (lambda r: r["data"].pop("products"), "data.products: is missing (JSON lines, relative to the data root)"),
        (lambda r: r["data"].update(labels="group"), "data.labels: must be a list (given: 'group')"),
        (lambda r: r["data"].update(pairs="pairs.csv"), "data: give either labels or pairs"),
        (
            lambda r: r["data"].update(labels=[], pairs="pairs.csv", held_out=1e-310),
            "data: a held-out share of 1e-310 holds out no pair: give 0, or at least 1e-06",
        ),
        (
            lambda r: r["data"].update(labels=[]),
            "data.labels: towers.image cannot learn without labels or pairs; give either, or "
            '["product_id"], by which modalities learn from each other',
        ),
    ],
)
def test_an_error_names_the_key_its_value_and_what_is_allowed(
    change: Callable[[dict[str, Any]], object], line: str
) -> None:
    assert message(change).splitlines() == ["shop.toml is not a valid recipe:", f"  {line}"]


def test_without_labels_and_pairs_encoders_that_learn_nothing_are_allowed() -> None:
    recipe = load_recipe(DEMO, ["data.labels=", "towers.image="])
    assert not recipe.learns
    assert load_recipe(DEMO).learns


def test_all_errors_are_told_at_once() -> None:
    text = message(lambda r: (r["training"].update(epochs=0, epoch=1), r.update(dimension=4)))
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == [
        "dimension",
        "training.epochs",
        "training.epoch",
    ]


def test_overrides_take_toml_values_and_bare_words() -> None:
    recipe = load_recipe(
        DEMO,
        [
            "training.epochs=3",
            "name=mine",
            "fusion.score = linear",
            'data.labels=["fine_label", "group"]',
            "serving.max_batch_size=8",
            "towers.text.freeze=false",
        ],
    )
    assert (recipe.training.epochs, recipe.name, recipe.serving.max_batch_size) == (3, "mine", 8)
    assert recipe.data.labels == ("fine_label", "group")
    assert recipe.fusion.model_dump() == {"kind": "attention", "score": "linear"}
    assert not recipe.towers["text"].freeze


def test_an_override_without_a_value_takes_a_tower_or_a_section_out() -> None:
    recipe = load_recipe(DEMO, ["towers.attributes=", "fusion="])
    assert list(recipe.towers) == ["text", "image"]
    assert recipe.fusion == AttentionConfig()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epochs", "write dotted.key=value"),
        ("name.first=x", "name is not a section"),
        ("training.epoch=3", "training.epoch: there is no such key; allowed here are: epochs"),
        ("=3", "there is no such key"),
        ("training.epoch=", "does not set training.epoch, so there is nothing to take out"),
    ],
)
def test_overrides_that_cannot_be_applied_are_refused(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(DEMO, [override])


def test_the_digest_changes_with_what_shapes_the_weights_and_only_with_that() -> None:
    def digest(*overrides: str) -> str:
        return load_recipe(DEMO, overrides).digest()

    same = {digest(), digest("serving.max_batch_size=8"), digest("serving.queue_delay_us=50", "serving.cpu_threads=1")}
    others = [
        digest("training.epochs=41"),
        digest("training.temperature=0.2"),
        digest("seed=8"),
        digest("dimension=64"),
        digest("fusion.score=linear"),
        digest("towers.image.image_px=72"),
        digest('data.labels=["fine_label"]'),
    ]
    assert len(same) == 1
    assert len({*same, *others}) == 1 + len(others)


def test_the_digest_of_a_recipe_stays_from_one_version_to_the_next() -> None:
    """With another one every space is new, and no interrupted training can go on: `exclude_if` leaves a new key out."""
    towers = {
        "a": {"encoder": "transformer", "source": "s"},
        "b": {"encoder": "tfidf"},
        "c": {"encoder": "word_vectors"},
        "d": {"encoder": "vision", "source": "s"},
        "e": {"encoder": "small_cnn"},
        "f": {"encoder": "efficientnet_lite"},
        "g": {"encoder": "local_features", "source": "s"},
        "h": {"encoder": "timm", "model": "m"},
        "i": {"encoder": "one_hot", "keys": ["kind"]},
        "j": {"encoder": "hashed", "keys": ["model"]},
        "k": {"encoder": "als"},
        "l": {"encoder": "c3d"},
        "m": {"encoder": "cnn_lstm"},
    }
    recipe = parse_recipe({"name": "a", "data": {"products": "p.jsonl", "labels": ["group"]}, "towers": towers}, "")
    assert recipe.digest() == "7020e88e161c4aa77336ca04a2bc2d3beef4f64cd576a682d508db4e7ad69f4a"


def test_the_digest_knows_the_order_of_the_towers_because_the_fusion_head_does() -> None:
    recipe = load_recipe(DEMO)
    turned = recipe.model_copy(update={"towers": dict(reversed(recipe.towers.items()))})
    assert turned.digest() != recipe.digest()


def test_what_a_recipe_says_of_its_inputs() -> None:
    recipe: Recipe = load_recipe(DEMO)
    assert recipe.modalities() == ("text", "image", "attributes")
    assert recipe.tower_modalities() == {"text": "text", "image": "image", "attributes": "attributes"}
    schema = recipe.input_schema()
    assert schema.text_fields == ("title", "description")
    assert schema.attribute_keys == ("kind", "material", "colour", "pattern", "size", "brand", "price_usd")


# --- what is left without a purpose


@pytest.mark.parametrize("tower", ["small_cnn", "c3d", "cnn_lstm"])
def test_an_encoder_of_random_weights_cannot_be_frozen(tower: str) -> None:
    with pytest.raises(RecipeError, match=r"towers\.look\.freeze: must be false.*at random"):
        load_recipe(DEMO, [f'towers.look={{encoder="{tower}",freeze=true}}'])


def test_an_encoder_that_must_learn_is_not_frozen_for_want_of_a_word() -> None:
    class Random(HashedConfig):
        never_frozen: ClassVar[str] = "it starts at random"

    with pytest.raises(ValidationError, match="must be false, it starts at random"):
        Random(encoder="hashed", keys=("ean",))


def test_a_space_that_nothing_shapes_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"training\.contrast: at 0 nothing shapes the space"):
        load_recipe(DEMO, ["training.contrast=0"])
    assert load_recipe(DEMO, ["training.contrast=0", "training.proxies=1"]).training.proxies == 1


OWN = 'data.labels=["product_id"]'


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["towers.image=", "towers.attributes="], r"data\.labels: product_id .* text is the only one"),
        (["training.proxies=1"], r"training\.proxies: needs a label that products share"),
        (["training.hard_negatives=0.5"], r"training\.hard_negatives: needs a label that products share"),
        (["training.modality_dropout=0", "training.co_learning=1"], r"training\.modality_dropout: at 0"),
        (['fusion={kind="late"}'], r"fusion\.kind: late keeps the towers apart"),
        (["data.source=brand"], r"data: source belongs to a label that products share"),
    ],
)
def test_what_cannot_be_learned_from_products_that_are_alike_to_themselves_alone(
    settings: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [OWN, *settings])


def test_products_may_be_alike_to_themselves_alone() -> None:
    recipe = load_recipe(DEMO, [OWN])
    assert recipe.learns
    assert recipe.data.alike_to_itself
    assert not load_recipe(DEMO, ['data.labels=["group","product_id"]']).data.alike_to_itself


def test_a_single_modality_cannot_be_contrasted_with_others() -> None:
    alone = ["training.contrast=0", "training.co_learning=1"]
    assert load_recipe(DEMO, alone).training.co_learning == 1
    towers = load_recipe(DEMO).tower_modalities()
    others = [f"towers.{name}=" for name, modality in towers.items() if modality != "text"]
    with pytest.raises(RecipeError, match=r"training\.co_learning: .* text is the only one.*give training\.contrast"):
        load_recipe(DEMO, [*alone, *others])
    assert load_recipe(DEMO, [*alone, *others, "training.contrast=1"]).modalities() == ("text",)


# --- how steps are executed


def test_what_a_step_does_not_say_is_that_of_the_whole_section() -> None:
    recipe = load_recipe(
        DEMO,
        [
            "serving.instances=2",
            "serving.cpu_threads=3",
            "serving.queue_delay_us=50",
            "serving.steps.text_encoder={instances=4, preferred_batch_size=[4, 8]}",
            "serving.steps.image_encoder.queue_delay_us=0",
        ],
    )
    whole = StepSettings(instances=2, cpu_threads=3, preferred_batch_size=(), queue_delay_us=50)
    assert recipe.serving.of("fusion_text") == whole
    assert recipe.serving.of("text_encoder") == StepSettings(
        instances=4, cpu_threads=3, preferred_batch_size=(4, 8), queue_delay_us=50
    )
    assert recipe.serving.of("image_encoder").queue_delay_us == 0
    assert parse_recipe(json.loads(recipe.model_dump_json()), "recipe.json") == recipe


@pytest.mark.parametrize("name", ["demo", "fashion"])
def test_the_steps_of_a_recipe_are_those_of_its_pipeline(name: str) -> None:
    recipe = load_recipe(Path(name))
    steps = [step.name for step in (*preprocess_steps(recipe), *networks(recipe))]
    assert list(recipe.step_keys()) == steps
    assert {step for step, keys in recipe.step_keys().items() if "cpu_threads" not in keys} == {
        step.name for step in preprocess_steps(recipe)
    }


NETWORK_KEYS = "instances, cpu_threads, preferred_batch_size, queue_delay_us"


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        (
            {"text_enc": {"instances": 2}},
            f"serving.steps.text_enc: there is no such step; allowed are: {', '.join(load_recipe(DEMO).step_keys())}",
        ),
        (
            {"text_preprocess": {"cpu_threads": 2}},
            "serving.steps.text_preprocess.cpu_threads: means nothing for this step; "
            "allowed here are: instances, preferred_batch_size, queue_delay_us (given: 2)",
        ),
        (
            {"similarity_matrix": {"queue_delay_us": 5}},
            "serving.steps.similarity_matrix.queue_delay_us: means nothing for this step; "
            "allowed here are: instances, cpu_threads (given: 5)",
        ),
        (
            {"text_encoder": {"threads": 2}},
            f"serving.steps.text_encoder.threads: there is no such key; allowed here are: {NETWORK_KEYS} (given: 2)",
        ),
        (
            {"text_encoder": {"instances": 0}},
            "serving.steps.text_encoder.instances: must be greater than or equal to 1 (given: 0)",
        ),
        (
            {"text_encoder": {"preferred_batch_size": [8, 64]}},
            "serving.steps.text_encoder.preferred_batch_size: must not be above serving.max_batch_size, 32 "
            "(given: [8, 64])",
        ),
        (
            {"text_encoder": {"preferred_batch_size": [8, 4]}},
            "serving.steps.text_encoder.preferred_batch_size: the sizes must ascend (given: [8, 4])",
        ),
        ({"text_encoder": 2}, "serving.steps.text_encoder: must be a section (given: 2)"),
    ],
)
def test_a_step_that_is_given_something_meaningless_is_refused(steps: dict[str, Any], line: str) -> None:
    text = message(lambda r: r.update(serving={"steps": steps}))
    assert text.splitlines() == ["shop.toml is not a valid recipe:", f"  {line}"]


def test_every_fault_of_the_steps_is_told_in_a_line_of_its_own() -> None:
    steps = {"nothing": {}, "text_preprocess": {"cpu_threads": 1}}
    lines = message(lambda r: r.update(serving={"steps": steps})).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  serving.steps.nothing",
        "  serving.steps.text_preprocess.cpu_threads",
    ]


def test_steps_of_signatures_that_are_not_served_do_not_exist() -> None:
    serving = {"signatures": ["text"], "steps": {"fusion_image": {"instances": 2}}}
    assert "there is no such step; allowed are: " in message(lambda r: r.update(serving=serving))


def test_another_serving_section_leaves_the_digest_and_is_checked() -> None:
    recipe = load_recipe(DEMO)
    other = with_serving(recipe, ServingSection(cpu_threads=1, steps={"text_encoder": StepSection(instances=3)}))
    assert other.digest() == recipe.digest()
    assert (other.serving.of("text_encoder").instances, other.serving.cpu_threads) == (3, 1)
    with pytest.raises(RecipeError, match=r"serving\.steps\.video_encoder: there is no such step"):
        with_serving(recipe, ServingSection(steps={"video_encoder": StepSection()}))


def test_the_guide_has_every_key_with_its_default() -> None:
    guide = (Path(__file__).parents[2] / "export" / "README.md").read_text(encoding="utf-8")
    sections: dict[str, type[BaseModel]] = {
        "data": DataSection,
        "similarity": SimilaritySection,
        "training": TrainingSection,
        "serving": ServingSection,
    }
    for name, section in sections.items():
        for key, field in section.model_fields.items():
            found = re.search(rf"^\| `{name}\.{key}(?:\.<model>)?` \| (.+?) \|", guide, flags=re.MULTILINE)
            assert found, f"{name}.{key}"
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                assert float(found[1]) == field.default, f"{name}.{key}"


def test_a_label_of_a_key_with_a_plus_sign_is_seen_to_be_read() -> None:
    changed = raw()
    changed["towers"] = {"facts": {"encoder": "one_hot", "keys": ["RAM+ROM", "kind"]}}
    recipe = parse_recipe(changed, "test")
    assert recipe.read_of(["attributes.RAM+ROM"]) == ["attributes.RAM+ROM"]
    assert recipe.read_of(["group+attributes.kind"]) == ["attributes.kind"]


def test_a_label_that_is_read_is_found_however_its_accents_are_written() -> None:
    recipe = parse_recipe(raw() | {"data": raw()["data"] | {"text_fields": ["attributes.größe"]}}, "shop.toml")
    assert recipe.read_of(["attributes.gro\u0308ße + brand"]) == ["attributes.größe"]
