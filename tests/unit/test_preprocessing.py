from __future__ import annotations

import base64
import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from likeness_client.contract import MAX_BYTES, NOTHING_KNOWN, SEVERAL_PHOTOS
from likeness_client.errors import InputError
from likeness_export.encoders.hashed import HashedConfig
from likeness_export.encoders.image_common import write_image_assets
from likeness_export.encoders.one_hot import OneHotConfig
from likeness_export.encoders.text_common import length_buckets
from likeness_export.preprocessing import attributes, hashing, image, text
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

PX = 32
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture() -> Image.Image:
    """A photo that looks different from every side: four quarters, each of one colour."""
    pixels = np.zeros((PX, PX, 3), dtype=np.uint8)
    half = PX // 2
    for place, colour in enumerate(COLOURS.values()):
        y, x = divmod(place, 2)
        pixels[y * half : (y + 1) * half, x * half : (x + 1) * half] = colour
    return Image.fromarray(pixels)


def encoded(photo: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    photo.save(out, file_format, **options)
    return out.getvalue()


def bright(value: float, highlight: float) -> bytes:
    values = np.full((PX, PX), value, np.float32)
    values[0, 0] = highlight
    return encoded(Image.fromarray(values), "TIFF")


def plain(mode: str, value: Any, file_format: str = "PNG", **options: Any) -> bytes:
    return encoded(Image.new(mode, (PX, PX), value), file_format, **options)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> image.Preprocessor:
    tower = tmp_path_factory.mktemp("image")
    write_image_assets(tower, PX)
    return image.Preprocessor(tower / "assets")


def test_photos_are_decoded_by_the_cores_that_a_quota_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_image_assets(tmp_path, PX)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # counts like a container's quota
    assert image.Preprocessor(tmp_path / "assets").pool._max_workers == 1


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> text.Preprocessor:
    """Words are tokens; [CLS] and [SEP] surround them; at most 48."""
    assets = tmp_path_factory.mktemp("text")
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "red": 4, "shoe": 5}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(assets / "tokenizer.json"))
    values = {"max_tokens": 48, "length_buckets": length_buckets(48), "max_bytes": 2000}
    (assets / "text.json").write_text(json.dumps(values), encoding="utf-8")
    return text.Preprocessor(assets)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> attributes.Preprocessor:
    assets = tmp_path_factory.mktemp("attributes")
    keys = [
        {"name": "colour", "values": ["dark red", "none", "true", "52"]},
        {"name": "price", "edges": [10.0, 20.0, 30.0]},
    ]
    vocabulary = {"keys": keys, "max_bytes": MAX_BYTES["attributes"]}
    (assets / "attributes.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return attributes.Preprocessor(assets)


Call = Callable[[list[bytes]], tuple[dict[str, NDArray[np.generic]], list[str]]]


def reason_beside_neighbours(preprocess: Call, good: bytes, item: bytes) -> str:
    """Preprocess an item between two good ones, which must not notice; return why it failed, or an empty string."""
    alone, _ = preprocess([good])
    tensors, errors = preprocess([good, item, good])
    assert [errors[0], errors[2]] == ["", ""]
    assert isinstance(errors[1], str)
    for name, tensor in tensors.items():
        size = alone[name].shape[1]
        assert len(tensor) == 3
        for row in (0, 2):  # a text's neighbour may have made the padding longer, nothing else
            assert np.array_equal(tensor[row, :size], alone[name][0])
            assert not tensor[row, size:].any()
    return errors[1]


# --- images


def test_a_photo_becomes_its_own_pixels(images: image.Preprocessor) -> None:
    assert np.array_equal(images.decode(encoded(picture())), np.asarray(picture()))
    near = images.decode(encoded(picture().resize((4 * PX, 3 * PX), Image.Resampling.NEAREST), "JPEG", quality=95))
    assert np.abs(near.astype(int) - np.asarray(picture()).astype(int)).mean() < 12


def test_a_large_photo_keeps_its_details(images: image.Preprocessor) -> None:
    dots = np.random.default_rng(0).integers(0, 256, (PX, PX, 1), np.uint8).repeat(3, 2)
    large = Image.fromarray(dots).resize((4 * PX, 4 * PX), Image.Resampling.NEAREST)
    exact, near = (images.decode(encoded(large, *how)).astype(int) for how in (["PNG"], ["JPEG"]))
    assert np.abs(near - exact).mean() < 12  # where a decoder may leave details out


@pytest.mark.parametrize(
    ("item", "colour"),
    [
        pytest.param(plain("RGB", (10, 20, 30)), (10, 20, 30), id="RGB"),
        pytest.param(plain("L", 99), (99, 99, 99), id="grey"),
        pytest.param(plain("1", 1), (255, 255, 255), id="1-bit white"),
        pytest.param(plain("1", 0), (0, 0, 0), id="1-bit black"),
        pytest.param(plain("CMYK", (0, 255, 255, 0), "TIFF"), (255, 0, 0), id="CMYK"),
        pytest.param(plain("LA", (0, 0)), (255, 255, 255), id="LA, transparent"),
        pytest.param(plain("LA", (40, 255)), (40, 40, 40), id="LA, opaque"),
        pytest.param(plain("RGBA", (255, 0, 0, 0)), (255, 255, 255), id="RGBA, transparent"),
        pytest.param(plain("RGBA", (255, 0, 0, 128)), (255, 127, 127), id="RGBA, half"),
        pytest.param(
            plain("RGB", (9, 8, 7), transparency=(9, 8, 7)), (255, 255, 255), id="RGB with a transparent colour"
        ),
        pytest.param(plain("I;16", 65535), (255, 255, 255), id="16-bit white"),
        pytest.param(plain("I;16", 32896), (128, 128, 128), id="16-bit middle"),
        pytest.param(plain("I;16", 200), (0, 0, 0), id="16-bit, nearly black"),
        pytest.param(plain("I", 128, "TIFF"), (128, 128, 128), id="32-bit that holds 8-bit values"),
        pytest.param(plain("F", 64.0, "TIFF"), (64, 64, 64), id="float that holds 8-bit values"),
        pytest.param(plain("F", 0.5, "TIFF"), (128, 128, 128), id="float from 0 to 1"),
        pytest.param(plain("F", 1.0, "TIFF"), (255, 255, 255), id="float from 0 to 1, white"),
        pytest.param(plain("F", 1.2, "TIFF"), (255, 255, 255), id="float from 0 to 1, sharpened"),
        pytest.param(plain("F", 0.0, "TIFF"), (0, 0, 0), id="float, black"),
        pytest.param(bright(255.0, 270.0), (255, 255, 255), id="float that holds 8-bit values, sharpened"),
        pytest.param(bright(1.0, float("inf")), (255, 255, 255), id="float with an infinite highlight"),
        pytest.param(bright(65535.0, 7e4), (255, 255, 255), id="float that holds 16-bit values"),
        pytest.param(plain("F", float("nan"), "TIFF"), (0, 0, 0), id="float without a number"),
        pytest.param(b"P5\n32 32\n255\n" + bytes([77]) * PX * PX, (77, 77, 77), id="PNM"),
        pytest.param(plain("RGB", (10, 20, 30), "WEBP", lossless=True), (10, 20, 30), id="WebP"),
        pytest.param(plain("RGB", (10, 20, 30), "BMP"), (10, 20, 30), id="BMP"),
    ],
)
def test_every_mode_becomes_rgb(images: image.Preprocessor, item: bytes, colour: tuple[int, int, int]) -> None:
    pixels = images.decode(item)
    assert pixels.shape == (PX, PX, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - colour).max() <= 1


@pytest.mark.parametrize(
    ("file_format", "transparency"),
    [("PNG", None), ("PNG", 2), ("PNG", b"\xff\xff\x00\xff"), ("GIF", None), ("GIF", 2)],
)
def test_a_palette_is_looked_up_and_its_transparent_colour_is_white(
    images: image.Preprocessor, file_format: str, transparency: int | bytes | None
) -> None:
    indices = np.repeat(np.arange(4, dtype=np.uint8), PX // 4)[None].repeat(PX, 0)
    photo = Image.fromarray(indices).convert("P")
    photo.putpalette([value for colour in COLOURS.values() for value in colour])
    options = {} if transparency is None else {"transparency": transparency}
    pixels = images.decode(encoded(photo, file_format, **options))
    colours = list(COLOURS.values())
    colours[2] = colours[2] if transparency is None else (255, 255, 255)
    assert [tuple(pixels[0, place * PX // 4 + 4]) for place in range(4)] == colours


STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how the camera stored an upright picture."""


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_every_orientation_ends_upright(images: image.Preprocessor, orientation: int, file_format: str) -> None:
    turn = STORED[orientation]
    stored = picture() if turn is None else picture().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if file_format == "JPEG" else {}
    pixels = images.decode(encoded(stored, file_format, exif=exif, **options))
    quarters = [pixels[y, x].astype(int) for y in (6, PX - 6) for x in (6, PX - 6)]
    assert all(np.abs(found - colour).max() < 8 for found, colour in zip(quarters, COLOURS.values(), strict=True)), (
        quarters
    )


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "JPEG"])
def test_malformed_metadata_takes_nothing_from_the_pixels(images: image.Preprocessor, file_format: str) -> None:
    item = plain("RGB", (10, 20, 30), file_format, exif=b"Exif\0\0garbage!")
    assert np.abs(images.decode(item).astype(int) - (10, 20, 30)).max() <= 2


@pytest.mark.parametrize(
    ("item", "said"),
    [
        pytest.param(encoded(Image.new("RGB", (1, 1))), "1 x 1 pixels, at least 8 x 8 are needed", id="a pixel"),
        pytest.param(encoded(Image.new("RGB", (300, 7))), "300 x 7 pixels, at least", id="a line"),
        pytest.param(png_header(10_000, 6_000), "10000 x 6000 pixels, at most 50000000", id="too many pixels"),
        pytest.param(png_header(60_000, 60_000), "too large to decode", id="a bomb"),
        pytest.param(png_header(2**31 - 1, 2**31 - 1), "too large|damaged", id="the largest header"),
        pytest.param(encoded(picture())[:-40], "damaged or cut short", id="PNG cut short"),
        pytest.param(encoded(picture(), "JPEG")[:400], "damaged or cut short", id="JPEG cut short"),
        pytest.param(b"", "not an image in a known format.*: send such a file's own bytes", id="nothing"),
        pytest.param(base64.b64encode(encoded(picture())), "send such a file's own bytes", id="Base64, as JSON has it"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image", id="SVG"),
        pytest.param(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", id="EPS, which runs programs"
        ),
        pytest.param(b"\0" * (MAX_BYTES["image"] + 1), "20000001 bytes, 20000000 are allowed", id="too many bytes"),
    ],
)
def test_what_cannot_be_decoded_has_a_reason_and_zeros(images: image.Preprocessor, item: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        images.decode(item)
    good = encoded(picture())
    assert reason_beside_neighbours(images, good, item)
    assert not images([item])[0]["pixels"].any()


MAGIC = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"II*\0",
    b"MM\0*",
    b"GIF89a",
    b"BM",
    b"P6\n9 9\n255\n",
    b"RIFF9999WEBP",
]


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 8 x 8 pixels in one tile of ``side`` x ``side``."""
    data = zlib.compress(bytes(64))
    fields = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(fields)) + entries + bytes(4)


def test_a_small_photo_of_huge_tiles_is_refused_before_they_are_filled(images: image.Preprocessor) -> None:
    _, errors = images([tiled_tiff(16384)])
    assert "tiles of 16384 x 16384 pixels" in errors[0]


def test_a_photo_of_countless_exif_segments_is_refused(images: image.Preprocessor) -> None:
    photo, segment = encoded(picture(), "JPEG"), b"\xff\xe1\x00\x08Exif\0\0"
    _, errors = images([photo[:2] + 2 * segment + photo[2:], photo[:2] + 100 * segment + photo[2:]])
    assert errors == ["", "the image has far too many EXIF segments: send another copy"]


def test_a_photo_of_countless_scans_is_refused(images: image.Preprocessor) -> None:
    photo = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = photo[photo.rindex(b"\xff\xc4") : -2]
    assert last.count(b"\xff\xda") == 1
    _, errors = images([photo[:-2] + 20 * last + photo[-2:], photo[:-2] + 400 * last + photo[-2:]])
    assert errors == ["", "the image comes in far too many scans: save it anew"]


def test_what_stands_behind_a_photo_holds_the_marker_of_a_scan_by_chance(images: image.Preprocessor) -> None:
    photo, clip = encoded(Image.new("L", (4000, 5000)), "JPEG"), (b"\xff\xda" + bytes(65_534)) * 290
    assert images([photo + clip])[1] == [""]


@pytest.mark.parametrize(
    "between", [20_000 * b"\xff\xe1\x00\x02", 20_000 * b"\xff", 20_000 * b"x"], ids=["segments", "fill", "rubbish"]
)
def test_a_photo_whose_header_is_endless_is_refused(images: image.Preprocessor, between: bytes) -> None:
    photo = encoded(picture(), "JPEG")
    start, end = photo[:2], photo[2:]
    _, errors = images([start + between[:400] + end if between[:1] == b"\xff" else photo, start + between + end])
    assert errors[0] == ""
    assert "far too many segments, or too much between two of them" in errors[1]


def test_metadata_of_countless_numbers_is_not_read(images: image.Preprocessor, monkeypatch: pytest.MonkeyPatch) -> None:
    def orientation(count: int) -> bytes:
        head = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 5, count, 26, 0)
        return encoded(picture(), exif=b"Exif\0\0" + head + struct.pack("<II", 1, 1) * count)

    read: list[Image.Image] = []

    def getexif(photo: Image.Image) -> dict[int, int]:
        read.append(photo)
        return {}

    monkeypatch.setattr(PngImageFile, "getexif", getexif)
    _, errors = images([orientation(1), orientation(125_000)])
    assert errors == ["", "the image has more than 1000000 bytes of EXIF: save it anew without"]
    assert len(read) == 1


def tiff(further: bytes, *tags: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """A grey TIFF of 8 x 8 pixels that has these tags, too: number, type, how many values, and these as bytes."""
    start = 8 + 2 + 12 * (8 + len(tags)) + 4
    plain = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: start, 278: 8, 279: 64}
    entries = {tag: struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in plain.items()}
    after = bytes(range(64)) + further
    for tag, kind, count, values in tags:
        place = values.ljust(4, b"\0") if len(values) <= 4 else struct.pack(order + "I", start + len(after))
        after += values if len(values) > 4 else b""
        entries[tag] = struct.pack(order + "HHI", tag, kind, count) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    gap = bytes(12 * (8 + len(tags) - len(entries)) + 4)
    return head + b"".join(entries[tag] for tag in sorted(entries)) + gap + after


COUNT = 150_000


@pytest.mark.parametrize("order", "<>")
def test_a_photo_whose_tags_hold_countless_numbers_is_refused(images: image.Preprocessor, order: str) -> None:
    offsets = bytes(2 * COUNT)
    inside = struct.pack(order + "HHHII", 1, 37500, 5, 2 * COUNT, 8)
    after_pixels = 8 + 2 + 12 * 9 + 4 + 64
    good = [
        tiff(b"", order=order),
        tiff(b"", (700, 1, 2 * COUNT, offsets), order=order),  # XMP, of bytes
        tiff(inside[:2] + struct.pack(order + "HHII", 37500, 3, 1, 1) + bytes(4), order=order),
    ]
    bad = [
        tiff(b"", (273, 1, 2 * COUNT, offsets), order=order),
        tiff(b"", (282, 5, 2 * COUNT, 8 * offsets), order=order),
        tiff(b"", (33432, 3, COUNT, offsets), (33550, 12, COUNT, 4 * offsets), order=order),
        tiff(
            inside.ljust(16 * COUNT), (34665, 4, 1, struct.pack(order + "I", after_pixels)), order=order
        ),  # among those of EXIF
        tiff(b"", (34665, 16, 1, bytes(8)), order=order),
    ]
    _, errors = images([*good, *bad])
    assert errors[: len(good)] == [""] * len(good)
    assert ["hold more than 250000 numbers" in error for error in errors[len(good) :]] == [True] * len(bad)


@given(st.binary(max_size=200), st.sampled_from([b"II*\0", b"II+\0", b"MM\0*", b"MM\0+"]))
def test_tags_of_random_bytes_never_raise(rest: bytes, start: bytes) -> None:
    assert image.numbers_in_tags(start + b"\x08\0\0\0" + rest) >= 0


def joined(*photos: bytes) -> bytes:
    return image.SEVERAL + b"".join(len(photo).to_bytes(4, "little") + photo for photo in photos)


def test_several_photos_of_a_product_stand_beside_each_other(tmp_path: Path) -> None:
    assert image.SEVERAL == SEVERAL_PHOTOS
    red, blue, white = (plain("RGB", COLOURS[name]) for name in ("red", "blue", "white"))
    write_image_assets(tmp_path / "three", PX, max_photos=3)
    write_image_assets(tmp_path / "one", PX)
    three, one = (image.Preprocessor(tmp_path / name / "assets") for name in ("three", "one"))
    assert three.buckets == [1, 2, 3]
    assert not one.buckets
    items = [red, joined(red, blue), joined(red, blue, white, blue), joined(b"no photo", red), b"no photo"]
    tensors, errors = three(items)
    assert tensors["pixels"].shape == (5, 3, PX, PX, 3)
    assert tensors["photos"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    corners = [tuple(photo[0, 0].tolist()) for photo in tensors["pixels"][2]]
    assert corners == [COLOURS["red"], COLOURS["blue"], COLOURS["white"]]
    assert errors[:3] == ["", "", ""]
    assert errors[3].startswith("photo 1 of 2: not an image")
    assert errors[4].startswith("not an image")
    tensors, (error,) = three([joined(red, red, b"no photo")])  # a photo that is listed twice counts once
    assert tensors["photos"].tolist() == [[1, 1]]
    assert error.startswith("photo 3 of 3: not an image")
    assert three([red])[0]["pixels"].shape == (1, 1, PX, PX, 3)
    assert three([joined(red, blue)])[0]["pixels"].shape == (1, 2, PX, PX, 3)
    assert one([joined(blue, red)])[0]["pixels"][0, 0, 0].tolist() == [*COLOURS["blue"]]  # the first


@pytest.mark.parametrize("cut", [0, 3, 4, 5, -1])
def test_photos_that_are_not_joined_as_they_should_be_have_a_reason(images: image.Preprocessor, cut: int) -> None:
    red = plain("RGB", COLOURS["red"])
    tensors, errors = images([joined(red)[: len(image.SEVERAL) + cut if cut >= 0 else cut], red])
    assert "photos" in errors[0]
    assert errors[1] == ""
    assert tensors["pixels"][1].any()


@few
@given(st.binary(max_size=60))
def test_whatever_stands_behind_the_mark_of_several_has_a_reason(images: image.Preprocessor, rest: bytes) -> None:
    tensors, errors = images([image.SEVERAL + rest])
    assert errors[0]
    assert not tensors["pixels"].any()


@pytest.mark.parametrize("progressive", [False, True])
def test_large_progressive_photos_are_decoded_one_at_a_time(images: image.Preprocessor, progressive: bool) -> None:
    photo = encoded(Image.new("RGB", (2100, 2000)), "JPEG", progressive=progressive)
    taken: list[bool] = []

    class Watched:
        def __enter__(self) -> None:
            taken.append(True)

        def __exit__(self, *_: object) -> None: ...

    images.large = cast(Any, Watched())
    assert images([photo])[1] == [""]
    assert bool(taken) is progressive


@pytest.mark.filterwarnings("ignore:::PIL")
@few
@given(start=st.sampled_from(MAGIC), rest=st.binary(max_size=300))
def test_random_bytes_never_raise(images: image.Preprocessor, start: bytes, rest: bytes) -> None:
    reason_beside_neighbours(images, encoded(picture()), start + rest)


@pytest.mark.filterwarnings("ignore:::PIL")
@few
@given(
    file_format=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]),
    damage=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 3000),
)
def test_damaged_files_never_raise(
    images: image.Preprocessor, file_format: str, damage: list[tuple[int, int]], length: int
) -> None:
    item = bytearray(encoded(picture(), file_format)[:length])
    for place, value in damage:
        if place < len(item):
            item[place] = value
    reason_beside_neighbours(images, encoded(picture()), bytes(item))


def test_an_empty_batch_has_empty_tensors(
    images: image.Preprocessor, texts: text.Preprocessor, facts: attributes.Preprocessor
) -> None:
    for preprocess in (images, texts, facts):
        tensors, errors = cast("Call", preprocess)([])
        assert errors == []
        assert all(len(tensor) == 0 for tensor in tensors.values())


def test_decoding_in_threads_leaves_the_warnings_of_the_process_alone(images: image.Preprocessor) -> None:
    before = list(warnings.filters)
    images([encoded(picture(), "JPEG"), encoded(Image.new("RGBA", (900, 900)))] * 16)
    assert warnings.filters == before


# --- text


def rows(
    answer: tuple[dict[str, NDArray[np.generic]], list[str]],
) -> tuple[list[list[int]], list[list[int]], list[str]]:
    return answer[0]["input_ids"].tolist(), answer[0]["attention_mask"].tolist(), answer[1]


def test_a_text_becomes_its_tokens_padded_to_a_bucket(texts: text.Preprocessor) -> None:
    ids, mask, errors = rows(texts([b"red shoe"]))
    assert ids == [[2, 4, 5, 3, *[0] * 12]]
    assert mask == [[1] * 4 + [0] * 12]
    assert errors == [""]


@pytest.mark.parametrize(
    ("words", "length"), [(1, 16), (14, 16), (15, 32), (30, 32), (31, 48), (46, 48), (47, 48), (900, 48)]
)
def test_the_longest_text_chooses_the_bucket_and_is_cut_at_the_limit(
    texts: text.Preprocessor, words: int, length: int
) -> None:
    tensors, errors = texts([b"shoe", b"red " * words])
    assert errors == ["", "" if 4 * words <= 2000 else "the text has 3600 bytes, 2000 are allowed: shorten it"]
    if not errors[1]:
        assert tensors["input_ids"].shape == (2, length)
        assert tensors["attention_mask"].sum(1).tolist() == [3, min(words + 2, 48)]
        # A text that is cut still ends as the encoder expects it.
        assert tensors["input_ids"][1][min(words + 1, 47)] == 3


def test_invalid_utf_8_costs_the_invalid_bytes_only(texts: text.Preprocessor) -> None:
    ids, _, errors = rows(texts([b"red \xff\xfe shoe"]))
    assert errors == [""]
    assert ids[0][:5] == [2, 4, 1, 5, 3]


@pytest.mark.parametrize(
    ("item", "said"),
    [(b"", "the text is empty"), (b" \n\t", "the text is empty"), (b"x" * 2001, "2001 bytes, 2000 are allowed")],
)
def test_an_unusable_text_has_a_reason_and_the_tokens_of_an_empty_one(
    texts: text.Preprocessor, item: bytes, said: str
) -> None:
    assert said in reason_beside_neighbours(texts, b"red shoe", item)
    ids, mask, _ = rows(texts([item]))
    assert ids == [[2, 3, *[0] * 14]]
    assert mask == [[1, 1, *[0] * 14]]


@few
@example(item="\x85".encode())
@example(item=b"\x1c")
@given(item=st.binary(max_size=2100) | st.text(max_size=500).map(lambda value: value.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_text(texts: text.Preprocessor, item: bytes) -> None:
    reason = reason_beside_neighbours(texts, b"red shoe", item)
    # What separates files and records is space to Python, and not to Unicode, which the tokenizer follows.
    blank = all(letter.isspace() and letter not in "\x1c\x1d\x1e\x1f" for letter in item.decode("utf-8", "replace"))
    assert bool(reason) == (blank or len(item) > 2000)


# --- attributes


def categories(facts: attributes.Preprocessor, item: object) -> list[int]:
    tensors, errors = facts([json.dumps(item).encode()])
    found: list[int] = tensors["categories"][0].tolist()
    assert errors == ["" if any(found) else NOTHING_KNOWN]
    return found


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("dark red", 1),
        ("  Dark   RED ", 1),
        ("none", 2),
        (True, 3),
        (52, 4),
        ("green", 0),
        ("", 0),
        (None, 0),
        (["dark red"], 0),
        ({"dark red": 1}, 0),
    ],
)
def test_a_category_is_looked_up_and_what_is_unknown_is_0(
    facts: attributes.Preprocessor, value: object, place: int
) -> None:
    assert categories(facts, {"colour": value}) == [place, 0]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (-5, 1),
        (9.99, 1),
        (10, 2),
        (15, 2),
        (20.0, 3),
        (29, 3),
        (30, 4),
        (1e300, 4),
        ("15", 2),
        (True, 0),
        ("cheap", 0),
        (None, 0),
        (float("nan"), 0),
        (float("inf"), 0),
        (10**400, 0),
        ([15], 0),
    ],
)
def test_a_number_falls_into_its_bin(facts: attributes.Preprocessor, value: object, place: int) -> None:
    assert categories(facts, {"price": value, "ignored": 1}) == [0, place]


