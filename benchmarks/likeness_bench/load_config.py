"""How a load is made: against which server, how much, for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any

from likeness_client import AsyncClient, InputError

from likeness_bench.arrivals import Arrivals
from likeness_bench.workload import WorkloadConfig

_MOST_CALLERS = 100_000  # each is a task of the event loop
_MOST = 10_000_000  # requests of a run: its schedule and what became of each are held in memory
_UNBOUNDED = 1_000_000  # calls in flight: the load decides how many there are, not the client


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How a load is made. Either ``rate`` (open loop) or ``concurrency`` (closed loop) is given.

    Attributes:
        address: the server's gRPC endpoint.
        rate: requests per second, sent by schedule whether or not answers have come.
        arrivals: how the requests of a rate are spread.
        concurrency: callers who each send their next request when the answer to the last one has come.
        duration_s: how long is measured, after the warm-up.
        warm_up_s: how long before that load is made and not counted.
        timeout_s: the deadline of every request, from its start.
        workload: what is asked.
        gateway: arguments of the client for what stands before the server: ``tls``, ``headers``. In no report.

    Raises:
        InputError: neither or both of the two are given, or a number cannot be sent or waited for.
    """

    address: str
    rate: float | None = None
    arrivals: Arrivals = Arrivals.POISSON
    concurrency: int | None = None
    duration_s: float = 30.0
    warm_up_s: float = 5.0
    timeout_s: float = 10.0
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    gateway: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.concurrency is None):
            raise InputError("give either --rate (open loop) or --concurrency (closed loop)")
        if self.concurrency is not None and not 1 <= self.concurrency <= _MOST_CALLERS:
            raise InputError(f"--concurrency {self.concurrency}: give at least 1, and {_MOST_CALLERS:,} at most")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise InputError(f"--rate {self.rate:g} cannot be sent: give a number above 0")
        seconds = self.duration_s, self.timeout_s, self.warm_up_s
        if not (min(seconds[:2]) > 0 <= self.warm_up_s and all(map(isfinite, seconds))):
            raise InputError("duration_s and timeout_s must be above 0, warm_up_s at least 0, and all of them finite")
        if self.rate is not None and self.rate * self.length_s > _MOST:
            raise InputError(
                f"--rate {self.rate:g} makes {self.rate * self.length_s:.3g} requests in {self.length_s:g} s with the "
                f"warm-up, more than a run can hold: give a lower rate or a shorter run, for {_MOST:,} at most"
            )

    def plain(self) -> dict[str, Any]:
        """Return it as reports have it."""
        return {key: value for key, value in asdict(replace(self, gateway={})).items() if key != "gateway"}

    @property
    def length_s(self) -> float:
        """Warm-up and measured time together, in seconds."""
        return self.warm_up_s + self.duration_s


def open_client(config: LoadConfig) -> AsyncClient:
    """Return a client that neither retries nor holds calls back: both would hide what the server does.

    Raises:
        InputError: the address is not host:port.
    """
    return AsyncClient(
        config.address, timeout_s=config.timeout_s, max_concurrency=_UNBOUNDED, max_attempts=1, **config.gateway
    )
