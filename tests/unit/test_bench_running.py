"""What is shown of a measurement while it runs."""

from __future__ import annotations

import asyncio
from io import StringIO
from typing import Any

import pytest
from likeness_bench import running
from likeness_bench.drive import Drive
from likeness_bench.load_config import LoadConfig
from likeness_bench.view import View
from rich.console import Console
from rich.progress import Progress


def test_what_begins_has_all_of_its_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[Progress]()

    class Kept(Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, **options)
            drawn.append(self)

    async def work(stop: asyncio.Event, view: View) -> None:
        config = LoadConfig(address="here:1", rate=1.0, duration_s=8.0, warm_up_s=2.0)
        ended = Drive(config=config, requests=iter(()), ask=None, stop=stop)  # type: ignore[arg-type]
        ended.started -= config.length_s
        view.show(ended)
        assert [task.finished for task in drawn[0].tasks] == [True]
        shown = StringIO()
        Console(file=shown, width=52).print(drawn[0].get_renderable())
        assert "0:00:00" in shown.getvalue()  # the bar gives way, not the time
        view.say("text_encoder: cpu_threads 2 -> 4, instances 1 -> 2: round 3 of 5")
        view.show(ended)
        shown = StringIO()
        Console(file=shown, width=80).print(drawn[0].get_renderable())
        assert "of 5" in shown.getvalue()  # wrapped, not cut
        assert "on their way" in shown.getvalue()
        view.say("what comes next")
        assert [(task.total, task.finished) for task in drawn[0].tasks] == [(None, False)]

    monkeypatch.setattr(running, "Progress", Kept)
    running.run_shown("load", work)
