"""The most memory that processes use, in 10^6 bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from comparisons.rounds import ComparisonError

SERVER_EVERY_S = 0.5
"""How often a server with its children is looked at; each look takes some milliseconds."""
_HIGH_WATER = "VmHWM:"


@dataclass
class Peak:
    """The most that was seen so far."""

    mb: float = 0.0


@contextmanager
def watching(measure: Callable[[], float], every_s: float) -> Iterator[Peak]:
    """Measure for the length of a block, in a thread, and keep the most."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while True:
            peak.mb = max(peak.mb, measure())
            if ended.wait(every_s):
                break
        peak.mb = max(peak.mb, measure())

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def high_water_mb(pid: int) -> float:
    """Return the most that one process has ever held; what its starter held does not count.

    The figure that the kernel gives for children that have ended (``ru_maxrss``) would count it.

    Returns:
        0 for a process that has ended.

    Raises:
        ComparisonError: this system does not say it.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        if not Path("/proc/self/status").is_file():
            raise ComparisonError("the peak memory of a process is read from /proc: run this on Linux") from None
        return 0.0
    return parse_high_water_mb(status)


def parse_high_water_mb(status: str) -> float:
    """Read the peak from the text of ``/proc/PID/status``; 0 for a process that has ended."""
    line = next((line for line in status.splitlines() if line.startswith(_HIGH_WATER)), "")
    return int(line.split()[1]) * 1024 / 1e6 if line else 0.0
