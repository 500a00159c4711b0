"""Answering the requests of a batch: one that cannot be computed costs only itself, and whoever watches is told."""

import traceback
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils


class CallerError(ValueError):
    """A request that its caller has to change: no fault of the server's."""


def each_answered(model: str, requests: list[Any], answer: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """Answer requests together; if that fails, each by itself, and the one to blame with an error.

    Args:
        model: what computes them, named in errors: Triton itself names the ensemble only.
        requests: of callers who know nothing of each other.
        answer: computes the responses of some requests in one batch.
    """
    try:
        return answer(requests)
    except Exception as error:  # libraries fail with many types; whichever it is, only its own request may fail
        if len(requests) == 1:
            reason, code = f"model '{model}' failed: {type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL
            if isinstance(error, CallerError):
                reason, code = f"model '{model}': {error}", pb_utils.TritonError.INVALID_ARG
            else:
                pb_utils.Logger.log_error(f"{reason}\n{traceback.format_exc()}")
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, code))]
    return [each_answered(model, [request], answer)[0] for request in requests]
