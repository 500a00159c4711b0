"""Triton adapter: ``model.onnx`` on onnxruntime inside the python backend, so that the CPU path needs no container."""

import json
from math import prod
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from answering import CallerError, each_answered
from lengths import gathering
from session import Sessions

MAX_PAIRS = 128 * 1024  # of a block, as on a TensorRT plan; a pair takes 3 kB, which are not given back


def refuse_large(columns: list[Any]) -> None:
    """Refuse a block of similarities, one tensor in each column, that would fill the memory."""
    blocks = max(len(tensor) for (tensor,) in columns)  # one on one side is scored with all on the other
    pairs = blocks * prod(size for (tensor,) in columns for size in tensor.shape[1:2])
    if pairs > MAX_PAIRS:
        raise CallerError(f"a block of {pairs} pairs, {MAX_PAIRS} are allowed: send smaller blocks")


class TritonPythonModel:
    """Gathers all requests into one batch, or a few runs side by side; runs the session; scatters the outputs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the network beside this file."""
        config = json.loads(args["model_config"])
        self.name = config["name"]
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.batched = config["max_batch_size"] > 0
        self.gather = gathering(parameters, workers=int(parameters["cpu_threads"]))
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.sessions = Sessions(path, parameters)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its rows of the outputs that it asks for."""
        if not self.batched:
            return [each_answered(self.name, [request], self.run)[0] for request in requests]
        answers: list[Any] = each_answered(self.name, requests, self.run)
        return answers

    def run(self, requests: list[Any]) -> list[Any]:
        """Run one batch; only outputs that some request wants are computed."""
        columns = [[pb_utils.get_input_tensor_by_name(r, n).as_numpy() for r in requests] for n in self.inputs]
        if not self.batched:
            refuse_large(columns)
        wanted = sorted({name for request in requests for name in request.requested_output_names()})
        session = self.sessions.for_batch(sum(map(len, columns[0])))

        def compute(tensors: list[Any]) -> list[Any]:
            found: list[Any] = session.run(wanted, dict(zip(self.inputs, tensors, strict=True)))
            return found

        results = dict(zip(wanted, self.gather(columns, compute), strict=True))
        responses, start = [], 0
        for request, rows in zip(requests, map(len, columns[0]), strict=True):
            tensors = [pb_utils.Tensor(n, results[n][start : start + rows]) for n in request.requested_output_names()]
            responses.append(pb_utils.InferenceResponse(tensors))
            start += rows
        return responses
