"""What networks of sentence-transformers make of their tokens' vectors: one by pooling, then what layers make of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from likeness_client.errors import InputError
from safetensors.torch import load_file
from torch import nn

from likeness_export.encoders.sources import file_beside

MEAN, FIRST, LAST = "mean", "cls", "lasttoken"
_POOLING, _MODULES_FILE, _CONFIG_FILE = "1_Pooling", "modules.json", "config.json"
_TEXT_FILE, _PROMPTS_FILE = "sentence_bert_config.json", "config_sentence_transformers.json"
_WEIGHTS_FILES: Mapping[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    "model.safetensors": load_file,
    "pytorch_model.bin": lambda path: torch.load(path, map_location="cpu", weights_only=True),
}
_GET_IT = "copy the network again, whole, or let the hub be asked for it"
_POOLINGS = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": FIRST, "pooling_mode_lasttoken": LAST}
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")  # in this order; the last changes no direction
_ACTIVATIONS = {kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)}


def read_pooling(source: str, data_root: Path, *, prompted: bool) -> str:
    """Return how the network was trained to make one vector of its tokens': their `MEAN`, the `FIRST` or the `LAST`.

    Raises:
        InputError: in a way that there is not here.
    """
    modules = _read_modules(source, data_root)
    folders = [folder for kind, folder in modules if kind == "Pooling"] if modules else [_POOLING]
    if not folders:  # ColBERT and its kin
        raise InputError(f"{source} makes no single vector of a text (no Pooling in {_MODULES_FILE}): name another")
    name = f"{folders[0]}/{_CONFIG_FILE}"
    file = file_beside(source, data_root, name)
    if file is None:
        if modules:
            raise InputError(f"{source} lacks {name}, which its {_MODULES_FILE} names: {_GET_IT}")
        return MEAN  # a plain language model
    found = _read(file, dict)
    # An older file has a true or false per way, a newer one may name the way.
    keys = {key for key, value in found.items() if key.startswith("pooling_mode_") and value}
    ways = {_POOLINGS.get(key, key) for key in keys} | ({str(way)} if (way := found.get("pooling_mode")) else set())
    if len(ways) != 1 or not ways <= {*_POOLINGS.values()}:
        raise InputError(
            f"{source} pools by {', '.join(sorted(ways)) or 'nothing'} ({name}); only networks that take the "
            "mean of all tokens, the first one (cls) or the last one (lasttoken) are read: name another"
        )
    if prompted and ways == {MEAN} and not found.get("include_prompt", True):
        raise InputError(f"{source} leaves the prompt out of the mean, which is not done here: leave `prompt` out")
    return ways.pop()


def read_layers(source: str, data_root: Path) -> list[dict[str, Any]]:
    """Return the linear layers behind the pooling (LaBSE, distiluse), as `build_layers` takes them.

    Raises:
        InputError: something else stands there.
    """
    modules = _read_modules(source, data_root)
    return [_read_layer(source, data_root, folder) for kind, folder in modules if kind == "Dense"]


def _read_modules(source: str, data_root: Path) -> list[tuple[str, str]]:
    """Return the kind and the folder of everything that the network is made of; nothing where no file says it."""
    file = file_beside(source, data_root, _MODULES_FILE)
    modules = _read(file, list) if file else []
    if not all(isinstance(module, dict) and isinstance(module.get("path"), str) for module in modules):
        raise InputError(f"{file} does not give the path of every module: mend it")
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if not {*kinds} <= {*_MODULES} or kinds != sorted(kinds, key=_MODULES.index):
        raise InputError(
            f"{source} is made of {', '.join(kinds)} ({_MODULES_FILE}); only {', '.join(_MODULES)} are read, in this "
            "order: name another"
        )
    return [(kind, module["path"]) for kind, module in zip(kinds, modules, strict=True)]


def reads_lower_case(source: str, data_root: Path) -> bool:
    """Say whether texts are to be put into lower case before the tokenizer sees them."""
    file = file_beside(source, data_root, _TEXT_FILE)
    return bool(file and _read(file, dict).get("do_lower_case"))


def read_prompt(source: str, data_root: Path) -> str:
    """Return what sentence-transformers puts before every text unless it is told otherwise; mostly nothing."""
    file = file_beside(source, data_root, _PROMPTS_FILE)
    found = _read(file, dict) if file else {}
    return str((found.get("prompts") or {}).get(found.get("default_prompt_name"), ""))


def _read_layer(source: str, data_root: Path, folder: str) -> dict[str, Any]:
    file = file_beside(source, data_root, f"{folder}/{_CONFIG_FILE}")
    if file is None:
        raise InputError(f"{source} lacks {folder}/{_CONFIG_FILE}, which its {_MODULES_FILE} names: {_GET_IT}")
    found = _read(file, dict)
    activation = str(found.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"{source}: the activation {activation} of {folder} is not known, only {', '.join(_ACTIVATIONS)}: name "
            "another"
        )
    sizes = {key: found.get(key) for key in ("in_features", "out_features")}
    if not all(isinstance(size, int) and size > 0 for size in sizes.values()):
        raise InputError(f"{file} does not say {' and '.join(sizes)}: mend it")
    return {"folder": folder, **sizes, "bias": bool(found.get("bias", True)), "activation": activation}


def build_layers(layers: Sequence[Mapping[str, Any]], source: str, source_root: Path | None) -> nn.Sequential:
    """Build what `read_layers` described, with its weights unless ``source_root`` is None; without layers the identity.

    Raises:
        InputError: there are no weights, or not of these sizes.
    """
    built = nn.Sequential()
    for layer in layers:
        linear = nn.Linear(layer["in_features"], layer["out_features"], layer["bias"])
        if source_root is not None:
            _load(linear, source, source_root, layer["folder"])
        built.extend([linear, _ACTIVATIONS[layer["activation"]]()])
    return built


def _load(linear: nn.Linear, source: str, source_root: Path, folder: str) -> None:
    for name, load in _WEIGHTS_FILES.items():
        if file := file_beside(source, source_root, f"{folder}/{name}"):
            try:
                linear.load_state_dict({key.removeprefix("linear."): value for key, value in load(file).items()})
            except Exception as error:  # libraries fail with many types, of a file that is cut short with their own
                raise InputError(f"{file} does not hold the layer that its {_CONFIG_FILE} says ({error})") from error
            return
    raise InputError(f"{source} has no weights in {folder} ({' or '.join(_WEIGHTS_FILES)}): {_GET_IT}")


def _read(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}): mend it") from error
    if not isinstance(found, kind):
        raise InputError(f"{file} is no JSON {'object' if kind is dict else 'list'}: mend it")
    return found
