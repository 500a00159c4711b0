"""Memory that training frees and asks for again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from likeness_export.training.memory import keep_freed_memory
keep_freed_memory()
def once():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000) + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*(once() for _ in range(20)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's mallopt is not there")
def test_the_pages_of_a_freed_block_are_used_again_without_asking_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    faults = [int(count) for count in done.stdout.split()]
    assert faults[0] > 10_000  # 80 MB in pages of 4 kB: the system had to be asked
    assert max(faults[-5:]) < 100  # not from the second time on: the blocks between the others have to come together
