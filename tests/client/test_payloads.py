from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness_client.contract import MODALITIES, InputSchema
from likeness_client.errors import InputError, ProductError
from likeness_client.payloads import ENCODERS, payloads
from likeness_client.records import ImageSource, Product, compose_text

SCHEMA = InputSchema(attribute_keys=("price_usd", "colour"))
any_text = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too


def encode(product: Product, schema: InputSchema = SCHEMA) -> dict[str, bytes]:
    return payloads(product, schema, MODALITIES)


def image(source: object) -> bytes:
    return encode(Product(images=(source,)))["image"]  # type: ignore[arg-type]  # wrong types on purpose


def test_every_modality_of_the_contract_has_an_encoder() -> None:
    assert tuple(ENCODERS) == MODALITIES


@given(title=any_text | st.binary(max_size=40), description=any_text)
def test_text_is_valid_utf8_with_single_spaces(title: str | bytes, description: str) -> None:
    product = Product(title=title, description=description, images=(b"image",))
    data = encode(product).get("text")
    composed = compose_text(product, SCHEMA.text_fields)
    assert (data is None) == (composed == "")
    if data is not None:
        assert data.decode("utf-8") == composed
        assert composed == " ".join(composed.split())


def test_text_survives_broken_bytes() -> None:
    assert encode(Product(title=b"caf\xe9 noir", description="half \ud83d"))["text"] == "caf� noir half ?".encode()
    assert encode(Product(attributes={"colour": "half \ud83d"})) == {"attributes": b'{"colour":"half ?"}'}


def test_an_enum_of_strings_counts_as_what_it_says() -> None:
    class Colour(str, Enum):  # noqa: UP042 (unlike StrEnum's, str() of its members is not what they say)
        RED = "red"

    said, shown = (
        Product(title=word, attributes={"colour": word}, interactions={word: 2}) for word in ("red", Colour.RED)
    )
    assert encode(shown) == encode(said)


def test_text_may_hold_attributes() -> None:
    schema = InputSchema(text_fields=("attributes.colour", "title"))
    assert encode(Product(title="shoe", attributes={"colour": "red"}), schema)["text"] == b"red shoe"


def test_unknown_text_field_is_the_callers_mistake() -> None:
    with pytest.raises(InputError, match="no text field 'brand'"):
        compose_text(Product(title="a"), ("brand",))


@given(st.dictionaries(st.sampled_from(["colour", "price_usd", "other"]), any_text | st.floats(allow_nan=False)))
def test_attributes_are_canonical_json_of_the_schemas_keys(attributes: dict[str, str | float]) -> None:
    if any(isinstance(value, float) and not np.isfinite(value) for value in attributes.values()):
        with pytest.raises(ProductError, match="finite number"):
            encode(Product(title="a", attributes={"colour": float("inf")}))
        return
    data = encode(Product(title="a", attributes=attributes)).get("attributes")
    turned = dict(reversed(attributes.items()))
    assert data == encode(Product(title="a", attributes=turned)).get("attributes")
    if data is not None:
        sent = json.loads(data)
        assert sent
        assert set(sent) <= set(SCHEMA.attribute_keys)
        assert all(value != "" for value in sent.values())


@pytest.mark.parametrize(("asked", "held"), [("gr\u00f6sse", "gro\u0308sse"), ("gro\u0308sse", "gr\u00f6sse")])
def test_a_schemas_key_is_found_however_its_accents_are_written(asked: str, held: str) -> None:
    schema = InputSchema(text_fields=(f"attributes.{asked}",), attribute_keys=(asked, "colour"))
    found = encode(Product(attributes={held: "L", "kind": "mug"}), schema)
    assert found == {"text": b"L", "attributes": f'{{"{asked}":"L"}}'.encode()}


def test_equal_attributes_are_equal_bytes() -> None:
    first = encode(Product(attributes={"price_usd": 52.0, "colour": " dark  red"}))
    second = encode(Product(attributes={"colour": "dark red", "price_usd": np.float32(52)}))  # type: ignore[dict-item]
    assert first == second == {"attributes": b'{"colour":"dark red","price_usd":52}'}


def test_letters_that_look_the_same_are_equal_bytes() -> None:
    composed, decomposed = (
        encode(Product(title=f"{word} au lait", attributes={"colour": word})) for word in ("Caf\u00e9", "Cafe\u0301")
    )
    assert composed == decomposed
    assert composed["text"].decode() == "Caf\u00e9 au lait"


