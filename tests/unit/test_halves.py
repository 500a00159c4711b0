"""CLIP and SigLIP: both halves against transformers' own features, and the space that they go on sharing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from likeness_client.errors import InputError
from likeness_export.encoders import Encoder
from likeness_export.encoders.base import ASSETS, BACKBONE
from likeness_export.encoders.image_backbone import ImageBackboneConfig
from likeness_export.encoders.text_transformer import TextHalf, TextTransformerConfig
from likeness_export.evaluation.evaluate import OfflineEmbedder
from likeness_export.exporting.onnx_export import export_network
from likeness_export.pipeline import StepSpec
from likeness_export.preprocessing import image
from likeness_export.product_network import Tower, build_network
from likeness_export.products.catalogue import read_catalogue
from likeness_export.recipe import Recipe, parse_recipe
from likeness_export.run import Run
from likeness_export.tensors import TensorSpec
from likeness_export.training.train import train
from likeness_export.training.trainer import prepare_towers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipTextConfig,
)

if TYPE_CHECKING:
    from tests.unit.conftest import Tiny

FloatArray = NDArray[np.float32]
PX, PLACES = 32, 48
TEXTS = ["vase", "a tall vase of walnut", "blue cup", "cup, blue! And more " * 20]
# As networks start, all texts and photos would come out nearly alike.
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}
PROCESSOR = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
KINDS = ["clip", "clip of before", "siglip"]


def write_whole(folder: Path, kind: str) -> Any:
    """Write a network of random weights in the form in which pretrained ones come."""
    tokenizer = _pieces() if kind.startswith("clip") else _words()
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": PLACES, "bos_token_id": None}
    text |= {"pad_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    if kind == "clip of before":  # OpenAI's own files: the end is the largest id of a text
        text |= {"eos_token_id": 2}
    vision = {**SIZES, "image_size": PX, "patch_size": 16}
    config: PretrainedConfig
    if kind == "siglip":
        text |= {"projection_size": 36}
        config = SiglipConfig(text_config=text, vision_config=vision | {"hidden_size": 36})
    else:
        config = CLIPConfig(text_config=text, vision_config=vision | {"hidden_size": 36}, projection_dim=16)
    torch.manual_seed(3)
    whole = AutoModel.from_config(config).eval()  # type: ignore[no-untyped-call]  # transformers' own gap
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR), encoding="utf-8")
    return whole


def _pieces() -> PreTrainedTokenizerFast:
    """CLIP's own, whose pieces are letters here."""
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: place for place, name in enumerate(names)}, merges=[])


def _words() -> PreTrainedTokenizerFast:
    """One that fills texts up with their end, as SigLIP's does."""
    names = ["<unk>", "</s>", "vase", "a", "tall", "of", "walnut", "blue", "cup", "and", "more"]
    tokenizer = Tokenizer(WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers' own gap
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="</s>", eos_token="</s>", model_max_length=PLACES
    )


@dataclass(frozen=True)
class Half:
    """A text half, as a tower reads it."""

    root: Path
    whole: Any
    config: TextTransformerConfig
    encoder: Encoder

    def tensors(self, texts: list[str]) -> tuple[Tensor, ...]:
        found, errors = self.config.preprocessing.Preprocessor(self.root / "text" / ASSETS)([t.encode() for t in texts])
        assert not any(errors)
        return tuple(torch.from_numpy(found[spec.name]) for spec in self.config.tensors())


@pytest.fixture(scope="module", params=KINDS)
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Half:
    """The text half."""
    root = tmp_path_factory.mktemp("half")
    whole = write_whole(root / "source", request.param)
    config = TextTransformerConfig(encoder="transformer", source="source", max_tokens=PLACES)
    config.prepare([], root / "text", root)
    return Half(root, whole, config, config.build(root / "text", root).eval())


def texts_of(whole: Any, source: Path, texts: list[str]) -> FloatArray:
    """Return what transformers' own tokenizer and network make of texts."""
    padding = "max_length" if whole.config.model_type == "siglip" else True
    tokenizer = AutoTokenizer.from_pretrained(source)
    given = tokenizer(texts, padding=padding, truncation=True, max_length=PLACES, return_tensors="pt")
    if whole.config.model_type == "siglip":
        given = {"input_ids": given["input_ids"]}
    with torch.inference_mode():
        found: FloatArray = whole.get_text_features(**given).pooler_output.numpy()
    return found


