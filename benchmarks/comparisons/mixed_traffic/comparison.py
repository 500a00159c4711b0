"""Half full products, a quarter with text only, a quarter with an image only, through all three ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from likeness_bench.workload import Workload
from likeness_client import Product, ServerInfo
from likeness_client.contract import EMBEDDING, embed_model, signature_of
from likeness_client.errors import translate
from likeness_client.payloads import payloads
from likeness_export.run import Run
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from comparisons.configs import MixedConfig
from comparisons.contenders import open_likeness, read_some
from comparisons.eager import largest_difference
from comparisons.measured import Measurement
from comparisons.mixed_traffic.variants import MASK, MASKED, ROUTER, build_variants
from comparisons.report import ComparisonReport, machine
from comparisons.rounds import ComparisonError, Embed, alternate, of_loads
from comparisons.servers import likeness_server

OURS, ONE, BLS = "signature ensembles", "one ensemble, mask", "BLS router"
NEEDED = ("text", "image")
Call = tuple[str, dict[str, NDArray[np.generic]]]
"""A model, and its inputs by name."""
Plan = Callable[[Sequence[Mapping[str, bytes]]], Call]
"""Turns what products of one signature have into a call."""


def compare_mixed(config: MixedConfig) -> ComparisonReport:
    """Measure; see the module.

    Raises:
        LikenessError: something that is needed is missing, the server fails, or the answers differ.
    """
    run = Run(config.run)
    modalities = run.read_recipe().modalities()
    if not set(modalities) > set(NEEDED):
        raise ComparisonError(f"{config.run} has {', '.join(modalities)}: text, image and something else are needed")
    products = read_some(config.file, config.products)
    copy = config.environments / "mixed_traffic"
    build_variants(run, config.repository, copy, config.router_instances)
    facts = machine()
    with likeness_server(copy, config.environments / "mixed_traffic.log") as address:
        setting, differences = asyncio.run(_measure(config, products, address))
    facts |= {
        "repository": f"{config.repository}, copied and extended, cpu profile, gRPC",
        "router": f"{config.router_instances} instances, batched by Triton, towers side by side",
        **{f"largest difference, {name}": f"{worst:.2g}" for name, worst in differences.items()},
    }
    said = ("all three are asked by the same code, for the same outputs; only the one that has its turn is asked",)
    return ComparisonReport(title="Three ways to serve mixed traffic", settings=(setting,), facts=facts, notes=said)


async def _measure(
    config: MixedConfig, products: Sequence[Product], address: str
) -> tuple[Measurement, dict[str, float]]:
    load = config.closed_loop(config.concurrency)
    async with open_likeness(address, load) as (client, info), InferenceServerClient(address) as stub:

        def asked(plan: Plan) -> Embed:
            async def embed(given: Sequence[Product]) -> NDArray[np.float32]:
                call = plan([payloads(product, info.schema, info.modalities) for product in given])
                return await _ask(stub, address, call, load.timeout_s)

            return embed

        contenders = {OURS: asked(ensemble_call), ONE: asked(masked_plan(info)), BLS: asked(router_call)}
        requests_of = Workload(products, info, replace(load.workload, signatures=shares(info.modalities))).requests
        # The client's own answers are the measure for all three.
        differences = {
            name: await largest_difference(client, one, name, requests_of) for name, one in contenders.items()
        }
        found = await alternate(contenders, requests_of, load, config.rounds)
    title = f"{config.concurrency} clients x 1 product: half full, a quarter text, a quarter image"
    return of_loads(title, found, ((OURS, ONE), (OURS, BLS))), differences


def shares(modalities: Sequence[str]) -> dict[str, float]:
    """Return the mix: signature -> its share of the requests."""
    return {signature_of(modalities): 0.5, "text": 0.25, "image": 0.25}


def ensemble_call(given: Sequence[Mapping[str, bytes]]) -> Call:
    """Ask the ensemble of the signature."""
    return embed_model(signature_of(given[0])), {name: _column([parts[name] for parts in given]) for name in given[0]}


def router_call(given: Sequence[Mapping[str, bytes]]) -> Call:
    """Ask the router; what is missing is left out."""
    return ROUTER, ensemble_call(given)[1]


def masked_plan(info: ServerInfo) -> Plan:
    """Return how the masked ensemble is asked: what is missing is sent empty."""

    def plan(given: Sequence[Mapping[str, bytes]]) -> Call:
        inputs: dict[str, NDArray[np.generic]] = {
            name: _column([parts.get(name, b"") for parts in given]) for name in info.modalities
        }
        present = [[float(name in parts) for name in info.modalities] for parts in given]
        return MASKED, {**inputs, MASK: np.array(present, dtype=np.float32)}

    return plan


def _column(items: Sequence[bytes]) -> NDArray[np.generic]:
    return np.array(items, dtype=np.object_).reshape(-1, 1)


async def _ask(stub: InferenceServerClient, address: str, call: Call, timeout_s: float) -> NDArray[np.float32]:
    model, tensors = call
    inputs = []
    for name, data in tensors.items():
        tensor = InferInput(name, list(data.shape), "BYTES" if data.dtype == np.object_ else "FP32")
        inputs.append(tensor.set_data_from_numpy(data))
    outputs = [InferRequestedOutput(EMBEDDING)]
    with translate(address, model):
        answer = await stub.infer(model, inputs, outputs=outputs, client_timeout=timeout_s)
    vectors: NDArray[np.float32] = answer.as_numpy(EMBEDDING)
    return vectors