@pytest.mark.parametrize("value", [True, None, [], float("nan"), 10**400, pytest.param(10**5000, id="5000 digits")])
def test_an_attribute_that_is_neither_text_nor_number_fails(value: object) -> None:
    with pytest.raises(ProductError, match=r"'colour' must be a string or a finite number, .* leave it out$") as caught:
        encode(Product(product_id="p1", attributes={"colour": value}))  # type: ignore[dict-item]
    assert caught.value.modality == "attributes"
    assert caught.value.product_id == "p1"


def test_blank_parts_are_absent() -> None:
    with pytest.raises(ProductError, match="has none of text, image, attributes"):
        encode(Product(title=" \n", description=b"", attributes={"colour": " ", "other": "x"}))


def test_modalities_that_the_server_lacks_are_not_looked_at() -> None:
    product = Product(title="a", images=(Path("missing.jpg"),))
    assert payloads(product, SCHEMA, ("text",)) == {"text": b"a"}


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([None, 3, 4]), st.randoms(use_true_random=False))
def test_pixels_become_pnm_without_loss(height: int, width: int, channels: int | None, random: object) -> None:
    shape = (height, width) if channels is None else (height, width, channels)
    seed = random.randrange(2**32)  # type: ignore[attr-defined]
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    if channels == 4:
        pixels[..., 3] = 255  # opaque: nothing may change
    magic, size, top, rest = image(pixels).split(b"\n", 3)
    assert (magic, size, top) == (b"P5" if channels is None else b"P6", b"%d %d" % (width, height), b"255")
    expected = pixels if channels is None else pixels[..., :3]
    assert rest == expected.tobytes()


def test_alpha_is_flattened_on_white() -> None:
    pixels = np.array([[[10, 20, 30, 0], [0, 0, 1, 128]]], dtype=np.uint8)
    assert image(pixels).endswith(bytes([255, 255, 255, 127, 127, 128]))  # 127.0 and 127.5


def test_views_of_arrays_are_sent_as_they_look() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert image(pixels[:, ::-1]) == image(pixels[:, ::-1].copy())


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2), np.float32), *(np.zeros(shape, np.uint8) for shape in ((2, 2, 1), (2, 2, 2), (0, 2), (3,)))],
)
def test_other_arrays_fail_and_say_what_is_accepted(array: ImageSource) -> None:
    with pytest.raises(ProductError, match=r"must be uint8 \[h, w\], \[h, w, 3\] or \[h, w, 4\], found"):
        image(array)


def test_image_sources(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"jpeg")
    assert image(path) == image(b"jpeg") == b"jpeg"
    assert type(image(np.bytes_(b"jpeg"))) is bytes  # tritonclient would send the text of a subclass's repr
    assert encode(Product(images=(b"main", b"other")))["image"] == b"main"


def test_several_photos_travel_as_one(tmp_path: Path) -> None:
    schema = InputSchema(max_photos=3, max_bytes={"image": 10})
    path = tmp_path / "a.jpg"
    path.write_bytes(b"jpeg")

    def sent(*images: ImageSource) -> bytes:
        return encode(Product(images=images), schema)["image"]

    assert sent(path) == b"jpeg"
    assert sent(b"main", path) == b"photos\0\4\0\0\0main\4\0\0\0jpeg"
    assert sent(b"a", b"b", b"c", b"d", b"e") == b"photos\0" + b"".join(b"\1\0\0\0" + it for it in (b"a", b"b", b"c"))
    assert sent(b"x" * 10, b"y" * 10)  # the limit is that of each
    for wrong, reason in ((b"", "is empty"), (b"x" * 11, "11 bytes, the server's limit is 10"), (Path("no"), "no: No")):
        with pytest.raises(ProductError, match=f"photo 2 of 3: .*{reason}") as caught:
            sent(b"main", wrong, b"other")
        assert caught.value.modality == "image"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Path("no/such.jpg"), "cannot read no/such.jpg: No such file"),
        (Path("nul\0.jpg"), "cannot read"),
        (Path("shop") / "https://cdn.example.com/a.jpg", "a.jpg: No such file or directory; nothing is fetched"),
        (Path("shop") / "photos\\a.jpg", "a.jpg: No such file or directory; write / between folders"),
        (Path(), "is not a file"),
        (Path("/dev/zero"), "is not a file"),
        (b"", "is empty"),
        ("a.jpg", r"expected a Path, bytes or a uint8 array, found str; make Path\(\.\.\.\) of a name"),
    ],
)
def test_images_that_cannot_be_read_fail(source: object, reason: str) -> None:
    with pytest.raises(ProductError, match=reason) as caught:
        image(source)
    assert caught.value.modality == "image"


