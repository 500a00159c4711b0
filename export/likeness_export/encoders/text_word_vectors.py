"""Text as the weighted mean of its words' vectors: Word2Vec or GloVe (article, 3.2.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np
import torch
from likeness_client.contract import MAX_BYTES
from likeness_client.errors import InputError
from likeness_client.writing import write_arrays
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from likeness_export.encoders.base import Encoder, EncoderConfig, write_asset
from likeness_export.encoders.text_common import decoded, length_buckets
from likeness_export.encoders.word_vector_file import WordVectors, read_word_vectors
from likeness_export.preprocessing import words
from likeness_export.tensors import TensorSpec

_TABLE_FILE = "word_vectors.npz"
_SIF_A = 1e-3  # as in the paper: Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings"


class WordVectorsConfig(EncoderConfig):
    """``encoder = "word_vectors"``."""

    modality: ClassVar[str] = "text"
    preprocessing: ClassVar[ModuleType] = words

    encoder: Literal["word_vectors"]
    source: str = Field(
        default="",
        description="file of word vectors under the data root: word2vec's or GloVe's text, or word2vec's .bin; "
        "empty: vectors are learned from the training texts",
    )
    max_words: int = Field(default=100_000, ge=1, le=5_000_000, description="the most frequent words are kept")
    max_tokens: int = Field(default=256, ge=8, le=8192, description="of longer texts only so many known words are read")
    # sif is made for prose: of a catalogue's few words (colours, kinds) it takes nearly all weight. On three catalogues
    # the mean average precision was 0.32, 0.43 and 0.88 with sif, 0.39, 0.62 and 0.90 with idf.
    weighting: Literal["idf", "sif"] = Field(
        default="idf", description="how much less frequent words count: idf over the texts, or a / (a + probability)"
    )
    vector_size: int = Field(default=100, ge=2, le=1024, description="of vectors that are learned")
    epochs: int = Field(default=20, ge=1, description="of learning the vectors")
    # gensim reads no more words of a text than that, and waits forever if the number does not fit into its 32 bits.
    window: int = Field(default=5, ge=1, le=10_000, description="how many words to either side are a word's context")
    min_count: int = Field(default=2, ge=1, description="words seen less often get no vector")
    seed: int = Field(default=7, ge=0, lt=2**32, description="of learning the vectors")

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Ids of the known words, of varying length."""
        return (TensorSpec("word_ids", "INT64", (-1,)),)

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:
        """Learn or read the vectors, and weigh the words by the training texts.

        Raises:
            InputError: the file cannot be used, or no word is frequent enough.
        """
        texts = [words.words_of(text) for text in decoded(items)]
        vectors = read_word_vectors(data_root / self.source, self.max_words) if self.source else self._learn(texts)
        if not vectors:
            raise InputError(
                f"towers.{tower.name}: no word is said {self.min_count} times in the training texts: lower min_count, "
                "or leave the tower out"
            )
        known = list(vectors)
        table = np.stack([np.zeros_like(vectors[known[0]]), *vectors.values()])
        weights = np.array([0.0, *self._weights(known, texts)], np.float32)
        write_arrays(tower / _TABLE_FILE, table=table, weights=weights)
        vocabulary = {
            "max_tokens": self.max_tokens,
            "length_buckets": length_buckets(self.max_tokens),
            "max_bytes": MAX_BYTES["text"],
            "words": known,
        }
        write_asset(tower, words.VOCABULARY_FILE, vocabulary)

    def _learn(self, texts: list[list[str]]) -> WordVectors:
        """Train Word2Vec (skip-gram), the same vectors every time."""
        counts = Counter(word for text in texts for word in text)
        known = {word for word, count in counts.most_common(self.max_words) if count >= self.min_count}
        if not known:
            return {}
        # Not at the top of the file: only this needs gensim.
        from gensim.models import Word2Vec

        model = Word2Vec(
            sentences=[[word for word in text if word in known] for text in texts],
            vector_size=self.vector_size,
            window=self.window,
            min_count=1,
            epochs=self.epochs,
            sg=1,  # better than the mean of the context where texts are few
            seed=self.seed,
            workers=1,  # more would draw from one generator in whatever order they run
        )
        return dict(zip(model.wv.index_to_key, model.wv.vectors, strict=True))

    def _weights(self, known: list[str], texts: list[list[str]]) -> NDArray[np.float64]:
        if self.weighting == "idf":
            holding = Counter(word for text in texts for word in set(text))
            # As scikit-learn smooths it: as if one more text held every word.
            idf: NDArray[np.float64] = np.log((1 + len(texts)) / (1 + np.array([holding[word] for word in known]))) + 1
            return idf
        counts = Counter(word for text in texts for word in text)
        probability = np.array([counts[word] for word in known]) / max(1, counts.total())
        weights: NDArray[np.float64] = _SIF_A / (_SIF_A + probability)
        return weights

    def build(self, tower: Path, source_root: Path | None) -> Encoder:  # noqa: ARG002 (the tower's folder holds them)
        """Build it with the vectors that `prepare` left."""
        with np.load(tower / _TABLE_FILE) as kept:
            return MeanOfWords(torch.from_numpy(kept["table"]), torch.from_numpy(kept["weights"]))


class MeanOfWords(Encoder):
    """The mean of the vectors of a text's known words, weighted; zeros where none is known."""

    weights: Tensor

    def __init__(self, table: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding(len(table), table.shape[1], padding_idx=0, _weight=table)
        self.register_buffer("weights", weights)
        self.feature_dim = table.shape[1]

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``word_ids``, INT64 [n, length]."""
        weights = self.weights[tensors[0]].unsqueeze(-1)  # (n, length, 1); 0 for padding
        total: Tensor = (self.table(tensors[0]) * weights).sum(1)  # (n, f)
        return total / weights.sum(1).clamp(min=1e-9)

    def sample(self, specs: Sequence[TensorSpec], batch: int, length: int) -> tuple[Tensor, ...]:  # noqa: ARG002 (the vocabulary says it)
        """Draw words, with padding of different length in every row."""
        there = torch.arange(length) < torch.randint(1, length + 1, (batch, 1))
        return (torch.randint(1, len(self.weights), (batch, length)) * there,)
