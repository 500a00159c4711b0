"""Units of work in processes of their own. This module is imported by each of them, so it imports nothing heavy."""

from __future__ import annotations

import multiprocessing
import os
import time

from joblib import cpu_count
from likeness_client.errors import InputError
from likeness_export.quality.workers import side_by_side


def some_work(item: str) -> None:
    if item == "wrong":
        raise InputError("it is wrong")
    if item == "broken":
        raise ZeroDivisionError("broken")
    if item == "killed":
        os.kill(os.getpid(), 9)
    if item == "endless":
        time.sleep(600)
    assert os.environ["OMP_NUM_THREADS"] == str(max(1, cpu_count() // 2))


def test_what_fails_costs_nothing_else() -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    found = dict(side_by_side(["wrong", "well", "broken", "killed", "fine"], some_work, 2))
    assert found == {
        "wrong": "it is wrong",
        "well": "",
        "broken": "ZeroDivisionError: broken",
        "killed": "the process was ended by SIGKILL (the machine may be out of memory)",
        "fine": "",
    }
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_whoever_stops_listening_ends_the_processes() -> None:
    found = side_by_side(["endless", "well", "endless"], some_work, 2)
    assert next(found) == ("well", "")
    found.close()
    assert multiprocessing.active_children() == []