def test_an_absent_key_is_unknown_even_when_a_category_is_called_none(facts: attributes.Preprocessor) -> None:
    assert categories(facts, {}) == [0, 0]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (b"", "are not JSON"),
        (b"{'colour': 1}", "are not JSON"),
        (b"[1]", "are JSON, but not an object"),
        (b"null", "are JSON, but not an object"),
        (b'{"colour": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", "are not JSON"),
        (b'{"price": ' + b"9" * 5000 + b"}", "digits"),
        (b" " * 100_001, "100001 bytes, 100000 are allowed"),
    ],
)
def test_unusable_attributes_have_a_reason_and_zeros(facts: attributes.Preprocessor, item: bytes, said: str) -> None:
    good = b'{"colour": "dark red", "price": 12}'
    assert said in reason_beside_neighbours(facts, good, item)
    assert not facts([item])[0]["categories"].any()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@few
@given(item=st.dictionaries(st.sampled_from(["colour", "price", "x"]), JSON) | JSON)
@example(item={"colour": "\ud800"})
def test_arbitrary_json_never_raises(facts: attributes.Preprocessor, item: object) -> None:
    reason = reason_beside_neighbours(facts, b'{"colour": "dark red"}', json.dumps(item).encode())
    assert (reason in ("", NOTHING_KNOWN)) == isinstance(item, dict)


