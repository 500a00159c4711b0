"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees the limits of its own group, in both versions of cgroups."""


def usable_cores() -> int:
    """Return how many threads can compute at a time: as many as the affinity and the quota of CPU time allow.

    A container may see all processors of its host and have the time of two (``--cpus 2``); a quota of 1.5 counts as 2.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota())))


def _quota() -> float:
    """Return the CPU time that this process's group may use per time that passes; infinite without a limit.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), https://docs.kernel.org/scheduler/sched-bwc.html
    """
    version_1 = _CGROUP / "cpu"
    try:
        if (version_2 := _CGROUP / "cpu.max").exists():
            quota_us, period_us = version_2.read_text().split()
        else:
            quota_us, period_us = ((version_1 / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        limit = float(quota_us) / float(period_us)  # "max" is no number: no limit, and neither is one below 0
    except (OSError, ValueError):
        return math.inf
    return limit if limit > 0 else math.inf
