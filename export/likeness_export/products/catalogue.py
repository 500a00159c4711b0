"""Products for training and evaluation: read once, encoded exactly as the client encodes them for the server."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from likeness_client.contract import InputSchema
from likeness_client.errors import InputError, ProductError, RecordError
from likeness_client.records import Product, Record, canonical, field_value, scan_products
from numpy.typing import NDArray

from likeness_export.left_out import log_left_out
from likeness_export.products.masking import Mask
from likeness_export.products.parts import Part, parts_of

if TYPE_CHECKING:
    from likeness_export.recipe import DataSection

log = logging.getLogger(__name__)
_NO_LABELS = {"product_id", "title", "description", "images", "video"}
_SHOWN_KEYS = 12
_LONGEST_LABEL = 200


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Some products of a file, in its order, and the raw records beside them, which hold the labels."""

    products: tuple[Product, ...]
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.products)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} products)"

    @property
    def ids(self) -> list[str]:
        """The product ids; empty where a product has none."""
        return [product.product_id for product in self.products]

    def labels(self, field: str) -> NDArray[np.str_]:
        """Return a label per product (see `field_value`), the hash of a long one; empty where there is none."""
        return np.array([_bounded(field_value(record, field)) for record in self.records], dtype=np.str_)

    def needed_labels(self, field: str, splits: Sequence[str] = ()) -> NDArray[np.str_]:
        """Return the labels where they are asked for by name, so that a wrong name does not pass for no label.

        Raises:
            InputError: no product (of these splits, if there are any) has one; names the keys that products have.
        """
        among = self.of_splits(splits) if splits else self
        if not (among.labels(field) != "").any():
            where = f" of split {' or '.join(dict.fromkeys(splits))}" if splits else ""
            raise InputError(
                f"no product{where} has the label {field!r}; products have: {named_keys(among.label_keys())}"
            )
        return self.labels(field)

    def label_keys(self) -> list[str]:
        """Return the fields that can serve as labels, those of most products first."""
        counts = Counter(key for record in self.records for key in _label_keys(record))
        return [key for key, _ in counts.most_common()]

    def select(self, rows: Sequence[int] | NDArray[np.intp]) -> Catalogue:
        """Return some of the products."""
        return Catalogue(products=tuple(self.products[r] for r in rows), records=tuple(self.records[r] for r in rows))

    def only(self, values: Mapping[str, Sequence[str]]) -> Catalogue:
        """Return the products that have one of the given values in each of these fields.

        Raises:
            InputError: there are none.
        """
        if not values:
            return self
        kept = np.logical_and.reduce(
            [np.isin(self.labels(field), [*map(as_label, allowed)]) for field, allowed in values.items()]
        )
        if not kept.any():
            wanted = "; ".join(f"{field} = {' or '.join(allowed)}" for field, allowed in values.items())
            raise InputError(f"data.only leaves none of {len(self)} products: no product has {wanted}")
        return self.select(np.flatnonzero(kept))

    def masked(self, fields: Sequence[str]) -> Catalogue:
        """Return the products without the words, in title and description, that any product has in these fields.

        So that a text cannot state the label that is measured: all values of the fields, of all products, make one list
        of words; see `Mask`.

        Raises:
            InputError: no product has a value in one of the fields.
        """
        if not fields:
            return self
        values = {field: {field_value(record, field) for record in self.records} - {""} for field in fields}
        if unknown := [field for field, found in values.items() if not found]:
            raise InputError(f"data.masked: no product has a value in {', '.join(unknown)}; is the name spelled right?")
        mask = Mask(set().union(*values.values()))

        def cut(text: str | bytes) -> str:
            return mask(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)

        products = [replace(p, title=cut(p.title), description=cut(p.description)) for p in self.products]
        return Catalogue(products=tuple(products), records=self.records)

    def of_splits(self, splits: Sequence[str]) -> Catalogue:
        """Return the products of these splits.

        Raises:
            InputError: one of them has none; names the splits that there are.
        """
        known = {*self.labels("split").tolist()} - {""}
        if missing := [split for split in dict.fromkeys(splits) if as_label(split) not in known]:
            there = f"there are: {named_keys(sorted(known))}" if known else "none has any: give each train or val"
            raise InputError(f"no product has split {' or '.join(missing)}; {there}")
        return self.select(np.flatnonzero(self.in_splits(splits)))

    def in_splits(self, splits: Sequence[str]) -> NDArray[np.bool_]:
        """Return BOOL [n]: which products are of these splits."""
        return np.isin(self.labels("split"), [*map(as_label, splits)])

    def parts(self, schema: InputSchema, modalities: Sequence[str], *, in_part: bool = False) -> list[dict[str, Part]]:
        """Return what each product has, by modality.

        A product that cannot be read as a whole is logged. It has what can be read of it, to learn from (``in_part``),
        or nothing, as a server has it.
        """
        found: list[dict[str, Part]] = []
        left_out: list[str] = []
        for product in self.products:
            try:
                found.append(parts_of(product, schema, modalities))
            except ProductError as error:
                parts = _readable(product, schema, modalities) if in_part else {}
                used = f"; used: {', '.join(parts)}" if parts else ""
                left_out.append(f"left out: {error}{used}")
                found.append(parts)
        log_left_out(log, left_out, lambda count: f"left out, in whole or in part: {count} more products")
        return found

    def first_of_each_id(self) -> Catalogue:
        """Return the products without those whose id an earlier one has; products without an id all stay.

        A copy would be everybody's nearest in evaluation, and its own hard negative in training.
        """
        firsts = set(first_of_each(self.ids).values())
        rows = [row for row, product in enumerate(self.products) if row in firsts or not product.product_id]
        if len(rows) == len(self):
            return self
        copies = sorted({*range(len(self))} - {*rows})
        log.warning(
            "left out: %d products whose product_id an earlier one has, the first is %r",
            len(copies),
            self.products[copies[0]].product_id,
        )
        return self.select(rows)


