"""Schedule, workload and drive, against clients that are none."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # ships no type information
import pytest
from likeness_bench import load, watching
from likeness_bench.arrivals import Arrivals, arrival_times
from likeness_bench.drive import Drive, ask, ticking
from likeness_bench.figures import LoadReport, Percentiles
from likeness_bench.load import run_load
from likeness_bench.load_config import LoadConfig, open_client
from likeness_bench.load_report import load_report
from likeness_bench.load_tables import load_tables
from likeness_bench.steps import ModelCounters
from likeness_bench.watching import Watch
from likeness_bench.workload import AS_THEY_ARE, OperationKind, Workload, WorkloadConfig, reduce_to
from likeness_client import (
    InputError,
    InputSchema,
    Metric,
    OverloadedError,
    Product,
    ServerError,
    ServerInfo,
    ServerUnavailableError,
    Tls,
)
from likeness_client.payloads import payloads

INFO = ServerInfo(
    space="s",
    modalities=("text", "image", "attributes"),
    signatures=("text", "image", "attributes", "text_image", "text_attributes", "image_attributes"),
    dimension=4,
    max_batch_size=8,
    schema=InputSchema(attribute_keys=("kind",)),
    error_outputs={},
)
PRODUCTS = [
    Product(product_id=f"p{number}", title=f"vase {number}", images=(b"photo %d" % number,)) for number in range(20)
]


class Fake:
    """Takes the place of the client: waits, and fails from some call on."""

    def __init__(
        self,
        wait_s: float = 0.0,
        fails_from: int = 1_000_000,
        block_s: float = 0.0,
        refusal: type[Exception] = ServerUnavailableError,
    ) -> None:
        self.wait_s, self.fails_from, self.block_s, self.refusal = wait_s, fails_from, block_s, refusal
        self.asked: list[OperationKind] = []
        self.metrics: set[Metric] = set()
        self.answered = 0

    async def embed(self, _products: Sequence[Product]) -> None:
        await self._answer(OperationKind.EMBED)

    async def similarity(self, left: Sequence[Product], right: Sequence[Product], metric: Metric) -> None:
        assert len(left) == len(right)
        self.metrics.add(metric)
        await self._answer(OperationKind.SIMILARITY)

    async def similarity_matrix(self, left: Sequence[Product], right: Sequence[Product], metric: Metric) -> None:
        assert len(left) == len(right)
        self.metrics.add(metric)
        await self._answer(OperationKind.SIMILARITY_MATRIX)

    async def _answer(self, operation: OperationKind) -> None:
        self.asked.append(operation)
        if len(self.asked) > self.fails_from:
            raise self.refusal("no", "here")
        time.sleep(self.block_s)  # the harness itself is held up
        await asyncio.sleep(self.wait_s)
        self.answered += 1


def driven(client: Fake, stop_after_s: float | None = None, **load: Any) -> Drive:
    async def run() -> Drive:
        config = LoadConfig(address="here:1", **load)
        stop = asyncio.Event()
        requests = Workload(PRODUCTS, INFO, config.workload).requests(seed=1)
        asking = partial(ask, client)  # type: ignore[arg-type]
        drive = Drive(config=config, requests=requests, ask=asking, stop=stop)
        if stop_after_s is not None:
            asyncio.get_running_loop().call_later(stop_after_s, stop.set)
        await asyncio.wait_for(drive.run(), 20)
        return drive

    return asyncio.run(run())


def reported(drive: Drive) -> LoadReport:
    return load_report(drive, Watch(config=drive.config), INFO.space, "now")


def test_constant_arrivals_have_equal_gaps() -> None:
    np.testing.assert_allclose(arrival_times(Arrivals.CONSTANT, 4.0, 1.1, 0), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert len(arrival_times(Arrivals.CONSTANT, 100.0, 1.1, 0)) == 110


def test_poisson_arrivals_are_seeded_and_exponential() -> None:
    times = arrival_times(Arrivals.POISSON, 100.0, 100.0, 3)
    np.testing.assert_array_equal(times, arrival_times(Arrivals.POISSON, 100.0, 100.0, 3))
    assert not np.array_equal(times[:100], arrival_times(Arrivals.POISSON, 100.0, 100.0, 4)[:100])
    assert len({len(arrival_times(Arrivals.POISSON, 100.0, 1.0, seed)) for seed in range(20)}) > 5  # bursts included
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert times[0] >= 0
    assert 99 < times[-1] < 100
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential distribution


def test_requests_follow_the_mix_and_the_seed() -> None:
    config = WorkloadConfig(signatures={"text": 3.0, "image": 1.0}, batch_size=2)
    workload = Workload(PRODUCTS, INFO, config)
    drawn = list(islice(workload.requests(1), 400))
    assert drawn == list(islice(workload.requests(1), 400))
    assert drawn != list(islice(workload.requests(2), 400))
    assert sum(request.signature == "text" for request in drawn) == pytest.approx(300, abs=50)
    for request in drawn:
        assert len(request.left) == request.products == 2
        assert all(bool(product.title) == (request.signature == "text") for product in request.left)
        assert all(bool(product.images) == (request.signature == "image") for product in request.left)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 150, 250), (1.0, 399, 399)])
def test_requests_repeat_as_often_as_asked(share: float, least: int, most: int) -> None:
    drawn = list(islice(Workload(PRODUCTS, INFO, WorkloadConfig(repeat_share=share)).requests(1), 400))
    assert least <= sum(request.again for request in drawn) <= most


def test_a_walk_sends_every_product_before_one_comes_again() -> None:
    drawn = islice(Workload(PRODUCTS, INFO, WorkloadConfig()).requests(1), len(PRODUCTS))
    assert {request.left[0].product_id for request in drawn} == {product.product_id for product in PRODUCTS}


@pytest.mark.parametrize("size", [3, 7, len(PRODUCTS)])
def test_no_product_is_twice_in_a_request_and_all_are_sent_as_often(size: int) -> None:
    drawn = list(islice(Workload(PRODUCTS, INFO, WorkloadConfig(batch_size=size)).requests(1), 200))
    assert all(len({product.product_id for product in request.left}) == size for request in drawn)
    sent = Counter(product.product_id for request in drawn for product in request.left)
    assert max(sent.values()) - min(sent.values()) <= 1


def test_products_that_travel_alike_are_sent_once() -> None:
    given = [*PRODUCTS, replace(PRODUCTS[0], product_id="again"), replace(PRODUCTS[1], images=(b"another photo",))]
    given.append(Product(title="without a photo"))
    pools = Workload(given, INFO, WorkloadConfig(signatures={"text": 1.0, "image": 1.0, "text_image": 1.0})).pools
    assert {name: len(pool) for name, pool in pools.items()} == {"text": 21, "image": 21, "text_image": 21}


@pytest.mark.parametrize(
    ("operation", "size"),
    [
        (OperationKind.EMBED, {1: 0.9, 21: 0.1}),
        (OperationKind.SIMILARITY, 11),
        ({OperationKind.EMBED: 0.9, OperationKind.SIMILARITY: 0.1}, 11),
    ],
)
def test_requests_larger_than_what_there_is_are_refused(operation: Any, size: Any) -> None:
    with pytest.raises(InputError, match=r"holds up to 2[12] products, and only 20 different ones.*--batch-size"):
        Workload(PRODUCTS, INFO, WorkloadConfig(operation=operation, batch_size=size))


@pytest.mark.parametrize("operation", [OperationKind.SIMILARITY, OperationKind.SIMILARITY_MATRIX])
def test_comparisons_have_two_sides(operation: OperationKind) -> None:
    workload = Workload(PRODUCTS, INFO, WorkloadConfig(operation=operation, batch_size=3))
    request = next(workload.requests(1))
    assert (len(request.left), len(request.right), request.products) == (3, 3, 6)


def test_a_mix_of_operations_is_drawn_by_its_shares() -> None:
    shares = {OperationKind.EMBED: 6.0, OperationKind.SIMILARITY: 3.0, OperationKind.SIMILARITY_MATRIX: 1.0}
    drawn = list(islice(Workload(PRODUCTS, INFO, WorkloadConfig(operation=shares)).requests(1), 1000))
    counts = Counter(request.operation for request in drawn)
    assert {operation: counts[operation] for operation in shares} == pytest.approx(
        {operation: 100 * share for operation, share in shares.items()}, abs=60
    )
    for request in drawn:
        assert len(request.left) == 1
        assert len(request.right) == (request.operation is not OperationKind.EMBED)


def test_every_request_of_a_mix_is_asked_by_its_own_operation() -> None:
    workload = WorkloadConfig(operation=dict.fromkeys(OperationKind, 1.0), metric=Metric.LEARNED)
    client = Fake(wait_s=0.001)
    drive = driven(client, concurrency=1, duration_s=0.3, warm_up_s=0.0, workload=workload)
    assert client.asked == [record.operation for record in drive.records]
    assert set(client.asked) == set(OperationKind)
    assert client.metrics == {Metric.LEARNED}
    found = reported(drive)
    assert {name: part.count for name, part in found.by_operation.items()} == Counter(map(str, client.asked))
    names = [row[0] for table in load_tables(found) for row in table.rows]
    assert set(OperationKind) <= set(names)


def test_products_that_cannot_be_sent_are_left_out() -> None:
    given = [*PRODUCTS, Product(product_id="nothing"), Product(title="x", images=(b"y",), attributes={"kind": "z"})]
    (pool,) = Workload(given, INFO, WorkloadConfig()).pools.values()
    assert [product.product_id for product in pool] == [product.product_id for product in PRODUCTS]


@pytest.mark.parametrize(("signature", "reason"), [("video", "does not embed"), ("attributes", "none of 20 products")])
def test_a_mix_that_cannot_be_sent(signature: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Workload(PRODUCTS, INFO, WorkloadConfig(signatures={signature: 1.0}))


@pytest.mark.parametrize(("name", "reason"), [("none.jpg", r"none\.jpg"), ("no\0ne.jpg", "null byte")])
def test_a_missing_file_is_named(tmp_path: Any, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"'lost'.*{reason}.*relative to the product file"):
        Workload([Product(product_id="lost", images=(tmp_path / name,))], INFO, WorkloadConfig())


def test_reducing_keeps_what_belongs_to_no_other_modality() -> None:
    product = Product(product_id="p", title="t", description="d", images=(b"i",), attributes={"kind": "k"})
    assert reduce_to(product, ("text",), INFO) == Product(product_id="p", title="t", description="d")
    assert reduce_to(product, ("image", "attributes"), INFO) == Product(
        product_id="p", images=(b"i",), attributes={"kind": "k"}
    )


def test_attributes_that_are_part_of_the_text_stay_in_it() -> None:
    product = Product(title="t", description="d", attributes={"brand": "b", "kind": "k"}, images=(b"i",))
    schema = InputSchema(text_fields=("attributes.brand", "title"), attribute_keys=("kind",))
    only_text = replace(INFO, schema=schema, modalities=("text", "image"))
    assert reduce_to(product, ("text",), replace(INFO, schema=schema)) == Product(title="b t")
    alone = reduce_to(product, ("text",), only_text)
    assert payloads(alone, schema, only_text.modalities) == {"text": b"b t"}
    prose = InputSchema(text_fields=("attributes.brand",), attribute_keys=("kind",))
    assert reduce_to(product, ("text",), replace(only_text, schema=prose)).attributes == product.attributes


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": {}},
        {"operation": {}},
        {"operation": {OperationKind.EMBED: 0.0}},
        {"repeat_share": 1.5},
        {"signatures": {"text": 0.0}},
    ],
)
def test_workloads_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        WorkloadConfig(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"rate": 1.0, "concurrency": 1},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"concurrency": 0},
        {"concurrency": 1_000_000_000},  # takes all memory of the machine before it sends anything
        {"rate": 1.0, "timeout_s": 0.0},
        {"rate": 1.0, "duration_s": float("inf")},
    ],
)
def test_loads_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        LoadConfig(address="here:1", **wrong)


@pytest.mark.parametrize(("rate", "duration_s"), [(1e10, 1.0), (1e300, 30.0), (5.0, 1e12)])
def test_a_load_of_more_requests_than_can_be_held_is_refused(rate: float, duration_s: float) -> None:
    with pytest.raises(InputError, match=r"--rate .* more than a run can hold: give a lower rate or a shorter run"):
        LoadConfig(address="here:1", rate=rate, duration_s=duration_s)


def test_an_open_loop_keeps_its_schedule_whatever_the_answers_do() -> None:
    load: dict[str, Any] = {"rate": 50.0, "arrivals": Arrivals.CONSTANT, "duration_s": 0.4, "warm_up_s": 0.1}
    drive = driven(Fake(wait_s=0.6), **load)
    due = arrival_times(Arrivals.CONSTANT, 50.0, 0.5, 7).tolist()
    assert sorted(record.scheduled_s for record in drive.records) == due
    assert {record.signature for record in drive.records} == {AS_THEY_ARE}
    assert drive.failed == drive.unfinished == drive.in_flight == 0
    assert drive.elapsed_s == pytest.approx(0.5)  # also what comes after the last request
    found = reported(drive)
    assert (found.requests, found.requests_per_s, found.products_per_s) == (20, 0.0, 0.0)  # answered after the time


def test_a_late_start_counts_as_latency() -> None:
    """Each request holds the loop up for longer than the gap between two: the lateness adds up, and is not omitted."""
    drive = driven(Fake(block_s=0.03), rate=100.0, arrivals=Arrivals.CONSTANT, duration_s=0.2, warm_up_s=0.0)
    late = [record.started_s - record.scheduled_s for record in drive.records]
    assert len(drive.records) == 20
    assert all(
        record.finished_s - record.scheduled_s >= delay for record, delay in zip(drive.records, late, strict=True)
    )
    assert max(late) >= 19 * (0.03 - 0.01) - 0.02
    assert reported(drive).harness_lag == Percentiles.of(late)


def test_the_lateness_of_a_harness_that_is_held_up_is_noted() -> None:
    async def run() -> list[float]:
        lags_s = list[float]()
        ticks = asyncio.create_task(ticking(lags_s))
        await asyncio.sleep(0)
        time.sleep(0.05)
        while not lags_s:
            await asyncio.sleep(0)
        ticks.cancel()
        return lags_s

    assert asyncio.run(run())[0] >= 0.03


def test_a_harness_that_cannot_keep_up_ends_and_forgets_nothing() -> None:
    load: dict[str, Any] = {"rate": 200.0, "arrivals": Arrivals.CONSTANT, "duration_s": 0.5, "warm_up_s": 0.0}
    drive = driven(Fake(block_s=0.05), timeout_s=0.2, **load)
    assert len(drive.records) == 100
    skipped = [record for record in drive.records if record.error == "NotSent"]
    assert skipped
    assert not any(record.repeated for record in skipped)  # of few products, that were all sent before
    assert drive.elapsed_s == 0.5  # what was sent later was due in this time


def test_a_server_that_hangs_makes_error_rows_and_the_run_ends() -> None:
    drive = driven(Fake(wait_s=3600), rate=50.0, duration_s=0.2, warm_up_s=0.0, timeout_s=0.2)
    assert drive.failed == len(drive.records) > 0
    assert {record.error for record in drive.records} == {"DeadlineExceededError"}
    assert drive.unfinished == 0


@pytest.mark.parametrize("refusal", [ServerUnavailableError, OverloadedError])  # it has died; a limit of its gateway
def test_a_server_that_refuses_makes_error_rows_and_is_not_hammered(refusal: type[ServerError]) -> None:
    client = Fake(wait_s=0.01, fails_from=5, refusal=refusal)
    drive = driven(client, concurrency=2, duration_s=0.5, warm_up_s=0.0)
    assert len(drive.records) - drive.failed == 5
    assert {record.error for record in drive.records if record.error} == {refusal.__name__}
    assert 0 < drive.failed <= 2 * (0.5 / 0.1 + 1)
    assert reported(drive).answered_share == 1.0  # no rate was due


def test_an_error_that_nobody_foresaw_makes_error_rows_too() -> None:
    drive = driven(
        Fake(wait_s=0.01, fails_from=1, refusal=ZeroDivisionError), concurrency=1, duration_s=0.1, warm_up_s=0.0
    )
    assert {record.error for record in drive.records[1:]} == {"ZeroDivisionError"}


def test_a_closed_loop_has_as_many_on_their_way_as_it_has_callers() -> None:
    drive = driven(Fake(wait_s=0.02), concurrency=3, duration_s=0.3, warm_up_s=0.0)
    spans = [(record.started_s, record.finished_s) for record in drive.records]
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert len(spans) > 3
    assert max(at_once) == 3


def test_stopping_ends_the_run_and_counts_what_was_on_its_way() -> None:
    load: dict[str, Any] = {"concurrency": 4, "duration_s": 30.0, "warm_up_s": 0.0, "timeout_s": 30.0}
    drive = driven(Fake(wait_s=3600), stop_after_s=0.2, **load)
    assert not drive.records
    assert drive.unfinished == 4
    assert drive.elapsed_s < 15
    found = reported(drive)
    assert found.offered_per_s * found.measured_s == pytest.approx(4)


def test_stopping_lets_calls_end_that_soon_will() -> None:
    """Servers of before 2025 may crash when a call is cancelled."""
    client = Fake(wait_s=0.6)
    drive = driven(client, stop_after_s=0.2, concurrency=4, duration_s=30.0, timeout_s=30.0)
    assert client.answered == drive.unfinished == 4
    assert not drive.records


def test_repeats_are_told_from_worn_products() -> None:
    workload = WorkloadConfig(batch_size=len(PRODUCTS))  # every request sends all there is
    drive = driven(Fake(wait_s=0.01), concurrency=1, duration_s=0.2, warm_up_s=0.0, workload=workload)
    assert [record.worn for record in drive.records] == [False, *(True for _ in drive.records[1:])]
    assert [record.repeated for record in drive.records] == [record.worn for record in drive.records]
    pairs = WorkloadConfig(batch_size=len(PRODUCTS) // 2, operation=OperationKind.SIMILARITY)
    records = driven(Fake(wait_s=0.01), concurrency=1, duration_s=0.2, warm_up_s=0.0, workload=pairs).records
    assert [record.repeated for record in records] == [False, *(True for _ in records[1:])]
    again = replace(workload, batch_size=1, repeat_share=1.0)
    records = driven(Fake(wait_s=0.01), concurrency=1, duration_s=0.2, warm_up_s=0.0, workload=again).records
    assert [record.repeated for record in records] == [False, *(True for _ in records[1:])]
    assert not any(record.worn for record in records)  # they were asked for
    some = replace(workload, batch_size=7)
    records = driven(Fake(wait_s=0.01), concurrency=1, duration_s=0.2, warm_up_s=0.0, workload=some).records
    assert [record.repeated for record in records] == [False] * 3 + [True] * len(
        records[3:]
    )  # the third has 6 new ones


def test_looking_at_a_server_that_hangs_takes_no_longer_than_its_requests() -> None:
    async def run() -> float:
        async with await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0) as hanging:
            address = f"127.0.0.1:{hanging.sockets[0].getsockname()[1]}"
            config = LoadConfig(address=address, rate=5.0, duration_s=0.2, warm_up_s=0.0, timeout_s=0.2)
            began = time.perf_counter()
            workload = Workload(PRODUCTS, INFO, config.workload)
            report = await run_load(workload, config, stop=asyncio.Event())
            assert report.latency is None
            return time.perf_counter() - began

    assert asyncio.run(run()) < 4


@pytest.mark.parametrize("interrupted", [True, False])
def test_who_interrupts_a_run_on_a_server_that_hangs_waits_for_no_last_look(
    monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    looks, stop = list[str](), asyncio.Event()

    async def in_vain(_: LoadConfig) -> None:
        looks.append("counters")
        if interrupted and len(looks) == 2:
            stop.set()

    async def space_of(_: LoadConfig) -> str:
        looks.append("space")
        return ""

    async def run() -> LoadReport:
        config = LoadConfig(address="here:1", concurrency=1, duration_s=0.4, warm_up_s=0.0, timeout_s=0.1)
        return await run_load(Workload(PRODUCTS, INFO, config.workload), config, stop=stop)

    monkeypatch.setattr(watching, "counters_of", in_vain)
    monkeypatch.setattr(watching, "_space_of", space_of)
    report = asyncio.run(run())
    assert looks == ["counters"] * 2 + ([] if interrupted else ["counters", "space"])
    assert any("Triton did not answer at the end" in note for note in report.notes)
    assert not any("whole core" in note for note in report.notes)  # what was done before the run counts not


def watched(
    monkeypatch: pytest.MonkeyPatch,
    counted: list[int],
    spaces: Sequence[str] = ("s", "s"),
    processes: Sequence[int | None] = (os.getpid(), os.getpid()),
) -> LoadReport:
    """A run that sees these numbers of executions at its looks, these spaces when it asks, and these processes."""
    servers = [number and psutil.Process(number) for number in processes]
    infos = [replace(INFO, space=space) for space in spaces]

    class Served(Fake):
        async def __aenter__(self) -> Served:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def info(self) -> ServerInfo:
            return infos.pop(0)

    async def counters_of(_: LoadConfig) -> dict[str, ModelCounters]:
        times = counted.pop(0)
        parts = dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), times)
        return {"encoder": ModelCounters(inferences=times, executions=times, failures=0, count=parts, ns=parts)}

    for module in (load, watching):
        monkeypatch.setattr(module, "open_client", lambda _: Served(wait_s=0.01))
    monkeypatch.setattr(watching, "counters_of", counters_of)
    monkeypatch.setattr(watching, "find_server", lambda _: servers.pop(0))
    config = LoadConfig(address="here:1", concurrency=1, duration_s=0.2, warm_up_s=0.0)
    run = run_load(Workload(PRODUCTS, INFO, config.workload), config, stop=asyncio.Event())
    return asyncio.run(run)


def test_a_server_that_is_replaced_while_it_is_loaded_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the measured time, in it and at its end the server is looked at."""

    def said(report: LoadReport) -> list[bool]:
        return [any(words in note for note in report.notes) for words in ("another space", "was started again")]

    assert said(watched(monkeypatch, [5, 6, 9])) == [False, False]
    assert said(watched(monkeypatch, [5, 6, 9], spaces=["s", "t"])) == [True, False]
    before, now = os.getppid(), os.getpid()
    assert said(watched(monkeypatch, [5, 6, 9], processes=[before, now])) == [False, True]
    assert said(watched(monkeypatch, [5, 6, 9], processes=[None, now])) == [False, True]  # it was down before
    assert said(watched(monkeypatch, [5, 6, 9], processes=[before, None])) == [False, False]  # and now it is
    assert said(watched(monkeypatch, [5, 6, 9], processes=[None, None])) == [False, False]  # or it is not here
    far_away = watched(monkeypatch, [5, 2, 9])  # not to be seen but by its counters
    assert said(far_away) == [False, True]
    assert [step.requests for step in far_away.steps] == [7]  # of the process that it has now, without its warm-up


