from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from likeness_client.contract import SCHEMA_PARAMETER, SPACE_PARAMETER, InputSchema, all_signatures, space_version
from likeness_client.errors import InputError
from likeness_export.recipe import RecipeError, load_recipe
from likeness_export.repository.check import RepositoryError, check
from likeness_export.repository.reference import write_reference
from likeness_export.repository.rendering import UNTRAINED, VERSION, ModelConfig, RenderedModel, render, write_configs
from likeness_export.repository.servable import NETWORK_FILES
from tritonclient.grpc import model_config_pb2

RECIPE = load_recipe(Path("demo"))
REFERENCE = Path(__file__).parents[2] / "model_repository"
EMBED = "embed_text_image"
KIND = model_config_pb2.ModelInstanceGroup


def files(folder: Path) -> dict[str, bytes]:
    """Return what a repository consists of before it is trained; caches and weights of an export do not count."""
    kept = [path for suffix in ("*.pbtxt", "*.py", ".gitkeep") for path in folder.rglob(suffix)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_the_rendered_repository_fits_together() -> None:
    models = render(RECIPE)
    check(models)
    assert len(models) == 3 + 3 + 4 + 2 + 7 + 7
    assert {name for name, model in models.items() if model.default.platform == "ensemble"} == {
        f"{kind}_{signature}"
        for kind in ("embed", "similarity")
        for signature in all_signatures(["text", "image", "attributes"])
    }


def test_other_recipes_fit_together_too() -> None:
    check(render(load_recipe(Path("fashion"))))
    two_towers = load_recipe(
        Path("demo"), ['towers.texture={encoder="small_cnn", image_px=32}', "fusion={kind='concatenation'}"]
    )
    check(render(two_towers))
    assert "texture_encoder" in render(two_towers)


def test_a_network_has_three_profiles_with_the_same_tensors() -> None:
    for name, model in render(RECIPE).items():
        if name.endswith(("_encoder", "_matrix")) or name.startswith("fusion_") or name == "similarity":
            assert {"onnx", *model.profiles} == NETWORK_FILES.keys()
            platforms = [model.default, model.profiles["tensorrt"], model.profiles["cpu"]]
            assert [config.platform for config in platforms] == ["onnxruntime_onnx", "tensorrt_plan", ""]
            assert platforms[2].backend == "python"
        else:
            assert not model.profiles


def test_every_configuration_carries_the_space_and_every_ensemble_the_schema() -> None:
    for model in render(RECIPE, "abc").values():
        for config in (model.default, *model.profiles.values()):
            assert config.parameters[SPACE_PARAMETER].string_value == "abc"
        if model.default.platform == "ensemble":
            schema = InputSchema.from_json(model.default.parameters[SCHEMA_PARAMETER].string_value)
            assert schema == RECIPE.input_schema()


def test_serving_choices_reach_the_configurations() -> None:
    recipe = load_recipe(
        Path("demo"), ["serving.max_batch_size=5", "serving.queue_delay_us=70", "serving.cpu_threads=3"]
    )
    encoder = render(recipe)["attributes_encoder"]
    assert encoder.default.max_batch_size == 5
    assert encoder.default.dynamic_batching.max_queue_delay_microseconds == 70
    assert encoder.profiles["cpu"].parameters["cpu_threads"].string_value == "3"


def test_a_cpu_computes_a_few_photos_at_a_time_and_texts_by_length() -> None:
    recipe = load_recipe(Path("fashion"), ["serving.cpu_threads=3"])
    rows = {name: model.profiles["cpu"].parameters for name, model in render(recipe).items() if "cpu" in model.profiles}
    assert rows["image_encoder"]["run_rows"].string_value == "2"
    assert {"run_tokens"} == {key for key in rows["text_encoder"] if key.startswith("run_")}
    assert not any(key.startswith("run_") for name in rows if "encoder" not in name for key in rows[name])
    gpu = render(recipe)["image_encoder"].default.parameters
    assert "run_rows" not in gpu  # it takes the batch whole
    assert gpu["cudnn_conv_algo_search"].string_value == "1"


def test_models_compute_one_product_and_several_before_they_are_ready() -> None:
    models = render(load_recipe(Path("fashion"), ["serving.max_batch_size=8"]))
    encoder, step, block = (models[name] for name in ("text_encoder", "image_preprocess", "similarity_matrix"))
    sizes = {"cpu": [1, 2], "tensorrt": [1, 8]}
    assert {name: sizes_of(config) for name, config in encoder.profiles.items()} == sizes
    assert sizes_of(encoder.default) == [1, 8]
    assert sizes_of(step.default) == [1, 2]
    for config in (block.default, *block.profiles.values()):
        (sample,) = config.model_warmup
        assert {name: list(zeros.dims) for name, zeros in sample.inputs.items()} == {
            side: [1, 1, config.input[0].dims[2]] for side in ("left", "right")
        }
    alone = render(load_recipe(Path("fashion"), ["serving.max_batch_size=1", "serving.cpu_threads=1"]))["image_encoder"]
    assert [sizes_of(config) for config in (alone.default, *alone.profiles.values())] == [[1], [1], [1]]


def sizes_of(config: ModelConfig) -> list[int]:
    return [sample.batch_size for sample in config.model_warmup]


@pytest.mark.parametrize(("threads", "largest"), [(3, [16, 8]), (1, [8, 8])])
def test_texts_are_shared_out_from_more_than_one_request(threads: int, largest: list[int]) -> None:
    models = render(load_recipe(Path("fashion"), ["serving.max_batch_size=8", f"serving.cpu_threads={threads}"]))
    check(models)
    encoders = ("text_encoder", "image_encoder")
    assert [models[name].profiles["cpu"].max_batch_size for name in encoders] == largest
    assert {models[name].default.max_batch_size for name in encoders} == {8}


def test_the_settings_of_a_step_reach_its_configurations_and_no_others() -> None:
    plain = render(RECIPE)
    overrides = [
        "serving.steps.text_preprocess={instances=3, queue_delay_us=40}",
        "serving.steps.text_encoder={instances=2, cpu_threads=5, preferred_batch_size=[4, 16]}",
        "serving.steps.image_encoder={instances=2, cpu_threads=1}",
        "serving.steps.similarity={instances=2, queue_delay_us=60}",
        "serving.steps.similarity_matrix={instances=4, cpu_threads=1}",
    ]
    models = render(load_recipe(Path("demo"), overrides))
    check(models)
    preprocess = models["text_preprocess"].default
    assert [(group.count, group.kind) for group in preprocess.instance_group] == [(3, KIND.KIND_CPU)]
    assert preprocess.dynamic_batching.max_queue_delay_microseconds == 40
    encoder = models["text_encoder"]
    for config in (encoder.default, *encoder.profiles.values()):
        assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
        assert [group.count for group in config.instance_group] == [2]
    assert encoder.default.instance_group[0].kind == KIND.KIND_AUTO
    assert encoder.profiles["tensorrt"].instance_group[0].kind == KIND.KIND_AUTO
    assert encoder.profiles["cpu"].instance_group[0].kind == KIND.KIND_CPU
    assert encoder.profiles["cpu"].parameters["cpu_threads"].string_value == "5"
    assert models["similarity"].default.dynamic_batching.max_queue_delay_microseconds == 60
    blocks = models["similarity_matrix"].profiles["cpu"]
    assert blocks.instance_group[0].count == 4
    assert not blocks.HasField("dynamic_batching")
    changed = {name for name, model in models.items() if list(model.files()) != list(plain[name].files())}
    assert changed == {"text_preprocess", "text_encoder", "image_encoder", "similarity", "similarity_matrix"}


def test_the_number_of_instances_is_never_left_to_triton() -> None:
    for model in render(RECIPE).values():
        for config in (model.default, *model.profiles.values()):
            groups = [group.count for group in config.instance_group]
            assert (groups == []) if config.platform == "ensemble" else (len(groups) == 1 and groups[0] >= 1)
    assert render(RECIPE)["fusion_text_image"].default.instance_group[0].kind == KIND.KIND_AUTO
    everywhere = render(load_recipe(Path("demo"), ["serving.instances=2"]))
    assert everywhere["text_encoder"].default.instance_group[0].count == 2
    assert everywhere["text_preprocess"].default.instance_group[0].count == 2


def test_the_committed_repository_is_what_the_code_renders(tmp_path: Path) -> None:
    write_reference(RECIPE, tmp_path / "fresh")
    again, committed = files(tmp_path / "fresh"), files(REFERENCE)
    advice = "render it again: python -m likeness_export.repository.reference model_repository"
    assert sorted(committed) == sorted(again), advice
    assert [name for name in again if committed[name] != again[name]] == [], advice
    assert f'string_value: "{UNTRAINED}"' in committed["text_encoder/config.pbtxt"].decode()


def test_the_reference_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    write_reference(load_recipe(Path("demo"), ["serving.max_batch_size=2"]), folder)
    (folder / "old_model").mkdir()
    shutil.copy(folder / "embed_text" / "config.pbtxt", folder / "old_model")
    write_reference(RECIPE, folder)
    assert not (folder / "old_model").exists()
    assert files(folder) == files(REFERENCE)
    (folder / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds thesis\.txt, which no export has written"):
        write_reference(RECIPE, folder)
    assert (folder / "thesis.txt").read_text(encoding="utf-8") == "mine"


# --- broken graphs; a configuration is Any here, because Triton's protobuf ships no types


def remove_step(config: Any, model: str) -> None:
    steps = config.ensemble_scheduling.step
    del steps[[step.model_name for step in steps].index(model)]


def step(config: Any, model: str) -> Any:
    return next(step for step in config.ensemble_scheduling.step if step.model_name == model)


def entry(entries: Any, name: str) -> Any:
    return next(entry for entry in entries if entry.name == name)


def add_second_producer(models: dict[str, Any]) -> None:
    copy = models[EMBED].ensemble_scheduling.step.add()
    copy.CopyFrom(step(models[EMBED], "text_encoder"))


def put_the_consumer_first(models: dict[str, Any]) -> None:
    first = step(models[EMBED], "text_preprocess")
    moved = type(first)()
    moved.CopyFrom(first)
    remove_step(models[EMBED], "text_preprocess")
    models[EMBED].ensemble_scheduling.step.add().CopyFrom(moved)


BREAKS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing producer": (
        lambda m: remove_step(m[EMBED], "text_encoder"),
        f"{EMBED} -> fusion_text_image: text_embedding has no producer before this step",
    ),
    "missing producer of an output": (
        lambda m: remove_step(m[EMBED], "fusion_text_image"),
        f"{EMBED}: output embedding has no producer",
    ),
    "a consumer before its producer": (
        put_the_consumer_first,
        f"{EMBED} -> text_encoder: text_input_ids has no producer before this step",
    ),
    "two producers": (add_second_producer, f"{EMBED} -> text_encoder: text_embedding has a second producer"),
    "wrong type": (
        lambda m: setattr(m["text_preprocess"].output[0], "data_type", model_config_pb2.TYPE_INT32),
        f"{EMBED} -> text_encoder: text_input_ids: is produced as TYPE_INT32, taken as TYPE_INT64",
    ),
    "wrong sizes": (
        lambda m: entry(m["text_encoder"].output, "text_embedding").dims.__setitem__(0, 64),
        f"{EMBED} -> fusion_text_image: text_embedding: is produced with sizes [64], taken with [128]",
    ),
    "wrong number of sizes": (
        lambda m: entry(m["image_encoder"].output, "image_embedding").dims.append(1),
        f"{EMBED} -> fusion_text_image: image_embedding: is produced with sizes [128, 1], taken with [128]",
    ),
    "wrong sizes of an output": (
        lambda m: entry(m[EMBED].output, "modality_weights").dims.__setitem__(0, 3),
        f"{EMBED}: output modality_weights: is produced with sizes [2], taken with [3]",
    ),
    "unpinned version": (
        lambda m: setattr(step(m[EMBED], "text_encoder"), "model_version", -1),
        f"{EMBED} -> text_encoder: the version is not pinned",
    ),
    "optional input": (
        lambda m: setattr(m["fusion_text_image"].input[0], "optional", True),
        "fusion_text_image: declares an optional input, which keeps requests from sharing a batch",
    ),
    "different spaces": (
        lambda m: setattr(m["image_encoder"].parameters[SPACE_PARAMETER], "string_value", "other"),
        f"the models belong to 2 spaces: ['other', '{UNTRAINED}']",
    ),
    "unused tensor": (
        lambda m: m[EMBED].output.remove(entry(m[EMBED].output, "text_error")),
        f"{EMBED}: text_error is used nowhere",
    ),
    "unused input": (
        lambda m: m[EMBED].input.add(name="video", data_type=model_config_pb2.TYPE_STRING, dims=[1]),
        f"{EMBED}: video is used nowhere",
    ),
    "unknown model": (
        lambda m: setattr(step(m[EMBED], "text_encoder"), "model_name", "text_enc"),
        f"{EMBED} -> text_enc: there is no such model",
    ),
    "unknown output": (
        lambda m: step(m[EMBED], "text_encoder").output_map.update(vector="text_vector"),
        f"{EMBED} -> text_encoder: has no output vector",
    ),
    "an input that is not given": (
        lambda m: step(m[EMBED], "text_encoder").input_map.pop("attention_mask"),
        f"{EMBED} -> text_encoder: is given ['input_ids'], needs ['attention_mask', 'input_ids']",
    ),
    "smaller batches inside": (
        lambda m: setattr(m["text_encoder"], "max_batch_size", 4),
        f"{EMBED} -> text_encoder: takes batches of 4, the ensemble of 32",
    ),
    "another name": (
        lambda m: setattr(m["text_encoder"], "name", "encoder"),
        "text_encoder: a configuration names another model",
    ),
}


