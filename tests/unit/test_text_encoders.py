"""Text towers: each against an independent reference, eager against onnxruntime, padded against unpadded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from likeness_client.contract import MAX_BYTES, NOTHING_KNOWN
from likeness_client.errors import InputError
from likeness_export.encoders import Encoder, EncoderConfig
from likeness_export.encoders.base import ASSETS, write_asset
from likeness_export.encoders.sentence_layers import FIRST, LAST, MEAN
from likeness_export.encoders.sources import file_beside
from likeness_export.encoders.text_common import length_buckets
from likeness_export.encoders.text_tfidf import TfidfConfig
from likeness_export.encoders.text_transformer import TextTransformer, TextTransformerConfig
from likeness_export.encoders.text_word_vectors import MeanOfWords, WordVectorsConfig
from likeness_export.encoders.word_vector_file import VectorFileError, read_word_vectors
from likeness_export.exporting.onnx_export import export_network
from likeness_export.pipeline import StepSpec
from likeness_export.preprocessing import text, tfidf, words
from likeness_export.product_network import Tower
from likeness_export.recipe import RecipeError, parse_recipe
from likeness_export.repository.adapters.lengths import used_lengths
from likeness_export.tensors import TensorSpec
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.pre_tokenizers import Metaspace, Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AlignConfig, AutoModel, BertConfig, PretrainedConfig, RobertaConfig, T5Config, XLNetConfig
from transformers.utils import logging as transformers_logging

FloatArray = NDArray[np.float32]
TEXTS = [
    "Tall walnut vase with stripes, 24 cm, from the Fjord collection",
    "Fjord collection: a tall vase made of walnut wood - striped!",
    "Round cushion in dark blue linen. Washable cover, 45 x 45 cm",
    "Dark blue cushion, linen, round; cover can be washed",
    "Lamp with a conical shade, brass foot, E27, 60 W",
    "Brass lamp (E27) whose shade is a cone; 60 W at most",
    "Stoneware mug, dotted, holds 0.3 l, dishwasher safe",
    "Dotted mug of stoneware. 300 ml. Safe in the dishwasher.",
]
ODD_TEXTS = [
    "İstanbul'da STRASSE straße ÅNGSTRÖM ångström",
    "ひらがな カタカナ 漢字 花瓶 花瓶",
    "a b c",
    "a",
    "?!... --- ***",
    "lamp\tlamp\nlamp\x1clamp\u00a0lamp\u2003lamp\u200blamp",
    "re\u0301sume\u0301 résumé RÉSUMÉ",
    "under_score under score 0123 ٣٤",
    "🏺 vase 🏺🏺 👩‍👩‍👧 vase",
    "vase " * 3000 + "x" * 5000,
    "\ufffd\ufffd vase \x00 vase",
]


@dataclass(frozen=True)
class Prepared:
    """A tower's folder and what is built from it."""

    folder: Path
    config: EncoderConfig
    encoder: Encoder

    @property
    def preprocess(self) -> Any:
        return self.config.preprocessing.Preprocessor(self.folder / ASSETS)

    def tensors(self, texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
        found, errors = self.preprocess([text.encode() for text in texts])
        assert {*errors} <= {"", NOTHING_KNOWN}
        return tuple(torch.from_numpy(found[spec.name]) for spec in self.config.tensors())

    @torch.inference_mode()
    def features(self, texts: Sequence[str]) -> FloatArray:
        found: FloatArray = self.encoder(*self.tensors(texts)).numpy()
        assert found.shape == (len(texts), self.encoder.feature_dim)
        return found

    def rebuilt(self) -> Prepared:
        """Return the tower as it is built without its source and given its weights."""
        bare = self.config.build(self.folder, None).eval()
        bare.load_state_dict(self.encoder.state_dict())
        return replace(self, encoder=bare)


def prepared(folder: Path, config: EncoderConfig, texts: Sequence[str] = TEXTS, root: Path = Path()) -> Prepared:
    config.prepare([text.encode() for text in texts], folder, root)
    return Prepared(folder, config, config.build(folder, root).eval())


def exported(tower: Prepared, path: Path) -> ort.InferenceSession:
    """Export with the product's own verification (batch 1, 2 and 8, lengths 3, 16 and 40), and open the file."""
    torch.manual_seed(5)
    module = Tower(tower.encoder, 12)
    outputs = (TensorSpec("text_embedding", "FP32", (12,)),)
    spec = StepSpec(name="text_encoder", inputs=tower.config.tensors(), outputs=outputs, tower="text")
    report = export_network(module, spec, path, 8)
    assert report.cases == 9
    assert max(report.largest_difference, report.batch_difference) < 1e-5
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for texts in (TEXTS[:1], TEXTS, [TEXTS[0], " ".join(TEXTS)]):
        tensors = tower.tensors(texts)
        feed = {name.name: tensor.numpy() for name, tensor in zip(spec.inputs, tensors, strict=True)}
        with torch.inference_mode():
            np.testing.assert_allclose(session.run(None, feed)[0], module(*tensors).numpy(), atol=1e-5)
    return session


def assert_padding_is_not_seen(tower: Prepared) -> None:
    alone = tower.tensors(TEXTS[:1])
    beside = tower.tensors([TEXTS[0], " ".join(TEXTS)])
    assert beside[0].shape[1] > alone[0].shape[1]
    np.testing.assert_allclose(
        tower.features([TEXTS[0], " ".join(TEXTS)])[:1], tower.features(TEXTS[:1]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("longest", "buckets"), [(1, [1]), (16, [16]), (17, [16, 17]), (100, [16, 32, 64, 100])])
def test_the_last_bucket_holds_the_longest(longest: int, buckets: list[int]) -> None:
    assert length_buckets(longest) == buckets


def test_twenty_thousand_terms_have_a_bucket() -> None:
    assert length_buckets(20_000)[-2:] == [16_384, 20_000]


# --- TF-IDF


TFIDF_KEYS: list[dict[str, Any]] = [
    {},
    {"ngram_range": (1, 1), "sublinear": False},
    {"ngram_range": (2, 3), "min_count": 1},
    {"analyzer": "char_wb", "ngram_range": (3, 5)},
    {"analyzer": "char_wb", "ngram_range": (1, 2), "sublinear": False, "max_features": 60},
]


def sklearns(config: TfidfConfig) -> Any:
    return TfidfVectorizer(
        analyzer=config.analyzer,
        ngram_range=config.ngram_range,
        max_features=config.max_features,
        min_df=config.min_count,
        sublinear_tf=config.sublinear,
    )


@pytest.fixture(scope="module")
def term_tower(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("tfidf") / "text", TfidfConfig(encoder="tfidf"))


@pytest.mark.parametrize("keys", TFIDF_KEYS, ids=str)
def test_tfidf_is_what_scikit_learn_computes(tmp_path: Path, keys: dict[str, Any]) -> None:
    config = TfidfConfig(encoder="tfidf", **keys)
    fitted_on = [*TEXTS, *ODD_TEXTS]
    tower = prepared(tmp_path / "text", config, fitted_on)
    expected = sklearns(config).fit(fitted_on)
    for texts in (fitted_on, [f"{one} and more" for one in reversed(fitted_on)]):
        np.testing.assert_allclose(tower.features(texts), expected.transform(texts).toarray(), rtol=0, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=60) | st.text(alphabet="ab \t\x1c\x85\u2028_-é1İ", max_size=60),
    ngram_range=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda pair: (min(pair), max(pair))),
    analyzer=st.sampled_from(["word", "char_wb"]),
)
@example(text="", ngram_range=(1, 3), analyzer="char_wb")
@example(text="a", ngram_range=(3, 4), analyzer="char_wb")
def test_the_terms_are_those_of_scikit_learn_in_its_order(
    text: str, ngram_range: tuple[int, int], analyzer: str
) -> None:
    expected = TfidfVectorizer(analyzer=analyzer, ngram_range=ngram_range).build_analyzer()(text)
    assert list(tfidf.ANALYZERS[analyzer](text.lower(), *ngram_range)) == list(expected)


