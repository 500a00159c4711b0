"""One run of a load: make it, and look at the server meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from likeness_client import LikenessError, Product

from likeness_bench.drive import Ask, Drive, ask, seldom_paused
from likeness_bench.figures import LoadReport
from likeness_bench.load_config import LoadConfig, open_client
from likeness_bench.load_report import load_report
from likeness_bench.report import now
from likeness_bench.view import UNSEEN, View
from likeness_bench.watching import Watch
from likeness_bench.workload import Workload

_SHOWN_S = 0.25


class RunLoad(Protocol):
    """Makes one run of a load and reports, as `run_load` does."""

    async def __call__(self, workload: Workload, config: LoadConfig, *, stop: asyncio.Event, view: View) -> LoadReport:
        """Run a load to its end, or until ``stop`` is set."""


async def prepare(products: Sequence[Product], config: LoadConfig) -> Workload:
    """Ask the server what it offers, and read everything that will be sent.

    Raises:
        LikenessError: the server cannot be reached, or cannot be asked this.
    """
    async with open_client(config) as client:
        info = await client.info()
    return await asyncio.to_thread(Workload, products, info, config.workload)


async def run_load(
    workload: Workload,
    config: LoadConfig,
    *,
    stop: asyncio.Event,
    view: View = UNSEEN,
    ask: Ask = ask,
) -> LoadReport:
    """Run a load to its end, or until ``stop`` is set, and report.

    A server that fails, hangs or dies meanwhile makes error rows; the run still ends by its duration, plus at most the
    deadline of one request.

    Args:
        workload: what is sent; see `prepare`.
        config: the load; its workload is the one that ``workload`` was made for.
        stop: set it to get the report so far.
        view: is shown the run while it runs.
        ask: sends one request.
    """
    made_at = now()
    async with open_client(config) as client:
        with suppress(LikenessError):  # then every request says so
            await client.info()
        requests = workload.requests(config.workload.seed)
        drive = Drive(config=config, requests=requests, ask=partial(ask, client), stop=stop)
        watch = Watch(config=config)
        watching, showing = asyncio.create_task(watch.run(drive)), asyncio.create_task(_show(drive, view))
        try:
            with seldom_paused():
                await drive.run()
            await watching
        finally:
            watching.cancel()
            showing.cancel()
            await asyncio.gather(watching, showing, return_exceptions=True)
        view.show(drive)
    return load_report(drive, watch, workload.info.space, made_at)


async def _show(drive: Drive, view: View) -> None:
    while True:
        view.show(drive)
        await asyncio.sleep(_SHOWN_S)
