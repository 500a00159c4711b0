"""A tower's inputs for many products: preprocessed once, and encoded in batches of like length."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from likeness_client.contract import MODALITIES, NOTHING_KNOWN
from likeness_client.errors import InputError
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from likeness_export.encoders import Encoder, EncoderConfig
from likeness_export.encoders.base import ASSETS
from likeness_export.features.encoding import MOST_AT_ONCE, encode_with
from likeness_export.left_out import log_left_out
from likeness_export.products.parts import Part
from likeness_export.progress import each
from likeness_export.repository.adapters.lengths import used_lengths

log = logging.getLogger(__name__)
Rows: TypeAlias = NDArray[np.intp]
_NOTHING = hashlib.sha256(b"\0").digest()
_MAP_CHUNK = 32  # small enough that texts of like length meet


class TowerInputs:
    """One tower's inputs for a list of products.

    Args:
        name: the tower's name, for messages.
        config: the tower's configuration.
        tower: the tower's prepared folder.
        items: the part of each product that the tower reads; None where the product lacks it.
        product_ids: names for messages.
        once: whether they are encoded once, and then no more: nothing is kept in memory then, and nothing read before
            it is needed.

    Attributes:
        digests: SHA-256 of each product's raw bytes.
    """

    def __init__(
        self,
        name: str,
        config: EncoderConfig,
        tower: Path,
        items: Sequence[Part | None],
        product_ids: Sequence[str],
        *,
        once: bool = False,
    ) -> None:
        self.name = name
        self.items = items
        self.digests = [item.digest if item else _NOTHING for item in items]
        self._sizes = [item.size if item else 0 for item in items]
        self._product_ids = product_ids
        self.specs = config.tensors()
        self.run_rows = config.run_rows * torch.get_num_threads() if config.run_rows else MOST_AT_ONCE
        self.assets = tower / ASSETS
        self.preprocessor = config.preprocessing.Preprocessor(self.assets)
        self._errors: dict[int, str] | None = None
        # Categories and single photos are of one size; of photos some products have more. Texts differ in length, too,
        # but they are cheap to tokenise again.
        self._of_one_size = not any(spec.varies for spec in self.specs)
        self._costly = self._of_one_size or any(len(spec.dims) > 1 for spec in self.specs)
        self._fixed: dict[str, NDArray[np.generic]] = {}
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        self._keeps = self._costly and not self._of_one_size and not once
        if not once:
            if self._of_one_size:
                self._fixed = {s.name: np.zeros((len(items), *s.dims), s.numpy_dtype) for s in self.specs}
            self._read_all()

    @property
    def errors(self) -> Mapping[int, str]:
        """Row -> why what the product holds cannot be used. If nobody knows yet, all are read to find out."""
        if self._errors is None:
            self._read_all()
        return self._errors or {}

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """BOOL [n]: which products have a readable input. Unreadable ones are logged and count as absent."""
        present = self._held()
        present[[row for row, error in self.errors.items() if error != NOTHING_KNOWN]] = False
        return present

    @cached_property
    def unknown(self) -> NDArray[np.bool_]:
        """BOOL [n]: whose input is readable, but says nothing that the tower knows."""
        unknown = np.zeros(len(self.items), dtype=bool)
        unknown[[row for row, error in self.errors.items() if error == NOTHING_KNOWN]] = True
        return unknown

    @property
    def known(self) -> NDArray[np.bool_]:
        """BOOL [n]: which products have an input that says something to the tower."""
        return self.present & ~self.unknown

    def note(self, errors: Mapping[int, str]) -> None:
        """Take over what reading has found, see `errors`, and log it; if it is known already, it stays as it is."""
        if self._errors is None:
            self._errors = dict(sorted(errors.items()))
            left_out = [
                f"{self.name} of product {self._product_ids[row]} is left out: {error}"
                for row, error in self._errors.items()
                if error != NOTHING_KNOWN
            ]
            log_left_out(log, left_out, lambda count: f"{self.name} of {count} more products is left out")
            if rows := np.flatnonzero(self.unknown).tolist():
                some = ", ".join(self._product_ids[row] for row in rows[:3])
                log.info(
                    "%s: nothing is known in %d products (%s)", self.name, len(rows), some + ", ..." * (len(rows) > 3)
                )

    def _held(self) -> NDArray[np.bool_]:
        return np.array([item is not None for item in self.items], dtype=bool)

    def _read_all(self) -> None:
        rows, errors = np.flatnonzero(self._held()), dict[int, str]()
        for start in each(range(0, len(rows), MOST_AT_ONCE), f"reading {self.name}"):
            chunk = rows[start : start + MOST_AT_ONCE]
            tensors, found = self._preprocessed(chunk)
            for name, whole in self._fixed.items():
                whole[chunk] = tensors[name]
            if self._keeps:
                self._kept |= self._readable(chunk, tensors, found)
            errors |= {int(row): error for row, error in zip(chunk, found, strict=True) if error}
        for row, kept in self._kept.items():
            self._sizes[row] = len(kept[0])  # of like length are those with as many photos, however large their files
        self.note(errors)

    def lengths(self, rows: Rows) -> NDArray[np.intp]:
        """Return how long the tensors of each product are that are kept, in photos; 1 where all are of one size."""
        return np.array([len(self._kept[row][0]) if row in self._kept else 1 for row in rows.tolist()], dtype=np.intp)

    def batch(self, rows: Sequence[int] | Rows) -> tuple[Tensor, ...]:
        """Return the encoder's tensors for these products, all of which must be present."""
        if self._fixed:
            return tuple(torch.from_numpy(self._fixed[spec.name][rows]) for spec in self.specs)
        if self._kept:
            return _joined([self._kept[int(row)] for row in rows])
        tensors, _ = self._preprocessed(rows)
        return tuple(torch.from_numpy(tensors[spec.name]) for spec in self.specs)

    def _preprocessed(self, rows: Sequence[int] | Rows) -> tuple[Mapping[str, NDArray[np.generic]], list[str]]:
        """Return the tensors of products that have the part, and per product why it cannot be used, or nothing.

        Raises:
            InputError: the tensors are not as declared. Here they might be converted; a server refuses them.
        """
        items = [item.read() for row in rows if (item := self.items[row])]
        tensors, errors = self.preprocessor(items)
        for spec in self.specs:
            if spec.name not in tensors or not spec.fits(tensors[spec.name], len(items)) or len(errors) != len(items):
                found = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in tensors.items())
                raise InputError(
                    f"towers.{self.name}: the preprocessing puts out {found} and {len(errors)} reasons for "
                    f"{len(items)} products; the encoder's `tensors` declares {spec.name} {spec.datatype} "
                    f"{list(spec.dims)} for each"
                )
        return tensors, errors

    def map(self, rows: Rows, encode: Callable[..., Tensor]) -> Tensor:
        """Encode products, all of which must be present; texts in chunks of like length.

        ``encode`` takes the encoder's tensors of some products and returns FP32 [n, f].
        """
        if self._costly:  # of several photos, who learns draws one
            return encode(*self.batch(rows))
        order = np.argsort([self._sizes[row] for row in rows], kind="stable")
        parts = [encode(*self.batch(rows[order[i : i + _MAP_CHUNK]])) for i in range(0, len(order), _MAP_CHUNK)]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))]

    def encode(self, encoder: Encoder) -> NDArray[np.float32]:
        """Return features FP32 [n, f]; zeros where a product is absent.

        Raises:
            InputError: they do not fit into memory.
        """
        encoder.eval()
        shape = len(self.items), encoder.feature_dim
        try:
            features = np.zeros(shape, np.float32)
        except MemoryError as error:
            raise InputError(
                f"towers.{self.name}: {shape[1]} features of each of {shape[0]} products take "
                f"{4e-9 * shape[0] * shape[1]:.0f} GB, which this machine does not have: keep fewer (`components` of "
                "tfidf, a larger `min_count`), or give fewer products"
            ) from error
        at_once = self.run_rows if encoder.device.type == "cpu" else MOST_AT_ONCE
        longest = max(getattr(self.preprocessor, "buckets", None) or [1]) if self._costly else None
        run = encode_with(encoder, self.specs, self.name, np.count_nonzero(self._held()), at_once, longest)
        for rows, tensors in self._read_once(at_once) if self._unread else self._batches(at_once):
            features[rows] = run(tensors)
        return features

    @property
    def _unread(self) -> bool:
        """Whether encoding is what reads them; texts are read before, as their batches are padded to their longest."""
        return self._errors is None and self._costly

    def _batches(self, at_once: int) -> Iterator[tuple[Rows, tuple[Tensor, ...]]]:
        """Yield all products that are present, and their tensors."""
        rows, chunks = self._by_size(self.present), list[Rows]()
        while len(rows):
            count = fitting(self.lengths(rows[:at_once]), at_once)
            chunks.append(rows[:count])
            rows = rows[count:]
        for chunk in each(chunks, f"encoding {self.name}"):
            yield chunk, self.batch(chunk)

    def _read_once(self, at_once: int) -> Iterator[tuple[Rows, tuple[Tensor, ...]]]:
        """Yield the same batches as `_batches`, read on the way, of which no more than a few are held at a time."""
        rows, errors = self._by_size(self._held()), dict[int, str]()
        ready: list[tuple[int, tuple[Tensor, ...]]] = []
        for start in each(range(0, len(rows), MOST_AT_ONCE), f"reading and encoding {self.name}"):
            chunk = rows[start : start + MOST_AT_ONCE]
            tensors, found = self._preprocessed(chunk)
            errors |= {int(row): error for row, error in zip(chunk, found, strict=True) if error}
            ready += self._readable(chunk, tensors, found).items()
            ready.sort(key=lambda one: len(one[1][0]))  # those of like length meet
            while ready:
                lengths = [1 if self._of_one_size else len(part[0]) for _, part in ready[:at_once]]
                count = fitting(lengths, at_once)
                if count == len(ready):  # more may go with them
                    break
                yield _stacked(ready[:count])
                ready = ready[count:]
        if ready:
            yield _stacked(ready)
        self.note(errors)

    def _readable(
        self, rows: Rows, tensors: Mapping[str, NDArray[np.generic]], errors: Sequence[str]
    ) -> dict[int, tuple[Tensor, ...]]:
        """Return the tensors of each product that could be read, without padding."""
        columns = [torch.from_numpy(tensors[spec.name]) for spec in self.specs]
        parts: Iterable[tuple[Tensor, ...]] = zip(*columns, strict=True)
        if not self._of_one_size:
            lengths = used_lengths([tensors[spec.name] for spec in self.specs])
            parts = (tuple(column[row, :length].clone() for column in columns) for row, length in enumerate(lengths))
        found = zip(rows.tolist(), parts, errors, strict=True)
        return {row: part for row, part, error in found if error in ("", NOTHING_KNOWN)}

    def _by_size(self, chosen: NDArray[np.bool_]) -> Rows:
        """Return the chosen rows, neighbours of like length: they waste no padding."""
        return np.array(sorted(np.flatnonzero(chosen), key=lambda row: self._sizes[row]), dtype=np.intp)


