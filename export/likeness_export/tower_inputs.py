"""A tower's inputs for many products: preprocessed once, encoded once where the encoder is frozen."""

from __future__ import annotations

import hashlib
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime as ort
import torch
from likeness_client.contract import NOBODY_KNOWN
from likeness_client.writing import written_aside
from numpy.typing import NDArray
from torch import Tensor

from likeness_export.encoders import Encoder, EncoderConfig
from likeness_export.encoders.base import ASSETS
from likeness_export.onnx_export import ExportError, export_network
from likeness_export.parts import Part
from likeness_export.pipeline import StepSpec
from likeness_export.progress import each
from likeness_export.tensors import TensorSpec

log = logging.getLogger(__name__)
_Encode: TypeAlias = Callable[[tuple[Tensor, ...]], NDArray[np.float32]]
_WORTH_TRACING = 1000  # products; tracing and verifying an encoder takes some twenty seconds
_CHUNK = 64
_ONLY_TRAINING = {"freeze", "learning_rate", "token_dropout"}  # keys that change no feature
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

    Attributes:
        digests: SHA-256 of each product's raw bytes.
        present: BOOL [n]: which products have a usable input. Unreadable ones are logged and count as absent.
        unknown: BOOL [n]: whose input is absent because all of its users are strangers.
    """

    def __init__(
        self, name: str, config: EncoderConfig, tower: Path, items: Sequence[Part | None], product_ids: Sequence[str]
    ) -> None:
        self.name = name
        self.items = items
        self.digests = [item.digest if item else _NOTHING for item in items]
        self._sizes = [item.size if item else 0 for item in items]
        self.specs = config.tensors()
        self.run_rows = config.run_rows * torch.get_num_threads() if config.run_rows else _CHUNK
        self.assets = tower / ASSETS
        self.preprocessor = config.preprocessing.Preprocessor(self.assets)
        self.present: NDArray[np.bool_] = np.array([item is not None for item in items], dtype=bool)
        self.unknown: NDArray[np.bool_] = np.zeros(len(items), dtype=bool)
        self._fixed: dict[str, NDArray[np.generic]] = {}
        # Inputs of one size (photos, categories) are kept; texts differ in length and are cheap to tokenise again.
        if all(size > 0 for spec in self.specs for size in spec.dims):
            self._fixed = {s.name: np.zeros((len(items), *s.dims), s.numpy_dtype) for s in self.specs}
        self._read_all(product_ids)

    def _read_all(self, product_ids: Sequence[str]) -> None:
        rows = np.flatnonzero(self.present)
        for start in each(range(0, len(rows), _CHUNK), f"reading {self.name}"):
            chunk = rows[start : start + _CHUNK]
            tensors, errors = self.preprocessor(self._bytes(chunk))
            for name, kept in self._fixed.items():
                kept[chunk] = tensors[name]
            for row, error in zip(chunk, errors, strict=True):
                if error:
                    log.warning("%s of product %s is left out: %s", self.name, product_ids[row], error)
                    self.present[row] = False
                    self.unknown[row] = error == NOBODY_KNOWN

    def forget(self) -> None:
        """Let go of what is kept in memory, where features are all that is used from now on; see `cached_features`."""
        self._fixed = {}

    def batch(self, rows: Sequence[int] | NDArray[np.intp]) -> tuple[Tensor, ...]:
        """Return the encoder's tensors for these products, all of which must be present."""
        if self._fixed:
            return tuple(torch.from_numpy(self._fixed[spec.name][rows]) for spec in self.specs)
        tensors, _ = self.preprocessor(self._bytes(rows))
        return tuple(torch.from_numpy(tensors[spec.name]) for spec in self.specs)

    def _bytes(self, rows: Sequence[int] | NDArray[np.intp]) -> list[bytes]:
        return [item.read() for row in rows if (item := self.items[row])]

    def map(self, rows: NDArray[np.intp], encode: Callable[..., Tensor]) -> Tensor:
        """Encode products, all of which must be present; those of varying length in chunks of like length.

        Args:
            rows: the products.
            encode: takes the encoder's tensors of some products and returns FP32 [n, f].
        """
        if self._fixed:
            return encode(*self.batch(rows))
        order = np.argsort([self._sizes[row] for row in rows], kind="stable")
        parts = [encode(*self.batch(rows[order[i : i + _MAP_CHUNK]])) for i in range(0, len(order), _MAP_CHUNK)]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))]

    def encode(self, encoder: Encoder) -> NDArray[np.float32]:
        """Return features FP32 [n, f]; zeros where a product is absent."""
        encoder.eval()
        features = np.zeros((len(self.present), encoder.feature_dim), np.float32)
        # Neighbours of equal length waste no padding.
        rows = sorted(np.flatnonzero(self.present), key=lambda row: self._sizes[row])
        on_cpu = encoder.device.type == "cpu"
        at_once = self.run_rows if on_cpu else _CHUNK
        run = self._traced(encoder) if on_cpu and len(rows) >= _WORTH_TRACING else partial(_eager, encoder)
        for start in each(range(0, len(rows), at_once), f"encoding {self.name}"):
            chunk = np.array(rows[start : start + at_once])
            features[chunk] = run(self.batch(chunk))
        return features

    def _traced(self, encoder: Encoder) -> _Encode:
        """Return the encoder as onnxruntime runs it: on CPUs up to five times as fast as eager torch."""
        if not any(True for _ in encoder.parameters()):
            return partial(_eager, encoder)  # nothing in it that could be slow
        output = TensorSpec("features", "FP32", (encoder.feature_dim,))
        spec = StepSpec(name=f"encoder of {self.name}", inputs=self.specs, outputs=(output,))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.onnx"
            try:
                with torch.random.fork_rng():  # the samples' draws are nobody else's: a warm cache changes no training
                    export_network(encoder, spec, path, _CHUNK)
            except ExportError as error:
                log.warning("%s; encoding in eager torch, which is slower", error)
                return partial(_eager, encoder)
            options = ort.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def run(tensors: tuple[Tensor, ...]) -> NDArray[np.float32]:
            feed = {spec.name: tensor.numpy() for spec, tensor in zip(self.specs, tensors, strict=True)}
            found: NDArray[np.float32] = session.run(None, feed)[0]
            return found

        return run


