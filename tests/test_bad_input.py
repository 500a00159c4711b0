"""Inputs that no shop should send, through the real server: each fails alone, says why, and harms nobody."""

from __future__ import annotations

import io
import json
import struct
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from likeness_client import BatchError, Client, Metric, Product, ProductError
from likeness_client.contract import EMBEDDING, NOTHING_KNOWN, modalities_of, tower_error
from likeness_client.payloads import payloads
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

if TYPE_CHECKING:
    from tests.conftest import Infer, Server

pytestmark = pytest.mark.server

FloatArray: TypeAlias = NDArray[np.float32]
ALL = "text_image_attributes"
EXACT = 1e-5


@pytest.fixture(scope="module")
def good(complete: list[Product]) -> tuple[Product, Product]:
    """Two neighbours, one before and one behind the item under test."""
    return complete[0], complete[1]


@pytest.fixture(scope="module")
def alone(client: Client, good: tuple[Product, Product]) -> FloatArray:
    """What the two neighbours are answered when they are asked alone."""
    return np.concatenate([client.embed([product]).vectors for product in good])


@pytest.fixture(scope="module")
def parts(client: Client, good: tuple[Product, Product]) -> list[dict[str, bytes]]:
    """The neighbours as they travel."""
    info = client.info()
    return [payloads(product, info.schema, info.modalities) for product in good]


@pytest.fixture(scope="module")
def photo(complete: list[Product]) -> Image.Image:
    """A real photo, not square, so that a wrong orientation shows."""
    source = complete[0].images[0]
    assert isinstance(source, Path)
    with Image.open(source) as image:
        return image.convert("RGB").crop((10, 20, 150, 110))


@pytest.fixture(scope="module", autouse=True)
def _server_survives(server: Server) -> Iterator[None]:
    """All of this module's requests leave the server ready, with the very processes that it started with."""
    before = children(server.pid)
    yield
    assert children(server.pid) == before
    with InferenceServerClient(server.address) as stub:
        assert stub.is_server_ready()
        assert {model.state for model in stub.get_model_repository_index().models} == {"READY"}


def children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


