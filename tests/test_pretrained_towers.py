"""Every kind of pretrained network, tiny and of random weights, through the real server, each tower seen by itself.

With late fusion the embedding is all towers' vectors side by side, so that one recipe and one server show every
encoder.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from likeness_client import BatchError, Client, MissingExtraError, Product
from likeness_client.contract import encoder_model, tower_embedding
from likeness_client.payloads import payloads
from likeness_export.encoders.base import ASSETS
from likeness_export.encoders.image_timm import import_timm
from likeness_export.evaluation.evaluate import OfflineEmbedder
from likeness_export.exporting import network_files
from likeness_export.exporting.export import export_run
from likeness_export.products.catalogue import Catalogue, read_catalogue
from likeness_export.recipe import parse_recipe
from likeness_export.run import Run
from likeness_export.server.serve import ServeConfig, serving
from likeness_export.training.train import train
from likeness_export.training.training_data import read_training_data
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    CLIPConfig,
    MobileNetV2Config,
    PretrainedConfig,
    ResNetConfig,
    SiglipConfig,
    ViTConfig,
    XLNetConfig,
)

pytestmark = pytest.mark.server

FloatArray = NDArray[np.float32]
PX, DIMENSION = 64, 24
TOLERANCE = 1e-4
_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
_WIDE: dict[str, Any] = {"initializer_range": 0.3}  # as networks start, all photos or texts would come out nearly alike
_TEXT_HALF: dict[str, Any] = {**_TRANSFORMER, **_WIDE, "max_position_embeddings": 48, "eos_token_id": 3}
_IMAGE_HALF: dict[str, Any] = {**_TRANSFORMER, **_WIDE, "image_size": PX, "patch_size": 16}
LANGUAGE: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**_TRANSFORMER, **_WIDE, max_position_embeddings=64),
    "xlnet": XLNetConfig(d_model=32, n_layer=1, n_head=2, d_inner=48, **_WIDE),
}
VISION: dict[str, PretrainedConfig] = {
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="bottleneck"),
    "vit": ViTConfig(**_TRANSFORMER, **_WIDE, image_size=PX, patch_size=16),
    "mobilenet": MobileNetV2Config(initializer_range=0.25, depth_multiplier=0.35, image_size=PX),
}
HALVES: dict[str, PretrainedConfig] = {
    "clip": CLIPConfig(text_config=_TEXT_HALF, vision_config=_IMAGE_HALF, projection_dim=16),
    "siglip": SiglipConfig(text_config=_TEXT_HALF, vision_config=_IMAGE_HALF),
}
TOWERS: dict[str, dict[str, Any]] = {
    "bert": {"encoder": "transformer", "source": "bert", "max_tokens": 48},
    "xlnet": {"encoder": "transformer", "source": "xlnet", "max_tokens": 48},
    "terms": {"encoder": "tfidf"},
    "glove": {"encoder": "word_vectors", "source": "glove.txt"},
    "resnet": {"encoder": "vision", "source": "resnet", "image_px": PX},
    "mobilenet": {"encoder": "vision", "source": "mobilenet", "image_px": PX, "max_photos": 3},
    "vit": {"encoder": "vision", "source": "vit", "image_px": PX},
    "cliptext": {"encoder": "transformer", "source": "clip", "max_tokens": 48},
    "clip": {"encoder": "vision", "source": "clip", "image_px": PX},
    "sigliptext": {"encoder": "transformer", "source": "siglip", "max_tokens": 48},
    "parts": {"encoder": "local_features", "source": "resnet", "image_px": PX},
    "lite": {"encoder": "efficientnet_lite", "image_px": PX},
}

try:
    import_timm()
except MissingExtraError:
    pass  # it needs the standard build of torch: `make test-timm`
else:
    TOWERS["inception"] = {"encoder": "timm", "model": "inception_v3", "weights": "inception.pth", "image_px": PX + 32}


def write_language(folder: Path, config: PretrainedConfig, texts: Sequence[str]) -> None:
    """Write a network and a tokenizer of pieces of words, as `from_pretrained` reads them."""
    special = ["<pad>", "<unk>", "<cls>", "<sep>"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    template = "$A <sep> <cls>" if config.model_type == "xlnet" else "<cls> $A <sep>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, special.index(name)) for name in ("<cls>", "<sep>")]
    )
    getattr(config, "text_config", config).vocab_size = tokenizer.get_vocab_size()
    write_network(folder, config)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "eos_token": "<sep>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_vision(folder: Path, config: PretrainedConfig) -> None:
    """Write a network and the mean and deviation of its pixels."""
    write_network(folder, config)
    write_processor(folder)


def write_processor(folder: Path) -> None:
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


def write_words(file: Path, words: Collection[str]) -> None:
    """Write vectors of words, as GloVe's files have them."""
    random = np.random.default_rng(3)
    rows = (f"{word} {' '.join(map(str, random.normal(size=12).round(4)))}" for word in sorted({*words}))
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_network(folder: Path, config: PretrainedConfig) -> None:
    torch.manual_seed(3)
    AutoModel.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]  # transformers' own gap


