"""Triton adapter: ``model.onnx`` on onnxruntime inside the python backend, so that the CPU path needs no container."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from lengths import at_once, by_length
from session import open_session

_BETWEEN_OPERATORS_US = 50  # threads that spin for so long need no waking within a run, and stop soon after it


class TritonPythonModel:
    """Gathers all requests into one batch, or a few of like length; runs the session; scatters the outputs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the network beside this file."""
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.batched = config["max_batch_size"] > 0
        self.gather = at_once
        if "run_tokens" in config["parameters"]:  # rows differ in length
            self.gather = partial(by_length, run_tokens=int(config["parameters"]["run_tokens"]["string_value"]))
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = self.alone = open_session(path, int(config["parameters"]["cpu_threads"]["string_value"]))
        if "cpu_threads_alone" in config["parameters"]:  # a single product has the cores to itself
            threads = int(config["parameters"]["cpu_threads_alone"]["string_value"])
            self.alone = open_session(path, threads, spinning=threads > 1, spin_us=_BETWEEN_OPERATORS_US)
        self.ended, self.took_s = 0.0, 0.0  # the last run

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its rows of the outputs that it asks for."""
        if not self.batched:
            return [self.run([request])[0] for request in requests]
        return self.run(requests)

    def run(self, requests: list[Any]) -> list[Any]:
        """Run one batch; only outputs that some request wants are computed."""
        columns = [[pb_utils.get_input_tensor_by_name(r, n).as_numpy() for r in requests] for n in self.inputs]
        wanted = sorted({name for request in requests for name in request.requested_output_names()})
        started = time.perf_counter()
        # Under load there is no pause between two runs, and the other instances need the cores.
        waited = started - self.ended > self.took_s / 2
        session = self.alone if waited and sum(map(len, columns[0])) == 1 else self.session

        def compute(tensors: list[Any]) -> list[Any]:
            found: list[Any] = session.run(wanted, dict(zip(self.inputs, tensors, strict=True)))
            return found

        results = dict(zip(wanted, self.gather(columns, compute), strict=True))
        self.ended = time.perf_counter()
        self.took_s = self.ended - started
        responses, start = [], 0
        for request, rows in zip(requests, map(len, columns[0]), strict=True):
            tensors = [pb_utils.Tensor(n, results[n][start : start + rows]) for n in request.requested_output_names()]
            responses.append(pb_utils.InferenceResponse(tensors))
            start += rows
        return responses
