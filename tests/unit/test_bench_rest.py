"""A server that still computes what a load left it with: waiting for it, and telling it from one that is dead."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from likeness_bench import repeated, rest
from likeness_bench import sweep as sweep_module
from likeness_bench.drive import Record
from likeness_bench.figures import LoadReport
from likeness_bench.load_config import LoadConfig
from likeness_bench.load_report import load_report
from likeness_bench.rest import come_to_rest, silence
from likeness_bench.steps import ModelCounters
from likeness_bench.sweep import SweepConfig, SweepReport, run_sweep
from likeness_bench.watching import Watch
from likeness_bench.workload import OperationKind
from likeness_client import DeadlineExceededError, LikenessError, ServerUnavailableError

LOAD = LoadConfig(address="here:1", rate=1000.0, duration_s=1.0, warm_up_s=0.0, timeout_s=0.5)
NO_TIME = dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 0)


def executed(times: int, each_s: float = 0.0) -> dict[str, ModelCounters]:
    """The counters of a server whose one model has been executed so often."""
    busy_ns = round(times * each_s * 1e9)
    found = ModelCounters(inferences=times, executions=times, failures=0, count=NO_TIME, ns=NO_TIME, busy_ns=busy_ns)
    return {"text_encoder": found}


class Overloaded:
    """Takes the place of a server that computes whatever it was sent, also what its callers have given up.

    Every look at its counters finds it a second later.

    Attributes:
        left: executions that are still to be done; until then, nothing new is answered.
        hangs: whether none is ever done.
        error: what it answers requests with.
        now_s: the clock.
    """

    CAPACITY = 20.0  # requests/s; from twice as much on, all of them come too late
    PER_LOOK = 50  # executions that are done from one look to the next

    def __init__(self) -> None:
        self.left, self.done, self.now_s = 0, 0, 0.0
        self.hangs = False
        self.error: LikenessError | None = None

    async def counters_of(self, _load: LoadConfig) -> dict[str, ModelCounters]:
        self.now_s += 1.0
        done = 0 if self.hangs else min(self.left, self.PER_LOOK)
        self.left -= done
        self.done += done
        return executed(self.done)

    async def ask(self, *_: Any) -> None:
        if self.error:
            raise self.error
        if self.left or self.hangs:
            self.left += 1
            raise DeadlineExceededError("no answer", "here:1", code="DEADLINE_EXCEEDED")

    async def run_load(self, *given: Any, stop: asyncio.Event, **_: Any) -> LoadReport:
        load: LoadConfig = given[1]
        assert load.rate is not None
        late = self.left > 0 or load.rate > self.CAPACITY
        lost = late and (self.left > 0 or load.rate > 2 * self.CAPACITY)
        if late:
            self.left += round(100 * load.rate)
        one = Record(
            scheduled_s=0.1,
            started_s=0.1,
            finished_s=0.2,
            products=1,
            repeated=False,
            worn=False,
            operation=OperationKind.EMBED,
            signature="text",
        )
        records = [one] * (0 if lost else 100) + [replace(one, error="DeadlineExceededError")] * (50 if late else 0)
        drive: Any = SimpleNamespace(config=load, records=records, stop=stop, elapsed_s=load.length_s, unfinished=0)
        return load_report(drive, Watch(config=load), "s", "now")


class Client:
    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Overloaded:
    server = Overloaded()
    monkeypatch.setattr(rest, "counters_of", server.counters_of)
    monkeypatch.setattr(rest, "open_client", lambda _: Client())
    monkeypatch.setattr(rest, "ask", server.ask)
    monkeypatch.setattr(rest, "time", SimpleNamespace(perf_counter=lambda: server.now_s))
    monkeypatch.setattr(rest, "_LOOK_S", 0.0)
    monkeypatch.setattr(sweep_module, "PAUSE_S", 0.001)
    return server


def rests(patience_s: float = 100.0, stopped: bool = False) -> bool:
    async def run() -> bool:
        stop = asyncio.Event()
        if stopped:
            stop.set()
        return await come_to_rest(LOAD, patience_s=patience_s, stop=stop)

    return asyncio.run(run())


def test_a_server_rests_when_it_has_done_what_it_was_left_with(server: Overloaded) -> None:
    assert rests()
    server.left = 1000
    assert rests()
    assert (server.left, server.done) == (0, 1000)


def test_whoever_waits_for_a_busy_server_has_patience_and_can_be_stopped(server: Overloaded) -> None:
    server.left = 10_000
    assert not rests(patience_s=10.0)
    assert not rests(stopped=True)
    assert server.left


def test_a_server_whose_executions_are_long_is_not_taken_for_one_that_rests(
    server: Overloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def counters_of(_load: LoadConfig) -> dict[str, ModelCounters]:
        server.now_s += 1.0
        return executed(min(int(server.now_s // 10), 5), each_s=10.0)

    monkeypatch.setattr(rest, "counters_of", counters_of)
    server.now_s = 10.0
    assert rests()
    assert server.now_s >= 5 * 10


def test_a_server_that_does_not_tell_its_counters_is_not_waited_for(
    server: Overloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def counters_of(_load: LoadConfig) -> None:
        server.now_s += 1.0

    monkeypatch.setattr(rest, "counters_of", counters_of)
    assert rests()


def silent() -> str:
    async def run() -> str:
        workload: Any = SimpleNamespace(requests=lambda _: iter([None]))
        return await silence(workload, LOAD, patience_s=100.0, stop=asyncio.Event())

    return asyncio.run(run())


def test_a_server_is_silent_when_it_neither_answers_nor_computes(server: Overloaded) -> None:
    assert silent() == ""
    server.left = 1000  # it is only slow
    assert silent() == ""
    server.hangs = True
    assert silent() == "no answer within 0.5 s, and nothing is computed"
    server.error = ServerUnavailableError("gone", "here:1", code="UNAVAILABLE")
    assert "gone" in silent()


def swept(server: Overloaded, rate: float, stop: asyncio.Event | None = None) -> SweepReport:
    async def run() -> SweepReport:
        workload: Any = SimpleNamespace(requests=lambda _: iter([None]))
        config = SweepConfig(load=replace(LOAD, rate=rate), target_ms=150.0, budget_s=10_000.0)
        return await run_sweep(workload, config, stop=stop or asyncio.Event(), run_once=server.run_load)

    return asyncio.run(run())


@pytest.mark.parametrize("rate", [10.0, 60.0, 100.0])
def test_a_sweep_finds_the_rate_from_above_the_capacity(rate: float, server: Overloaded) -> None:
    found = swept(server, rate)
    assert found.complete, found.ended
    assert found.best_rate == pytest.approx(20, rel=0.06)
    assert "found between" in found.ended


def test_a_load_is_repeated_on_a_server_that_rests(server: Overloaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "time", SimpleNamespace(perf_counter=lambda: server.now_s))
    found: list[int] = []

    async def run_once(*given: Any, stop: asyncio.Event, **more: Any) -> LoadReport:
        found.append(server.left)
        server.now_s += LOAD.length_s
        return await server.run_load(*given, stop=stop, **more)

    workload: Any = SimpleNamespace(requests=lambda _: iter([None]))
    load = replace(LOAD, rate=30.0)
    run = repeated.run_repeated(workload, load, budget_s=500.0, stop=asyncio.Event(), run_once=run_once)
    assert not asyncio.run(run).settled
    assert len(found) > 1
    assert set(found) == {0}


def test_a_sweep_on_a_server_that_hangs_ends(server: Overloaded) -> None:
    server.hangs = True
    found = swept(server, 100.0)
    assert not found.complete
    assert "nothing was answered, nor one request after it (no answer within 0.5 s, and nothing is" in found.ended


def test_a_sweep_on_a_server_that_never_rests_says_so(server: Overloaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "left", 1_000_000)  # others use it, too
    found = swept(server, 100.0)
    assert not found.complete
    assert "the server did not come to rest" in found.ended
    assert [step.rate for step in found.steps] == [100.0]
