from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from likeness_client.errors import InputError, MissingExtraError
from likeness_export.cli import app
from likeness_export.encoders.image_local import GeneralisedMean, LocalFeatures, LocalFeaturesConfig, as_map
from likeness_export.encoders.image_timm import TimmConfig, TimmNetwork, import_timm
from likeness_export.evaluation.explain import attention_of, draw, explain
from likeness_export.exporting.export import export_run
from likeness_export.exporting.onnx_export import TOLERANCE, export_network
from likeness_export.pipeline import StepSpec
from likeness_export.product_network import Tower
from likeness_export.recipe import Recipe, RecipeError, parse_recipe
from likeness_export.run import Run
from likeness_export.tensors import TensorSpec
from likeness_export.training.train import train
from PIL import Image
from torch import Tensor
from transformers import AutoModel as Networks
from transformers import MobileNetV2Config, PretrainedConfig, PreTrainedModel, ResNetConfig, ViTConfig
from typer.testing import CliRunner

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

PX, PARTS = 64, 3
SMALL: dict[str, PretrainedConfig] = {
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], layer_type="basic"),
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.25, image_size=PX),
    "vit": ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=PX, patch_size=16
    ),
}


def save_network(config: PretrainedConfig, folder: Path) -> None:
    """Write a network of random weights in the form in which pretrained ones come."""
    torch.manual_seed(1)
    network: PreTrainedModel = Networks.from_config(config)  # type: ignore[no-untyped-call]  # transformers' own gap
    network.save_pretrained(folder)
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def built(root: Path, kind: str = "resnet", **keys: Any) -> LocalFeatures:
    save_network(SMALL[kind], root / "data" / kind)
    config = LocalFeaturesConfig(encoder="local_features", source=kind, image_px=PX, parts=PARTS, **keys)
    config.prepare([], root / "tower", root / "data")
    encoder = config.build(root / "tower", root / "data")
    assert isinstance(encoder, LocalFeatures)
    return encoder


def photos(count: int) -> Tensor:
    return torch.randint(0, 256, (count, PX, PX, 3)).to(torch.uint8)


# --- poolings


def test_the_generalised_mean_is_a_mean_at_1_and_nears_the_maximum() -> None:
    found = torch.rand(4, 5, 6, 6) + 0.1
    pool = GeneralisedMean()
    for p, expected, tolerance in ((1.0, found.mean((2, 3)), 1e-6), (3.0, found.pow(3).mean((2, 3)) ** (1 / 3), 1e-6)):
        pool.p.data.fill_(p)
        torch.testing.assert_close(pool(found), expected, atol=tolerance, rtol=1e-5)
    pool.p.data.fill_(8.0)
    assert (pool(found) > found.mean((2, 3))).all()
    assert (pool(found) <= found.amax((2, 3)) + 1e-6).all()


@pytest.mark.parametrize("p", [1.0, 3.0, 8.0, 20.0])
def test_the_generalised_mean_stays_finite_where_nothing_is_active(p: float) -> None:
    pool = GeneralisedMean()
    pool.p.data.fill_(p)
    found = torch.stack([torch.zeros(3, 4, 4), -torch.ones(3, 4, 4), 50 * torch.rand(3, 4, 4)]).requires_grad_()
    pool(found).sum().backward()
    assert found.grad is not None
    assert torch.isfinite(found.grad).all()
    assert pool.p.grad is not None
    assert torch.isfinite(pool.p.grad)


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_tokens_become_a_map_without_the_extra_ones(extra: int) -> None:
    tokens = torch.arange(extra + 16).float().expand(2, 3, -1).transpose(1, 2)  # (2, extra + 16, 3)
    found = as_map(tokens)
    assert found.shape == (2, 3, 4, 4)
    assert torch.equal(found[0, 0].flatten(), torch.arange(extra, extra + 16).float())


def test_registers_are_no_patches_of_a_tiny_map() -> None:
    tokens = torch.arange(1 + 4 + 4).float().expand(2, 3, -1).transpose(1, 2)  # nine, but the map is 2 x 2
    assert as_map(tokens, registers=4)[0, 0].tolist() == [[5, 6], [7, 8]]


# --- the encoder


@pytest.mark.parametrize(
    ("kind", "scales", "size"),
    [("resnet", 1, 2), ("resnet", 2, 4), ("resnet", 3, 8), ("mobilenet_v2", 2, 4), ("vit", 2, 4)],
)
def test_attention_is_a_share_per_part_over_the_largest_scale(
    kind: str, scales: int, size: int, tmp_path: Path
) -> None:
    encoder = built(tmp_path, kind, scales=scales)
    pixels = photos(2)
    maps = encoder.attention_maps(pixels)
    assert maps.shape == (2, PARTS, size, size)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, PARTS))
    features = encoder(pixels)
    assert features.shape == (2, encoder.feature_dim)
    blocks = features[:, -PARTS * 256 :].unflatten(1, (PARTS, 256))
    torch.testing.assert_close(blocks.norm(dim=2), torch.ones(2, PARTS))