@few
@given(item=st.binary(max_size=200))
def test_random_bytes_are_no_attributes(facts: attributes.Preprocessor, item: bytes) -> None:
    reason_beside_neighbours(facts, b'{"colour": "dark red"}', item)


@pytest.mark.parametrize("depth", range(880, 1000, 7))
def test_nesting_near_the_limit_of_recursion_never_raises(facts: attributes.Preprocessor, depth: int) -> None:
    reason_beside_neighbours(facts, b'{"price": 1}', b'{"colour": ' + b"[" * depth + b"]" * depth + b"}")


def test_the_vocabulary_is_what_training_saw_often_enough(tmp_path: Path) -> None:
    config = OneHotConfig(encoder="one_hot", keys=("colour", "price", "never"), min_count=2)
    items = [
        {"colour": colour, "price": price} for colour, price in [("Red", 1), ("red ", 2), ("blue", 3), ("BLUE", 4)]
    ]
    with pytest.raises(InputError, match=r"no training product has never; .* there are: colour, price"):
        config.prepare([json.dumps(item).encode() for item in items], tmp_path, tmp_path)
    fitted = [*items, {"colour": "seldom", "never": "x"}]
    config.prepare([json.dumps(item).encode() for item in fitted], tmp_path, tmp_path)
    facts = attributes.Preprocessor(tmp_path / "assets")
    found = [categories(facts, item) for item in [*items, {"colour": "seldom", "price": 99, "never": "x"}]]
    assert [row[0] for row in found] == [2, 2, 1, 1, 0]
    prices = [row[1] for row in found]
    assert prices == sorted(prices)
    assert prices[0] < prices[3] <= prices[4]
    assert [row[2] for row in found] == [0] * 5
    edges = json.loads((tmp_path / "assets/attributes.json").read_text(encoding="utf-8"))["keys"][1]["edges"]
    encoder = config.build(tmp_path, None)
    assert encoder.feature_dim == (1 + 2) + (2 + len(edges)) + 1
    ones, last = encoder(torch.tensor([[2, 0, 0], [0, 1, 0]])).nonzero().tolist(), encoder.feature_dim - 1
    assert ones == [[0, 2], [0, 3], [0, last], [1, 0], [1, 4], [1, last]]


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        pytest.param([2, 6, 12] * 3 + [1] * 90, {0: 1, 1: 2, 2: 3, 12: 3}, id="most are the smallest"),
        pytest.param([12] * 90 + [1, 2, 6] * 3, {1: 1, 6: 1, 12: 2, 13: 2}, id="most are the largest"),
        pytest.param([0] * 30 + [5] * 40 + [9] * 4, {0: 2, 4: 2, 5: 3, 8: 3, 9: 4}, id="two fill bins"),
        pytest.param([0] * 20 + [*range(1, 81)], {0: 2, 1: 3, 5: 3, 6: 4}, id="the smallest fills the first"),
        pytest.param([7] * 10, {6: 1, 7: 2, 8: 2}, id="all are the same"),
        pytest.param(range(17), {0: 1, 1: 1, 2: 2, 13: 7, 14: 8, 16: 8}, id="all differ"),
    ],
)
def test_a_number_that_fills_a_bin_has_it_to_itself(
    tmp_path: Path, numbers: Sequence[int], found: dict[int, int]
) -> None:
    config = OneHotConfig(encoder="one_hot", keys=("pieces",))
    config.prepare([json.dumps({"pieces": number}).encode() for number in numbers], tmp_path, tmp_path)
    facts = attributes.Preprocessor(tmp_path / "assets")
    assert {number: categories(facts, {"pieces": number})[0] for number in found} == found


