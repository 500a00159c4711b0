"""What a profile needs of a repository, and whether it is there."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from likeness_client.contract import SPACE_PARAMETER
from likeness_client.errors import InputError

KEPT_FOLDER = ".gitkeep"
"""What lies in the version of an ensemble, which is empty, and which some copies leave out."""
MANIFEST = "manifest.json"
"""What a repository says of itself, beside its models: recipe, space, libraries, checks, and a hash of every file."""
_AGAIN = (
    f"copy the repository again, all of it, or export it again; if it was changed on purpose, remove its {MANIFEST}"
)
log = logging.getLogger(__name__)
NETWORK_FILES = {"cpu": ("model.py", "model.onnx"), "onnx": ("model.onnx",), "tensorrt": ("model.plan",)}
"""Profile -> the files that it needs of every network."""


def check_repository(repository: Path, profile: str) -> None:
    """Check that every model has the file that the profile executes, and that all is of one export.

    Raises:
        InputError: no such profile; or names the first model or file that cannot be served, and what to do.
    """
    if profile not in NETWORK_FILES:
        raise InputError(f"there is no profile '{profile}', only {', '.join(NETWORK_FILES)}")
    if not repository.is_dir():
        raise InputError(
            f"{repository} is not a folder; make a repository with `likeness export RUN --repository {repository}`"
        )
    models = sorted(path.parent for path in repository.glob("*/config.pbtxt"))
    if not models:
        raise InputError(f"{repository} holds no models; make a repository with `likeness export RUN --repository DIR`")
    for model in models:
        if not (model / "configs").is_dir():
            continue  # an ensemble, or a preprocessing step: the same in every profile
        for name in NETWORK_FILES[profile]:
            if not list(model.glob(f"[0-9]*/{name}")):
                command, where = f"likeness export RUN --repository {repository}", ""
                if profile == "tensorrt":
                    command, where = f"{command} --tensorrt", ", on the GPU that will serve"
                raise InputError(
                    f"{model} has no {name}, which profile {profile} needs: export into it with `{command}`{where}"
                )
    _check_whole(repository)


def space_of(repository: Path) -> str | None:
    """Return the space that a repository's manifest names; None where there is no manifest, or a damaged one."""
    try:
        return str(json.loads((repository / MANIFEST).read_text(encoding="utf-8"))["space"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_whole(repository: Path) -> None:
    """See that every file is the one that the export made; a copy that was cut short would answer, but wrongly.

    Configurations may have been changed since, by `likeness tune` or by hand, but not their space.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    if not (repository / MANIFEST).is_file():
        log.warning("%s has no %s: nobody knows whether it is whole", repository, MANIFEST)
        return
    try:
        manifest = json.loads((repository / MANIFEST).read_text(encoding="utf-8"))
        space, digests = manifest["space"], manifest["sha256"].items()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{repository / MANIFEST} cannot be read ({error!r}): {_AGAIN}") from error
    for name, digest in digests:
        path = repository / name
        if path.name == KEPT_FOLDER:
            continue
        if not path.is_file():
            raise InputError(f"{path} is missing: {_AGAIN}")
        if path.suffix == ".pbtxt":
            try:
                config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
            except (ValueError, text_format.ParseError) as error:
                raise InputError(f"{path} is no configuration ({error}): {_AGAIN}") from error
            if (found := config.parameters[SPACE_PARAMETER].string_value) != space:
                raise InputError(f"{path} is of the space {found}, {MANIFEST} of {space}: {_AGAIN}")
            continue
        if sha256(path).hex() != digest:
            raise InputError(f"{path} is not the file that was exported: {_AGAIN}")


def sha256(path: Path) -> bytes:
    """Return the hash of a file, which may be larger than the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
