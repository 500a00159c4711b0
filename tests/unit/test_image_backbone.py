"""Pretrained vision networks while they are fine-tuned in bf16."""

from __future__ import annotations

import torch
from likeness_export.encoders.image_backbone import ImageBackbone
from torch import Tensor, nn
from transformers import AutoModel, MobileNetV2Config

_HALF = (0.5, 0.5, 0.5)


def network_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = AutoModel.from_config(MobileNetV2Config(depth_multiplier=0.35, image_size=32))  # type: ignore[no-untyped-call]
    return made


def encoder() -> ImageBackbone:
    return ImageBackbone(network_of(0), _HALF, _HALF)


def test_strided_depthwise_convolutions_stay_in_fp32_and_the_others_do_not() -> None:
    """Their gradient in bf16 takes four times as long."""
    network, seen = encoder(), dict[bool, torch.dtype]()

    def note(module: nn.Conv2d, _: tuple[Tensor, ...], result: Tensor) -> None:
        seen[module.groups > 1 and module.stride != (1, 1)] = result.dtype

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(pixels)
    assert seen == {True: torch.float32, False: torch.bfloat16}
    features.float().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_weights_and_answers_are_those_of_the_plain_network() -> None:
    network = encoder()
    plain = network_of(1)
    plain.load_state_dict(network.backbone.state_dict())
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = plain.eval()(network.normalise(pixels)).pooler_output.flatten(1)
        torch.testing.assert_close(network.eval()(pixels), expected, rtol=1e-4, atol=1e-5)
