"""Where a network looked: the attention of its parts, laid over the photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from likeness_client.errors import InputError
from likeness_client.writing import written_aside
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from likeness_export.encoders.base import ASSETS
from likeness_export.encoders.image_local import LocalFeatures
from likeness_export.preprocessing.image import Preprocessor
from likeness_export.run import Run

_PANEL_PX, _GAP, _TITLE, _COLUMNS = 224, 10, 22, 5
_PAPER, _INK = (244, 242, 238), (40, 40, 44)


def explain(run: Run, photo: Path, out: Path) -> None:
    """Draw a photo, and beside it the attention of each part of a run's first tower of local features, as PNG.

    Raises:
        InputError: the run has no such tower, or the photo cannot be read.
    """
    pixels, attention = attention_of(run, photo)
    with written_aside(out) as aside:
        draw(pixels, attention).save(aside, format="PNG")


def attention_of(run: Run, photo: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the pixels that the network sees, UINT8 [px, px, 3], and its attention, FP32 [parts, h, w].

    Raises:
        InputError: as of `explain`.
    """
    recipe, network = run.read_network()
    parts = ((name, part) for name in recipe.towers for part in network.tower(name).modules())
    found = next(((name, part) for name, part in parts if isinstance(part, LocalFeatures)), None)
    if found is None:
        raise InputError(f'{run.folder} has no tower of encoder = "local_features", which alone has attended parts')
    name, encoder = found
    try:
        tensors, (error,) = Preprocessor(run.towers / name / ASSETS)([photo.read_bytes()])
    except OSError as unreadable:
        raise InputError(f"cannot read {photo}: {unreadable.strerror}") from unreadable
    if error:
        raise InputError(f"{photo}: {error}")
    pixels = tensors["pixels"].astype(np.uint8).reshape(1, *recipe.towers[name].tensors()[0].dims[-3:])
    with torch.inference_mode():
        attention: NDArray[np.float32] = encoder.attention_maps(torch.from_numpy(pixels)).numpy()
    return pixels[0], attention[0]


def draw(pixels: NDArray[np.uint8], attention: NDArray[np.float32]) -> Image.Image:
    """Draw a photo, UINT8 [px, px, 3], and a panel per part of its attention, FP32 [parts, h, w], not negative."""
    photo = Image.fromarray(pixels).resize((_PANEL_PX, _PANEL_PX), Image.Resampling.BILINEAR)
    panels = [("photo", photo), *((f"part {part}", _heated(photo, heat)) for part, heat in enumerate(attention, 1))]
    columns, rows = min(_COLUMNS, len(panels)), -(-len(panels) // _COLUMNS)
    across, down = _PANEL_PX + _GAP, _PANEL_PX + _GAP + _TITLE
    sheet = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (title, panel) in enumerate(panels):
        left, top = _GAP + place % _COLUMNS * across, _GAP + place // _COLUMNS * down
        pen.text((left, top), title, font=ImageFont.load_default(14), fill=_INK)
        sheet.paste(panel, (left, top + _TITLE))
    return sheet


def _heated(photo: Image.Image, attention: NDArray[np.float32]) -> Image.Image:
    """Lay heat over a photo: the stronger the attention, the brighter and the less of the photo shows through."""
    share = Image.fromarray(attention / max(float(attention.max()), 1e-12))  # mode F
    strength = np.asarray(share.resize(photo.size, Image.Resampling.BILINEAR), dtype=np.float64).clip(0, 1)  # (h, w)
    # Dark to bright, as black-body colours go: readable on any photo, and in grey.
    heat = colormaps["inferno"](strength, bytes=True)[..., :3]  # (h, w, 3)
    veil = 0.35 + 0.4 * strength[..., None]
    return Image.fromarray((np.asarray(photo) * (1 - veil) + heat * veil).round().astype(np.uint8))
