"""How many processors may be used, under the limits that containers have."""

from __future__ import annotations

import os
import re
from pathlib import Path

import likeness_bench
import pytest
from likeness_bench import cores, processes
from likeness_bench.cores import usable_cores


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The limits of a group on a machine of 64 processors, of which this process may use 16; none so far."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "count"),
    [("max 100000", 16), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("9900000 100000", 16)],
)
def test_a_quota_of_version_2_limits_the_cores(limit: str, count: int, cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text(f"{limit}\n")
    assert usable_cores() == count


@pytest.mark.parametrize(("quota_us", "count"), [(-1, 16), (200_000, 2), (250_000, 3), (1000, 1)])
def test_a_quota_of_version_1_limits_the_cores(quota_us: int, count: int, cgroup: Path) -> None:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota_us}\n")
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores() == count


def test_without_a_quota_the_affinity_decides(cgroup: Path) -> None:
    assert not list(cgroup.iterdir())
    assert usable_cores() == 16
    assert processes.machine()["cores"] == "16"


def test_nothing_else_counts_cores() -> None:
    (folder,) = likeness_bench.__path__
    counting = [
        path.name for path in Path(folder).rglob("*.py") if re.search("getaffinity|cpu_count", path.read_text("utf-8"))
    ]
    assert counting == ["cores.py"]
