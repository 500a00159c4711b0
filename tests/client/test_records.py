from __future__ import annotations

import gzip
import json
import unicodedata
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from likeness_client.contract import MODALITIES
from likeness_client.errors import InputError, RecordError
from likeness_client.records import (
    MODALITY_FIELDS,
    Product,
    composed,
    field_value,
    read_jsonl,
    read_products,
    scan_products,
)


def test_a_record_becomes_a_product() -> None:
    record = {
        "product_id": "p1",
        "title": "Shoe",
        "description": None,
        "attributes": {"colour": "red", "price_usd": 52.0, "gone": None},
        "images": ["images/a.jpg"],
        "video": "clips/a.mp4",
        "fine_label": "Shoes",
    }
    assert Product.from_record(record, Path("base")) == Product(
        product_id="p1",
        title="Shoe",
        attributes={"colour": "red", "price_usd": 52.0},
        images=(Path("base/images/a.jpg"),),
        video=Path("base/clips/a.mp4"),
    )
    assert Product.from_record({"video": None}, Path()) == Product.from_record({"video": ""}, Path()) == Product()
    assert Product.from_record({}, Path()) == Product()


PANDAS_NA = type("NAType", (), {})()  # of pandas, which the client does without


@pytest.mark.parametrize("gap", [None, float("nan"), np.float32("nan"), PANDAS_NA])
def test_gaps_of_a_data_frame_are_missing_and_cost_no_line(gap: Any) -> None:
    keys = ("product_id", "title", "description", "attributes", "images", "video", "interactions")
    assert Product.from_record(dict.fromkeys(keys, gap), Path()) == Product()
    record = {"attributes": {"price": gap, "size": "M"}, "interactions": {"u1": gap, "u2": 1}}
    assert Product.from_record(record, Path()) == Product(attributes={"size": "M"}, interactions={"u2": 1})


def test_a_row_of_a_data_frame_becomes_a_product() -> None:
    row = {"images": np.array(["a.jpg", "b.jpg"], object), "attributes": {"price": np.float64(2.5), "size": None}}
    assert Product.from_record(row, "base") == Product(
        attributes={"price": 2.5}, images=(Path("base/a.jpg"), Path("base/b.jpg"))
    )


def test_a_product_shows_itself_without_the_megabytes_of_its_photos() -> None:
    photo, pixels = b"\xff" * 1_000_000, np.zeros((300, 300, 3), np.uint8)
    shown = repr(Product(product_id="p1", title="Shoe", images=(photo, pixels, Path("a.jpg")), video=photo))
    assert shown.startswith("Product(product_id='p1', title='Shoe', ")
    assert "Path('a.jpg')" in shown
    assert len(shown) < 1000


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("product_id", 7, "'product_id' must be a string, found a number"),
        ("title", ["a"], "'title' must be a string, found a list"),
        ("description", True, "'description' must be a string, found a boolean"),
        ("attributes", "red", "'attributes' must be an object, found a string"),
        (
            "attributes",
            {"colour": ["red"]},
            r"'attributes\.colour' must be a string or a number, found a list; join its values to one",
        ),
        ("attributes", {"colour": True}, "found a boolean"),
        ("attributes", {"price": float("inf")}, "found inf"),
        ("images", "a.jpg", r"'images' must be a list of paths, e\.g\. \[\"images/1\.jpg\"\], found a string"),
        ("images", np.array([1]), r"'images' must be a list of paths, .* found a list that holds \[1\]"),
        ("title", b"Shoe", "'title' must be a string, found a value of type bytes"),
        ("images", [1], r"'images' must be a list of paths, .* found a list that holds \[1\]"),
        ("images", [""], "'images' must be a list of paths"),
        ("video", ["a.mp4"], "'video' must be a string, found a list"),
    ],
)
def test_a_wrong_type_names_product_and_key(key: str, value: object, reason: str) -> None:
    with pytest.raises(RecordError, match=reason) as caught:
        Product.from_record({"product_id": "p1", key: value}, Path())
    assert caught.value.source == ("" if key == "product_id" else "p1")