def test_a_whole_number_is_one_category_however_it_is_written(tmp_path: Path) -> None:
    config = OneHotConfig(encoder="one_hot", keys=("size",), min_count=1)
    items = ['"16"', "16.0", '"-0"', "0.1", '"1"', "9007199254740993", "1e+300", '"true"']
    config.prepare([f'{{"size": {item}}}'.encode() for item in items], tmp_path, tmp_path)
    (key,) = json.loads((tmp_path / "assets/attributes.json").read_text(encoding="utf-8"))["keys"]
    assert key["values"] == ["-0", "0.1", "1", "16", "1e+300", "9007199254740993", "true"]
    tensors, _ = attributes.Preprocessor(tmp_path / "assets")(
        [f'{{"size": {item}}}'.encode() for item in ("16", "16.0", '"16"', '"16.0"', "0.1", "9007199254740993.0")]
    )
    assert tensors["categories"].ravel().tolist() == [4, 4, 4, 0, 2, 0]


@pytest.mark.parametrize(("values", "warns"), [(range(30), True), ([1, 2, 3] * 10, False), (["a", "b"] * 15, False)])
def test_prices_in_quotation_marks_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: Sequence[object], warns: bool
) -> None:
    config = OneHotConfig(encoder="one_hot", keys=("price",))
    config.prepare([json.dumps({"price": str(value)}).encode() for value in values], tmp_path, tmp_path)
    assert ("attribute 'price' is a number in quotation marks" in caplog.text) == warns