def test_terms_are_sparse_and_padded_to_a_bucket(term_tower: Prepared) -> None:
    tensors, errors = term_tower.preprocess([b"mug mug mug lamp", b"nothing known"])
    assert errors == ["", NOTHING_KNOWN]
    ids, weights = tensors["term_ids"], tensors["term_weights"]
    assert (ids.dtype, weights.dtype) == (np.int64, np.float32)
    assert ids.shape == weights.shape == (2, 16)
    assert (weights != 0).sum(1).tolist() == [2, 0]
    vocabulary = json.loads((term_tower.folder / ASSETS / tfidf.VOCABULARY_FILE).read_text(encoding="utf-8"))
    found = {vocabulary["terms"][place]: weight for place, weight in zip(ids[0, :2], weights[0, :2], strict=True)}
    idf = dict(zip(vocabulary["terms"], vocabulary["idf"], strict=True))
    assert found == pytest.approx({"lamp": idf["lamp"], "mug": (1 + np.log(3)) * idf["mug"]})
    assert not term_tower.features(["nothing known"]).any()


def test_padding_does_not_change_tfidf(term_tower: Prepared) -> None:
    assert_padding_is_not_seen(term_tower)
    ids, weights = term_tower.tensors(TEXTS)
    wider = [torch.nn.functional.pad(tensor, (0, 50)) for tensor in (ids, weights)]
    with torch.inference_mode():
        assert torch.equal(term_tower.encoder(*wider), term_tower.encoder(ids, weights))


def test_tfidf_exports(term_tower: Prepared, tmp_path: Path) -> None:
    exported(term_tower, tmp_path / "model.onnx")


def test_random_projection_keeps_the_cosines(tmp_path: Path) -> None:
    whole = prepared(tmp_path / "whole", TfidfConfig(encoder="tfidf", min_count=1))
    short = prepared(tmp_path / "short", TfidfConfig(encoder="tfidf", min_count=1, components=2048))
    assert short.features(TEXTS).shape == (len(TEXTS), 2048)
    every, kept = (tower.features(TEXTS) for tower in (whole, short))
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    np.testing.assert_allclose(kept @ kept.T, every @ every.T, atol=0.1)
    exported(short, tmp_path / "text_encoder.onnx")
    assert_padding_is_not_seen(short)
    again = short.config.build(tmp_path / "short", Path())
    torch.testing.assert_close(again.state_dict(), short.encoder.state_dict(), rtol=0, atol=0)


def test_tfidf_has_nothing_to_learn(term_tower: Prepared) -> None:
    assert list(term_tower.encoder.state_dict()) == []
    assert {path.suffix for path in term_tower.folder.rglob("*") if path.is_file()} == {".json"}  # no pickles