LINES = [
    b'\xef\xbb\xbf{"product_id": "a"}',
    b"",
    b"{broken",
    b'{"title": "\xff"}',
    b"[1]",
    b'{"product_id": "b", "title": 1}',
    b"null",
    b"[" * 100_000,
    b'{"product_id": "c", "title": "line\\u2028break"}',
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "products.jsonl"
    path.write_bytes(b"\n".join(LINES))
    return path


def test_scanning_goes_on_past_bad_lines(file: Path) -> None:
    items = list(scan_products(file))
    errors = [item for item in items if isinstance(item, RecordError)]
    assert [item[0].product_id for item in items if not isinstance(item, RecordError)] == ["a", "c"]
    assert [error.line for error in errors] == [3, 4, 5, 6, 7, 8]
    assert all(str(error).startswith(f"{file}:{error.line}: ") for error in errors)
    reasons = [
        "not JSON",
        "): save the file as UTF-8, e.g. with",
        "found a list",
        "b: 'title' must be",
        "found null",
        "not JSON",
    ]
    assert all(reason in str(error) for reason, error in zip(reasons, errors, strict=True))


@pytest.mark.parametrize(("kept", "named"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_a_file_is_found_by_its_name_in_either_form(
    tmp_path: Path, kept: Literal["NFC", "NFD"], named: Literal["NFC", "NFD"]
) -> None:
    (file := tmp_path / unicodedata.normalize(kept, "größe 빨강.png")).touch()
    name = unicodedata.normalize(named, file.name)
    found = Product.from_record({"images": [name, f"no {name}", "\ud800.png"], "video": name}, tmp_path)
    assert (found.images, found.video) == ((file, tmp_path / f"no {name}", tmp_path / "\ud800.png"), file)


def test_a_heap_of_accents_is_parted_every_thirty() -> None:
    """Python composes one in a time that grows with its square, to minutes."""
    for mark in ("\u0301", "\u0327", "\U0001d165"):
        thirty = mark * 30
        assert composed(f"x{thirty}") == f"x{thirty}"
        assert composed(f"x{thirty}{mark}") == f"x{thirty}\u034f{mark}"
        assert composed(f"x{thirty}{thirty}{mark}") == f"x{thirty}\u034f{thirty}\u034f{mark}"
    assert composed("e" + "\u0301" * 20) == "é" + "\u0301" * 19


def test_a_name_that_is_too_long_for_a_file_is_no_error_of_its_record(tmp_path: Path) -> None:
    name = "ü" * 130 + ".jpg"
    assert Product.from_record({"images": [name]}, tmp_path).images == (tmp_path / name,)


def test_reading_stops_at_the_first_bad_line(file: Path) -> None:
    products = read_products(file)
    assert next(products)[1] == {"product_id": "a"}
    with pytest.raises(RecordError, match=r"products\.jsonl:3: not JSON"):
        next(products)
    with pytest.raises(RecordError, match=r"products\.jsonl:3: not JSON"):
        list(read_jsonl(file))


def test_image_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "products.jsonl"
    path.write_text(json.dumps({"images": ["a.jpg"]}))
    [(product, record)] = read_products(path)
    assert product.images == (tmp_path / "a.jpg",)
    assert record == {"images": ["a.jpg"]}


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl: No such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("gap", ["NaN", "Infinity", "-Infinity", "[]", "[null, null]", "[{}, NaN]", '" "'])
def test_a_gap_of_a_data_frame_is_no_label(gap: str) -> None:
    assert field_value(json.loads(f'{{"group": {gap}, "kind": "mug"}}'), "group") == ""


def test_a_data_frame_s_floats_are_the_labels_of_its_whole_numbers() -> None:
    assert field_value({"style": 12.0}, "style") == field_value({"style": 12}, "style") == "12"
    assert field_value({"style": [12.0, 0.5]}, "style") == "12/0.5"
    assert field_value({"style": np.array(["a", "b"], object)}, "style") == "a/b"  # of a data frame
    for beyond in (2e17, 2e22, -2e17):  # digits beyond a float's would be made up
        assert field_value({"style": beyond}, "style") == str(beyond)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", "Shoe"),
        ("attributes.baseColour", "red"),
        ("attributes.dotted.key", "x"),
        ("extra.mid_label", "m"),
        ("extra.number", "3"),
        ("category_path", "A/B"),
        ("title+attributes.baseColour", "Shoe+red"),
        ("title + attributes.baseColour", "Shoe+red"),
        ("title+missing", ""),
        ("attributes.missing", ""),
        ("title.missing", ""),
        ("attributes", ""),
    ],
)
def test_field_value(field: str, value: str) -> None:
    record = {
        "title": "Shoe",
        "attributes": {"baseColour": "red", "dotted.key": "x"},
        "extra": {"mid_label": "m", "number": 3},
        "category_path": ["A", "B"],
    }
    assert field_value(record, field) == value


@pytest.mark.parametrize("key", ["RAM+ROM", "a.b+c", " colour", "colour "])
def test_a_key_that_is_written_otherwise_than_a_path_is_found_as_it_stands(key: str) -> None:
    assert field_value({"attributes": {key: "x"}}, f"attributes.{key}") == "x"
    assert field_value({key: "x", "d": "y"}, key) == "x"


def test_labels_that_look_the_same_are_the_same() -> None:
    composed, decomposed = "Caf\u00e9 Noir", "Cafe\u0301 Noir"
    written = [composed, decomposed, f" {composed}", "Caf\u00e9  Noir\u00a0"]
    assert {field_value({"brand": brand}, "brand") for brand in written} == {composed}
    assert field_value({"path": ["A ", decomposed]}, "path") == f"A/{composed}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b'{"title": "a"}'), "is compressed: unpack it"),
        ('{"title": "a"}'.encode("utf-16"), "is in UTF-16: save it as UTF-8"),
        ('{"title": "a"}'.encode("utf-16-le"), "is in UTF-16"),
        ('{"title": "a"}'.encode("utf-16-be"), "is in UTF-16"),
        (b"PAR1...", "is a Parquet file"),
        (b'[{"title": "a"}]', "is one JSON list: write each of its elements on a line"),
        (b'[\r\n  {"title": "a"}\n]', "is one JSON list"),
        (b'\xef\xbb\xbf[\r\n  {"title": "a"}\n]', "is one JSON list"),
    ],
)
def test_what_holds_no_line_at_all_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    for read in (scan_products, read_jsonl):
        with pytest.raises(InputError, match=rf"p\.jsonl {message}"):
            list(read(tmp_path / "p.jsonl"))


