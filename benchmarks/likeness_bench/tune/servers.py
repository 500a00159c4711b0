"""Servers of trial repositories: up while they are compared, each started and stopped by a thread of its own."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from likeness_client import LikenessError
from likeness_export.server.serve import ServeConfig, serving

from likeness_bench.tune.copying import trial_repository
from likeness_bench.tune.settings import Settings
from likeness_bench.tune.target import Target

_READY_S = 120.0
_FAILED = "failed to load '"
_SHOWN = 300  # characters of a log


class TrialError(LikenessError):
    """A trial's server did not start, or ended by itself; the message says why."""


@dataclass(frozen=True, kw_only=True)
class TrialServer:
    """A running server.

    Attributes:
        address: its gRPC endpoint.
        process: the server itself.
        log: where its log goes.
    """

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Do nothing while it runs.

        Raises:
            TrialError: it has ended.
        """
        if (code := self.process.poll()) is not None:
            raise TrialError(f"the server ended by itself with code {code}{complaint(self.log)}")


class TrialServers:
    """Starts servers when they are needed, and keeps those that are asked for together. Use it in ``async with``.

    Args:
        target: what is served.

    Attributes:
        longest_start_s: how long one took to be ready, at most.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.longest_start_s = 0.0
        self._running: dict[Settings, tuple[TrialServer, AsyncExitStack]] = {}

    async def __aenter__(self) -> TrialServers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.only()

    async def only(self, *wanted: Settings) -> None:
        """Stop all servers but those with these settings, and those of them that have ended."""
        async with AsyncExitStack() as stopping:  # every one of them is stopped, also if one resists
            for settings, (server, _) in list(self._running.items()):
                if settings not in wanted or server.process.poll() is not None:
                    stopping.push_async_callback(self._running.pop(settings)[1].aclose)

    async def get(self, settings: Settings) -> tuple[TrialServer, bool]:
        """Return the server with these settings, and whether it has just been started.

        Raises:
            TrialError: it cannot be started.
        """
        if settings in self._running:
            return self._running[settings][0], False
        stack, began_s = AsyncExitStack(), time.perf_counter()
        try:
            server = await stack.enter_async_context(self._started(settings))
        except BaseException:
            await stack.aclose()
            raise
        self.longest_start_s = max(self.longest_start_s, time.perf_counter() - began_s)
        self._running[settings] = server, stack
        return server, True

    @asynccontextmanager
    async def _started(self, settings: Settings) -> AsyncIterator[TrialServer]:
        # A server ends with the thread that started it, so each has one that waits for its end.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="trial") as thread:
            loop, context = asyncio.get_running_loop(), trial_server(self._target, settings)
            try:
                yield await loop.run_in_executor(thread, context.__enter__)
            finally:
                await loop.run_in_executor(thread, context.__exit__, None, None, None)


@contextmanager
def trial_server(target: Target, settings: Settings) -> Iterator[TrialServer]:
    """Serve a copy of a repository with these settings on free ports of the loopback interface.

    Raises:
        TrialError: the server does not start.
        InputError: the repository cannot be copied, or cannot be served here.
    """
    with tempfile.TemporaryDirectory(prefix="likeness-tune-") as logs, trial_repository(target, settings) as folder:
        log = Path(logs) / "tritonserver.log"
        config = ServeConfig.on_unused_ports(folder, log, ready_timeout_s=_READY_S)
        started = False
        try:
            with serving(config) as process:
                started = True
                yield TrialServer(address=config.address, process=process, log=log)
        except LikenessError as error:
            if started:
                raise
            reason = str(error).partition(": see ")[0]  # the log goes with the trial
            raise TrialError(f"{reason}{complaint(log)}") from error


def complaint(log: Path) -> str:
    """Return what Triton's log says of the first model that failed, else of the server; empty without either."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    # Not just any error: without a GPU, for example, Triton complains of that all the time.
    failed = [line[line.index(_FAILED) :].partition("\\n")[0].strip('" ') for line in lines if _FAILED in line]
    ended = [line for line in lines if line.startswith("error:")]
    return f": {(failed[:1] or ended[-1:])[0][:_SHOWN]}" if failed or ended else ""
