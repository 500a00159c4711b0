"""What is left out of a catalogue, in the log: the first by name, the others counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

NAMED = 10  # as `likeness embed` names; of a large catalogue thousands may lack the only modality that is read


def log_left_out(log: logging.Logger, lines: Iterable[str], more: Callable[[int], str]) -> None:
    """Log the first lines, and how many more there are.

    Args:
        log: of the module that leaves something out.
        lines: one for each thing that is left out.
        more: says in words that so many others are left out, too.
    """
    count = 0
    for count, line in enumerate(lines, start=1):
        if count <= NAMED:
            log.warning("%s", line)
    if count > NAMED:
        log.warning("%s", more(count - NAMED))
