"""Pretrained vision networks while they are fine-tuned in bf16."""

from __future__ import annotations

from pathlib import Path

import torch
from likeness_export.encoders.image_backbone import load_backbone, write_architecture
from torch import Tensor, nn
from transformers import AutoModel, MobileNetV2Config, PreTrainedModel

PX = 32


def saved(folder: Path) -> PreTrainedModel:
    """Write a network of random weights in the form in which pretrained ones come."""
    torch.manual_seed(0)
    network: PreTrainedModel = AutoModel.from_config(MobileNetV2Config(depth_multiplier=0.35, image_size=PX))  # type: ignore[no-untyped-call]
    network.save_pretrained(folder / "network")
    (folder / "network" / "preprocessor_config.json").write_text("{}")
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
