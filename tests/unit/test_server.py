"""What `likeness serve` refuses before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from likeness_client.errors import InputError
from likeness_export.cli import app
from likeness_export.server import _check_port, check_repository, unused_ports
from typer.testing import CliRunner


def test_a_missing_plan_is_built_by_another_export(rendered_repository: Path) -> None:
    for model in rendered_repository.glob("*/configs"):
        (model.parent / "1" / "model.onnx").touch()
    check_repository(rendered_repository, "onnx")
    with pytest.raises(
        InputError, match=r"has no model\.plan.*--repository .* --tensorrt`, on the GPU that will serve$"
    ):
        check_repository(rendered_repository, "tensorrt")


def test_without_networks_it_says_how_to_export_them(rendered_repository: Path) -> None:
    with pytest.raises(InputError, match=r"has no model\.onnx, .* with `likeness export RUN --repository [^ ]*`$"):
        check_repository(rendered_repository, "onnx")


def test_a_host_that_is_none_is_no_fault_of_the_port() -> None:
    with pytest.raises(
        InputError, match=r"^no such host cannot be resolved: give an address of this machine with --host"
    ):
        _check_port("no such host", "grpc_port", unused_ports(1)[0])


@pytest.mark.parametrize("option", ["--grpc-port", "--http-port", "--metrics-port"])
@pytest.mark.parametrize("port", ["0", "99999"])
def test_a_port_that_cannot_be_is_refused_by_name(tmp_path: Path, option: str, port: str) -> None:
    found = CliRunner().invoke(app, ["serve", str(tmp_path), option, port])
    assert found.exit_code == 2
    assert option in found.output


def test_the_help_keeps_its_words() -> None:
    found = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "300"})
    assert "whose section `serving` takes the place of the run's" in found.output
