"""Triton model: runs the towers that a product needs by BLS (calls from inside a model), then its fusion head.

Copied as ``model.py`` into the router's version folder; requests of one signature travel as one batch.
"""

import asyncio
import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Groups requests by what they have; groups, and the towers of a group, run side by side."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the towers from the model's own configuration."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.towers = json.loads(parameters["towers"]["string_value"])
        self.modalities = json.loads(parameters["modalities"]["string_value"])
        self.fused = json.loads(parameters["fused"]["string_value"])

    async def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        groups: dict[str, list[int]] = {}
        given = [self.given(request) for request in requests]
        for place, parts in enumerate(given):
            groups.setdefault("_".join(parts), []).append(place)
        answers: list[Any] = [None] * len(requests)

        async def answer(signature: str, places: list[int]) -> None:
            try:
                found = await self.embed(signature, [given[place] for place in places])
            except RuntimeError as error:
                found = [pb_utils.InferenceResponse([], pb_utils.TritonError(str(error))) for _ in places]
            for place, response in zip(places, found, strict=True):
                answers[place] = response

        await asyncio.gather(*(answer(signature, places) for signature, places in groups.items()))
        return answers

    def given(self, request: Any) -> dict[str, Any]:
        """Return the modalities that a request has, in the contract's order."""
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.modalities}
        return {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}

    async def embed(self, signature: str, given: list[dict[str, Any]]) -> list[Any]:
        """Embed requests of one signature."""
        parts = {name: np.concatenate([request[name] for request in given]) for name in given[0]}
        towers = [tower for tower in self.towers if tower["modality"] in parts]
        vectors = await asyncio.gather(*(self.tower(tower, parts[tower["modality"]]) for tower in towers))
        # A signature without a head is embedded by its only tower.
        found = await call(f"fusion_{signature}", list(vectors), ["embedding"]) if signature in self.fused else vectors
        embedding = found[0].as_numpy()
        responses, start = [], 0
        for request in given:
            rows = slice(start, start + len(request[next(iter(request))]))
            start = rows.stop
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("embedding", embedding[rows])]))
        return responses

    async def tower(self, tower: dict[str, Any], items: Any) -> Any:
        """Turn one modality's bytes into a tower's vector."""
        raw = pb_utils.Tensor(tower["modality"], items)
        tensors = await call(tower["preprocess"], [raw], tower["tensors"])
        (vector,) = await call(f"{tower['name']}_encoder", tensors, [f"{tower['name']}_embedding"])
        return vector


async def call(model: str, inputs: list[Any], outputs: list[str]) -> list[Any]:
    """Call another model of this server.

    Raises:
        RuntimeError: it failed.
    """
    request = pb_utils.InferenceRequest(model_name=model, requested_output_names=outputs, inputs=inputs)
    response = await request.async_exec()
    if response.has_error():
        raise RuntimeError(f"{model}: {response.error().message()}")
    return [pb_utils.get_output_tensor_by_name(response, name) for name in outputs]
