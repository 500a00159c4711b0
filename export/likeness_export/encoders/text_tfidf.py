"""Text as TF-IDF: each term counts by how often it is said, and by how few texts say it (article, 3.2.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from likeness_client.contract import MAX_BYTES
from likeness_client.errors import InputError
from pydantic import Field, field_validator
from torch import Tensor

from likeness_export.encoders.base import ASSETS, Encoder, EncoderConfig, write_asset
from likeness_export.encoders.text_common import decoded, length_buckets
from likeness_export.preprocessing import tfidf
from likeness_export.tensors import TensorSpec


class TfidfConfig(EncoderConfig):
    """``encoder = "tfidf"``.

    A frozen encoder's features are cached: 4 bytes for every product and term. For catalogues where that is too much,
    ``freeze = false`` computes them again in every step (the encoder has nothing to learn either way), or
    ``components`` makes them shorter; then the tower's own projection also has less to learn by heart.
    """

    modality: ClassVar[str] = "text"
    preprocessing: ClassVar[ModuleType] = tfidf

    encoder: Literal["tfidf"]
    analyzer: Literal["word", "char_wb"] = Field(
        default="word", description="terms are words, or runs of characters within words"
    )
    ngram_range: tuple[int, int] = Field(default=(1, 2), description="the shortest and the longest run that is a term")
    max_features: int = Field(default=20_000, ge=1, le=1_000_000, description="the most frequent terms are kept")
    min_count: int = Field(default=2, ge=1, description="terms in fewer training texts are left out")
    components: int | None = Field(
        default=None,
        ge=8,
        le=8192,
        description="random projection to so many numbers, which keeps cosines nearly as they are; default: all terms",
    )
    sublinear: bool = Field(default=True, description="a term that is said tf times counts 1 + ln tf")

    @field_validator("ngram_range")
    @classmethod
    def _ascending(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1] <= 10:
            raise ValueError("must be two whole numbers from 1 to 10, the smaller one first")
        return value

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Terms and their weights, as many as there are."""
        return (TensorSpec("term_ids", "INT64", (-1,)), TensorSpec("term_weights", "FP32", (-1,)))

    def prepare(self, items: Sequence[bytes], tower: Path, data_root: Path) -> None:  # noqa: ARG002 (no pretrained part)
        """Fit vocabulary and idf.

        Raises:
            InputError: no term is frequent enough.
        """
        # Not at the top of the file: only training needs scikit-learn, and it takes a second.
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            analyzer=self.analyzer,
            ngram_range=self.ngram_range,
            max_features=self.max_features,
            min_df=self.min_count,
            sublinear_tf=self.sublinear,
        )
        try:
            vectorizer.fit(decoded(items))
        except ValueError as error:  # the configuration is checked: this means that nothing is left
            raise InputError(
                f"towers.{tower.name}: no term is in {self.min_count} of the training texts: lower min_count, or leave "
                "the tower out"
            ) from error
        terms = [str(term) for term in vectorizer.get_feature_names_out()]
        vocabulary = {
            "analyzer": self.analyzer,
            "ngram_range": self.ngram_range,
            "sublinear": self.sublinear,
            "length_buckets": length_buckets(len(terms)),
            "max_bytes": MAX_BYTES["text"],
            "terms": terms,
            "idf": vectorizer.idf_.tolist(),
        }
        write_asset(tower, tfidf.VOCABULARY_FILE, vocabulary)

    def build(self, tower: Path, source_root: Path | None) -> Encoder:  # noqa: ARG002 (there are no pretrained weights)
        """Build it for the fitted vocabulary."""
        vocabulary = json.loads((tower / ASSETS / tfidf.VOCABULARY_FILE).read_text(encoding="utf-8"))
        terms = len(vocabulary["terms"])
        return Tfidf(terms) if self.components is None else ProjectedTfidf(terms, self.components)


class Tfidf(Encoder):
    """The weights at the places of their terms, zeros elsewhere, divided by their Euclidean length."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.terms = self.feature_dim = terms

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode ``term_ids``, INT64 [n, length], and ``term_weights``, FP32 [n, length]."""
        term_ids, term_weights = tensors
        blank = term_weights.new_zeros(term_weights.shape[0], self.feature_dim)  # len() would freeze the batch
        dense = blank.scatter_add(1, term_ids, term_weights)  # (n, f)
        return F.normalize(dense, dim=1)

    def sample(self, specs: Sequence[TensorSpec], batch: int, length: int) -> tuple[Tensor, ...]:  # noqa: ARG002 (both have one shape)
        """Draw terms, with padding of different length in every row."""
        there = torch.arange(length) < torch.randint(1, length + 1, (batch, 1))
        term_ids = torch.randint(0, self.terms, (batch, length)) * there
        return term_ids, torch.rand(batch, length) * there


class ProjectedTfidf(Tfidf):
    """The same through a fixed random matrix, whose rows are summed up by the terms' weights; no dense vector is built.

    Gaussian entries keep all cosines up to about 1 / sqrt(components) (Johnson and Lindenstrauss 1984).
    """

    def __init__(self, terms: int, components: int) -> None:
        super().__init__(terms)
        draw = torch.Generator().manual_seed(0)
        self.register_buffer("projection", torch.randn(terms, components, generator=draw) / components**0.5)
        self.projection: Tensor
        self.feature_dim = components

    def forward(self, *tensors: Tensor) -> Tensor:
        """See `Tfidf.forward`."""
        term_ids, term_weights = tensors
        weights = F.normalize(term_weights, dim=1).unsqueeze(1)  # (n, 1, length)
        return (weights @ F.embedding(term_ids, self.projection)).squeeze(1)  # (n, c)
