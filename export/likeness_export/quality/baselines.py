"""What needs no training: TF-IDF of character n-grams, pooled features of a pretrained image network, and their sum."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from likeness_client.errors import InputError
from likeness_client.records import ImageSource, Product
from numpy.typing import NDArray
from pydantic import TypeAdapter
from sklearn.feature_extraction.text import TfidfVectorizer

from likeness_export.encoders import AnyEncoderConfig, EncoderConfig
from likeness_export.evaluation.metrics import places_in, ranking
from likeness_export.features.cache import cached_features
from likeness_export.features.tower_inputs import TowerInputs
from likeness_export.products.catalogue import Catalogue, read_recipe_catalogue
from likeness_export.products.parts import Part
from likeness_export.quality.kinds import Incomplete, PairSets, Ranking, Table, Views
from likeness_export.quality.lines import Line
from likeness_export.quality.needed import needed_products
from likeness_export.quality.pair_sets import measure_pair_sets
from likeness_export.quality.tables import BACKBONES
from likeness_export.quality.trained import IMAGE, line_of, views_of
from likeness_export.uses.neighbourhood import Rows, Scorer

log = logging.getLogger(__name__)

Features: TypeAlias = Any
"""Unit vectors, one row per product: a SciPy sparse matrix (TF-IDF) or FP32 [n, d]; zeros where there is nothing."""
Source: TypeAlias = Callable[[str, Sequence[Product]], Features]
"""A part of a baseline's name, and products -> their features."""
_PRICES = ("price",)
_TOWER: TypeAdapter[EncoderConfig] = TypeAdapter(AnyEncoderConfig)


def measure_baselines(table: Table, data_root: Path, cache: Path) -> list[Line]:
    """Measure all baselines of a table; ``cache`` is a folder for the features of photos.

    Raises:
        InputError: the data or a network cannot be read.
    """
    catalogue = read_recipe_catalogue(table.products, data_root)
    masked = catalogue.masked(table.masked)
    shown = {prefix: needed_products(table, some, data_root) for prefix, some in (("", catalogue), ("masked ", masked))}
    source = partial(features_of, data_root=data_root, cache=cache)
    lines = []
    for measure in table.measures:
        for method in table.baselines:
            prefix = "masked " if method.startswith("masked ") else ""
            parts = method.removeprefix(prefix).split("+")
            match measure:
                case Incomplete():
                    pass
                case Ranking():
                    lines += list(_ranking(measure, method, parts, shown[prefix], source))
                case Views():
                    if parts[0] in BACKBONES and len(parts) == 1:
                        lines.append(_views(measure, method, shown[prefix], source))
                case PairSets():
                    lines += list(_pair_sets(measure, shown[prefix], data_root))
    return lines


def features_of(part: str, products: Sequence[Product], data_root: Path, cache: Path) -> Features:
    """Return the features of products by ``text`` or one of the `BACKBONES`."""
    if part == "text":
        return tfidf([f"{product.title!s} {product.description!s}" for product in products])
    photos = [_readable(product.images[0]) if product.images else None for product in products]
    return pooled(photos, _TOWER.validate_python(BACKBONES[part]), data_root, cache)


def _readable(photo: ImageSource) -> Path | None:
    with suppress(OSError, ValueError):  # of a path that no file can have
        if isinstance(photo, Path) and photo.is_file() and os.access(photo, os.R_OK):  # a pipe might never end
            return photo
    log.warning("the baselines do without a photo that cannot be read: %s", photo)
    return None


def tfidf(texts: Sequence[str]) -> Features:
    """Return TF-IDF of character 3-4-grams within words, of lower-cased texts; sparse, rows of unit length.

    Raises:
        InputError: all texts are empty.
    """
    if not any(text.split() for text in texts):
        raise InputError("the baseline text: the products are without a single word; leave it out of the table")
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True).fit_transform(texts)


