"""Draws a product: its shape, pattern, colours and the light on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from likeness_export.demo.shapes import MASTER_PX, SHAPES, FloatArray, Form, Part, X, Y

RGB: TypeAlias = tuple[int, int, int]

# Neighbours in this list come close under a seller's white balance: colour alone must not decide.
COLOURS: dict[str, RGB] = {
    "black": (52, 52, 58),
    "grey": (146, 150, 156),
    "navy": (44, 64, 118),
    "blue": (62, 114, 190),
    "teal": (48, 140, 146),
    "green": (74, 142, 92),
    "olive": (124, 130, 70),
    "mustard": (222, 172, 62),
    "cream": (232, 218, 192),
    "brown": (134, 92, 64),
    "red": (196, 58, 60),
    "coral": (232, 118, 98),
    "pink": (232, 158, 176),
    "purple": (124, 88, 156),
}
_FIXED: dict[str, RGB] = {
    "dark": (54, 52, 54),
    "light": (244, 241, 234),
    "wood": (186, 134, 86),
    "metal": (190, 188, 182),
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """All that is visible of a product.

    Attributes:
        kind: a key of `shapes.SHAPES`.
        pattern: a key of `PATTERNS`.
        colour: a key of `COLOURS`; the colour the product is sold as.
        second: RGB of the pattern's figures.
        accent: RGB of handles, hems and rims.
        repeats: how often the pattern repeats over the width of the image.
        turn_deg: rotation of the pattern.
        texture_seed: seed of the patterns that are strewn at random.
        form: proportions.
    """

    kind: str
    pattern: str
    colour: str
    second: RGB
    accent: RGB
    repeats: float
    turn_deg: float
    texture_seed: int
    form: Form


Figures: TypeAlias = tuple[FloatArray, FloatArray]  # coverage by the second colour, then by the accent on top of it


def soft_step(value: FloatArray, softness: float = 0.06) -> FloatArray:
    """1 where value > 0 and 0 where it is < 0, with a ramp between."""
    ramp: FloatArray = np.clip(0.5 + value / np.float32(softness), 0, 1).astype(np.float32)
    return ramp


def _wave(t: FloatArray) -> FloatArray:
    """Triangle wave of period 1, from -1 to 1."""
    wave: FloatArray = np.abs((t % 1) * 4 - 2) - np.float32(1)
    return wave


def _plain(_s: FloatArray, t: FloatArray, _seed: int) -> Figures:
    return np.zeros_like(t), np.zeros_like(t)


def _stripes(_s: FloatArray, t: FloatArray, seed: int) -> Figures:
    wave = _wave(t)
    return soft_step(wave - (0.1 + 0.3 * (seed % 2)), 0.2), soft_step(wave - 0.8, 0.2) * (seed % 3 == 0)


def _checks(s: FloatArray, t: FloatArray, seed: int) -> Figures:
    across, down = soft_step(_wave(s), 0.2), soft_step(_wave(t), 0.2)
    return (across + down) / 2, across * down * np.float32(0.55 * (seed % 2))


def _chevron(s: FloatArray, t: FloatArray, seed: int) -> Figures:
    wave = _wave(t + 0.32 * _wave(s * np.float32(0.7)))
    return soft_step(wave - 0.1, 0.2), soft_step(wave - 0.75, 0.2) * (seed % 2)


def _waves(s: FloatArray, t: FloatArray, seed: int) -> Figures:
    wave = _wave(t + 0.24 * np.sin(s * np.float32(np.pi)))
    return soft_step(wave - 0.3, 0.2), soft_step(-wave - 0.75, 0.2) * (seed % 2)


def _triangles(s: FloatArray, t: FloatArray, seed: int) -> Figures:
    lean = s - t / 2
    up: FloatArray = lean % 1 + t % 1 - np.float32(1)
    third = ((np.floor(lean) + np.floor(t) * (1 + seed % 2)) % 3) == 0
    return soft_step(up), soft_step(up) * third


def _gradient(_s: FloatArray, t: FloatArray, _seed: int) -> Figures:
    # A single blend in the middle of the product (t is 0 there), the steeper the more repeats.
    blend = np.clip(0.5 + t / np.float32(2.5), 0, 1)
    return blend * blend * (3 - 2 * blend), np.zeros_like(t)


def _block(_s: FloatArray, t: FloatArray, seed: int) -> Figures:
    edge = t - np.float32(0.15 * (seed % 5 - 2))
    return soft_step(edge), soft_step(0.09 - np.abs(edge + 0.25))


def _strewn(s: FloatArray, t: FloatArray, seed: int, *, jitter: float, slim: float, size: float) -> Figures:
    """One ellipse in each cell of a brick-like grid: dots, chips or leaves, depending on the three numbers."""
    rng = np.random.default_rng(seed)
    row = np.floor(t).astype(np.intp)
    s = s + np.float32(0.5) * (row % 2)
    column = np.floor(s).astype(np.intp)
    cell = (row * 31 + column * 17) % 97
    dx = s - column - 0.5 - rng.uniform(-jitter, jitter, 97).astype(np.float32)[cell]
    dy = t - row - 0.5 - rng.uniform(-jitter, jitter, 97).astype(np.float32)[cell]
    angle = (rng.uniform(0, np.pi, 97) if jitter else np.where(np.arange(97) % 2, 0.8, 2.3)).astype(np.float32)[cell]
    radius = rng.uniform(size * (1 - 2 * jitter), size, 97).astype(np.float32)[cell]
    along, over = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    figure = soft_step(1 - np.hypot(along, over / slim) / radius, 0.15)
    return figure, figure * (rng.random(97) < 0.4)[cell] * (jitter > 0)


def _dots(s: FloatArray, t: FloatArray, seed: int) -> Figures:
    return _strewn(s, t, seed, jitter=0, slim=1, size=0.26 + 0.04 * (seed % 3))


def _terrazzo(s: FloatArray, t: FloatArray, seed: int) -> Figures:
    return _strewn(s * 1.5, t * 1.5, seed, jitter=0.22, slim=0.6, size=0.46)


def _leaves(s: FloatArray, t: FloatArray, seed: int) -> Figures:
    return _strewn(s, t, seed, jitter=0, slim=0.36, size=0.5)


PATTERNS: dict[str, Callable[[FloatArray, FloatArray, int], Figures]] = {
    "block": _block,
    "checks": _checks,
    "chevron": _chevron,
    "dots": _dots,
    "gradient": _gradient,
    "leaves": _leaves,
    "plain": _plain,
    "stripes": _stripes,
    "terrazzo": _terrazzo,
    "triangles": _triangles,
    "waves": _waves,
}


def blurred(mask: FloatArray, radius_px: float) -> FloatArray:
    """A mask with a Gaussian blur, computed at half its size, which is not visible and much faster."""
    image = Image.fromarray((mask * 255).astype(np.uint8))
    soft = image.reduce(2).filter(ImageFilter.GaussianBlur(radius_px / 2)).resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(soft, dtype=np.float32) / np.float32(255)


def moved(mask: FloatArray, down_px: int, right_px: int) -> FloatArray:
    """A mask pushed down and to the right; zeros come in."""
    height, width = mask.shape
    return np.pad(mask, ((down_px, 0), (right_px, 0)))[:height, :width]


def _window(mask: FloatArray) -> tuple[slice, slice]:
    """The rows and columns that a part and the shadow behind it can touch; most parts are small."""
    spans = []
    for axis in (1, 0):
        used = np.flatnonzero(mask.any(axis=axis))
        spans.append(slice(max(0, int(used[0]) // 2 * 2 - 16), min(MASTER_PX, int(used[-1]) // 2 * 2 + 18)))
    return spans[0], spans[1]


def _wrapped(part: Part, look: Look, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coordinates on the part's surface, in repeats of the pattern."""
    s, t = x - np.float32(0.5), y - np.float32(0.5)
    if part.across is not None:  # wrapped around the body, so that the figures narrow and bend towards its sides
        s = np.arcsin(part.across) * np.float32(0.2)
        t = t - np.float32(0.035) * np.sqrt(1 - part.across**2)
    cos, sin = math.cos(math.radians(look.turn_deg)), math.sin(math.radians(look.turn_deg))
    return (s * cos + t * sin) * look.repeats, (t * cos - s * sin) * look.repeats


