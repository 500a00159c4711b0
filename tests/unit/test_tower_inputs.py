"""Inputs that are encoded once, and features that are computed once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from likeness_client.errors import InputError
from likeness_export.encoders import Encoder
from likeness_export.encoders.photo_set import PhotoSet
from likeness_export.evaluation.evaluate import OfflineEmbedder
from likeness_export.features import cache
from likeness_export.features.cache import cached_features
from likeness_export.features.tower_inputs import TowerInputs, fitting, present_modalities, unknown_modalities
from likeness_export.products.catalogue import Catalogue, read_catalogue
from likeness_export.products.parts import Part
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from tests.unit.conftest import Exported

Read = Callable[..., TowerInputs]
DAMAGED = 5


@pytest.fixture
def catalogue(exported: Exported) -> Catalogue:
    """The tiny catalogue, with a photo that cannot be read."""
    found = read_catalogue(exported.run.folder.parent / "data" / "products.jsonl")
    products = list(found.products)
    products[DAMAGED] = replace(products[DAMAGED], images=(b"no photo",))
    return replace(found, products=tuple(products))


@pytest.fixture
def read(exported: Exported, catalogue: Catalogue) -> Read:
    """Read the photos of the tiny catalogue as inputs of its tower."""
    recipe = exported.recipe
    parts = [found.get("image") for found in catalogue.parts(recipe.input_schema(), recipe.modalities())]
    ids = [product.product_id for product in catalogue.products]

    def of(name: str = "image", *, once: bool = False) -> TowerInputs:
        return TowerInputs(name, recipe.towers["image"], exported.run.towers / "image", parts, ids, once=once)

    return of


@pytest.fixture
def encoder(exported: Exported) -> Encoder:
    _, network = exported.run.read_network()
    return network.tower("image").encoder


class PlainEncoder(Encoder):
    """Varies no photo."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__()
        self.feature_dim = inner.feature_dim

    def forward(self, *tensors: Tensor) -> Tensor:
        return tensors[0].flatten(1)


class Counting:
    """Stands before a preprocessor, and counts what it is given."""

    def __init__(self, inputs: TowerInputs) -> None:
        self.given, self._inner = 0, inputs.preprocessor

    def __call__(self, items: Sequence[bytes]) -> object:
        self.given += len(items)
        return self._inner(items)


def batches_of(inputs: TowerInputs, encoder: Encoder) -> list[NDArray[np.float32]]:
    """Encode, and return the batches that the encoder was given."""
    given: list[NDArray[np.float32]] = []
    handle = encoder.register_forward_pre_hook(lambda _, tensors: given.append(tensors[0].numpy().copy()))
    inputs.encode(encoder)
    handle.remove()
    return given


@pytest.mark.parametrize("at_once", [1, 5, 64, 100])
def test_inputs_that_are_encoded_once_come_in_the_same_batches_and_are_not_kept(
    read: Read, encoder: Encoder, at_once: int
) -> None:
    kept, passing = read(), read(once=True)
    kept.run_rows = passing.run_rows = at_once
    passing.preprocessor = counted = Counting(passing)
    expected, found = batches_of(kept, encoder), batches_of(passing, encoder)
    assert [len(batch) for batch in found] == [len(batch) for batch in expected]
    assert all(np.array_equal(*both) for both in zip(found, expected, strict=True))
    assert not passing._fixed
    assert kept._fixed
    for name in ("present", "unknown"):
        assert np.array_equal(getattr(passing, name), getattr(kept, name))
    assert not passing.present[DAMAGED]
    assert not passing.unknown[DAMAGED]
    assert counted.given == sum(item is not None for item in passing.items)  # each is read once
    rows = np.flatnonzero(kept.present)[:3]
    assert torch.equal(passing.batch(rows)[0], kept.batch(rows)[0])  # once more, it is read again


def test_of_inputs_that_are_encoded_once_nothing_is_kept_by_asking_what_is_there(
    read: Read, several: Callable[..., TowerInputs], encoder: Encoder
) -> None:
    for inputs in (read(once=True), several(once=True)):
        rows = np.flatnonzero(inputs.present)
        assert not inputs._fixed
        assert not inputs._kept
        assert {*inputs.lengths(rows).tolist()} == {1}
        if len(inputs.specs) == 1:
            assert len(batches_of(inputs, encoder)) == 1


