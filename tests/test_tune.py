"""The tuner on a real server: what it tries, writes and leaves behind, never how fast anything was."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from likeness_bench.cli import app as bench_app
from likeness_bench.tune import servers
from likeness_bench.tune.config import TuneConfig
from likeness_bench.tune.recipes import settings_of
from likeness_bench.tune.servers import TrialServer, TrialServers
from likeness_bench.tune.settings import Settings
from likeness_bench.tune.target import Target, read_target
from likeness_bench.tune.tuning import run_tune
from likeness_bench.tune.writing import write_result
from likeness_bench.view import View
from likeness_client import Client, Product
from likeness_export.cli import app
from likeness_export.exporting.export import export_run
from likeness_export.recipe import BUILT_IN, load_recipe
from likeness_export.run import Run
from likeness_export.server.serve import ServeConfig, serving
from likeness_export.training.train import train
from typer.testing import CliRunner

pytestmark = pytest.mark.server

PROGRAM = Path(sys.executable).parent / "likeness"
RECIPE = """
name = "small"
dimension = 32
[data]
products = "products.jsonl"
labels = ["group"]
[towers.attributes]
encoder = "one_hot"
keys = ["kind", "material", "colour"]
[training]
epochs = 1
[serving]
max_batch_size = 8 # small
"""


@pytest.fixture
def whole(repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own; beside it lies nothing."""
    return shutil.copytree(repository, tmp_path / "models" / "repository")


@pytest.fixture(scope="module")
def small(demo_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of `RECIPE`: servers with its one tower start in half the time."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.toml").write_text(RECIPE, encoding="utf-8")
    run = Run(folder / "run")
    train(load_recipe(folder / "small.toml"), run, demo_catalogue.parent)
    export_run(run, folder / "repository")
    return folder / "repository"


@pytest.fixture
def mine(small: Path, tmp_path: Path) -> Path:
    """The same of `small`."""
    return shutil.copytree(small, tmp_path / "models" / "repository")


def faster(settings: Settings) -> Settings:
    tuned = settings.changed("text_encoder", instances=2, cpu_threads=1, preferred_batch_size=(4, 8))
    return tuned.changed("image_preprocess", instances=2, queue_delay_us=100).changed(
        "similarity_matrix", cpu_threads=1
    )


