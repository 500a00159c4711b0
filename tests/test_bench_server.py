"""The harness on a real server: what it counts and how it ends, never how fast it was."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from likeness_bench import cli, figures, watching
from likeness_bench.figures import LoadReport
from likeness_bench.load import prepare, run_load
from likeness_bench.load_config import LoadConfig
from likeness_bench.output import deliver_load
from likeness_bench.steps import ModelCounters, read_counters
from likeness_bench.sweep import SweepConfig, SweepReport, run_sweep
from likeness_bench.watching import counters_of
from likeness_bench.workload import OperationKind, WorkloadConfig
from likeness_client import Metric, Product
from likeness_export.server.serve import ServeConfig, serving
from typer.testing import CliRunner

pytestmark = pytest.mark.server

PROGRAM = Path(sys.executable).parent / "likeness"


def loaded(config: LoadConfig, products: list[Product]) -> LoadReport:
    async def run() -> LoadReport:
        workload = await prepare(products, config)
        return await asyncio.wait_for(run_load(workload, config, stop=asyncio.Event()), 60)

    return asyncio.run(run())


def test_an_open_loop(address: str, complete: list[Product], tmp_path: Path) -> None:
    work = WorkloadConfig(signatures={"text": 0.5, "text_image": 0.5}, repeat_share=0.3, batch_size=2)
    config = LoadConfig(address=address, rate=20.0, duration_s=2.0, warm_up_s=0.5, workload=work)
    report = loaded(config, complete[:40])
    assert report.ended == "duration"
    assert report.errors == ()
    assert report.latency is not None
    assert report.latency.count == report.requests == sum(row.requests for row in report.timeline) > 0
    assert set(report.by_signature) == {"text", "text_image"}
    assert report.latency.p50_ms <= report.latency.p99_ms <= report.latency.max_ms
    assert report.harness_lag is not None
    assert report.harness_lag.count == report.requests
    assert 0 < report.repeated_share < 1
    assert report.outside_server_ms is None or report.outside_server_ms >= 0
    models = {step.model for step in report.steps}
    assert {"embed_text", "embed_text_image", "text_encoder", "image_encoder"} <= models
    assert not models & {"embed_image", "similarity"}
    assert report.server is not None
    assert report.server.processes > 5  # the server, and one for each model in Python
    assert report.server.peak_rss_mb > 50

    deliver_load(report, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["requests"] == report.requests
    assert "text_encoder" in (tmp_path / "a.md").read_text()
    page = (tmp_path / "a.html").read_text()
    plots = re.findall(r'<img alt="[^"]+" src="data:image/svg\+xml;base64,([^"]+)">', page)
    assert len(plots) == page.count("<img") == 3
    assert "<script" not in page
    ElementTree.fromstring(b64decode(plots[0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json", "a.md"]


@pytest.mark.parametrize("operation", list(OperationKind))
def test_a_closed_loop_of_every_operation(address: str, products: list[Product], operation: OperationKind) -> None:
    work = WorkloadConfig(operation=operation, batch_size=3, metric=Metric.LEARNED)
    config = LoadConfig(address=address, concurrency=3, duration_s=1.0, warm_up_s=0.2, workload=work)
    report = loaded(config, products)
    assert report.errors == ()
    assert report.latency is not None
    assert report.latency.count == report.requests > 0
    learned = {OperationKind.SIMILARITY_MATRIX: {"similarity_matrix"}, OperationKind.SIMILARITY: {"similarity"}}
    assert learned.get(operation, set()) <= {step.model for step in report.steps}


def test_a_mix_of_operations(address: str, products: list[Product]) -> None:
    work = WorkloadConfig(operation=dict.fromkeys(OperationKind, 1.0), batch_size=2, metric=Metric.LEARNED)
    report = loaded(LoadConfig(address=address, concurrency=3, duration_s=1.0, warm_up_s=0.0, workload=work), products)
    assert report.errors == ()
    assert set(report.by_operation) == set(OperationKind)
    assert sum(part.count for part in report.by_operation.values()) == report.requests
    assert report.outside_server_ms is None  # it cannot be told where one request is several calls


def test_broken_products_are_error_rows(address: str, complete: list[Product]) -> None:
    broken = [Product(product_id="p", images=(b"no photo",)), *complete[:1]]
    config = LoadConfig(address=address, concurrency=1, duration_s=1.0, warm_up_s=0.0)
    report = loaded(config, broken)
    (row,) = report.errors
    assert row.kind == "BatchError"
    assert "'p'" in row.example
    assert report.latency is not None
    assert report.requests == row.count + report.latency.count


def test_a_server_that_dies(
    repository: Path, complete: list[Product], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = []

    async def read_and_kill(config: LoadConfig) -> dict[str, ModelCounters] | None:
        readings.append(await counters_of(config))
        if len(readings) == 3:  # two as the run begins, one a second later
            process.kill()
        return readings[-1]

    monkeypatch.setattr(watching, "counters_of", read_and_kill)
    serve = ServeConfig.on_unused_ports(repository, tmp_path / "log")
    with serving(serve) as process:
        config = LoadConfig(address=serve.address, rate=20.0, duration_s=3.0, warm_up_s=0.0, timeout_s=2.0)
        report = loaded(config, complete)
    assert report.ended == "duration"
    assert report.errors
    assert {row.kind for row in report.errors} <= {"ServerUnavailableError", "DeadlineExceededError", "ServerError"}
    assert report.latency is not None
    assert report.requests == report.latency.count + sum(row.count for row in report.errors)
    assert report.steps  # up to the last reading
    assert any("did not answer at the end" in note for note in report.notes)


def test_a_sweep(address: str, complete: list[Product]) -> None:
    load = LoadConfig(address=address, rate=100.0, duration_s=0.5, warm_up_s=0.1, timeout_s=60.0)
    config = SweepConfig(load=load, target_ms=60_000.0, budget_s=6.0, max_repeats=2)

    async def run() -> Any:
        workload = await prepare(complete, load)
        return await run_sweep(workload, config, stop=asyncio.Event())

    report = asyncio.run(run())
    assert not report.complete
    assert "time is up" in report.ended
    assert report.steps[0].rate == 100.0
    assert all(1 <= len(step.repeats) <= 2 for step in report.steps)
    assert all(step.kept == step.shown.keeps_up for step in report.steps)  # the target is never missed
    best = max((step for step in report.steps if step.kept), key=lambda step: step.rate, default=None)
    assert report.best_rate == (best.rate if best else None)
    assert report.best == (best.shown if best else None)


def test_a_sweep_from_far_above_the_capacity_finds_its_way_down(
    address: str, complete: list[Product], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton goes on with requests that were given up; the next rate must not wait behind them."""
    monkeypatch.setattr(figures, "ENOUGH", 20)  # a p99 of a hundred requests takes long where only a few rates remain
    load = LoadConfig(
        address=address,
        rate=400.0,
        duration_s=0.5,
        warm_up_s=0.1,
        timeout_s=1.0,
        workload=WorkloadConfig(signatures={"text_image_attributes": 1.0}, batch_size=8),
    )
    config = SweepConfig(load=load, target_ms=1000.0, budget_s=120.0, max_repeats=1, precision=0.9)
    moved: list[bool] = []

    async def run_once(*given: Any, **others: Any) -> LoadReport:
        before = await read_counters(address)
        await asyncio.sleep(0.3)
        moved.append(await read_counters(address) != before)
        return await run_load(*given, **others)

    async def run() -> SweepReport:
        workload = await prepare(complete, load)
        return await run_sweep(workload, config, stop=asyncio.Event(), run_once=run_once)

    report = asyncio.run(run())
    assert report.steps[0].repeats[0].failed
    assert report.best_rate, report.ended
    assert not any(moved)


