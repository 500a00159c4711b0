"""What would fail at the export is refused before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from likeness_client.errors import InputError
from likeness_export.encoders import Encoder
from likeness_export.encoders.image_small import SmallConvNetConfig
from likeness_export.encoders.text_transformer import TextTransformer, TextTransformerConfig
from likeness_export.exporting.beforehand import refuse_unexportable
from likeness_export.run import Run
from likeness_export.training.train import train
from torch import Tensor
from transformers import BertConfig, BertModel, ConvBertConfig, ConvBertModel, PretrainedConfig

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

TEXT = TextTransformerConfig(encoder="transformer", source="none")
PHOTO = SmallConvNetConfig(encoder="small_cnn", image_px=32)
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "initializer_range": 0.3,
}


class OfPhotos(Encoder):
    """Whatever a function makes of the bytes as numbers, [n, 3072]."""

    feature_dim = 3072

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.make(tensors[0].float().flatten(1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda photos: photos / photos.mean(0), "answers a product otherwise where others"),
        (lambda photos: photos * torch.rand(1), "answers a product otherwise where others"),
        (lambda photos: photos * torch.nan, "answers a product otherwise where others"),
        (lambda photos: photos.view(5, 5), r"fails on a small batch \(.*\): name another"),
    ],
    ids=["of the batch", "random", "no number", "fails"],
)
def test_an_encoder_that_could_not_be_exported_is_refused(make: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        refuse_unexportable(OfPhotos(make), PHOTO)


@pytest.mark.parametrize(
    ("kind", "config", "sees_padding"),
    [(BertModel, BertConfig(**SIZES), False), (ConvBertModel, ConvBertConfig(**SIZES, embedding_size=8), True)],
)
def test_a_text_network_that_sees_padding_is_refused(kind: Any, config: PretrainedConfig, sees_padding: bool) -> None:
    torch.manual_seed(0)
    encoder = TextTransformer(kind(config))
    if sees_padding:  # its convolutions read the places behind a text
        with pytest.raises(InputError, match="or padding, stand beside it"):
            refuse_unexportable(encoder, TEXT)
    else:
        refuse_unexportable(encoder, TEXT)


def test_looking_draws_nothing_of_what_a_training_draws() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    refuse_unexportable(OfPhotos(lambda photos: photos), PHOTO)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_a_training_begins_with_that_and_names_the_tower(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny.recipe.towers["image"]), "build", lambda *_: OfPhotos(lambda photos: photos.view(5)))
    untaught = tiny.recipe.model_copy(update={"data": tiny.recipe.data.model_copy(update={"labels": ()})})
    for recipe in (tiny.recipe, untaught):
        with pytest.raises(InputError, match=r"^towers\.image: the network fails on a small batch"):
            train(recipe, Run(tmp_path / "run"), tiny.root)