@pytest.fixture
def several(exported: Exported, catalogue: Catalogue, tmp_path: Path) -> Callable[..., TowerInputs]:
    """Read products of one to four photos, of which a tower takes three; a single one has the largest file."""
    config = exported.recipe.towers["image"].model_copy(update={"max_photos": 3})
    config.prepare([], tmp_path / "image", tmp_path)
    images = [product.images[0] for product in catalogue.products if product.images]
    photos = [image.read_bytes() if isinstance(image, Path) else bytes(image) for image in images]
    products = [
        replace(
            product, images=tuple(photo + bytes(9999 * (row % 4 == 0)) for photo in photos[row : row + 1 + row % 4])
        )
        for row, product in enumerate(catalogue.products)
    ]
    schema = replace(exported.recipe.input_schema(), max_photos=3)
    parts = [found.get("image") for found in replace(catalogue, products=tuple(products)).parts(schema, ["image"])]

    def of(*, once: bool = False) -> TowerInputs:
        return TowerInputs("image", config, tmp_path / "image", parts, [""] * len(parts), once=once)

    return of


@pytest.mark.parametrize("at_once", [1, 5, 64])
def test_several_photos_are_read_once_and_their_features_are_a_mean(
    several: Callable[..., TowerInputs], encoder: Encoder, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likeness_export.features.tower_inputs.MOST_AT_ONCE", 10)  # fewer than there are
    kept, passing, network = several(), several(once=True), PhotoSet(encoder)
    kept.run_rows = passing.run_rows = at_once
    passing.preprocessor = counted = Counting(passing)
    features = kept.encode(network)
    np.testing.assert_allclose(passing.encode(network), features, rtol=0, atol=1e-5)
    assert counted.given == sum(item is not None for item in passing.items)
    rows = np.flatnonzero(kept.present)
    pixels, photos = kept.batch(rows)
    assert {*photos.sum(1).tolist()} == {1, 2, 3}
    assert pixels.shape[:2] == photos.shape
    for row, own, there in zip(rows, pixels, photos.sum(1), strict=True):
        with torch.inference_mode():
            expected = np.average(encoder(own[:there]).numpy(), axis=0, weights=[1, 1 / 2, 1 / 3][:there])
        np.testing.assert_allclose(features[row], expected, rtol=0, atol=1e-5)
    absent = np.flatnonzero(~kept.present)
    assert len(absent)  # those with the photo that cannot be read
    assert not features[absent].any()


@pytest.mark.parametrize(
    ("lengths", "at_once", "count"),
    [([1], 4, 1), ([9], 4, 1), ([1] * 9, 4, 4), ([1, 1, 2, 2], 4, 2), ([1, 1, 2], 6, 3), ([2, 3], 4, 1)],
)
def test_a_batch_holds_so_many_photos_with_padding(lengths: list[int], at_once: int, count: int) -> None:
    assert fitting(lengths, at_once) == count


@pytest.mark.parametrize("once", [True, False])
def test_of_several_photos_batches_of_a_few_are_computed_and_verified(
    several: Callable[..., TowerInputs], encoder: Encoder, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    inputs, asked, batches = several(once=once), list[Any](), list[Tensor]()
    inputs.run_rows = 6

    def traced(*given: Any) -> Callable[..., NDArray[np.float32]]:
        asked.append(given[-2:])
        return run

    def run(tensors: tuple[Tensor, ...]) -> NDArray[np.float32]:
        batches.append(tensors[1])
        return np.zeros((len(tensors[0]), encoder.feature_dim), np.float32)

    monkeypatch.setattr("likeness_export.features.tower_inputs.encode_with", traced)
    inputs.encode(PhotoSet(encoder))
    assert asked == [(6, 3)]
    assert max(photos.numel() for photos in batches) <= 6
    assert sum(map(len, batches)) == inputs.present.sum()


def test_a_batch_that_is_learned_from_stays_whole(several: Callable[..., TowerInputs]) -> None:
    inputs = several()
    rows = np.flatnonzero(inputs.present)
    given: list[int] = []

    def encode(*tensors: Tensor) -> Tensor:
        given.append(len(tensors[0]))
        return tensors[1].sum(1, keepdim=True)

    found = inputs.map(rows, encode)
    assert given == [len(rows)]
    assert found[:, 0].tolist() == inputs.lengths(rows).tolist()


def test_a_network_learns_from_one_photo_of_each_product_at_a_time(
    several: Callable[..., TowerInputs], encoder: Encoder
) -> None:
    inputs = several()
    rows = np.flatnonzero(inputs.present)[:12]
    tensors = inputs.batch(rows)
    torch.manual_seed(0)
    seen = [PhotoSet(PlainEncoder(encoder)).augment(*tensors) for _ in range(40)]
    for pixels, photos in seen:
        assert pixels.shape[:2] == photos.shape == (len(rows), 1)
        assert photos.all()
    for row, there in enumerate(tensors[1].sum(1).tolist()):
        shown = {bytes(pixels[row, 0].numpy()) for pixels, _ in seen}
        assert shown == {bytes(photo.numpy()) for photo in tensors[0][row, :there]}


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"pixels": np.zeros((64, 32, 32, 3))}, r"pixels float64 \[64, 32, 32, 3\]"),
        ({"pixels": np.zeros((64, 32, 3), np.uint8)}, r"pixels uint8 \[64, 32, 3\]"),
        ({"pixels": np.zeros((64, 32, 31, 3), np.uint8)}, r"pixels uint8 \[64, 32, 31, 3\]"),
        ({"photo": np.zeros((64, 32, 32, 3), np.uint8)}, r"photo uint8 \[64, 32, 32, 3\]"),
    ],
)
def test_tensors_that_a_server_would_refuse_are_refused_here(
    read: Read, encoder: Encoder, tensors: dict[str, NDArray[np.generic]], found: str
) -> None:
    inputs = read(once=True)
    inputs.preprocessor = lambda items: (tensors, [""] * len(items))
    expected = rf"^towers.image: the preprocessing puts out {found} .* declares pixels UINT8 \[32, 32, 3\] for each$"
    with pytest.raises(InputError, match=expected):
        inputs.encode(encoder)