@pytest.mark.parametrize(
    ("values", "warns"),
    [
        ([24.0, "24.0", "$ 24,00"] * 10, True),
        ([24.0, 25.0] * 15, False),
        (["S", "M", 42] * 10, False),
        (["S", "42", "44"] * 10, False),
    ],
)
def test_prices_of_several_formats_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: Sequence[object], warns: bool
) -> None:
    config = OneHotConfig(encoder="one_hot", keys=("price",))
    config.prepare([json.dumps({"price": value}).encode() for value in values], tmp_path, tmp_path)
    told = "attribute 'price' is a number in 10 of 30 products, and text in the others"
    assert (told in caplog.text) == bool(caplog.text) == warns


def test_an_attribute_of_which_hardly_a_value_comes_again_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = OneHotConfig(encoder="one_hot", keys=("colour", "model", "price"))
    items = [
        json.dumps({"colour": "red", "model": f"X-{place}", "price": f"{max(place, 1)}.50 EUR"}).encode()
        for place in range(6)
    ]
    config.prepare(items, tmp_path, tmp_path)
    assert "attribute 'model' is mostly unknown: in 6 of the 6 training products that have it" in caplog.text
    assert "attribute 'price' is mostly unknown: in 4 of the 6" in caplog.text
    assert "the value, e.g. '2.50 EUR', is that of fewer than 2" in caplog.text
    assert "'colour'" not in caplog.text