def photos_of(whole: Any, pixels: Tensor) -> FloatArray:
    """Return what transformers' own network makes of pixels UINT8 [n, px, px, 3]."""
    mean, std = torch.tensor(PROCESSOR["image_mean"]), torch.tensor(PROCESSOR["image_std"])
    with torch.inference_mode():
        answer = whole.get_image_features(((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2))
    found: FloatArray = answer.pooler_output.numpy()
    return found


def test_a_text_half_has_the_features_that_transformers_computes(half: Half) -> None:
    expected = texts_of(half.whole, half.root / "source", TEXTS)
    assert np.abs(expected[1:] - expected[0]).max() > 0.1, "all texts have one vector: nothing is compared"
    bare = half.config.build(half.root / "text", None).eval()
    bare.load_state_dict(half.encoder.state_dict())
    for encoder in (half.encoder, bare):
        assert encoder.feature_dim == expected.shape[1]
        with torch.inference_mode():
            np.testing.assert_allclose(encoder(*half.tensors(TEXTS)).numpy(), expected, rtol=0, atol=1e-5)
            for place, text in enumerate(TEXTS):  # the padding of its neighbours has no part in it
                found = encoder(*half.tensors([text])).numpy()
                np.testing.assert_allclose(found, expected[place : place + 1], rtol=0, atol=1e-5)


def test_a_text_half_holds_nothing_of_the_other_one(half: Half) -> None:
    assert not [name for name in half.encoder.state_dict() if "vis" in name or "logit" in name]


def test_a_text_half_exports_with_any_batch_and_length(half: Half, tmp_path: Path) -> None:
    module = Tower(half.encoder, 12)
    outputs = (TensorSpec("text_embedding", "FP32", (12,)),)
    spec = StepSpec(name="text_encoder", inputs=half.config.tensors(), outputs=outputs, tower="text")
    report = export_network(module, spec, tmp_path / "model.onnx", 8, longest=PLACES)
    assert max(report.largest_difference, report.batch_difference) < 1e-5
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    features = torch.from_numpy(texts_of(half.whole, half.root / "source", TEXTS))
    with torch.inference_mode():
        expected = module.eval().project(features).numpy()
    for texts in (TEXTS, TEXTS[:1]):
        feed = {spec.name: tensor.numpy() for spec, tensor in zip(spec.inputs, half.tensors(texts), strict=True)}
        np.testing.assert_allclose(session.run(None, feed)[0], expected[: len(texts)], rtol=0, atol=1e-5)


def test_the_drawn_texts_of_an_export_differ_where_the_network_looks(half: Half) -> None:
    """Without an end, CLIP would look at every text's first token."""
    assert isinstance(half.encoder, TextHalf)
    ids, mask = half.encoder.sample(half.config.tensors(), 8, 16)
    assert (ids.gather(1, mask.sum(1, keepdim=True) - 1) == half.encoder.end_id).all()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_image_half_has_the_features_that_transformers_computes(tmp_path: Path, kind: str) -> None:
    whole = write_whole(tmp_path / "source", kind)
    config = ImageBackboneConfig(encoder="vision", source="source", image_px=PX)
    config.prepare([], tmp_path / "image", tmp_path)
    encoder = config.build(tmp_path / "image", tmp_path).eval()
    bare = config.build(tmp_path / "image", None).eval()
    bare.load_state_dict(encoder.state_dict())
    pixels = torch.randint(0, 256, (3, PX, PX, 3), dtype=torch.uint8)
    for network in (encoder, bare):
        with torch.inference_mode():
            np.testing.assert_allclose(network(pixels).numpy(), photos_of(whole, pixels), rtol=0, atol=1e-5)


def test_a_run_of_before_an_image_half_was_projected_is_read_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "source", "clip")
    config = ImageBackboneConfig(encoder="vision", source="source", image_px=PX)
    config.prepare([], tmp_path / "image", tmp_path)
    place = tmp_path / "image" / BACKBONE / "config.json"
    held = json.loads(place.read_text(encoding="utf-8"))
    del held["projected"]
    place.write_text(json.dumps(held), encoding="utf-8")
    encoder = config.build(tmp_path / "image", None)
    assert encoder.feature_dim == 36
    assert not [name for name in encoder.state_dict() if "projection" in name]


