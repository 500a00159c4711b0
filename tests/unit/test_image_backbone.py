"""Pretrained vision networks while they are fine-tuned in bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from likeness_client.errors import InputError
from likeness_export.encoders.image_backbone import ImageBackbone, load_backbone, write_architecture
from likeness_export.encoders.image_common import Normalise
from likeness_export.encoders.sources import locate
from likeness_export.exporting.onnx_export import export_network
from likeness_export.pipeline import StepSpec
from likeness_export.tensors import TensorSpec
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BaseImageProcessor,
    BeitConfig,
    EfficientNetImageProcessorPil,
    IJepaConfig,
    IJepaModel,
    MobileNetV2Config,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

PX = 32
SMALL: dict[str, Any] = {
    "image_size": PX,
    "patch_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
"""Sizes of a transformer."""
PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def saved(folder: Path, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """Write a network of random weights in the form in which pretrained ones come."""
    torch.manual_seed(0)
    config = config or MobileNetV2Config(depth_multiplier=0.35, image_size=PX)
    network: PreTrainedModel = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    network.save_pretrained(folder / "network")
    (folder / "network" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    write_architecture("network", folder / "tower", folder)
    return network


def test_strided_depthwise_convolutions_stay_in_fp32_and_the_others_do_not(tmp_path: Path) -> None:
    """Their gradient in bf16 takes four times as long."""
    saved(tmp_path)
    network, _, _ = load_backbone("network", tmp_path / "tower", tmp_path)
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def note(module: nn.Conv2d, _: tuple[Tensor, ...], result: Tensor) -> None:
        seen[module.groups > 1 and module.stride != (1, 1)].add(result.dtype)

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = network(torch.zeros(2, 3, PX, PX)).pooler_output
    assert seen == {True: {torch.float32}, False: {torch.bfloat16}}
    pooled.float().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_weights_and_answers_are_those_of_the_plain_network(tmp_path: Path) -> None:
    plain = saved(tmp_path)
    network, _, _ = load_backbone("network", tmp_path / "tower", tmp_path)
    assert network.state_dict().keys() == plain.state_dict().keys()
    pixels = torch.rand(2, 3, PX, PX)
    with torch.inference_mode():
        expected = nn.Module.eval(plain)(pixels).pooler_output
        torch.testing.assert_close(network.eval()(pixels).pooler_output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SwinConfig(image_size=PX, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4),
        BeitConfig(**SMALL, use_relative_position_bias=True),
    ],
    ids=["within windows", "with learned places"],
)
def test_attention_is_traced(config: PretrainedConfig, tmp_path: Path) -> None:
    saved(tmp_path, config)
    encoder = ImageBackbone(*load_backbone("network", tmp_path / "tower", tmp_path), image_px=PX)
    spec = StepSpec(
        name="image_encoder",
        inputs=(TensorSpec("pixels", "UINT8", (PX, PX, 3)),),
        outputs=(TensorSpec("image_embedding", "FP32", (encoder.feature_dim,)),),
    )
    assert export_network(encoder, spec, tmp_path / "model.onnx", 4).cases > 1


def test_the_pooling_of_a_map_is_exported_as_a_mean_and_nothing_else(tmp_path: Path) -> None:
    saved(tmp_path, ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))
    encoder = ImageBackbone(*load_backbone("network", tmp_path / "tower", tmp_path), image_px=PX)
    given, found = TensorSpec("pixels", "UINT8", (PX, PX, 3)), TensorSpec("features", "FP32", (encoder.feature_dim,))
    spec = StepSpec(name="image", inputs=(given,), outputs=(found,), tower="image")
    export_network(encoder, spec, tmp_path / "model.onnx", 2)
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "ReduceMean" in kinds
    assert not kinds & {"Range", "Gather"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_that_was_saved_in_half_precision_is_used_in_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    network = saved(tmp_path)
    nn.Module.to(network, dtype).save_pretrained(tmp_path / "network")  # transformers' own annotations lack the dtype
    write_architecture("network", tmp_path / "tower", tmp_path)
    for root in (tmp_path, None):  # with its weights, and the bare architecture that a finished run is loaded into
        backbone, mean, std = load_backbone("network", tmp_path / "tower", root)
        encoder = ImageBackbone(backbone, mean, std, image_px=PX)
        assert {tensor.dtype for tensor in backbone.parameters()} == {torch.float32}
        assert encoder(torch.zeros(2, PX, PX, 3, dtype=torch.uint8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (None, r"has no preprocessor_config\.json.*save the network's"),
        ({}, "lacks image_mean or image_std"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "lacks image_mean or image_std"),
        (PROCESSOR | {"do_flip_channel_order": True}, "as blue, green, red"),
    ],
)
def test_pixels_are_never_guessed(processor: dict[str, object] | None, reason: str, tmp_path: Path) -> None:
    saved(tmp_path)
    place = tmp_path / "network" / "preprocessor_config.json"
    place.unlink()
    if processor is not None:
        place.write_text(json.dumps(processor))
    with pytest.raises(InputError, match=rf"source 'network'.*{reason}"):
        write_architecture("network", tmp_path / "tower", tmp_path)


def test_pixels_that_were_only_scaled_stay_so(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "network" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"do_normalize": False}))
    write_architecture("network", tmp_path / "tower", tmp_path)
    _, mean, std = load_backbone("network", tmp_path / "tower", tmp_path)
    assert (mean, std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (EfficientNetImageProcessorPil, {"include_top": True}),
        (EfficientNetImageProcessorPil, {"include_top": False, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
        (ViTImageProcessorPil, {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]}),
        (ViTImageProcessorPil, {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 50, 55]}),
        (ViTImageProcessorPil, {"do_rescale": False, "do_normalize": False}),
    ],
)
def test_pixels_are_those_of_the_networks_own_processor(
    kind: type[BaseImageProcessor], settings: dict[str, Any], tmp_path: Path
) -> None:
    saved(tmp_path)
    processor = kind(**PROCESSOR | settings)
    processor.save_pretrained(tmp_path / "network")
    write_architecture("network", tmp_path / "tower", tmp_path)
    _, mean, std = load_backbone("network", tmp_path / "tower", tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (PX, PX, 3), np.uint8)
    expected = processor(Image.fromarray(pixels), do_resize=False, return_tensors="pt")["pixel_values"].float()
    torch.testing.assert_close(Normalise(mean, std)(torch.from_numpy(pixels)[None]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification])
def test_a_vision_transformer_without_a_trained_pooling_gives_its_class_token(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind(ViTConfig(**SMALL)).save_pretrained(tmp_path / "network")
    (tmp_path / "network" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    write_architecture("network", tmp_path / "tower", tmp_path)
    features = []
    pixels = torch.randint(0, 255, (2, PX, PX, 3), dtype=torch.uint8)
    for seed in (1, 2):
        torch.manual_seed(seed)  # what is initialised at random must not be heard of
        encoder = ImageBackbone(*load_backbone("network", tmp_path / "tower", tmp_path), image_px=PX).eval()
        features.append(encoder(pixels))
    torch.testing.assert_close(*features)
    answer = encoder.backbone(encoder.normalise(pixels))
    expected = answer.last_hidden_state[:, 0] if kind is ViTForImageClassification else answer.pooler_output
    torch.testing.assert_close(features[1], expected)
    with pytest.raises(InputError, match="pictures of 48 px do not fit the network"):
        ImageBackbone(*load_backbone("network", tmp_path / "tower", tmp_path), image_px=48)
    with pytest.raises(InputError, match="pictures of 48 px do not fit the network"):
        ImageBackbone(*load_backbone("network", tmp_path / "tower", tmp_path), image_px=PX, train_px=48)


def test_a_transformer_without_a_class_token_gives_the_mean_of_its_patches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = IJepaModel(IJepaConfig(**SMALL))
    network.save_pretrained(tmp_path / "network")
    (tmp_path / "network" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    write_architecture("network", tmp_path / "tower", tmp_path)
    encoder = ImageBackbone(*load_backbone("network", tmp_path / "tower", tmp_path), image_px=PX).eval()
    pixels = torch.randint(0, 255, (2, PX, PX, 3), dtype=torch.uint8)
    with torch.inference_mode():
        patches = nn.Module.eval(network)(encoder.normalise(pixels)).last_hidden_state
        torch.testing.assert_close(encoder(pixels), patches.mean(1))


def test_a_network_that_is_not_there_is_named_with_the_places_looked_in(tmp_path: Path) -> None:
    # No name of a hub has three parts, so that none is asked.
    with pytest.raises(InputError, match=r"source 'weights/of/nothing': there is no such folder below .*--data-root"):
        write_architecture("weights/of/nothing", tmp_path / "tower", tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"source 'broken': .*broken does not hold a network that can be loaded"):
        write_architecture("broken", tmp_path / "tower", tmp_path)
    (tmp_path / "weights" / "of" / "nothing").mkdir(parents=True)
    with pytest.raises(InputError, match=r"source 'weights/of/nothing': .*weights/of/nothing holds no config\.json"):
        write_architecture("weights/of/nothing", tmp_path / "tower", tmp_path)


def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Mock(side_effect=ConnectionError)
    monkeypatch.setattr("likeness_export.encoders.sources.get_hf_file_metadata", asked)
    monkeypatch.setattr("time.sleep", Mock(side_effect=AssertionError))
    with pytest.raises(InputError, match=r"source 'not/reached': there is no such folder .*, and the hub gave none"):
        write_architecture("not/reached", tmp_path / "tower", tmp_path)
    asked.assert_called_once()


def test_weights_that_are_cut_short_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = tmp_path / "network" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"source 'network': .*network does not hold a network that can be loaded"):
        write_architecture("network", tmp_path / "tower", tmp_path)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = tmp_path / "network" / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if not name.startswith("conv_1x1")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"source 'network': its files lack \d+ of the weights of a MobileNetV2Model"):
        write_architecture("network", tmp_path / "tower", tmp_path)


def test_counts_of_batches_may_be_missing(tmp_path: Path) -> None:
    """Older checkpoints have none, and only some trainings read them."""
    saved(tmp_path)
    weights = tmp_path / "network" / "model.safetensors"
    held = load_file(weights)
    kept = {name: value for name, value in held.items() if not name.endswith("num_batches_tracked")}
    assert 0 < len(kept) < len(held)
    save_file(kept, weights, metadata={"format": "pt"})
    write_architecture("network", tmp_path / "tower", tmp_path)


def test_a_network_that_takes_more_than_pixels_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, Siglip2VisionConfig(**{name: SMALL[name] for name in SMALL if name != "image_size"}))
    with pytest.raises(InputError, match=r"pictures of 32 px do not fit the network .*pixel_attention_mask"):
        ImageBackbone(*load_backbone("network", tmp_path / "tower", tmp_path), image_px=PX)


def test_of_a_network_of_two_halves_only_that_of_photos_has_to_be_there(tmp_path: Path) -> None:
    config = SiglipConfig(vision_config=SMALL, text_config=SMALL)
    SiglipForImageClassification(config).save_pretrained(tmp_path / "network")
    (tmp_path / "network" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    write_architecture("network", tmp_path / "tower", tmp_path)
    weights = tmp_path / "network" / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "post_layernorm" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"its files lack 2 of the weights of a SiglipModel, as vision_model\.post_"):
        write_architecture("network", tmp_path / "tower", tmp_path)


@pytest.mark.parametrize("inside", [".", "model"])
def test_a_package_may_carry_a_network(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "site" / "some_network" / inside
    place.mkdir(parents=True)
    (place / "config.json").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert Path(locate("some-network", tmp_path)) == place
