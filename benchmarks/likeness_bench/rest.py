"""A server after a load: when it has finished what it was left with, and whether it is dead or was only given too much.

Triton computes requests that nobody waits for any more: those whose deadline has passed in its queue. A run above the
capacity leaves it with all of them, and whatever is measured next waits behind them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from likeness_client import DeadlineExceededError, LikenessError

from likeness_bench.drive import ask, stopped_within
from likeness_bench.load_config import LoadConfig, open_client
from likeness_bench.steps import ModelCounters, is_ensemble
from likeness_bench.watching import counters_of
from likeness_bench.workload import Workload

PAUSE_S = 1.0
"""Between two runs; after failures a server has to rest for so long, at least."""
_LOOK_S = 0.25
_EXECUTIONS = 3.0  # without news for so many of the mean length: some take longer than others


async def come_to_rest(load: LoadConfig, *, patience_s: float, stop: asyncio.Event) -> bool:
    """Wait until Triton's counters stand still.

    Through gRPC it does not tell what it has queued, and it counts an execution when it ends; so they have to stand
    still for longer than an execution takes. A server that does not tell its counters is taken for one that rests.

    Args:
        load: says where the server is.
        patience_s: how long to wait for that.
        stop: set it to wait no longer.

    Returns:
        Whether they do; false where it took too long, or was stopped.
    """
    last, began_s = await counters_of(load), time.perf_counter()
    since_s = began_s
    while (now_s := time.perf_counter()) - since_s < max(PAUSE_S, _EXECUTIONS * _longest_s(last or {})):
        if stop.is_set() or now_s - began_s > patience_s:
            return False
        await stopped_within(stop, _LOOK_S)
        if (found := await counters_of(load)) != last:
            last, since_s = found, time.perf_counter()
    return True


async def silence(workload: Workload, load: LoadConfig, *, patience_s: float, stop: asyncio.Event) -> str:
    """Ask a server that rests for one request alone.

    Args:
        workload: what may be sent.
        load: says where the server is, and the deadline.
        patience_s: see `come_to_rest`.
        stop: likewise.

    Returns:
        Why it is not answered. Empty when it is, or when the server computed it and only took too long.
    """
    before = await counters_of(load)
    async with open_client(load) as client:
        try:
            async with asyncio.timeout(load.timeout_s):
                await ask(client, next(workload.requests(load.workload.seed)))
        except (TimeoutError, DeadlineExceededError):
            rests = await come_to_rest(load, patience_s=patience_s, stop=stop)
            computes = not rests or await counters_of(load) != before
            return "" if computes else f"no answer within {load.timeout_s:g} s, and nothing is computed"
        except LikenessError as error:
            return str(error)
    return ""


def _longest_s(counters: Mapping[str, ModelCounters]) -> float:
    """Return the mean time of an execution of the slowest model; 0 where nothing was executed."""
    return max(
        (
            found.busy_ns / found.executions / 1e9
            for model, found in counters.items()
            if found.executions and not is_ensemble(model)
        ),
        default=0.0,
    )
