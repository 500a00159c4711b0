"""What a comparison with the ceiling is made of, without a server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf import text_format
from likeness_bench import beside, ceiling, ceiling_search
from likeness_bench.ceiling import CeilingConfig, run_ceiling
from likeness_bench.ceiling_process import CeilingError, CeilingProcess, Item, Measured, batches
from likeness_bench.ceiling_report import Case, CeilingReport, Round, Spread, Trial, doubts, medians
from likeness_bench.ceiling_search import Ceiling
from likeness_bench.ceiling_tables import saturated_tables
from likeness_bench.compare import compare_reports
from likeness_bench.configs import cpu_threads_of
from likeness_bench.drive import Drive, Record
from likeness_bench.figures import LoadReport
from likeness_bench.files import write_json
from likeness_bench.in_process import InProcessPipeline, Threads, uses_of
from likeness_bench.load_config import LoadConfig
from likeness_bench.load_report import OTHER_SPACE, load_report
from likeness_bench.output import deliver_ceiling
from likeness_bench.recall import Recall
from likeness_bench.view import UNSEEN, View
from likeness_bench.watching import Watch
from likeness_bench.workload import OperationKind, Workload, WorkloadConfig
from likeness_client import InputError, InputSchema, Product, ServerInfo
from likeness_export.repository.adapters import lengths
from tritonclient.grpc import model_config_pb2

INFO = ServerInfo(
    space="s",
    modalities=("text",),
    signatures=("text",),
    dimension=4,
    max_batch_size=8,
    schema=InputSchema(),
    error_outputs={},
)
ROUND = Round(
    ceiling_products_per_s=100.0,
    served_products_per_s=80.0,
    throughput_ratio=0.8,
    alone_p50_ms=10.0,
    served_p50_ms=15.0,
    latency_ratio=1.5,
    half_rate=40.0,
    half_p50_ms=16.0,
    half_p99_ms=32.0,
    half_tail=2.0,
    half_requests=200,
    errors={},
    harness_late_ms=1.0,
)
TRIAL = Trial(threads=Threads(intra_op=2), batch_size=8, products_per_s=100.0, p50_ms=80.0)
CASE = Case(
    name="text",
    tried=(TRIAL, replace(TRIAL, batch_size=1)),
    best=TRIAL,
    alone=replace(TRIAL, batch_size=1),
    largest_difference=1e-7,
    recall=Recall(at_1=0.75, queries=40, gallery=50),
    rounds=(ROUND, replace(ROUND, throughput_ratio=0.9), replace(ROUND, throughput_ratio=0.5, served_p50_ms=None)),
)


def items(signature: str, lengths: Sequence[int]) -> list[Item]:
    return [Item(signature, (b"x" * length,)) for length in lengths]


def test_the_ceiling_was_tried_twice_and_a_single_product_is_computed_by_one_worker() -> None:
    ways = [(1, 8, 100.0, 80.0), (2, 8, 90.0, 80.0), (1, 1, 80.0, 12.0), (2, 1, 120.0, 5.0), (1, 1, 70.0, 14.0)]
    tried = [
        replace(TRIAL, threads=Threads(workers=workers), batch_size=size, products_per_s=per_s, p50_ms=p50)
        for workers, size, per_s, p50 in ways
    ]
    ceiling = Ceiling(process=cast(Any, None), repository=Path(), trial_s=1.0, stop=asyncio.Event(), view=UNSEEN)
    ceiling.tried = tried
    assert (ceiling.best, ceiling.alone) == (tried[0], tried[2])


def test_batches_are_full_of_one_signature_and_of_like_length() -> None:
    rng = np.random.default_rng(0)
    given = items("text", rng.integers(1, 1000, 300).tolist()) + items("image", rng.integers(1, 1000, 100).tolist())
    rng.shuffle(given)
    found = list(islice(batches(given, 8), 400))
    assert {len(batch) for batch in found} == {8}
    assert all(len({item.signature for item in batch}) == 1 for batch in found)
    spans = [max(len(i.parts[0]) for i in batch) - min(len(i.parts[0]) for i in batch) for batch in found]
    assert np.mean(spans) < 500  # at random it would be near 780
    drawn = Counter(id(item) for batch in found for item in batch)
    assert len(drawn) == 400
    assert max(drawn.values()) - min(drawn.values()) <= 2  # nothing is left over for good


def test_a_rare_signature_has_its_turn_too() -> None:
    found = islice(batches(items("text", [5] * 20) + items("image", [5]), 8), 200)
    assert {batch[0].signature for batch in found} == {"text", "image"}


def test_the_one_process_leaves_the_end_to_who_asks_from_its_first_moment_on(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    async def run() -> None:
        async with CeilingProcess(tmp_path) as process:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(process._process.pid or 0, number)
            await process.take([])

    asyncio.run(asyncio.wait_for(run(), 60))
    assert signal.getsignal(signal.SIGINT) == before


SESSION = """
import numpy as np

