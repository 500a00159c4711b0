"""Options that belong together, as one parameter of a command. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

from likeness_client import Metric

from likeness_bench import options
from likeness_bench.recall import LabelConfig
from likeness_bench.sources import SourceConfig
from likeness_bench.workload import WorkloadConfig


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Which products are sent."""

    file: options.AnyFile = None
    products: options.Products = 1000
    rendered: options.Rendered = 0
    text_words: options.TextWords = ""
    image_px: options.ImagePx = ""
    seed: options.Seed = 7

    def source(self) -> SourceConfig:
        """Return where they come from.

        Raises:
            InputError: a range cannot be read, or there is a file and products are to be rendered, or neither.
        """
        return SourceConfig(
            file=self.file,
            rendered=self.rendered,
            count=self.rendered or self.products,
            text_words=options.parse_span(self.text_words, "--text-words"),
            image_px=options.parse_span(self.image_px, "--image-px"),
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked about them."""

    operation: options.Operation = None
    batch_size: options.BatchSize = None
    signature: options.Mix = None
    repeat_share: options.RepeatShare = 0.0
    metric: options.OfMetric = Metric.COSINE

    def workload(self, seed: int) -> WorkloadConfig:
        """Return the workload of these draws.

        Raises:
            InputError: a mix cannot be read, or cannot be asked.
        """
        return WorkloadConfig(
            operation=options.parse_operations(self.operation),
            batch_size=options.parse_sizes(self.batch_size),
            signatures=options.parse_mix(self.signature or ()),
            repeat_share=self.repeat_share,
            metric=self.metric,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What recall is measured on."""

    label: options.Label = ""
    split: options.Split = "val"

    def config(self) -> LabelConfig | None:
        """Return the labels; None where recall is not asked for."""
        return LabelConfig(field=self.label, split=self.split) if self.label else None


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: every field is an option of its own, the command gets the groups filled.

    Args:
        command: takes keywords only; parameters that are annotated with a dataclass are groups.
    """
    groups: dict[str, type] = {}
    flat: list[Parameter] = []
    for name, parameter in signature(command, eval_str=True).parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, type) and is_dataclass(annotation):
            groups[name] = annotation
            flat += signature(annotation, eval_str=True).parameters.values()
        else:
            flat.append(parameter)

    @wraps(command)
    def run(**given: Any) -> None:
        filled = {
            name: group(**{each.name: given.pop(each.name) for each in fields(group)}) for name, group in groups.items()
        }
        command(**given, **filled)

    # What typer reads.
    run.__signature__ = Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run
