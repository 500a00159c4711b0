"""The products of a file and their embeddings from another, brought together by product id."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from likeness_client.contract import modalities_of
from likeness_client.errors import InputError
from likeness_client.results import Embeddings
from numpy.typing import NDArray

from likeness_export.products.catalogue import Catalogue, first_of_each, read_catalogue

log = logging.getLogger(__name__)
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EmbeddedProducts:
    """Products that have an embedding.

    Attributes:
        catalogue: these products, n of them, in the order of the file; no id occurs twice.
        vectors: FP32 [n, d], unit length, one row per product.
        space: fingerprint of the embedding space.
        modalities: what their embeddings were made of, all products together.
    """

    catalogue: Catalogue
    vectors: Vectors
    space: str
    modalities: frozenset[str]

    @property
    def ids(self) -> list[str]:
        """The product ids."""
        return self.catalogue.ids


def check_vectors(vectors: Vectors) -> None:
    """See that every product has a vector.

    Raises:
        InputError: some have none; names the first.
    """
    if len(gaps := np.flatnonzero(np.isnan(vectors).any(1))):
        raise InputError(
            f"{len(gaps)} of {len(vectors)} vectors are NaN, first that of row {gaps[0]}: leave out the products that "
            "have no embedding"
        )


def read_embedded(products: Path, embeddings: Path, splits: Sequence[str] = ()) -> EmbeddedProducts:
    """Read a product file, or only these splits of it, and the embeddings that ``likeness embed`` made of it.

    Products without an id, repeats of an earlier id, and products whose embedding is missing or failed (a row of NaN)
    are left out, and counted in the log.

    Raises:
        InputError: a file cannot be read, or no product has an embedding.
    """
    everything, found = read_catalogue(products), Embeddings.load(embeddings)
    ids = everything.ids
    # Of the whole file, as the embeddings are: a later product of the same id has no embedding of its own here.
    firsts, row_of = first_of_each(ids), first_of_each(found.product_ids)
    unnamed = sum(not name for name in ids)
    _report("no product_id", unnamed)
    _report("product_id of an earlier one", len(ids) - unnamed - len(firsts))
    catalogue = everything.select(list(firsts.values()))
    if splits:
        catalogue = catalogue.of_splits(splits)
    places = {name: place for place, name in enumerate(catalogue.ids)}
    failed = np.isnan(found.vectors).any(1)
    missing = [name for name in places if name not in row_of]
    broken = [name for name in places if name in row_of and failed[row_of[name]]]
    usable = [name for name in places if name in row_of and not failed[row_of[name]]]
    _report(f"not in {embeddings}", len(missing), missing)
    _report("embedding failed", len(broken), broken)
    if not usable:
        where = f" of split {' or '.join(splits)}" if splits else ""
        raise InputError(
            f"no product{where} of {products} has an embedding in {embeddings}: they are matched by product_id; "
            f"make the embeddings with `likeness embed {products} --out {embeddings}`"
        )
    return EmbeddedProducts(
        catalogue=catalogue.select([places[name] for name in usable]),
        vectors=found.vectors[[row_of[name] for name in usable]],
        space=found.space,
        modalities=frozenset(part for name in usable for part in modalities_of(found.signatures[row_of[name]])),
    )


def _report(reason: str, count: int, names: Sequence[str] = ()) -> None:
    if count:
        example = f", the first is {names[0]!r}" if names else ""
        log.warning("products left out, %s: %d%s", reason, count, example)