# --- What is refused -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """One part of a product that the server must refuse.

    Attributes:
        name: for the test's id.
        modality: the part.
        data: makes the bytes; called only when the test runs.
        says: what the reason must say, the way out included.
        sent: whether the client sends it, or has refused it itself with ``locally``.
        locally: what the client's own reason must say.
    """

    name: str
    modality: str
    data: Callable[[], bytes]
    says: tuple[str, ...]
    sent: bool = True
    locally: tuple[str, ...] = ()


@cache
def flat_png(width: int, height: int) -> bytes:
    """Return a black 1-bit PNG, which stays small however many pixels it has."""
    deflate = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    packed = [deflate.compress(row * 500) for _ in range(height // 500)]
    packed += [deflate.compress(row * (height % 500)), deflate.flush()]
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    blocks = (b"IHDR", header), (b"IDAT", b"".join(packed)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_block(*block) for block in blocks)


def png_block(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def cut_jpeg() -> bytes:
    whole = encoded(Image.effect_noise((200, 200), 50), "JPEG")
    return whole[: len(whole) // 2]


def text_bomb_png() -> bytes:
    """Return a PNG whose comment unpacks to 100 MB; Pillow refuses it with a plain ValueError."""
    comment = b"Comment\x00\x00" + zlib.compress(bytes(100_000_000), 1)
    image = flat_png(64, 64)
    return image[:33] + png_block(b"zTXt", comment) + image[33:]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


NO_IMAGE = ("not an image in a known format (JPEG, PNG",)
SEND_SMALLER = "send a smaller"
BAD = [
    Bad("not an image", "image", lambda: b"<html>404</html>", NO_IMAGE),
    Bad("an executable format", "image", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_IMAGE),
    Bad("no bytes", "image", lambda: b"", NO_IMAGE, sent=False, locally=("is empty", "leave it out")),
    Bad("truncated jpeg", "image", cut_jpeg, ("damaged or cut short", "send another copy")),
    Bad("cut png", "image", lambda: flat_png(64, 64)[:50], ("damaged", "send another copy")),
    Bad("text bomb", "image", text_bomb_png, ("damaged", "send another copy")),
    Bad("1 x 1", "image", lambda: flat_png(1, 1), ("1 x 1 pixels", "at least 8 x 8 are needed")),
    Bad("400 megapixels", "image", lambda: flat_png(20_000, 20_000), ("too large", "400000000 pixels", SEND_SMALLER)),
    Bad("81 megapixels", "image", lambda: flat_png(9_000, 9_000), ("9000 x 9000 pixels", "at most", SEND_SMALLER)),
    Bad(
        "too many bytes",
        "image",
        lambda: bytes(20_000_001),
        ("20000001 bytes", "20000000 are allowed", SEND_SMALLER),
        sent=False,
        locally=("20,000,001 bytes", "limit is 20,000,000", SEND_SMALLER),
    ),
    Bad(
        "too many bytes",
        "text",
        lambda: b"x" * 1_000_001,
        ("1000001 bytes", "1000000 are allowed", "shorten it"),
        sent=False,
        locally=("1,000,001 bytes", "limit is 1,000,000", "shorten it"),
    ),
    Bad(
        "too many bytes",
        "attributes",
        lambda: json.dumps({"kind": "x" * 100_000}).encode(),
        ("bytes, 100000 are allowed", "send fewer"),
        sent=False,
        locally=("bytes", "limit is 100,000", "shorten it"),
    ),
]
# The client makes none of these.
ONLY_RAW = [
    Bad("empty", "text", lambda: b"", ("the text is empty", "leave the modality out")),
    Bad("blank", "text", lambda: b" \t\n", ("the text is empty", "leave the modality out")),
    Bad("empty", "attributes", lambda: b"", ("not JSON", "send an object")),
    Bad("no json", "attributes", lambda: b"{colour: red}", ("not JSON", "send an object")),
    Bad("a list", "attributes", lambda: b'["red"]', ("not an object", "send an object")),
    Bad("a string", "attributes", lambda: b'"red"', ("not an object", "send an object")),
    Bad("null", "attributes", lambda: b"null", ("not an object", "send an object")),
    Bad("deeply nested", "attributes", lambda: b"[" * 50_000, ("not JSON", "send an object")),
    Bad("long number", "attributes", lambda: b'{"price_usd":' + b"9" * 5_000 + b"}", ("not JSON", "send an object")),
]


def names(cases: list[Bad]) -> list[str]:
    return [f"{case.modality}: {case.name}" for case in cases]


@pytest.mark.parametrize("case", [*BAD, *ONLY_RAW], ids=names([*BAD, *ONLY_RAW]))
def test_the_server_itself_refuses_it(
    infer: Infer, parts: list[dict[str, bytes]], alone: FloatArray, case: Bad
) -> None:
    rows = [parts[0], {**parts[0], case.modality: case.data()}, parts[1]]
    answer = infer(f"embed_{ALL}", {name: [row[name] for row in rows] for name in modalities_of(ALL)})
    np.testing.assert_allclose(answer[EMBEDDING][[0, 2]], alone, rtol=0, atol=EXACT)
    for name in modalities_of(ALL):
        before, reason, behind = (cell.decode() for cell in answer[tower_error(name)][:, 0])
        assert not before
        assert not behind
        if name == case.modality:
            assert all(words in reason for words in case.says), reason
        else:
            assert not reason


@pytest.mark.parametrize("case", BAD, ids=names(BAD))
def test_the_client_names_it(client: Client, good: tuple[Product, Product], alone: FloatArray, case: Bad) -> None:
    data = case.data()
    parts: dict[str, dict[str, Any]] = {
        "image": {"images": (data,)},
        "text": {"title": data, "description": ""},
        "attributes": {"attributes": {"kind": "x" * 100_000}},
    }
    batch = [good[0], replace(good[0], product_id="the bad one", **parts[case.modality]), good[1]]
    found = client.embed(batch, on_error="return")
    np.testing.assert_allclose(found.vectors[[0, 2]], alone, rtol=0, atol=EXACT)
    assert np.isnan(found.vectors[1]).all()
    assert list(found.errors) == [1]
    error = found.errors[1]
    assert (error.index, error.product_id, error.modality) == (1, "the bad one", case.modality)
    assert str(error) == f"product 1 ('the bad one'), {case.modality}: {error.reason}"
    assert all(words in error.reason for words in (case.says if case.sent else case.locally)), error.reason
    with pytest.raises(BatchError, match=r"1 failed: product 1 \('the bad one'\)") as raised:
        client.embed(batch)
    assert raised.value.errors.keys() == {1}


def test_each_side_of_a_pair_is_refused_on_its_own(client: Client, good: tuple[Product, Product]) -> None:
    broken = replace(good[0], product_id="broken", images=(b"GIF89a",))
    for metric in Metric:
        expected = client.similarity([good[0]], [good[1]], metric=metric).values[0]
        # Four pairs of different products: the pair ensembles are asked, and each pair keeps its place.
        left = [good[0], broken, replace(good[0], title="another")]
        right = [good[1], replace(good[1], title="a third"), replace(broken, title="a fourth")]
        found = client.similarity(left, right, metric=metric, on_error="return")
        assert found.values[0] == pytest.approx(expected, abs=EXACT)
        assert np.isnan(found.values[1:]).all()
        assert {row: (error.side, error.modality) for row, error in found.errors.items()} == {
            1: ("left", "image"),
            2: ("right", "image"),
        }
    with pytest.raises(ProductError, match=r"^right product \('broken'\), image: "):
        client.compare(good[0], broken)
    matrix = client.similarity_matrix([broken, *good], [*good, broken], metric=Metric.LEARNED, on_error="return")
    assert np.isnan(matrix.values).tolist() == [[True] * 3, [False, False, True], [False, False, True]]
    assert (list(matrix.query_errors), list(matrix.candidate_errors)) == ([0], [2])


def test_a_product_with_nothing(client: Client, good: tuple[Product, Product], alone: FloatArray) -> None:
    empty = Product(product_id="nothing", title=" ", attributes={"unheard_of": 1})
    found = client.embed([good[0], empty, good[1]], on_error="return")
    np.testing.assert_allclose(found.vectors[[0, 2]], alone, rtol=0, atol=EXACT)
    expected = "product 1 ('nothing'): has none of text, image, attributes; give it at least one"
    assert str(found.errors[1]) == expected
    with pytest.raises(BatchError, match="give it at least one"):
        client.embed([empty])


def test_nothing_at_all(client: Client, infer: Infer) -> None:
    assert client.embed([]).vectors.shape == (0, client.info().dimension)
    assert client.similarity([], []).values.shape == (0,)
    for metric in Metric:
        assert client.similarity_matrix([], [], metric=metric).values.shape == (0, 0)
    nothing: list[bytes] = []
    for model, tensors in (
        ("embed_text", {"text": nothing}),
        ("embed_text_image", {"text": nothing, "image": nothing}),
        ("embed_text", {}),
    ):
        with pytest.raises(InferenceServerException) as refused:
            infer(model, tensors)
        assert "INVALID_ARGUMENT" in refused.value.status()


def test_requests_that_contradict_the_contract(infer: Infer, alone: FloatArray) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("embed_text", {"text": [b"x"] * 9}),  # more than a batch
        ("embed_text", {"text": np.zeros((1, 1), np.float32)}),
        ("embed_text", {"image": [b"x"]}),
        ("embed_text_attributes", {"text": [b"x", b"y"], "attributes": [b"{}"]}),
        ("similarity", {"left": np.zeros((1, 3), np.float32), "right": np.zeros((1, 3), np.float32)}),
        ("similarity_matrix", {"left": alone[None, :1].repeat(128, 1), "right": alone[None, :1].repeat(1025, 1)}),
    ]
    for model, tensors in wrong:
        with pytest.raises(InferenceServerException) as refused:
            infer(model, tensors)
        assert "INVALID_ARGUMENT" in refused.value.status()


def test_what_a_network_cannot_compute_fails_with_its_reason_and_the_next_is_answered(infer: Infer) -> None:
    ids, mask = np.full((1, 16), 5, np.int64), np.ones((1, 16), np.int64)
    with pytest.raises(InferenceServerException, match="indices element out of data bounds"):
        infer("text_encoder", {"input_ids": ids + 10**6, "attention_mask": mask})
    assert infer("text_encoder", {"input_ids": ids, "attention_mask": mask})["text_embedding"].shape[0] == 1


# --- What is unusual, and understood ---------------------------------------------------------------------------------


def test_blank_text_is_no_text(client: Client, good: tuple[Product, Product]) -> None:
    without = replace(good[0], title="", description="")
    blank = replace(good[0], title=" \n", description=b"\t")
    found = client.embed([without, blank])
    assert set(found.signatures) == {"image_attributes"}
    np.testing.assert_array_equal(found.vectors[0], found.vectors[1])


def test_long_text_is_cut(client: Client, infer: Infer, good: tuple[Product, Product], alone: FloatArray) -> None:
    long = ("a red velvet cushion with a zip, " * 4_000)[:100_000]
    products = [replace(good[0], title=text, description="") for text in (long, long[:2_000])]
    found = client.embed([good[0], *products, good[1]]).vectors
    np.testing.assert_allclose(found[[0, 3]], alone, rtol=0, atol=EXACT)
    np.testing.assert_allclose(found[1], found[2], rtol=0, atol=EXACT)
    raw = infer("embed_text", {"text": [long.encode(), long[:2_000].encode(), b"short"]})
    assert not raw["text_error"].any()
    np.testing.assert_allclose(raw[EMBEDDING][0], raw[EMBEDDING][1], rtol=0, atol=EXACT)


NOT_UTF8 = [b"caf\xe9 \xff\xfe table", b"table \xed\xa0\x80"]


@pytest.mark.parametrize("text", NOT_UTF8)
def test_text_that_is_not_utf8_loses_only_those_characters(
    client: Client, infer: Infer, good: tuple[Product, Product], alone: FloatArray, text: bytes
) -> None:
    replaced = text.decode("utf-8", "replace")
    products = [replace(good[0], title=title, description="") for title in (text, replaced)]
    found = client.embed([good[0], *products, good[1]]).vectors
    np.testing.assert_allclose(found[[0, 3]], alone, rtol=0, atol=EXACT)
    np.testing.assert_array_equal(found[1], found[2])
    raw = infer("embed_text", {"text": [text, replaced.encode(), b"fine"]})
    assert not raw["text_error"].any()
    np.testing.assert_allclose(raw[EMBEDDING][0], raw[EMBEDDING][1], rtol=0, atol=EXACT)


def test_a_text_of_which_nothing_is_left_is_no_text(
    client: Client, infer: Infer, good: tuple[Product, Product], alone: FloatArray
) -> None:
    """Characters that nobody sees, and words in a script of which the network knows no letter."""
    texts = [b"\x00\x00", "\u202e\ufeff\u200d".encode(), "ชุดเดรส".encode()]
    products = [replace(good[0], title=text, description="") for text in texts]
    found = client.embed([good[0], *products, good[1]])
    assert found.signatures[1:4] == ("image_attributes",) * 3
    np.testing.assert_allclose(found.vectors[[0, 4]], alone, rtol=0, atol=EXACT)
    raw = infer("embed_text", {"text": [*texts, b"fine"]})
    assert raw["text_error"].ravel().tolist() == [NOTHING_KNOWN.encode()] * 3 + [b""]


def test_unknown_attributes_are_no_attributes(client: Client, good: tuple[Product, Product], alone: FloatArray) -> None:
    unknown = replace(good[0], attributes={"unheard_of": "x", "": 2.0})
    found = client.embed([good[0], unknown, good[1]])
    assert found.signatures[1] == "text_image"
    np.testing.assert_allclose(found.vectors[[0, 2]], alone, rtol=0, atol=EXACT)
    without = client.embed([replace(good[0], attributes={})]).vectors  # in another batch: alike but for rounding
    np.testing.assert_allclose(found.vectors[1], without[0], rtol=0, atol=EXACT)


def test_unheard_values_leave_the_rest_of_their_product_and_fail_alone(
    client: Client, good: tuple[Product, Product], alone: FloatArray
) -> None:
    unheard = {"kind": "no such kind"}
    rest = replace(good[0], attributes={})
    products = [good[0], replace(good[0], attributes=unheard), Product(attributes=unheard), rest, good[1]]
    found = client.embed(products, on_error="return")
    assert found.signatures[1:4] == ("text_image", "", "text_image")
    assert {index: error.reason for index, error in found.errors.items()} == {2: NOTHING_KNOWN}
    np.testing.assert_allclose(found.vectors[[0, 4]], alone, rtol=0, atol=EXACT)
    np.testing.assert_allclose(found.vectors[1], found.vectors[3], rtol=0, atol=EXACT)
    assert client.compare(products[1], rest).cosine == pytest.approx(1, abs=EXACT)


def test_attributes_that_mean_nothing_say_so(infer: Infer) -> None:
    items = [
        b"{}",
        b'{"unheard_of": 1}',
        b'{"kind": "no such kind", "price_usd": "cheap"}',
        b'{"kind": ["cushion"], "price_usd": null, "colour": {"a": 1}}',
        b'{"price_usd": 1e999, "size": NaN}',
        b'{"kind": "\\ud800", "brand": "\xff"}',
    ]
    answer = infer("embed_attributes", {"attributes": items})
    assert answer["attributes_error"].ravel().tolist() == [NOTHING_KNOWN.encode()] * len(items)


Variant: TypeAlias = Callable[[Image.Image], tuple[Any, Image.Image]]
"""Makes of a photo an unusual image source, and the plain RGB image that it must be understood as."""
FLIPS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how an upright photo is stored under it."""