def faults(models: dict[str, RenderedModel]) -> list[str]:
    with pytest.raises(RepositoryError) as caught:
        check(models)
    first, *found = str(caught.value).splitlines()
    assert first == "the model repository does not fit together:"
    return [fault.strip() for fault in found]


@pytest.mark.parametrize("kind", BREAKS)
def test_a_graph_that_is_broken_is_found(kind: str) -> None:
    change, fault = BREAKS[kind]
    models = render(RECIPE)
    change({name: model.default for name, model in models.items()})
    assert fault in faults(models)


def test_profiles_with_different_tensors_are_found() -> None:
    models = render(RECIPE)
    models["text_encoder"].profiles["cpu"].output[0].dims[0] = 64
    assert faults(models) == ["text_encoder: its profiles declare different tensors"]


def test_a_profile_that_takes_smaller_batches_is_found() -> None:
    models = render(RECIPE)
    models["text_encoder"].profiles["cpu"].max_batch_size = 4
    assert faults(models) == ["text_encoder: a profile takes smaller batches than config.pbtxt says"]


def test_a_profile_of_another_space_is_found() -> None:
    models = render(RECIPE)
    models["text_encoder"].profiles["cpu"].parameters[SPACE_PARAMETER].string_value = "other"
    assert faults(models) == [f"the models belong to 2 spaces: ['other', '{UNTRAINED}']"]


