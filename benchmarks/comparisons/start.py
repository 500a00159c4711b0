"""How long a server takes from its start until it is ready, and whether its first caller waits longer than others."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from likeness_bench.processes import look
from likeness_client import Client, Product
from likeness_export.repository.servable import check_repository
from likeness_export.server.serve import stop_group, unused_ports

from comparisons.configs import StartConfig, repositories_of
from comparisons.measured import Measurement, Quantity, measure, measure_all
from comparisons.report import ComparisonReport, machine
from comparisons.rounds import ComparisonError
from comparisons.servers import likeness_server, process_of

COMMAND, SERVER = "likeness serve", "tritonserver"
TARGET_S = 5.0
"""The default recipe should be served so soon."""
SECONDS = Quantity(name="s until ready", digits=2, compared=True)
CPU_S = Quantity(name="CPU s", digits=2)
PROCESSES = Quantity(name="processes", digits=0)
RESIDENT_MB = Quantity(name="MB when ready", digits=0)
FIRST_MS = Quantity(name="ms of the first request")
LATER_MS = Quantity(name="ms of later ones")
_LATER = 5
_READY = b"ready:"


def compare_starts(config: StartConfig) -> ComparisonReport:
    """Measure; see the module.

    Raises:
        LikenessError: a repository cannot be read.
    """
    repositories = repositories_of(config.repository)
    for repository in repositories:
        check_repository(repository, "cpu")
    facts = machine()
    log = config.environments / "start.log"

    def section(repository: Path) -> Measurement:
        return measure(
            title=f"{repository}, {count_models(repository)} models",
            contenders={COMMAND: partial(by_command, repository, log), SERVER: partial(by_itself, repository, log)},
            rounds=config.rounds,
            quantities=(SECONDS, CPU_S, PROCESSES, RESIDENT_MB, FIRST_MS, LATER_MS),
            pairs=((COMMAND, SERVER),),
        )

    sections = measure_all(partial(section, repository) for repository in repositories)
    for repository, found in zip(repositories, sections, strict=False):  # the last ones may be missing
        facts |= verdict(repository, found)
    said = (
        f"{COMMAND}: from the start of the command until it says that it is ready; {SERVER}: the same server without "
        "the command's own start; both look for it ten times a second",
        "ready: every model is loaded, gRPC and metrics answer; the first start may also read files from the disk",
        "CPU s: what the server's processes had used by then; a start takes at least that, divided by the cores",
        "MB: the sum over its processes; pages that they share count several times",
        f"ms: of requests for one product, a title and a photo; of later ones the median of {_LATER}",
    )
    return ComparisonReport(title="From the start to ready", settings=tuple(sections), facts=facts, notes=said)


def verdict(repository: Path, found: Measurement) -> dict[str, str]:
    """Say whether the command's start keeps the target; nothing where it was not measured."""
    if not any(turn.contender == COMMAND for turn in found.turns):
        return {}
    seconds = found.median(COMMAND, SECONDS)
    said = "yes" if seconds < TARGET_S else "NO"
    return {f"{repository}, below {TARGET_S:g} s": f"{said}, {seconds:.2f} s in the median"}


def count_models(repository: Path) -> int:
    """Return how many models a repository holds, ensembles included."""
    return len(list(repository.glob("*/config.pbtxt")))


def by_command(repository: Path, log: Path, _round: int) -> Mapping[str, float]:
    """Start ``likeness serve``, wait until it says that it is ready, and stop it.

    Raises:
        ComparisonError: it ended before.
    """
    ports = unused_ports(3)
    names = ("--grpc-port", "--http-port", "--metrics-port")
    command = [str(Path(sys.executable).with_name("likeness")), "serve", str(repository), "--profile=cpu"]
    command += [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, start_new_session=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - began
            if not line.startswith(_READY):
                raise ComparisonError(f"`{' '.join(command)}` ended before it was ready: see {log}")
            return _figures(seconds, f"127.0.0.1:{ports[0]}")
        finally:
            stop_group(process)
            if process.stdout:
                process.stdout.close()


def by_itself(repository: Path, log: Path, _round: int) -> Mapping[str, float]:
    """Start the server without the command, and stop it.

    Raises:
        LikenessError: it did not become ready.
    """
    began = time.perf_counter()
    with likeness_server(repository, log) as address:
        return _figures(time.perf_counter() - began, address)


def _figures(seconds: float, address: str) -> dict[str, float]:
    found = look(process_of(address))
    with Client(address) as client:
        client.info()  # connects
        first, *later = (_one_product_ms(client, number) for number in range(1 + _LATER))
    return {
        SECONDS.name: seconds,
        CPU_S.name: sum(found.cpu_s.values()),
        PROCESSES.name: float(len(found.cpu_s)),
        RESIDENT_MB.name: found.rss_mb,
        FIRST_MS.name: first,
        LATER_MS.name: median(later),
    }


def _one_product_ms(client: Client, number: int) -> float:
    photo = np.full((300, 300, 3), number, dtype=np.uint8)
    began = time.perf_counter()
    client.embed([Product(title=f"blue mug {number}", images=(photo,))])
    return 1000 * (time.perf_counter() - began)