def test_terms_that_are_too_rare_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"towers\.words: no term is in 2 of the training texts: lower min_count"):
        TfidfConfig(encoder="tfidf").prepare([b"one", b"two words"], tmp_path / "words", tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ngram_range", [3, 2], "must be two whole numbers from 1 to 10"),
        ("ngram_range", [0, 2], "must be two whole numbers from 1 to 10"),
        ("ngram_range", [1], "is missing"),
        ("analyzer", "char", "'word' or 'char_wb'"),
        ("min_count", 0, "greater than or equal to 1"),
    ],
)
def test_a_wrong_key_is_explained(key: str, value: Any, said: str) -> None:
    tower = {"encoder": "tfidf", key: value}
    raw = {"name": "t", "data": {"products": "p", "labels": ["group"]}, "towers": {"text": tower}}
    with pytest.raises(RecipeError, match=rf"towers\.text\.{key}.*{said}"):
        parse_recipe(raw, "test")


# --- word vectors


LEARNED = WordVectorsConfig(encoder="word_vectors", vector_size=10, epochs=2, max_tokens=24)


@pytest.fixture(scope="module")
def word_tower(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("words") / "text", LEARNED)


def table_of(tower: Prepared) -> dict[str, FloatArray]:
    assert isinstance(tower.encoder, MeanOfWords)
    vocabulary = json.loads((tower.folder / ASSETS / words.VOCABULARY_FILE).read_text(encoding="utf-8"))
    rows: FloatArray = tower.encoder.table.weight.detach().numpy().copy()
    assert not rows[0].any()
    return dict(zip(vocabulary["words"], rows[1:], strict=True))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Tall walnut-VASE (24 cm)!", ["tall", "walnut", "vase", "24", "cm"]),
        ("under_score don't E27", ["under", "score", "don", "t", "e27"]),
        ("花瓶 Å\u200bb 🏺", ["花瓶", "å", "b"]),
        ("?! \n", []),
        ("हिन्दी, लाल कमीज", ["हिन्दी", "लाल", "कमीज"]),  # vowel signs are parts of their words
        ("אָדֹם أَحْمَر ❤\ufe0f 1\ufe0f\u20e3 \u0301", ["אָדֹם", "أَحْمَر", "1"]),
        ("İSTANBUL Istanbul ΟΔΟΣ", ["istanbul", "istanbul", "οδος"]),
    ],
)
def test_words_are_runs_of_letters_and_digits(text: str, found: list[str]) -> None:
    assert words.words_of(text) == found


def test_vectors_are_learned_for_words_that_are_said_often_enough(word_tower: Prepared) -> None:
    counts = Counter(word for text in TEXTS for word in words.words_of(text))
    assert table_of(word_tower).keys() == {word for word, count in counts.items() if count >= 2}


def test_learning_twice_gives_the_same_files(word_tower: Prepared, tmp_path: Path) -> None:
    again = prepared(tmp_path / "again", LEARNED)
    other = prepared(tmp_path / "other", LEARNED.model_copy(update={"seed": 8}))
    mine, theirs = table_of(word_tower), table_of(other)
    for word, vector in table_of(again).items():
        np.testing.assert_array_equal(vector, mine[word])
        assert np.abs(vector - theirs[word]).max() > 1e-3


def test_only_the_most_frequent_words_are_kept(tmp_path: Path) -> None:
    tower = prepared(tmp_path / "text", LEARNED.model_copy(update={"max_words": 3, "min_count": 1}))
    counts = Counter(word for text in TEXTS for word in words.words_of(text))
    assert set(table_of(tower)) == {word for word, _ in counts.most_common(3)}


@pytest.mark.parametrize("weighting", ["sif", "idf"])
def test_a_text_is_the_weighted_mean_of_its_known_words(tmp_path: Path, weighting: str) -> None:
    tower = prepared(tmp_path / "text", LEARNED.model_copy(update={"weighting": weighting}))
    table, spoken = table_of(tower), [words.words_of(text) for text in TEXTS]
    total = sum(len(text) for text in spoken)

    def weight(word: str) -> float:
        if weighting == "idf":
            return float(np.log((1 + len(TEXTS)) / (1 + sum(word in text for text in spoken))) + 1)
        return 1e-3 / (1e-3 + sum(text.count(word) for text in spoken) / total)

    known = ["vase", "mug", "vase", "a"]  # not all of them equally frequent
    weights = [weight(word) for word in known]
    expected = np.average([table[word] for word in known], axis=0, weights=weights)
    found = tower.features(["Vase, unheard mug; VASE unheard a."])
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)


def test_a_text_without_a_known_word_is_zero(word_tower: Prepared) -> None:
    assert not word_tower.features(["unheard", "?!"]).any()
    with torch.inference_mode():
        unit = Tower(word_tower.encoder, 12)(*word_tower.tensors(["unheard"]))
    assert torch.isfinite(unit).all()


def test_padding_does_not_change_the_mean(word_tower: Prepared) -> None:
    assert_padding_is_not_seen(word_tower)


def test_long_texts_are_cut_behind_their_known_words(word_tower: Prepared) -> None:
    (ids,) = word_tower.tensors(["unheard mug " * 1000])
    assert ids.shape == (1, 24)
    assert set(ids.ravel().tolist()) == {ids[0, 0].item()}
    np.testing.assert_allclose(word_tower.features(["mug " * 1000])[0], table_of(word_tower)["mug"], atol=1e-6)


def test_word_vectors_export(word_tower: Prepared, tmp_path: Path) -> None:
    exported(word_tower, tmp_path / "model.onnx")


