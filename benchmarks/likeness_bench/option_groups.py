"""Options that belong together, as one parameter of a command. Imports nothing heavy.

Where an option means nothing without another one, its default is None here, so that it can be told when it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

from likeness_client import InputError, Metric
from likeness_client.contract import modalities_of

from likeness_bench import options
from likeness_bench.recall import LabelConfig
from likeness_bench.sources import PRODUCTS, SourceConfig
from likeness_bench.workload import OperationKind, WorkloadConfig


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Which products are sent."""

    file: options.AnyFile = None
    products: options.AnyProducts = None
    rendered: options.Rendered = 0
    text_words: options.TextWords = ""
    image_px: options.ImagePx = ""
    seed: options.Seed = 7

    def source(self, signatures: Iterable[str] = ()) -> SourceConfig:
        """Return where they come from.

        Args:
            signatures: what they are reduced to; none: they are sent as they are.

        Raises:
            InputError: a range cannot be read or means nothing, or there is a file and products are to be rendered, or
                neither.
        """
        if self.rendered and self.products:
            raise InputError(
                f"--products {self.products} is of a file, and --rendered {self.rendered} says how many there are: "
                "leave one of them out"
            )
        self._check_sizes(tuple(signatures))
        return SourceConfig(
            file=self.file,
            rendered=self.rendered,
            count=self.rendered or self.products or PRODUCTS,
            text_words=options.parse_span(self.text_words, "--text-words"),
            image_px=options.parse_span(self.image_px, "--image-px"),
            seed=self.seed,
        )

    def _check_sizes(self, signatures: tuple[str, ...]) -> None:
        for option, size, modality in (
            ("--text-words", self.text_words, "text"),
            ("--image-px", self.image_px, "image"),
        ):
            if size and signatures and not any(modality in modalities_of(name) for name in signatures):
                raise InputError(
                    f"{option} {size} changes nothing that is sent, which is {', '.join(signatures)}: "
                    f"leave it out, or give a --signature with {modality}"
                )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked about them."""

    operation: options.Operation = None
    batch_size: options.BatchSize = None
    signature: options.Mix = None
    repeat_share: options.RepeatShare = 0.0
    metric: options.OfMetric = None

    def workload(self, seed: int) -> WorkloadConfig:
        """Return the workload of these draws.

        Raises:
            InputError: a mix cannot be read, or cannot be asked; or there is a metric for embeddings.
        """
        found = WorkloadConfig(
            operation=options.parse_operations(self.operation),
            batch_size=options.parse_sizes(self.batch_size),
            signatures=options.parse_mix(self.signature or ()),
            repeat_share=self.repeat_share,
            metric=self.metric or Metric.COSINE,
            seed=seed,
        )
        if self.metric and set(found.operations) == {OperationKind.EMBED}:
            raise InputError(
                f"--metric {self.metric} compares, and --operation embed does not: leave it out, or give "
                "--operation similarity or similarity_matrix"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What recall is measured on."""

    label: options.Label = ""
    split: options.Split = None

    def config(self) -> LabelConfig | None:
        """Return the labels; None where recall is not asked for.

        Raises:
            InputError: there is a split of which nothing is asked.
        """
        if self.label:
            return LabelConfig(field=self.label, split=LabelConfig.split if self.split is None else self.split)
        if self.split is not None:
            raise InputError(f"--split {self.split} is what recall ranks: leave it out, or give the --label of recall")
        return None


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