def test_a_tuning(whole: Path, complete: list[Product], monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tiny rounds, and the second server does not start: its row says why."""
    real, started = servers.trial_server, list[Settings]()

    def serve(target: Target, settings: Settings) -> AbstractContextManager[TrialServer]:
        started.append(settings)
        copy = target if len(started) != 2 else replace(target, folder=broken(target.folder))
        return real(copy, settings)

    monkeypatch.setattr(servers, "trial_server", serve)
    config = TuneConfig(concurrency=3, turn_s=0.4, timeout_s=60.0, target_ms=60_000.0, budget_s=100_000.0, rounds=1)
    target, stop = read_target(whole), asyncio.Event()
    said: list[str] = []

    class Told(View):
        def say(self, text: str) -> None:
            said.append(text)
            if text.startswith("trial 3"):
                stop.set()

    tuning = run_tune(complete[:30], target, config, stop=stop, view=Told())
    report, settings = asyncio.run(asyncio.wait_for(tuning, 400))
    assert report.untuned is not None
    assert report.untuned.failed == 0
    steps = {step.step for step in report.steps}
    assert {"text_encoder", "image_encoder", "text_preprocess", "fusion_text_image_attributes"} <= steps
    assert not {step for step in steps if step.startswith(("embed_", "similarity"))}
    assert sum(step.share for step in report.steps) == pytest.approx(1.0)
    assert all(step.service_ms > 0 and step.mean_batch >= 1 for step in report.steps)
    assert report.searched == tuple(step.step for step in report.steps)[: len(report.searched)]
    first, *others = report.trials
    assert "text_encoder/1/model.onnx is not the file" in first.failure
    assert others
    assert all(trial.verdict and not trial.failure for trial in others)
    assert report.space == target.space
    assert settings in (target.settings, *started)
    assert sorted(path.name for path in whole.parent.iterdir()) == ["broken", "repository"]
    assert read_target(whole).settings == target.settings  # `run_tune` writes nothing


def broken(folder: Path) -> Path:
    """A repository whose text encoder has no network that could be loaded."""
    copy = shutil.copytree(folder, folder.with_name("broken"))
    (copy / "text_encoder" / "1" / "model.onnx").write_bytes(b"no network")
    return copy


def test_servers_are_kept_as_long_as_they_are_wanted(mine: Path) -> None:
    target = read_target(mine)
    plain, other = target.settings, target.settings.changed("attributes_encoder", instances=2)

    async def run() -> None:
        async with TrialServers(target) as running:
            (first, fresh), (second, _) = await running.get(plain), await running.get(other)
            assert fresh
            assert first.address != second.address
            await running.only(other)
            assert first.process.poll() is not None
            assert await running.get(other) == (second, False)
            second.process.kill()
            second.process.wait()
            await running.only(other)
            third, fresh = await running.get(other)
            assert fresh
            third.check()
        assert third.process.poll() is not None

    asyncio.run(asyncio.wait_for(run(), 120))
    assert [path.name for path in mine.parent.iterdir()] == ["repository"]


def test_tuned_configurations_serve_the_same_embeddings(
    whole: Path, client: Client, complete: list[Product], tmp_path: Path
) -> None:
    target = read_target(whole)
    write_result(target, faster(target.settings))
    config = ServeConfig.on_unused_ports(whole, tmp_path / "log")
    with serving(config), Client(config.address) as tuned:
        found, expected = tuned.embed(complete[:20]), client.embed(complete[:20])
    assert found.space == expected.space
    assert abs(found.vectors - expected.vectors).max() < 1e-4


def test_the_settings_of_a_recipe_apply_without_training_again(
    trained_run: Run, repository: Path, already_verified: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    recipe = tmp_path / "tuned.toml"
    text = (BUILT_IN / "demo.toml").read_text(encoding="utf-8").partition("\n[serving")[0]
    serving = "\n[serving]\nmax_batch_size = 8\n[serving.steps.text_encoder]\ninstances = 2\ncpu_threads = 1\n"
    recipe.write_text(text + serving, encoding="utf-8")
    folder = tmp_path / "repository"
    words = ["export", *map(str, (trained_run.folder, "--repository", folder, "--serving", recipe))]
    with already_verified():
        CliRunner().invoke(app, words, catch_exceptions=False)
    tuned, before = read_target(folder), read_target(repository)
    assert tuned.space == before.space
    assert tuned.settings == settings_of(load_recipe(recipe))
    assert tuned.settings == before.settings.changed("text_encoder", instances=2, cpu_threads=1)
    assert trained_run.read_recipe() == before.recipe


def test_the_command(mine: Path, demo_catalogue: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "shop.toml", tmp_path / "tune.json"
    recipe.write_text(RECIPE, encoding="utf-8")
    words = f"tune {mine} {demo_catalogue} --recipe {recipe} --signature attributes --concurrency 2 --turn-s 0.2 "
    words += f"--rounds 1 --budget-s 10 --target-ms 60000 --timeout-s 60 --products 40 --out {out}"
    done = CliRunner().invoke(bench_app, words.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert report["trials"] or "the time is up" in report["ended"]
    assert "What was tried" in done.output
    assert "Where the time goes" in out.with_suffix(".md").read_text()
    target = read_target(mine)
    assert report["better"] == bool(report["written"])
    assert settings_of(load_recipe(recipe)) == target.settings
    assert target.recipe.serving.steps.keys() == (report["changes"].keys() if report["better"] else set())
    assert "# small" in recipe.read_text(encoding="utf-8")
    assert [path.name for path in mine.parent.iterdir()] == ["repository"]


def test_ctrl_c_leaves_everything_as_it_was(mine: Path, demo_catalogue: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    out = tmp_path / "tune.json"
    words = f"tune {mine} {demo_catalogue} --signature attributes --concurrency 2 --turn-s 0.3 --out {out}"
    process = subprocess.Popen([PROGRAM, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            deadline = time.monotonic() + 120
            while len(list(mine.parent.iterdir())) < 3 and time.monotonic() < deadline:  # two servers are on their way
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            shown, complaint = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0, complaint
    assert "nothing was written" in shown
    assert json.loads(out.read_text())["ended"] == "interrupted"
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before
    assert [path.name for path in mine.parent.iterdir()] == ["repository"]
