"""The models that a recipe makes, declared: which networks and preprocessing steps there are, and their tensors.

Export traces what stands here; the repository's configurations are rendered from it, without trained weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from likeness_client.contract import (
    EMBEDDING,
    LEFT,
    MATRIX_MODEL,
    MODALITY_WEIGHTS,
    RIGHT,
    SIMILARITY_MODEL,
    encoder_model,
    fusion_model,
    modalities_of,
    preprocess_model,
    tower_embedding,
    tower_error,
)

from likeness_export.networks.similarity import SCORES
from likeness_export.recipe import Recipe
from likeness_export.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """One model that computes something, of a tower or a signature, if any; its tensors are without the batch."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tower: str = ""
    signature: str = ""


def towers_of(recipe: Recipe, signature: str) -> list[str]:
    """Return the towers that a product of this signature goes through, in the recipe's order."""
    return [name for name, modality in recipe.tower_modalities().items() if modality in modalities_of(signature)]


def raw_input(modality: str) -> TensorSpec:
    """Describe the bytes of one modality as they come over the wire."""
    return TensorSpec(modality, "BYTES", (1,))


def preprocess_steps(recipe: Recipe) -> list[StepSpec]:
    """Declare one step per tower from raw bytes to the encoder's tensors; towers that read alike share one."""
    return [
        StepSpec(
            name=preprocess_model(name),
            inputs=(raw_input(recipe.towers[name].modality),),
            outputs=(*recipe.towers[name].tensors(), TensorSpec(tower_error(name), "BYTES", (1,))),
            tower=name,
        )
        for name in recipe.preprocessed_towers()
    ]


def encoder_networks(recipe: Recipe) -> list[StepSpec]:
    """Declare one network per tower, its projection included."""
    return [
        StepSpec(name=encoder_model(name), inputs=tower.tensors(), outputs=(_vector(recipe, name),), tower=name)
        for name, tower in recipe.towers.items()
    ]


def fusion_networks(recipe: Recipe) -> list[StepSpec]:
    """Declare one fusion head per signature that has something to fuse."""
    return [
        StepSpec(
            name=fusion_model(signature),
            inputs=tuple(_vector(recipe, name) for name in towers_of(recipe, signature)),
            outputs=embedding_outputs(recipe, signature),
            signature=signature,
        )
        for signature in recipe.fused_signatures()
    ]


def embedding_outputs(recipe: Recipe, signature: str) -> tuple[TensorSpec, ...]:
    """Describe an embedding, and how much each modality counted, which goes without saying of a single one."""
    embedding = TensorSpec(EMBEDDING, "FP32", (recipe.embedding_dimension(),))
    count = len(modalities_of(signature))
    return (embedding, TensorSpec(MODALITY_WEIGHTS, "FP32", (count,))) if count > 1 else (embedding,)


def similarity_networks(recipe: Recipe) -> list[StepSpec]:
    """Declare the network that scores pairs, which are blocks of one by one, and the same for blocks of any size.

    Each has its own file, because Triton's onnxruntime backend takes outputs of exactly the declared sizes only.
    """
    return [
        StepSpec(
            name=name,
            inputs=tuple(TensorSpec(side, "FP32", (size, recipe.embedding_dimension())) for side in (LEFT, RIGHT)),
            outputs=tuple(TensorSpec(score, "FP32", (size, size)) for score in SCORES),
        )
        for name, size in ((SIMILARITY_MODEL, 1), (MATRIX_MODEL, -1))
    ]


def networks(recipe: Recipe) -> list[StepSpec]:
    """Declare everything that is exported to ONNX."""
    return [*encoder_networks(recipe), *fusion_networks(recipe), *similarity_networks(recipe)]


def _vector(recipe: Recipe, tower: str) -> TensorSpec:
    return TensorSpec(tower_embedding(tower), "FP32", (recipe.dimension,))