def pooled(photos: Sequence[Path | None], config: EncoderConfig, data_root: Path, cache: Path) -> NDArray[np.float32]:
    """Return pooled features of photos by a tower as it comes, FP32 [n, d], unit length; zeros where there is none.

    Raises:
        InputError: the network is not there.
    """
    items = [Part.of(photo.read_bytes(), photo.read_bytes) if photo else None for photo in photos]
    with tempfile.TemporaryDirectory() as folder:
        tower = Path(folder)
        config.prepare([], tower, data_root)
        inputs = TowerInputs("photos", config, tower, items, [str(photo) for photo in photos], once=True)
        features = cached_features(inputs, config.build(tower, data_root), config, cache)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: NDArray[np.float32] = features / np.maximum(lengths, 1e-12)
    return unit


def standardised(similarity: NDArray[Any]) -> NDArray[Any]:
    """Return a similarity matrix minus its mean, divided by its standard deviation."""
    centred: NDArray[Any] = (similarity - similarity.mean()) / similarity.std()
    return centred


def _similarity(left: Features, right: Features) -> NDArray[Any]:
    product = left @ right.T
    dense: NDArray[Any] = product.toarray() if hasattr(product, "toarray") else product
    return dense


def _ranking(
    measure: Ranking, method: str, parts: Sequence[str], catalogue: Catalogue, source: Source
) -> Iterator[Line]:
    some = catalogue.of_splits(measure.splits)  # what TF-IDF is fitted on
    queries, gallery = (np.flatnonzero(some.in_splits(names)) for names in (measure.queries, measure.gallery))
    features = [source(part, some.products) for part in parts]
    matrices = [_similarity(found[queries], found[gallery]) for found in features]
    whole = matrices[0] if len(matrices) == 1 else sum(standardised(matrix) for matrix in matrices)
    similarity = np.asarray(whole, np.float32)
    itself = places_in(gallery, queries)
    for label in measure.labels:
        labels = some.labels(label)
        found = ranking(similarity.__getitem__, labels[queries], labels[gallery], itself)
        if found.queries:
            yield line_of(measure.name, label, method, found)


def _views(measure: Views, method: str, catalogue: Catalogue, source: Source) -> Line:
    last, first = views_of(catalogue.of_splits(measure.splits))
    similarity = _similarity(*(source(method, side.products) for side in (last, first))).astype(np.float32)
    names = np.array(last.ids)
    nowhere = np.full(len(names), -1, dtype=np.intp)
    found = ranking(similarity.__getitem__, names, names, nowhere)
    return line_of(measure.name, "product_id", f"{method} ({IMAGE})", found)


def _pair_sets(measure: PairSets, catalogue: Catalogue, data_root: Path) -> Iterator[Line]:
    """Measure TF-IDF of title, description and attributes but prices, fitted per set."""
    sets = catalogue.labels(measure.set_field)
    # Rows of sets are never compared with each other: what each set's features are is all that is needed.
    features: dict[str, Features] = {}
    places = np.zeros(len(catalogue), dtype=np.intp)
    for name in dict.fromkeys(sets.tolist()):
        rows = np.flatnonzero(sets == name)
        features[name] = tfidf([_whole_text(catalogue.products[row]) for row in rows])
        places[rows] = np.arange(len(rows))

    def of(rows: Rows) -> Features:
        return features[str(sets[rows[0]])][places[rows]]

    def pairs(left: Rows, right: Rows) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.asarray(of(left).multiply(of(right)).sum(1), np.float32)
        return found.reshape(-1)

    def search(left: Rows, right: Rows) -> NDArray[np.float32]:
        return _similarity(of(left), of(right))

    yield from measure_pair_sets(measure, {"text": Scorer(pairs=pairs, search=search)}, catalogue, data_root)


def _whole_text(product: Product) -> str:
    facts = [str(value) for key, value in product.attributes.items() if key not in _PRICES]
    return " ".join([str(product.title), str(product.description), *facts])
