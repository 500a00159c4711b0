"""The demo's walk along the whole path, from where training and export are done: both have tests of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from likeness_export.demo import tour
from likeness_export.run import Run

pytestmark = pytest.mark.server


def test_the_demo_asks_a_server_of_its_own_and_draws_what_it_found(
    demo_catalogue: Path,
    trained_run: Run,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(trained_run.folder, tmp_path / "run")
    shutil.copytree(repository, tmp_path / "repository")
    monkeypatch.setattr(tour, "render_catalogue", lambda _: demo_catalogue)
    monkeypatch.setattr(tour, "load_recipe", lambda _: trained_run.read_recipe())
    monkeypatch.setattr(tour, "export_run", lambda *_: [])
    tour.run_demo(tmp_path)
    shown = capsys.readouterr().out
    assert "listings of one product among all others" in shown
    assert "queries and their nearest products" in shown
    assert (tmp_path / "neighbours.png").stat().st_size > 10_000