def test_one_word_among_numbers_makes_no_words_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = OneHotConfig(encoder="one_hot", keys=("price", "size"))
    items = [{"price": float(number), "size": number if number % 2 else str(number)} for number in range(30)]
    fitted = [*items, {"price": "n/a"}, {"price": "31.5"}]
    config.prepare([json.dumps(item).encode() for item in fitted], tmp_path, tmp_path)
    facts = attributes.Preprocessor(tmp_path / "assets")
    prices = [categories(facts, {"price": price, "size": 1})[0] for price in (0.0, 29.0, "29", "n/a")]
    assert 0 == prices[3] < prices[0] < prices[1] == prices[2]
    assert "attribute 'price' is a number in 30 of 32 products" in caplog.text
    vocabulary = json.loads((tmp_path / "assets/attributes.json").read_text(encoding="utf-8"))
    assert "values" in vocabulary["keys"][1]  # as many words as numbers: names of sizes


# --- hashed attributes


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> hashing.Preprocessor:
    tower = tmp_path_factory.mktemp("codes")
    config, known = (
        HashedConfig(encoder="hashed", keys=("modelno", "gtin"), bits=512),
        [b'{"modelno": "a", "gtin": "1"}'],
    )
    config.prepare(known, tower, tower)
    with pytest.raises(InputError, match=r"towers\.codes0\.keys: no training product has gtin; .* there are: modelno"):
        config.prepare([b'{"modelno": "a"}'], tower, tower)
    return hashing.Preprocessor(tower / "assets")