def _painted(part: Part, look: Look, x: FloatArray, y: FloatArray) -> FloatArray:
    """The unlit colour of each pixel, (height, width, 3) or (1, 1, 3), in 0..255."""
    base = np.asarray(COLOURS[look.colour], dtype=np.float32)
    second, accent = np.asarray(look.second, dtype=np.float32), np.asarray(look.accent, dtype=np.float32)
    plain = {"base": base * 0.88, "shade": base * 0.5, "second": second, "accent": accent, **_FIXED}
    if part.paint != "pattern":
        return np.asarray(plain[part.paint], dtype=np.float32)[None, None, :]
    figures, dots = PATTERNS[look.pattern](*_wrapped(part, look, x, y), look.texture_seed)
    mixed = base + (second - base) * figures[..., None]
    mixed += (accent - mixed) * dots[..., None]
    return mixed


def _light(part: Part, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Brightness (a factor) and highlight (to be added, 0..1) under a lamp at the upper left."""
    if part.across is not None:
        facing = np.sqrt(1 - part.across**2) * 0.8 - part.across * 0.42
        shine = np.exp(-(((part.across + 0.5) / 0.13) ** 2)) + 0.3 * np.exp(-(((part.across - 0.82) / 0.07) ** 2))
        return 0.5 + 0.6 * np.maximum(facing, 0), 0.5 * part.gloss * shine
    if part.depth == 0:
        return np.ones_like(part.mask), np.zeros_like(part.mask)
    broad, edge = np.gradient(blurred(part.mask, 18)), np.gradient(blurred(part.mask, 3))
    slope = 9 * (broad[0] + broad[1] * 0.7) + 1.4 * (edge[0] + edge[1] * 0.7)
    light = np.clip(1 + part.depth * slope - 0.14 * (y - 0.5), 0.45, 1.3)
    shine = np.exp(-(((x + y * 1.4 - 0.85) / 0.1) ** 2)) * part.mask
    return light, 0.25 * part.gloss * shine


def draw_product(look: Look) -> Image.Image:
    """The product alone, lit, without background: RGBA of MASTER_PX x MASTER_PX."""
    colour = np.zeros((MASTER_PX, MASTER_PX, 3), dtype=np.float32)
    alpha = np.zeros((MASTER_PX, MASTER_PX), dtype=np.float32)
    for whole in SHAPES[look.kind](look.form):
        window = _window(whole.mask)
        part = replace(whole, mask=whole.mask[window], across=None if whole.across is None else whole.across[window])
        light, shine = _light(part, X[window], Y[window])
        paint = _painted(part, look, X[window], Y[window]) * light[..., None]
        paint += (255 - paint) * shine[..., None]
        below = colour[window]  # a view: every part darkens what lies right behind it, then covers it
        below *= (1 - 0.4 * moved(blurred(part.mask, 4), 5, 3))[..., None]
        below += (paint - below) * part.mask[..., None]
        np.maximum(alpha[window], part.mask, out=alpha[window])
    opaque = np.dstack([np.clip(colour, 0, 255), alpha * 255]).astype(np.uint8)
    return Image.fromarray(opaque)