@pytest.mark.parametrize(
    "command", ["load --concurrency 2 --budget-s 4", "sweep --target-ms 60000 --rate 65 --budget-s 4 --timeout-s 60"]
)
def test_recall_stands_beside_a_mix_of_operations(
    address: str, demo_catalogue: Path, tmp_path: Path, command: str
) -> None:
    mix = "--operation embed=0.5 --operation similarity=0.5 --label group --duration-s 0.8 --warm-up-s 0"
    words = f"bench {command} {demo_catalogue} --server {address} {mix} --out {tmp_path / 'r.json'}"
    done = CliRunner().invoke(cli.app, words.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["label"] == "group, split val"
    assert report["recall"]["as they are"]["queries"] > 0
    assert report["software"]
    shown = (tmp_path / "r.md").read_text()
    assert "embed (50 %) and similarity (50 %) x 1" in shown
    assert "recall@1 of as they are: group, split val" in shown
    assert command.startswith("sweep") or 1 <= len(report["runs"]) <= 3


def test_a_soak(address: str, demo_catalogue: Path) -> None:
    words = f"bench soak {demo_catalogue} --server {address} --concurrency 4 --duration-s 1 --products 30"
    done = CliRunner().invoke(cli.app, words.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "largest difference to the answer alone" in done.stdout
    assert "text_encoder" in done.stdout


@pytest.mark.parametrize("command", ["load --concurrency 1", "soak"])
def test_the_harness_encrypts_when_it_is_told_to(command: str, address: str, demo_catalogue: Path) -> None:
    name, *options = command.split()
    words = ["--tls", "bench", name, str(demo_catalogue), "--server", address, *options]
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1  # this server does not
    assert f"no server answers at {address}" in done.stderr


def answered(address: str) -> int:
    """How many requests the server has answered so far."""
    counters = asyncio.run(read_counters(address))
    return sum(model.count["success"] for model in counters.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_from_outside_gives_the_report_so_far(
    number: signal.Signals, address: str, demo_catalogue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    words = f"bench load {demo_catalogue} --server {address} --concurrency 2 --warm-up-s 0 --duration-s 300 --out {out}"
    before = answered(address)
    process = subprocess.Popen([PROGRAM, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            deadline = time.monotonic() + 60
            while answered(address) < before + 50 and time.monotonic() < deadline:
                time.sleep(0.2)
            process.send_signal(number)
            shown, complaint = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, complaint
    report = json.loads(out.read_text())
    assert report["ended"] == "interrupted"
    assert 0 < report["measured_s"] < 300
    assert report["latency"]["count"] > 0
    assert "interrupted after" in shown
