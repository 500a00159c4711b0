"""What is worth trying: a first guess from the service times, then the alternatives of one knob of one step. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from likeness_export.serving_section import StepSettings

from likeness_bench.tune.service import ServiceTime, worth_tuning
from likeness_bench.tune.settings import KeysOf, Settings

_CROWD = 1.5  # threads per core of the first guess: while one waits for its input, another one computes
_MOST_CROWD = 2  # threads per core of one step that are still tried
_ON_DEVICE = 2  # executions side by side on an accelerator: one computes while the other one's tensors travel
_LEAST_DELAY_US = 100
_DELAYS = (0.25, 1.0)  # worth waiting, in executions of the step
_DELAY_OF_TARGET = 0.25  # a single step must not wait longer than this share of the latency target


class Knob(StrEnum):
    """What is searched together, in the order in which it is."""

    SHAPE = "instances and threads"
    BATCH = "batch size"
    DELAY = "queue delay, for a batch size"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the search may change.

    Attributes:
        keys: all steps, and the keys that mean something for each of them here.
        times: the service times of the steps that worked, those with the largest share first.
        elsewhere: the steps that do not run on the cores, because the profile puts them on an accelerator.
        cores: processors that the server may use.
        largest_batch: the most products that can wait for an execution at the same time, or fit into one.
        target_ms: the 99th percentile that has to be kept.
    """

    keys: KeysOf
    times: tuple[ServiceTime, ...]
    elsewhere: frozenset[str] = frozenset()
    cores: int
    largest_batch: int
    target_ms: float

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that are searched, in the order in which they are."""
        return tuple(time.step for time in worth_tuning(self.times) if time.step in self.keys)

    def alternatives(self, knob: Knob, step: str, settings: Settings) -> Iterator[Settings]:
        """Return the settings that differ in one knob of one step; for shapes, the nearest ones."""
        held, keys = settings[step], self.keys[step]
        if knob is Knob.SHAPE:
            for instances, threads in self._shapes(held, threaded="cpu_threads" in keys):
                yield settings.changed(step, instances=instances, cpu_threads=threads)
        elif knob is Knob.BATCH and "preferred_batch_size" in keys:
            for sizes in (*self._batches(), ()):
                if sizes != held.preferred_batch_size:
                    yield settings.changed(step, preferred_batch_size=sizes)
        elif knob is Knob.DELAY and "queue_delay_us" in keys:
            # Without a preferred size Triton would wait for its largest batch, which seldom comes: all of the delay.
            wanted = [held.preferred_batch_size] if held.preferred_batch_size else self._batches()
            waits = [(delay_us, batch) for delay_us in self._delays_us(step) for batch in wanted]
            for delay_us, batch in (*waits, (0, held.preferred_batch_size)):
                if delay_us != held.queue_delay_us:
                    yield settings.changed(step, queue_delay_us=delay_us, preferred_batch_size=batch)

    def _shapes(self, held: StepSettings, *, threaded: bool) -> Iterator[tuple[int, int]]:
        instances, threads = held.instances, held.cpu_threads
        more, fewer = instances * 2, max(1, instances // 2)
        wider, narrower = min(self.cores, threads * 2), max(1, threads // 2)
        if not threaded:
            near = [(more, threads), (fewer, threads)]
        else:
            # First the same number of threads in another shape, then more and fewer of them.
            near = [(more, narrower), (fewer, wider), (more, threads), (instances, narrower)]
            near += [(instances, wider), (fewer, threads)]

        def crowd(shape: tuple[int, int]) -> int:
            return shape[0] * shape[1] if threaded else shape[0]

        limit = max(_MOST_CROWD * self.cores, crowd((instances, threads)) - 1)  # from above it there is a way down
        for shape in dict.fromkeys(near):
            if shape != (instances, threads) and crowd(shape) <= limit:
                yield shape

    def _batches(self) -> list[tuple[int, ...]]:
        return [(size,) for size in (self.largest_batch >> halved for halved in range(3)) if size > 1]

    def _delays_us(self, step: str) -> list[int]:
        longest_us = 1000 * _DELAY_OF_TARGET * self.target_ms
        batch_us = next((1000 * time.batch_ms for time in self.times if time.step == step), 0.0)
        wanted = (max(_LEAST_DELAY_US, _two_digits(share * batch_us)) for share in _DELAYS)
        return sorted({delay_us for delay_us in wanted if delay_us <= longest_us})


def first_guesses(plan: Plan, start: Settings) -> list[Settings]:
    """Return what the service times alone suggest, the boldest first.

    The cores are divided in proportion to the shares. What a network gets are threads of one execution, as far as there
    are cores: they share its weights. Steps that take little time get one thread.
    """
    modest = start
    for time in plan.times:
        if time.step not in plan.steps and "cpu_threads" in plan.keys.get(time.step, ()):
            modest = modest.changed(time.step, cpu_threads=1)
    bold = modest
    for time in plan.times:
        if time.step in plan.steps:
            bold = bold.changed(time.step, **_shape(plan, time))
    return [settings for settings in dict.fromkeys((bold, modest)) if settings != start]


def _shape(plan: Plan, time: ServiceTime) -> dict[str, int]:
    """Return the step's part of the cores, as instances and threads."""
    slots = max(1, round(_CROWD * plan.cores * time.share))
    if time.step in plan.elsewhere:
        return {"instances": min(slots, _ON_DEVICE)}
    if "cpu_threads" not in plan.keys[time.step]:
        return {"instances": slots}
    threads = min(plan.cores, 1 << int(math.log2(slots)))
    return {"instances": slots // threads, "cpu_threads": threads}


def _two_digits(value: float) -> int:
    """Round to two significant digits: the third one of a service time is noise."""
    digits = max(0, int(math.log10(value)) - 1) if value >= 1 else 0
    return int(round(value, -digits))
