"""Watching a server that runs: is it whole, and does it answer?"""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from likeness_export.server.serve import PROBE_CHANNEL, ServeError

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

_WATCH_S = 1.0  # how often it is looked whether a server is whole
_ANSWERS_S = 1.0  # what a server that is whole needs at most to say that it lives: such questions have no queue
_UNANSWERED = 30  # in a row, and it hangs; the first may have met a machine that was suspended, or a moment of overload
_ENDS_TOO_S = 5.0  # how long a server may take to end after one of its models


def watch(process: subprocess.Popen[bytes], address: str) -> NoReturn:
    """Wait for as long as a server that is ready stays whole. Whoever started it should then start it again.

    Triton does not start a model process again that was killed, by a lack of memory for instance; it goes on to call
    itself ready, and fails every request that needs the model. A model that is unloaded by hand is watched no more.

    Raises:
        ServeError: it ended by itself, or one of its model processes did, or it answers nothing any more.
    """
    from tritonclient.grpc import InferenceServerClient

    models = {child: model for child in _children(process.pid) if (model := _model_of(child))}
    unanswered = 0
    with InferenceServerClient(address, channel_args=PROBE_CHANNEL) as client:
        while process.poll() is None:
            gone = [models.pop(child) for child in [*models] if not _runs(child)]
            if killed := [model for model in gone if not _is_unloaded(client, model)]:
                # Where the whole server ends, its models may end first.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_ENDS_TOO_S)
                    break
                names = ", ".join(f"model '{model}'" for model in sorted(killed))
                raise ServeError(f"the process of {names} ended by itself: see the log above")
            unanswered = 0 if _lives(client) else unanswered + 1
            if unanswered == _UNANSWERED:
                raise ServeError(f"tritonserver hangs: it answered none of {unanswered} questions: see the log above")
            time.sleep(_WATCH_S)
    raise ServeError(f"tritonserver ended by itself with code {process.returncode}: see the log above")


def _lives(client: InferenceServerClient) -> bool:
    from tritonclient.utils import InferenceServerException

    try:
        return bool(client.is_server_live(client_timeout=_ANSWERS_S))
    except InferenceServerException:
        return False


def _is_unloaded(client: InferenceServerClient, model: str) -> bool:
    """Say whether a server does without a model on purpose; one whose process was killed it still calls ready."""
    from tritonclient.utils import InferenceServerException

    try:
        index = client.get_model_repository_index(client_timeout=_ANSWERS_S).models
    except InferenceServerException:
        return False
    return not any(entry.name == model and entry.state == "READY" for entry in index)


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    with suppress(OSError):  # it ends at this moment
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found.update(map(int, task.read_text().split()))
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _model_of(pid: int) -> str:
    """Name the model that a process of the python backend computes: the folder above ``1/model.py``; else nothing."""
    with suppress(OSError):
        for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            if word.endswith("/model.py"):
                return Path(word).parent.parent.name
    return ""
