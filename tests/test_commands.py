"""The commands that talk to a server, on a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from likeness_client import Client, Embeddings, Product, read_products
from likeness_client.records import read_jsonl
from likeness_export.cli import app
from likeness_export.evaluation.evaluate import Row
from likeness_export.run import Run
from typer.testing import CliRunner

pytestmark = pytest.mark.server

LIKENESS = Path(sys.executable).with_name("likeness")


def likeness(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LIKENESS, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def file(demo_catalogue: Path) -> Path:
    """Twelve lines beside the demo's images: ten products, one line that is no JSON, one product that is unreadable."""
    lines = [json.dumps(record) for record, _ in zip(read_jsonl(demo_catalogue), range(12), strict=False)]
    lines[3] = '{"product_id": "cut short'
    lines[7] = json.dumps({"product_id": "no-photo", "title": "Red cushion", "images": ["images/nowhere.jpg"]})
    path = demo_catalogue.with_name("twelve.jsonl")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embed(client: Client, address: str, demo_catalogue: Path, file: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet")
    out = tmp_path / f"out{suffix}"
    arguments = ("embed", file, "--out", out, "--server", address, "--batch-size", "5")
    done = likeness(*arguments)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"10 products embedded to {out}" in done.stderr
    assert "2 failed:" in done.stderr
    assert f"{file}:4: not JSON" in done.stderr
    missing = demo_catalogue.parent / "images" / "nowhere.jpg"
    assert f"product 6 ('no-photo'), image: cannot read {missing}: No such file or directory" in done.stderr
    found = Embeddings.load(out)
    assert (len(found), list(found.errors), found.space) == (11, [6], client.info().space)
    products = [
        product
        for (product, _), row in zip(read_products(demo_catalogue), range(12), strict=False)
        if row not in (3, 7)
    ]
    expected = client.embed(products)
    kept = np.delete(np.arange(11), 6)
    assert tuple(found.product_ids[row] for row in kept) == expected.product_ids
    assert tuple(found.signatures[row] for row in kept) == expected.signatures
    np.testing.assert_allclose(found.vectors[kept], expected.vectors, rtol=0, atol=1e-4)
    assert np.isnan(found.vectors[6]).all()
    assert likeness(*arguments, "--strict").returncode == 1


def test_compare(client: Client, address: str, demo_catalogue: Path, complete: list[Product], tmp_path: Path) -> None:
    left = replace(complete[0], attributes={})
    image = left.images[0]
    assert isinstance(image, Path)
    record = {"title": left.title, "description": left.description, "images": [image.name]}
    beside = demo_catalogue.parent / "images" / "left.json"
    beside.write_text(json.dumps(record), encoding="utf-8")
    right = Product(title="Red cushion", attributes={"kind": "cushion", "colour": "red"})
    text = json.dumps({"title": right.title, "attributes": right.attributes})
    done = likeness("compare", beside, text, "--server", address)
    beside.unlink()
    assert (done.returncode, done.stderr) == (0, "")
    expected = client.compare(left, right)
    cosine, euclidean, learned, _, heading, of_left, of_right = done.stdout.splitlines()
    for line, name in ((cosine, "cosine"), (euclidean, "euclidean"), (learned, "learned")):
        assert line.split()[0] == name
        assert float(line.split()[1]) == pytest.approx(getattr(expected, name), abs=2e-4)
    assert heading.split() == ["weights", "text", "image", "attributes"]
    weights = expected.left_weights, expected.right_weights
    assert of_left.split() == ["left", f"{weights[0]['text']:.3f}", f"{weights[0]['image']:.3f}", "-"]
    assert of_right.split() == ["right", f"{weights[1]['text']:.3f}", "-", f"{weights[1]['attributes']:.3f}"]
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**record, "product_id": "x", "images": ["broken.jpg"]}), encoding="utf-8")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    done = likeness("compare", broken, text, "--server", address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("left product ('x'), image: not an image in a known format")


def test_evaluate_through_the_server(
    address: str, trained_run: Run, demo_catalogue: Path, offline_rows: list[Row], tmp_path: Path
) -> None:
    out = tmp_path / "served.json"
    data = demo_catalogue.parent
    words = ["evaluate", trained_run.folder, "--data-root", data, "--server", address, "--out", out]
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "as they are" in done.output
    served = json.loads(out.read_text(encoding="utf-8"))
    assert [row["signature"] for row in served] == [row.signature for row in offline_rows]
    for row, expected in zip(served, offline_rows, strict=True):
        found, figures = row["figures"], expected.figures
        assert found["queries"] == figures.queries > 50, row["signature"]
        assert found["ndcg_at_10"] == pytest.approx(figures.ndcg_at_10, abs=0.002)
        assert found["mean_average_precision"] == pytest.approx(figures.mean_average_precision, abs=0.002)
        recall = {int(k): value for k, value in found["recall_at"].items()}
        assert recall == pytest.approx(figures.recall_at, abs=0.002)