def test_a_part_describes_the_place_that_it_looks_at(tmp_path: Path) -> None:
    encoder = built(tmp_path)
    pixels = photos(1)
    joined = encoder.join(encoder.maps(pixels))
    favourite = joined[0, :, 1, 2]  # a part that answers to nothing but this place's own features ...
    encoder.look.weight.data[0] = 100 * (favourite - joined[0].mean((1, 2)))[:, None, None]
    assert encoder.attention_maps(pixels)[0, 0].flatten().argmax() == joined.shape[3] + 2
    described = encoder(pixels)[0, -PARTS * 256 : -(PARTS - 1) * 256]
    assert F.cosine_similarity(described, favourite, dim=0) > 0.95  # ... describes it


def test_a_size_that_the_backbone_does_not_take_is_refused(tmp_path: Path) -> None:
    save_network(SMALL["vit"], tmp_path / "vit")
    config = LocalFeaturesConfig(encoder="local_features", source="vit", image_px=PX + 16)
    config.prepare([], tmp_path / "tower", tmp_path)
    with pytest.raises(InputError, match="pictures of 80 px do not fit the network"):
        config.build(tmp_path / "tower", tmp_path)


def test_the_exported_graph_of_a_transformer_is_the_network(tmp_path: Path) -> None:
    encoder = built(tmp_path, "vit")
    spec = StepSpec(
        name="image_encoder",
        inputs=(TensorSpec("pixels", "UINT8", (PX, PX, 3)),),
        outputs=(TensorSpec("image_embedding", "FP32", (16,)),),
        tower="image",
    )
    report = export_network(Tower(encoder, 16), spec, tmp_path / "model.onnx", 4)
    assert report.largest_difference <= TOLERANCE
    readers = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node if "pixels" in node.input]
    assert readers == ["Cast"]  # TensorRT takes bytes for nothing else


def test_a_frozen_backbone_learns_nothing_and_the_rest_does(tmp_path: Path) -> None:
    encoder = built(tmp_path)
    encoder.requires_grad_(True).train()  # as the trainer does with every encoder that is not frozen
    assert not any(module.training for module in encoder.backbone.modules())
    encoder(photos(3)).square().sum(1).log().sum().add(encoder(photos(3))[:, 0].sum()).backward()
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    learns = {name: parameter for name, parameter in encoder.named_parameters() if not name.startswith("backbone.")}
    assert {name for name, parameter in learns.items() if parameter.grad is None} == set()
    assert {"pool_last.p", "pool_joined.p", "look.weight"} <= set(learns)


def test_a_frozen_backbone_gives_the_same_maps_a_few_photos_at_a_time(tmp_path: Path) -> None:
    encoder = built(tmp_path)
    pixels = photos(11)  # the last part is smaller
    expected = encoder.eval().maps(pixels)
    for found, whole in zip(encoder.train().maps(pixels), expected, strict=True):
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


