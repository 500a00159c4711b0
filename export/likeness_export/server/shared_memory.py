"""The shared memory between a tritonserver and its model processes: whose it is, and that nothing of a server stays.

A server or model process that is killed, by a lack of memory for instance, frees none of it. Where the process that
started them is killed as well, the next one does that: a container that starts anew finds the memory still taken.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OWN = "likeness-serve-"
"""What the names of servers begin with."""
STUB = "triton_python_backend_stub"
"""The program of a Python model's process."""
_SHARED_MEMORY = Path("/dev/shm")
_RESERVED = "triton_python_backend_shm_region_"  # Triton lets no caller register memory of such a name
_CLAIM = ".claim"
_NAME = re.compile(rf"{_RESERVED}{OWN}\w+{re.escape(_CLAIM)}")


@contextmanager
def shared_memory(name: str) -> Iterator[str]:
    """Give a server a prefix for the names of its shared memory, all of which goes with the block.

    Args:
        name: of the server, no other one's: `OWN` and some letters or digits. What a server of this name has in the
            folder for temporary files goes, too, where it was killed.
    """
    _clear_abandoned()
    prefix = f"{_RESERVED}{name}"
    with _claim(prefix):
        try:
            yield prefix
        finally:
            _free(prefix)


@contextmanager
def _claim(prefix: str) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends: who shares the memory may not see the process."""
    if not _SHARED_MEMORY.is_dir():
        yield
        return
    path = _SHARED_MEMORY / prefix
    with path.open("wb") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)
        path.rename(f"{path}{_CLAIM}")  # only now: who frees abandoned memory must not find it without its lock
        yield


def _clear_abandoned() -> None:
    for path in _SHARED_MEMORY.glob(f"{_RESERVED}{OWN}*{_CLAIM}"):
        with suppress(OSError), path.open("rb") as claim:  # gone, another user's, or held
            mine = os.fstat(claim.fileno()).st_uid == os.getuid() and _NAME.fullmatch(path.name)
            if mine:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                prefix = path.name.removesuffix(_CLAIM)
                _end_models(prefix)
                _free(prefix)
                shutil.rmtree(Path(tempfile.gettempdir(), prefix.removeprefix(_RESERVED)), ignore_errors=True)


def _end_models(prefix: str) -> None:
    """End what is left of a server that ended while it loaded: a model that was just coming up waits for it forever."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended by now
            command = place.read_bytes()
            if STUB.encode() in command.split(b"\0")[0] and prefix.encode() in command:
                os.kill(int(place.parent.name), signal.SIGKILL)


def _free(prefix: str) -> None:
    for left in _SHARED_MEMORY.glob(f"{prefix}*"):
        left.unlink(missing_ok=True)
