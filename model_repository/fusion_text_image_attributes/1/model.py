"""Triton adapter: ``model.onnx`` on onnxruntime inside the python backend, so that the CPU path needs no container."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from lengths import runs_of, used_lengths


class TritonPythonModel:
    """Gathers all requests, runs the session as often as their lengths ask for, scatters the outputs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the network beside this file."""
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.batched = config["max_batch_size"] > 0
        self.lengths_vary = self.batched and any("-1" in map(str, tensor["dims"]) for tensor in config["input"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["cpu_threads"]["string_value"])
        # Every model is a process of its own; threads that spin while they wait would steal the others' cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its rows of the outputs that it asks for."""
        if not self.batched:
            return [self.run([request])[0] for request in requests]
        return self.run(requests)

    def run(self, requests: list[Any]) -> list[Any]:
        """Run one batch; only outputs that some request wants are computed."""
        columns = [[pb_utils.get_input_tensor_by_name(r, n).as_numpy() for r in requests] for n in self.inputs]
        wanted = sorted({name for request in requests for name in request.requested_output_names()})
        results = self.by_length(wanted, columns) if self.lengths_vary else self.at_once(wanted, columns)
        responses, start = [], 0
        for request, rows in zip(requests, map(len, columns[0]), strict=True):
            tensors = [pb_utils.Tensor(n, results[n][start : start + rows]) for n in request.requested_output_names()]
            responses.append(pb_utils.InferenceResponse(tensors))
            start += rows
        return responses

    def at_once(self, wanted: list[str], columns: list[list[Any]]) -> dict[str, Any]:
        """Run all rows in one batch."""
        feed = {n: c[0] if len(c) == 1 else np.concatenate(c) for n, c in zip(self.inputs, columns, strict=True)}
        return dict(zip(wanted, self.session.run(wanted, feed), strict=True))

    def by_length(self, wanted: list[str], columns: list[list[Any]]) -> dict[str, Any]:
        """Run rows of like length together, without padding beyond the longest of each run."""
        longest = max(part.shape[1] for part in columns[0])
        wide = [
            np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts])
            for parts in columns
        ]
        lengths = used_lengths(wide)
        results: dict[str, Any] = {}
        for rows in runs_of(lengths):
            feed = {n: tensor[rows, : lengths[rows].max()] for n, tensor in zip(self.inputs, wide, strict=True)}
            for name, found in zip(wanted, self.session.run(wanted, feed), strict=True):
                whole = results.setdefault(name, np.empty((len(lengths), *found.shape[1:]), found.dtype))
                whole[rows] = found
        return results
