from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from likeness_client.cli import main
from likeness_client.errors import InputError
from likeness_export.encoders import Encoder
from likeness_export.exporting import export as exporting
from likeness_export.exporting import network_files, onnx_export
from likeness_export.exporting.export import export_run, fingerprint
from likeness_export.exporting.onnx_export import TOLERANCE, ExportError, export_network, module_of
from likeness_export.networks.similarity import Similarity
from likeness_export.pipeline import StepSpec, networks
from likeness_export.preprocessing import attributes, image
from likeness_export.product_network import ProductNetwork
from likeness_export.recipe import RecipeError
from likeness_export.repository import servable
from likeness_export.repository.check import RepositoryError
from likeness_export.repository.rendering import render, write_configs
from likeness_export.run import Run
from likeness_export.serving_section import ServingSection, StepSection
from likeness_export.tensors import TensorSpec
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.unit.conftest import Exported, LittleRoom


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(exported: Exported) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((exported.repository / "manifest.json").read_text(encoding="utf-8"))
    return content


def one_network(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Export this network only: the others take their time and are the same."""
    monkeypatch.setattr(exporting, "networks", lambda recipe: [s for s in networks(recipe) if s.name == name])


def network_of(exported: Exported, name: str) -> Path:
    (place,) = exported.repository.glob(f"{name}/*/model.onnx")
    return place


# --- what a good export leaves


def test_the_repository_has_a_folder_per_model_and_a_manifest(exported: Exported, tmp_path: Path) -> None:
    found = files(exported.repository)
    models = render(exported.recipe, fingerprint(exported.recipe, exported.run))
    write_configs(models, tmp_path)
    configs = files(tmp_path)
    onnx_files = {f"{spec.name}/{models[spec.name].version}/model.onnx" for spec in networks(exported.recipe)}
    beside = ("model.py", "session.py", "answering.py", "lengths.py")
    adapters = {path.replace("model.onnx", name) for path in onnx_files for name in beside}
    before = {
        f"{tower}_preprocess/1/{name}"
        for tower in ("image", "attributes")
        for name in ("model.py", "preprocessing.py", "answering.py", "counting.py", "lengths.py")
    }
    assets = {"image_preprocess/1/assets/image.json", "attributes_preprocess/1/assets/attributes.json"}
    assert found.keys() == {*configs, *onnx_files, *adapters, *before, *assets, "manifest.json"}
    assert {name: found[name] for name in configs} == configs
    assert list(exported.repository.parent.glob(".*")) == []


def test_preprocessing_and_assets_are_the_very_bytes_that_training_used(exported: Exported) -> None:
    for tower, module in (("image", image), ("attributes", attributes)):
        served = exported.repository / f"{tower}_preprocess" / "1"
        assert (served / "preprocessing.py").read_bytes() == Path(str(module.__file__)).read_bytes()
        assert files(served / "assets") == files(exported.run.towers / tower / "assets")


def test_the_manifest_says_what_was_exported(exported: Exported) -> None:
    content = manifest(exported)
    assert content["space"] == fingerprint(exported.recipe, exported.run)
    assert content["recipe"] == exported.recipe.model_dump(mode="json")
    assert content["opset"] == onnx_export.OPSET
    for library in ("likeness", "torch"):
        assert content["libraries"][library] == importlib.metadata.version(library)
    assert [report["name"] for report in content["networks"]] == [spec.name for spec in networks(exported.recipe)]
    for report in content["networks"]:
        assert report["cases"] >= 3
        assert report["largest_difference"] <= TOLERANCE
        assert report["batch_difference"] <= TOLERANCE


def test_another_serving_section_makes_other_configurations_of_the_same_space(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_network(monkeypatch, "similarity")
    serving = ServingSection(max_batch_size=2, steps={"image_encoder": StepSection(instances=3, cpu_threads=1)})
    run = Run(exported.run.folder, serving)
    export_run(run, tmp_path / "repository")
    content = json.loads((tmp_path / "repository" / "manifest.json").read_text(encoding="utf-8"))
    assert content["space"] == manifest(exported)["space"] == fingerprint(run.read_recipe(), run)
    assert content["recipe"]["serving"] == serving.model_dump(mode="json")
    config = (tmp_path / "repository" / "image_encoder" / "configs" / "cpu.pbtxt").read_text(encoding="utf-8")
    assert "count: 3" in config
    assert "max_batch_size: 2" in config
    assert exported.run.read_recipe() == exported.recipe  # the run itself says what it said before
    elsewhere = Run(exported.run.folder, ServingSection(steps={"text_encoder": StepSection()}))
    with pytest.raises(RecipeError, match=r"serving\.steps\.text_encoder: there is no such step"):
        elsewhere.read_recipe()


def test_another_serving_section_helps_a_run_whose_own_cannot_be_read(exported: Exported, tmp_path: Path) -> None:
    """Nothing trained depends on it."""
    folder = Path(shutil.copytree(exported.run.folder, tmp_path / "run"))
    held = exported.run.read_recipe().model_dump(mode="json")
    (folder / "recipe.json").write_text(json.dumps(held | {"serving": {"no_longer_known": 2}}), encoding="utf-8")
    with pytest.raises(RecipeError, match="no_longer_known"):
        Run(folder).read_recipe()
    assert Run(folder, exported.recipe.serving).read_recipe() == exported.recipe


@pytest.mark.parametrize("damage", ["{", "{}", "[]", None])
@pytest.mark.parametrize("tower", ["attributes", "image"])  # of the image only the preprocessing reads files
def test_damaged_files_of_a_tower_are_named(exported: Exported, tmp_path: Path, tower: str, damage: str | None) -> None:
    folder = Path(shutil.copytree(exported.run.folder, tmp_path / "run"))
    place = next((folder / "towers" / tower).rglob("*.json"))
    place.unlink()
    if damage is not None:
        place.write_text(damage, encoding="utf-8")
    with pytest.raises(InputError, match=rf"^towers\.{tower}: .*towers/{tower} is damaged \(.*train anew$"):
        Run(folder).read_network()


@pytest.mark.parametrize("state", [{}, {1: torch.ones(1)}, [torch.ones(1)]], ids=["of another", "numbered", "listed"])
def test_weights_that_do_not_fit_the_recipe_are_refused(exported: Exported, tmp_path: Path, state: object) -> None:
    folder = Path(shutil.copytree(exported.run.folder, tmp_path / "run"))
    torch.save(state, folder / "weights.pt")
    with pytest.raises(InputError, match=r"weights\.pt does not fit .*recipe\.json, or .*: copy its folder again, or"):
        Run(folder).read_network()


def test_the_manifest_s_checksums_are_those_of_all_files(exported: Exported) -> None:
    found = files(exported.repository)
    del found["manifest.json"]
    assert manifest(exported)["sha256"] == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def test_the_files_have_the_sizes_that_triton_s_onnxruntime_backend_asks_for(exported: Exported) -> None:
    networks_of = {name: model for name, model in render(exported.recipe).items() if "cpu" in model.profiles}
    assert {"similarity", "similarity_matrix", "image_encoder", "fusion_image_attributes"} <= networks_of.keys()
    for name, model in networks_of.items():
        config, graph = model.default, onnx.load(network_of(exported, name)).graph
        for entries, values, exact in ((config.input, graph.input, False), (config.output, graph.output, True)):
            found = {value.name: value.type.tensor_type.shape.dim for value in values}
            for entry in entries:
                sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in found[entry.name]]
                # As in its ValidateInputs and ValidateOutputs: a reshape's sizes stand for the dims, the batch is -1,
                # and an input may vary in the file where the configuration says one size; an output may not.
                wanted = [*([-1] if config.max_batch_size else []), *(entry.reshape.shape or entry.dims)]
                assert len(sizes) == len(wanted), (name, entry.name)
                assert all(a == b or (a == -1 and not exact) for a, b in zip(sizes, wanted, strict=True)), (
                    f"{name}: {entry.name} has {sizes}, the configuration asks for {wanted}"
                )


def test_bytes_are_converted_before_all_else(exported: Exported) -> None:
    graph = onnx.load(exported.repository / "image_encoder/1/model.onnx").graph
    assert [node.op_type for node in graph.node if "pixels" in node.input] == ["Cast"]  # TensorRT takes nothing else


def test_sizes_are_read_off_the_converted_bytes_wherever_that_was() -> None:
    shape, cast = (onnx.helper.make_node(kind, ["pixels"], [kind]) for kind in ("Shape", "Cast"))
    model = onnx.helper.make_model(onnx.helper.make_graph([shape, cast], "bytes", [], []))
    onnx_export._convert_bytes_first(replace(VECTOR, inputs=(TensorSpec("pixels", "UINT8", (4,)),)), model)
    assert [(node.op_type, *node.input) for node in model.graph.node] == [("Cast", "pixels"), ("Shape", "Cast")]


def test_the_exported_steps_compose_to_the_trained_network(exported: Exported) -> None:
    _, network = exported.run.read_network()
    sessions = {
        name: ort.InferenceSession(str(network_of(exported, name)))
        for name in (
            "image_encoder",
            "attributes_encoder",
            "fusion_image_attributes",
            "similarity",
            "similarity_matrix",
        )
    }
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    categories = torch.randint(0, 2, (3, 3))
    photo = sessions["image_encoder"].run(["image_embedding"], {"pixels": pixels.numpy()})[0]
    facts = sessions["attributes_encoder"].run(["attributes_embedding"], {"categories": categories.numpy()})[0]
    feed = {"image_embedding": photo, "attributes_embedding": facts}
    embedding, weights = sessions["fusion_image_attributes"].run(["embedding", "modality_weights"], feed)
    with torch.inference_mode():
        towers = [network.tower("image")(pixels), network.tower("attributes")(categories)]
        expected, expected_weights = network.fuse(torch.stack(towers, 1), torch.ones(1, 2, dtype=torch.bool))
        scores = Similarity(network.metric)(expected[None], expected[None])
    np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(weights, expected_weights.numpy(), atol=1e-5)
    pairs = dict.fromkeys(("left", "right"), embedding[:, None])
    blocks = dict.fromkeys(("left", "right"), embedding[None])
    by_pair = sessions["similarity"].run(None, pairs)
    by_block = sessions["similarity_matrix"].run(None, blocks)
    for mine, block, pair in zip(scores, by_block, by_pair, strict=True):
        # The root of a distance of zero has half of the digits.
        np.testing.assert_allclose(block, mine.numpy(), atol=1e-4)
        np.testing.assert_allclose(pair.ravel(), mine[0].diagonal().numpy(), atol=1e-4)


def test_the_files_are_self_contained_say_nothing_of_the_machine_and_declare_their_opset(exported: Exported) -> None:
    for path in exported.repository.rglob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == onnx_export.OPSET
        assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
        assert str(Path(onnx_export.__file__).parent).encode() not in path.read_bytes()


def test_the_space_is_of_recipe_weights_and_assets(exported: Exported, tmp_path: Path) -> None:
    def copy(name: str) -> Run:
        folder = tmp_path / name
        for path, data in files(exported.run.folder).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return Run(folder)

    same, weights, assets = copy("same"), copy("weights"), copy("assets")
    weights.weights.write_bytes(weights.weights.read_bytes() + b"\0")
    (assets.towers / "image/assets/image.json").write_text("{}", encoding="utf-8")
    other_recipe = exported.recipe.model_copy(update={"seed": 8})
    spaces = [fingerprint(exported.recipe, run) for run in (exported.run, weights, assets)]
    assert len({*spaces, fingerprint(other_recipe, exported.run)}) == 4
    assert fingerprint(exported.recipe, same) == spaces[0]
    # Written again, aside under another name, the same weights are the same file.
    same.write_weights(exported.run.read_network()[1])
    assert fingerprint(exported.recipe, same) == spaces[0]


def test_another_preprocessing_makes_another_space(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, changed = fingerprint(exported.recipe, exported.run), tmp_path / "image.py"
    changed.write_bytes(Path(str(image.__file__)).read_bytes() + b"# otherwise\n")
    monkeypatch.setattr(image, "__file__", str(changed))
    assert fingerprint(exported.recipe, exported.run) != before


# --- what a bad export leaves


class Perturbed(nn.Module):
    """Does what the network does, and a little more once it is no longer traced."""

    def __init__(self, module: nn.Module, by: float) -> None:
        super().__init__()
        self.module, self.by = module, by

    def forward(self, *tensors: Tensor) -> Any:
        result = self.module(*tensors)
        if torch.compiler.is_exporting():
            return result
        return tuple(part + self.by for part in result) if isinstance(result, tuple) else result + self.by


@pytest.mark.parametrize(("by", "shown"), [(0.01, "1.00e-02"), (float("nan"), "nan")])
def test_a_network_whose_file_differs_is_named_and_the_earlier_repository_stays(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, by: float, shown: str
) -> None:
    def module(network: ProductNetwork, spec: StepSpec) -> nn.Module:
        return Perturbed(module_of(network, spec), by)

    before = files(exported.repository)
    one_network(monkeypatch, "fusion_image_attributes")
    monkeypatch.setattr(exporting, "module_of", module)
    with pytest.raises(
        ExportError, match=f"fusion_image_attributes: differs from eager torch by {shown}, allowed is 1e-04"
    ):
        export_run(exported.run, exported.repository)
    assert files(exported.repository) == before
    assert list(exported.repository.parent.glob(".*")) == []


def test_the_command_says_which_network_failed_and_exits_with_1(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_network(monkeypatch, "fusion_image_attributes")
    monkeypatch.setattr(exporting, "module_of", lambda network, spec: Perturbed(module_of(network, spec), 0.01))
    monkeypatch.setattr(
        "sys.argv", ["likeness", "export", str(exported.run.folder), "--repository", str(tmp_path / "new")]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "nothing was exported" in said
    assert "fusion_image_attributes: differs from eager torch" in said
    assert list(tmp_path.iterdir()) == []


def test_every_network_that_fails_is_named(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: nn.Module, spec: StepSpec, *__: object) -> None:
        raise ExportError(f"{spec.name}: no")

    monkeypatch.setattr(exporting, "export_network", fails)
    with pytest.raises(ExportError) as caught:
        export_run(exported.run, tmp_path / "new")
    assert str(caught.value).splitlines()[1:] == [f"{spec.name}: no" for spec in networks(exported.recipe)]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused_before_any_work(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "export_network", lambda *_: pytest.fail("it was exported"))
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    for place, said in (
        (tmp_path, "holds thesis.txt, which no export has written"),
        (tmp_path / "thesis.txt", "is a file"),
    ):
        with pytest.raises(InputError, match=said):
            export_run(exported.run, place)
    assert files(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("manifest_says", ["space-1", None, ""])
def test_that_another_space_takes_the_place_is_said_before_the_earlier_one_is_gone(
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    manifest_says: str | None,
) -> None:
    space = fingerprint(exported.recipe, exported.run)
    text = "{" if manifest_says == "" else json.dumps({"space": manifest_says or space})
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "networks", stop)
    with pytest.raises(KeyboardInterrupt):
        export_run(exported.run, tmp_path)
    said = [record.getMessage() for record in caplog.records if "space" in record.getMessage()]
    if manifest_says:
        assert len(said) == 1
        assert f"holds the space space-1, the new one is of {space}: embeddings that are kept" in said[0]
    else:
        assert said == []


def test_configurations_that_do_not_fit_together_are_refused_before_networks_are_exported(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = render(exported.recipe, "space")
    del models["image_encoder"]
    monkeypatch.setattr(exporting, "render", lambda *_: models)
    monkeypatch.setattr(exporting, "export_network", lambda *_: pytest.fail("it was exported"))
    with pytest.raises(RepositoryError, match="image_encoder"):
        export_run(exported.run, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Unmeasured:
    figure: float = math.nan


class Measuring:
    """Other work on the files, which has found no figure."""

    section = "measured"

    def prepare(self) -> None:
        pass

    def __call__(self, folder: Path) -> Unmeasured:
        assert (folder / "image_encoder" / "config.pbtxt").is_file()
        return Unmeasured()


def test_a_figure_that_is_no_number_is_null_in_the_manifest(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_network(monkeypatch, "none")
    export_run(exported.run, tmp_path / "new", [Measuring()])
    assert json.loads((tmp_path / "new" / "manifest.json").read_text(encoding="utf-8"))["measured"] == {"figure": None}


# --- one network

VECTOR = StepSpec(
    name="double", inputs=(TensorSpec("vector", "FP32", (4,)),), outputs=(TensorSpec("doubled", "FP32", (4,)),)
)


class Double(nn.Module):
    def forward(self, vector: Tensor) -> Tensor:
        return 2 * vector


class Twice(nn.Module):
    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        return vector, vector


class TwoWays(nn.Module):
    """Tracing sees a batch of two, and follows one way only."""

    def forward(self, vector: Tensor) -> Tensor:
        return 2 * vector if len(vector) == 2 else 3 * vector


class OnlyTwo(nn.Module):
    def forward(self, vector: Tensor) -> Tensor:
        return (2 * vector).reshape(2, 4)


class Neighbours(nn.Module):
    """The mean over the batch: what a row becomes depends on the others."""

    def forward(self, vector: Tensor) -> Tensor:
        return vector - vector.mean(0, keepdim=True)


class WithItself(nn.Module):
    """As many outputs as rows: a size that varies where a fixed one may be declared."""

    def forward(self, vector: Tensor) -> Tensor:
        return vector @ vector.T


class Untraceable(nn.Module):
    def forward(self, vector: Tensor) -> Tensor:
        return 2 * vector if vector.sum().item() > 0 else vector


def test_a_full_disk_is_no_fault_of_the_network(tmp_path: Path, little_room: LittleRoom) -> None:
    with little_room(10), pytest.raises(InputError, match=r"^cannot write .*model\.onnx \(.*\): make room there"):
        export_network(Double(), VECTOR, tmp_path / "model.onnx", 8)
    assert not list(tmp_path.iterdir())


def test_a_good_network_is_exported_and_reported(tmp_path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.WARNING)
    network = nn.Sequential(Double(), nn.Dropout())  # which is to do nothing any more
    report = export_network(network, VECTOR, tmp_path / "model.onnx", 8)
    assert (report.name, report.cases, report.largest_difference) == ("double", 3, 0.0)
    assert logging.getLogger("torch.onnx").level == logging.WARNING  # as the caller wants it
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_network_is_one_file_as_long_as_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 1.6 GB on torch would write the weights into a file beside it, for its own sake."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    export_network(nn.Linear(64, 64), MATRIX, tmp_path / "model.onnx", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


MATRIX = replace(VECTOR, inputs=(TensorSpec("vector", "FP32", (64,)),), outputs=(TensorSpec("o", "FP32", (64,)),))


def test_weights_that_one_file_does_not_take_lie_beside_it_as_long_as_they_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made" / "model.onnx"
    path.parent.mkdir()
    monkeypatch.setattr(network_files, "LARGEST_BYTES", 10_000)
    report = export_network(nn.Linear(64, 64), MATRIX, path, 8)
    sizes = {name: len(content) for name, content in files(path.parent).items()}
    assert sizes == {"model.onnx": sizes["model.onnx"], "model.onnx.data": 64 * 64 * 4}
    assert report.megabytes == sum(sizes.values()) / 1e6
    assert len({file.stat().st_mode for file in path.parent.iterdir()}) == 1  # who reads one, reads the other
    path.parent.rename(tmp_path / "elsewhere")  # as the whole repository is, when it is verified
    path = tmp_path / "elsewhere" / "model.onnx"
    assert onnx_export.open_session("matrix", path).run(None, {"vector": np.ones((2, 64), np.float32)})[0].any()
    before = files(path.parent)
    with pytest.raises(ExportError, match="double: "):
        export_network(OnlyTwo(), VECTOR, path, 8)
    assert files(path.parent) == before
    export_network(nn.Linear(64, 64), MATRIX, path, 8)
    assert {name: len(content) for name, content in files(path.parent).items()} == sizes
    network_files.save_network(onnx.load(path), path)  # with the weights: in place of those that were there
    assert {name: len(content) for name, content in files(path.parent).items()} == sizes
    monkeypatch.undo()
    export_network(nn.Linear(64, 64), MATRIX, path, 8)
    assert files(path.parent).keys() == {"model.onnx"}


def test_a_repository_whose_weights_lie_beside_its_networks_is_whole_with_them_only(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_network(monkeypatch, "image_encoder")
    monkeypatch.setattr(network_files, "LARGEST_BYTES", 1000)
    export_run(exported.run, tmp_path / "repository")
    place = tmp_path / "repository" / "image_encoder" / "1" / "model.onnx.data"
    servable._check_whole(tmp_path / "repository")
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"image_encoder/1/model\.onnx\.data is not the file that was exported"):
        servable._check_whole(tmp_path / "repository")
    place.unlink()
    with pytest.raises(InputError, match=r"image_encoder/1/model\.onnx\.data is missing: copy the repository again"):
        servable._check_whole(tmp_path / "repository")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (TwoWays(), r"double: (differs from eager torch by|input vector has sizes \[2, 4\])"),
        (OnlyTwo(), r"double: output doubled has sizes \[2, 4\], declared are \[-1, 4\]"),
        (Neighbours(), r"double: a row alone .*and in a batch differ by"),
        (WithItself(), r"double: output doubled has sizes \[-1, -1\], declared are \[-1, 4\]"),
        (Untraceable(), "double: cannot be traced"),
    ],
    ids=["two ways", "only batches of two", "batch that mixes", "output that varies", "untraceable"],
)
def test_a_bad_network_is_named_and_an_earlier_file_stays(tmp_path: Path, module: nn.Module, said: str) -> None:
    place = tmp_path / "model.onnx"
    place.write_bytes(b"earlier")
    with pytest.raises(ExportError, match=said):
        export_network(module, VECTOR, place, 8)
    assert files(tmp_path) == {"model.onnx": b"earlier"}


def test_every_output_is_compared_in_shape_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, one = replace(VECTOR, outputs=VECTOR.outputs * 2), torch.ones(2, 4)
    answers = [[one.numpy() + 0.5, one.numpy()], [one.numpy()[:1], one.numpy()]]
    monkeypatch.setattr(onnx_export, "_run", lambda *_: answers.pop(0))
    session: Any = None
    assert onnx_export._difference(Twice(), spec, session, (one,)) == 0.5
    with pytest.raises(ExportError, match=r"double: output doubled has shape \(1, 4\), eager torch \(2, 4\)"):
        onnx_export._difference(Twice(), spec, session, (one,))


def test_a_single_batch_that_is_no_number_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([0.0, float("nan"), 0.0])
    monkeypatch.setattr(onnx_export, "_difference", lambda *_: next(found))
    with pytest.raises(ExportError, match="double: differs from eager torch by nan"):
        export_network(Double(), VECTOR, tmp_path / "model.onnx", 8)


class SeesPadding(Encoder):
    """The mean over all places instead of those that hold something."""

    feature_dim = 1

    def forward(self, *tensors: Tensor) -> Tensor:
        return tensors[0].float().mean(1, keepdim=True)

    def sample(self, specs: Sequence[TensorSpec], batch: int, length: int) -> tuple[Tensor, ...]:  # noqa: ARG002
        used = torch.tensor([length] + [1] * (batch - 1))  # all but the first are padded
        there = torch.arange(length) < used[:, None]
        return (there * torch.ones(batch, length, dtype=torch.int64),)


class OnlyShort(SeesPadding):
    """Does not see padding, and has so many places only."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.register_buffer("places", torch.ones(places))
        self.places: Tensor

    def forward(self, *tensors: Tensor) -> Tensor:
        return (tensors[0] * self.places[: tensors[0].shape[1]]).sum(1, keepdim=True)


WORDS = StepSpec(
    name="words", inputs=(TensorSpec("ids", "INT64", (-1,)),), outputs=(TensorSpec("features", "FP32", (1,)),)
)


def test_a_network_that_sees_padding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"words: a row alone \(or without its padding\) and in a batch differ by"):
        export_network(SeesPadding(), WORDS, tmp_path / "model.onnx", 8)


