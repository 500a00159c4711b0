"""What a file's graph says about how it can be reduced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Literal, TypeAlias

import onnx

from likeness_export.exporting.network_files import weight_bytes

Kind: TypeAlias = Literal["convolutional", "transformer", "small"]
_SMALL_BYTES = 500_000


def kind_of(model: onnx.ModelProto) -> Kind:
    """Say what a network mainly consists of.

    Fusion heads, the similarity graph and one-hot towers are ``small``: a matrix or two, a fraction of a percent of the
    time of a request. Reducing them would win nothing and move every vector. So is a single matrix behind TF-IDF.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found = Counter(
        node.op_type
        for node in model.graph.node
        if node.op_type not in ("Conv", "MatMul") or (len(node.input) > 1 and node.input[1] in weights)
    )
    if weight_bytes(model) < _SMALL_BYTES or found["Conv"] + found["MatMul"] < 2:
        return "small"
    # A vision transformer has one convolution, which cuts its patches; an attended convolutional network has a softmax.
    return "convolutional" if found["Conv"] >= found["MatMul"] else "transformer"


def layers(model: onnx.ModelProto, types: Collection[str]) -> list[str]:
    """Return the names of the operators of these types, in the order of computation; matrices only if constant."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in types and (node.op_type != "MatMul" or node.input[1] in weights)
    ]