class Session:
    def run(self, wanted, inputs):
        rows, columns = inputs["x"].shape
        return [np.full((rows, 1), 100 * rows + columns)]

def open_session(path, threads, spinning):
    return Session()
"""


def network(folder: Path, name: str, **parameters: str) -> None:
    """Write a model whose network answers every row with the shape of what it was run with."""
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "configs").mkdir()
    (folder / name / "1" / "model.onnx").touch()
    (folder / name / "1" / "session.py").write_text(SESSION, encoding="utf-8")
    (folder / name / "1" / "lengths.py").write_bytes(Path(lengths.__file__).read_bytes())
    config = model_config_pb2.ModelConfig(name=name)
    config.input.add(name="x", dims=[-1])
    config.output.add(name="shape", dims=[1])
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    for path in ("config.pbtxt", "configs/cpu.pbtxt"):
        (folder / name / path).write_text(text_format.MessageToString(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("parameters", "shapes"),
    [
        ({}, [409, 409, 409, 409]),
        ({"run_rows": "3"}, [309, 309, 309, 109]),
        ({"run_tokens": "2"}, [202, 208, 202, 208]),  # like lengths together, without padding that no row of them needs
    ],
)
def test_networks_run_as_the_server_runs_them_with_one_thread(
    parameters: dict[str, str], shapes: list[int], tmp_path: Path
) -> None:
    network(tmp_path, "text_encoder", cpu_threads="1", **parameters)
    given = (np.arange(9) < np.array([[2], [8], [1], [7]])).astype(np.int64)
    step = InProcessPipeline(tmp_path, Threads())._step("text_encoder", 1)
    assert step({"x": given})["shape"].ravel().tolist() == shapes


def test_the_threads_of_the_server_are_those_of_its_encoders(tmp_path: Path) -> None:
    network(tmp_path, "text_encoder", cpu_threads="1")
    network(tmp_path, "fusion_text_image", cpu_threads="2")
    assert cpu_threads_of(tmp_path) == 1


@pytest.mark.parametrize(("cores", "cpu_threads", "count"), [(1, 1, 1), (2, 2, 3), (8, 2, 5), (4, 1, 4)])
def test_uses_of_the_cores(cores: int, cpu_threads: int, count: int) -> None:
    uses = uses_of(cores, cpu_threads)
    assert len(set(uses)) == len(uses) == count
    assert {use.intra_op for use in uses if use.workers == 1} == {cores, cpu_threads}
    assert cores == 1 or Threads(workers=cores) in uses


def test_a_repository_that_is_none_is_named(tmp_path: Path) -> None:
    async def run() -> None:
        async with CeilingProcess(tmp_path) as process:
            await process.embed([Item("text", (b"a vase",))])

    with pytest.raises(InputError, match=r"embed_text.config\.pbtxt.*likeness export"):
        asyncio.run(asyncio.wait_for(run(), 60))


def test_a_process_that_ends_is_an_error(tmp_path: Path) -> None:
    async def run() -> None:
        async with CeilingProcess(tmp_path) as process:
            process._process.kill()
            await process.take([])
            await process.embed([])

    with pytest.raises(CeilingError, match="ended with code -9"):
        asyncio.run(asyncio.wait_for(run(), 60))


def test_spreads_leave_out_what_there_is_not() -> None:
    assert Spread.of([3.0, 1.0]) == Spread(median=2.0, min=1.0, max=3.0)
    assert Spread.of([]) is None
    assert CASE.spread("throughput_ratio") == Spread(median=0.8, min=0.5, max=0.9)
    assert CASE.spread("served_p50_ms") == Spread(median=15.0, min=15.0, max=15.0)


def test_a_tail_that_failures_made_infinite_counts_and_one_of_few_requests_does_not() -> None:
    infinite, few = replace(ROUND, half_tail=None), replace(ROUND, half_tail=None, half_requests=99)
    assert replace(CASE, rounds=(ROUND, infinite, infinite)).spread("half_tail") == Spread(
        median=None, min=2.0, max=None
    )
    assert replace(CASE, rounds=(ROUND, few, few)).spread("half_tail") == Spread(median=2.0, min=2.0, max=2.0)
    assert replace(CASE, rounds=(few,)).spread("half_tail") is None


def test_a_server_that_answers_nothing_makes_a_round_too() -> None:
    config = LoadConfig(address="here:1", concurrency=2, duration_s=1.0, warm_up_s=0.0)
    drive = Drive(config=config, requests=iter(()), ask=None, stop=asyncio.Event())  # type: ignore[arg-type]
    nothing = load_report(drive, Watch(config=config), INFO.space, "now")
    assert nothing.latency is None
    found = Round.of(100.0, 10.0, nothing, nothing, None)
    assert (found.throughput_ratio, found.latency_ratio, found.half_rate, found.half_tail) == (0.0, None, None, None)


class FakeProcess:
    """Computes nothing; fails when it has measured so often."""

    def __init__(self, most: int) -> None:
        self.left = most

    async def __aenter__(self) -> FakeProcess:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def take(self, _: Sequence[Item]) -> None:
        pass

    async def embed(self, given: Sequence[Item]) -> Any:
        return np.zeros((len(given), 4))

    async def measure(self, *_: Any) -> Measured:
        self.left -= 1
        if self.left < 0:
            raise CeilingError("out of memory")
        return Measured(products_per_s=100.0, batch_s=(0.01,))


class FakeClient:
    async def __aenter__(self) -> FakeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def info(self) -> ServerInfo:
        return INFO

    async def embed(self, products: Sequence[Product], **_: Any) -> Any:
        return SimpleNamespace(vectors=np.zeros((len(products), 4)))


def fake_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """One way is tried, twice, beside a server of the same space."""
    for name, fake in (
        ("open_client", lambda _: FakeClient()),
        ("space_of", lambda _: INFO.space),
        ("uses_of", lambda *_: [Threads()]),
        ("BATCH_SIZES", (1,)),
    ):
        monkeypatch.setattr(ceiling_search, name, fake)


class Stopping(View):
    """Stops what it is told of, once that is said."""

    def __init__(self, stop: asyncio.Event, at: str) -> None:
        self.stop, self.at = stop, at

    def say(self, text: str) -> None:
        if self.at in text:
            self.stop.set()


def compared(
    monkeypatch: pytest.MonkeyPatch, *, most: int = 1000, dies_at: int = 1000, stop_at: str = "never"
) -> tuple[CeilingReport, list[LoadConfig]]:
    """Compare two cases of two rounds; a case measures twice in its trials, and twice in a round."""
    loads: list[LoadConfig] = []
    stop = asyncio.Event()

    async def run_load(*given: Any, **_: Any) -> LoadReport:
        config: LoadConfig = given[1]
        loads.append(config)
        drive = Drive(config=config, requests=iter(()), ask=None, stop=stop)  # type: ignore[arg-type]
        drive.elapsed_s = config.length_s
        error = "" if len(loads) <= dies_at else "ServerUnavailableError"
        times = np.linspace(0, 0.9, 20).tolist()
        drive.records = [
            Record(
                scheduled_s=at_s,
                started_s=at_s,
                finished_s=at_s + 0.01,
                products=1,
                repeated=False,
                worn=False,
                operation=OperationKind.EMBED,
                signature="text",
                error=error,
                message=error and "it is gone",
            )
            for at_s in times
        ]
        return load_report(drive, Watch(config=config), INFO.space, "now")

    fake_ceiling(monkeypatch)
    for name, fake in (
        ("run_load", run_load),
        ("open_client", lambda _: FakeClient()),
        ("CeilingProcess", lambda _: FakeProcess(most)),
    ):
        monkeypatch.setattr(ceiling, name, fake)
    load = LoadConfig(address="here:1", concurrency=2, duration_s=1.0, warm_up_s=0.0)
    config = CeilingConfig(load=load, repository=Path("nowhere"), cases={"first": {}, "second": {}}, rounds=2)
    products = [Product(title=str(number)) for number in range(9)]
    return asyncio.run(run_ceiling(products, config, stop=stop, view=Stopping(stop, stop_at))), loads


def test_a_failure_ends_one_case_and_keeps_the_rounds_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = compared(monkeypatch, most=6 + 4)
    assert report.ended == "failed"
    assert [(case.name, len(case.rounds)) for case in report.cases] == [("first", 2), ("second", 1)]
    assert report.failures == {"second": "out of memory"}
    assert "second: it ended after 1 round: out of memory" in report.notes


def test_a_server_that_answers_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = compared(monkeypatch, dies_at=0)
    assert report.cases == ()
    assert report.failures["first"] == "the server answered nothing in round 1 (it is gone)"


def test_nothing_begins_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    report, loads = compared(monkeypatch, stop_at="first, round 2 of 2: load")
    assert report.ended == "interrupted"
    assert [(case.name, len(case.rounds)) for case in report.cases] == [("first", 1)]
    assert len(loads) == 4


def test_a_turn_at_half_load_is_long_enough_for_a_p99(monkeypatch: pytest.MonkeyPatch) -> None:
    report, loads = compared(monkeypatch)
    assert report.ended == "complete"
    half = loads[2]
    assert loads[0].duration_s == pytest.approx(1.3)  # 100 requests at the ceiling's rate, and some more
    assert half.rate is not None
    assert half.rate == pytest.approx(20 / 1.3 / 2)
    assert half.duration_s == pytest.approx(1.3 * 100 / half.rate)
    assert report.cases[0].load is not None
    assert report.cases[0].load.requests == 20
    assert saturated_tables(report)[0].title.startswith("first, the last load: embed x 1")


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_round_in_which_the_server_dies_does_not_count(monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    report, _ = compared(monkeypatch, dies_at=3 + turn - 1)
    assert [(case.name, len(case.rounds)) for case in report.cases] == [("first", 1)]
    assert report.failures["first"] == "the server answered nothing in round 2 (it is gone)"


def run_beside(
    monkeypatch: pytest.MonkeyPatch, *, most: int = 1000, stop_at: str = "never", runs: int = 3, **work: Any
) -> tuple[list[LoadReport], list[str]]:
    """Run a load with its ceiling beside it; the one process measures twice before the first run."""
    turns: list[str] = []
    stop = asyncio.Event()

    async def run_load(*given: Any, **_: Any) -> LoadReport:
        turns.append("load")
        config: LoadConfig = given[1]
        drive = Drive(config=config, requests=iter(()), ask=None, stop=stop)  # type: ignore[arg-type]
        return replace(load_report(drive, Watch(config=config), INFO.space, "now"), products_per_s=80.0)

    class Told(FakeProcess):
        async def measure(self, *given: Any) -> Measured:
            turns.append(f"ceiling {given[2]:g} + {given[3]:g} s")
            return await super().measure(*given)

    fake_ceiling(monkeypatch)
    monkeypatch.setattr(beside, "run_load", run_load)
    monkeypatch.setattr(beside, "CeilingProcess", lambda _: Told(most))
    config = LoadConfig(address="here:1", rate=5.0, duration_s=8.0, workload=WorkloadConfig(**work))
    workload = Workload([Product(title=str(number)) for number in range(9)], INFO, config.workload)

    async def run() -> list[LoadReport]:
        view = Stopping(stop, stop_at)
        async with beside.ceiling_beside(workload, config, Path("nowhere"), stop=stop, view=view) as run_once:
            return [await run_once(workload, config, stop=stop, view=view) for _ in range(runs)]

    return asyncio.run(run()), turns


def test_every_run_has_a_turn_at_the_ceiling_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reports, turns = run_beside(monkeypatch)
    assert turns[2:] == ["ceiling 0.5 + 2 s", "load"] * 3
    for report in reports:
        assert report.ceiling is not None
        assert (report.ceiling.products_per_s, report.ceiling.throughput_ratio) == (100.0, 0.8)
        assert report.ceiling.largest_difference == 0
        assert any("wherever they run" in note for note in report.notes)  # no server is seen from here


def test_a_process_that_fails_between_the_runs_leaves_the_load_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    reports, turns = run_beside(monkeypatch, most=3)
    assert [report.ceiling is not None for report in reports] == [True, False, False]
    assert all("no ceiling beside this run: out of memory" in report.notes for report in reports[1:])
    assert turns.count("load") == 3
    assert len(turns) == 2 + 2 + 2 + 1  # a process that is gone is not asked again


def test_a_process_that_fails_before_the_first_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CeilingError, match="out of memory"):
        run_beside(monkeypatch, most=1)


def test_a_stopped_search_leaves_runs_without_a_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    reports, turns = run_beside(monkeypatch, stop_at="same embeddings", runs=1)
    assert (reports[0].ceiling, turns) == (None, ["load"])


def test_there_is_no_ceiling_of_comparing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not of similarity: ask for embed only, or give no --repository"):
        run_beside(monkeypatch, operation={OperationKind.EMBED: 0.5, OperationKind.SIMILARITY: 0.5})


MOVED: Any = SimpleNamespace(notes=(OTHER_SPACE,), gpus=(), server="seen")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (CASE, ""),
        (replace(CASE, largest_difference=0.01), "not do the same work"),
        (replace(CASE, largest_difference=float("nan")), "not do the same work"),
        (replace(CASE, rounds=(replace(ROUND, errors={"A": 2, "B": 1}),)), "3 requests failed (2 A, 1 B)"),
        (replace(CASE, rounds=(replace(ROUND, harness_late_ms=9.0),)), "harness itself was late"),
        (replace(CASE, rounds=(replace(ROUND, half_requests=20),)), "p99 is the maximum"),
        (replace(CASE, load=MOVED), "the server serves another space"),
    ],
)
def test_notes_of_a_comparison(case: Case, said: str) -> None:
    notes = list(doubts([case], {}, stopped=False))
    assert [said in note for note in notes] == ([True] if said else [])
    assert "interrupted" in next(doubts([case], {}, stopped=True))


def report_of(cases: tuple[Case, ...]) -> CeilingReport:
    return CeilingReport(
        made_at="now",
        load=asdict(LoadConfig(address="here:1", concurrency=16)),
        repository="r",
        space="s",
        cores=2,
        cpu_threads=2,
        label="group, split val",
        ended="complete",
        cases=cases,
        medians=medians(cases),
        notes=("a note",),
    )


@pytest.mark.parametrize("cases", [(CASE,), (CASE, replace(CASE, name="image", recall=None))])
def test_a_comparison_in_all_forms(cases: tuple[Case, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver_ceiling(report_of(cases), tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["format"] == "likeness-ceiling-1"
    text = (tmp_path / "c.md").read_text()
    assert text.count("tried in one process") == len(cases)
    assert ("| medians | text | image |" in text) == (len(cases) == 2)
    assert (tmp_path / "c.html").read_text().count("<img ") == len(cases)
    assert data["medians"]["text"]["throughput_ratio"]["median"] == 0.8
    assert "| served / ceiling | 0.800 | 0.500 | 0.900 |" in text
    assert "40 queries among 50 products" in text
    assert "batches of 8" in capsys.readouterr().out
    assert "| largest difference of an embedding | 1e-07 |" in text
    deliver_ceiling(report_of((replace(CASE, largest_difference=0.0),)), tmp_path / "c.json")
    assert "| largest difference of an embedding | 0 |" in (tmp_path / "c.md").read_text()


def test_a_comparison_without_a_round_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver_ceiling(report_of(()), tmp_path / "c.json")
    assert "nothing was measured" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def written(path: Path, *cases: Case, **changes: Any) -> Path:
    write_json(path, asdict(replace(report_of(cases), **changes)))
    return path


def test_ceilings_are_compared_case_by_case(tmp_path: Path) -> None:
    faster = tuple(replace(round_, served_products_per_s=120.0, throughput_ratio=0.96) for round_ in CASE.rounds[:2])
    worse = replace(CASE, rounds=faster, recall=Recall(at_1=0.6, queries=40, gallery=50))
    first = written(tmp_path / "a.json", replace(CASE, name="image"), CASE)
    second = written(tmp_path / "b.json", worse, repository="other", space="t", cores=4, label="kind, split val")
    found = compare_reports(first, second)
    table, notes = found.table(), found.notes
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["text: served products/s"] == ("80.00", "120.00", "1.500")
    assert rows["text: served / ceiling"] == ("0.800", "0.960", "1.200")
    assert rows["text: recall@1"] == ("0.750", "0.600", "0.800")
    assert not any(name.startswith("image") for name in rows)
    said = "\n".join(notes)
    for expected in (
        "the rounds of text differ: 3 | 2",
        "only the first has image",
        "the repositories differ: r | other",
        "the numbers of cores differ: 2 | 4",
        "different embedding spaces",
        "recall was measured on different things",
        "second: a note",
    ):
        assert expected in said
    assert "the loads differ" not in said


def test_reports_that_were_made_earlier_can_be_compared() -> None:
    speed = Path(__file__).parents[2] / "benchmarks" / "results" / "speed"
    table = compare_reports(speed / "ceiling.json", speed / "ceiling-16x1.json").table()
    assert any(row[0] == "text: served / ceiling" and row[3] != "-" for row in table.rows)


def test_ceilings_without_a_case_in_common_are_refused(tmp_path: Path) -> None:
    first = written(tmp_path / "a.json", CASE)
    with pytest.raises(InputError, match=r"no signature in common, the one has text, the other image.*--signature"):
        compare_reports(first, written(tmp_path / "b.json", replace(CASE, name="image")))
    with pytest.raises(InputError, match="the other nothing"):
        compare_reports(first, written(tmp_path / "c.json"))
    write_json(tmp_path / "load.json", {"format": "likeness-load-1"})
    with pytest.raises(InputError, match="of two kinds, a ceiling and a load"):
        compare_reports(first, tmp_path / "load.json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"trial_s": 0.0},
        {"trial_s": float("inf")},
        {"cases": {}},
        {"load": LoadConfig(address="a:1", rate=1.0)},
    ],
)
def test_comparisons_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        CeilingConfig(**{"load": LoadConfig(address="a:1", concurrency=1), "repository": Path(), **wrong})


def test_a_ceiling_of_anything_but_embedding_is_refused() -> None:
    work = WorkloadConfig(operation={OperationKind.EMBED: 0.9, OperationKind.SIMILARITY: 0.1})
    with pytest.raises(InputError, match="one of embedding, not of similarity: ask for embed only"):
        CeilingConfig(load=LoadConfig(address="a:1", concurrency=1, workload=work), repository=Path())
