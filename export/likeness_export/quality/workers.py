"""Units of work side by side, each in a process of its own: one that fails or is killed costs no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

from joblib import cpu_count
from likeness_client.errors import LikenessError

Item = TypeVar("Item")
Work = Callable[[Item], None]
_SPAWN = multiprocessing.get_context("spawn")  # a fork of a process that has loaded torch can hang


def side_by_side(items: Sequence[Item], work: Work[Item], jobs: int) -> Generator[tuple[Item, str], None, None]:
    """Do all the work, ``jobs`` at a time; yield each item when it is done, and why it failed (empty: it did not).

    Every process has its share of the cores; items and ``work`` have to be importable there. If the caller stops, the
    processes are ended.
    """
    live: set[BaseProcess] = set()
    stopped, starting = threading.Event(), threading.Lock()

    def one(item: Item) -> str:
        receiver, sender = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=_child, args=(work, item, sender), daemon=True)
        with starting:  # a process must not start behind the back of whoever ends them all
            if stopped.is_set():
                return "stopped"
            process.start()
            live.add(process)
        sender.close()
        try:
            message = str(receiver.recv())
        except EOFError:
            process.join()
            message = _ended(process.exitcode)
        process.join()
        live.discard(process)
        return message

    with _threads_per_process(max(1, cpu_count() // jobs)), ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(one, item): item for item in items}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            with starting:
                stopped.set()
            for process in list(live):
                process.terminate()


def _child(work: Work[Item], item: Item, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(item)
        sender.send("")
    except Exception as error:
        known = isinstance(error, LikenessError)
        sender.send(str(error) if known else f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        hint = " (the machine may be out of memory)" if -code == signal.SIGKILL else ""
        return f"the process was ended by {signal.Signals(-code).name}{hint}"
    return f"the process ended by itself with code {code}"


@contextmanager
def _threads_per_process(threads: int) -> Iterator[None]:
    """Limit the threads of processes that start in this block; numerical libraries read the limit when imported."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