def test_a_backbone_that_is_not_frozen_learns_but_for_its_statistics(tmp_path: Path) -> None:
    encoder = built(tmp_path, freeze_backbone=False)
    encoder.requires_grad_(True).train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(photos(3))[:, :40].sum().backward()
    assert any(parameter.grad is not None for parameter in encoder.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


# --- in a recipe


def recipe_of(tiny: Tiny, **keys: Any) -> Recipe:
    tower = {"encoder": "local_features", "source": "resnet", "image_px": PX, "parts": PARTS, **keys}
    return parse_recipe({**tiny.recipe.model_dump(), "towers": {"image": tower}}, "test")


def test_freezing_all_of_it_is_refused_with_the_way_out(tiny: Tiny) -> None:
    with pytest.raises(RecipeError, match=r"towers\.image\.freeze: must be false.*freeze_backbone"):
        recipe_of(tiny, freeze=True)


@pytest.mark.parametrize("max_photos", [1, 2])
def test_a_run_trains_explains_and_exports(tiny: Tiny, tmp_path: Path, max_photos: int) -> None:
    save_network(SMALL["resnet"], tiny.root / "resnet")
    run = Run(tmp_path / "run")
    train(recipe_of(tiny, max_photos=max_photos), run, tiny.root)
    _, network = run.read_network()
    encoder = next(part for part in network.tower("image").modules() if isinstance(part, LocalFeatures))
    source = Networks.from_pretrained(tiny.root / "resnet")
    assert all(torch.equal(value, encoder.backbone.state_dict()[name]) for name, value in source.state_dict().items())
    assert encoder.pool_joined.p != 3.0
    photo = next((tiny.root / "images").glob("*.png"))
    check_picture(run, photo, tmp_path)
    check_reasons(run, tmp_path)
    reports = {report.name: report for report in export_run(run, tmp_path / "repository")}
    assert reports["image_encoder"].largest_difference <= TOLERANCE


def check_picture(run: Run, photo: Path, folder: Path) -> None:
    pixels, attention = attention_of(run, photo)
    assert pixels.shape == (PX, PX, 3)
    assert attention.shape == (PARTS, 4, 4)
    asked = CliRunner().invoke(app, ["explain", str(run.folder), str(photo), "--out", str(folder / "drawn.png")])
    assert asked.exit_code == 0, asked.output
    with Image.open(folder / "drawn.png") as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    panel = drawn.shape[1] // (1 + PARTS)
    shown, heated = drawn[40:200, 20 : panel - 20], drawn[40:200, panel + 20 : 2 * panel - 20]
    assert np.abs(shown.mean((0, 1)) - pixels.mean((0, 1))).max() < 5
    assert np.abs(shown.mean((0, 1)) - heated.mean((0, 1))).max() > 5


def test_the_brightest_heat_lies_where_a_part_looks_most() -> None:
    attention = np.full((1, 7, 7), 0.01, np.float32)
    attention[0, 0, 0] = 0.04  # shares of one, and small on any large map
    drawn = np.asarray(draw(np.zeros((PX, PX, 3), np.uint8), attention)).astype(int)
    top, left = 10 + 22, 10 + 224 + 10
    assert drawn[top + 8, left + 8].min() > 100 > drawn[top + 112, left + 112].max()


def check_reasons(run: Run, folder: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        explain(run, folder / "missing.jpg", folder / "out.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="not an image"):
        explain(run, folder / "broken.jpg", folder / "out.png")
    assert not (folder / "out.png").exists()


def test_a_run_without_parts_cannot_explain(tiny: Tiny, tmp_path: Path) -> None:
    towers = {"attributes": tiny.recipe.towers["attributes"].model_dump()}
    train(parse_recipe({**tiny.recipe.model_dump(), "towers": towers}, "test"), Run(tmp_path / "run"), tiny.root)
    with pytest.raises(InputError, match='no tower of encoder = "local_features"'):
        explain(Run(tmp_path / "run"), tmp_path / "photo.jpg", tmp_path / "out.png")


# --- timm


def timm_works() -> bool:
    try:
        import_timm()
    except MissingExtraError:
        return False
    return True


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_missing_timm_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'likeness\[timm\]'"):
        TimmConfig(encoder="timm", model="inception_v3").prepare([], tmp_path, tmp_path)


needs_timm = pytest.mark.skipif(
    not timm_works(), reason="timm cannot be imported: it needs torchvision and so the standard torch"
)


@needs_timm
@pytest.mark.parametrize(("model", "px"), [("inception_v3", 96), ("mobilenetv3_small_050", 64), ("resnet10t", 64)])
def test_a_timm_network_is_exported(model: str, px: int, tmp_path: Path) -> None:
    config = TimmConfig(encoder="timm", model=model, image_px=px)
    config.prepare([], tmp_path, tmp_path)
    encoder = config.build(tmp_path, None)
    spec = StepSpec(
        name="image_encoder",
        inputs=config.tensors(),
        outputs=(TensorSpec("image_embedding", "FP32", (16,)),),
        tower="image",
    )
    report = export_network(Tower(encoder, 16), spec, tmp_path / "model.onnx", 2)
    assert report.largest_difference <= TOLERANCE


@needs_timm
def test_timm_reads_weights_from_a_file(tmp_path: Path) -> None:
    bare = TimmConfig(encoder="timm", model="resnet10t", image_px=PX).build(tmp_path, None)
    assert isinstance(bare, TimmNetwork)
    torch.save(bare.network.state_dict(), tmp_path / "weights.pth")
    config = TimmConfig(encoder="timm", model="resnet10t", weights="weights.pth", image_px=PX)
    again = config.build(tmp_path, tmp_path)
    pixels = photos(2)
    torch.testing.assert_close(again.eval()(pixels), bare.eval()(pixels))


@needs_timm
def test_a_size_that_a_timm_network_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pictures of 64 px do not fit the network"):
        TimmConfig(encoder="timm", model="vit_tiny_patch16_224", image_px=64).build(tmp_path, None)


@needs_timm
def test_an_unknown_timm_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="timm has no model 'inception_v9'"):
        TimmConfig(encoder="timm", model="inception_v9").prepare([], tmp_path, tmp_path)
