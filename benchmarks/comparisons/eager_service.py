"""The full pipeline as a FastAPI service with eager torch, as most teams would write it; one uvicorn worker.

Runs as a process of its own: ``python -m comparisons.eager_service RUN --port PORT``.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import torch
import uvicorn  # type: ignore[import-not-found]  # installed for this service alone
from fastapi import FastAPI, HTTPException  # type: ignore[import-not-found]  # the same
from likeness_client.contract import NOTHING_KNOWN
from likeness_export.encoders.base import ASSETS
from likeness_export.run import Run
from pydantic import BaseModel


class Item(BaseModel):
    """A product; what it lacks is left out. ``image`` is a file as base64."""

    text: str | None = None
    image: str | None = None
    attributes: dict[str, Any] | None = None


class Answer(BaseModel):
    """The embedding, and how much each modality counted."""

    embedding: list[float]
    modality_weights: dict[str, float]


class EagerPipeline:
    """Preprocessing and networks of a run; safe in threads.

    Args:
        folder: the run.
    """

    def __init__(self, folder: Path) -> None:
        run = Run(folder)
        self.recipe, self.network = run.read_network()  # in evaluation mode
        self.preprocessors = {
            name: tower.preprocessing.Preprocessor(run.towers / name / ASSETS)
            for name, tower in self.recipe.towers.items()
        }

    @torch.inference_mode()
    def embed(self, given: dict[str, bytes]) -> Answer:
        """Embed one product from the bytes of its modalities.

        Raises:
            ValueError: a part cannot be read.
        """
        vectors = torch.zeros(1, len(self.recipe.towers), self.recipe.dimension)
        for place, (name, tower) in enumerate(self.recipe.towers.items()):
            if tower.modality not in given:
                continue
            tensors, (error,) = self.preprocessors[name]([given[tower.modality]])
            if error not in ("", NOTHING_KNOWN):  # what is unknown is embedded as such
                raise ValueError(f"{tower.modality}: {error}")
            columns = (torch.from_numpy(tensors[spec.name]) for spec in tower.tensors())
            vectors[:, place] = self.network.tower(name)(*columns)
        present = torch.tensor([[modality in given for modality in self.network.modalities]])
        embedding, weights = self.network.fuse(vectors, present)
        found = dict(zip(self.network.modalities, weights[0].tolist(), strict=True))
        return Answer(embedding=embedding[0].tolist(), modality_weights=found)


def build_app(pipeline: EagerPipeline) -> FastAPI:
    """Return the service."""
    app = FastAPI()

    # Not `async`: FastAPI runs it in its pool of threads, so that the event loop stays free.
    def embed(item: Item) -> Answer:
        given: dict[str, bytes] = {}
        if item.text:
            given["text"] = item.text.encode()
        if item.image:
            given["image"] = base64.b64decode(item.image)
        if item.attributes:
            given["attributes"] = json.dumps(item.attributes).encode()
        if not given:
            raise HTTPException(422, "the product has neither text nor image nor attributes")
        try:
            return pipeline.embed(given)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    def health() -> dict[str, str]:
        return {"status": "ready"}

    app.add_api_route("/embed", embed, methods=["POST"])
    app.add_api_route("/health", health, methods=["GET"])
    return app


def main() -> None:
    """Serve a run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(build_app(EagerPipeline(options.run)), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
