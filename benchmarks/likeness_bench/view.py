"""What those who wait for a measurement are told meanwhile."""

from __future__ import annotations

from likeness_bench.drive import Drive
from likeness_bench.load_config import LoadConfig
from likeness_bench.tables import counted


class View:
    """Is told what happens; this one shows it to nobody."""

    def say(self, text: str) -> None:
        """Say what happens next."""

    def step(self, load: LoadConfig, run: int) -> None:
        """Say which run of a load begins, by its number from 1 among those of the same load."""
        what = counted(load.concurrency or 0, "caller") if load.rate is None else f"{load.rate:.4g} requests/s"
        self.say(f"{what}, run {run}")

    def show(self, drive: Drive) -> None:
        """Show a run as it is now; called several times a second while it runs."""


UNSEEN = View()
"""Where nobody waits."""