def signs(codes: hashing.Preprocessor, item: object) -> NDArray[np.generic]:
    tensors, errors = codes([json.dumps(item).encode()])
    found: NDArray[np.generic] = tensors["signs"][0]
    assert errors == ["" if found.any() else NOTHING_KNOWN]
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("DS-3", "ds3"),
        ("p-sdhc4g4-ef / gray", "PSDHC4G4EFGRAY"),
        ("5389", 5389),
        (5389, 5389.0),
        (" Ä1 ", "ä1"),
        ("İ1", "i1"),
        ("A\u2122\ufe0f", "a"),
    ],
)
def test_values_are_compared_by_letters_and_digits(codes: hashing.Preprocessor, one: object, other: object) -> None:
    found = signs(codes, {"modelno": one, "ignored": 1})
    assert set(np.unique(found)) == {-1.0, 1.0}
    assert np.array_equal(found, signs(codes, {"modelno": other}))


@few
@given(values=st.lists(st.integers(0, 10**13), min_size=2, max_size=2, unique=True))
def test_different_values_are_nearly_orthogonal(codes: hashing.Preprocessor, values: list[int]) -> None:
    one, other = (signs(codes, {"gtin": value}).astype(float) for value in values)
    assert abs(one @ other) / codes.bits < 7 / codes.bits**0.5


