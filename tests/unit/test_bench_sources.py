"""Products to send: where they come from, and what is made of them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from likeness_bench.sources import SourceConfig, Span, read_sources, varied
from likeness_client import InputError, MissingExtraError, Product
from likeness_client.records import ImageSource
from PIL import ExifTags, Image


def photo(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


def test_texts_get_the_lengths_that_were_asked_for() -> None:
    given = [Product(title="a b", description="c d e f g h"), Product(title="a"), Product(images=(b"x",))] * 100
    found = varied(given, SourceConfig(rendered=1, text_words=Span(low=4, high=12)))
    lengths = [len(f"{product.title!s} {product.description!s}".split()) for product in found]
    assert set(lengths[0::3]) == set(lengths[1::3]) == set(range(4, 13))
    assert set(lengths[2::3]) == {0}
    assert all(len(str(product.title).split()) in (1, 2, 3) for product in found[0::3])  # a quarter of the words
    assert found == varied(given, SourceConfig(rendered=1, text_words=Span(low=4, high=12)))


def test_photos_get_the_sizes_that_were_asked_for(tmp_path: Path) -> None:
    (tmp_path / "tall.png").write_bytes(photo(30, 90))
    sources: list[ImageSource] = [photo(100, 50), tmp_path / "tall.png", np.zeros((10, 20, 3), dtype=np.uint8)]
    given = [Product(images=(source, b"a second view")) for source in sources] + [Product(title="no photo")]
    found = varied(given, SourceConfig(rendered=1, image_px=Span(low=60, high=60)))
    assert found[3] == given[3]
    sizes = []
    for product in found[:3]:
        (view,) = product.images
        assert isinstance(view, bytes)
        sizes.append(Image.open(io.BytesIO(view)).size)
    assert sizes == [(60, 30), (20, 60), (60, 30)]


def bomb() -> bytes:
    """Return a photo whose head promises more pixels than Pillow opens."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return out.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + out.getvalue()[33:]


def mistagged() -> bytes:
    """Return a photo to be turned whose tag for a number holds a text, which Pillow cannot write again."""
    tags, out = Image.Exif(), io.BytesIO()
    tags[ExifTags.Base.Orientation], tags[ExifTags.Base.Software] = 6, "a camera"
    text, number = (struct.pack(">H", tag) for tag in (ExifTags.Base.Software, ExifTags.Base.CellWidth))
    Image.new("RGB", (8, 8)).save(out, "JPEG", exif=tags.tobytes().replace(text, number))
    return out.getvalue()


@pytest.mark.parametrize(
    "source",
    [b"no photo", Path("nowhere.jpg"), Path("no\0where.jpg"), bomb(), mistagged()],
    ids=["no photo", "nowhere", "no path", "bomb", "mistagged"],
)
def test_photos_that_cannot_be_scaled_are_named(source: bytes | Path) -> None:
    config = SourceConfig(rendered=1, image_px=Span(low=60, high=60))
    with pytest.raises(InputError, match="product 'p': its photo cannot be scaled"):
        varied([Product(product_id="p", images=(source,))], config)


def test_products_come_from_one_source(tmp_path: Path) -> None:
    file = tmp_path / "products.jsonl"
    for wrong in ({}, {"file": file, "rendered": 3}):
        with pytest.raises(InputError, match="one of the two"):
            SourceConfig(**wrong)  # type: ignore[arg-type]
    file.write_text("")
    with pytest.raises(InputError, match="holds no products"):
        read_sources(SourceConfig(file=file))
    file.write_text("".join(json.dumps({"product_id": str(row), "title": "t"}) + "\n" for row in range(5)))
    assert len(read_sources(SourceConfig(file=file, count=3))) == 3
    assert len(read_sources(SourceConfig(file=file, count=3), everything=True)) == 5


def test_rendered_products_are_as_many_as_asked_for_and_hold_their_photos() -> None:
    found = read_sources(SourceConfig(rendered=140, seed=3))
    assert len(found) == 140
    assert all(isinstance(view, bytes) for product, _ in found for view in product.images)
    assert {record["split"] for _, record in found} == {"train", "val"}


def test_what_renders_products_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likeness_bench.sources._RENDERER", "likeness_nowhere.catalogue")
    with pytest.raises(MissingExtraError, match=r"likeness\[demo\]"):
        read_sources(SourceConfig(rendered=3))
