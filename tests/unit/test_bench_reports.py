"""Reports in all their forms, from made-up figures."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from likeness_bench import cli, options, plots, processes
from likeness_bench import repeated as repeated_module
from likeness_bench import sweep as sweep_module
from likeness_bench.compare import compare_reports
from likeness_bench.drive import NOT_SENT, Drive, Record
from likeness_bench.figures import CeilingTurn, ErrorRow, LoadReport, RunFigures
from likeness_bench.files import check_out, write_json
from likeness_bench.in_process import Threads
from likeness_bench.load_config import LoadConfig
from likeness_bench.load_report import OTHER_SPACE, load_report
from likeness_bench.load_tables import load_tables
from likeness_bench.output import deliver, deliver_load, deliver_sweep
from likeness_bench.recall import Recall
from likeness_bench.repeated import run_repeated
from likeness_bench.sources import SourceConfig, Span
from likeness_bench.steps import ModelCounters, StepTime
from likeness_bench.sweep import RateStep, SweepConfig, SweepReport, run_sweep
from likeness_bench.sweep_tables import sweep_notes, sweep_tables
from likeness_bench.tables import Table, html, markdown, print_tables
from likeness_bench.view import View
from likeness_bench.watching import Watch
from likeness_bench.workload import OperationKind
from likeness_client import InputError
from typer.testing import CliRunner


def report_of(records: list[Record], stopped: bool = False, cpu_s: float = 0.0, **load: Any) -> LoadReport:
    """A report of these records, on a server that nothing else is known of."""

    config = LoadConfig(address="here:1", **{"rate": 10.0, "duration_s": 10.0, "warm_up_s": 2.0, **load})
    stop = asyncio.Event()
    if stopped:
        stop.set()
    drive = Drive(config=config, requests=iter(()), ask=None, stop=stop)  # type: ignore[arg-type]
    drive.records, drive.elapsed_s = records, config.length_s
    return load_report(drive, Watch(config=config, cpu_s=cpu_s), "s", "2026-01-01T00:00:00+00:00")


def record(due_s: float, took_s: float, error: str = "") -> Record:
    return Record(
        scheduled_s=due_s,
        started_s=due_s,
        finished_s=due_s + took_s,
        products=2,
        repeated=False,
        worn=False,
        operation=OperationKind.EMBED,
        signature="text",
        error=error,
        message=error and "a | bar\nand a line",
    )


@pytest.fixture
def report() -> LoadReport:
    """100 requests on time, and one that failed."""
    return report_of([*(record(2 + number / 10, 0.05) for number in range(99)), record(11.95, 0.01, "ServerError")])


def test_a_report_that_cannot_be_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").mkdir()
    with pytest.raises(InputError, match=r"r\.json: it is a folder"):
        check_out(tmp_path / "r.json")
    with pytest.raises(InputError, match=r"cannot write .*r\.json"):
        deliver_load(report_of([record(3.0, 0.1)]), tmp_path / "r.json")
    assert "products/s" in capsys.readouterr().out


def test_the_warm_up_is_dropped_and_throughput_counts_what_was_answered_in_time() -> None:
    found = report_of([record(0.5, 0.1), record(1.9, 0.2), record(5.0, 0.1), record(11.9, 3.0), record(6.0, 0.1, "E")])
    assert found.requests == 3  # those that were due in the measured time
    assert found.latency is not None
    assert found.latency.count == 2
    assert found.latency.max_ms == pytest.approx(3000)  # the late one is not lost
    assert found.requests_per_s == pytest.approx(2 / 10)  # answered in it, whenever they were due
    assert found.products_per_s == pytest.approx(4 / 10)
    assert [row.kind for row in found.errors] == ["E"]
    for parts in (found.by_operation, found.by_signature, found.by_products):
        assert [part.count for part in parts.values()] == [2]


def test_requests_that_were_to_repeat_are_not_taken_for_products_that_ran_out() -> None:
    asked, worn = replace(record(3.0, 0.1), repeated=True), replace(record(4.0, 0.1), repeated=True, worn=True)
    found = report_of([asked])
    assert (found.repeated_share, found.worn_share) == (1.0, 0.0)
    assert not any("ran out" in note for note in found.notes)
    found = report_of([asked, worn])
    assert (found.repeated_share, found.worn_share) == (1.0, 0.5)
    assert any("the products ran out: 50 % of the requests" in note for note in found.notes)


def test_a_harness_that_is_seldom_late_is_noted() -> None:
    due = [record(3 + number / 100, 0.1) for number in range(100)]
    late = [replace(one, started_s=one.scheduled_s + 0.02) for one in due]
    runs = [late[:count] + due[count:] for count in (0, 1, 2)]
    found = [any("itself was late" in note for note in report_of(records).notes) for records in runs]
    assert found == [False, False, True]  # one of a hundred is not its p99


def counted(total_ms: float, calls: int = 120) -> LoadReport:
    """Of a server that answered so many calls in 2 to 12 s, each within this time in the mean."""
    warm_up = [record(0.5, 0.5) for _ in range(200)]
    before_it = [record(1.0, 3.0) for _ in range(20)]
    after_it = [record(9.0, 5.0) for _ in range(30)]
    config = LoadConfig(address="here:1", concurrency=50, duration_s=10.0, warm_up_s=2.0)
    drive = Drive(config=config, requests=iter(()), ask=None, stop=asyncio.Event())  # type: ignore[arg-type]
    within_it = [*(replace(record(5.0, 0.1), scheduled_s=4.0) for _ in range(100)), record(6.0, 1.0, "ServerError")]
    late = [record(1.4, 0.5), record(0.5, 0.5, "DeadlineExceededError")]  # which the server may yet count
    unsent = [record(6.0, 0.0, NOT_SENT) for _ in range(50)]
    drive.records = [*warm_up, *late, *before_it, *within_it, *after_it, *unsent]
    drive.elapsed_s = 12.0
    parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    idle = ModelCounters(
        inferences=0, executions=0, failures=0, count=dict.fromkeys(parts, 0), ns=dict.fromkeys(parts, 0)
    )
    ns = dict.fromkeys(parts, round(calls * total_ms * 1e6))
    busy = replace(idle, inferences=calls, executions=calls, count=dict.fromkeys(parts, calls), ns=ns)
    before, after = ({"embed_text": one, "encode_text": one} for one in (idle, busy))  # an ensemble and a step of it
    watch = Watch(config=config, before=before, before_s=2.0, after=after, after_s=12.0)
    return load_report(drive, watch, "s", "now")


def outside_ms(total_ms: float, calls: int = 120) -> float | None:
    """The mean time outside such a server."""
    return counted(total_ms, calls).outside_server_ms


def test_the_time_outside_the_server_is_of_the_requests_that_its_statistics_count() -> None:
    answered_ms = (20 * 3000 + 100 * 100) / 120  # whenever they were due
    assert outside_ms(answered_ms - 2) == pytest.approx(2)
    assert outside_ms(answered_ms + 0.1) is None  # below 0
    assert outside_ms(answered_ms - 2, calls=240) is None  # others ask this server, too


def test_a_server_that_also_worked_for_others_is_noted() -> None:
    def said(calls: int) -> bool:
        return any("worked for another load" in note for note in counted(1.0, calls).notes)

    # 153 requests of two products may have been embedded after the warm-up: 336.6 are not many more.
    assert [said(calls) for calls in (120, 336, 337)] == [False, False, True]


def test_a_run_without_answers_is_a_report_too(tmp_path: Path) -> None:
    deliver_load(report_of([record(3.0, 0.1, "ServerUnavailableError")]), tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["latency"] is None


def test_a_load_in_which_nothing_was_due_says_so() -> None:
    said = "no request was due in the 10 s that were measured; use longer runs"
    assert report_of([record(0.5, 0.1)]).notes == (said,)
    assert said not in report_of([record(0.5, 0.1)], stopped=True).notes


def test_a_server_that_falls_behind_is_noted() -> None:
    growing = [record(2 + number / 20, number / 100) for number in range(200)]
    assert any("does not keep up" in note for note in report_of(growing, rate=20.0).notes)
    assert sum("by chance" in note for note in report_of(growing, rate=20.0).notes) == 1
    many = [record(2 + number / 200, number / 1000) for number in range(2000)]
    failing = [*growing, record(11.9, 0.1, "ServerError")]
    for others in (many, failing):  # a queue that does not grow would not look so
        (said,) = (note for note in report_of(others, rate=200.0).notes if "does not keep up" in note)
        assert "by chance" not in said
    slow = [record(2 + number / 20, 5.0) for number in range(200)]  # half of it is under way at the end
    assert not any("does not keep up" in note for note in report_of(slow, rate=20.0).notes)
    assert not any("does not keep up" in note for note in report_of(growing, rate=None, concurrency=2).notes)


def test_a_harness_that_falls_behind_does_not_put_it_on_the_server() -> None:
    growing = [record(2 + number / 20, number / 100) for number in range(200)]
    late = [replace(one, started_s=one.finished_s - 0.001) for one in growing]
    unsent = [replace(one, error=NOT_SENT) if place % 2 else one for place, one in enumerate(growing)]
    for records, percent in ((late, "83.3"), (unsent, "50")):
        (said,) = (note for note in report_of(records, rate=20.0).notes if note.startswith("answered"))
        assert f"the harness itself could send only {percent} % of them in time" in said
        assert "the server" not in said


def test_a_harness_that_is_the_limit_is_noted() -> None:
    found = [any("used a whole core" in note for note in report_of([], cpu_s=used_s).notes) for used_s in (8.9, 9.1)]
    assert found == [False, True]


def test_notes_say_what_stands_in_the_way() -> None:
    slow = [replace(record(2 + number / 100, 0.1), started_s=3 + number / 100) for number in range(200)]
    notes = " ".join(report_of(slow, stopped=True).notes)
    assert "interrupted after 10.0 s" in notes
    assert "the harness itself was late" in notes
    assert "200 requests: p99.9 is little more than the maximum" in notes
    assert "50 requests: below 100, p99 is the maximum" in report_of(slow[:50]).notes


def test_a_load_report_in_all_forms(report: LoadReport, tmp_path: Path) -> None:
    deliver_load(report, tmp_path / "deep" / "r.json")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["r.html", "r.json", "r.md"]
    assert json.loads((tmp_path / "deep" / "r.json").read_text())["errors"][0]["kind"] == "ServerError"
    assert r"a \| bar and a line" in (tmp_path / "deep" / "r.md").read_text()
    check_page((tmp_path / "deep" / "r.html").read_text(), count=2)


def test_axes_are_read_without_powers_of_ten(tmp_path: Path) -> None:
    for took_s, marks in ((0.0002, ("0.2", "0.5")), (0.010, ("10", "20")), (30.0, ("30000", "50000"))):
        deliver_load(report_of([record(2 + n / 10, took_s * (1 + n / 50)) for n in range(100)]), tmp_path / "r.json")
        drawn = "".join(plots_of((tmp_path / "r.html").read_text()).values())
        assert all(f"<!-- {mark} -->" in drawn for mark in marks)  # how text stands in the SVG, beside its outline
        assert not re.search(r"<!-- [0-9.]+e", drawn)


@pytest.mark.parametrize("rounds", [1, 3, 40])
def test_the_highest_mark_is_not_at_the_edge(rounds: int) -> None:
    _, axes = plots._axes()
    axes.plot(range(1, rounds + 1), [100.0] * rounds, "o")
    plots._from_zero(axes)
    assert axes.get_ylim() == (0, 105)
    assert all(tick == int(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize(
    ("failures", "shown"), [([], "100.0"), ([record(3.0, 0.1, "E")], "infinite"), ([record(0.0, 0.1, "E")], "100.0")]
)
def test_one_load_tells_the_p99_with_failures(failures: list[Record], shown: str) -> None:
    summary, *_ = load_tables(report_of([record(3.0, 0.1), *failures]))
    assert ("p99 ms with failures", shown) in summary.rows


def test_recall_stands_in_the_table_of_the_load(report: LoadReport, tmp_path: Path) -> None:
    recall = {"text": Recall(at_1=0.75, queries=40, gallery=50), "image": Recall(at_1=0.0, queries=0, gallery=0)}
    deliver_load(replace(report, label="group, split val", recall=recall), tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["recall"]["text"]["at_1"] == 0.75
    for form in ("md", "html"):
        text = (tmp_path / f"r.{form}").read_text()
        assert "recall@1 of text: group, split val (40 queries among 50 products)" in text
        assert "recall@1 of image" in text
    assert "(40 queries among 50 products) | 0.750 |" in (tmp_path / "r.md").read_text()
    deliver_load(report, tmp_path / "without.json")
    assert "recall" not in (tmp_path / "without.md").read_text()


def test_a_label_that_no_product_has_is_refused_before_the_load(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"title": "vase", "split": "val"}\n')
    given = ["bench", "load", str(tmp_path / "p.jsonl"), "--rate", "1", "--label", "kind", "--server", "nowhere:1"]
    found = CliRunner().invoke(cli.app, given)
    assert isinstance(found.exception, InputError)
    assert "none of 1 products has the label 'kind' in split 'val'" in str(found.exception)


def test_a_sweep_in_all_forms(report: LoadReport, tmp_path: Path) -> None:
    steps = (
        RateStep(rate=8.0, kept=True, settled=True, p99_ms=50.0, repeats=(report, report)),
        RateStep(rate=16.0, kept=False, settled=True, p99_ms=None, repeats=(report,)),
    )
    sweep = SweepReport(made_at="now", target_ms=100.0, best_rate=8.0, ended="found", complete=True, steps=steps)
    recall = {"text": Recall(at_1=0.75, queries=40, gallery=50)}
    deliver_sweep(replace(sweep, label="group, split val", recall=recall), tmp_path / "s.json")
    assert "recall@1 of text: group, split val" in (tmp_path / "s.md").read_text()
    assert "infinite" in (tmp_path / "s.md").read_text()
    check_page((tmp_path / "s.html").read_text(), count=3)
    table, _ = compared(tmp_path / "s.json", tmp_path / "s.json")
    assert table.rows[0] == ("best requests/s", "8.00", "8.00", "1.000")
    assert ("recall@1 of text", "0.750", "0.750", "1.000") in table.rows


def test_a_run_that_failed_is_not_drawn_below_the_target_that_it_missed(report: LoadReport, tmp_path: Path) -> None:
    failing = report_of([*(record(2 + number / 10, 0.05) for number in range(99)), *[record(5.0, 0.1, "E")] * 9])
    kept, missed = (
        RateStep(rate=rate, kept=rate == 8.0, settled=True, p99_ms=run.p99_with_failures_ms, repeats=(run,))
        for rate, run in ((8.0, report), (16.0, failing))
    )
    for steps, said in (((kept, missed), True), ((kept,), False)):
        sweep = SweepReport(made_at="now", target_ms=100.0, best_rate=8.0, ended="found", complete=True, steps=steps)
        deliver_sweep(sweep, tmp_path / "s.json")
        drawn = plots_of((tmp_path / "s.html").read_text())["Throughput and latency"]
        assert ("p99, target missed: infinite by failures" in drawn) == said
        assert "<!-- p99, target missed -->" not in drawn


def test_the_fastest_run_of_a_sweep_is_not_at_the_edge(report: LoadReport, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tuple(replace(report, products_per_s=served) for served in (90.0, 100.0))
    steps = (RateStep(rate=8.0, kept=True, settled=True, p99_ms=50.0, repeats=runs),)
    sweep = SweepReport(made_at="now", target_ms=100.0, best_rate=8.0, ended="found", complete=True, steps=steps)
    monkeypatch.setattr(plots, "_img", lambda figure: figure)
    (figure,) = plots.sweep_plots(sweep)
    assert figure.axes[0].get_xlim() == (0, 105)  # type: ignore[attr-defined]


def test_the_ceiling_stands_beside_a_load_and_a_sweep(report: LoadReport, tmp_path: Path) -> None:
    turn = CeilingTurn(
        products_per_s=200.0, throughput_ratio=0.75, threads=Threads(workers=2), batch_size=8, largest_difference=1e-7
    )
    beside = replace(report, ceiling=turn)
    alone = report  # the process failed before this run
    deliver_load(replace(beside, runs=(RunFigures.of(beside), RunFigures.of(alone))), tmp_path / "l.json")
    text = (tmp_path / "l.md").read_text()
    assert "| ceiling products/s (2 workers x 1 thread, batches of 8) | 200.0 |" in text
    assert "| served / ceiling | 0.750 |" in text
    assert re.search(r"failed \| served / ceiling \|\n.*\n\| 1 .* 0\.750 \|\n\| 2 .* - \|", text)
    steps = (
        RateStep(rate=8.0, kept=True, settled=True, p99_ms=50.0, repeats=(beside,)),
        RateStep(rate=16.0, kept=False, settled=True, p99_ms=None, repeats=(alone,)),
    )
    sweep = SweepReport(made_at="now", target_ms=100.0, best_rate=8.0, ended="found", complete=True, steps=steps)
    deliver_sweep(sweep, tmp_path / "s.json")
    text = (tmp_path / "s.md").read_text()
    assert re.search(r"failed \| served / ceiling \|\n.*\n\| 8 .* 0\.750 \|\n\| 16 .* - \|", text)
    check_page((tmp_path / "s.html").read_text(), count=3)
    for name in ("l.json", "s.json"):
        table, _ = compared(tmp_path / name, tmp_path / name)
        assert ("served / ceiling", "0.750", "0.750", "1.000") in table.rows
        assert ("ceiling products/s", "200.00", "200.00", "1.000") in table.rows


def test_reports_of_before_there_was_a_ceiling_can_be_compared(report: LoadReport, tmp_path: Path) -> None:
    data = asdict(report)
    del data["ceiling"]
    write_json(tmp_path / "l.json", data)
    table, _ = compared(tmp_path / "l.json", tmp_path / "l.json")
    assert not any("ceiling" in row[0] for row in table.rows)


def test_a_report_without_a_figure_takes_no_others_place(
    report: LoadReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver_load(report, tmp_path / "r.json")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    deliver_load(report_of([record(0.5, 0.1)], stopped=True), tmp_path / "r.json")
    sweep = SweepReport(made_at="now", target_ms=1.0, best_rate=None, ended="interrupted", complete=False, steps=())
    deliver_sweep(sweep, tmp_path / "r.json")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    assert capsys.readouterr().out.count("nothing was measured: ") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_impatient_user_gets_all_files(report: LoadReport, tmp_path: Path, number: signal.Signals) -> None:
    def drawn() -> list[str]:
        os.kill(os.getpid(), number)
        return []

    deliver(report, tmp_path / "r.json", "a load", [], [], plots=drawn)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json", "r.md"]


def test_a_sweep_that_no_rate_satisfies_still_tells_recall_and_errors(
    report: LoadReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = replace(report, errors=(ErrorRow(kind="ServerError", count=3, first_s=0.1, example="no memory"),))
    steps = tuple(
        RateStep(rate=rate, kept=False, settled=True, p99_ms=None, repeats=(run,))
        for rate, run in ((8.0, report), (4.0, failing))
    )
    sweep = SweepReport(made_at="now", target_ms=1.0, best_rate=None, ended="found", complete=True, steps=steps)
    recall = {"text": Recall(at_1=0.75, queries=40, gallery=50)}
    sweep = replace(sweep, label="group, split val", recall=recall)
    deliver_sweep(replace(sweep, steps=()), None)  # as if it was interrupted in its first rate
    assert "recall@1 of text: group, split val (40 queries among 50 products): 0.750" in capsys.readouterr().out
    deliver_sweep(sweep, tmp_path / "s.json")
    written = (tmp_path / "s.md").read_text()
    assert "no memory" in written
    assert "recall@1 of text: group, split val" in written
    with pytest.raises(InputError, match="no rate kept the target"):
        compare_reports(tmp_path / "s.json", tmp_path / "s.json")


def compared(first: Path, second: Path) -> tuple[Table, tuple[str, ...]]:
    found = compare_reports(first, second)
    return found.table(), found.notes


def plots_of(page: str) -> dict[str, str]:
    """The SVG of each plot, by what stands in its place for those who do not see it."""
    images = re.findall('<img alt="([^"]+)" src="data:image/svg[+]xml;base64,([^"]+)">', page)
    return {alternative: b64decode(image).decode() for alternative, image in images}


def check_page(page: str, count: int) -> None:
    """A page must stand alone and hold well-formed plots."""
    found = plots_of(page)
    assert page.count("src=") == len(found) == count
    assert "<script" not in page
    assert not re.search(r"\$\w", page)
    for plot in found.values():
        ElementTree.fromstring(plot)


def test_comparing_gives_ratios_and_says_what_else_differs(report: LoadReport, tmp_path: Path) -> None:
    assert report.latency is not None
    other = replace(report, space="t", products_per_s=2 * report.products_per_s, notes=("slept",))
    other = replace(other, latency=replace(report.latency, p99_ms=3 * report.latency.p99_ms))
    for name, found in (("a", report), ("b", other)):
        write_json(tmp_path / f"{name}.json", asdict(found))
    table, notes = compared(tmp_path / "a.json", tmp_path / "b.json")
    ratios = {row[0]: row[3] for row in table.rows}
    assert (ratios["products/s"], ratios["p99 ms"], ratios["p50 ms"]) == ("2.000", "3.000", "1.000")
    assert "server CPU s" not in ratios  # known of neither
    assert any("different embedding spaces" in note for note in notes)
    assert "second: slept" in notes
    assert any("differ by up to 10 %" in note for note in notes)
    shown = CliRunner().invoke(cli.app, ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert shown.exit_code == 0
    assert "3.000" in shown.stdout


def test_a_comparison_is_a_file_for_a_gate(report: LoadReport, tmp_path: Path) -> None:
    assert report.latency is not None
    slower = replace(report, latency=replace(report.latency, p99_ms=3 * report.latency.p99_ms))
    failing = replace(slower, p99_with_failures_ms=None)
    first, second, out = (tmp_path / f"{name}.json" for name in ("a", "b", "out"))
    write_json(first, asdict(report))
    write_json(second, asdict(failing))
    given = ["bench", "compare", str(first), str(second), "--out"]
    shown = CliRunner().invoke(cli.app, [*given, str(out)])
    assert shown.exit_code == 0, shown.exception
    found = json.loads(out.read_text())
    assert found["format"] == "likeness-compare-1"
    assert found["figures"]["p99 ms"]["ratio"] == pytest.approx(3)
    late = found["figures"]["p99 ms with failures"]
    assert (late["second"], late["ratio"]) == ("infinite", None)
    assert "| p99 ms | " in (tmp_path / "out.md").read_text()
    check_page((tmp_path / "out.html").read_text(), count=0)
    lost = CliRunner().invoke(cli.app, [*given, str(second)])
    assert isinstance(lost.exception, InputError)
    assert "is what is read" in str(lost.exception)


def test_a_report_that_lacks_something_is_named(report: LoadReport, tmp_path: Path) -> None:
    data = asdict(report)
    write_json(tmp_path / "l.json", data)
    without = {key: value for key, value in data.items() if key != "load"}
    for wrong in (without, {**data, "products_per_s": "many"}):
        write_json(tmp_path / "cut.json", wrong)
        with pytest.raises(InputError, match=r"l\.json or .*cut\.json is not whole, or of another version"):
            compare_reports(tmp_path / "l.json", tmp_path / "cut.json")
    sweep = SweepReport(made_at="now", target_ms=1.0, best_rate=8.0, ended="found", complete=True, steps=())
    write_json(tmp_path / "cut.json", asdict(sweep))  # without the step of its best rate
    with pytest.raises(InputError, match="is not whole"):
        compare_reports(tmp_path / "cut.json", tmp_path / "cut.json")


def test_comparing_loads_also_compares_recall(report: LoadReport, tmp_path: Path) -> None:
    recall = {"text": Recall(at_1=0.8, queries=40, gallery=50)}
    better = {"text": Recall(at_1=0.9, queries=40, gallery=50), "image": Recall(at_1=0.5, queries=40, gallery=50)}
    write_json(tmp_path / "a.json", asdict(replace(report, label="group, split val", recall=recall)))
    write_json(tmp_path / "b.json", asdict(replace(report, label="kind, split val", recall=better)))
    write_json(tmp_path / "without.json", asdict(report))
    table, notes = compared(tmp_path / "a.json", tmp_path / "b.json")
    assert ("recall@1 of text", "0.800", "0.900", "1.125") in table.rows
    assert ("recall@1 of image", "-", "0.500", "-") in table.rows
    assert "recall was measured on different things: group, split val | kind, split val" in notes
    table, notes = compared(tmp_path / "without.json", tmp_path / "a.json")
    assert ("recall@1 of text", "-", "0.800", "-") in table.rows
    assert "recall was measured on different things: nothing | group, split val" in notes


def test_reports_say_what_was_sent_and_comparing_them_says_where_it_differs(
    report: LoadReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = SourceConfig(rendered=150, count=150, text_words=Span(low=5, high=60))
    right = report_of([record(2 + number / 10, 0.05) for number in range(100)])
    here = replace(right, source=sent.plain(), machine={"processor": "A", "cores": "2"}, software="0.1.0 (abc)")
    failed = report_of([*(record(2 + number / 10, 0.05) for number in range(98)), *[record(11.95, 0.01, "E")] * 2])
    machine = {"processor": "B", "processor's family, model, stepping": "1, 2, 3", "cores": "2"}
    source = SourceConfig(file=Path("p.jsonl")).plain()
    there = replace(failed, source=source, machine=machine, software="0.1.0 (def)")
    for name, found in (("a", here), ("b", there)):
        deliver_load(found, tmp_path / f"{name}.json")
    assert "up to 150 of the renderer, texts of 5 to 60 words, seed 7" in capsys.readouterr().out
    table, notes = compared(tmp_path / "a.json", tmp_path / "b.json")
    assert ("failed %", "0.00", "2.00", "-") in table.rows
    assert ("p99 ms with failures", "50.00", "infinite", "-") in table.rows
    assert "the machines differ: processor A, cores 2 | processor B, cores 2" in notes
    assert any("words, seed 7 | up to 1000 of p.jsonl, seed 7" in note for note in notes)
    assert "the versions of likeness differ: 0.1.0 (abc) | 0.1.0 (def)" in notes
    assert "| likeness | 0.1.0 (abc) |" in (tmp_path / "a.md").read_text()
    # Only what both tell can differ.
    silent = asdict(replace(there, machine={"processor": "B", "cores": "2"}))
    del silent["software"]
    write_json(tmp_path / "silent.json", silent)
    write_json(tmp_path / "unknown.json", asdict(report))
    for name in ("silent", "unknown"):
        _, notes = compared(tmp_path / f"{name}.json", tmp_path / "b.json")
        assert not any("differ:" in note for note in notes)


def test_of_two_sweeps_targets_and_ends_are_compared_but_not_the_rates_of_their_loads(
    report: LoadReport, tmp_path: Path
) -> None:
    sources = (SourceConfig(rendered=5), SourceConfig(rendered=9, count=9))
    for name, rate, target_ms, source in zip("ab", (8.0, 16.0), (9.0, 12.0), sources, strict=True):
        run = replace(report, load=dict(report.load) | {"rate": rate})
        steps = (
            RateStep(rate=4.0, kept=True, settled=True, p99_ms=50.0, repeats=(report,)),
            RateStep(rate=rate, kept=True, settled=name == "b", p99_ms=50.0, repeats=(run,)),
        )
        sweep = SweepReport(
            made_at="now",
            target_ms=target_ms,
            best_rate=rate,
            steps=steps,
            ended="the time is up",
            complete=name == "a",
        )
        deliver_sweep(replace(sweep, source=source.plain()), tmp_path / f"{name}.json")
    _, notes = compared(tmp_path / "a.json", tmp_path / "b.json")
    assert notes[:3] == (
        "the targets differ: p99 <= 9 ms | p99 <= 12 ms",
        "first: the figures of the best rate did not settle",
        "second: the search did not come to its end: the time is up",
    )
    assert not any("loads differ" in note for note in notes)
    assert any("the products differ" in note for note in notes)
    _, notes = compared(tmp_path / "b.json", tmp_path / "b.json")
    assert [note.partition(":")[0] for note in notes[:2]] == ["first", "second"]


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"format": "other"}'])
def test_comparing_refuses_other_files(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json.*give what `--out` wrote"):
        compare_reports(tmp_path / "a.json", tmp_path / "a.json")


def test_comparing_refuses_two_kinds(report: LoadReport, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", asdict(report))
    write_json(tmp_path / "b.json", {"format": "likeness-sweep-1"})
    with pytest.raises(InputError, match="two kinds"):
        compare_reports(tmp_path / "a.json", tmp_path / "b.json")


def test_a_model_that_only_failed_has_no_mean(report: LoadReport) -> None:
    times = {f"{part}_ms": 0.0 for part in ("total", "queue", "compute_input", "compute_infer", "compute_output")}
    step = StepTime(model="text_encoder", requests=0, failures=3, mean_batch=None, **times)
    (table,) = (table for table in load_tables(replace(report, steps=(step,))) if "Inside" in table.title)
    assert table.header[:3] == ("model", "requests", "failed")
    assert table.rows == (("text_encoder", "0", "3", *"------"),)


def test_tables_escape_what_stands_in_them() -> None:
    table = Table(title="<t>", header=("a", "b"), rows=(("<b>", "x|y"),))
    assert "&lt;b&gt;" in html(table)
    assert "| <b> | x\\|y |" in markdown("t", [table], ["note"])


def test_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["[serving.steps.text]", "[/models/x]", "[red]x[/]", "[a]", "[/note]"]
    print_tables([Table(title=words[0], header=("", words[1]), rows=((words[2], words[3]),))], [words[4]])
    shown = capsys.readouterr().out
    assert [word for word in words if word not in shown] == []


def test_places_for_reports_are_checked_first(tmp_path: Path) -> None:
    check_out(None)
    check_out(tmp_path / "new" / "r.json")
    with pytest.raises(InputError, match=r"must end in \.json"):
        check_out(tmp_path / "r.html")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        check_out(tmp_path / "file" / "r.json")
    (tmp_path / "r.html").mkdir()
    with pytest.raises(InputError, match=r"r\.html: it is a folder"):
        check_out(tmp_path / "r.json")


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "r.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "mix"), [([], {}), (["text=0.5", "image=1.5"], {"text": 0.5, "image": 1.5}), (["text"], {"text": 1.0})]
)
def test_mixes_are_read(given: list[str], mix: Mapping[str, float]) -> None:
    assert options.parse_mix(given) == mix


@pytest.mark.parametrize("given", [["text=much"], ["text=1", "text=2"]])
def test_mixes_that_cannot_be_read(given: list[str]) -> None:
    with pytest.raises(InputError, match=r"--signature text"):
        options.parse_mix(given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_ms": 0.0},
        {"max_repeats": 0},
        {"budget_s": 1.0},
        {"budget_s": math.nan},
        {"load": LoadConfig(address="a:1", concurrency=1)},
    ],
)
def test_sweeps_that_cannot_be(wrong: dict[str, Any]) -> None:
    option = next(iter(wrong)).replace("_", "-").replace("load", "open loop")
    with pytest.raises(InputError, match=option):
        SweepConfig(**{"load": LoadConfig(address="a:1", rate=1.0), **wrong})


def test_every_option_has_a_help_that_stands_by_itself() -> None:
    commands: Any = typer.main.get_command(cli.app)
    for command in [*commands.commands["bench"].commands.values(), commands.commands["tune"]]:
        for option in command.params:
            said = getattr(option, "help", None)
            assert said, f"{command.name} {option.name}"
            assert not said.startswith("Of "), f"{command.name} {option.name}: {said}"


def swept(
    monkeypatch: pytest.MonkeyPatch, p99_ms: Callable[[float, int], float | None], requests: int = 200, **config: Any
) -> SweepReport:
    """Sweep over a server whose p99 is a function of the rate and of the number of the run."""
    runs = 0

    async def run_load(*given: Any, stop: asyncio.Event, **_: Any) -> LoadReport:
        nonlocal runs
        runs += 1
        load: LoadConfig = given[1]
        assert load.rate is not None
        if runs == config.get("stop_at"):
            stop.set()
        answered = config.get("answers", lambda _: True)(load.rate)
        return replace(
            report_of(
                [record(2.5, 0.01, "" if answered else "DeadlineExceededError")],
                rate=load.rate,
                duration_s=load.duration_s,
            ),
            requests=requests,
            p99_with_failures_ms=p99_ms(load.rate, runs),
            answered_share=config.get("share", lambda _: 1.0)(load.rate),
        )

    monkeypatch.setattr(sweep_module, "PAUSE_S", 0.0)
    load = LoadConfig(address="here:1", rate=10.0, duration_s=0.1, warm_up_s=0.0)
    chosen = {name: value for name, value in config.items() if name not in ("stop_at", "answers", "share")}

    async def run() -> SweepReport:
        nothing: Any = None
        sweep = SweepConfig(load=load, **{"target_ms": 100.0, "budget_s": 10_000.0, **chosen})
        return await run_sweep(nothing, sweep, stop=asyncio.Event(), run_once=run_load)

    return asyncio.run(run())


def test_a_sweep_finds_the_rate_and_says_that_it_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    found = swept(monkeypatch, lambda rate, _: 50.0 if rate <= 57 else None)
    assert found.complete
    assert found.best_rate is not None
    assert 57 / 1.05 <= found.best_rate <= 57
    assert found.best is not None
    assert found.best.load["rate"] == found.best_rate
    assert all(step.settled and len(step.repeats) == 2 for step in found.steps)
    assert "found between" in found.ended
    assert "not settle" not in found.ended


def test_a_rate_that_the_server_falls_behind_at_misses_whatever_its_p99(monkeypatch: pytest.MonkeyPatch) -> None:
    found = swept(monkeypatch, lambda _rate, _run: 50.0, share=lambda rate: min(1.0, 57 / rate))
    assert found.best_rate is not None
    assert 57 / 1.05 <= found.best_rate <= 57 / 0.95
    assert all(step.p99_ms == 50.0 for step in found.steps)
    (table,) = sweep_tables(found)
    kept = {row[table.header.index("kept")] for row in table.rows if float(row[0]) > 57 / 0.95}
    assert kept == {"no: falls behind"}


def test_the_rate_that_was_asked_for_stands_beside_the_one_that_was_due(report: LoadReport) -> None:
    steps = (RateStep(rate=8.0, kept=True, settled=True, p99_ms=50.0, repeats=(report,)),)
    sweep = SweepReport(made_at="now", target_ms=100.0, best_rate=8.0, ended="found", complete=True, steps=steps)
    (table,) = sweep_tables(sweep)
    assert table.header[:4] == ("requests/s asked for", "due", "answered %", "kept")
    assert table.rows[0][:4] == ("8", "10.0", "99.0", "yes")


def test_at_low_rates_runs_are_long_enough_for_a_p99(monkeypatch: pytest.MonkeyPatch) -> None:
    found = swept(monkeypatch, lambda rate, _: 50.0 if rate <= 3 else None)
    for step in found.steps:
        assert [run.load["duration_s"] for run in step.repeats] == [1.3 * 100 / step.rate] * len(step.repeats)
    config = SweepConfig(load=LoadConfig(address="here:1", rate=10.0, duration_s=20.0))
    assert [config.load_at(rate).duration_s for rate in (1.3, 13.0, 100.0)] == [100.0, 20.0, 20.0]


def test_a_single_outlier_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    found = swept(monkeypatch, lambda rate, run: 900.0 if run == 1 else 50.0 if rate <= 57 else None)
    first = found.steps[0]
    assert (first.kept, [run.p99_with_failures_ms for run in first.repeats]) == (True, [900.0, 50.0, 50.0])
    assert first.shown.p99_with_failures_ms == 50.0


def test_a_rate_that_missed_by_chance_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stalls = [900.0, 50.0, 900.0, 50.0]  # every other run: of four, the slower middle one misses

    def p99_ms(rate: float, _: int) -> float | None:
        return stalls.pop(0) if rate == 20 and stalls else 50.0 if rate <= 57 else None

    found = swept(monkeypatch, p99_ms)
    assert found.complete, found.ended
    assert found.best_rate is not None
    assert 57 / 1.05 <= found.best_rate <= 57
    (unlucky,) = (step for step in found.steps if step.rate == 20)
    assert [run.p99_with_failures_ms for run in unlucky.repeats] == [900, 50, 900, 50, 50, 50]
    assert (unlucky.kept, unlucky.settled, unlucky.p99_ms) == (True, True, 50.0)


@pytest.mark.parametrize("reason", ["it is gone", ""])
def test_a_server_that_answers_not_even_one_request_says_nothing_of_its_rates(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence(*_: Any, **__: Any) -> str:
        return reason

    async def come_to_rest(*_: Any, **__: Any) -> bool:
        return True

    monkeypatch.setattr(sweep_module, "silence", silence)
    monkeypatch.setattr(sweep_module, "come_to_rest", come_to_rest)
    found = swept(monkeypatch, lambda rate, _: 50.0 if rate < 20 else None, answers=lambda rate: rate < 20)
    if reason:
        assert not found.complete
        assert found.best_rate == 10.0
        assert "at 20 requests/s nothing was answered, nor one request after it (it is gone)" in found.ended
    else:  # it was only too much
        assert found.complete
        assert "found between" in found.ended


def test_the_notes_of_the_lowest_rate_that_missed_are_told(report: LoadReport) -> None:
    late = replace(report, notes=("the harness itself was late",))
    steps = tuple(
        RateStep(rate=rate, kept=kept, settled=True, p99_ms=50.0, repeats=(run,))
        for rate, kept, run in ((8.0, True, report), (32.0, False, report), (16.0, False, late))
    )
    sweep = SweepReport(made_at="now", target_ms=100.0, best_rate=8.0, ended="found", complete=True, steps=steps)
    assert sweep_notes(sweep)[-1] == "at 16 requests/s, which missed: the harness itself was late"
    moved = replace(steps[0], repeats=(replace(report, notes=(OTHER_SPACE,)), report))
    assert sweep_notes(replace(sweep, steps=(moved, *steps[1:])))[-1] == OTHER_SPACE


def test_figures_that_never_settle_are_repeated_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = swept(monkeypatch, lambda rate, run: (20.0 + 30 * (run % 2)) if rate < 30 else None, max_repeats=3)
    assert {len(step.repeats) for step in found.steps if step.kept} == {3}
    assert "did not settle" in found.ended
    assert any("the best rate" in note for note in sweep_notes(found))


def test_a_sweep_that_no_rate_satisfies(monkeypatch: pytest.MonkeyPatch) -> None:
    found = swept(monkeypatch, lambda _rate, _run: None)
    assert (found.complete, found.best_rate, found.best) == (True, None, None)
    assert "not even 0.1 requests/s" in found.ended


def test_an_interrupted_sweep_gives_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = swept(monkeypatch, lambda _rate, _run: 50.0, stop_at=4)
    assert not found.complete
    assert "interrupted" in found.ended
    assert [(step.rate, len(step.repeats)) for step in found.steps] == [(10.0, 2), (20.0, 1)]


def test_runs_too_short_for_a_single_request_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = swept(monkeypatch, lambda _rate, _run: None, requests=0)
    assert (found.steps, found.complete) == ((), False)
    assert "use longer runs" in found.ended


def repeated(
    monkeypatch: pytest.MonkeyPatch, took_s: list[float | None], budget_s: float = 60.0, stop_at: int = 0, **load: Any
) -> LoadReport:
    """Repeat a load whose runs answer this fast, one after the other; None: not at all."""
    seeds, told = list[int](), list[int]()

    class Told(View):
        def step(self, load: LoadConfig, run: int) -> None:  # noqa: ARG002
            told.append(run)

    async def run_load(*given: Any, stop: asyncio.Event, **_: Any) -> LoadReport:
        config: LoadConfig = given[1]
        seeds.append(config.workload.seed)
        if len(seeds) == stop_at:
            stop.set()
        found = took_s[len(seeds) - 1]
        records = [record(0.0, found or 0.01, "" if found else "ServerError") for _ in range(int(1 / (found or 1)))]
        return report_of(records, rate=config.rate, concurrency=config.concurrency, duration_s=1.0, warm_up_s=0.0)

    monkeypatch.setattr(repeated_module, "PAUSE_S", 0.0)
    config = LoadConfig(address="here:1", **({"rate": 10.0} | load), duration_s=1.0, warm_up_s=0.0)

    async def run() -> LoadReport:
        nothing: Any = None
        stop = asyncio.Event()
        return await run_repeated(nothing, config, budget_s=budget_s, stop=stop, view=Told(), run_once=run_load)

    found = asyncio.run(run())
    assert told == [*range(1, len(seeds) + 1)]
    assert len(set(seeds)) == len(seeds)  # an unlucky schedule must not come again
    assert seeds[0] == config.workload.seed
    return found


@pytest.mark.parametrize("load", [{"rate": 10.0}, {"rate": None, "concurrency": 2}])
def test_a_load_is_repeated_until_its_figures_settle(load: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = repeated(monkeypatch, [0.5, 0.3, 0.1, 0.1], **load)
    assert found.settled
    assert [run.p50_ms for run in found.runs] == pytest.approx([500, 300, 100, 100])
    assert found.latency is not None
    assert found.latency.p50_ms == pytest.approx(100)  # of the two that agree
    assert not any("settle" in note for note in found.notes)
    rows = {row[0]: row[1:] for table in load_tables(found) for row in table.rows}
    assert rows["runs, settled"] == ("4, yes",)
    assert rows["1"] == ("4.0", "500.0", "500.0", "0")


@pytest.mark.parametrize("load", [{"rate": 10.0}, {"rate": None, "concurrency": 2}])
def test_of_two_runs_that_agree_the_slower_is_shown(load: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for took_s in ([0.0499, 0.0499 * 1.05], [0.0499 * 1.05, 0.0499]):
        found = repeated(monkeypatch, [*took_s], **load)
        assert found.settled
        assert found.latency is not None
        assert found.latency.p50_ms == pytest.approx(49.9 * 1.05)


@pytest.mark.parametrize(("budget_s", "reason"), [(0.0, "run once (--budget-s 0 holds no second run)"), (1.0, "once")])
def test_a_load_without_time_for_a_second_run_says_so(
    budget_s: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = repeated(monkeypatch, [0.1], budget_s=budget_s)
    assert (len(found.runs), found.settled) == (1, False)
    assert any(reason in note for note in found.notes)


@pytest.mark.parametrize(("took_s", "budget_s", "runs"), [(1.0, 3.5, 3), (2.0, 5.0, 2)])  # as planned, and longer
def test_a_load_that_does_not_settle_says_that_the_time_is_up(
    took_s: float, budget_s: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += took_s  # the time is looked at once before the first run, and once after each
        return now_s

    monkeypatch.setattr("likeness_bench.repeated.time", SimpleNamespace(perf_counter=clock))
    found = repeated(monkeypatch, [0.1, 0.3, 0.9], budget_s=budget_s)
    assert (len(found.runs), found.settled) == (runs, False)
    assert f"p99 did not settle in {runs} runs: the time is up ({budget_s:g} s)" in found.notes


@pytest.mark.parametrize(
    ("well", "rests", "said"),
    [
        (0, [], "run once ({})"),
        (0, [True], "p99 did not settle in 2 runs: {}"),
        (1, [], "p99 did not settle in 2 runs: {}"),
    ],
)
def test_a_load_whose_server_does_not_come_to_rest_says_so(
    well: int, rests: list[bool], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others use it, too: more time would not help."""
    errors = iter([""] * well + ["ServerError"] * 2)

    async def come_to_rest(*_: Any, patience_s: float, **__: Any) -> bool:
        assert patience_s <= 59  # the next run has to end in time, too
        return bool(rests) and rests.pop()

    async def run_load(*_: Any, **__: Any) -> LoadReport:
        records = [record(0.0, 0.01)] * 20 + [record(0.0, 0.01, next(errors))]
        return report_of(records, duration_s=1.0, warm_up_s=0.0)

    monkeypatch.setattr(repeated_module, "PAUSE_S", 0.0)
    monkeypatch.setattr(repeated_module, "come_to_rest", come_to_rest)
    config = LoadConfig(address="here:1", rate=10.0, duration_s=1.0, warm_up_s=0.0)
    nothing: Any = None
    found = asyncio.run(run_repeated(nothing, config, budget_s=60.0, stop=asyncio.Event(), run_once=run_load))
    reason = said.format("the server did not come to rest after failures: keep other loads away")
    assert any(note.startswith(reason) for note in found.notes)


