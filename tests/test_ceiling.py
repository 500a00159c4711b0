"""The same networks without the server: the same answers; and the comparison of the two, never how fast they were."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from likeness_bench import beside, cli
from likeness_bench.ceiling import CeilingConfig, run_ceiling
from likeness_bench.ceiling_process import CeilingProcess, Item
from likeness_bench.ceiling_search import drawn_items, item_of
from likeness_bench.configs import cpu_threads_of, space_of
from likeness_bench.in_process import Threads
from likeness_bench.load import prepare, run_load
from likeness_bench.load_config import LoadConfig
from likeness_bench.recall import LabelConfig, labelled, served_recall
from likeness_bench.view import View
from likeness_bench.workload import AS_THEY_ARE, Workload, WorkloadConfig, reduce_to
from likeness_client import Client, Product, SpaceMismatchError, read_products
from likeness_client.contract import modalities_of
from likeness_export.evaluation.evaluate import Row, ServedEmbedder, Task, evaluate, read_task_catalogue
from likeness_export.run import Run
from numpy.typing import NDArray
from typer.testing import CliRunner

pytestmark = pytest.mark.server


def test_one_process_answers_what_the_server_answers(client: Client, repository: Path, complete: list[Product]) -> None:
    info = client.info()

    async def check(process: CeilingProcess, threads: Threads, size: int, signature: str) -> None:
        products = [reduce_to(product, modalities_of(signature), info) for product in complete[:20]]
        items = [item_of(product, info) for product in products]
        await process.take(items)
        measured = await process.measure(threads, size, 0.0, 0.01)
        assert measured.products_per_s > 0
        assert len(measured.batch_s) >= threads.workers
        alone, served = await process.embed(items), client.embed(products).vectors
        np.testing.assert_allclose(alone, served, rtol=0, atol=1e-4, err_msg=signature)

    async def run() -> None:
        async with CeilingProcess(repository) as process:
            for threads, size in ((Threads(workers=2), 4), (Threads(intra_op=2, spinning=True), 32)):
                for signature in info.signatures:
                    await check(process, threads, size, signature)

    asyncio.run(asyncio.wait_for(run(), 240))


def test_the_ceiling_has_the_products_of_the_load(client: Client, complete: list[Product]) -> None:
    workload = Workload(complete[:20], client.info(), WorkloadConfig(batch_size=3))
    items = drawn_items(workload)
    first = next(workload.requests(workload.config.seed)).left
    assert items[:3] == [item_of(product, client.info()) for product in first]
    assert set(items) == {item_of(product, client.info()) for product in complete[:20]}


def test_what_cannot_be_read_has_no_embedding(repository: Path) -> None:
    async def run() -> NDArray[np.float32]:
        async with CeilingProcess(repository) as process:
            return await process.embed([Item("image", (b"no photo",)), Item("text", (b"a vase",))])

    assert np.isnan(asyncio.run(asyncio.wait_for(run(), 60))).all(axis=1).tolist() == [True, False]


def test_recall_is_that_of_the_evaluation(client: Client, address: str, trained_run: Run, demo_catalogue: Path) -> None:
    task = Task(labels=("group",))
    catalogue = read_task_catalogue(trained_run, demo_catalogue.parent, task)
    modalities = trained_run.read_recipe().modalities()
    rows: list[Row] = list(
        evaluate(ServedEmbedder(client, catalogue, client.info().space), catalogue, modalities, task)
    )
    products = labelled(list(read_products(demo_catalogue)), LabelConfig(field="group"))
    load = LoadConfig(address=address, concurrency=1)
    assert {row.signature for row in rows} >= {"text", AS_THEY_ARE}
    for row in rows:
        found = served_recall(load, products, row.signature)
        assert found is not None
        assert found.queries == row.figures.queries
        assert found.at_1 == pytest.approx(row.figures.recall_at[1])


def test_recall_of_a_signature_is_that_of_products_whose_modalities_are_all_known(
    address: str, complete: list[Product]
) -> None:
    unheard = replace(complete[0], attributes={"kind": "unheard of"})
    products = [(product, "same") for product in (unheard, *complete[1:6])]
    load = LoadConfig(address=address, concurrency=1)
    counts = {name: served_recall(load, products, name) for name in ("text_attributes", "text", AS_THEY_ARE)}
    assert {name: found and found.gallery for name, found in counts.items()} == {
        "text_attributes": 5, "text": 6, AS_THEY_ARE: 6
    }  # fmt: skip


def test_a_server_beside_its_ceiling(address: str, repository: Path, complete: list[Product]) -> None:
    work = WorkloadConfig(batch_size={1: 0.5, 3: 0.5})
    load = LoadConfig(address=address, concurrency=3, duration_s=0.5, warm_up_s=0.1, timeout_s=60.0, workload=work)
    mixed = {"text": 0.5, "text_attributes": 0.5}  # of the quick ones, as each load has a hundred requests
    config = CeilingConfig(
        load=load,
        repository=repository,
        cases={"attributes": {"attributes": 1.0}, "mixed": mixed},
        rounds=1,
        trial_s=0.02,
        label=LabelConfig(field="group"),
    )
    labels = [(product, product.product_id[:5]) for product in complete]
    said: list[str] = []

    class Told(View):
        def say(self, text: str) -> None:
            said.append(text)

    comparing = run_ceiling(complete[:30], config, stop=asyncio.Event(), labels=labels, view=Told())
    report = asyncio.run(asyncio.wait_for(comparing, 240))
    assert report.ended == "complete"
    assert report.space == space_of(repository)
    assert report.cpu_threads == cpu_threads_of(repository)
    assert [case.name for case in report.cases] == ["attributes", "mixed"]
    assert report.cases[0].recall is not None
    assert report.cases[1].recall is None  # a mix is no embedding of its own
    for case in report.cases:
        assert case.largest_difference < 1e-4
        assert case.best in case.tried
        assert (case.alone.batch_size, case.alone.threads.workers) == (1, 1)
        assert {trial.batch_size for trial in case.tried} == {1, 2, 4, 8, 16, 32}
        (found,) = case.rounds
        assert found.errors == {}
        assert found.half_requests >= 100
        assert found.throughput_ratio == pytest.approx(found.served_products_per_s / found.ceiling_products_per_s)
        assert found.served_p50_ms is not None
        assert found.latency_ratio == pytest.approx(found.served_p50_ms / found.alone_p50_ms)
    turns = [text.rpartition(": ")[2] for text in said if text.startswith("attributes, round 1")]
    assert turns == ["the ceiling", "load", "one at a time", "one caller", "half load"]


def test_another_repository_is_refused(address: str, repository: Path, complete: list[Product], tmp_path: Path) -> None:
    text = (repository / "embed_text" / "config.pbtxt").read_text(encoding="utf-8")
    (tmp_path / "embed_text").mkdir()
    (tmp_path / "embed_text" / "config.pbtxt").write_text(text.replace(space_of(repository), "0" * 16))
    config = CeilingConfig(load=LoadConfig(address=address, concurrency=1), repository=tmp_path)
    with pytest.raises(SpaceMismatchError, match="give the repository that is served"):
        asyncio.run(run_ceiling(complete, config, stop=asyncio.Event()))


def test_the_command(address: str, repository: Path, tmp_path: Path) -> None:
    words = (
        f"bench ceiling --rendered 40 --server {address} --repository {repository} --signature text_image "
        "--label group --text-words 3:40 --image-px 60:200 --rounds 1 --turn-s 0.5 --warm-up-s 0.1 --trial-s 0.05 "
        f"--timeout-s 60 --split= --out {tmp_path / 'c.json'}"
    )
    done = CliRunner().invoke(cli.app, words.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "served / ceiling" in done.output
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["cases"][0]["recall"]["gallery"] > 20
    assert data["cases"][0]["largest_difference"] < 1e-4
    assert "tried in one process" in (tmp_path / "c.md").read_text()
    assert "<img alt=" in (tmp_path / "c.html").read_text()


@pytest.mark.parametrize("command", ["load --concurrency 2", "sweep --rate 65 --target-ms 60000"])
def test_the_ceiling_beside_other_loads(
    command: str,
    address: str,
    repository: Path,
    demo_catalogue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beside, "_TRIAL_S", 0.02)
    words = (
        f"bench {command} {demo_catalogue} --server {address} --repository {repository} --signature attributes "
        f"--duration-s 1 --warm-up-s 0.1 --budget-s 4 --timeout-s 60 --out {tmp_path / 'r.json'}"
    )
    done = CliRunner().invoke(cli.app, words.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "served / ceiling" in done.output
    data = json.loads((tmp_path / "r.json").read_text())
    run = data["steps"][0]["repeats"][0] if "best_rate" in data else data
    assert run["ceiling"]["throughput_ratio"] == pytest.approx(run["products_per_s"] / run["ceiling"]["products_per_s"])
    assert run["ceiling"]["largest_difference"] < 1e-4


def test_a_load_of_mixed_sizes(address: str, complete: list[Product]) -> None:
    work = WorkloadConfig(batch_size={1: 0.5, 4: 0.5})
    config = LoadConfig(address=address, concurrency=2, duration_s=1.5, warm_up_s=0.0, timeout_s=60.0, workload=work)

    async def run() -> None:
        workload = await prepare(complete[:20], config)
        report = await run_load(workload, config, stop=asyncio.Event())
        assert set(report.by_products) == {1, 4}
        assert sum(found.count for found in report.by_products.values()) == report.requests
        assert not report.errors

    asyncio.run(asyncio.wait_for(run(), 60))
