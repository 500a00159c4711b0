"""A tuning from beginning to end, on servers that only pretend: what it measures, writes and reports."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from likeness_bench.figures import ErrorRow, LoadReport, Percentiles
from likeness_bench.files import write_json
from likeness_bench.load_config import LoadConfig
from likeness_bench.output import deliver
from likeness_bench.steps import ModelCounters
from likeness_bench.tune.config import FINAL_ROUNDS, TuneConfig
from likeness_bench.tune.report import TuneReport
from likeness_bench.tune.servers import TrialError, TrialServer, complaint
from likeness_bench.tune.settings import Settings
from likeness_bench.tune.tables import tune_notes, tune_tables
from likeness_bench.tune.target import Target, read_target
from likeness_bench.tune.tuning import run_tune
from likeness_client import InputError, LikenessError


@dataclass
class Pretended:
    """Servers that are as fast as they are told to be.

    Attributes:
        speed: products/s with given settings.
        fails: whether a server with these settings does not start.
        dies: whether it ends under load.
        breaks: whether a model of it ends under load; what runs then fails.
        stop_at: the load after which the user presses Ctrl-C.
        running: address -> settings.
        loads: addresses, in the order in which they were loaded.
        most: how many servers were up at a time.
        now_s: what the clock says; a load takes its length.
    """

    speed: Callable[[Settings], float] = lambda _: 100.0
    fails: Callable[[Settings], bool] = lambda _: False
    dies: Callable[[Settings], bool] = lambda _: False
    breaks: Callable[[Settings], bool] = lambda _: False
    broken: set[str] = field(default_factory=set)
    stop_at: int = 1_000_000
    running: dict[str, tuple[Settings, subprocess.Popen[bytes]]] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    most: int = 0
    started: int = 0
    now_s: float = 0.0

    @contextmanager
    def serve(self, target: Target, settings: Settings) -> Iterator[TrialServer]:
        assert target.folder.is_dir()
        if self.fails(settings):
            raise TrialError("tritonserver ended with code 1 while it loaded the models: out of memory")
        self.started += 1
        address = f"here:{self.started}"
        process = subprocess.Popen(["sleep", "600"])
        self.running[address] = settings, process
        self.most = max(self.most, len(self.running))
        try:
            yield TrialServer(address=address, process=process, log=target.folder / "no.log")
        finally:
            del self.running[address]
            process.kill()
            process.wait()

    async def load(self, workload: Any, config: LoadConfig, *, stop: asyncio.Event, **_: Any) -> LoadReport:
        assert workload == "workload"
        settings, process = self.running[config.address]
        self.loads.append(config.address)
        self.now_s += config.length_s
        if len(self.loads) >= self.stop_at:
            stop.set()
        if self.dies(settings):
            process.kill()
            process.wait()
        if self.breaks(settings):
            self.broken.add(config.address)
        return load_report(self.speed(settings), config, config.address in self.broken)

    async def counters(self, address: str) -> dict[str, ModelCounters]:
        done = self.loads.count(address)
        parts = dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), done)
        busy_ms = {"text_encoder": 60, "image_encoder": 25, "text_preprocess": 12, "fusion_text_image": 3}
        return {
            step: ModelCounters(
                inferences=10 * done,
                executions=done,
                failures=0,
                count=parts,
                ns=dict.fromkeys(parts, 0),
                busy_ns=1_000_000 * milliseconds * done,
            )
            for step, milliseconds in busy_ms.items()
        }


FAILED = ErrorRow(kind="ServerError", count=200, first_s=0.0, example="Stub process is not healthy [INTERNAL]")


def load_report(speed: float, config: LoadConfig, broken: bool) -> LoadReport:
    """A report of a closed loop in which nothing happened but this speed, or nothing but failures."""
    speed *= not broken
    latency = Percentiles.of([0.05] * 200) if speed else None
    nothing: dict[str, Any] = dict.fromkeys(LoadReport.__dataclass_fields__)
    known = {
        "load": asdict(config),
        "requests": 200,
        "products_per_s": speed,
        "latency": latency,
        "p99_with_failures_ms": 50.0 if speed else None,
        "errors": (FAILED,) if broken else (),
    }
    return LoadReport(**(nothing | known))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    found = Pretended()

    async def prepare(*_: Any) -> str:
        return "workload"

    measuring = "likeness_bench.tune.measuring"
    monkeypatch.setattr(f"{measuring}.prepare", prepare)
    monkeypatch.setattr(f"{measuring}.run_load", found.load)
    monkeypatch.setattr(f"{measuring}.read_counters", found.counters)
    monkeypatch.setattr("likeness_bench.tune.servers.trial_server", found.serve)
    monkeypatch.setattr("likeness_bench.tune.tuning.time.perf_counter", lambda: found.now_s)
    return found


@pytest.fixture
def target(rendered_repository: Path) -> Target:
    return read_target(rendered_repository)


CONFIG = TuneConfig(concurrency=8, batch_size=["2"], turn_s=0.8, budget_s=100_000.0)  # 1 s with the warm-up


def tuned(target: Target, config: TuneConfig = CONFIG) -> tuple[TuneReport, Settings]:
    return asyncio.run(asyncio.wait_for(run_tune([], target, config, stop=asyncio.Event()), 60))


def titles(report: TuneReport) -> list[str]:
    return [table.title for table in tune_tables(report)]


@pytest.mark.usefixtures("pretended")
def test_copies_that_a_killed_tuning_has_served_go(target: Target) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    target.folder.with_name(f".repository.{killed.pid}.tune-1").mkdir()
    tuned(target)
    assert [path.name for path in target.folder.parent.iterdir()] == ["repository"]


def test_a_repository_that_can_be_faster(pretended: Pretended, target: Target, tmp_path: Path) -> None:
    pretended.speed = lambda settings: 50.0 * min(3, settings["text_encoder"].instances)
    report, settings = tuned(target)
    assert settings["text_encoder"].instances >= 3
    assert report.better
    assert report.complete
    assert [step.step for step in report.steps] == [
        "text_encoder",
        "image_encoder",
        "text_preprocess",
        "fusion_text_image",
    ]
    assert report.searched == ("text_encoder", "image_encoder", "text_preprocess")
    assert report.changes["text_encoder"]["instances"] == settings["text_encoder"].instances
    assert report.final is not None
    assert len(report.final.rounds) == FINAL_ROUNDS
    assert {found.speed_ratio for found in report.final.rounds} == {3.0}
    assert pretended.most == 2
    assert pretended.running == {}
    written = (f"{report.repository}/manifest.json", f"{report.repository}/text_encoder/config.pbtxt", "shop.toml")
    report = replace(report, written=written)
    deliver(report, tmp_path / "tune.json", "tuned", tune_tables(report), tune_notes(report))
    data = json.loads((tmp_path / "tune.json").read_text())
    assert data["format"] == "likeness-tune-1"
    assert data["trials"][0]["changes"]
    text = (tmp_path / "tune.md").read_text()
    for words in (
        "first guess",
        "[serving.steps.text_encoder]",
        f"written to 2 files of {report.repository}, shop.toml",
        "Tuned against untuned",
        "The best settings found",
    ):
        assert words in text
    assert "text_encoder" in (tmp_path / "tune.html").read_text()


def test_a_repository_that_is_already_best(pretended: Pretended, target: Target) -> None:
    best = target.settings
    pretended.speed = lambda settings: 100.0 if settings == best else 80.0
    report, settings = tuned(target)
    assert settings == best
    assert (report.better, report.final, report.changes) == (False, None, {})
    assert "the configurations are already the best found; nothing was written" in tune_notes(report)
    assert all(trial.verdict and trial.verdict.rounds == 2 for trial in report.trials)  # of five: they cannot win


@pytest.mark.usefixtures("pretended")
def test_plans_that_share_the_settings_and_were_not_measured_are_a_note(target: Target) -> None:
    assert not any("TensorRT" in note for note in tuned(target)[0].notes)
    (weights,) = target.folder.glob("text_encoder/*/model.onnx")
    weights.with_name("model.plan").touch()
    assert any("measured with the profile cpu; the TensorRT plans" in note for note in tuned(target)[0].notes)


def test_what_does_not_last_is_not_kept(pretended: Pretended, target: Target) -> None:
    """The machine flatters every first candidate; beside the untuned settings it shows."""
    best = target.settings
    pretended.speed = lambda settings: (
        200.0 if settings != best and pretended.now_s < 30 else 100.0 if settings == best else 90.0
    )
    report, settings = tuned(target)
    assert settings != best
    assert report.final is not None
    assert not report.better
    assert "what seemed better did not last" in tune_notes(report)[0]
    assert "What seemed better, and was not: do not use it" in titles(report)
    failed = replace(report.final, failure="no memory")
    for other in (replace(report, final=None), replace(report, final=failed)):
        assert "What seemed better, not compared with the untuned settings" in titles(other)
    # The changes are those that were compared first.
    assert titles(replace(report, final=failed, refused=(report.final,)))[-1].endswith("do not use it")


def test_earlier_settings_are_tried_where_the_last_ones_do_not_last(pretended: Pretended, target: Target) -> None:
    """In the end all but one of the settings that seemed better are slower than the untuned ones."""
    untuned = target.settings

    def speed(settings: Settings) -> float:
        if untuned in {running for running, _ in pretended.running.values()}:
            return 100.0 if settings == untuned else 150.0 if settings["text_encoder"].instances == 2 else 90.0
        return 100.0 + 50 * settings["text_encoder"].instances

    pretended.speed = speed
    report, settings = tuned(target)
    assert report.better
    assert settings["text_encoder"].instances == 2
    assert report.refused
    assert not any(trial.kept for trial in report.refused)
    assert report.changes["text_encoder"]["instances"] == 2


def test_what_the_time_did_not_allow_is_not_called_the_best(pretended: Pretended, target: Target) -> None:
    best = target.settings
    pretended.speed = lambda settings: 100.0 if settings == best else 80.0
    report, _ = tuned(target, replace(CONFIG, budget_s=60.0))
    count = len(report.trials)
    said = f"the configurations are the best of the {count} settings that the time allowed; nothing was written"
    assert tune_notes(report)[0] == said


def test_the_budget_holds_the_final_comparison(pretended: Pretended, target: Target) -> None:
    pretended.speed = lambda settings: 50.0 * settings["text_encoder"].instances
    report, _ = tuned(target, replace(CONFIG, budget_s=60.0))
    assert report.ended == "the time is up (60 s)"
    assert not report.complete
    assert report.final is not None
    assert pretended.now_s <= 60.0


def test_a_server_that_does_not_start_is_a_row(pretended: Pretended, target: Target) -> None:
    pretended.fails = lambda settings: settings["text_encoder"].instances > 1
    report, _ = tuned(target)
    failed = [trial for trial in report.trials if trial.failure]
    assert failed
    assert failed[0].failure.endswith("out of memory")
    assert report.complete
    assert pretended.running == {}


def test_a_server_that_dies_is_a_row(pretended: Pretended, target: Target) -> None:
    pretended.dies = lambda settings: settings["image_encoder"].queue_delay_us > 0
    report, _ = tuned(target)
    failed = [trial.failure for trial in report.trials if trial.failure]
    assert failed
    assert set(failed) == {"candidate: the server ended by itself with code -9"}
    assert report.complete
    assert pretended.running == {}


def test_an_incumbent_that_dies_is_started_again(pretended: Pretended, target: Target) -> None:
    untuned = target.settings
    pretended.dies = lambda settings: settings == untuned and pretended.now_s == 7.0
    report, _ = tuned(target)
    assert [trial.failure for trial in report.trials if trial.failure] == [
        "incumbent: the server ended by itself with code -9"
    ]
    assert len(report.trials) > 5


def test_an_incumbent_that_has_lost_a_model_loses_nothing_else(pretended: Pretended, target: Target) -> None:
    """Where its model's process ends, in the last comparison too, a candidate does not win by that."""
    untuned = target.settings
    pretended.speed = lambda settings: 100.0 if settings == untuned else 90.0
    pretended.breaks = lambda settings: settings == untuned and pretended.now_s == 7.0
    report, settings = tuned(target)
    assert settings == untuned
    assert [trial.failure for trial in report.trials if trial.failure] == [
        "incumbent: the server fails 200 of 200 requests: Stub process is not healthy [INTERNAL]"
    ]
    assert len(report.trials) > 5


