"""Our own load harness against NVIDIA's perf_analyzer, in alternation, on the same ensemble with the same products."""

from __future__ import annotations

import base64
import csv
import json
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from likeness_bench.workload import Workload, WorkloadConfig
from likeness_client import Client, Product
from likeness_client.contract import embed_model
from likeness_client.payloads import payloads

from comparisons.configs import TIMEOUT_S, PerfConfig
from comparisons.contenders import read_some
from comparisons.environments import run
from comparisons.perf_binary import WHEEL, PerfBinary, perf_binary
from comparisons.report import ComparisonReport, machine
from comparisons.rounds import ComparisonError, LoadTurn, add_load, of_load, of_loads
from comparisons.servers import likeness_server
from comparisons.turns import Turns

OURS, THEIRS = "likeness bench load", "perf_analyzer"
AGREES = 0.10
"""The two should differ by no more than this share."""
_WINDOWS = 3  # perf_analyzer reports over three windows in a row
_SLACK_S = 120.0


def compare_perf_analyzer(config: PerfConfig) -> ComparisonReport:
    """Measure; see the module.

    Raises:
        LikenessError: something that is needed is missing.
    """
    products = read_some(config.file, config.products)
    program = perf_binary(config.environments / "perf_analyzer", config.libb64)
    facts = machine()
    log = config.environments / "likeness.log"
    with tempfile.TemporaryDirectory() as name, likeness_server(config.repository, log) as address:
        folder = Path(name)
        data = input_data(products, config.signature, address)
        (folder / "input.json").write_text(json.dumps(data), encoding="utf-8")
        turns = Turns((OURS, THEIRS), config.rounds)
        for one, number in turns:
            with turns.of(one, number):
                if one == OURS:
                    found = _ours(config, address, folder, number)
                else:
                    found = _theirs(config, program, address, folder)
                add_load(turns, one, number, found)
    title = f"{config.concurrency} clients x {config.batch_size}, {embed_model(config.signature)}"
    setting = of_loads(title, turns, ((OURS, THEIRS),))
    facts |= {
        "repository": f"{config.repository}, cpu profile, gRPC",
        "products": f"{len(data['data'])} with {config.signature}",
        THEIRS: f"the binary inside {WHEEL}, closed loop, gRPC, {_WINDOWS} windows of {_window_ms(config)} ms",
    }
    for ratio in setting.ratios:
        facts["verdict"] = verdict(ratio.median)
    said = (f"where both share their cores with the server, {OURS} (Python) takes more of them than {THEIRS} (C++)",)
    return ComparisonReport(title="The load harness and perf_analyzer", settings=(setting,), facts=facts, notes=said)


def verdict(ratio: float) -> str:
    """Say whether the two harnesses tell the same."""
    said = "agree" if abs(ratio - 1) <= AGREES else "do not agree"
    return f"the two {said} within {100 * AGREES:.0f} % (median ratio {ratio:.2f})"


def input_data(products: Sequence[Product], signature: str, address: str) -> dict[str, Any]:
    """Make what perf_analyzer's ``--input-data`` takes, for the products that have all of a signature.

    Raises:
        InputError: the server does not have the signature, or no product has what it needs.
    """
    with Client(address) as client:
        info = client.info()
    pool = Workload(products, info, WorkloadConfig(signatures={signature: 1.0})).pools[signature]  # as our side has it
    return {"data": [entry(payloads(product, info.schema, info.modalities)) for product in pool]}


def entry(parts: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the tensors of one request, as they lie on the wire: the length in 4 bytes, then the bytes; in base64."""
    found = {}
    for name, data in parts.items():
        content = base64.b64encode(struct.pack("<I", len(data)) + data).decode()
        found[name] = {"content": {"b64": content}, "shape": [1]}
    return found


def _ours(config: PerfConfig, address: str, folder: Path, number: int) -> LoadTurn:
    out = folder / "ours.json"
    command = [str(Path(sys.executable).with_name("likeness")), "bench", "load", str(config.file)]
    command += [f"--server={address}", f"--concurrency={config.concurrency}", f"--signature={config.signature}"]
    command += [f"--batch-size={config.batch_size}", f"--seed={number}"]
    command += ["--budget-s=0"]  # one run, as the other side has
    command += [f"--duration-s={config.turn_s}", f"--warm-up-s={config.warm_up_s}", f"--timeout-s={TIMEOUT_S}"]
    run([*command, f"--products={config.products}", f"--out={out}"], timeout_s=_limit_s(config))
    report = json.loads(out.read_text(encoding="utf-8"))
    latency, errors = report["latency"] or {}, report["errors"]
    tails, requests = (latency.get("p50_ms"), latency.get("p99_ms")), latency.get("count", 0)
    cores, failed = report["harness_cpu_s"] / max(report["measured_s"], 1e-9), sum(error["count"] for error in errors)
    values = of_load(report["products_per_s"], *tails, cores, requests, failed)
    return LoadTurn(values, errors[0]["example"] if errors else "")


def _theirs(config: PerfConfig, program: PerfBinary, address: str, folder: Path) -> LoadTurn:
    out = folder / "theirs.csv"
    out.unlink(missing_ok=True)
    command = [str(program.path), "-m", embed_model(config.signature), "-u", address, "-i", "grpc"]
    command += ["-b", str(config.batch_size)]
    command += ["--input-data", str(folder / "input.json"), "--concurrency-range", str(config.concurrency)]
    # Any three windows count as stable: the length of a turn is given, as it is for the other side.
    command += ["--measurement-interval", str(_window_ms(config)), "--stability-percentage", "999"]
    before_s, began = _children_s(), time.monotonic()
    run([*command, "-f", str(out)], environment=program.environment, timeout_s=_limit_s(config))
    cores = (_children_s() - before_s) / (time.monotonic() - began)
    if not out.is_file():
        raise ComparisonError(f"{THEIRS} wrote no figures: run `{' '.join(command)}` to see why")
    return LoadTurn(of_load(*read_csv(out.read_text(encoding="utf-8")), cores, None, None))


def read_csv(text: str) -> tuple[float, float, float]:
    """Read perf_analyzer's figures of one concurrency: products/s, p50 and p99 in milliseconds.

    Raises:
        ComparisonError: they are not there.
    """
    row = next(csv.DictReader(text.splitlines()), {})
    try:
        speed, p50_us, p99_us = (float(row[key]) for key in ("Inferences/Second", "p50 latency", "p99 latency"))
    except (KeyError, ValueError) as error:
        raise ComparisonError(f"{THEIRS} wrote figures of another form ({error!r}): {text[:300]}") from error
    return speed, p50_us / 1000, p99_us / 1000


def _window_ms(config: PerfConfig) -> int:
    return max(1, round(1000 * config.turn_s / _WINDOWS))


def _limit_s(config: PerfConfig) -> float:
    """Return how long either program may take."""
    return config.warm_up_s + 4 * config.turn_s + TIMEOUT_S + _SLACK_S


def _children_s() -> float:
    """Return the CPU time of all processes that were started here and have ended; the server has not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
