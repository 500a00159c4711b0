from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from likeness_client._discovery import discover, embed_models
from likeness_client.contract import InputSchema, all_signatures
from likeness_client.errors import ServerError, ServerUnavailableError, SpaceMismatchError
from tritonclient.grpc import service_pb2

if TYPE_CHECKING:
    from tests.client.conftest import FakeServer


def test_discovery_reads_what_the_server_offers(fake: FakeServer) -> None:
    fake.schema = InputSchema(text_fields=("title",), attribute_keys=("colour",), max_bytes={"text": 7})
    info = fake.info
    assert info.space == "space-1"
    assert info.modalities == ("text", "image", "attributes")
    assert set(info.signatures) == set(all_signatures(info.modalities))
    assert (info.dimension, info.max_batch_size) == (8, 4)
    assert info.schema == fake.schema
    assert info.error_outputs["text_image"] == {"text_error": "text", "image_error": "image"}


def test_an_error_output_that_no_modality_leads_to_is_a_broken_config(fake: FakeServer) -> None:
    config = fake.config("text_image")
    config.output.add(name="colour_error", dims=[1])
    with pytest.raises(ServerError, match="'colour_error' that comes from no step that reads a modality"):
        discover([config])


def test_order_of_inputs_in_a_config_does_not_matter(fake: FakeServer) -> None:
    config = fake.config("text_image")
    first, second = config.input[0].name, config.input[1].name
    config.input[0].name, config.input[1].name = second, first
    assert discover([config]).signatures == ("text_image",)


def test_the_smallest_batch_of_all_ensembles_counts(fake: FakeServer) -> None:
    configs = fake.configs()
    configs[-1].max_batch_size = 2
    assert discover(configs).max_batch_size == 2


def test_two_spaces_are_a_half_rolled_repository(fake: FakeServer) -> None:
    configs = fake.configs()
    configs[0].parameters["space"].string_value = "space-2"
    with pytest.raises(SpaceMismatchError, match=r"half-rolled repository.*space-1, space-2"):
        discover(configs)


@pytest.mark.parametrize("parameter", ["space", "input_schema"])
def test_a_missing_parameter_is_named(fake: FakeServer, parameter: str) -> None:
    configs = fake.configs()
    for config in configs:
        del config.parameters[parameter]
    with pytest.raises(ServerError, match=f"has no parameter '{parameter}'"):
        discover(configs)


def test_a_config_off_the_contract_is_refused(fake: FakeServer) -> None:
    configs = fake.configs()
    configs[0].input[0].name = "smell"
    with pytest.raises(ServerError, match="unknown modality"):
        discover(configs)
    configs = fake.configs()
    configs[0].output[0].dims[0] = 9
    with pytest.raises(ServerError, match="disagree on the shape of 'embedding'"):
        discover(configs)
    configs = fake.configs()
    configs[0].parameters["input_schema"].string_value = "{}"
    with pytest.raises(ServerError, match="'input_schema' that cannot be read"):
        discover(configs)


def test_the_index_names_the_ensembles() -> None:
    index = service_pb2.RepositoryIndexResponse()
    index.models.add(name="similarity", version="1", state="READY")
    with pytest.raises(ServerError, match="not a Likeness server"):
        embed_models(index.models)
    index.models.add(name="embed_text", version="1", state="UNAVAILABLE", reason="out of memory")
    with pytest.raises(ServerUnavailableError, match="not ready: out of memory"):
        embed_models(index.models)
    index.models.add(name="embed_image", version="1", state="READY")
    index.models.add(name="embed_image", version="2", state="READY")
    for stranger in ("embed_bge", "embed_", "embed_image_text", "embed_text_v2"):
        index.models.add(name=stranger, version="1", state="READY")
    assert embed_models(index.models) == {"embed_image": "", "embed_text": "out of memory"}


def test_an_ensemble_whose_step_could_not_be_loaded_is_down() -> None:
    index = service_pb2.RepositoryIndexResponse()
    for name, state, reason in (
        ("embed_text", "READY", ""),
        ("embed_image", "", ""),  # Triton says no more of it
        ("bge", "UNAVAILABLE", "a stranger's"),
        ("attributes_encoder", "UNAVAILABLE", "unloaded"),
    ):
        index.models.add(name=name, version="1", state=state, reason=reason)
    assert embed_models(index.models) == {"embed_text": ""}
    index.models.add(name="image_encoder", version="1", state="UNAVAILABLE", reason="invalid file")
    assert embed_models(index.models) == {"embed_text": "", "embed_image": "'image_encoder': invalid file"}


@pytest.mark.parametrize(
    ("state", "reason", "told"),
    [
        ("", "", None),  # never loaded
        ("UNAVAILABLE", "unloaded", None),
        ("UNAVAILABLE", "depends on 'image_encoder' which has no loaded version", "which has no loaded version"),
        ("LOADING", "", "LOADING"),
    ],
)
def test_what_should_be_ready_and_is_not_is_told_from_what_was_left_out(
    fake: FakeServer, state: str, reason: str, told: str | None
) -> None:
    index = service_pb2.RepositoryIndexResponse()
    index.models.add(name="embed_text", version="1", state="READY")
    index.models.add(name="embed_image", version="1", state=state, reason=reason)
    models = embed_models(index.models)
    info = discover([fake.config("text")], models)
    assert info.signatures == ("text",)
    assert info.modalities == (("text",) if told is None else ("text", "image"))
    assert list(info.unready) == ([] if told is None else ["image"])
    assert told is None or info.unready["image"].endswith(told)


def test_signatures_of_names_that_can_be_read_only_once() -> None:
    assert all_signatures(name for name in ("image", "text")) == ["text", "image", "text_image"]
