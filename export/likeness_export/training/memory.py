"""Memory that is freed and soon asked for again, as every step of training does: kept, not given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt(3)
_TOP_PAD = 64 << 20  # bytes that the heap grows by


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, for its next allocations.

    glibc maps every large block anew from the system and gives it back when it is freed, so that the system has to
    find and clear all of its pages again: with maps of photos that took two thirds of a training step. From here on
    large blocks come out of the heap, which never shrinks. Results are the same; the process stays as large as it was
    at its peak. That may be higher than before: large blocks of ever different sizes leave holes (twice as high in one
    case, maps of a hundred photos at a time). Other C libraries are left as they are.
    """
    with suppress(AttributeError, OSError):  # no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_TOP_PAD, _TOP_PAD)
