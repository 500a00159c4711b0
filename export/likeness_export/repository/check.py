"""A repository's configurations checked as a graph, before anything is written and long before Triton loads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from likeness_client.contract import SPACE_PARAMETER
from likeness_client.errors import LikenessError
from tritonclient.grpc import model_config_pb2

from likeness_export.repository.rendering import ModelConfig, RenderedModel


class RepositoryError(LikenessError):
    """Configurations that do not fit together; the message lists every fault with the models and tensors concerned."""


def check(models: Mapping[str, RenderedModel]) -> None:
    """Check configurations before they are written.

    Every model of every profile has the same tensors; every ensemble's tensor has exactly one producer that stands
    before its consumers; types and sizes agree along every edge; steps are pinned to a version; all share one space.

    Raises:
        RepositoryError: if not.
    """
    every = {name: [model.default, *model.profiles.values()] for name, model in models.items()}
    faults = [fault for name, configs in every.items() for fault in _check_profiles(name, configs)]
    defaults = {name: model.default for name, model in models.items()}
    spaces = {config.parameters[SPACE_PARAMETER].string_value for configs in every.values() for config in configs}
    if len(spaces) != 1:
        faults.append(f"the models belong to {len(spaces)} spaces: {sorted(spaces)}")
    for config in defaults.values():
        if config.platform == "ensemble":
            faults.extend(_check_ensemble(config, defaults))
    if faults:
        raise RepositoryError("\n".join(["the model repository does not fit together:", *(f"  {f}" for f in faults)]))


def _check_profiles(name: str, configs: list[ModelConfig]) -> Iterator[str]:
    if len({_interface(config) for config in configs}) > 1:
        yield f"{name}: its profiles declare different tensors"
    if any(config.max_batch_size < configs[0].max_batch_size for config in configs):
        yield f"{name}: a profile takes smaller batches than config.pbtxt says"
    if any(config.name != name for config in configs):
        yield f"{name}: a configuration names another model"
    if any(entry.optional for config in configs for entry in config.input):
        yield f"{name}: declares an optional input, which keeps requests from sharing a batch"


def _interface(config: ModelConfig) -> tuple[str, str]:
    """Return what callers see; how a profile gathers its batches is its own affair."""
    plain = ModelConfig()
    plain.CopyFrom(config)
    for entry in plain.input:
        entry.allow_ragged_batch = False
    return str(plain.input), str(plain.output)


def _check_ensemble(ensemble: ModelConfig, models: Mapping[str, ModelConfig]) -> Iterator[str]:
    known = {entry.name: entry for entry in ensemble.input}
    used: set[str] = set()
    for step in ensemble.ensemble_scheduling.step:
        where = f"{ensemble.name} -> {step.model_name}"
        model = models.get(step.model_name)
        if model is None:
            yield f"{where}: there is no such model"
            continue
        if step.model_version < 1:
            yield f"{where}: the version is not pinned"
        if 0 < model.max_batch_size < ensemble.max_batch_size:
            yield f"{where}: takes batches of {model.max_batch_size}, the ensemble of {ensemble.max_batch_size}"
        if set(step.input_map) != {entry.name for entry in model.input}:
            yield f"{where}: is given {sorted(step.input_map)}, needs {sorted(entry.name for entry in model.input)}"
        for entry in model.input:
            tensor = step.input_map.get(entry.name, "")
            used.add(tensor)
            if tensor not in known:
                yield f"{where}: {tensor or entry.name} has no producer before this step"
            elif fault := _mismatch(known[tensor], entry):
                yield f"{where}: {tensor}: {fault}"
        produced = {entry.name: entry for entry in model.output}
        for name, tensor in step.output_map.items():
            if name not in produced:
                yield f"{where}: has no output {name}"
            elif tensor in known:
                yield f"{where}: {tensor} has a second producer"
            else:
                known[tensor] = produced[name]
    for entry in ensemble.output:
        used.add(entry.name)
        if entry.name not in known:
            yield f"{ensemble.name}: output {entry.name} has no producer"
        elif fault := _mismatch(known[entry.name], entry):
            yield f"{ensemble.name}: output {entry.name}: {fault}"
    for unused in sorted(known.keys() - used):
        yield f"{ensemble.name}: {unused} is used nowhere"


def _mismatch(producer: model_config_pb2.ModelInput, consumer: model_config_pb2.ModelInput) -> str:
    if producer.data_type != consumer.data_type:
        names = model_config_pb2.DataType.Name
        return f"is produced as {names(producer.data_type)}, taken as {names(consumer.data_type)}"
    before, after = list(producer.dims), list(consumer.dims)
    agree = len(before) == len(after) and all(a == b or -1 in (a, b) for a, b in zip(before, after, strict=True))
    return "" if agree else f"is produced with sizes {before}, taken with {after}"
