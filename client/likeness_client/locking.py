"""Keeping two processes from working in one folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from likeness_client.errors import InputError
from likeness_client.writing import told

log = logging.getLogger(__name__)


@contextmanager
def locked(lock: Path, busy: str) -> Iterator[None]:
    """Keep other processes out until the block ends; the lock ends with the process, however it ends.

    Args:
        lock: a file in the folder that is worked in; it is made.
        busy: what another process does that holds it, e.g. ``runs/mine is being trained``.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    with ExitStack() as stack:
        with told(lock):
            held = stack.enter_context(lock.open("w"))
        try:
            import fcntl  # which Windows lacks, where a client may run

            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{busy} by another process: wait for it, or stop it") from error
        except (ImportError, OSError) as error:  # some network file systems have no locks
            reason = getattr(error, "strerror", None) or error
            log.warning("%s cannot be locked (%s): let no other process work there", lock.parent, reason)
        yield
