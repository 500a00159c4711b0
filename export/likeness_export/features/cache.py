"""Features of products, computed once per encoder and kept in files."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from likeness_client.errors import InputError
from likeness_client.writing import write_arrays
from numpy.typing import NDArray

from likeness_export.encoders import Encoder, EncoderConfig
from likeness_export.features.code_files import code_files
from likeness_export.features.tower_inputs import TowerInputs

log = logging.getLogger(__name__)
_ONLY_TRAINING = {"freeze", "learning_rate", "token_dropout"}  # keys that change no feature


def cached_features(inputs: TowerInputs, encoder: Encoder, config: EncoderConfig, cache: Path) -> NDArray[np.float32]:
    """Return an encoder's features as it is now, computed once per encoder, preprocessing and set of inputs.

    The cache's files are named by those alone: runs that share a folder, and a run that joins others, find the features
    of each other's towers, whatever the towers are called there. With them goes what could not be read.
    """
    key = hashlib.sha256(config.model_dump_json(exclude=_ONLY_TRAINING).encode())
    for tensor in encoder.state_dict().values():
        key.update(tensor.cpu().numpy().tobytes())
    # What was fitted need not be in the encoder: a vocabulary of the same size gives the same network.
    for path in sorted(inputs.assets.rglob("*")):
        if path.is_file():
            key.update(path.read_bytes())
    key.update(Path(str(config.preprocessing.__file__)).read_bytes())
    for path in code_files(type(encoder).__module__, type(config).__module__):
        key.update(path.read_bytes())  # another version, another network
    for digest in inputs.digests:
        key.update(digest)
    place = cache / f"{key.hexdigest()[:32]}.npz"
    if place.is_file():
        try:
            with np.load(place) as held:
                cached: NDArray[np.float32] = held["features"]
                inputs.note(dict(zip(held["rows"].tolist(), held["errors"].tolist(), strict=True)))
                return cached
        except (ValueError, EOFError, BadZipFile) as error:  # a disk was switched off while it was written, say
            log.warning("%s is damaged (%s): its features are computed again", place, error)
    features, errors = inputs.encode(encoder), inputs.errors
    try:
        rows = np.array([*errors], dtype=np.intp)
        write_arrays(place, features=features, rows=rows, errors=np.array([*errors.values()], dtype=np.str_))
    except InputError as error:  # a run may be read-only to whoever evaluates it
        log.warning("%s: features are not kept, and computed again next time", error)
    return features