def test_a_table_is_named_once_and_not_line_by_line(tmp_path: Path) -> None:
    table = tmp_path / "feed.CSV"
    table.write_text("id,title\np1,Shoe\n")
    with pytest.raises(InputError, match=r"feed\.CSV is a table: write its rows as JSON lines"):
        list(scan_products(table))
    for mark in ("", "\ufeff", "\n"):
        table.write_text(mark + '{"title": "Shoe"}\n', encoding="utf-8")  # the name alone decides nothing
        assert [product.title for product, _ in read_products(table)] == ["Shoe"]


@pytest.mark.parametrize(("asked", "held"), [("gr\u00f6sse", "gro\u0308sse"), ("gro\u0308sse", "gr\u00f6sse")])
def test_a_key_is_found_however_its_accents_are_written(asked: str, held: str) -> None:
    record = {"attributes": {"kind": "mug", held: "L"}, held: {"a": "x"}}
    assert field_value(record, f"attributes.{asked}") == "L"
    assert field_value(record, f"{asked}.a") == "x"
    assert field_value({"attributes": {held: "L", asked: "XL"}}, f"attributes.{asked}") == "XL"  # as it stands wins


def test_every_modality_has_its_fields() -> None:
    assert tuple(MODALITY_FIELDS) == MODALITIES
    known = {field.name for field in fields(Product)}
    assert {name for names in MODALITY_FIELDS.values() for name in names} == known - {"product_id"}
