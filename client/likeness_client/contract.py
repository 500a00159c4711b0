"""The wire contract: every name, type and limit that the server and its callers share, declared once.

A product is split into *modalities*; the set that a product really has is its *signature*. The server offers one
ensemble per signature (``embed_text_image``), so that nothing is computed for what is missing. Ensembles, steps and
tensors get their names here and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import combinations

MAX_BYTES: Mapping[str, int] = {
    "text": 1_000_000,
    "image": 20_000_000,
    "attributes": 100_000,
    "video": 100_000_000,
    "interactions": 1_000_000,
}
"""The largest input per product and modality, as sent. Beyond it the item fails; its neighbours do not.

Of several photos each may have so much. No name has an underscore: it joins them in the name of a signature."""
MODALITIES: tuple[str, ...] = tuple(MAX_BYTES)
"""All modalities, in the order in which signatures name them. Each is one BYTES input per product on the wire."""

SEVERAL_PHOTOS = b"photos\0"
"""What several photos of a product begin with; behind it, of each one, its size as 4 bytes, little-endian, and itself.
A single photo is sent as it is."""

EMBEDDING = "embedding"
"""Output of ``embed_<signature>``: FP32 [d], unit length."""
MODALITY_WEIGHTS = "modality_weights"
"""Output of ``embed_<signature>`` of several modalities: FP32 [m], one weight each in the signature's order; sum 1."""
ERROR_SUFFIX = "_error"
"""Outputs ``<tower>_error`` of an ensemble: BYTES [1]; empty, or why this item's input could not be read."""
NOTHING_KNOWN = "nothing in it is known from training: leave the modality out"
"""The error of a text without a known word, of attributes without a known value, of interactions of strangers only.
Nothing is wrong with them, but two such products would be the same to the network, and only the server can tell what is
known. Where all towers of a modality say so, what else the product has is to be embedded without it; where another one
knows something, the answer stands."""
LEFT, RIGHT = "left", "right"
"""The two sides of a comparison: inputs of the similarity models, prefixes in the pair ensembles."""

SIMILARITY_MODEL = "similarity"
"""Scores pairs: ``left`` and ``right`` FP32 [d] -> one FP32 [1] per metric."""
MATRIX_MODEL = "similarity_matrix"
"""Scores blocks: ``left`` FP32 [b, q, d] and ``right`` FP32 [b, c, d] -> one FP32 [b, q, c] per metric."""
MAX_BLOCK_LEFT, MAX_BLOCK_RIGHT = 128, 1024
"""The most vectors on each side of a block; TensorRT plans take no more, and are built for both at once."""

SPACE_PARAMETER = "space"
"""Model config parameter: the fingerprint of the embedding space. Embeddings of two spaces are never compared."""
SCHEMA_PARAMETER = "input_schema"
"""Model config parameter of the ensembles: an `InputSchema` as JSON."""


class Metric(StrEnum):
    """How the similarity of two embeddings is scored."""

    COSINE = "cosine"  # in [-1, 1], higher is more alike
    EUCLIDEAN = "euclidean"  # a distance in [0, 2] between unit vectors, lower is more alike
    LEARNED = "learned"  # in [0, 1], a trained network's probability that the two are the same


BOUNDS: Mapping[Metric, tuple[float, float]] = {
    Metric.COSINE: (-1.0, 1.0),
    Metric.EUCLIDEAN: (0.0, 2.0),
    Metric.LEARNED: (0.0, 1.0),
}
"""The least and the largest score of each metric."""


@dataclass(frozen=True, kw_only=True)
class InputSchema:
    """How a product record becomes the bytes that a server expects; published by the server, applied by its callers.

    Attributes:
        text_fields: what is joined into the text: ``title``, ``description``, or ``attributes.<key>``.
        attribute_keys: the attributes that the server reads; others are not sent.
        max_bytes: the largest input per modality.
        max_photos: how many photos of a product the server reads, the first ones; others are not sent.
    """

    text_fields: tuple[str, ...] = ("title", "description")
    attribute_keys: tuple[str, ...] = ()
    max_bytes: Mapping[str, int] = field(default_factory=lambda: dict(MAX_BYTES))
    max_photos: int = 1

    def to_json(self) -> str:
        """Return the form that travels as a model config parameter."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> InputSchema:
        """Read what `to_json` wrote. Keys of later versions are ignored, so that an older client can talk to them."""
        raw = json.loads(text)
        return cls(
            text_fields=tuple(raw["text_fields"]),
            attribute_keys=tuple(raw["attribute_keys"]),
            max_bytes=raw["max_bytes"],
            max_photos=raw.get("max_photos", 1),  # servers of before there were several
        )


def space_version(space: str) -> int:
    """Return the version under which a space's embeddings and scores are served.

    Who asks for this version gets an answer of this space or none: Triton says NOT_FOUND of a version that it lacks.
    Steps inside the server have version 1.
    """
    return 1 + int.from_bytes(hashlib.sha256(space.encode()).digest()[:6])


def signature_of(modalities: Iterable[str]) -> str:
    """Name a set of modalities, e.g. ``text_image``; the order does not matter.

    Raises:
        ValueError: a name is not in `MODALITIES`.
    """
    present = set(modalities)
    if unknown := present - set(MODALITIES):
        raise ValueError(f"unknown modality {sorted(unknown)}; known are {list(MODALITIES)}")
    return "_".join(name for name in MODALITIES if name in present)


def modalities_of(signature: str) -> tuple[str, ...]:
    """Return the modalities that a signature names, in order."""
    return tuple(signature.split("_"))


def all_signatures(modalities: Iterable[str]) -> list[str]:
    """Return every non-empty signature over these modalities, small sets first."""
    present = set(modalities)
    ordered = [name for name in MODALITIES if name in present]
    return [signature_of(chosen) for size in range(1, len(ordered) + 1) for chosen in combinations(ordered, size)]


def embed_model(signature: str) -> str:
    """Name the ensemble that embeds products of this signature."""
    return f"embed_{signature}"


def pair_model(signature: str) -> str:
    """Name the ensemble that scores two products of this signature in one round trip."""
    return f"{SIMILARITY_MODEL}_{signature}"


def fusion_model(signature: str) -> str:
    """Name the step that fuses the vectors of this signature."""
    return f"fusion_{signature}"


def preprocess_model(tower: str) -> str:
    """Name the step that turns a tower's raw bytes into its encoder's tensors."""
    return f"{tower}_preprocess"


def encoder_model(tower: str) -> str:
    """Name the step that turns a tower's tensors into one unit vector."""
    return f"{tower}_encoder"


def tower_embedding(tower: str) -> str:
    """Name the vector that a tower's encoder puts out: FP32 [d], unit length."""
    return f"{tower}_embedding"


def tower_error(tower: str) -> str:
    """Name the tensor that says why a tower's input could not be read: BYTES [1], empty when it could."""
    return f"{tower}{ERROR_SUFFIX}"


def sided(side: str, name: str) -> str:
    """Name one side's tensor of a pair ensemble, e.g. ``left_text``."""
    return f"{side}_{name}"