def test_what_nothing_is_known_of_is_encoded_as_the_server_does(exported: Exported) -> None:
    recipe, network = exported.run.read_network()
    config, encoder = recipe.towers["attributes"], network.tower("attributes").encoder
    items = [Part.of(b'{"kind":"kind 1"}'), Part.of(b'{"kind":"new"}'), None]

    def features(*, once: bool) -> NDArray[np.float32]:
        inputs = TowerInputs("a", config, exported.run.towers / "attributes", items, ["p", "q", "r"], once=once)
        found = inputs.encode(encoder)
        assert inputs.unknown.tolist() == [False, True, False]
        assert inputs.known.tolist() == [True, False, False]
        return found

    assert np.array_equal(features(once=True), features(once=False))
    assert features(once=True).any(1).tolist() == [True, True, False]


def test_of_many_inputs_that_cannot_be_read_the_first_are_named(
    exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    config = exported.run.read_recipe().towers["attributes"]
    items, names = [Part.of(b"no JSON")] * 30, [f"p{place}" for place in range(30)]
    inputs = TowerInputs("facts", config, exported.run.towers / "attributes", items, names, once=False)
    assert not inputs.present.any()
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("facts of product p0 is left out: the attributes are not JSON")
    assert messages[10:] == ["facts of 20 more products is left out"]


def test_what_is_present_is_known_before_anything_is_encoded(read: Read, encoder: Encoder) -> None:
    inputs = read(once=True)
    assert np.array_equal(inputs.present, read().present)
    assert np.array_equal(inputs.encode(encoder), read().encode(encoder))


def test_a_modality_is_there_if_all_its_towers_can_read_it_and_one_of_them_knows_something() -> None:
    def tower(present: Sequence[int], unknown: Sequence[int]) -> Any:
        return SimpleNamespace(present=np.array(present, dtype=bool), unknown=np.array(unknown, dtype=bool))

    inputs = {
        "photo": tower([0, 0, 1, 1, 1], [0, 0, 0, 0, 1]),
        "words": tower([1, 1, 1, 0, 1], [0, 1, 1, 0, 0]),
        "terms": tower([1, 1, 1, 1, 0], [0, 0, 1, 0, 0]),
    }
    modalities = {"photo": "image", "words": "text", "terms": "text"}  # the contract has text first
    assert unknown_modalities(modalities, inputs).tolist() == [
        [False, False],
        [False, False],
        [True, False],
        [False, False],
        [False, True],
    ]
    assert present_modalities(modalities, inputs).tolist() == [
        [True, False],
        [True, False],
        [False, True],
        [False, True],
        [False, False],
    ]


def test_features_are_found_under_another_name_without_reading_or_encoding(
    read: Read,
    encoder: Encoder,
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = exported.recipe.towers["image"]
    first = read(once=True)
    computed = cached_features(first, encoder, config, tmp_path)
    caplog.clear()
    other = read("image2", once=True)
    other.preprocessor = counted = Counting(other)
    monkeypatch.setattr(encoder, "forward", lambda *_: pytest.fail("encoded again"))
    assert np.array_equal(cached_features(other, encoder, config, tmp_path), computed)
    assert np.array_equal(other.present, first.present)
    assert counted.given == 0
    assert [record.message.split(":")[0] for record in caplog.records] == ["image2 of product 1-2 is left out"]
    monkeypatch.undo()
    fitted, asked = read(once=True), read(once=True)
    fitted.assets = tmp_path / "assets"  # another vocabulary, say
    shutil.copytree(first.assets, fitted.assets)
    (fitted.assets / "more.json").write_text("{}", encoding="utf-8")
    asked.digests = asked.digests[::-1]
    for inputs in (fitted, asked):
        kept = {*tmp_path.glob("*.npz")}
        cached_features(inputs, encoder, config, tmp_path)
        assert kept < {*tmp_path.glob("*.npz")}
    kept = {*tmp_path.glob("*.npz")}
    helper = tmp_path / "helper.py"
    helper.write_text("ONE = 1", encoding="utf-8")
    monkeypatch.setattr(cache, "code_files", lambda *_: [helper])
    cached_features(other, encoder, config, tmp_path)
    assert kept < {*tmp_path.glob("*.npz")}
    next(encoder.parameters()).data += 1  # other weights have other features
    assert not np.array_equal(cached_features(other, encoder, config, tmp_path), computed)


def test_features_that_cannot_be_kept_are_used_all_the_same(
    read: Read, encoder: Encoder, exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    found = cached_features(read(once=True), encoder, exported.recipe.towers["image"], tmp_path / "file")
    assert np.array_equal(found, read().encode(encoder))
    assert "features are not kept, and computed again next time" in caplog.text


def test_evaluating_a_fine_tuned_run_again_encodes_nothing(
    exported: Exported, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, encode = exported.recipe.modalities(), TowerInputs.encode

    def noting(inputs: TowerInputs, encoder: Encoder) -> NDArray[np.float32]:
        assert not inputs._fixed  # decoded photos are not kept
        return encode(inputs, encoder)

    monkeypatch.setattr(TowerInputs, "encode", noting)
    first = OfflineEmbedder(exported.run, catalogue)
    monkeypatch.setattr(TowerInputs, "encode", lambda *_: pytest.fail("encoded again"))
    again = OfflineEmbedder(exported.run, catalogue)
    assert np.array_equal(first.embed(whole), again.embed(whole), equal_nan=True)
    assert np.array_equal(first.present, again.present)


def test_features_that_no_memory_holds_are_refused_with_the_way_out(read: Read, encoder: Encoder) -> None:
    encoder.feature_dim = 10**13  # of more bytes than processors address
    with pytest.raises(InputError, match=r"towers\.image: 10+ features of each of \d+ products .* GB.*components"):
        read(once=True).encode(encoder)
