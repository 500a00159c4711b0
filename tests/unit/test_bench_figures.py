"""From records and counters to figures, and the search over rates."""

from __future__ import annotations

import os
import socket
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil  # type: ignore[import-untyped]  # ships no type information
import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness_bench import figures, processes
from likeness_bench.drive import NOT_SENT, Record
from likeness_bench.figures import Percentiles
from likeness_bench.processes import GpuWatch, ProcessWatch, find_server
from likeness_bench.search import RateSearch, decisive, settled
from likeness_bench.steps import ModelCounters, is_ensemble, started_again, step_times
from likeness_bench.workload import OperationKind
from likeness_client import InputError

OK = Record(
    scheduled_s=1.0,
    started_s=1.5,
    finished_s=2.0,
    products=1,
    repeated=False,
    worn=False,
    operation=OperationKind.EMBED,
    signature="text",
)
FAILED = replace(OK, error="ServerError", message="no")
COUNTED = {"success": 2, "queue": 2, "compute_input": 2, "compute_infer": 2, "compute_output": 2}


def counters(times: int, millions: int, failures: int = 0) -> ModelCounters:
    return ModelCounters(
        inferences=4 * times,
        executions=times,
        failures=failures,
        count={name: count * times for name, count in COUNTED.items()},
        ns={name: count * millions * 1_000_000 for name, count in COUNTED.items()},
    )


def test_percentiles_are_those_of_numpy_in_milliseconds() -> None:
    seconds = np.random.default_rng(0).exponential(0.1, 5000).tolist()
    found = Percentiles.of(seconds)
    assert found is not None
    values = (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms, found.p99_9_ms)
    assert values[:4] == pytest.approx(1000 * np.percentile(seconds, (50, 90, 95, 99), method="inverted_cdf"))
    assert values == pytest.approx([1000 * sorted(seconds)[rank - 1] for rank in (2500, 4500, 4750, 4950, 4995)])
    assert found.count == 5000
    assert found.max_ms == pytest.approx(1000 * max(seconds))
    assert Percentiles.of([]) is None


