"""What a server finds: recall at 1, of all products and of every part of a mix."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from likeness_bench import recall as recall_module
from likeness_bench.load_config import LoadConfig
from likeness_bench.recall import LabelConfig, Recall, labelled, recall_at_1, served_recall, served_recalls
from likeness_bench.workload import AS_THEY_ARE
from likeness_client import InputError, InputSchema, Product, ServerInfo, SpaceMismatchError
from likeness_client.results import Embeddings

INFO = ServerInfo(
    space="s",
    modalities=("text",),
    signatures=("text",),
    dimension=4,
    max_batch_size=8,
    schema=InputSchema(),
    error_outputs={},
)
LOAD = LoadConfig(address="here:1", concurrency=1)


def test_recall_stops_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[int] = []
    spaces = iter("aaaaab")

    class Server:
        def __enter__(self) -> Server:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def info(self) -> ServerInfo:
            return INFO

        def embed(self, products: Sequence[Product], **_: Any) -> Any:
            embedded.append(len(products))
            return SimpleNamespace(vectors=np.eye(len(products), 4, dtype=np.float32), space=next(spaces))

    monkeypatch.setattr(recall_module, "Client", lambda *_, **__: Server())
    products = [(Product(title=str(number)), "a") for number in range(600)]
    assert served_recalls(LOAD, products, {})[AS_THEY_ARE].gallery == 600
    assert embedded == [256, 256, 88]
    assert served_recalls(LOAD, products, {}, stopped=lambda: len(embedded) > 3) == {}
    assert embedded == [256, 256, 88, 256]
    with pytest.raises(SpaceMismatchError):  # another run is served in the middle of it
        served_recalls(LOAD, products[:512], {}, stopped=lambda: False)


def test_every_part_of_a_mix_has_a_recall_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def served(load: LoadConfig, products: Sequence[tuple[Product, str]], signature: str, _: object) -> Recall:
        asked.append((load, len(products), signature))
        return Recall(at_1=0.5, queries=1, gallery=2)

    monkeypatch.setattr(recall_module, "served_recall", served)
    assert list(served_recalls(LOAD, [(Product(), "a")], {"text": 0.5, "image": 0.5})) == ["text", "image"]
    assert list(served_recalls(LOAD, [(Product(), "a")], {})) == [AS_THEY_ARE]
    assert asked == [(LOAD, 1, name) for name in ("text", "image", AS_THEY_ARE)]
    assert LabelConfig(field="group", split="").name == "group, split any"


class Served:
    """Takes the place of the client: embeds whole products, knows no shape called new, and may be replaced."""

    def __init__(self, *_: object, **__: object) -> None:
        self.spaces = iter("sstt")

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def info(self) -> ServerInfo:
        return replace(INFO, modalities=("text", "attributes"), schema=InputSchema(attribute_keys=("shape",)))

    def embed(self, products: Sequence[Product], modalities: Sequence[str] | None, on_error: str) -> Embeddings:
        assert on_error == "return"
        known = [product.attributes.get("shape") != "new" for product in products]
        whole = "_".join(modalities or ("text", "attributes"))
        return Embeddings(
            vectors=np.tile(np.array([1, 0], dtype=np.float32), (len(products), 1)),
            modality_weights=({},) * len(products),
            signatures=tuple(whole if found else "text" for found in known),
            product_ids=("",) * len(products),
            space=next(self.spaces),
        )


def test_the_recall_of_a_signature_is_that_of_what_the_server_knows_all_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall_module, "Client", Served)
    shapes: list[dict[str, str]] = [{"shape": "old"}, {"shape": "old"}, {"shape": "new"}, {}]
    given = [(Product(title="vase", attributes={**shape}), "group") for shape in shapes]
    found = {name: served_recall(LOAD, given, name) for name in ("text_attributes", AS_THEY_ARE)}
    assert {name: recall and recall.gallery for name, recall in found.items()} == {"text_attributes": 2, AS_THEY_ARE: 4}
    assert served_recall(LOAD, given, AS_THEY_ARE, lambda: True) is None
    monkeypatch.setattr(recall_module, "_STEP", 1)
    with pytest.raises(SpaceMismatchError):
        served_recall(LOAD, given, AS_THEY_ARE)


def test_recall_at_1_by_hand() -> None:
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8], [-1, 0], [np.nan, 0]], dtype=np.float32)
    labels = np.array(["a", "a", "b", "a", "b", "b"])
    # Nearest: 0 -> 1 (a, a); 1 -> 3 (a, a); 2 -> 3 (b, a); 3 -> 1 (a, a); 4 -> 2 (b, b); the last was not embedded.
    assert recall_at_1(vectors, labels) == Recall(at_1=4 / 5, queries=5, gallery=5)
    # A product without a label, or alone with it, is ranked but asks nothing.
    assert recall_at_1(vectors, np.array(["a", "", "b", "a", "", ""])) == Recall(at_1=0.0, queries=2, gallery=5)
    assert recall_at_1(vectors[:0], labels[:0]) == Recall(at_1=0.0, queries=0, gallery=0)


def test_one_long_label_does_not_fill_the_memory() -> None:
    labels = ["a whole description" * 1_000, *map(str, range(2_000))]  # 150 MB as an array
    tracemalloc.start()
    recall_at_1(np.ones((len(labels), 1), dtype=np.float32), labels)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_of_equally_near_products_the_first_counts_however_they_are_rounded() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [0.6 + 1e-6, 0.8]], dtype=np.float32)
    assert recall_at_1(vectors, np.array(["a", "a", "b"])) == Recall(at_1=1 / 2, queries=2, gallery=3)


def test_labelled_products_are_those_of_the_split() -> None:
    rows = [(Product(product_id=str(row)), {"split": split, "group": f"g{row}"}) for row, split in enumerate("abab")]
    assert [label for _, label in labelled(rows, LabelConfig(field="group", split="a"))] == ["g0", "g2"]
    assert len(labelled(rows, LabelConfig(field="group", split=""))) == 4
    with pytest.raises(InputError, match="has the label 'kind' in split 'a': give another --label or --split"):
        labelled(rows, LabelConfig(field="kind", split="a"))
