"""What the clients answer with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likeness_client import _files
from likeness_client.contract import Metric
from likeness_client.errors import InputError, ProductError, SpaceMismatchError

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """Embeddings of a batch of products, in the order in which they were given.

    Attributes:
        vectors: float32 [n, d], unit length; a row of NaN where the product failed.
        modality_weights: per product, how much each modality counted; not negative, sums to 1; empty where it failed
            or that is not known.
        signatures: per product, the modalities that it had, e.g. ``text_image``; empty likewise.
        product_ids: per product, the caller's own id.
        space: fingerprint of the embedding space. Vectors of different spaces must not be compared.
        errors: the failures by position.
    """

    vectors: FloatArray
    modality_weights: tuple[Mapping[str, float], ...]
    signatures: tuple[str, ...]
    product_ids: tuple[str, ...]
    space: str
    errors: Mapping[int, ProductError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        shape = list(self.vectors.shape)
        return f"{type(self).__name__}(vectors of shape {shape}, space {self.space!r}, {len(self.errors)} failed)"

    def save(self, path: Path | str) -> None:
        """Write to a file, ``.npz`` or ``.parquet`` by its suffix; an existing file is replaced in one step.

        Raises:
            InputError: another suffix, or the file cannot be written; an existing one is left as it was.
            MissingExtraError: parquet without pyarrow.
        """
        with _files.writing(Path(path)) as writer:
            writer.add(self)

    @classmethod
    def load(cls, path: Path | str) -> Embeddings:
        """Read what `save` wrote.

        Raises:
            InputError: the file cannot be read, was not written by `save`, or has another suffix.
            MissingExtraError: parquet without pyarrow.
        """
        return cls(**_files.load(Path(path)))

    @classmethod
    def from_vectors(cls, vectors: ArrayLike, space: str) -> Embeddings:
        """Take vectors that were kept elsewhere, in a database for instance; nothing else is known of their products.

        Args:
            vectors: [n, d], unit length, as `vectors` held them; NaN in the row of a product that has none. Databases
                answer with lists: a list of rows is taken as an array is.
            space: the fingerprint that was kept beside them.

        Raises:
            InputError: they are no matrix of numbers.
        """
        try:
            matrix = np.asarray(vectors, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"vectors must be numbers of the shape [n, d], one row per product: {error}") from error
        if matrix.ndim != 2:
            raise InputError(f"vectors must have the shape [n, d], found {list(matrix.shape)}: one row per product")
        nothing = ("",) * len(matrix)
        return cls(
            vectors=matrix,
            modality_weights=({},) * len(matrix),
            signatures=nothing,
            product_ids=nothing,
            space=space,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Join batches into one; positions of errors count on.

        Raises:
            InputError: there is no part.
            SpaceMismatchError: the parts are of different spaces.
        """
        if not parts:
            raise InputError("nothing to concatenate")
        require_same_space(*(part.space for part in parts))
        starts = np.cumsum([0, *(len(part) for part in parts)])
        return cls(
            vectors=np.concatenate([part.vectors for part in parts]),
            modality_weights=tuple(weights for part in parts for weights in part.modality_weights),
            signatures=tuple(name for part in parts for name in part.signatures),
            product_ids=tuple(name for part in parts for name in part.product_ids),
            space=parts[0].space,
            errors={
                int(start) + index: error.at(int(start) + index)
                for start, part in zip(starts, parts, strict=False)
                for index, error in part.errors.items()
            },
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """How alike the products of each pair are.

    Attributes:
        values: float32 [n]; NaN where the pair failed. See `Metric` for range and direction.
        metric: the measure of the values.
        space: fingerprint of the embedding space.
        errors: the failures by position of the pair; each says which side.
    """

    values: FloatArray
    metric: Metric
    space: str
    errors: Mapping[int, ProductError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreMatrix:
    """How alike each query is to each candidate.

    Attributes:
        values: float32 [q, c]; NaN in the row or column of a product that failed.
        metric: the measure of the values.
        space: fingerprint of the embedding space.
        query_errors: the failures by row.
        candidate_errors: the failures by column.
    """

    values: FloatArray
    metric: Metric
    space: str
    query_errors: Mapping[int, ProductError] = field(default_factory=dict)
    candidate_errors: Mapping[int, ProductError] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that there is to say about one pair.

    Attributes:
        cosine: in [-1, 1], higher is more alike.
        euclidean: in [0, 2], lower is more alike.
        learned: in [0, 1], the trained network's probability that the two are the same.
        left_weights: how much each modality of the left product counted; sums to 1.
        right_weights: the same for the right product.
        space: fingerprint of the embedding space.
    """

    cosine: float
    euclidean: float
    learned: float
    left_weights: Mapping[str, float]
    right_weights: Mapping[str, float]
    space: str


def require_same_space(*spaces: str) -> None:
    """Refuse to mix embedding spaces.

    Raises:
        SpaceMismatchError: the fingerprints differ.
    """
    if len(set(spaces)) > 1:
        raise SpaceMismatchError(
            f"embeddings of different spaces cannot be compared: {', '.join(sorted(set(spaces)))}; "
            "embed those of one of them anew through a server of the other"
        )
