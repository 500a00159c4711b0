from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from likeness_client import InputError
from likeness_export.demo import catalogue
from likeness_export.demo.catalogue import invent_products, render_catalogue
from likeness_export.demo.drawing import COLOURS, PATTERNS
from likeness_export.demo.photo import PHOTO_PX
from likeness_export.demo.shapes import SHAPES
from likeness_export.demo.wording import COLOUR_WORDS, KINDS, PATTERN_WORDS
from PIL import Image

KEYS = [
    "product_id",
    "kind",
    "split",
    "title",
    "description",
    "attributes",
    "images",
    "category_path",
    "fine_label",
    "coarse_label",
    "group",
    "extra",
]
ATTRIBUTES = {"kind", "material", "colour", "pattern", "size", "brand", "price_usd"}

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(directory: Path) -> dict[str, str]:
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def products_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_catalogue(tmp_path_factory.mktemp("demo") / "catalogue", designs=len(SHAPES))


@pytest.fixture(scope="module")
def lines(products_file: Path) -> list[Line]:
    return read(products_file)


def test_words_and_drawings_cover_the_same_kinds_colours_and_patterns() -> None:
    assert KINDS.keys() == SHAPES.keys()
    assert COLOUR_WORDS.keys() == COLOURS.keys()
    assert PATTERN_WORDS.keys() == PATTERNS.keys()


def test_every_line_follows_the_line_format(lines: list[Line]) -> None:
    assert len({line["product_id"] for line in lines}) == len(lines)
    for line in lines:
        assert list(line) == KEYS
        assert line["kind"] == "catalog"
        assert line["split"] in {"train", "val"}
        assert line["attributes"].keys() <= ATTRIBUTES
        assert all(isinstance(value, float if key == "price_usd" else str) for key, value in line["attributes"].items())
        assert line["category_path"] == [KINDS[line["coarse_label"]].department, line["coarse_label"]]
        assert line["group"].startswith(line["fine_label"])
        assert line["extra"].keys() == {"seller"}


def test_every_image_is_there_and_has_the_declared_size(lines: list[Line], products_file: Path) -> None:
    named = [image for line in lines for image in line["images"]]
    assert sorted(named) == sorted(f"images/{file.name}" for file in (products_file.parent / "images").iterdir())
    with Image.open(products_file.parent / named[0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (PHOTO_PX, PHOTO_PX))


def test_a_product_has_two_to_four_listings_of_different_sellers_in_one_split(lines: list[Line]) -> None:
    listings: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        listings[line["group"]].append(line)
    for of_product in listings.values():
        assert 2 <= len(of_product) <= 4
        assert len({line["extra"]["seller"] for line in of_product}) == len(of_product)
        assert len({line["split"] for line in of_product}) == 1


def test_both_splits_hold_all_kinds_and_about_a_third_is_val(lines: list[Line]) -> None:
    for split in ("train", "val"):
        assert {line["coarse_label"] for line in lines if line["split"] == split} == set(SHAPES)
    products = invent_products(seed=7, designs=60)
    assert 250 <= len(products) <= 300
    assert Counter(product.split for product in products)["val"] / len(products) == pytest.approx(0.35, abs=0.03)
    seen, asked = ({p.design.design_id for p in products if p.split == split} for split in ("train", "val"))
    assert len(seen & asked) > len(asked) / 2  # colourways of one design are told apart, not whole designs


def test_there_are_gaps_of_every_sort_but_no_empty_listing(lines: list[Line]) -> None:
    assert any(not line["images"] for line in lines)
    assert any(not line["title"] and not line["description"] for line in lines)
    assert any(line["title"] and not line["description"] for line in lines)
    assert any(not line["attributes"] for line in lines)
    assert all(line["images"] or line["title"] or line["attributes"] for line in lines)
    for key in ATTRIBUTES:
        share = sum(key in line["attributes"] for line in lines) / len(lines)
        assert 0.4 < share < 0.95, key


def test_the_same_seed_gives_the_same_bytes(products_file: Path, tmp_path: Path) -> None:
    again = render_catalogue(tmp_path / "again", designs=len(SHAPES))
    assert digests(again.parent) == digests(products_file.parent)


def test_another_seed_gives_other_products() -> None:
    first, other = (invent_products(seed=seed, designs=len(SHAPES)) for seed in (1, 2))
    assert [product.group for product in first] != [product.group for product in other]


def test_a_complete_catalogue_is_left_be_and_another_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fake(directory: Path, *, seed: int, designs: int) -> None:
        calls.append(seed)
        (directory / "products.jsonl").write_text("", encoding="utf-8")
        (directory / "catalogue.json").write_text(catalogue._stamp(seed, designs), encoding="utf-8")

    monkeypatch.setattr(catalogue, "_render_into", fake)
    for seed in (1, 1, 2):
        assert render_catalogue(tmp_path / "new" / "catalogue", seed=seed).is_file()
    assert calls == [1, 2]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["catalogue"]


def test_interrupted_and_killed_runs_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> list[Line]:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalogue, "_list_product", interrupted)
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (tmp_path / f".catalogue.{killed.pid}.partial" / "images").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        render_catalogue(tmp_path / "catalogue")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("beside_a_catalogue", [False, True])
def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path, beside_a_catalogue: bool) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    if beside_a_catalogue:
        (tmp_path / "catalogue.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="something else"):
        render_catalogue(tmp_path)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "something else"),
        ("file/catalogue", "cannot write"),
        ("/proc", "mount point"),
        ("", "the folder you are in"),
    ],
)
def test_a_place_that_no_catalogue_can_take_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    if place != "file":
        monkeypatch.setattr(catalogue, "_may_replace", lambda _: True)
    with pytest.raises(InputError, match=reason):
        render_catalogue(tmp_path / place)


def test_fewer_designs_than_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 12"):
        render_catalogue(tmp_path / "catalogue", designs=11)
