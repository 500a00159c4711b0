"""The full pipeline on Triton against a FastAPI service with eager torch, on the same trained run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from likeness_bench.workload import Workload
from likeness_client import Product
from likeness_client.contract import signature_of
from likeness_export.run import Run
from likeness_export.server.serve import unused_ports

from comparisons.configs import EagerConfig
from comparisons.contenders import json_embed, open_likeness, open_session, read_some
from comparisons.environments import extra_packages
from comparisons.measured import Measurement
from comparisons.report import ComparisonReport, machine
from comparisons.rounds import ComparisonError, Embed, RequestsOf, alternate, of_loads
from comparisons.servers import http_server, likeness_server

OURS, THEIRS = "likeness", "FastAPI + torch"
SUPPORTED = {"text", "image", "attributes"}
"""The modalities that the other service takes."""
TOLERANCE = 1e-4
CHECKED = 20
"""How many answers are compared before anything is measured."""


def compare_eager(config: EagerConfig) -> ComparisonReport:
    """Measure; see the module.

    Raises:
        LikenessError: something that is needed is missing, a server fails, or the answers differ.
    """
    modalities = Run(config.run).read_recipe().modalities()
    if unknown := set(modalities) - SUPPORTED:
        raise ComparisonError(f"{config.run} has {', '.join(sorted(unknown))}; the service takes only {SUPPORTED}")
    products = read_some(config.file, config.products)
    packages = extra_packages("fastapi", config.environments)
    (port,) = unused_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "comparisons.eager_service", str(config.run), f"--port={port}"]
    paths = {"PYTHONPATH": f"{packages}:{Path(__file__).parents[1]}"}
    facts = machine()
    with (
        likeness_server(config.repository, config.environments / "likeness.log") as address,
        http_server(THEIRS, command, f"{url}/health", config.environments / "fastapi.log", paths),
    ):
        setting, difference = asyncio.run(_measure(config, products, modalities, address, url))
    facts |= {
        "run": str(config.run),
        OURS: f"{config.repository}, cpu profile, gRPC",
        THEIRS: "eager torch, inference mode, one uvicorn worker, requests in its pool of threads, JSON with base64",
        "largest difference of the answers": f"{difference:.2g}",
    }
    said = ("both servers are up during all rounds; only the one that has its turn is asked",)
    return ComparisonReport(title="likeness and FastAPI with eager torch", settings=(setting,), facts=facts, notes=said)


async def _measure(
    config: EagerConfig, products: Sequence[Product], modalities: Sequence[str], address: str, url: str
) -> tuple[Measurement, float]:
    load = config.closed_loop(config.concurrency)
    async with open_likeness(address, load) as (ours, info), open_session() as session:
        theirs = json_embed(session, url, info.schema, modalities)
        asked = replace(load.workload, signatures={signature_of(modalities): 1.0})
        requests_of = Workload(products, info, asked).requests
        difference = await largest_difference(ours, theirs, THEIRS, requests_of)
        found = await alternate({OURS: ours, THEIRS: theirs}, requests_of, load, config.rounds)
    title = f"{config.concurrency} clients x 1 product, {' + '.join(modalities)}"
    return of_loads(title, found, ((OURS, THEIRS),)), difference


async def largest_difference(ours: Embed, other: Embed, name: str, requests_of: RequestsOf) -> float:
    """Send some requests by our client, and to the contender of this name, and compare their answers.

    Raises:
        ComparisonError: they differ by more than `TOLERANCE`.
    """
    worst = 0.0
    for number, request in enumerate(islice(requests_of(0), CHECKED)):
        mine, theirs = await ours(request.left), await other(request.left)
        worst = float(np.maximum(worst, np.abs(mine - theirs).max())) if mine.shape == theirs.shape else float("inf")
        if not worst <= TOLERANCE:  # also when it is no number
            raise ComparisonError(
                f"{name} answers request {number} differently from our client, by {worst:.1e}: "
                "are run and repository of one training? Export the run again"
            )
    return worst
