"""How far the embeddings of the served signatures move when towers' vectors do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from likeness_client.contract import EMBEDDING, fusion_model, tower_embedding
from numpy.typing import NDArray

from likeness_export.exporting.onnx_export import open_session
from likeness_export.pipeline import towers_of
from likeness_export.precision.gate import Drift, JudgedVectors, Limits, measure
from likeness_export.recipe import Recipe
from likeness_export.repository.rendering import VERSION


@dataclass(frozen=True, kw_only=True)
class FusionHeads:
    """The exported fusion heads behind the towers.

    Attributes:
        recipe: what is served.
        folder: the model repository.
        fp32: tower -> its fp32 vectors of n products.
        labels: label -> its value per product.
        limits: how far embeddings may move.
    """

    recipe: Recipe
    folder: Path
    fp32: Mapping[str, JudgedVectors]
    labels: Mapping[str, NDArray[np.str_]]
    limits: Limits

    def drifts(self, reduced: Mapping[str, JudgedVectors], *, everywhere: bool = False) -> dict[str, Drift]:
        """Measure the signatures that some product has.

        Args:
            reduced: tower -> its reduced vectors; the other towers stay fp32.
            everywhere: also the signatures that none of these towers belongs to.
        """
        vectors = {**self.fp32, **reduced}
        found = {}
        for signature in self.recipe.signatures():
            if everywhere or reduced.keys() & set(towers_of(self.recipe, signature)):
                before, after = self._fused(signature, self.fp32), self._fused(signature, vectors)
                found[signature] = measure(before, after, self.labels)
        return {signature: drift for signature, drift in found.items() if drift.products}

    def faults(self, drifts: Mapping[str, Drift]) -> list[str]:
        """Return what is wrong, in words; empty if every signature passes, and their mean."""
        single = [
            f"signature {signature}: {fault}"
            for signature, drift in drifts.items()
            for fault in self.limits.signature_faults(drift)
        ]
        return [*single, *self.limits.mean_faults(drifts.values())]

    def _fused(self, signature: str, vectors: Mapping[str, JudgedVectors]) -> JudgedVectors:
        """Fuse the vectors of all products that have the whole signature."""
        towers = towers_of(self.recipe, signature)
        if signature not in self.recipe.fused_signatures():
            return vectors[towers[0]]
        session = open_session(signature, self.folder / fusion_model(signature) / str(VERSION) / "model.onnx")

        def fuse(given: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
            there = ~np.logical_or.reduce([np.isnan(found).any(1) for found in given.values()])
            fused = np.full((len(there), self.recipe.embedding_dimension()), np.nan, np.float32)
            if there.any():
                fused[there] = session.run([EMBEDDING], {name: found[there] for name, found in given.items()})[0]
            return fused

        return JudgedVectors(
            together=fuse({tower_embedding(name): vectors[name].together for name in towers}),
            alone=fuse({tower_embedding(name): vectors[name].alone for name in towers}),
        )
