"""EfficientNet-Lite, with the pretrained weights that its packages carry."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from likeness_client.errors import InputError, MissingExtraError
from likeness_export.encoders.image_efficientnet_lite import (
    ConvNorm,
    EfficientNetLite,
    EfficientNetLiteConfig,
    find_weights,
    load_weights,
)
from likeness_export.exporting.onnx_export import TOLERANCE, export_network
from likeness_export.pipeline import StepSpec
from likeness_export.product_network import Tower
from likeness_export.tensors import TensorSpec
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

PX = 64
MILLIONS = {0: 3.37, 1: 4.14, 2: 4.81}  # of parameters, without the classifier
CASTLE, MONASTERY, PALACE = 483, 663, 698  # ImageNet's numbers


def config(**keys: Any) -> EfficientNetLiteConfig:
    return EfficientNetLiteConfig(encoder="efficientnet_lite", image_px=PX, **keys)


def built(size: int, source_root: Path | None = None) -> EfficientNetLite:
    encoder = config(size=size).build(Path(), source_root)
    assert isinstance(encoder, EfficientNetLite)
    return encoder.eval()


def photos(count: int, px: int = PX) -> Tensor:
    return torch.randint(0, 256, (count, px, px, 3)).to(torch.uint8)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_every_size_is_as_large_as_published(size: int) -> None:
    network = built(size)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(1e6 * MILLIONS[size], rel=2e-3)
    assert network(photos(2)).shape == (2, network.feature_dim)
    last: Tensor = network.backbone(network.normalise(photos(1, 224)))
    assert last.shape[2:] == (7, 7)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_pretrained_network_knows_a_palace(size: int) -> None:
    """A layer in the wrong place, a wrong padding or normalisation would end this."""
    network = built(size, Path())
    photo = np.array(Image.fromarray(load_sample_image("china.jpg")).resize((224, 224)))
    classifier = torch.load(find_weights(size), weights_only=True)
    with torch.inference_mode():
        scores = network(torch.from_numpy(photo)[None]) @ classifier["_fc.weight"].T + classifier["_fc.bias"]
    assert {CASTLE, MONASTERY, PALACE} & set(scores[0].topk(5).indices.tolist())


def test_it_pads_as_tensorflow_does() -> None:
    """To the right and below where a stride leaves an odd pixel; torch's own padding would shift every map by one."""
    strided = [module for module in built(0).modules() if isinstance(module, ConvNorm) and module.pads]
    sides = [next(module.parameters()).shape[-1] for module in strided]
    assert {*zip(sides, (module.pads for module in strided), strict=True)} == {(3, (0, 1, 0, 1)), (5, (1, 2, 1, 2))}


def test_weights_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="does not hold the weights of this size of EfficientNet-Lite"):
        load_weights(built(0), find_weights(1))


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'likeness\[efficientnet-lite\]'"):
        built(2, Path())


@pytest.mark.parametrize("key", ["image_px", "train_px"])
def test_sides_that_would_pad_otherwise_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="multiple of 32"):
        EfficientNetLiteConfig.model_validate({"encoder": "efficientnet_lite", key: 200})


def test_fine_tuning_leaves_the_statistics_alone() -> None:
    network = built(0).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(*network.augment(photos(3))).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not any(module.training for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def test_photos_are_trained_at_their_own_size() -> None:
    encoder = config(train_px=32).build(Path(), None)
    assert encoder.augment(photos(2))[0].shape == (2, 32, 32, 3)


def test_it_is_exported(tmp_path: Path) -> None:
    chosen = config()
    spec = StepSpec(
        name="image_encoder",
        inputs=chosen.tensors(),
        outputs=(TensorSpec("image_embedding", "FP32", (16,)),),
        tower="image",
    )
    tower = Tower(chosen.build(tmp_path, tmp_path), 16)
    assert export_network(tower, spec, tmp_path / "model.onnx", 2).largest_difference <= TOLERANCE
