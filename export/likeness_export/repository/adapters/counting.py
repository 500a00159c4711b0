"""Counting what Triton does not: to it a request has gone well whose every photo was broken."""

from collections.abc import Sequence

import triton_python_backend_utils as pb_utils


class Unusable:
    """A counter for Prometheus of the items that could not be used.

    Args:
        model: the preprocessing step.
    """

    def __init__(self, model: str) -> None:
        self._family = pb_utils.MetricFamily(  # it has to live as long as the counter
            name="likeness_unusable_items_total",
            description="Items that were broken, outside the limits, or of which nothing is known",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._counter = self._family.Metric(labels={"model": model})

    def count(self, items: Sequence[bytes], reasons: Sequence[str]) -> None:
        """Count the items that have a reason; empty ones are no caller's, Triton warms the model up with them."""
        if unusable := sum(bool(item and reason) for item, reason in zip(items, reasons, strict=True)):
            self._counter.increment(unusable)
