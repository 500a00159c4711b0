"""The outlines of the demo's products: each kind of product is a stack of parts, given as coverage masks.

Coordinates are fractions of the square master image: x to the right, y downwards, the product's centre at about
(0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

FloatArray: TypeAlias = npt.NDArray[np.float32]
Point: TypeAlias = tuple[float, float]
Paint: TypeAlias = Literal["pattern", "base", "second", "accent", "shade", "dark", "light", "wood", "metal"]

MASTER_PX = 320  # twice the size of the photos
_AXIS = (np.arange(MASTER_PX, dtype=np.float32) + np.float32(0.5)) / np.float32(MASTER_PX)
X, Y = np.meshgrid(_AXIS, _AXIS)


@dataclass(frozen=True, kw_only=True)
class Form:
    """Proportions of a design, each in -1..1, where 0 is the ordinary product of its kind."""

    width: float
    height: float
    detail: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a product.

    Attributes:
        mask: coverage in 0..1, (MASTER_PX, MASTER_PX).
        paint: what the piece is painted with.
        across: for a turned (lathe-like) piece, -1 at its left edge to 1 at its right edge; None for a padded one.
        depth: how strongly a padded piece bulges; 0 is flat.
        gloss: strength of the highlight in 0..1.
    """

    mask: FloatArray
    paint: Paint
    across: FloatArray | None = None
    depth: float = 1.0
    gloss: float = 0.0


def _cover(distance: FloatArray) -> FloatArray:
    """Coverage of the pixels whose signed distance (negative inside) is given, with a soft edge of one pixel."""
    covered: FloatArray = np.clip(0.5 - distance * MASTER_PX, 0.0, 1.0).astype(np.float32)
    return covered


def _ellipse(x: float, y: float, rx: float, ry: float) -> FloatArray:
    return _cover((np.hypot((X - x) / rx, (Y - y) / ry) - 1) * min(rx, ry))


def _box(x: float, y: float, half_width: float, half_height: float, corner: float) -> FloatArray:
    right, down = np.abs(X - x) - half_width + corner, np.abs(Y - y) - half_height + corner
    outside = np.hypot(np.maximum(right, 0), np.maximum(down, 0))
    return _cover(outside + np.minimum(np.maximum(right, down), 0) - corner)


