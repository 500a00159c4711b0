"""A contact sheet: queries and what was found for them, side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from likeness_client.records import Product
from likeness_client.writing import written_aside
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from likeness_export.preprocessing.image import FORMATS, to_rgb, upright

log = logging.getLogger(__name__)

_PHOTO, _WIDTH, _HEIGHT, _GAP = 160, 210, 222, 14
_PAPER, _CARD, _INK, _FAINT = (244, 242, 238), (255, 255, 255), (40, 40, 44), (150, 148, 144)
_LONGEST = 200  # characters of a line that are looked at: far more than fit
_RIGHT, _WRONG, _QUERY = (46, 140, 90), (206, 92, 72), (60, 90, 170)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One product on the sheet.

    Attributes:
        photo: its picture; None where it has none.
        title: one line, cut to fit.
        caption: one line below.
        right: whether it belongs to its row's query; None for the query itself.
    """

    photo: Path | None
    title: str
    caption: str
    right: bool | None


def card_of(product: Product, caption: str, right: bool | None) -> Card:
    """Return the card of a product."""
    photo = product.images[0] if product.images else None
    return Card(photo=photo if isinstance(photo, Path) else None, title=name_of(product), caption=caption, right=right)


def name_of(product: Product) -> str:
    """Return what a product goes by: its title, or else its attributes, or its id."""
    title = product.title.decode("utf-8", "replace") if isinstance(product.title, bytes) else product.title
    if not title and product.attributes:
        return "(no text) " + ", ".join(map(str, product.attributes.values()))
    return title or product.product_id


def draw_rows(rows: Sequence[Sequence[Card]], path: Path) -> None:
    """Draw one row per query: the query first, then what was found, framed green, with a star, or red."""
    columns = max(len(row) for row in rows)
    size = (columns * (_WIDTH + _GAP) + 2 * _GAP, len(rows) * (_HEIGHT + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    for down, row in enumerate(rows):
        for across, card in enumerate(row):
            left = _GAP + across * (_WIDTH + _GAP) + (_GAP if across else 0)
            _draw_card(sheet, card, left, _GAP + down * (_HEIGHT + _GAP))
    with written_aside(path) as aside:
        sheet.save(aside, format="PNG")


def _draw_card(sheet: Image.Image, card: Card, left: int, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    frame = _QUERY if card.right is None else _RIGHT if card.right else _WRONG
    draw.rounded_rectangle((left, top, left + _WIDTH, top + _HEIGHT), 8, fill=_CARD, outline=frame, width=3)
    corner = (left + (_WIDTH - _PHOTO) // 2, top + 10)
    if photo := _read_photo(card):
        sheet.paste(photo, corner)
    else:
        middle = (left + _WIDTH // 2, top + 10 + _PHOTO // 2)
        draw.text(middle, "no photo", font=_font(15), fill=_FAINT, anchor="mm")
    _draw_line(draw, card.title, (left + 10, top + _PHOTO + 16), 13, _INK)
    caption = f"* {card.caption}" if card.right else card.caption  # not everyone tells green from red
    _draw_line(draw, caption, (left + 10, top + _PHOTO + 38), 11, frame)


def _read_photo(card: Card) -> Image.Image | None:
    """Return a card's photo as networks see it; None without one that can be read: others are not lost for it."""
    if not card.photo:
        return None
    try:
        if not card.photo.is_file():  # a device or a pipe might never end
            raise OSError("no file")
        with Image.open(card.photo, formats=FORMATS) as photo:
            photo.load()
            return to_rgb(upright(photo)).resize((_PHOTO, _PHOTO))
    except Exception as error:  # codecs report damage with a dozen unrelated types
        log.warning("%s cannot be drawn: %s", card.photo, error)
        return None


def _draw_line(
    draw: ImageDraw.ImageDraw, text: str, place: tuple[int, int], size: int, ink: tuple[int, int, int]
) -> None:
    shown = " ".join(text[:_LONGEST].split())
    font = _font(size)
    while draw.textlength(shown, font=font) > _WIDTH - 20:
        shown = shown[:-2].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    draw.text(place, shown, font=font, fill=ink)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font, which has most alphabets; Pillow's own has ASCII only."""
    return ImageFont.truetype(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