def test_an_interrupted_repetition_keeps_its_finished_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = repeated(monkeypatch, [0.1, 0.3, 0.1], stop_at=3)
    assert len(found.runs) == 2
    assert "p99 did not settle in 2 runs: interrupted" in found.notes
    assert len(repeated(monkeypatch, [0.1], stop_at=1).runs) == 1
    found = repeated(monkeypatch, [0.1, 0.1], stop_at=2)
    assert (len(found.runs), found.ended, found.settled) == (1, "interrupted", False)
    assert "interrupted in its second run: whether the figures settle is not known" in found.notes


def test_a_load_that_nothing_answers_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    found = repeated(monkeypatch, [None])
    assert (len(found.runs), found.latency) == (1, None)
    assert not any("run once" in note for note in found.notes)  # more of them would not have settled
    found = repeated(monkeypatch, [0.1, None])
    assert "p99 did not settle in 2 runs: the last one answered nothing" in found.notes
    assert found.latency is not None  # the run before is shown: it tells more
    assert len(found.runs) == 2


def test_what_befell_the_runs_that_are_not_shown_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_module, "PAUSE_S", 0.0)
    well, refused, late = (record(2.5, 0.01, error) for error in ("", "ServerError", "DeadlineExceededError"))
    runs = [report_of([well] * 40 + [refused] * 8 + [late] * 2), *(report_of([well] * 50) for _ in range(2))]
    runs[0] = replace(runs[0], notes=(*runs[0].notes, OTHER_SPACE))

    async def run_load(*_given: Any, **_: Any) -> LoadReport:
        return runs.pop(0)

    config = LoadConfig(address="here:1", rate=10.0, duration_s=1.0, warm_up_s=0.0)
    nothing: Any = None
    found = asyncio.run(run_repeated(nothing, config, budget_s=60.0, stop=asyncio.Event(), run_once=run_load))
    assert (found.settled, found.failed) == (True, 0)
    assert "in the other runs 10 requests failed (8 ServerError, 2 DeadlineExceededError)" in found.notes
    assert OTHER_SPACE in found.notes


