"""The recipe's ``[serving]`` section: how the exported repository is executed, as a whole and step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from likeness_client.contract import MATRIX_MODEL, SIMILARITY_MODEL, encoder_model, fusion_model, preprocess_model
from pydantic import BaseModel, ConfigDict, Field

_PYTHON = ("instances", "preferred_batch_size", "queue_delay_us")
_NETWORK = ("instances", "cpu_threads", "preferred_batch_size", "queue_delay_us")
_BLOCKS = ("instances", "cpu_threads")  # a block is a batch by itself: nothing is gathered
_MOST = 1024  # instances or threads; what Triton's configurations cannot hold would be found by the export only
_LONGEST_US = 60_000_000


@dataclass(frozen=True, order=True, kw_only=True)
class StepSettings:
    """What holds for one step, its own keys and those of the whole section taken together.

    Attributes:
        instances: how many executions of it may run side by side.
        cpu_threads: threads of one execution in the ``cpu`` profile; says nothing where the step is no network.
        preferred_batch_size: what the batcher tries to gather, the sizes ascending; empty: whatever is there.
        queue_delay_us: how long it waits for that.
    """

    instances: int
    cpu_threads: int
    preferred_batch_size: tuple[int, ...]
    queue_delay_us: int


class StepSection(BaseModel):
    """``[serving.steps.<model>]``; what is not given is that of ``[serving]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instances: int | None = Field(
        default=None, ge=1, le=_MOST, description="executions of this step that may run side by side"
    )
    cpu_threads: int | None = Field(
        default=None,
        ge=1,
        le=_MOST,
        description="of a network: threads of one execution on a CPU: runs side by side, or sharing operators",
    )
    # Every step must take the ensemble's largest batch, so this, and not `max_batch_size`, is a step's own choice.
    preferred_batch_size: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, description="sizes that the batcher tries to gather; default: whatever is there"
    )
    queue_delay_us: int | None = Field(
        default=None, ge=0, le=_LONGEST_US, description="how long it waits for more requests"
    )


class ServingSection(BaseModel):
    """How the exported repository is executed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: int = Field(default=32, ge=1, le=1024)
    queue_delay_us: int = Field(
        default=0, ge=0, le=_LONGEST_US, description="how long a step waits for more requests to join a batch"
    )
    cpu_threads: int = Field(
        default=2,
        ge=1,
        le=_MOST,
        description="threads of one execution in the cpu profile: runs side by side, or sharing operators",
    )
    instances: int = Field(default=1, ge=1, le=_MOST, description="executions of a step that may run side by side")
    signatures: tuple[str, ...] = Field(
        default=(), description="the sets of modalities to serve, e.g. text_image; default: every one there is"
    )
    steps: dict[str, StepSection] = Field(default={}, description="model -> what holds for it instead")
    shared_preprocessing: dict[str, str] = Field(
        default={}, description="tower -> the one whose preprocessing step it takes its tensors from; the export says"
    )

    def of(self, step: str) -> StepSettings:
        """Return what holds for a step."""
        whole = StepSettings(
            instances=self.instances,
            cpu_threads=self.cpu_threads,
            preferred_batch_size=(),
            queue_delay_us=self.queue_delay_us,
        )
        return replace(whole, **self.steps[step].model_dump(exclude_none=True)) if step in self.steps else whole

    def faults(self, keys: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Return what is wrong with ``steps``: key, value and what is allowed; for ``keys`` see `keys_of_steps`."""
        found = []
        for step, section in self.steps.items():
            if step not in keys:
                found.append(f"serving.steps.{step}: there is no such step; allowed are: {', '.join(keys)}")
                continue
            for key, value in section.model_dump(exclude_none=True).items():
                place = f"serving.steps.{step}.{key}"
                if key not in keys[step]:
                    allowed = ", ".join(keys[step])
                    found.append(f"{place}: means nothing for this step; allowed here are: {allowed} (given: {value})")
                elif key == "preferred_batch_size" and list(value) != sorted({*value}):
                    found.append(f"{place}: the sizes must ascend (given: {list(value)})")
                elif key == "preferred_batch_size" and max(value, default=0) > self.max_batch_size:
                    limit = f"serving.max_batch_size, {self.max_batch_size}"
                    found.append(f"{place}: must not be above {limit} (given: {list(value)})")
        return found


def keys_of_steps(
    preprocessed: Iterable[str], towers: Iterable[str], signatures: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Return the models that compute something, in the order of the pipeline, and the keys that each may be given.

    The towers that are ``preprocessed`` have a preprocessing step of their own, the signatures a fusion head.
    """
    return (
        {preprocess_model(name): _PYTHON for name in preprocessed}
        | {encoder_model(name): _NETWORK for name in towers}
        | {fusion_model(signature): _NETWORK for signature in signatures}
        | {SIMILARITY_MODEL: _NETWORK, MATRIX_MODEL: _BLOCKS}
    )