def turned(photo: Image.Image, orientation: int, kind: str, **options: Any) -> tuple[bytes, Image.Image]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo.transpose(FLIPS[orientation]), kind, exif=exif, **options), photo


def on_white(image: Image.Image) -> Image.Image:
    colour, alpha = image.convert("RGBA").convert("RGB"), image.convert("RGBA").getchannel("A")
    return Image.composite(colour, Image.new("RGB", image.size, "white"), alpha)


def see_through(photo: Image.Image) -> Image.Image:
    """Return the photo with a hole and a faint half."""
    alpha = Image.new("L", photo.size, 255)
    alpha.paste(0, (10, 10, 60, 50))
    alpha.paste(90, (60, 0, 140, 90))
    image = photo.copy()
    image.putalpha(alpha)
    return image


def grey_with_alpha(photo: Image.Image) -> tuple[bytes, Image.Image]:
    image = see_through(photo).convert("LA")
    return encoded(image, "PNG"), on_white(image)


def palette(photo: Image.Image) -> Image.Image:
    return photo.quantize(32)


def palette_hole(photo: Image.Image) -> tuple[bytes, Image.Image]:
    image = palette(photo)
    data = encoded(image, "PNG", transparency=3)
    with Image.open(io.BytesIO(data)) as again:
        return data, on_white(again)