def test_what_callers_ask_has_the_version_of_its_space_and_every_step_is_pinned(tmp_path: Path) -> None:
    models = render(RECIPE, "a space")
    write_configs(models, tmp_path)
    for name, model in models.items():
        asked = name.startswith(("embed_", "similarity"))
        assert model.version == (space_version("a space") if asked else VERSION)
        assert [place.name for place in (tmp_path / name).glob("[0-9]*")] == [str(model.version)]
        for step in model.default.ensemble_scheduling.step:
            assert step.model_version == models[step.model_name].version
    assert space_version("a space") != space_version("another space")


@pytest.mark.parametrize(
    ("overrides", "heads"),
    [
        ([], {"text_image", "text_attributes", "image_attributes", "text_image_attributes"}),
        (["serving.signatures=['text', 'image']"], set()),
        (["serving.signatures=['text', 'image']", "fusion={kind='concatenation'}"], {"text", "image"}),
        (["serving.signatures=['text', 'image']", "fusion={kind='late'}"], {"text", "image"}),
        (["fusion={kind='late'}", "towers.image=", "towers.attributes="], set()),
        (
            ["serving.signatures=['text', 'image']", "towers.texture={encoder='small_cnn', image_px=32}"],
            {"image"},
        ),
    ],
)
def test_what_a_single_tower_embeds_has_no_head(overrides: list[str], heads: set[str]) -> None:
    recipe = load_recipe(Path("demo"), overrides)
    models = render(recipe)
    check(models)
    assert {name.removeprefix("fusion_") for name in models if name.startswith("fusion_")} == heads
    for signature in recipe.signatures():
        embed, pair = (models[f"{kind}_{signature}"].default for kind in ("embed", "similarity"))
        several = "_" in signature
        assert ("modality_weights" in {entry.name for entry in embed.output}) == several
        assert ("left_modality_weights" in {entry.name for entry in pair.output}) == several


def test_a_recipe_may_serve_fewer_signatures() -> None:
    models = render(load_recipe(Path("demo"), ['serving.signatures=["text_image", "image"]']))
    check(models)
    assert {name for name in models if name.startswith("embed_")} == {"embed_image", "embed_text_image"}
    assert {name for name in models if name.startswith("fusion_")} == {"fusion_text_image"}
    with pytest.raises(RecipeError, match="there is no image_text; allowed are: text, image, "):
        load_recipe(Path("demo"), ['serving.signatures=["image_text"]'])