def fitting(lengths: Sequence[int] | NDArray[np.intp], at_once: int) -> int:
    """Return how many of the first products, of ascending length, may go together; at least one.

    Together, padding included, they have at most so many columns ``at_once``.
    """
    count = 1
    while count < len(lengths) and (count + 1) * lengths[count] <= at_once:
        count += 1
    return count


def _stacked(items: Sequence[tuple[int, tuple[Tensor, ...]]]) -> tuple[Rows, tuple[Tensor, ...]]:
    rows, tensors = zip(*items, strict=True)
    return np.array(rows, dtype=np.intp), _joined(tensors)


def _joined(tensors: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the tensors of products in one batch, shorter ones padded with zeros to the longest."""
    return tuple(pad_sequence([*column], batch_first=True) for column in zip(*tensors, strict=True))


def read_inputs(
    towers: Mapping[str, EncoderConfig],
    folder: Path,
    parts: Sequence[Mapping[str, Part]],
    product_ids: Sequence[str],
    once: Collection[str] = (),
) -> dict[str, TowerInputs]:
    """Read the inputs of all towers, by their names; see `TowerInputs`.

    ``folder`` holds one prepared folder per tower; ``once`` names the towers whose inputs are encoded once.
    """
    items = {name: [found.get(config.modality) for found in parts] for name, config in towers.items()}
    return {
        name: TowerInputs(name, config, folder / name, items[name], product_ids, once=name in once)
        for name, config in towers.items()
    }


def unknown_modalities(tower_modalities: Mapping[str, str], inputs: Mapping[str, TowerInputs]) -> NDArray[np.bool_]:
    """Return BOOL [n, m]: in which modality no tower knows anything; it is as if the product did not have it."""
    towers = _by_modality(tower_modalities, inputs)
    return np.stack([np.logical_and.reduce([tower.unknown for tower in some]) for some in towers], 1)


def present_modalities(tower_modalities: Mapping[str, str], inputs: Mapping[str, TowerInputs]) -> NDArray[np.bool_]:
    """Return BOOL [n, m]: the modalities of each product that all towers can read, and one at least knows."""
    towers = _by_modality(tower_modalities, inputs)
    readable = np.stack([np.logical_and.reduce([tower.present for tower in some]) for some in towers], 1)
    found: NDArray[np.bool_] = readable & ~unknown_modalities(tower_modalities, inputs)
    return found


def _by_modality(tower_modalities: Mapping[str, str], inputs: Mapping[str, TowerInputs]) -> list[list[TowerInputs]]:
    """Return the towers of each modality that there is, in the contract's order."""
    found = [[inputs[name] for name, of in tower_modalities.items() if of == modality] for modality in MODALITIES]
    return [towers for towers in found if towers]
