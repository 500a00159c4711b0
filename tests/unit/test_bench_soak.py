"""The soak test, against clients that are none."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from likeness_bench import load, soak, watching
from likeness_bench.load_config import LoadConfig
from likeness_bench.soak import SoakReport, run_soak
from likeness_client import (
    BatchError,
    InputError,
    InputSchema,
    LikenessError,
    OverloadedError,
    Product,
    ProductError,
    ServerInfo,
)

INFO = ServerInfo(
    space="s",
    modalities=("text", "image"),
    signatures=("text", "image", "text_image"),
    dimension=2,
    max_batch_size=8,
    schema=InputSchema(),
    error_outputs={},
)
BROKEN = Product(product_id="broken", images=(b"broken",))
PRODUCTS = [Product(title=str(number), images=(b"%d" % number,)) for number in range(1, 30)]


class Fake:
    """Answers with what a product is; under load with something else, or every other time not at all."""

    def __init__(self, off: float, refuses: bool, stop: asyncio.Event, stop_after: float) -> None:
        self.off, self.refuses, self.asked, self.stop, self.stop_after = off, refuses, 0, stop, stop_after

    async def __aenter__(self) -> Fake:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def info(self) -> ServerInfo:
        return INFO

    async def embed(self, products: Sequence[Product]) -> Any:
        self.asked += 1
        if self.asked > self.stop_after:
            self.stop.set()
        await asyncio.sleep(0.001)
        if BROKEN in products:
            raise BatchError({products.index(BROKEN): ProductError("no photo")}, None)
        under_load = self.asked > 29
        if under_load and self.refuses and self.asked % 2:
            raise OverloadedError("too much", "here", code="RESOURCE_EXHAUSTED")
        rows = [[float(len(product.title)), len(product.images)] for product in products]
        return SimpleNamespace(vectors=np.array(rows) + under_load * self.off, signatures=["text"] * len(products))


def soaked(
    monkeypatch: pytest.MonkeyPatch,
    off: float = 0.0,
    *,
    refuses: bool = False,
    stop_after: float = math.inf,
    products: Sequence[Product] = PRODUCTS,
) -> SoakReport:
    async def run() -> SoakReport:
        stop = asyncio.Event()
        fake = Fake(off, refuses, stop, stop_after)
        for module in (soak, load, watching):
            monkeypatch.setattr(module, "open_client", lambda _: fake)
        duration_s = 0.3 if math.isinf(stop_after) else 60.0
        config = LoadConfig(address="here:1", concurrency=3, duration_s=duration_s, warm_up_s=0.0)
        return await asyncio.wait_for(run_soak(products, config, tolerance=1e-4, stop=stop), 20)

    return asyncio.run(run())


def test_right_answers_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    report = soaked(monkeypatch)
    assert report.passed
    assert report.checked.largest_difference == 0.0
    assert set(report.load.by_products) <= set(range(1, 9))
    assert len(report.load.by_products) > 2
    assert report.checked.signatures.total() > 0


@pytest.mark.parametrize("off", [0.01, float("nan")])
def test_wrong_answers_are_counted(monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    report = soaked(monkeypatch, off=off)
    assert not report.passed
    assert report.checked.wrong == report.checked.signatures.total()
    assert report.checked.largest_difference == pytest.approx(off, nan_ok=True)
    assert ("wrong answers", str(report.checked.wrong)) in report.table().rows


def test_refusals_are_errors_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    report = soaked(monkeypatch, refuses=True)
    assert not report.passed
    assert report.load.latency is not None
    assert [row.kind for row in report.load.errors] == ["OverloadedError"]


def test_stopping_gives_the_report_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    report = soaked(monkeypatch, stop_after=len(PRODUCTS) + 20)
    assert report.load.ended == "interrupted"
    assert report.load.latency is not None


def test_stopping_before_the_load_says_that_nothing_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LikenessError, match="interrupted before the load: nothing was checked"):
        soaked(monkeypatch, stop_after=0)


def test_what_is_not_embedded_even_alone_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    report = soaked(monkeypatch, products=[*PRODUCTS[:28], BROKEN])
    assert report.passed
    assert "1 product not embedded even alone, and left out; the first: 'broken'" in "".join(report.load.notes)
    with pytest.raises(InputError, match="none of 1 products is embedded, the first for this: 'broken': no photo"):
        soaked(monkeypatch, products=[BROKEN])


def test_products_without_any_part_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="none of 1 products has text, image"):
        soaked(monkeypatch, products=[Product()])
