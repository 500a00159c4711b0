"""What it gains to decode photos at a reduced scale, and on all cores: the image preprocessing, without a server."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from joblib import cpu_count
from likeness_bench.sources import rendered
from likeness_client import InputError
from likeness_client.contract import preprocess_model
from likeness_export.preprocessing.image import SETTINGS_FILE, Preprocessor
from numpy.typing import NDArray
from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from comparisons.measured import Measurement, Quantity, measure, per_call_s
from comparisons.rounds import ComparisonError

FULL, REDUCED, ONE_THREAD = "full decode, all cores", "reduced scale, all cores", "reduced scale, one thread"
PHOTOS_PER_S = Quantity(name="photos/s", higher_is_better=True, compared=True)
FILE_KB = Quantity(name="kB a file", digits=0)
DIFFERENCE = Quantity(name="mean difference to full, of 255", digits=2)
_NOISE = 12  # standard deviation of the grain, of 255: as much detail in the file as a camera leaves
_QUALITY = 90
_RENDERED = 48
Pixels = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class ImageModel:
    """The image preprocessing of a repository.

    Attributes:
        tower: its name.
        preprocessor: encoded photos to squares of pixels.
    """

    tower: str
    preprocessor: Preprocessor


def image_model(repository: Path) -> ImageModel | None:
    """Open the image preprocessing of a repository; None where it has none."""
    found = next(iter(sorted(repository.glob(f"{preprocess_model('*')}/*/assets/{SETTINGS_FILE}"))), None)
    if found is None:
        return None
    tower = found.parents[2].name.removesuffix(preprocess_model(""))
    return ImageModel(tower=tower, preprocessor=Preprocessor(found.parent))


def rendered_views(seed: int) -> list[bytes]:
    """Render some products, and return their photos.

    Raises:
        MissingExtraError: what draws them is not installed.
        InputError: none has a photo.
    """
    views = [view for product, _ in rendered(_RENDERED, seed) for view in product.images if isinstance(view, bytes)]
    if not views:
        raise InputError(f"no photo was rendered with the seed {seed}: choose another one")
    return views


def enlarged(photo: bytes, long_side: int) -> bytes:
    """Return a photo with this long side, as JPEG; with grain, for enlarged alone its file would be nearly empty."""
    with Image.open(io.BytesIO(photo)) as image:
        ratio = long_side / max(image.size)
        width, height = (max(1, round(side * ratio)) for side in image.size)
        large = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.merge("RGB", [Image.effect_noise(large.size, _NOISE)] * 3)
    out = io.BytesIO()
    ImageChops.add(large, grain, scale=1.0, offset=-128).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


@contextmanager
def full_scale() -> Iterator[None]:
    """Take one decision away from the preprocessing for the length of a block: JPEGs are decoded at their full size."""
    with patch.object(JpegImageFile, "draft", lambda *_: None):
        yield


def ways_of(preprocessor: Preprocessor, photos: Sequence[bytes]) -> dict[str, Callable[[], Pixels]]:
    """Return the ways to decode a batch of photos, each to its pixels."""

    def batch() -> Pixels:
        return pixels_of(preprocessor, photos)

    def full() -> Pixels:
        with full_scale():
            return batch()

    def one_by_one() -> Pixels:
        return np.concatenate([pixels_of(preprocessor, [photo]) for photo in photos])

    return {FULL: full, REDUCED: batch, ONE_THREAD: one_by_one}


def pixels_of(preprocessor: Preprocessor, photos: Sequence[bytes]) -> Pixels:
    """Decode photos.

    Raises:
        ComparisonError: one cannot be read.
    """
    tensors, errors = preprocessor(list(photos))
    if any(errors):
        raise ComparisonError(f"a rendered photo cannot be read: {next(filter(None, errors))}")
    return tensors["pixels"]


def measure_photos(
    model: ImageModel, photos: Sequence[bytes], long_side: int, rounds: int, turn_s: float
) -> Measurement:
    """Decode a batch of photos of one size in three ways.

    Raises:
        ComparisonError: one cannot be read.
    """
    ways = ways_of(model.preprocessor, photos)
    exact = np.asarray(ways[FULL](), dtype=np.int16)
    apart = {name: float(np.abs(np.asarray(way(), dtype=np.int16) - exact).mean()) for name, way in ways.items()}
    file_kb = sum(map(len, photos)) / len(photos) / 1e3

    def take(name: str, _round: int) -> Mapping[str, float]:
        seconds = per_call_s(ways[name], turn_s)
        return {PHOTOS_PER_S.name: len(photos) / seconds, FILE_KB.name: file_kb, DIFFERENCE.name: apart[name]}

    target, cores = model.preprocessor.image_px, cpu_count()
    return measure(
        title=f"{model.tower} preprocessing, {len(photos)} photos of {long_side} px to {target} px, {cores} cores",
        contenders={name: partial(take, name) for name in ways},
        rounds=rounds,
        quantities=(PHOTOS_PER_S, FILE_KB, DIFFERENCE),
        pairs=((REDUCED, FULL), (REDUCED, ONE_THREAD)),
    )