@pytest.mark.parametrize(("one", "other"), [("दिन", "दान"), ("ขาว", "ข้าว")])
def test_vowel_signs_and_tones_make_other_values(codes: hashing.Preprocessor, one: str, other: str) -> None:
    assert not np.array_equal(signs(codes, {"modelno": one}), signs(codes, {"modelno": other}))


def test_a_value_counts_under_its_key_and_keys_add_up(codes: hashing.Preprocessor) -> None:
    model, gtin = signs(codes, {"modelno": "1"}), signs(codes, {"gtin": "1"})
    assert not np.array_equal(model, gtin)
    assert np.array_equal(signs(codes, {"modelno": "1", "gtin": "1"}), model.astype(float) + gtin.astype(float))


@pytest.mark.parametrize("value", ["", " - / ", None, True, ["x1"], {"x": 1}, float("nan"), float("inf")])
def test_what_is_no_value_leaves_zeros(codes: hashing.Preprocessor, value: object) -> None:
    assert not signs(codes, {"modelno": value}).any()
    assert not signs(codes, {}).any()


@few
@given(item=st.dictionaries(st.sampled_from(["modelno", "gtin", "x"]), JSON) | JSON)
@example(item={"modelno": "\ud800"})
def test_hashing_arbitrary_json_never_raises(codes: hashing.Preprocessor, item: object) -> None:
    reason = reason_beside_neighbours(codes, b'{"modelno": "DS-3"}', json.dumps(item).encode())
    assert (reason in ("", NOTHING_KNOWN)) == isinstance(item, dict)


def test_hashing_oversized_attributes_has_a_reason(codes: hashing.Preprocessor) -> None:
    reason = reason_beside_neighbours(codes, b'{"modelno": "DS-3"}', b" " * (MAX_BYTES["attributes"] + 1))
    assert "are allowed" in reason


def test_hashed_codes_have_unit_length(codes: hashing.Preprocessor, tmp_path: Path) -> None:
    encoder = HashedConfig(encoder="hashed", keys=("modelno",), bits=512).build(tmp_path, None)
    found = encoder(torch.from_numpy(signs(codes, {"modelno": "DS-3"})[None]))
    assert found.shape == (1, encoder.feature_dim)
    assert float(found.norm()) == pytest.approx(1.0)