def test_what_a_run_says_itself_is_not_said_once_more(report: LoadReport) -> None:
    moved, cut = replace(report, notes=(OTHER_SPACE,)), replace(report, ended="interrupted")
    assert OTHER_SPACE not in [*repeated_module._elsewhere([moved], moved)]
    assert [*repeated_module._doubts([cut], 60.0, "", stopped=True)] == []


def test_two_failing_runs_do_not_agree() -> None:
    well, badly = record(0.0, 0.01), record(0.0, 0.01, "ServerError")
    runs = [[well] * 48 + [badly] * 2, [well] * 5 + [badly] * 45]

    async def run_load(*_given: Any, **_: Any) -> LoadReport:
        return report_of(runs.pop(0), rate=10.0, concurrency=None, duration_s=1.0, warm_up_s=0.0)

    config = LoadConfig(address="here:1", rate=10.0, duration_s=1.0, warm_up_s=0.0)
    nothing: Any = None
    found = asyncio.run(run_repeated(nothing, config, budget_s=2.5, stop=asyncio.Event(), run_once=run_load))
    assert (len(found.runs), found.settled) == (2, False)
    assert any("more than 1 % of the requests of the last one failed" in note for note in found.notes)


def test_the_version_names_the_commit_only_in_a_checkout_of_this_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages" / "likeness_bench" / "processes.py"
    monkeypatch.setattr(processes, "__file__", str(installed))
    plain = processes.software()
    assert re.fullmatch(r"[\w.]+", plain)
    (tmp_path / ".git").mkdir()  # a broken one: no reason to fail
    monkeypatch.setattr(processes, "__file__", str(installed.parent / "deeper" / "processes.py"))
    assert processes.software() == plain


def test_processors_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Make\nstepping\t: 1\ncpu MHz\t\t: 2596.1\n"
    (tmp_path / "cpuinfo").write_text(f"{one}\n{one}")
    monkeypatch.setattr(processes, "_CPU_INFO", tmp_path / "cpuinfo")
    found = processes.machine()
    assert found["processor"] == "Make"
    assert found["processor's family, model, stepping"] == "25, 17, 1"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert list(processes.machine()) == ["processor", "cores"]