def colour_key(photo: Image.Image) -> tuple[bytes, Image.Image]:
    image = photo.copy()
    image.paste((1, 2, 3), (10, 10, 60, 50))
    plain = photo.copy()
    plain.paste("white", (10, 10, 60, 50))
    return encoded(image, "PNG", transparency=(1, 2, 3)), plain


def grey_16(photo: Image.Image, scale: int) -> tuple[bytes, Image.Image]:
    """Return 16-bit grey; with scale 1 it is all but black, and must not be brightened."""
    grey = np.asarray(photo.convert("L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * scale), "PNG")
    return data, Image.fromarray(np.rint(grey * (scale / 257)).astype(np.uint8)).convert("RGB")


def grey_jpeg(photo: Image.Image) -> tuple[bytes, Image.Image]:
    data = encoded(photo.convert("L"), "JPEG")
    with Image.open(io.BytesIO(data)) as again:
        return data, again.convert("RGB")


def animation(photo: Image.Image) -> tuple[bytes, Image.Image]:
    first = palette(photo)
    frames = [palette(photo.transpose(Image.Transpose.ROTATE_180)), palette(Image.new("RGB", photo.size, "red"))]
    return encoded(first, "GIF", save_all=True, append_images=frames, duration=50, loop=0), first.convert("RGB")


SAME_PIXELS: dict[str, Variant] = {
    "array": lambda p: (np.asarray(p), p),
    "grey array": lambda p: (np.asarray(p.convert("L")), p.convert("L").convert("RGB")),
    "bmp": lambda p: (encoded(p, "BMP"), p),
    "tiff": lambda p: (encoded(p, "TIFF"), p),
    "webp": lambda p: (encoded(p, "WEBP", lossless=True), p),
    "cmyk tiff": lambda p: (encoded(p.convert("CMYK"), "TIFF"), p),
    "palette png": lambda p: (encoded(palette(p), "PNG"), palette(p).convert("RGB")),
    "palette png with a hole": palette_hole,
    "colour key png": colour_key,
    "black and white png": lambda p: (encoded(p.convert("1"), "PNG"), p.convert("1").convert("RGB")),
    "16-bit grey png": lambda p: grey_16(p, 257),
    "dark 16-bit grey png": lambda p: grey_16(p, 1),
    "grey jpeg": grey_jpeg,
    "animated gif": animation,
    **{f"exif {n} png": lambda p, n=n: turned(p, n, "PNG") for n in FLIPS},  # type: ignore[misc]  # binds n
}
# Rounding of alpha and of JPEG's blocks moves pixels by a few steps.
ALIKE: dict[str, Variant] = {
    "rgba png": lambda p: (encoded(see_through(p), "PNG"), on_white(see_through(p))),
    "rgba array": lambda p: (np.asarray(see_through(p)), on_white(see_through(p))),
    "grey with alpha png": grey_with_alpha,
    "jpeg": lambda p: (encoded(p, "JPEG", quality=95), p),
    "cmyk jpeg": lambda p: (encoded(p.convert("CMYK"), "JPEG", quality=95), p),
    "exif 6 jpeg": lambda p: turned(p, 6, "JPEG", quality=95),
    "large exif 8 jpeg": lambda p: turned(p.resize((1400, 900)), 8, "JPEG", quality=95),
}


@pytest.mark.parametrize("name", [*SAME_PIXELS, *ALIKE])
def test_unusual_images_are_seen_as_what_they_show(
    client: Client, good: tuple[Product, Product], alone: FloatArray, photo: Image.Image, name: str
) -> None:
    source, plain = {**SAME_PIXELS, **ALIKE}[name](photo)
    reference = encoded(plain, "PNG")
    other = encoded(photo.transpose(Image.Transpose.ROTATE_90).point(lambda value: 255 - value), "PNG")
    images = [Product(images=(image,)) for image in (source, reference, other)]
    found = client.embed([good[0], *images, good[1]]).vectors
    np.testing.assert_allclose(found[[0, 4]], alone, rtol=0, atol=EXACT)
    if name in SAME_PIXELS:
        np.testing.assert_allclose(found[1], found[2], rtol=0, atol=EXACT)
    assert found[1] @ found[2] > 0.99
    assert found[1] @ found[3] < 0.9  # the tower does tell images apart


def test_who_watches_the_server_sees_unusable_items(
    server: Server, client: Client, good: tuple[Product, Product]
) -> None:
    def count() -> float:
        with urllib.request.urlopen(f"http://{server.config.at(server.config.metrics_port)}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        (line,) = (line for line in lines if line.startswith('likeness_unusable_items_total{model="image_preprocess"}'))
        return float(line.split()[-1])

    before = count()
    client.embed([*good, Product(images=(b"junk",)), Product(images=(b"more",))], on_error="return")
    assert count() == before + 2
