"""A real tritonserver that holds only a part of its models: what it can answer is answered, the rest is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from likeness_client import Client, Product, ServerUnavailableError
from likeness_client.contract import encoder_model
from likeness_export.repository.servable import MANIFEST
from likeness_export.server.serve import ServeConfig, serving

pytestmark = pytest.mark.server


def test_where_a_network_failed_it_is_named_and_others_are_answered(
    repository: Path, complete: list[Product], tmp_path: Path
) -> None:
    shutil.copytree(repository, tmp_path / "repository", ignore=shutil.ignore_patterns(MANIFEST))
    network = tmp_path / "repository" / encoder_model("image") / "1" / "model.onnx"
    network.write_bytes(network.read_bytes()[:100])
    options = ("--exit-on-error=false", "--strict-readiness=false")
    config = ServeConfig.on_unused_ports(tmp_path / "repository", tmp_path / "tritonserver.log", options=options)
    with serving(config), Client(config.address) as client:
        unready = client.info().unready
        assert unready
        assert all("image" in signature for signature in unready)
        assert client.embed([Product(title="a vase")]).signatures == ("text",)
        # Not embedded without its photo: that would be another embedding of the same space.
        with pytest.raises(
            ServerUnavailableError, match=rf"not ready: '{encoder_model('image')}': .*Protobuf"
        ) as raised:
            client.embed(complete[:1])
        assert "\n" not in str(raised.value)


def test_models_that_nobody_loaded_are_not_offered(repository: Path, tmp_path: Path) -> None:
    names = sorted(path.parent.name for path in repository.glob("*/config.pbtxt") if "image" not in path.parent.name)
    options = ("--model-control-mode=explicit", *(f"--load-model={name}" for name in names))
    config = ServeConfig.on_unused_ports(repository, tmp_path / "tritonserver.log", options=options)
    with serving(config), Client(config.address) as client:
        info = client.info()
        assert not info.unready
        assert not [signature for signature in info.signatures if "image" in signature]
        assert client.embed([Product(title="a vase", attributes={"kind": "vase"})]).signatures == ("text_attributes",)
