"""Takes a seller's photo of a drawn product: background, light, framing, white balance, noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from likeness_export.demo.drawing import RGB, blurred, moved, soft_step
from likeness_export.demo.shapes import MASTER_PX, FloatArray

Background: TypeAlias = Literal["plain", "gradient", "wood", "shelf"]

PHOTO_PX = MASTER_PX // 2

_BACKDROPS: dict[Background, tuple[RGB, ...]] = {
    "plain": ((244, 243, 240), (236, 234, 230), (226, 232, 236), (240, 228, 214), (214, 208, 202)),
    "gradient": ((214, 222, 230), (230, 218, 206), (206, 216, 204), (226, 208, 212), (182, 186, 194)),
    "wood": ((198, 158, 116), (164, 120, 84), (222, 200, 172), (150, 142, 134)),
    "shelf": ((226, 216, 204), (204, 214, 218), (216, 206, 216), (196, 204, 186)),
}
_STANDING = frozenset({"bottle", "chair", "mug", "table lamp", "vase"})


@dataclass(frozen=True, kw_only=True)
class Photo:
    """How a seller photographs: all that differs between two photos of one product.

    Attributes:
        background: what lies behind the product.
        backdrop: RGB of the background.
        gains: white balance, one factor for each of red, green and blue, brightness included.
        rotation_deg: counter-clockwise.
        zoom: size of the product, 1 for as drawn.
        shift: right and down, in fractions of the image.
        noise: standard deviation of the sensor's noise, in steps of 0..255.
        quality: of the JPEG, 1..95.
        seed: of the noise and of the wood's grain.
    """

    background: Background
    backdrop: RGB
    gains: tuple[float, float, float]
    rotation_deg: float
    zoom: float
    shift: tuple[float, float]
    noise: float
    quality: int
    seed: int


def random_photo(rng: np.random.Generator, kind: str) -> Photo:
    """A photo as one of many sellers would take it; things that stand are turned less than things that can lie."""
    background = list(_BACKDROPS)[rng.choice(4, p=[0.35, 0.25, 0.2, 0.2])]
    colours = _BACKDROPS[background]
    tilt_deg = 5.0 if kind in _STANDING or background == "shelf" else 15.0
    brightness, balance = rng.normal(0.97, 0.08), rng.normal(0, 0.055, 3)
    red, green, blue = (float(np.clip(brightness * (1 + tint), 0.7, 1.3)) for tint in balance)
    return Photo(
        background=background,
        backdrop=colours[rng.integers(len(colours))],
        gains=(red, green, blue),
        rotation_deg=float(rng.uniform(-tilt_deg, tilt_deg)),
        zoom=float(rng.uniform(0.78, 1.12)),
        shift=(float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.04, 0.04))),
        noise=float(rng.uniform(0.5, 5)),
        quality=int(rng.integers(55, 91)),
        seed=int(rng.integers(2**31)),
    )


def _backdrop(photo: Photo, rng: np.random.Generator) -> FloatArray:
    """The empty scene, (PHOTO_PX, PHOTO_PX, 3) in 0..255."""
    y, x = np.mgrid[0:PHOTO_PX, 0:PHOTO_PX].astype(np.float32) / PHOTO_PX
    shade = np.ones_like(x)
    if photo.background == "gradient":
        shade = 1.08 - 0.42 * ((x - 0.45) ** 2 + (y - 0.4) ** 2)
    elif photo.background == "wood":
        grain = Image.fromarray(rng.integers(0, 255, (40, 5), dtype=np.uint8)).resize(
            (PHOTO_PX, PHOTO_PX), Image.Resampling.BICUBIC
        )
        plank = np.floor(y * 4)
        seam = np.exp(-((((y * 4) % 1) / 0.03) ** 2))
        shade = 0.86 + 0.05 * (plank * 37 % 3) + 0.12 * (np.asarray(grain, dtype=np.float32) / 255 - 0.5) - 0.3 * seam
    elif photo.background == "shelf":
        front = soft_step(y - 0.74, 0.01)
        shade = (
            (1.04 - 0.12 * y) * (1 - front)
            + (0.8 + 0.16 * (1 - y) / 0.26) * front
            - 0.12 * np.exp(-(((y - 0.74) / 0.012) ** 2))
        )
    scene: FloatArray = (np.asarray(photo.backdrop, dtype=np.float32) * shade[..., None]).astype(np.float32)
    return scene


def _placed(product: Image.Image, photo: Photo) -> FloatArray:
    """The product rotated, zoomed and shifted, (PHOTO_PX, PHOTO_PX, 4), colours premultiplied, in 0..1."""
    angle, centre = np.deg2rad(photo.rotation_deg), MASTER_PX / 2
    cos, sin = np.cos(angle) / photo.zoom, np.sin(angle) / photo.zoom
    x, y = centre + photo.shift[0] * MASTER_PX, centre + photo.shift[1] * MASTER_PX
    back = (cos, -sin, centre - cos * x + sin * y, sin, cos, centre - sin * x - cos * y)
    placed = product.convert("RGBa").transform(product.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    return np.asarray(placed.reduce(2), dtype=np.float32) / np.float32(255)


def take_photo(product: Image.Image, photo: Photo) -> Image.Image:
    """A seller's photo of a drawn product: RGB of PHOTO_PX x PHOTO_PX, not yet compressed."""
    rng = np.random.default_rng(photo.seed)
    placed = _placed(product, photo)
    alpha = placed[..., 3]
    near, far = moved(blurred(alpha, 2), 2, 1), moved(blurred(alpha, 8), 7, 4)
    scene = _backdrop(photo, rng) * (1 - 0.3 * near - 0.35 * far)[..., None]
    picture = (scene * (1 - alpha[..., None]) + placed[..., :3] * 255) * np.asarray(photo.gains, dtype=np.float32)
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(photo.noise)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