def _bar(start: Point, end: Point, radius: float) -> FloatArray:
    (x0, y0), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
    along = np.clip(((X - x0) * dx + (Y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    return _cover(np.hypot(X - x0 - along * dx, Y - y0 - along * dy) - np.float32(radius))


def _bars(lines: Sequence[tuple[Point, Point]], radius: float) -> FloatArray:
    covered: FloatArray = np.maximum.reduce([_bar(start, end, radius) for start, end in lines])
    return covered


def _outline(points: Sequence[Point], *, rounds: int = 2) -> FloatArray:
    """A closed polygon whose corners are cut `rounds` times (Chaikin's algorithm)."""
    corners = np.asarray(points, dtype=np.float64)
    for _ in range(rounds):
        following = np.roll(corners, -1, axis=0)
        corners = np.stack([0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following], 1).reshape(-1, 2)
    image = Image.new("L", (MASTER_PX * 3, MASTER_PX * 3))
    ImageDraw.Draw(image).polygon([(x * image.width, y * image.height) for x, y in corners], fill=255)
    return np.asarray(image.reduce(3), dtype=np.float32) / np.float32(255)


def _mirrored(points: Sequence[Point]) -> list[Point]:
    """The points of a left half, from top to bottom, completed by the right half."""
    return [*points, *((1 - x, y) for x, y in reversed(points))]


def _turned(
    profile: Sequence[Point], paint: Paint, *, x: float = 0.5, soft: bool = False, sag: float = 0.03, gloss: float
) -> Part:
    """A body of revolution seen from slightly above.

    Args:
        profile: (y, half width) from top to bottom.
        paint: what to paint it with.
        x: the axis.
        soft: ease from one half width to the next instead of going straight.
        sag: how far the bottom edge bends down in the middle.
        gloss: strength of the highlight.
    """
    heights, halves = np.asarray(profile, dtype=np.float32).T
    rows = np.clip(_AXIS, heights[0], heights[-1])
    place = np.clip(np.searchsorted(heights, rows, side="right") - 1, 0, len(heights) - 2)
    step = (rows - heights[place]) / (heights[place + 1] - heights[place])
    step = step * step * (3 - 2 * step) if soft else step
    half = (halves[place] + step * (halves[place + 1] - halves[place]))[:, None]
    across = np.clip((X - np.float32(x)) / half, -1, 1)
    bottom = heights[-1] + sag * np.sqrt(1 - across * across)
    distance = np.maximum(np.maximum(np.abs(X - x) - half, heights[0] - Y), Y - bottom)
    return Part(mask=_cover(distance), paint=paint, across=across, gloss=gloss)


def _opening(x: float, y: float, half: float, tilt: float, wall: float) -> list[Part]:
    """The rim and the dark inside of a vessel."""
    inside = _ellipse(x, y + wall * 0.25, half - wall, tilt - wall * 0.5)
    return [
        Part(mask=_ellipse(x, y, half, tilt), paint="second", depth=0.3),
        Part(mask=inside, paint="shade", depth=-1),
    ]


def _ring(x: float, y: float, rx: float, ry: float, thickness: float) -> FloatArray:
    return _ellipse(x, y, rx, ry) * (1 - _ellipse(x, y, rx - thickness, ry - thickness))


def _mug(form: Form) -> list[Part]:
    half, top, bottom, x = 0.22 + 0.045 * form.width, 0.3 - 0.075 * form.height, 0.77, 0.44
    handle = _ring(x + half, (top + bottom) / 2, 0.135 + 0.02 * form.detail, 0.16 - 0.02 * form.width, 0.042)
    return [
        Part(mask=handle, paint="accent", gloss=0.5),
        _turned([(top, half), (bottom, half * (0.9 - 0.12 * form.detail))], "pattern", x=x, sag=0.045, gloss=0.6),
        *_opening(x, top, half, 0.045, 0.016),
    ]


def _tshirt(form: Form) -> list[Part]:
    wide, hem, cuff = 0.2 + 0.03 * form.width, 0.84 + 0.04 * form.height, 0.05 * form.detail
    left = [(0.44, 0.155), (0.35, 0.17), (0.25, 0.21), (0.09, 0.38 + cuff), (0.19, 0.49 + cuff)]
    body = _outline(
        _mirrored([*left, (0.5 - wide, 0.4), (0.5 - wide, hem), (0.5 - wide + 0.01, hem + 0.015)]), rounds=1
    )
    neck = 0.085 + 0.012 * form.detail
    return [
        Part(mask=_ellipse(0.5, 0.165, neck, 0.04), paint="shade", depth=0),
        Part(mask=body * (1 - _ellipse(0.5, 0.15, neck, 0.075)), paint="pattern", depth=1.2),
        Part(mask=_ring(0.5, 0.15, neck + 0.022, 0.097, 0.024) * (Y > 0.158), paint="accent", depth=0.4),
        Part(mask=body * _box(0.5, hem + 0.012, wide, 0.014, 0.001), paint="accent", depth=0.2),
    ]


def _vase(form: Form) -> list[Part]:
    top, neck, belly = 0.14 - 0.04 * form.height, 0.075 + 0.03 * form.detail, 0.21 + 0.05 * form.width
    lip = neck + 0.035
    profile = [(top, lip), (top + 0.14, neck), (0.52 + 0.07 * form.detail, belly), (0.86, 0.11 + 0.03 * form.width)]
    return [_turned(profile, "pattern", soft=True, gloss=0.7), *_opening(0.5, top, lip, 0.024, 0.013)]


def _lamp(form: Form) -> list[Part]:
    top, rim, wide = 0.13, 0.46 + 0.05 * form.height, 0.25 + 0.04 * form.width
    belly = 0.1 + 0.035 * form.detail
    return [
        Part(mask=_ellipse(0.5, 0.885, 0.15, 0.035), paint="metal", gloss=0.4),
        _turned([(rim - 0.02, 0.014), (0.6, 0.014)], "metal", sag=0, gloss=0.7),
        _turned([(0.57, 0.03), (0.72, belly), (0.875, 0.06)], "accent", soft=True, sag=0.012, gloss=0.7),
        Part(mask=_ellipse(0.5, rim, wide * 0.98, 0.03), paint="shade", depth=0),
        _turned([(top, wide * (0.58 + 0.2 * form.detail)), (rim, wide)], "pattern", sag=0.035, gloss=0.1),
    ]


def _backpack(form: Form) -> list[Part]:
    half, top = 0.23 + 0.03 * form.width, 0.19 - 0.035 * form.height
    middle, tall = (top + 0.87) / 2, (0.87 - top) / 2
    pocket = 0.69 - 0.03 * form.detail
    return [
        Part(mask=_ring(0.5, top, 0.075, 0.075, 0.024), paint="accent", depth=0.6),
        Part(mask=_box(0.5 - half, 0.68, 0.05, 0.13, 0.045), paint="shade"),
        Part(mask=_box(0.5 + half, 0.68, 0.05, 0.13, 0.045), paint="shade"),
        Part(mask=_box(0.5, middle, half, tall, 0.11 + 0.03 * form.detail), paint="pattern", depth=1.6),
        Part(mask=_ring(0.5, middle - 0.01, half * 0.86, tall * 0.9, 0.01) * (Y < 0.42), paint="dark", depth=0.3),
        Part(mask=_box(0.5, pocket, half * 0.76, 0.13, 0.05), paint="base", depth=1.2),
        Part(mask=_box(0.5, pocket - 0.075, half * 0.6, 0.006, 0.005), paint="dark", depth=0.2),
        Part(mask=_box(0.5 + half * 0.5, pocket - 0.055, 0.009, 0.024, 0.008), paint="metal", depth=0.5),
        Part(mask=_box(0.5, 0.39, 0.045, 0.03, 0.008), paint="accent", depth=0.4),
    ]


def _chair(form: Form) -> list[Part]:
    half, top, seat = 0.2 + 0.03 * form.width, 0.14 - 0.04 * form.height, 0.56
    splay = 0.05 + 0.03 * form.detail
    legs = [
        ((0.5 + side * half * 0.7, seat - 0.02), (0.5 + side * (half * 0.6 + splay * 0.4), 0.84)) for side in (-1, 1)
    ]
    front = [((0.5 + side * half * 0.9, seat), (0.5 + side * (half * 0.9 + splay), 0.91)) for side in (-1, 1)]
    posts = [((0.5 + side * half * 0.75, top + 0.1), (0.5 + side * half * 0.85, seat)) for side in (-1, 1)]
    return [
        Part(mask=_bars(legs, 0.013), paint="dark", depth=0.5),
        Part(mask=_bars(posts, 0.016), paint="wood", depth=0.5),
        Part(mask=_box(0.5, top + 0.14, half, 0.13, 0.05 + 0.05 * form.detail), paint="pattern", depth=1.4),
        Part(mask=_bars(front, 0.019), paint="wood", depth=0.5),
        Part(mask=_box(0.5, seat + 0.045, half + 0.035, 0.022, 0.02), paint="wood", depth=0.5),
        Part(mask=_box(0.5, seat, half + 0.045, 0.05, 0.045), paint="pattern", depth=1.6),
    ]


def _sneaker(form: Form) -> list[Part]:
    collar, toe, sole = 0.3 - 0.06 * form.height, 0.54 - 0.03 * form.detail, 0.045 + 0.015 * form.width
    upper = [(0.135, collar + 0.01), (0.22, collar + 0.05), (0.36, collar), (0.44, collar + 0.02), (0.575, toe - 0.09)]
    upper += [(0.73, toe), (0.865, toe + 0.05), (0.883, 0.7), (0.883, 0.72), (0.126, 0.72), (0.117, 0.7), (0.16, 0.5)]
    body = _outline(upper)
    slope = (toe - 0.09 - collar) / 0.15
    laces = [(0.395 + 0.048 * i, collar + 0.035 + slope * 0.04 * i) for i in range(4)]
    tongue = [(0.33, collar - 0.05), (0.46, collar - 0.01), (0.487, 0.45), (0.346, 0.45)]
    return [
        Part(mask=_outline(tongue), paint="shade"),
        Part(mask=body, paint="pattern", depth=1.5),
        Part(mask=body * _ellipse(0.883, 0.73, 0.15, 0.14), paint="light", depth=0.8),
        Part(mask=body * _ellipse(0.117, 0.56, 0.08, 0.17), paint="accent", depth=0.6),
        Part(mask=_bars([((0.3, 0.65), (0.49, 0.49)), ((0.37, 0.67), (0.56, 0.53))], 0.015), paint="accent", depth=0.4),
        Part(mask=_bars([((x, y), (x + 0.05, y + 0.085)) for x, y in laces], 0.0105), paint="light", depth=0.5),
        Part(mask=_box(0.504, 0.735, 0.396, sole, 0.04), paint="light", depth=0.8),
        Part(mask=_box(0.504, 0.735 + sole * 0.75, 0.396, sole * 0.25, 0.01), paint="accent", depth=0.3),
    ]


def _cushion(form: Form) -> list[Part]:
    half, tall = 0.34 + 0.035 * form.width, 0.3 + 0.05 * form.height
    pinch = 0.045 + 0.015 * form.detail

    def outline(grow: float) -> FloatArray:
        sag_x, sag_y = pinch * (1 - ((Y - 0.5) / tall) ** 2), pinch * (1 - ((X - 0.5) / half) ** 2)
        edges = np.maximum(np.abs(X - 0.5) - half - grow + sag_x, np.abs(Y - 0.5) - tall - grow + sag_y)
        return _cover(edges.astype(np.float32))

    return [Part(mask=outline(0.012), paint="accent", depth=0.8), Part(mask=outline(0), paint="pattern", depth=2.2)]


def _bottle(form: Form) -> list[Part]:
    half, shoulder = 0.125 + 0.03 * form.width, 0.36 + 0.05 * form.detail
    top = 0.12 - 0.04 * form.height
    profile = [(top + 0.09, 0.06), (top + 0.14, 0.06), (shoulder, half), (0.88, half)]
    body = _turned(profile, "pattern", soft=True, sag=0.025, gloss=0.9)
    base = body.mask * _cover(0.835 + 0.025 * np.sqrt(np.maximum(0, 1 - ((X - 0.5) / half) ** 2)) - Y)
    return [
        body,
        replace(body, mask=base, paint="metal"),
        _turned([(top, 0.064), (top + 0.105, 0.068)], "accent", sag=0.014, gloss=0.6),
        Part(mask=_ellipse(0.5, top, 0.064, 0.013), paint="accent", depth=0.2),
    ]


def _clock(form: Form) -> list[Part]:
    radius, rim = 0.36 + 0.02 * form.width, 0.035 + 0.012 * form.detail
    face = radius * (0.6 + 0.08 * form.height)
    turns = [np.pi * hour / 6 for hour in range(12)]
    ticks = [((0.5 + face * 0.8 * np.sin(a), 0.5 - face * 0.8 * np.cos(a)), a) for a in turns]
    marks = [_bar(p, (p[0] + 0.02 * np.sin(a), p[1] - 0.02 * np.cos(a)), 0.0055) for p, a in ticks]
    return [
        Part(mask=_ellipse(0.5, 0.5, radius + rim, radius + rim), paint="accent", depth=1, gloss=0.3),
        Part(mask=_ellipse(0.5, 0.5, radius, radius), paint="pattern", depth=-0.5),
        Part(mask=_ellipse(0.5, 0.5, face, face), paint="light", depth=0.3),
        Part(mask=np.maximum.reduce(marks), paint="dark", depth=0),
        Part(mask=_bar((0.5, 0.5), (0.5 - face * 0.4, 0.5 - face * 0.28), 0.011), paint="dark", depth=0.2),
        Part(mask=_bar((0.5, 0.5), (0.5 + face * 0.4, 0.5 - face * 0.6), 0.008), paint="dark", depth=0.2),
        Part(mask=_ellipse(0.5, 0.5, 0.021, 0.021), paint="accent", depth=0.4),
    ]


def _plate(form: Form) -> list[Part]:
    rx = 0.39 + 0.03 * form.width
    ry, well = rx * (0.92 + 0.06 * form.height), 0.6 + 0.07 * form.detail
    return [
        Part(mask=_ellipse(0.5, 0.5, rx + 0.008, ry + 0.008), paint="accent", depth=0.6),
        Part(mask=_ellipse(0.5, 0.5, rx, ry), paint="pattern", depth=-0.7, gloss=0.5),
        Part(mask=_ellipse(0.5, 0.5, rx * well, ry * well), paint="second", depth=-1.2, gloss=0.6),
    ]


def _scarf(form: Form) -> list[Part]:
    wide, drop = 0.085 + 0.02 * form.width, 0.8 + 0.05 * form.height
    tails = [((0.42, 0.4), (0.34 - 0.03 * form.detail, drop)), ((0.57, 0.4), (0.66 + 0.02 * form.detail, drop - 0.1))]
    parts = [Part(mask=_ellipse(0.5, 0.3, 0.23, 0.13), paint="shade", depth=-0.5)]
    for (x0, y0), (x1, y1) in tails:
        fringe = [_bar((x1 + i * wide * 0.24, y1), (x1 + i * wide * 0.25, y1 + 0.06), 0.005) for i in range(-4, 5)]
        corners = [(x0 - wide, y0), (x0 + wide, y0), (x1 + wide, y1 + 0.005), (x1 - wide, y1 + 0.005)]
        parts.append(Part(mask=np.maximum.reduce(fringe), paint="accent", depth=0.4))
        parts.append(Part(mask=_outline(corners, rounds=0), paint="pattern", depth=1.6))
    loop = _ellipse(0.5, 0.32, 0.27, 0.2) * (1 - _ellipse(0.5, 0.26, 0.19, 0.095))
    return [*parts, Part(mask=loop, paint="pattern", depth=2.2)]


SHAPES: dict[str, Callable[[Form], list[Part]]] = {
    "backpack": _backpack,
    "bottle": _bottle,
    "chair": _chair,
    "cushion": _cushion,
    "mug": _mug,
    "plate": _plate,
    "scarf": _scarf,
    "sneaker": _sneaker,
    "t-shirt": _tshirt,
    "table lamp": _lamp,
    "vase": _vase,
    "wall clock": _clock,
}
