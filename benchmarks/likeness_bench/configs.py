"""The configurations of a model repository, as Triton reads them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from likeness_client import InputError
from likeness_client.contract import SPACE_PARAMETER, embed_model, encoder_model
from tritonclient.grpc import model_config_pb2


def parse_config(path: Path) -> Any:
    """Return the ``ModelConfig`` of a file, as it is now.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise InputError(f"cannot read {path} ({error}): give the repository that `likeness export` wrote") from error


@cache
def read_config(repository: Path, model: str, profile: str = "") -> Any:
    """Return a model's ``ModelConfig``, or the one of a profile; read once.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return parse_config(repository / model / (f"configs/{profile}.pbtxt" if profile else "config.pbtxt"))


def space_of(repository: Path) -> str:
    """Return the fingerprint of the embedding space of a repository.

    Raises:
        InputError: it holds no models that embed.
    """
    for path in sorted(repository.glob(f"{embed_model('*')}/config.pbtxt")):
        return str(read_config(repository, path.parent.name).parameters[SPACE_PARAMETER].string_value)
    raise InputError(f"{repository} has no {embed_model('*')}: give the repository that `likeness export` wrote")


def cpu_threads_of(repository: Path) -> int:
    """Return how many threads the server gives to an encoder, the most of any."""
    profiles = (path.parents[1].name for path in repository.glob(f"{encoder_model('*')}/configs/cpu.pbtxt"))
    return max((int(cpu_parameters(repository, name)["cpu_threads"]) for name in profiles), default=1)


def cpu_parameters(repository: Path, model: str) -> dict[str, str]:
    """Return what the server's CPU profile tells a network."""
    found = read_config(repository, model, "cpu").parameters
    return {key: value.string_value for key, value in found.items()}