def test_what_failed_in_a_turn_is_told(pretended: Pretended, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo that the server refuses makes a p99 infinite, whatever the settings: nobody would guess why."""
    refused = ErrorRow(kind="BatchError", count=3, first_s=0.0, example="1 failed: product 0, image: damaged")

    async def load(*given: Any, **named: Any) -> LoadReport:
        return replace(await pretended.load(*given, **named), errors=(refused,))

    monkeypatch.setattr("likeness_bench.tune.measuring.run_load", load)
    report, _ = tuned(target)
    (note,) = (note for note in report.notes if "failed" in note)
    assert note.endswith(
        " requests failed, and counted as infinitely late; the first: 1 failed: product 0, image: damaged"
    )


def test_a_repository_that_cannot_be_served_is_an_error(pretended: Pretended, target: Target) -> None:
    pretended.fails = lambda _: True
    with pytest.raises(TrialError, match="out of memory"):
        tuned(target)
    pretended.fails = lambda _: False
    pretended.speed = lambda _: 0.0
    with pytest.raises(LikenessError, match="the repository as it is answered nothing"):
        tuned(target)
    assert pretended.running == {}


@pytest.mark.parametrize("stop_at", [1, 2, 3, 9, 14])
def test_ctrl_c_gives_what_was_found_so_far(pretended: Pretended, target: Target, tmp_path: Path, stop_at: int) -> None:
    pretended.speed = lambda settings: 50.0 * settings["text_encoder"].instances
    pretended.stop_at = stop_at
    report, _ = tuned(target)
    assert report.ended == "interrupted"
    assert (report.better, report.complete, report.final) == (False, False, None)
    assert len(pretended.loads) <= stop_at + 2
    assert pretended.running == {}
    assert tune_notes(report)[0].endswith("nothing was written")
    write_json(tmp_path / "tune.json", asdict(report))


def test_who_begins_changes_with_every_round(pretended: Pretended, target: Target) -> None:
    tuned(target, replace(CONFIG, budget_s=60.0))
    first, second = pretended.loads[0], pretended.loads[2]
    # Warm-up and profile; the candidate's warm-up; then the rounds.
    assert pretended.loads[:7] == [first, first, second, first, second, second, first]


def test_a_budget_that_holds_nothing_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"--budget-s 20 does not hold 2 trials and the final comparison, 42 s of load"
    ):
        replace(CONFIG, budget_s=20.0)
    with pytest.raises(InputError, match="--budget-s nan does not hold"):
        replace(CONFIG, budget_s=float("nan"))
    with pytest.raises(InputError, match="--target-ms 0: give a number above 0"):
        replace(CONFIG, target_ms=0.0)


def test_a_log_says_what_failed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert complaint(log) == ""
    harmless = 'E1123 03:00:00.1 1 ensemble_scheduler.cc:1468] "unable to create stream for embed_image: no CUDA"\n'
    log.write_text(f"I1123 03:00:00.1 1 server.cc:676] fine\n{harmless}", encoding="utf-8")
    assert complaint(log) == ""
    log.write_text(f"{harmless}error: creating server: Internal - no ports\n", encoding="utf-8")
    assert complaint(log) == ": error: creating server: Internal - no ports"
    log.write_text(
        "E1123 03:00:00.2 1 model_lifecycle.cc:642] \"failed to load 'text_encoder' version 1: Internal: no memory"
        '\\n\\nAt:\\n  model.py(3): initialize\\n"\n'
        f"{harmless}error: creating server: Internal - failed to load all models\n",
        encoding="utf-8",
    )
    assert complaint(log) == ": failed to load 'text_encoder' version 1: Internal: no memory"
