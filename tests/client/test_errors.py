from __future__ import annotations

import pickle

import grpc  # type: ignore[import-untyped]  # ships no types
import pytest
from likeness_client import errors
from likeness_client.errors import (
    STATUS_ERRORS,
    BatchError,
    DeadlineExceededError,
    InputError,
    LikenessError,
    MissingExtraError,
    ModelNotFoundError,
    OverloadedError,
    ProductError,
    RecordError,
    ServerError,
    ServerUnavailableError,
    translate,
)
from tritonclient.utils import InferenceServerException


def test_every_error_is_in_the_tree_and_in_its_drawing() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__]
    assert all(issubclass(kind, LikenessError) for kind in classes)
    assert all(kind.__name__ in str(errors.__doc__) for kind in classes)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_the_code_decides_the_class(code: grpc.StatusCode) -> None:
    cause = InferenceServerException("deadline unavailable not found", status=str(code))
    with pytest.raises(ServerError) as caught, translate("host:1", "embed_text"):
        raise cause
    assert type(caught.value) is STATUS_ERRORS.get(code.name, ServerError)
    assert caught.value.__cause__ is cause
    assert (caught.value.code, caught.value.model, caught.value.address) == (code.name, "embed_text", "host:1")
    assert "model 'embed_text' at host:1: deadline" in str(caught.value)


def test_specific_classes() -> None:
    assert STATUS_ERRORS["UNAVAILABLE"] is ServerUnavailableError
    assert STATUS_ERRORS["DEADLINE_EXCEEDED"] is DeadlineExceededError
    assert STATUS_ERRORS["RESOURCE_EXHAUSTED"] is OverloadedError
    assert STATUS_ERRORS["NOT_FOUND"] is ModelNotFoundError


def test_an_exception_without_status_is_a_server_error() -> None:
    with pytest.raises(ServerError, match=r"server at host:1: odd \[UNKNOWN\]"), translate("host:1"):
        raise InferenceServerException("odd")


def test_judgements_of_answers_get_the_address() -> None:
    with pytest.raises(ServerUnavailableError, match="model 'm' at host:1: odd") as caught, translate("host:1"):
        raise ServerUnavailableError("odd", model="m")
    with pytest.raises(ServerUnavailableError) as again, translate("host:2"):
        raise caught.value
    assert again.value is caught.value


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), translate("host:1"):
        raise KeyError


PRODUCT_ERROR = ProductError("is empty", "p1", "image", 3, "left")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PRODUCT_ERROR, "left product 3 ('p1'), image: is empty"),
        (ProductError("has nothing"), "product: has nothing"),
        (RecordError("not JSON", "a.jsonl", 3), "a.jsonl:3: not JSON"),
        (RecordError("bad", "größe\x1b[2J\n"), r"'größe\x1b[2J\n': bad"),
        (MissingExtraError("export", "`torch`"), "`torch` is missing: pip install 'likeness[export]'"),
        (ServerError("odd", "host:1", "m", "INTERNAL"), "model 'm' at host:1: odd [INTERNAL]"),
        (BatchError({3: PRODUCT_ERROR}, "partial"), "1 failed: left product 3 ('p1'), image: is empty. Pass"),
    ],
)
def test_errors_read_well_and_cross_processes(error: LikenessError, message: str) -> None:
    assert str(error).startswith(message)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))
