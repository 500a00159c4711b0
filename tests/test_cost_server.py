"""Comparisons on a real server: what they count, never how fast it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from comparisons.configs import BlocksConfig, MixedConfig
from comparisons.learned_blocks import CLIENT_MB, GROWTH_MB, PAIRS_PER_S, SERVER_MB, measure_learned
from comparisons.mixed_traffic.comparison import BLS, ONE, OURS, compare_mixed
from comparisons.size import CLIENT_MB as COMMAND_MB
from comparisons.size import SPEED, measure_sizes, write_photos, write_products
from likeness_export.run import Run

pytestmark = pytest.mark.server


def test_learned_blocks_have_speed_and_memory(address: str) -> None:
    found = measure_learned(BlocksConfig(queries=30, candidates=200, chunk=70, rounds=1), address)
    assert [turn.contender for turn in found.turns] == ["at once", "70 candidates at a time"]
    for turn in found.turns:
        assert turn.values[PAIRS_PER_S.name] > 0
        assert turn.values[CLIENT_MB.name] > turn.values[GROWTH_MB.name] >= 0
        assert turn.values[SERVER_MB.name] > 50


def test_sizes_are_embedded_and_weighed(address: str, tmp_path: Path) -> None:
    templates = write_photos(20, 7, tmp_path)
    files = {size: write_products(templates, size, tmp_path / f"{size}.jsonl") for size in (5, 25)}
    found = measure_sizes(files, address, rounds=1)
    assert [turn.contender for turn in found.turns] == ["5 products", "25 products"]
    assert all(turn.values[SPEED.name] > 0 and turn.values[COMMAND_MB.name] > 20 for turn in found.turns)
    files[5].write_text('{"product_id": "lost", "images": ["images/nowhere.jpg"]}\n', encoding="utf-8")
    found = measure_sizes(files, address, rounds=1)
    assert found.failed
    assert re.search(r"(?s)of 5 products ended with code 1.*nowhere\.jpg", found.notes[0])


def test_mixed_traffic_is_answered_alike_in_three_ways(
    trained_run: Run, repository: Path, demo_catalogue: Path, tmp_path: Path
) -> None:
    config = MixedConfig(
        file=demo_catalogue,
        products=50,
        run=trained_run.folder,
        repository=repository,
        environments=tmp_path,
        router_instances=1,
        concurrency=2,
        turn_s=1.0,
        warm_up_s=0.0,
        rounds=1,
    )
    (found,) = compare_mixed(config).settings  # which refuses answers that differ
    assert [turn.contender for turn in found.turns] == [OURS, ONE, BLS]
    assert not found.failed