def test_video_sources(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"clip")
    assert encode(Product(video=path)) == encode(Product(video=b"clip")) == {"video": b"clip"}
    assert type(encode(Product(video=np.bytes_(b"clip")))["video"]) is bytes


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Path("no/such.mp4"), "cannot read no/such.mp4: No such file"),
        (Path("/dev/zero"), "is not a file"),
        (b"", "is empty"),
        ("a.mp4", "expected a Path or bytes, found str"),
    ],
)
def test_videos_that_cannot_be_read_fail(source: object, reason: str) -> None:
    with pytest.raises(ProductError, match=reason) as caught:
        encode(Product(video=source))  # type: ignore[arg-type]  # wrong types on purpose
    assert caught.value.modality == "video"


def test_the_size_limit_names_size_limit_and_way_out(tmp_path: Path) -> None:
    schema = InputSchema(max_bytes={"text": 10, "image": 10})
    path = tmp_path / "a.jpg"
    path.touch()
    os.truncate(path, 10**12)  # more than could be read
    with pytest.raises(ProductError, match=r"image: 1,000,000,000,000 bytes, the server's limit is 10; send a smaller"):
        encode(Product(images=(path,)), schema)
    schema = InputSchema(max_bytes={"text": 10, "video": 10})
    with pytest.raises(ProductError, match=r"video: 1,0.* bytes, the server's limit is 10; send a shorter"):
        encode(Product(video=path), schema)
    with pytest.raises(ProductError, match=r"text: 1,000 bytes, the server's limit is 10; shorten it"):
        encode(Product(title="x" * 1000), schema)
    assert encode(Product(title="x" * 10), schema)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"title": None}, "title must be a str or bytes, found NoneType"),
        ({"description": float("nan")}, "description must be a str or bytes, found float"),
        ({"attributes": None}, "attributes must be a Mapping, found NoneType"),
        ({"interactions": None}, "interactions must be a Mapping"),
        ({"images": np.zeros((2, 2), np.uint8)}, "images must be a tuple or list, found ndarray"),
        ({"images": Path("a.jpg")}, "images must be a tuple or list, found PosixPath; make it one, or leave it out"),
        ({"product_id": np.int64(7)}, "product_id must be a string, found .*7.*; make it one"),
    ],
)
def test_parts_of_another_type_cost_one_product(parts: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProductError, match=reason):
        encode(Product(**{"title": "a", **parts}))


def test_a_long_article_number_keeps_its_digits() -> None:
    schema = InputSchema(attribute_keys=("sscc",))
    numbers: tuple[Any, ...] = (376104250021234569, np.uint64(376104250021234569))
    for value in numbers:
        found = payloads(Product(attributes={"sscc": value}), schema, ["attributes"])
        assert found == {"attributes": b'{"sscc":376104250021234569}'}


def test_equal_numbers_in_the_text_are_equal_bytes() -> None:
    schema = InputSchema(text_fields=("attributes.modelno",))
    values: tuple[Any, ...] = (5389, 5389.0, np.float32(5389))
    sent = [encode(Product(attributes={"modelno": value}), schema) for value in values]
    assert sent == [{"text": b"5389"}] * 3


@pytest.mark.parametrize("value", [0.1, np.float64(0.1), np.float32(0.1), np.float16(0.1)])
def test_a_number_of_fewer_bits_is_known_by_its_digits(value: Any) -> None:
    schema = InputSchema(text_fields=("attributes.litres",), attribute_keys=("litres",))
    sent = encode(Product(attributes={"litres": value}, interactions={"a": value}), schema)
    assert sent == {"text": b"0.1", "attributes": b'{"litres":0.1}', "interactions": b'{"a":0.1}'}


@pytest.mark.parametrize("value", [None, float("nan"), True])
def test_attributes_in_the_text_are_text_or_numbers(value: Any) -> None:
    schema = InputSchema(text_fields=("attributes.brand", "title"))
    with pytest.raises(ProductError, match="'brand' must be a string or a finite number"):
        encode(Product(title="a", attributes={"brand": value}), schema)