def test_python_seldom_searches_all_objects_while_a_run_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold the harness up, and the server's slowest answers would be those that came meanwhile."""
    kept, searched, limits = list[Any](), list[bool](), gc.get_threshold()

    class Hoarding(Fake):
        async def embed(self, products: Sequence[Product]) -> None:
            kept.append([[] for _ in range(100_000 if len(kept) < 10 else 0)])
            await super().embed(products)

        async def __aenter__(self) -> Hoarding:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def info(self) -> ServerInfo:
            return INFO

    async def counters_of(_: LoadConfig) -> None:
        return None

    def collecting(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2 and kept:
            searched.append(True)

    monkeypatch.setattr(load, "open_client", lambda _: Hoarding(wait_s=0.001))
    monkeypatch.setattr(watching, "counters_of", counters_of)
    monkeypatch.setattr(watching, "find_server", lambda _: None)
    config = LoadConfig(address="here:1", concurrency=1, duration_s=0.3, warm_up_s=0.0)
    gc.callbacks.append(collecting)
    try:
        asyncio.run(run_load(Workload(PRODUCTS, INFO, config.workload), config, stop=asyncio.Event()))
    finally:
        gc.callbacks.remove(collecting)
    assert kept
    assert not searched
    assert gc.get_threshold() == limits


def test_nothing_is_tried_again_or_held_back_without_a_trace() -> None:
    client = open_client(LoadConfig(address="here:1", rate=1.0))
    assert client._max_attempts == 1
    assert client.max_concurrency > 100_000


def test_what_a_gateway_asks_for_goes_with_the_load_and_into_no_report() -> None:
    config = LoadConfig(address="here:1", rate=1.0, gateway={"tls": Tls(), "headers": {"authorization": "secret"}})
    client = open_client(config)
    assert client._channel()["ssl"]
    assert client._settings()["headers"] == {"authorization": "secret"}
    assert "gateway" not in config.plain()
    assert "secret" not in repr(config)