def as_label(value: str) -> str:
    """Return a value that is given by name as `Catalogue.labels` has it."""
    return _bounded(canonical(value))


def _bounded(label: str) -> str:
    # In an array every label takes as much room as the longest: one that is a whole description fills the memory.
    return label if len(label) <= _LONGEST_LABEL else hashlib.sha256(label.encode("utf-8", "replace")).hexdigest()


def first_of_each(ids: Iterable[str]) -> dict[str, int]:
    """Return where each id occurs first; products without an id are not in it."""
    places: dict[str, int] = {}
    for place, name in enumerate(ids):
        if name:
            places.setdefault(name, place)
    return places


def _readable(product: Product, schema: InputSchema, modalities: Sequence[str]) -> dict[str, Part]:
    """Return what can be read of a product that cannot be read as a whole."""
    found: dict[str, Part] = {}
    for modality in modalities:
        with suppress(ProductError):
            found |= parts_of(product, schema, (modality,))
    return found


def _label_keys(record: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _label_keys(value, f"{before}{key}.") if before or key != "interactions" else ()
        elif (before or key not in _NO_LABELS) and field_value(record, key):
            yield before + key


def named_keys(keys: Sequence[str]) -> str:
    """Return the first keys in words, and how many more there are."""
    more = f", and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return ", ".join(keys[:_SHOWN_KEYS]) + more if keys else "none"


def read_catalogue(path: Path) -> Catalogue:
    """Read a product file; bad lines are left out, the first of them named in the log and the others counted.

    Raises:
        InputError: the file cannot be read or holds no product at all.
    """
    products, records = list[Product](), list[Record]()

    def left_out() -> Iterator[str]:
        for item in scan_products(path):
            if isinstance(item, RecordError):
                yield f"left out: {item}"
            else:
                products.append(item[0])
                records.append(item[1])

    log_left_out(log, left_out(), lambda count: f"left out: {count} more lines of {path}")
    if not products:
        raise InputError(f"{path} holds no products: give a file with one JSON object per line, each a product")
    return Catalogue(products=tuple(products), records=tuple(records))


def read_recipe_catalogue(products: str, data_root: Path) -> Catalogue:
    """Read the file that a recipe's ``data.products`` names; of products with the same id the first one.

    Raises:
        InputError: as of `read_catalogue`; where there is no such file, says where it was looked for.
    """
    path = data_root / products
    if not path.exists():
        raise InputError(
            f"cannot read {path}: there is no such file. The recipe's paths start from --data-root (now "
            f"'{data_root}'; or LIKENESS_DATA)."
        )
    return read_catalogue(path).first_of_each_id()


def recipe_catalogue(data: DataSection, data_root: Path) -> Catalogue:
    """Read the products that a recipe speaks of, as it sees them: `data.only` of them, without `data.masked`.

    Raises:
        InputError: as of `read_recipe_catalogue`; or none is left.
    """
    return read_recipe_catalogue(data.products, data_root).only(data.only).masked(data.masked)
