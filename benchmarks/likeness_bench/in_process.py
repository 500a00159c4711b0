"""The served pipeline without a server: the networks and the preprocessing of a model repository, in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from likeness_client import InputError
from likeness_client.contract import EMBEDDING, ERROR_SUFFIX, embed_model, modalities_of
from numpy.typing import NDArray

from likeness_bench.configs import cpu_parameters, read_config
from likeness_bench.tables import counted

Tensors: TypeAlias = Mapping[str, NDArray[Any]]
Step: TypeAlias = Callable[[Tensors], Tensors]
"""One model of an ensemble: its inputs by name to its outputs by name."""


@dataclass(frozen=True, kw_only=True)
class Threads:
    """How a process uses the cores.

    Attributes:
        workers: how many batches it has in work at a time, each in a thread of its own.
        intra_op: threads of onnxruntime within one network; they are shared by the workers.
        spinning: whether those threads spin while they wait, as is onnxruntime's default. The server's do so for a
            moment only, and for a product that comes alone.
    """

    workers: int = 1
    intra_op: int = 1
    spinning: bool = False

    @property
    def name(self) -> str:
        """In words."""
        found = f"{counted(self.workers, 'worker')} x {counted(self.intra_op, 'thread')}"
        return found + ", spinning" * self.spinning


def uses_of(cores: int, cpu_threads: int) -> list[Threads]:
    """Return the uses of the cores that are worth trying: one batch at a time on all of them, or a batch on each.

    Args:
        cores: of this machine.
        cpu_threads: what the server gives to an encoder; tried too.
    """
    uses = [
        Threads(intra_op=intra_op, spinning=spinning)
        for intra_op in sorted({cores, cpu_threads})
        for spinning in ((False, True) if intra_op > 1 else (False,))
    ]
    return [*uses, Threads(workers=cores)] if cores > 1 else uses


class Answers(NamedTuple):
    """A batch of answers: unit vectors FP32 [n, d], and per item why it could not be read (empty when it could)."""

    vectors: NDArray[np.float32]
    errors: list[str]


class InProcessPipeline:
    """Embeds batches as the ensembles of a repository do, step by step; steps are loaded when they are first needed.

    Args:
        repository: a model repository as `likeness export` writes it; its ``preprocessing.py`` files are executed.
        threads: how the networks use the cores.

    Raises:
        InputError: it is not such a repository.
    """

    def __init__(self, repository: Path, threads: Threads) -> None:
        self.repository, self.threads = repository, threads
        self._steps: dict[str, Step] = {}

    def embed(self, signature: str, items: Sequence[Sequence[bytes]]) -> Answers:
        """Embed one batch.

        Args:
            signature: the modalities that every item has.
            items: the bytes of each of them, in the order of the signature.

        Raises:
            InputError: the repository does not embed this signature, or one of its models cannot be run here.
        """
        ensemble = read_config(self.repository, embed_model(signature))
        tensors: dict[str, NDArray[Any]] = {}
        for place, name in enumerate(modalities_of(signature)):
            tensors[name] = np.empty((len(items), 1), dtype=np.object_)
            tensors[name][:, 0] = [item[place] for item in items]
        for step in ensemble.ensemble_scheduling.step:
            model = self._step(step.model_name, step.model_version)
            outputs = model({name: tensors[tensor] for name, tensor in step.input_map.items()})
            tensors |= {tensor: outputs[name] for name, tensor in step.output_map.items()}
        reasons = [tensors[name][:, 0] for name in tensors if name.endswith(ERROR_SUFFIX)]
        return Answers(tensors[EMBEDDING], [next(filter(None, row), "") for row in zip(*reasons, strict=True)])

    def _step(self, name: str, version: int) -> Step:
        if name not in self._steps:
            folder, config = self.repository / name / str(version), read_config(self.repository, name)
            if (folder / "preprocessing.py").is_file():
                self._steps[name] = _preprocessing(folder, config)
            elif (folder / "model.onnx").is_file():
                self._steps[name] = _network(
                    folder / "model.onnx", config, cpu_parameters(self.repository, name), self.threads
                )
            else:
                raise InputError(f"{folder} has neither preprocessing.py nor model.onnx: export the repository again")
        return self._steps[name]


def _network(path: Path, config: Any, parameters: Mapping[str, str], threads: Threads) -> Step:
    """Run a network by the server's own code: its session, and its runs of rows, one after the other in each worker."""
    session = _module(path.with_name("session.py"), f"session_of_{config.name}").open_session(
        path, threads.intra_op, threads.spinning
    )
    gather = _module(path.with_name("lengths.py"), f"lengths_of_{config.name}").gathering(parameters)
    names, wanted = [tensor.name for tensor in config.input], [tensor.name for tensor in config.output]

    def compute(tensors: list[NDArray[Any]]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = session.run(wanted, dict(zip(names, tensors, strict=True)))
        return found

    def run(inputs: Tensors) -> Tensors:
        return dict(zip(wanted, gather([[inputs[name]] for name in names], compute), strict=True))

    return run


def _preprocessing(folder: Path, config: Any) -> Step:
    module = _module(folder / "preprocessing.py", f"preprocessing_of_{config.name}")
    preprocessor = module.Preprocessor(folder / "assets")
    (raw,) = (tensor.name for tensor in config.input)
    (error_output,) = (tensor.name for tensor in config.output if tensor.name.endswith(ERROR_SUFFIX))

    def run(inputs: Tensors) -> Tensors:
        tensors, errors = preprocessor(list(inputs[raw].ravel()))
        return {**tensors, error_output: np.array(errors, dtype=np.object_).reshape(-1, 1)}

    return run


def _module(path: Path, name: str) -> Any:
    """Load code that lies in the repository, as the server does, so that both run the same one."""
    if not path.is_file():
        raise InputError(f"{path} is not there: export the repository again")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