@torch.inference_mode()
def _eager(encoder: Encoder, tensors: tuple[Tensor, ...]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = encoder(*(tensor.to(encoder.device) for tensor in tensors)).cpu().numpy()
    return found


def read_inputs(
    towers: Mapping[str, EncoderConfig],
    folder: Path,
    parts: Sequence[Mapping[str, Part]],
    product_ids: Sequence[str],
) -> dict[str, TowerInputs]:
    """Read the inputs of all towers.

    Args:
        towers: tower name -> configuration.
        folder: holds one prepared folder per tower.
        parts: what each product has, by modality.
        product_ids: names for messages.
    """
    return {
        name: TowerInputs(name, config, folder / name, [found.get(config.modality) for found in parts], product_ids)
        for name, config in towers.items()
    }


def cached_features(inputs: TowerInputs, encoder: Encoder, config: EncoderConfig, cache: Path) -> NDArray[np.float32]:
    """Return a frozen encoder's features, computed once per encoder, preprocessing and set of inputs.

    Args:
        inputs: the products.
        encoder: the encoder.
        config: its configuration, a part of the cache's key.
        cache: folder of the cache.
    """
    key = hashlib.sha256(config.model_dump_json(exclude=_ONLY_TRAINING).encode())
    for tensor in encoder.state_dict().values():
        key.update(tensor.cpu().numpy().tobytes())
    # What was fitted need not be in the encoder: a vocabulary of the same size gives the same network.
    for path in sorted(inputs.assets.rglob("*")):
        if path.is_file():
            key.update(path.read_bytes())
    key.update(Path(str(config.preprocessing.__file__)).read_bytes())
    for module in (type(encoder), type(config)):
        key.update(Path(str(sys.modules[module.__module__].__file__)).read_bytes())  # another version, another network
    for digest in inputs.digests:
        key.update(digest)
    place = cache / f"{inputs.name}-{key.hexdigest()[:16]}.npy"
    if place.is_file():
        cached: NDArray[np.float32] = np.load(place)
        return cached
    features = inputs.encode(encoder)
    with written_aside(place) as aside, aside.open("wb") as out:
        np.save(out, features)
    return features