def test_vectors_can_learn_on_and_padding_stays_zero(tmp_path: Path) -> None:
    tower = prepared(tmp_path / "text", LEARNED)
    before = table_of(tower)
    optimizer = torch.optim.AdamW(tower.encoder.parameters(), lr=0.1)
    tower.encoder(*tower.tensors(TEXTS)).square().sum().backward()
    optimizer.step()
    after = table_of(tower)  # asserts that row 0 is zero
    assert max(np.abs(after[word] - before[word]).max() for word in after) > 0.01


def test_weights_fit_what_is_built_without_a_source(word_tower: Prepared) -> None:
    np.testing.assert_array_equal(word_tower.rebuilt().features(TEXTS), word_tower.features(TEXTS))


def test_words_that_are_too_rare_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"towers\.words: no word is said 2 times in the training texts: lower min_"):
        LEARNED.prepare([b"one", b"two words"], tmp_path / "words", tmp_path)


VECTORS = {"vase": [1.0, 2.0, -0.5], "Mug": [0.25, 0.0, 3.0], "mug": [9.0, 9.0, 9.0], ",": [7.0, 7.0, 7.0]}


def write_vectors(folder: Path, form: str) -> Path:
    """Write `VECTORS` as gensim, or as GloVe does."""
    from gensim.models import KeyedVectors

    path = folder / ("vectors.bin" if form == "bin" else "vectors.txt")
    if form == "glove":
        lines = [" ".join([word, *map(str, vector)]) for word, vector in [*VECTORS.items(), (". . .", [0.0, 0.0, 1.0])]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        keyed = KeyedVectors(3)
        keyed.add_vectors(list(VECTORS), np.array(list(VECTORS.values()), np.float32))
        keyed.save_word2vec_format(str(path), binary=form == "bin")
    return path


@pytest.mark.parametrize("form", ["text", "bin", "glove"])
def test_vectors_are_read_from_a_file(tmp_path: Path, form: str) -> None:
    path = write_vectors(tmp_path, form)
    found = read_word_vectors(path, 100)
    assert {word: vector.tolist() for word, vector in found.items()} == {"vase": VECTORS["vase"], "mug": VECTORS["Mug"]}
    assert list(read_word_vectors(path, 1)) == ["vase"]
    tower = prepared(tmp_path / "text", WordVectorsConfig(encoder="word_vectors", source=path.name), root=tmp_path)
    assert tower.encoder.feature_dim == 3
    np.testing.assert_allclose(tower.features(["VASE, unheard"])[0], VECTORS["vase"])


def test_words_of_other_scripts_are_found_in_a_file_whatever_their_form(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("किताब 1\nre\u0301sume\u0301 2\nİpek 3\nabc-d 4\n", encoding="utf-8")
    assert list(read_word_vectors(tmp_path / "v.txt", 10)) == words.words_of("किताब résumé İPEK")


@pytest.mark.parametrize("header", ["", "2 1\n"])
def test_a_mark_of_byte_order_hides_neither_the_first_word_nor_the_header(tmp_path: Path, header: str) -> None:
    path = tmp_path / "v.txt"
    path.write_text(f"{header}vase 1\nmug 2\n", encoding="utf-8-sig")
    assert list(read_word_vectors(path, 10)) == ["vase", "mug"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("v.txt", b"", "v.txt holds no word"),
        ("v.txt", b", 1 2\n. 3 4\n", "v.txt holds no word"),
        ("v.txt", b"vase\n", "v.txt, line 1: a word and its values are expected, found 0 behind 'vase'"),
        ("v.txt", b"vase 1 2\nmug 3\n", "v.txt, line 2: a word and 2 values are expected, found 1 behind 'mug'"),
        ("v.txt", b"vase 1 2\n\nmug 3 4 5\n", "v.txt, line 3: a word and 2 values are expected, found 3"),
        ("v.txt", b"2 2\nvase 1 2\nmug 3 x\n", "v.txt, line 3: could not convert string to float: 'x'"),
        ("v.txt", b"vase 1 nan\n", "v.txt, line 1: a value is not a finite number"),
        ("v.txt", b"3 2\nvase 1 2\nmug 3 4\n", "v.txt, line 3: the file ends after 2 of 3 words"),
        ("v.bin", b"", "v.bin, line 1: the number of words and the size of a vector are expected"),
        ("v.bin", b"vase 1 2\n", "v.bin, line 1: the number of words"),
        ("v.bin", b"2 1\nvase \0\0\0\0", "v.bin, word 2: the file ends before it"),
        ("v.bin", b"1 2\nvase \0\0\0\0", "v.bin, word 1: the file ends inside its vector; 1 words are expected"),
        ("v.bin", b"1 1\nvase \0\0\xc0\x7f", "v.bin, word 1: a value is not a finite number"),
        ("v.bin", b"1 1\n" + b"x" * 2000, "v.bin, word 1: it has no end"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    config = WordVectorsConfig(encoder="word_vectors", source=name)
    with pytest.raises(VectorFileError) as caught:
        config.prepare([b"vase"], tmp_path / "text", tmp_path)
    assert str(caught.value).startswith(str(tmp_path / said))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VectorFileError, match=r"nowhere\.txt cannot be read: No such file"):
        read_word_vectors(tmp_path / "nowhere.txt", 10)


# --- what is wrong with an item


@pytest.mark.parametrize("name", ["term_tower", "word_tower"])
@pytest.mark.parametrize(
    ("item", "said"),
    [
        (b"", "the text is empty"),
        (b" \n\t", "the text is empty"),
        (b"x" * (MAX_BYTES["text"] + 1), "1000001 bytes, 1000000 are allowed"),
    ],
)
def test_an_unusable_text_has_a_reason_and_its_neighbours_do_not_notice(
    request: pytest.FixtureRequest, name: str, item: bytes, said: str
) -> None:
    tower: Prepared = request.getfixturevalue(name)
    good = TEXTS[0].encode()
    alone, _ = tower.preprocess([good])
    tensors, errors = tower.preprocess([good, item, good])
    assert [errors[0], errors[2]] == ["", ""]
    assert said in errors[1]
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor[[0, 2]], alone[key].repeat(2, 0))
        assert not tensor[1].any()


@pytest.mark.parametrize("name", ["term_tower", "word_tower"])
def test_any_bytes_are_a_text_and_no_text_is_a_batch(request: pytest.FixtureRequest, name: str) -> None:
    tower: Prepared = request.getfixturevalue(name)
    _, errors = tower.preprocess([b"vase \xff\xfe mug", b"\xed\xa0\x80", b"\0"])
    assert errors == ["", NOTHING_KNOWN, NOTHING_KNOWN]
    tensors, errors = tower.preprocess([])
    assert errors == []
    assert all(tensor.shape == (0, 16) for tensor in tensors.values())


# --- transformers


SPECIAL = ("<pad>", "<unk>", "<cls>", "<sep>")


def write_backbone(folder: Path, config: PretrainedConfig, template: str, special: tuple[str, ...] = SPECIAL) -> None:
    """Write a randomly initialised network with a tokenizer of its own, as `from_pretrained` reads it."""
    spoken = sorted({word for text in TEXTS for word in words.words_of(text)})
    vocabulary = {word: place for place, word in enumerate([*special, *spoken])}
    config.vocab_size = len(vocabulary)
    torch.manual_seed(3)
    network = AutoModel.from_config(config)  # type: ignore[no-untyped-call]  # transformers' own gap
    network.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(name, special.index(name)) for name in ("<cls>", "<sep>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


BACKBONES: dict[str, tuple[PretrainedConfig, str]] = {
    "bert": (
        BertConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, max_position_embeddings=64
        ),
        "<cls> $A <sep>",
    ),
    "xlnet": (XLNetConfig(d_model=24, n_layer=1, n_head=3, d_inner=32), "$A <sep> <cls>"),
}
TRANSFORMER = TextTransformerConfig(encoder="transformer", source="source", max_tokens=40)


def means_of(tower: Prepared, ids: Tensor, mask: Tensor) -> FloatArray:
    """Return the mean of what the bare network says of each text's tokens: FP32 [n, features]."""
    assert isinstance(tower.encoder, TextTransformer)
    with torch.inference_mode():
        hidden = tower.encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    return np.stack([row[: int(there.sum())].mean(0).numpy() for row, there in zip(hidden, mask, strict=True)])


@pytest.fixture(scope="module", params=list(BACKBONES))
def transformer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp(request.param)
    write_backbone(root / "source", *BACKBONES[request.param])
    return prepared(root / "text", TRANSFORMER, root=root)


def test_fine_tuning_hides_some_tokens_but_never_the_first_nor_the_one_that_counts() -> None:
    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    backbone = AutoModel.from_config(config)  # type: ignore[no-untyped-call]  # transformers' own gap
    ids, mask = torch.ones(200, 30, dtype=torch.int64), torch.ones(200, 30, dtype=torch.int64)
    mask[:, 20:] = 0
    torch.manual_seed(3)
    same, hidden = TextTransformer(backbone, 0.25).augment(ids, mask)
    assert same is ids
    assert hidden[:, 0].all()
    assert not hidden[:, 20:].any()
    assert 0.70 < hidden[:, 1:20].float().mean() < 0.80
    assert not hidden[:, 19].all()
    assert TextTransformer(backbone, 0.25, LAST).augment(ids, mask)[1][:, 19].all()
    torch.testing.assert_close(TextTransformer(backbone).augment(ids, mask)[1], mask)


def test_a_transformer_exports_with_any_batch_and_length(transformer: Prepared, tmp_path: Path) -> None:
    session = exported(transformer, tmp_path / "model.onnx")
    assert all(isinstance(size, str) for given in session.get_inputs() for size in given.shape)


def test_padding_does_not_change_a_transformers_vector(transformer: Prepared) -> None:
    assert_padding_is_not_seen(transformer)
    ids, mask = transformer.tensors(TEXTS[:1])
    length = int(mask.sum())
    garbage = torch.randint_like(ids, 4, 9)
    with torch.inference_mode():
        bare = transformer.encoder(ids[:, :length], mask[:, :length])
        other = transformer.encoder(torch.where(mask.bool(), ids, garbage), mask)
    np.testing.assert_allclose(other.numpy(), bare.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(transformer.features(TEXTS[:1]), bare.numpy(), rtol=0, atol=1e-6)


def test_roberta_which_counts_positions_by_its_own_padding_does_not_miss_it(tmp_path: Path) -> None:
    network = RobertaConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=32,
        max_position_embeddings=42,
        pad_token_id=1,
        bos_token_id=0,
    )
    write_backbone(tmp_path / "source", network, "<cls> $A <sep>", ("<cls>", "<pad>", "<sep>", "<unk>"))
    tower = prepared(tmp_path / "text", TRANSFORMER, root=tmp_path)
    texts = [*TEXTS, "vase " * 50]  # the last fills all positions that there are
    ids, mask = tower.tensors(texts)
    assert used_lengths([ids.numpy(), mask.numpy()]).tolist() == mask.sum(1).tolist()
    expected = means_of(tower, torch.where(mask.bool(), ids, 1), mask)  # padded as its own tokenizer does
    np.testing.assert_allclose(tower.features(texts), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("transformer", ["xlnet"], indirect=True)
def test_xlnet_does_not_see_on_which_side_the_padding_is(transformer: Prepared) -> None:
    ids, mask = transformer.tensors(TEXTS)
    shifts = (ids.shape[1] - mask.sum(1)).tolist()
    left = [torch.stack([row.roll(by) for row, by in zip(t, shifts, strict=True)]) for t in (ids, mask)]
    with torch.inference_mode():
        found = transformer.encoder(*left).numpy()
    np.testing.assert_allclose(found, transformer.features(TEXTS), rtol=0, atol=1e-6)


def test_a_transformer_is_what_transformers_computes(transformer: Prepared) -> None:
    expected = means_of(transformer, *transformer.tensors(TEXTS))
    np.testing.assert_allclose(transformer.features(TEXTS), expected, rtol=0, atol=1e-6)


def test_texts_of_which_a_tokenizer_knows_nothing_are_no_texts(transformer: Prepared) -> None:
    """All would have one vector, a dress and a bag in another script as well as a picture of a vase."""
    texts = ["ชุดเดรส", "กระเป๋า", "🏺", "\u200b", "<unk>", "🏺 vase", "vase"]
    tensors, errors = transformer.preprocess([text.encode() for text in texts])
    assert errors == [NOTHING_KNOWN] * 5 + [""] * 2
    good, _ = transformer.preprocess([b"vase"])
    np.testing.assert_array_equal(tensors["input_ids"][-1:], good["input_ids"])


def test_a_word_that_sentencepiece_does_not_know_is_none_though_it_marks_where_it_begins(tmp_path: Path) -> None:
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("▁vase", -2.0)]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = Metaspace()
    write_asset(
        tmp_path, text.SETTINGS_FILE, {"max_tokens": 8, "length_buckets": [8], "max_bytes": 99, "unknown_id": 3}
    )
    tokenizer.save(str(tmp_path / ASSETS / text.TOKENIZER_FILE))
    _, errors = text.Preprocessor(tmp_path / ASSETS)([item.encode() for item in ("🏺", "กระเป๋า 🏺", "vase", "🏺 vase")])
    assert errors == [NOTHING_KNOWN] * 2 + [""] * 2


def test_a_text_that_grows_together_with_the_prompt_is_still_a_text(tmp_path: Path) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    tower = prepared(tmp_path / "text", TRANSFORMER.model_copy(update={"prompt": "no"}), root=tmp_path)
    _, errors = tower.preprocess([b"vase"])  # "novase" is no word
    assert errors == [""]


def test_a_prompt_stands_before_every_text_and_says_nothing_of_it(tmp_path: Path) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    plain, prompted = (
        prepared(tmp_path / f"text{place}", TRANSFORMER.model_copy(update={"prompt": prompt}), root=tmp_path)
        for place, prompt in enumerate(("", "vase: "))
    )
    texts = ["blue", "🏺", "vase", "blue " * 50]
    tensors, errors = prompted.preprocess([text.encode() for text in texts])
    assert errors == ["", NOTHING_KNOWN, "", ""]
    expected, _ = plain.preprocess([f"vase: {text}".encode() for text in texts])
    np.testing.assert_array_equal(tensors["input_ids"], expected["input_ids"])


def test_a_prompt_leaves_room_for_a_text(tmp_path: Path) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    config = TRANSFORMER.model_copy(update={"prompt": "vase " * 6, "max_tokens": 8})
    with pytest.raises(InputError, match=r"towers\.text\.max_tokens: the prompt takes 8 of 8: give more"):
        config.prepare([b"vase"], tmp_path / "text", tmp_path)


def test_a_file_that_the_hub_cannot_be_asked_for_is_missing_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("likeness_export.encoders.sources.get_hf_file_metadata", Mock(side_effect=ConnectionError))
    assert file_beside("no/network", tmp_path, "1_Pooling/config.json") is None
    assert file_beside("no/network", tmp_path, "modules.json") is None
    assert caplog.text.count("source 'no/network': whether it has files that say what to do with its vectors") == 1
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").touch()
    caplog.clear()
    assert file_beside("here", tmp_path, "1_Pooling/config.json") is None
    assert caplog.text == ""


def pooling(folder: Path, content: object) -> None:
    """Write how a network's tokens make one vector, as sentence-transformers does."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "way"),
    [
        ({"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, FIRST),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": False}, MEAN),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, LAST),
        ({"pooling_mode": "cls"}, FIRST),
        ({"pooling_mode": "mean", "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, MEAN),
        ({"pooling_mode": "lasttoken"}, LAST),
    ],
)
def test_a_transformer_is_pooled_as_it_was_trained(tmp_path: Path, content: dict[str, Any], way: str) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    pooling(tmp_path / "source", content)
    tower = prepared(tmp_path / "text", TRANSFORMER, root=tmp_path)
    ids, mask = tower.tensors(TEXTS)
    assert isinstance(tower.encoder, TextTransformer)
    with torch.inference_mode():
        hidden = tower.encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    last = np.stack([row[int(there.sum()) - 1] for row, there in zip(hidden, mask, strict=True)])
    expected = {MEAN: means_of(tower, ids, mask), FIRST: hidden[:, 0], LAST: last}[way]
    np.testing.assert_allclose(tower.features(TEXTS), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(tower.rebuilt().features(TEXTS), expected, rtol=0, atol=1e-6)
    if "pooling_mode" in content and way != MEAN:  # once is enough; means are exported above
        exported(tower, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "pools by pooling_mode_weightedmean_tokens "),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, "pooling_mode_max_tokens "),
        ({"pooling_mode_mean_tokens": False}, "pools by nothing "),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, "pools by cls, mean "),
    ],
)
def test_a_transformer_that_is_pooled_otherwise_is_refused(tmp_path: Path, content: object, said: str) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    pooling(tmp_path / "source", content)
    with pytest.raises(InputError, match=rf"towers\.text\.source: source .*{said}.*name another"):
        TRANSFORMER.prepare([b"vase"], tmp_path / "text", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"pooling_mode": "mean", "include_prompt": False},
            r"towers\.text\.source: source leaves the prompt out of the mean",
        ),
        ([1], r"towers\.text\.source: .*config\.json is no JSON object: mend it"),
        ({"pooling_mode": "cls", "include_prompt": False}, ""),
    ],
)
def test_a_prompt_that_would_have_to_be_left_out_is_refused(tmp_path: Path, content: object, said: str) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    pooling(tmp_path / "source", content)
    config = TRANSFORMER.model_copy(update={"prompt": "query: "})
    with pytest.raises(InputError, match=said) if said else nullcontext():
        config.prepare([b"vase"], tmp_path / "text", tmp_path)


def layers(folder: Path, weights: str, *sizes: tuple[int, int], **config: object) -> list[nn.Linear]:
    """Write layers behind the pooling, as sentence-transformers does, and return them."""
    kinds = ["Transformer", "Pooling", *["Dense"] * len(sizes), "Normalize"]
    modules = [
        {"path": f"{place}_{kind}", "type": f"sentence_transformers.models.{kind}"} for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    pooling(folder, {"pooling_mode": "mean"})
    built = []
    for place, (before, after) in enumerate(sizes, 2):
        built.append(nn.Linear(before, after, bool(config.get("bias", True))))
        state = {f"linear.{key}": value for key, value in built[-1].state_dict().items()}
        own = folder / f"{place}_Dense"
        own.mkdir()
        found = {"in_features": before, "out_features": after} | config
        (own / "config.json").write_text(json.dumps(found), encoding="utf-8")
        if weights == "model.safetensors":
            save_file(state, own / weights)
        elif weights:
            torch.save(state, own / weights)
    return built


@pytest.mark.parametrize(
    ("weights", "config", "activation"),
    [
        ("model.safetensors", {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}, torch.tanh),
        ("pytorch_model.bin", {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}, lambda x: x),
    ],
)
def test_layers_behind_the_pooling_are_part_of_the_network(
    tmp_path: Path, weights: str, config: dict[str, object], activation: Callable[[Tensor], Tensor]
) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    plain = prepared(tmp_path / "plain", TRANSFORMER, root=tmp_path)
    first, second = layers(tmp_path / "source", weights, (plain.encoder.feature_dim, 20), (20, 12), **config)
    tower = prepared(tmp_path / "text", TRANSFORMER, root=tmp_path)
    assert tower.encoder.feature_dim == 12
    with torch.inference_mode():
        expected = activation(second(activation(first(torch.from_numpy(plain.features(TEXTS))))))
    np.testing.assert_allclose(tower.features(TEXTS), expected.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(tower.rebuilt().features(TEXTS), expected.numpy(), rtol=0, atol=1e-6)
    if config["bias"]:  # once is enough
        exported(tower, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: layers(folder, "", (8, 4)), "has no weights in 2_Dense"),
        (lambda folder: layers(folder, "model.safetensors", (8, 4), out_features=5), "does not hold the layer that"),
        (lambda folder: layers(folder, "", (8, 4), activation_function="a.Swish"), "activation Swish of 2_Dense"),
        (lambda folder: layers(folder, "", (8, 4), in_features=None), "does not say in_features and out_features"),
        (lambda folder: layers(folder, "") or (folder / "modules.json").write_text("{}"), "is no JSON list"),
        (lambda folder: (folder / "modules.json").write_text("[{]"), "is no JSON "),
        (
            lambda folder: (folder / "modules.json").write_text(
                '[{"type": "a.Transformer", "path": ""}, {"type": "a.LSTM", "path": ""}]'
            ),
            "is made of Transformer, LSTM",
        ),
        (
            lambda folder: (folder / "modules.json").write_text(
                '[{"type": "a.Normalize", "path": ""}, {"type": "a.Dense", "path": ""}]'
            ),
            "is made of Normalize, Dense",
        ),
        (
            lambda folder: layers(folder, "", (8, 4)) and (folder / "2_Dense" / "config.json").unlink(),
            "lacks 2_Dense/config.json",
        ),
        (
            lambda folder: layers(folder, "") or (folder / "1_Pooling" / "config.json").unlink(),
            "lacks 1_Pooling/config.json, which its modules.json names: copy",
        ),
        (
            lambda folder: (folder / "modules.json").write_text(
                '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "1_Dense"}]'
            ),
            r"towers\.text\.source: source makes no single vector of a text \(no Pooling",
        ),
        (lambda folder: (folder / "modules.json").write_text('["a"]'), "does not give the path of every module"),
        (lambda folder: (folder / "modules.json").write_text('[{"type": "Dense"}]'), "does not give the path of every"),
    ],
)
def test_layers_that_cannot_be_had_are_refused(tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    change(tmp_path / "source")
    with pytest.raises(InputError, match=said):
        prepared(tmp_path / "text", TRANSFORMER, root=tmp_path)


def test_the_pooling_may_lie_in_another_folder(tmp_path: Path) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    pooling(tmp_path / "source", {"pooling_mode": "cls"})
    (tmp_path / "source" / "1_Pooling").rename(tmp_path / "source" / "9_Pooling")
    modules = [{"path": "", "type": "a.Transformer"}, {"path": "9_Pooling", "type": "a.Pooling"}]
    (tmp_path / "source" / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    encoder = prepared(tmp_path / "text", TRANSFORMER, root=tmp_path).encoder
    assert isinstance(encoder, TextTransformer)
    assert encoder.pooling == FIRST


def test_texts_are_put_into_lower_case_where_sentence_transformers_does_it(tmp_path: Path) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    for lower, errors in ((False, [NOTHING_KNOWN]), (True, [""])):
        (tmp_path / "source" / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": lower}))
        tower = prepared(tmp_path / f"text-{lower}", TRANSFORMER, root=tmp_path)
        assert tower.preprocess([b"VASE"])[1] == errors


def test_a_prompt_that_the_network_was_trained_with_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    prompts = {"prompts": {"query": "q: ", "document": "d: "}, "default_prompt_name": "document"}
    (tmp_path / "source" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    prepared(tmp_path / "text", TRANSFORMER, root=tmp_path)
    assert "towers.text: source was trained with prompt = 'd: ': give it" in caplog.text
    caplog.clear()
    prepared(tmp_path / "text", TRANSFORMER.model_copy(update={"prompt": "blue "}), root=tmp_path)
    assert "prompt" not in caplog.text


def test_weights_under_other_names_are_no_weights(tmp_path: Path) -> None:
    """transformers only warns, and the network would answer at random."""
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    weights = tmp_path / "source" / "model.safetensors"
    renamed = {f"inside.{name}": value for name, value in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"source 'source': its files lack \d+ of the weights of a BertModel, .*copy"):
        prepared(tmp_path / "text", TRANSFORMER, root=tmp_path)


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_is_drawn_while_a_network_is_loaded(
    tmp_path: Path, shown: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    monkeypatch.setattr(transformers_logging, "_tqdm_active", shown)
    capfd.readouterr()
    prepared(tmp_path / "text", TRANSFORMER, root=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.is_progress_bar_enabled() == shown  # the caller's own networks keep their bars


def test_code_that_a_network_brings_is_not_run_or_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    file = tmp_path / "source" / "config.json"
    own = {"auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    kept = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(kept | own), encoding="utf-8")
    prepared(tmp_path / "known", TRANSFORMER, root=tmp_path)  # by the code that transformers has
    file.write_text(json.dumps(kept | own | {"model_type": "own"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"source 'source' is computed by code of its own .*: name a network that"):
        prepared(tmp_path / "text", TRANSFORMER, root=tmp_path)
    assert "[y/N]" not in "".join(capfd.readouterr())


def test_a_tokenizer_that_transformers_cannot_convert_here_is_named(tmp_path: Path) -> None:
    write_backbone(tmp_path / "source", *BACKBONES["bert"])
    (tmp_path / "source" / "tokenizer.json").unlink()
    (tmp_path / "source" / "spm.model").write_bytes(b"no model")
    settings = {"tokenizer_class": "DebertaV2Tokenizer"}
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(InputError, match=r"towers\.text\.source: source has no tokenizer\.json, .* save_pretrained"):
        prepared(tmp_path / "text", TRANSFORMER, root=tmp_path)


@pytest.mark.parametrize(("count", "length"), [(1, 16), (14, 16), (15, 32), (31, 40), (500, 40)])
def test_lengths_are_rounded_up_and_cut_at_the_limit(transformer: Prepared, count: int, length: int) -> None:
    ids, mask = transformer.tensors(["vase " * count])
    assert ids.shape == mask.shape == (1, length)
    assert int(mask.sum()) == min(count + 2, 40)
    assert isinstance(transformer.encoder, TextTransformer)
    last = {"bert": 3, "xlnet": 2}[transformer.encoder.backbone.config.model_type]
    assert ids[0, int(mask.sum()) - 1] == last
    assert np.isfinite(transformer.features(["vase " * count])).all()


def test_weights_fit_the_bare_architecture(transformer: Prepared) -> None:
    np.testing.assert_allclose(transformer.rebuilt().features(TEXTS), transformer.features(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=32),
            r"towers\.text\.max_tokens: .*source reads at most 32 tokens",
        ),
        (
            RobertaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=65),
            r"towers\.text\.max_tokens: .*source reads at most 63 tokens",  # two positions belong to padding
        ),
        (RobertaConfig(pad_token_id=None), r"towers\.text\.source: .*source \(roberta\) .* give pad_token_id there"),
        (XLNetConfig(d_model=8, n_layer=1, n_head=1, attn_type="uni"), r"towers\.text\.source: of XLNet, only"),
        (T5Config(), r"towers\.text\.source: .*source \(t5\) is more than an encoder of texts"),
        (AlignConfig(), r"towers\.text\.source: .*source \(align\) is more than an encoder of texts"),
    ],
    ids=["too long", "too long behind padding", "behind no padding", "uni", "with a decoder", "with photos"],
)
def test_what_cannot_be_served_is_refused_before_training(tmp_path: Path, config: PretrainedConfig, said: str) -> None:
    config.save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match=said):
        TRANSFORMER.model_copy(update={"max_tokens": 64}).prepare([b"vase"], tmp_path / "text", tmp_path)