def test_the_longest_texts_are_verified(tmp_path: Path) -> None:
    assert export_network(OnlyShort(40), WORDS, tmp_path / "model.onnx", 2, longest=40).cases == 6
    assert export_network(OnlyShort(8), WORDS, tmp_path / "model.onnx", 2, longest=8).cases == 3
    with pytest.raises(ExportError, match=r"words: (eager torch itself|onnxruntime) fails on .*\[1, 41\]"):
        export_network(OnlyShort(40), WORDS, tmp_path / "model.onnx", 2, longest=41)


@pytest.mark.parametrize(
    ("dims", "most", "rows"), [((-1, 8), 32, 2), ((-1, 8), 4, 2), ((-1, 8), 1, 1), ((-1,), 32, 32)]
)
def test_of_products_with_several_photos_fewer_are_verified_together(
    dims: tuple[int, ...], most: int, rows: int
) -> None:
    spec = replace(WORDS, inputs=(TensorSpec("photos", "FP32", dims),))
    assert onnx_export._rows(spec, most, length=16) == rows


def test_a_batch_that_was_frozen_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export.Dim, "AUTO", torch.export.Dim.STATIC)
    with pytest.raises(ExportError, match=r"double: input vector has sizes \[2, 4\], declared are \[-1, 4\]"):
        export_network(Double(), VECTOR, tmp_path / "model.onnx", 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (("vector", "FP32", (5,)), r"declared are \[-1, 5\]"),
        (("vector", "INT64", (4,)), "input vector is .*float32.*, declared is INT64"),
        (("other", "FP32", (4,)), r"the file's inputs are \['vector'\], declared are \['other'\]"),
    ],
)
def test_a_file_that_is_not_as_declared_is_refused(tmp_path: Path, spec: tuple[str, Any, Any], said: str) -> None:
    export_network(Double(), VECTOR, tmp_path / "model.onnx", 2)
    declared = StepSpec(name="double", inputs=(TensorSpec(*spec),), outputs=VECTOR.outputs)
    with pytest.raises(ExportError, match=f"double: .*{said}"):
        onnx_export.check_signature(declared, tmp_path / "model.onnx")


def test_a_file_that_onnxruntime_cannot_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match="double: onnxruntime cannot load the file"):
        onnx_export.open_session("double", tmp_path / "model.onnx")
    export_network(Double(), VECTOR, tmp_path / "model.onnx", 2)
    session = onnx_export.open_session("double", tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"double: onnxruntime fails on \{'vector': \[2, 5\]\}"):
        onnx_export._run(VECTOR, session, (torch.zeros(2, 5),))
