"""Videos from the record to the served answer: a catalogue with clips, trained, exported, served."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from likeness_client import Client, Product, read_products
from likeness_client.contract import all_signatures
from likeness_client.records import read_jsonl
from likeness_export.demo import catalogue as demo
from likeness_export.demo.catalogue import render_catalogue
from likeness_export.demo.clips import CLIP_PX, PRODUCTS_FILE, add_clips
from likeness_export.demo.shapes import SHAPES
from likeness_export.demo.shoppers import LOG_FILE
from likeness_export.evaluation.evaluate import OfflineEmbedder, Task, read_task_catalogue
from likeness_export.exporting.export import export_run
from likeness_export.recipe import load_recipe
from likeness_export.run import Run
from likeness_export.server.serve import ServeConfig, serving
from likeness_export.training.train import train

MODALITIES = ("attributes", "video")
OVERRIDES = (
    "dimension=32",
    "towers.video.video_px=32",
    # A modality may have two towers; the second one encodes the same clips in the other way.
    "towers.motion={encoder='cnn_lstm', frames=6, video_px=32, width=8, hidden=32}",
    "training.epochs=2",
    "training.groups_per_batch=12",
    "serving.max_batch_size=4",
)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product file of a small catalogue with clips."""
    products = render_catalogue(tmp_path_factory.mktemp("clips") / "catalogue", designs=len(SHAPES))
    return add_clips(products, products.with_name(PRODUCTS_FILE))


def test_clips_are_of_three_kinds_and_decode(catalogue: Path) -> None:
    named = [record["video"] for record in read_jsonl(catalogue) if "video" in record]
    assert sorted(named) == sorted(f"clips/{path.name}" for path in (catalogue.parent / "clips").iterdir())
    assert {Path(name).suffix for name in named} == {".mp4", ".webm", ".gif"}
    for name in named[:20]:
        with av.open(str(catalogue.parent / name)) as clip:
            frames = list(clip.decode(video=0))
        assert 12 <= len(frames) <= 24
        assert {(frame.width, frame.height) for frame in frames} == {(CLIP_PX, CLIP_PX)}


def test_clips_add_one_key_and_change_nothing_else(catalogue: Path) -> None:
    before = list(read_jsonl(catalogue.with_name("products.jsonl")))
    after = list(read_jsonl(catalogue))
    assert [{key: value for key, value in record.items() if key != "video"} for record in after] == before
    assert not any("video" in record for record in before)
    assert 0.5 < sum("video" in record for record in after) / len(after) < 0.7


def decoded(content: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    with av.open(io.BytesIO(content), "r") as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(np.float32)


def test_the_same_seed_gives_the_same_clips(catalogue: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        shutil.copyfile(catalogue.with_name("catalogue.json"), folder / "catalogue.json")
        some = sorted(catalogue.with_name("products.jsonl").read_text(encoding="utf-8").splitlines())[:30]
        (folder / "products.jsonl").write_text("\n".join(some), encoding="utf-8")
        add_clips(folder / "products.jsonl", folder / "with_clips.jsonl")
    first, second = ({path.name: path.read_bytes() for path in folder.rglob("*.*")} for folder in folders)
    assert len(first) > 12
    assert first.keys() == second.keys()
    for name, content in first.items():
        if Path(name).suffix in (".mp4", ".webm"):  # an encoder may round otherwise; once in some hundred runs one did
            assert np.abs(decoded(content) - decoded(second[name])).mean() < 3
        else:
            assert content == second[name]


def test_a_catalogue_with_clips_is_a_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one takes its place, clips, shoppers and all."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "images").mkdir()
    for name in ("products.jsonl", PRODUCTS_FILE, LOG_FILE, "products_with_interactions.jsonl", "catalogue.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr(demo, "_render_into", lambda fresh, **_: (fresh / "products.jsonl").touch())
    render_catalogue(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["products.jsonl"]


# --- served


@pytest.fixture(scope="module")
def run(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The built-in recipe for clips, smaller, without photos, with a second tower for clips, briefly trained."""
    recipe = load_recipe(Path("demo_video"), OVERRIDES)
    without_photos = {name: tower for name, tower in recipe.towers.items() if tower.modality in MODALITIES}
    trained = Run(tmp_path_factory.mktemp("video") / "run")
    train(recipe.model_copy(update={"towers": without_photos}), trained, catalogue.parent)
    return trained


@pytest.fixture(scope="module")
def client(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server with `run`."""
    folder = tmp_path_factory.mktemp("served")
    export_run(run, folder / "repository")
    config = ServeConfig.on_unused_ports(folder / "repository", folder / "tritonserver.log")
    with serving(config), Client(config.address) as opened:
        yield opened


@pytest.mark.server
def test_every_signature_with_video_is_served(client: Client) -> None:
    info = client.info()
    assert info.modalities == MODALITIES
    assert set(info.signatures) == set(all_signatures(MODALITIES))
    assert set(info.error_outputs["video"]) == {"motion_error", "video_error"}


@pytest.mark.server
def test_served_embeddings_are_the_eager_ones(client: Client, run: Run, catalogue: Path) -> None:
    task = Task(labels=("group",))
    held_out = read_task_catalogue(run, catalogue.parent, task)
    eager = OfflineEmbedder(run, held_out)
    for modalities in (("video",), MODALITIES):
        expected = eager.embed(modalities)
        answer = client.embed(held_out.products, modalities=modalities, on_error="return")
        there = np.isfinite(expected[:, 0])
        assert set(answer.errors) == set(np.flatnonzero(~there))
        assert there.sum() > 20
        assert np.abs(answer.vectors[there] - expected[there]).max() < 1e-4
        assert any(signature.endswith("video") for signature in answer.signatures)


@pytest.fixture(scope="module")
def filmed(catalogue: Path) -> list[Product]:
    """Products that have a clip."""
    return [product for product, _ in read_products(catalogue) if product.video]


@pytest.mark.server
def test_a_clip_s_place_is_as_good_as_its_bytes(client: Client, filmed: list[Product]) -> None:
    path = filmed[0].video
    assert isinstance(path, Path)
    answer = client.embed([Product(video=path), Product(video=path.read_bytes())])
    assert answer.signatures == ("video", "video")
    assert np.abs(answer.vectors[0] - answer.vectors[1]).max() < 1e-6


@pytest.mark.server
def test_a_bad_video_costs_only_its_own_product(client: Client, filmed: list[Product]) -> None:
    good = filmed[:9]
    alone = client.embed(good)
    mixed = [*good]
    mixed[4] = replace(good[4], video=b"not a clip")
    answer = client.embed(mixed, on_error="return")
    assert set(answer.errors) == {4}
    assert answer.errors[4].modality == "video"
    assert "not a video in a known format" in answer.errors[4].reason
    others = [row for row in range(9) if row != 4]
    assert np.abs(answer.vectors[others] - alone.vectors[others]).max() < 1e-5


@pytest.mark.server
def test_clips_are_compared_in_one_round_trip(client: Client, filmed: list[Product]) -> None:
    left, right = (Product(video=product.video) for product in filmed[:2])
    same, other = client.compare(left, left), client.compare(left, right)
    assert same.cosine == pytest.approx(1, abs=1e-5)
    assert other.cosine < 1
