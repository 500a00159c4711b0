"""What a profile needs of a repository, and whether it is there."""

from __future__ import annotations

from pathlib import Path

from likeness_client.errors import InputError

NETWORK_FILES = {"cpu": ("model.py", "model.onnx"), "onnx": ("model.onnx",), "tensorrt": ("model.plan",)}
"""Profile -> the files that it needs of every network."""


def check_repository(repository: Path, profile: str) -> None:
    """Check that every model has the file that the profile executes.

    Raises:
        InputError: no such profile; or names the first model that cannot be served, and what to do.
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