@pytest.mark.parametrize("count", [1, 10, 999, 1000, 1001, 41_000])
def test_ranks_are_exact(count: int) -> None:
    """To floats, 99.9 % of 41,000 values are a little more than 40,959 of them."""
    found = Percentiles.of([rank / 1000 for rank in range(1, count + 1)])
    assert found is not None
    assert found.p99_9_ms == pytest.approx(-(-999 * count // 1000))
    assert found.p50_ms == pytest.approx(-(-count // 2))


def queued(capacity: float, latency_s: float = 0.0, rate: float = 10.0) -> list[Record]:
    """What becomes of requests due over 10 s at a server that answers so many of them per second, one by one."""
    records, free_s = list[Record](), 0.0
    for due_s in np.arange(0, 10, 1 / rate).tolist():
        free_s = max(free_s, due_s) + 1 / capacity
        records.append(replace(OK, scheduled_s=due_s, started_s=due_s, finished_s=free_s + latency_s))
    return records


@pytest.mark.parametrize("capacity", [2.0, 8.0, 9.0])
def test_a_server_whose_queue_grows_answers_its_capacity(capacity: float) -> None:
    assert figures.answered_share(queued(capacity)) == pytest.approx(capacity / 10)


@pytest.mark.parametrize("latency_s", [0.0, 1.0, 60.0])
def test_what_is_under_way_at_the_end_is_no_arrear(latency_s: float) -> None:
    assert figures.answered_share(queued(20.0, latency_s)) == pytest.approx(1.0)


def test_of_a_mix_it_does_not_matter_whether_more_slow_ones_come_last() -> None:
    mixed = [
        replace(one, finished_s=one.finished_s + (place % 2 or place in (98, 96)))
        for place, one in enumerate(queued(20.0))
    ]
    assert figures.answered_share(mixed) > figures.KEEPS_UP
    apart = [replace(one, finished_s=one.finished_s + 60 * (place % 2)) for place, one in enumerate(queued(20.0)[:96])]
    assert figures.answered_share(apart) > figures.KEEPS_UP  # although all the quick ones are answered first


def test_a_server_that_becomes_faster_answers_no_more_than_all() -> None:
    first_slow = [replace(one, finished_s=one.finished_s + 5 / (1 + one.scheduled_s)) for one in queued(20.0)]
    assert figures.answered_share(first_slow) == 1.0


def test_failures_are_not_answered() -> None:
    well = queued(20.0)
    assert figures.answered_share(
        [*well[:75], *(replace(one, error="ServerError") for one in well[75:])]
    ) == pytest.approx(0.75)
    growing = queued(8.0)
    assert figures.answered_share([*growing, *(replace(one, error="ServerError") for one in growing)]) == pytest.approx(
        0.4
    )
    assert figures.answered_share([FAILED]) == 0.0
    assert figures.answered_share([]) == figures.answered_share(queued(8.0)[:5]) == 1.0  # too few to tell


def test_what_the_harness_sent_does_not_depend_on_the_answers() -> None:
    well = [replace(one, finished_s=60 + 2 * one.finished_s, error="ServerError") for one in queued(20.0)]
    assert figures.sent_share(well) == pytest.approx(1.0)
    late = [replace(one, started_s=2 * one.scheduled_s) for one in well]
    assert figures.sent_share(late) == pytest.approx(0.5)
    assert figures.sent_share([*well[:75], *(replace(one, error=NOT_SENT) for one in well[75:])]) == 0.75


def test_latency_counts_from_when_a_request_was_due() -> None:
    assert figures.latency_s(OK) == 1.0


def test_failures_are_later_than_any_answer() -> None:
    assert figures.p99_with_failures_ms([OK] * 999 + [FAILED]) == 1000.0
    assert figures.p99_with_failures_ms([OK] * 99 + [FAILED]) == 1000.0  # 1 % may lie beyond it
    assert figures.p99_with_failures_ms([OK] * 98 + [FAILED] * 2) is None
    assert figures.p99_with_failures_ms([]) is None


@pytest.mark.parametrize("count", [99, 100])
def test_it_is_said_of_how_many_requests_the_p99_is_the_maximum(count: int) -> None:
    found = Percentiles.of([rank / 1000 for rank in range(count)])
    assert found is not None
    assert bool(figures.too_few(count)) == (found.p99_ms == found.max_ms)


@pytest.mark.parametrize("count", [1, 7, 99, 100, 101, 250, 1000])
def test_without_failures_both_p99_are_one(count: int) -> None:
    took_s = np.random.default_rng(count).exponential(0.1, count).tolist()
    records = [replace(OK, scheduled_s=0.0, finished_s=one_s) for one_s in took_s]
    latency = Percentiles.of([figures.latency_s(record) for record in records])
    assert latency is not None
    assert figures.p99_with_failures_ms(records) == pytest.approx(latency.p99_ms)


def test_errors_are_counted_by_kind() -> None:
    early = replace(FAILED, finished_s=1.75, message="first")
    rows = figures.error_rows([OK, FAILED, early, replace(FAILED, error="Other", finished_s=1.5), OK], warm_up_s=1.0)
    assert [(row.kind, row.count, row.first_s, row.example) for row in rows] == [
        ("ServerError", 2, 0.75, "first"),
        ("Other", 1, 0.5, "no"),
    ]


def test_the_timeline_goes_by_when_requests_were_due() -> None:
    late = replace(FAILED, finished_s=9.0)
    rows = figures.timeline([OK, replace(OK, scheduled_s=3.2, finished_s=9.0), late], warm_up_s=1.0)
    assert [(row.second, row.requests, row.errors) for row in rows] == [(0, 2, 1), (2, 1, 0)]
    assert rows[0].p50_ms == rows[0].p99_ms == 1000.0  # of what was answered
    (none_answered,) = figures.timeline([FAILED], warm_up_s=1.0)
    assert none_answered.p50_ms is none_answered.p99_ms is None


def test_each_signature_has_its_own_latency() -> None:
    found = figures.by_part(
        [OK, replace(OK, signature="image", finished_s=5.0), FAILED], lambda record: record.signature
    )
    assert {name: (part.count, part.p50_ms) for name, part in found.items()} == {
        "image": (1, 4000.0),
        "text": (1, 1000.0),
    }


def test_the_distribution_ascends() -> None:
    pairs = figures.distribution_ms([0.3, 0.1, 0.2])
    assert [percent for percent, _ in pairs] == sorted(percent for percent, _ in pairs)
    assert [value for _, value in pairs] == sorted(value for _, value in pairs)
    assert pairs[0] == pytest.approx((0.0, 100.0))
    assert pairs[-1] == pytest.approx((100.0, 300.0))


def test_step_times_are_means_between_two_readings() -> None:
    before = {"text_encoder": counters(1, 1), "idle": counters(3, 3)}
    after = {"text_encoder": counters(3, 9, failures=1), "idle": counters(3, 3), "embed_text": counters(2, 2)}
    before, after = before | {"broken": counters(3, 3)}, after | {"broken": counters(3, 3, failures=2)}
    ensemble, encoder, broken = step_times(before, after)
    assert (ensemble.model, ensemble.requests, ensemble.total_ms) == ("embed_text", 4, 1.0)
    assert ensemble.mean_batch is ensemble.queue_ms is ensemble.compute_infer_ms is None
    assert (encoder.model, encoder.requests, encoder.failures, encoder.mean_batch) == ("text_encoder", 4, 1, 4.0)
    assert (encoder.total_ms, encoder.queue_ms, encoder.compute_output_ms) == (4.0, 4.0, 4.0)
    assert (broken.model, broken.requests, broken.failures) == ("broken", 0, 2)


def test_only_ensembles_are_taken_for_ensembles() -> None:
    assert [is_ensemble(name) for name in ("embed_text", "similarity_text", "similarity", "similarity_matrix")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_server_that_was_started_again_in_between_gives_no_step_times() -> None:
    before, after = {"text_encoder": counters(3, 3)}, {"text_encoder": counters(1, 1)}
    assert step_times(before, after) == ()
    assert started_again(before, after)
    failing = {"text_encoder": counters(3, 3, failures=1)}  # before; since then it answered as much
    assert step_times(failing, before) == ()
    assert started_again(failing, before)
    assert not started_again(after, before)
    assert not started_again({}, before)
    assert not started_again(before, before)


@given(capacity=st.floats(0.2, 50_000), start=st.floats(0.1, 1000))
def test_the_search_closes_in_on_the_capacity(capacity: float, start: float) -> None:
    search = RateSearch(rate=start)
    tried = 0
    while (rate := search.next_rate()) is not None:
        search.tell(rate, kept=rate <= capacity)
        tried += 1
        assert tried < 60
    assert search.kept is not None
    assert search.missed is not None
    assert search.kept <= capacity < search.missed <= 1.05 * search.kept + 1e-9


@pytest.mark.parametrize("unlucky", [8.0, 16.0, 32.0, 64.0, 96.0])
def test_a_rate_that_missed_by_chance_does_not_end_the_search(unlucky: float) -> None:
    search, tried = RateSearch(rate=8.0), Counter[float]()
    while (rate := search.next_rate()) is not None:
        tried[rate] += 1
        search.tell(rate, kept=rate <= 100 and (rate, tried[rate]) != (unlucky, 1))
    assert search.kept is not None
    assert search.missed is not None
    assert search.kept <= 100 < search.missed <= 1.05 * search.kept
    assert tried[unlucky] == 2
    assert tried.total() - len(tried) <= 2  # the last miss may be tried again, too


def test_a_miss_with_others_right_below_it_is_not_tried_again() -> None:
    search, tried = RateSearch(rate=8.0), list[float]()
    while (rate := search.next_rate()) is not None:
        tried.append(rate)
        search.tell(rate, kept=rate <= 20)
    assert tried == [8, 16, 32, 24, 20, 22, 21]


@pytest.mark.parametrize(("kept", "end"), [(True, (64.0, None)), (False, (None, 0.5))])
def test_the_search_ends_at_its_limits(kept: bool, end: tuple[float | None, float | None]) -> None:
    search = RateSearch(rate=3.0, lowest=0.5, highest=64.0)
    while (rate := search.next_rate()) is not None:
        search.tell(rate, kept=kept)
    assert (search.kept, search.missed) == end


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"rate": 0.0}, "--rate 0: a search cannot begin there"),
        ({"rate": 2.0, "highest": 1.0}, "--rate 2: a search cannot begin there"),
        ({"rate": 1.0, "precision": 0.0}, "--precision 0 is no share of the rate"),  # it would never end
        ({"rate": 1.0, "precision": 1.0}, "--precision 1 is no share of the rate"),
    ],
)
def test_a_search_that_cannot_be(wrong: dict[str, float], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        RateSearch(**wrong)


@pytest.mark.parametrize(
    ("p99_ms", "p50_ms", "agree"),
    [
        ([], None, False),
        ([50.0], 10.0, False),
        ([301.0], 101.0, True),
        ([299.0], 101.0, False),
        ([301.0], 99.0, False),  # one outlier makes a p99
        ([None], None, True),
        ([None], 10.0, False),
        ([50.0, 54.0], 10.0, True),
        ([50.0, 55.3], 10.0, False),
        ([90.0, 50.0, 54.0], 10.0, True),
        ([50.0, None], 10.0, False),
        ([50.0, None, None], 10.0, True),
    ],
)
def test_repeats_settle(p99_ms: list[float | None], p50_ms: float | None, agree: bool) -> None:
    assert settled(p99_ms, p50_ms, target_ms=100.0) is agree


@pytest.mark.parametrize(
    ("p99_ms", "settled_", "place"),
    [
        ([9.0], True, 0),
        ([400, 250, 170, 120, 125], True, 4),
        ([180, 96, 95], True, 1),
        ([400, 250, 170], False, 1),
        ([5.0], False, 0),
        ([1.0, 2.0], False, 1),
        ([2.0, 1.0], False, 0),
        ([None, 1.0, None], False, 0),
    ],
)
def test_of_repeats_that_agree_the_slower_stands_for_all_else_the_middle(
    p99_ms: list[float | None], settled_: bool, place: int
) -> None:
    assert decisive(p99_ms, settled=settled_) == place


def test_a_process_is_found_by_its_port_and_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        found = find_server(f"localhost:{listening.getsockname()[1]}")
        monkeypatch.setattr(processes, "_FORWARDERS", {psutil.Process().name()})
        assert find_server(f"localhost:{listening.getsockname()[1]}") is None  # the server is somewhere else
    assert found == psutil.Process(os.getpid())
    watch = ProcessWatch(server=found)
    assert watch.figures() is None
    watch.sample()
    watch.sample()
    figures_ = watch.figures()
    assert figures_ is not None
    assert figures_.processes >= 1
    assert figures_.cpu_s >= 0
    assert figures_.peak_rss_mb > 1


@pytest.mark.parametrize(
    ("address", "listening", "place"),
    [
        ("127.0.0.1:80", ["127.0.0.2", "127.0.0.1"], 1),
        ("127.0.0.1:80", ["127.0.0.2", "::ffff:127.0.0.1"], 1),
        ("127.0.0.1:80", ["0.0.0.0", "::ffff:127.0.0.1"], 1),
        ("127.0.0.1:80", ["127.0.0.2", "0.0.0.0"], 1),
        ("127.0.0.1:80", ["::1", "::"], 1),
        ("[::1]:80", ["0.0.0.0", "::1"], 1),
        ("[::1]:80", ["127.0.0.1", "::"], 1),
        ("localhost:80", ["127.0.0.2", "127.0.0.1"], 1),
        ("127.0.0.1:80", ["127.0.0.2", "::1"], None),
    ],
)
def test_of_two_servers_at_one_port_the_one_at_the_address_is_found(
    address: str, listening: list[str], place: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = [os.getppid(), os.getpid()]
    sockets = [
        SimpleNamespace(status=psutil.CONN_LISTEN, laddr=SimpleNamespace(ip=ip, port=80), pid=pid)
        for ip, pid in zip(listening, pids, strict=True)
    ]
    monkeypatch.setattr(psutil, "net_connections", lambda **_: sockets)
    assert find_server(address) == (None if place is None else psutil.Process(pids[place]))


@pytest.mark.parametrize("address", ["localhost:1", "unix:/tmp/socket", "192.0.2.1:8001", "no port"])
def test_a_server_elsewhere_is_not_watched(address: str) -> None:
    assert find_server(address) is None


def test_gpu_samples_are_summarised() -> None:
    watch = GpuWatch(samples=[[("A", "10", "100", "70.5")], [("A", "30", "300", "[N/A]")]])
    (gpu,) = watch.figures()
    assert (gpu.name, gpu.utilisation_percent, gpu.peak_memory_mb, gpu.power_w) == ("A", 20.0, 300.0, 70.5)
    assert GpuWatch().figures() == ()
    (part,) = GpuWatch(samples=[[("A", "[N/A]", "[N/A]", "70")]]).figures()  # of a GPU that is divided
    assert (part.utilisation_percent, part.peak_memory_mb, part.power_w) == (None, None, 70.0)
