"""Real products of five catalogues through the real server: what is served is what eager torch computes."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from likeness_client import Client, read_products
from likeness_export.evaluation.evaluate import OfflineEmbedder
from likeness_export.products.catalogue import Catalogue
from likeness_export.run import Run

DATA = Path(os.environ.get("LIKENESS_DATA") or Path(__file__).parents[2] / "shared" / "data")
PACKS = ("fashion", "flipkart", "grocery", "luma", "em-text")

pytestmark = [
    pytest.mark.data,
    pytest.mark.server,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no product data at {DATA}: set LIKENESS_DATA to its folder"),
]


@pytest.mark.parametrize("pack", PACKS)
def test_served_is_eager(pack: str, client: Client, trained_run: Run) -> None:
    # Every twentieth line: products of all kinds, those without text, photo or known attribute among them.
    found = list(islice(read_products(DATA / pack / "products.jsonl"), 0, 800, 20))
    catalogue = Catalogue(products=tuple(p for p, _ in found), records=tuple(r for _, r in found))
    offline = OfflineEmbedder(trained_run, catalogue).embed(client.info().modalities)
    served = client.embed(catalogue.products, on_error="return")

    missing = np.isnan(offline).any(1)
    assert sorted(served.errors) == np.flatnonzero(missing).tolist()
    cosine = (offline * served.vectors).sum(1)[~missing]
    assert len(cosine) > 10
    assert cosine.min() >= 0.9999