@dataclass(frozen=True, kw_only=True)
class Served:
    """A run, its repository and a client of the server that serves it."""

    run: Run
    data_root: Path
    repository: Path
    client: Client


@pytest.fixture(scope="module")
def served(demo_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("pretrained")
    lines = demo_catalogue.read_text(encoding="utf-8").splitlines()
    for name, network in (LANGUAGE | HALVES).items():
        write_language(root / name, network, [json.loads(line).get("title", "") for line in lines])
        write_processor(root / name)
    for name, network in VISION.items():
        write_vision(root / name, network)
    write_words(root / "glove.txt", f"the {' '.join(lines)}".lower().replace('"', " ").replace(",", " ").split())
    if "inception" in TOWERS:
        torch.manual_seed(3)
        network = import_timm().create_model("inception_v3", pretrained=False, num_classes=0)
        torch.save(network.state_dict(), root / "inception.pth")
    recipe = {
        "name": "pretrained",
        "dimension": DIMENSION,
        "data": {"products": str(demo_catalogue), "labels": ["group"]},
        "towers": TOWERS,
        "fusion": {"kind": "late"},
        "training": {"epochs": 1, "groups_per_batch": 12, "group_size": 2},
        "serving": {"max_batch_size": 8},
    }
    run, repository = Run(root / "run"), root / "repository"
    train(parse_recipe(recipe, "test"), run, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_files, "LARGEST_BYTES", 10_000)  # as if they were large: weights beside the network
        export_run(run, repository)
    beside = {path.parent.parent.name for path in repository.rglob("model.onnx.data")}
    assert beside > {encoder_model(name) for name in LANGUAGE}
    config = ServeConfig.on_unused_ports(repository, root / "tritonserver.log")
    with serving(config), Client(config.address) as client:
        yield Served(run=run, data_root=root, repository=repository, client=client)


@pytest.fixture(scope="module")
def products(demo_catalogue: Path) -> list[Product]:
    """One to four photos, and texts from one word to more than any tower reads, out of order: every batch is mixed."""
    photos = [product.images for product in read_catalogue(demo_catalogue).products if product.images]
    words = ("blue porcelain mug with stripes from the Brisa collection for 450 ml, qqq " * 12).split()
    lengths = [1, 60, 2, 13, 5, 33, 1, 90, 8, 21, 3, 45]
    return [
        Product(
            product_id=f"p{place}",
            title=" ".join(words[place : place + length]),
            images=tuple(photo for images in photos[3 * place : 3 * place + 1 + place % 4] for photo in images),
        )
        for place, length in enumerate(lengths)
    ]


def of_tower(embeddings: FloatArray, name: str) -> FloatArray:
    """Cut a tower's unit vectors [n, d] out of the embeddings, which weigh them."""
    start = DIMENSION * list(TOWERS).index(name)
    part = embeddings[:, start : start + DIMENSION]
    unit: FloatArray = part / np.linalg.norm(part, axis=1, keepdims=True)
    return unit


def on_onnxruntime(served: Served, products: Sequence[Product], name: str) -> FloatArray:
    """Run a tower's file by itself, one product after the other, so that padding and neighbours have no part in it."""
    recipe = served.run.read_recipe()
    tower = recipe.towers[name]
    preprocess = tower.preprocessing.Preprocessor(served.run.towers / name / ASSETS)
    session = ort.InferenceSession(
        served.repository / encoder_model(name) / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    rows = []
    for product in products:
        item = payloads(product, recipe.input_schema(), (tower.modality,))[tower.modality]
        tensors, errors = preprocess([item])
        assert not any(errors)
        feed = {spec.name: tensors[spec.name] for spec in tower.tensors()}
        rows.append(session.run([tower_embedding(name)], feed)[0])
    vectors: FloatArray = np.concatenate(rows)
    return vectors


@pytest.fixture(scope="module")
def answers(served: Served, products: list[Product]) -> FloatArray:
    """The embeddings by text and image."""
    return served.client.embed(products).vectors


@pytest.fixture(scope="module")
def eager(served: Served, products: list[Product]) -> OfflineEmbedder:
    return OfflineEmbedder(served.run, Catalogue(products=tuple(products), records=({},) * len(products)))


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_served_as_eager_torch_and_onnxruntime_have_it(
    served: Served, products: list[Product], answers: FloatArray, eager: OfflineEmbedder, name: str
) -> None:
    expected = eager.vectors[:, list(TOWERS).index(name)].numpy()
    assert np.abs(expected[1:] - expected[0]).max() > 0.1, "all products have one vector: nothing is compared"
    np.testing.assert_allclose(on_onnxruntime(served, products, name), expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(of_tower(answers, name), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("modalities", [("text",), ("image",), ("text", "image")], ids="_".join)
def test_a_signature_is_served_as_eager_torch_has_it(
    served: Served, products: list[Product], eager: OfflineEmbedder, modalities: tuple[str, ...]
) -> None:
    found = served.client.embed(products, modalities=modalities)
    np.testing.assert_allclose(found.vectors, eager.embed(modalities), rtol=0, atol=TOLERANCE)


def test_products_do_not_depend_on_their_batch(served: Served, products: list[Product], answers: FloatArray) -> None:
    for place in (0, 1, 5):
        alone = served.client.embed([products[place]]).vectors
        np.testing.assert_allclose(alone[0], answers[place], rtol=0, atol=TOLERANCE)


def test_several_photos_are_one_product(served: Served, products: list[Product], answers: FloatArray) -> None:
    place = next(row for row, product in enumerate(products) if len(product.images) == 3)
    whole = products[place]
    photos = [replace(whole, images=(photo,)) for photo in whole.images]
    turned = replace(whole, images=(whole.images[0], *whole.images[:0:-1]))
    found = served.client.embed([*photos, turned]).vectors
    one, several = of_tower(found, "mobilenet"), of_tower(answers, "mobilenet")[place]
    assert np.abs(one[:3] - several).max(1).min() > 0.01  # each photo counts
    assert np.abs(one[3] - several).max() > 0.001  # the earlier, the more
    np.testing.assert_allclose(of_tower(found, "vit")[[0, 3]], of_tower(answers, "vit")[[place, place]], atol=TOLERANCE)

    broken = replace(whole, images=(*whole.images[:2], b"no photo"))
    with pytest.raises(BatchError, match="photo 3 of 3: not an image") as caught:
        served.client.embed([whole, broken])
    np.testing.assert_allclose(caught.value.result.vectors[0], answers[place], rtol=0, atol=TOLERANCE)


def test_tfidf_through_the_server_is_what_scikit_learn_computes(
    served: Served, products: list[Product], answers: FloatArray
) -> None:
    recipe, network = served.run.read_network()
    seen = read_training_data(recipe, served.data_root).catalogue.parts(recipe.input_schema(), ["text"])
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=20_000)
    vectorizer.fit([found["text"].read().decode() for found in seen if "text" in found])
    weights = vectorizer.transform([product.title for product in products]).toarray()
    assert (weights > 0).any(1).sum() > 8
    with torch.inference_mode():
        expected = network.tower("terms").project(torch.from_numpy(weights.astype(np.float32))).numpy()
    np.testing.assert_allclose(of_tower(answers, "terms"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "source"), [("cliptext", "clip"), ("sigliptext", "siglip")])
def test_a_text_half_through_the_server_is_what_transformers_computes(
    served: Served, products: list[Product], answers: FloatArray, name: str, source: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(served.data_root / source)
    tokens = tokenizer(
        [product.title for product in products],
        padding="max_length",
        truncation=True,
        max_length=48,
        return_tensors="pt",
    )
    _, network = served.run.read_network()
    with torch.inference_mode():
        features = AutoModel.from_pretrained(served.data_root / source).get_text_features(tokens["input_ids"])
        expected = network.tower(name).project(features.pooler_output).numpy()
    np.testing.assert_allclose(of_tower(answers, name), expected, rtol=0, atol=TOLERANCE)
