"""Running something asynchronous from a command: live progress on stderr; Ctrl-C and SIGTERM end it in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from likeness_bench.drive import Drive
from likeness_bench.view import View

T = TypeVar("T")
_ENDING = (signal.SIGINT, signal.SIGTERM)


def run_shown(name: str, work: Callable[..., Awaitable[T]]) -> T:
    """Run a measurement and show how far it is; a first Ctrl-C or SIGTERM tells it to stop, a second one interrupts.

    Args:
        name: what is shown first.
        work: makes the coroutine, given ``stop``, an event, and ``view``.
    """

    async def run() -> T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def heard_no_more() -> None:
            for number in _ENDING:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.default_int_handler)  # the second one

        def interrupted() -> None:
            stop.set()
            heard_no_more()

        for number in _ENDING:
            loop.add_signal_handler(number, interrupted)
        try:
            return await work(stop=stop, view=view)
        finally:
            heard_no_more()

    with _live_view(name) as view:
        return asyncio.run(run())


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM in a block; a process that is started in it ignores them for good."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _LiveView(View):
    """A line that says how far a run is; nothing where stderr is no terminal."""

    def __init__(self, progress: Progress, text: str) -> None:
        self._progress = progress
        self._task = progress.add_task(text, total=None, counts="")

    def say(self, text: str) -> None:
        """See `View`."""
        # A task that was at its end once has no time left for ever, and keeps its total.
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(text, total=None, counts="")

    def show(self, drive: Drive) -> None:
        """See `View`."""
        config = drive.config
        failed = drive.failed
        counts = f"{len(drive.records) - failed} answered, {failed} failed, {drive.in_flight} on their way"
        passed_s = min(drive.now_s(), config.length_s)
        if passed_s < config.warm_up_s:
            counts = f"warm-up: {counts}"
        self._progress.update(self._task, total=config.length_s, completed=passed_s, counts=counts)


@contextmanager
def _live_view(text: str) -> Iterator[View]:
    """Show a line of progress for the length of a block."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column()),  # long texts wrap, instead of being cut
        BarColumn(bar_width=20),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),  # on a narrow screen the bar gives way, not the figures
        TextColumn("{task.fields[counts]}", markup=False, table_column=Column()),
    )
    # Drawn from a thread, twice a second: drawing takes time from the harness.
    with Progress(
        *columns, console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal
    ) as progress:
        yield _LiveView(progress, text)
