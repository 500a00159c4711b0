"""Cores are counted in one way, which knows affinity and the limits that containers have."""

from __future__ import annotations

import re
from pathlib import Path

import likeness_bench
import likeness_export
import pytest


@pytest.mark.parametrize("package", [likeness_bench, likeness_export], ids=lambda package: package.__name__)
def test_cores_are_counted_as_containers_limit_them(package: object) -> None:
    (folder,) = package.__path__  # type: ignore[attr-defined]
    counting = [
        str(path.relative_to(folder))
        for path in Path(folder).rglob("*.py")
        if re.search(r"getaffinity|os\.cpu_count|psutil\.cpu_count", path.read_text("utf-8"))
    ]
    # Models that are served import nothing but what stands in the repository.
    assert [name for name in counting if not name.startswith(("preprocessing/", "serving/"))] == []
