"""Triton adapter: raw bytes of a modality to an encoder's tensors. The work is in ``preprocessing.py``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from answering import each_answered
from counting import Unusable
from lengths import used_lengths
from preprocessing import Preprocessor


class TritonPythonModel:
    """Gathers all requests into one batch, preprocesses it, scatters the tensors."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the names from the model's own configuration, the rest from the assets beside this file."""
        config = json.loads(args["model_config"])
        self.name = config["name"]
        self.input = config["input"][0]["name"]
        self.outputs = [output["name"] for output in config["output"]]
        self.preprocessor = Preprocessor(Path(args["model_repository"]) / args["model_version"] / "assets")
        self.buckets = getattr(self.preprocessor, "buckets", [])  # padded lengths, where lengths vary
        self.unusable = Unusable(self.name)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its rows; a bad item has a reason, its neighbours are not touched."""
        answers: list[Any] = each_answered(self.name, requests, self.run)
        return answers

    def run(self, requests: list[Any]) -> list[Any]:
        """Preprocess one batch."""
        batches = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        items = [item for batch in batches for item in batch.ravel()]
        tensors, errors = self.preprocessor(items)
        lengths = used_lengths(list(tensors.values())) if self.buckets else np.empty(0, np.intp)
        reasons = np.array([error.encode() for error in errors], dtype=np.object_).reshape(-1, 1)
        columns = [tensors.get(name, reasons) for name in self.outputs]
        responses, start = [], 0
        for batch in batches:
            rows = slice(start, start + len(batch))
            start = rows.stop
            # One long text among the requests must not make all the others long.
            longest = lengths[rows].max(initial=0)
            cut = slice(next((bucket for bucket in self.buckets if bucket >= longest), None))
            outputs = [pb_utils.Tensor(n, c[rows, cut]) for n, c in zip(self.outputs, columns, strict=True)]
            responses.append(pb_utils.InferenceResponse(outputs))
        self.unusable.count(items, errors)
        return responses
