"""What a server offers, read from the configs of its ensembles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from likeness_client.contract import (
    EMBEDDING,
    ERROR_SUFFIX,
    MODALITIES,
    SCHEMA_PARAMETER,
    SPACE_PARAMETER,
    InputSchema,
    embed_model,
    encoder_model,
    fusion_model,
    modalities_of,
    preprocess_model,
    signature_of,
    space_version,
)
from likeness_client.errors import ServerError, ServerUnavailableError, SpaceMismatchError

_PREFIX = embed_model("")
_UNLOADED = "unloaded"
"""Triton's reason for a model that whoever runs the server has unloaded: it does without it."""


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server offers.

    Attributes:
        space: fingerprint of the embedding space.
        modalities: what it embeds, in the order of the contract.
        signatures: the sets of modalities that it has an ensemble for.
        unready: of the sets that it should have one for, those whose ensemble is not ready, with the reason. To leave a
            photo out because its network is down would give another embedding, of the same space, without a word.
        dimension: length of an embedding, d.
        max_batch_size: the most products that one request may carry.
        schema: how a product becomes the bytes that it expects.
        error_outputs: per signature, the outputs that say why an item could not be read, one per preprocessing step,
            and the modality that each step reads.
    """

    space: str
    modalities: tuple[str, ...]
    signatures: tuple[str, ...]
    dimension: int
    max_batch_size: int
    schema: InputSchema
    error_outputs: Mapping[str, Mapping[str, str]]
    unready: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The version of the models that answer callers, see `space_version`."""
        return str(space_version(self.space))


def embed_models(index: Iterable[Any]) -> dict[str, str]:
    """Pick the ensembles that embed products out of a repository index.

    Args:
        index: ``RepositoryIndexResponse.models``.

    Returns:
        Their names, sorted, with the reason why one is not ready; empty for those that are.

    Raises:
        ServerError: there are none: not a Likeness server.
        ServerUnavailableError: there are some, but none is ready.
    """
    entries = list(index)
    found = [entry for entry in entries if _is_ours(entry.name)]
    ready = {entry.name for entry in found if entry.state == "READY"}
    if not found:
        raise ServerError(f"has no model '{_PREFIX}*'; not a Likeness server?", code="NOT_FOUND")
    # Triton gives an ensemble no state and no reason where nobody asked for it, and where a step of it has failed. Of a
    # failed step's reason the first line says what happened; a trace of the server's own code follows.
    broken = ((entry.name, entry.reason.splitlines()[0]) for entry in entries if _is_broken_step(entry))
    of_steps = next((f"'{name}': {reason}" for name, reason in broken), "")
    if not ready:
        reasons = {entry.reason for entry in found if entry.reason} or {of_steps} - {""}
        raise ServerUnavailableError(
            f"not ready: {'; '.join(sorted(reasons)) or 'no reason given'}",
            model=min(entry.name for entry in found),
            code="UNAVAILABLE",
        )
    down = [entry for entry in found if entry.name not in ready and entry.reason != _UNLOADED]
    reasons_of = {entry.name: entry.reason or entry.state or of_steps for entry in down}
    offered = {name: reason for name, reason in reasons_of.items() if reason} | dict.fromkeys(ready, "")
    return dict(sorted(offered.items()))


def _is_broken_step(entry: Any) -> bool:
    """Tell a step of ours that could not be loaded from one that was left out, and from a stranger's model."""
    ours = entry.name.startswith(fusion_model("")) or entry.name.endswith((encoder_model(""), preprocess_model("")))
    return ours and entry.state == "UNAVAILABLE" and entry.reason not in ("", _UNLOADED)


def _is_ours(name: str) -> bool:
    """Tell our ensembles from a stranger's ``embed_something`` on the same server."""
    signature = name.removeprefix(_PREFIX)
    try:
        return name.startswith(_PREFIX) and signature_of(modalities_of(signature)) == signature
    except ValueError:  # a modality that there is not
        return False


def discover(configs: Sequence[Any], models: Mapping[str, str] | None = None) -> ServerInfo:
    """Read what a server offers.

    Args:
        configs: the ``ModelConfig`` messages of all models that `embed_models` calls ready, at least one.
        models: what `embed_models` found; None: nothing else.

    Returns:
        What they offer together.

    Raises:
        SpaceMismatchError: they are of different spaces: the repository is half rolled out.
        ServerError: a config is not what the contract says.
    """
    spaces = {_parameter(config, SPACE_PARAMETER) for config in configs}
    if len(spaces) > 1:
        raise SpaceMismatchError(
            f"half-rolled repository: its ensembles are of the spaces {', '.join(sorted(spaces))}; "
            "wait for the rollout to end, or export the repository again"
        )
    by_signature = {_signature(config): config for config in configs}
    unready = {name.removeprefix(_PREFIX): reason for name, reason in (models or {}).items() if reason}
    present = {name for signature in (*by_signature, *unready) for name in modalities_of(signature)}
    return ServerInfo(
        space=spaces.pop(),
        modalities=tuple(name for name in MODALITIES if name in present),
        signatures=tuple(sorted(by_signature, key=lambda name: (len(modalities_of(name)), name))),
        dimension=_dimension(configs),
        max_batch_size=min(config.max_batch_size for config in configs),
        schema=_schema(configs[0]),
        error_outputs={signature: _error_outputs(config) for signature, config in by_signature.items()},
        unready=unready,
    )


def _signature(config: Any) -> str:
    try:
        return signature_of(tensor.name for tensor in config.input)
    except ValueError as error:
        raise _broken(config, f"has an input of an {error}") from error


def _error_outputs(config: Any) -> dict[str, str]:
    """Return the outputs for errors -> the modality that the step behind each reads."""
    read_by = {
        output: modality
        for step in config.ensemble_scheduling.step
        for output in step.output_map.values()
        for modality in step.input_map.values()
    }
    names = [output.name for output in config.output if output.name.endswith(ERROR_SUFFIX)]
    if unread := [name for name in names if read_by.get(name) not in MODALITIES]:
        raise _broken(config, f"has an output '{unread[0]}' that comes from no step that reads a modality")
    return {name: read_by[name] for name in names}


def _dimension(configs: Sequence[Any]) -> int:
    found = {tuple(output.dims) for config in configs for output in config.output if output.name == EMBEDDING}
    if len(found) != 1 or len(dims := next(iter(found))) != 1 or dims[0] < 1:
        raise _broken(configs[0], f"and the other ensembles disagree on the shape of '{EMBEDDING}': {sorted(found)}")
    return int(dims[0])


def _schema(config: Any) -> InputSchema:
    try:
        return InputSchema.from_json(_parameter(config, SCHEMA_PARAMETER))
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(config, f"has a parameter '{SCHEMA_PARAMETER}' that cannot be read: {error!r}") from error


def _parameter(config: Any, name: str) -> str:
    value: str = config.parameters[name].string_value if name in config.parameters else ""
    if not value:
        raise _broken(config, f"has no parameter '{name}'")
    return value


def _broken(config: Any, what: str) -> ServerError:
    return ServerError(f"its config {what}; export the repository again", model=config.name, code="FAILED_PRECONDITION")