def recipe_of(tiny: Tiny, text: str, photos: str, **data: Any) -> Recipe:
    """Give the products titles, and return a recipe for them and their photos."""
    products = [json.loads(line) for line in tiny.products.read_text(encoding="utf-8").splitlines()]
    titled = [product | {"title": f"vase of a {TEXTS[place % 3]}"} for place, product in enumerate(products)]
    tiny.products.write_text("\n".join(map(json.dumps, titled)), encoding="utf-8")
    raw = tiny.recipe.model_dump(mode="json")
    raw |= {
        "dimension": 40,
        "towers": {
            "text": {"encoder": "transformer", "source": text, "max_tokens": PLACES},
            "image": {"encoder": "vision", "source": photos, "image_px": PX},
        },
    }
    raw["data"] |= {"labels": []} | data
    return parse_recipe(raw, "test")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_without_labels_texts_and_photos_are_as_alike_as_in_the_network(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    whole = write_whole(tiny.root / "whole", kind)
    recipe, run = recipe_of(tiny, "whole", "whole"), Run(tmp_path / "run")
    train(recipe, run, tiny.root)
    catalogue = read_catalogue(tiny.products)
    offline = OfflineEmbedder(run, catalogue)
    both = np.flatnonzero(offline.present.all(1))[:12].tolist()
    assert len(both) == 12
    found = offline.embed(["text"])[both] @ offline.embed(["image"])[both].T
    products = [catalogue.products[place] for place in both]
    files = [Path(str(product.images[0])).read_bytes() for product in products]
    pixels, _ = image.Preprocessor(run.towers / "image" / ASSETS)(files)
    texts = torch.from_numpy(texts_of(whole, tiny.root / "whole", [product.title for product in products]))
    photos = torch.from_numpy(photos_of(whole, torch.from_numpy(pixels["pixels"])))
    expected = torch.cosine_similarity(texts[:, None], photos[None], dim=2).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_halves_of_one_network_start_alike_and_those_of_two_do_not(tiny: Tiny, tmp_path: Path) -> None:
    write_whole(tiny.root / "whole", "clip")
    write_whole(tiny.root / "other", "clip")
    for photos in ("whole", "other"):
        recipe, run = recipe_of(tiny, "whole", photos, labels=["group"]), Run(tmp_path / photos)
        catalogue = read_catalogue(tiny.products)
        parts = catalogue.parts(recipe.input_schema(), recipe.modalities())
        prepare_towers(recipe, run, parts, tiny.root)
        network = build_network(recipe, run.towers, tiny.root)
        of_text, of_image = (network.tower(name).projection.weight for name in ("text", "image"))
        assert torch.equal(of_text, of_image) == (photos == "whole")
        assert of_text is not of_image  # each goes on to learn by itself


def test_halves_of_two_networks_are_named_where_nothing_is_learned(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_whole(tiny.root / "whole", "clip")
    write_whole(tiny.root / "other", "siglip")
    train(recipe_of(tiny, "whole", "whole"), Run(tmp_path / "one"), tiny.root)
    assert "share a space" not in caplog.text
    train(recipe_of(tiny, "whole", "other"), Run(tmp_path / "two"), tiny.root)
    assert "sources other and whole do not share a space, so that no text finds a photo: give all" in caplog.text


@pytest.mark.parametrize("config", [CLIPTextConfig(), SiglipTextConfig()], ids=lambda config: config.model_type)
def test_a_text_half_alone_is_refused(tmp_path: Path, config: PretrainedConfig) -> None:
    config.save_pretrained(tmp_path / "source")
    recipe = TextTransformerConfig(encoder="transformer", source="source", max_tokens=PLACES)
    with pytest.raises(InputError, match=r"towers\.text\.source: source .* is a text half .*: name the whole network"):
        recipe.prepare([], tmp_path / "text", tmp_path)


def test_a_text_half_reads_as_many_tokens_as_it_has_places(tmp_path: Path) -> None:
    write_whole(tmp_path / "source", "clip")
    recipe = TextTransformerConfig(encoder="transformer", source="source")
    with pytest.raises(InputError, match=r"towers\.text\.max_tokens: source reads at most 48 tokens"):
        recipe.prepare([], tmp_path / "text", tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, "knows no words: its files are missing"),
        ({"eos_token": None}, r"names no token that ends texts \(eos_token\)"),
        ({"pad_token": None}, r"none that fills them up \(pad_token\)"),
        ({"padding_side": "left"}, r"fills texts up on their left \(padding_side\)"),
    ],
)
def test_a_half_whose_tokenizer_cannot_be_used_is_refused(
    tmp_path: Path, settings: dict[str, object] | None, said: str
) -> None:
    write_whole(tmp_path / "source", "siglip" if settings and "padding_side" in settings else "clip")
    place = tmp_path / "source" / "tokenizer_config.json"
    if settings is None:
        place.unlink()
        (tmp_path / "source" / "tokenizer.json").unlink()
    else:
        held = json.loads(place.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        place.write_text(json.dumps(held | settings), encoding="utf-8")
    recipe = TextTransformerConfig(encoder="transformer", source="source", max_tokens=PLACES)
    with pytest.raises(
        InputError, match=rf"towers\.text\.source: the tokenizer of source .*{said}.*: mend it, or name"
    ):
        recipe.prepare([], tmp_path / "text", tmp_path)


def test_a_tokenizer_without_the_file_that_is_served_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "source", "siglip")
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda _: False))
    recipe = TextTransformerConfig(encoder="transformer", source="source", max_tokens=PLACES)
    with pytest.raises(InputError, match=r"towers\.text\.source: the tokenizer of source .* has no form that is"):
        recipe.prepare([], tmp_path / "text", tmp_path)
