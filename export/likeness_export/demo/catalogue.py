"""Invents the demo's catalogue: designs, their colourways (the products) and what several sellers list of each.

Two listings of one product share neither photo nor wording. No single modality tells products apart: some
designs look alike and differ in size, material and collection, and the colourways of one design share all words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from likeness_client.errors import InputError

from likeness_export.demo.drawing import COLOURS, PATTERNS, RGB, Look, draw_product
from likeness_export.demo.photo import random_photo, take_photo
from likeness_export.demo.shapes import SHAPES, Form
from likeness_export.demo.wording import (
    COLLECTIONS,
    KINDS,
    SELLERS,
    Facts,
    Seller,
    fill_attributes,
    pick,
    write_description,
    write_title,
)
from likeness_export.progress import each
from likeness_export.repository.replacing import replaced_folder

Line: TypeAlias = dict[str, Any]

_VERSION = 1  # to be raised with every change of what is drawn or written, so that older catalogues are drawn again
_VAL_SHARE = 0.35
_NO_IMAGE, _NO_TEXT, _NO_ATTRIBUTES = 0.04, 0.04, 0.06
_FAMILY = 5  # designs of one kind: three that look alike, then two of one collection and pattern but unlike proportions
_NEARBY = 8  # the colourways of a design are neighbours among the colours


@dataclass(frozen=True, kw_only=True)
class Design:
    """A product in all its colours. `looks` has one entry for each colourway, `facts` the colour of the first."""

    design_id: str
    facts: Facts
    looks: tuple[Look, ...]


@dataclass(frozen=True, kw_only=True)
class DemoProduct:
    """One colourway of a design, in one of the splits. `number` is unique in the catalogue."""

    number: int
    design: Design
    look: Look
    split: str

    @property
    def group(self) -> str:
        """The label that all listings of this product share."""
        return f"{self.design.design_id}-{self.look.colour}"


def _random_form(rng: np.random.Generator) -> Form:
    width, height, detail = (float(value) for value in rng.uniform(-1, 1, 3))
    return Form(width=width, height=height, detail=detail)


def _random_looks(rng: np.random.Generator, kind: str, pattern: str) -> tuple[Look, ...]:
    """Four or five colourways of a new design."""
    form, repeats = _random_form(rng), float(rng.uniform(5.5, 11))
    turn_deg, texture_seed = float(pick(rng, (0, 0, 90, 45, -30))), int(rng.integers(1000))
    pale: Sequence[RGB] = ((246, 240, 226), (236, 228, 208), (228, 234, 238))
    looks, circle = [], list(COLOURS)
    start = int(rng.integers(len(circle)))
    for step in rng.permutation(_NEARBY)[: rng.integers(4, 6)]:
        colour = circle[(start + int(step)) % len(circle)]
        dark = tuple(int(channel * 0.5) for channel in COLOURS[colour])
        accent = pick(rng, [(214, 180, 130), (66, 62, 66), dark, COLOURS[pick(rng, list(COLOURS))]])
        second = dark if colour == "cream" else pick(rng, pale)
        looks.append(
            Look(
                kind=kind,
                pattern=pattern,
                colour=colour,
                second=(second[0], second[1], second[2]),
                accent=(accent[0], accent[1], accent[2]),
                repeats=repeats,
                turn_deg=turn_deg,
                texture_seed=texture_seed,
                form=form,
            )
        )
    return tuple(looks)


def _look_alike(rng: np.random.Generator, looks: tuple[Look, ...]) -> tuple[Look, ...]:
    """The same colourways with proportions that differ by less than a photo shows."""
    form, step = looks[0].form, rng.normal(0, 0.15, 3)
    near = Form(width=form.width + step[0], height=form.height + step[1], detail=form.detail + step[2])
    return tuple(replace(look, form=near, repeats=look.repeats * 1.02) for look in looks)


def _family(rng: np.random.Generator, kind: str, count: int) -> list[Design]:
    """`count` designs of one kind, some of them hard to tell from one another."""
    about, made = KINDS[kind], list[Design]()
    patterns, collections = rng.permutation(list(PATTERNS)), rng.permutation(list(COLLECTIONS))
    for number in range(count):
        place = number % _FAMILY
        pattern = str(patterns[(number // _FAMILY * 2 + place // 3) % len(patterns)])
        looks = _look_alike(rng, made[-1].looks) if place in (1, 2) else _random_looks(rng, kind, pattern)
        collection = made[-1].facts.collection if place == 4 else str(collections[number % len(collections)])
        size = about.sizes[place % len(about.sizes)]
        facts = Facts(
            kind=kind,
            collection=collection,
            size=size,
            material=pick(rng, about.materials),
            pattern=pattern,
            colour=looks[0].colour,
            price_usd=round(about.price_usd * float(rng.uniform(0.7, 1.4)), 2),
        )
        design_id = f"{kind.replace(' ', '-')}-{pattern}-{number + 1:02d}"
        made.append(Design(design_id=design_id, facts=facts, looks=looks))
    return made


def invent_products(*, seed: int, designs: int) -> list[DemoProduct]:
    """All products, about 4.5 for each design; of every kind about a third, and at least one, is in split "val"."""
    rng, kinds = np.random.default_rng(seed), sorted(SHAPES)
    products: list[DemoProduct] = []
    for place, kind in enumerate(kinds):
        family = _family(rng, kind, len(range(place, designs, len(kinds))))
        pairs = [(design, look) for design in family for look in design.looks]
        held_out = set(rng.permutation(len(pairs))[: max(1, round(_VAL_SHARE * len(pairs)))].tolist())
        for index, (design, look) in enumerate(pairs):
            split = "val" if index in held_out else "train"
            products.append(DemoProduct(number=len(products), design=design, look=look, split=split))
    return products


def _write_listing(
    rng: np.random.Generator, product: DemoProduct, seller: Seller
) -> tuple[str, str, dict[str, str | float], bool]:
    """Title, description, attributes and whether there is a photo; never nothing at all."""
    facts = replace(product.design.facts, colour=product.look.colour)
    title, description = write_title(rng, facts, seller), write_description(rng, facts)
    attributes = fill_attributes(rng, facts)
    lacks_image, lacks_text, lacks_attributes = rng.random(3) < (_NO_IMAGE, _NO_TEXT, _NO_ATTRIBUTES)
    if lacks_text:
        title = description = ""
    if lacks_attributes:
        attributes = {}
    return title, description, attributes, not lacks_image or not (title or attributes)


def _list_product(product: DemoProduct, directory: Path, *, seed: int) -> list[Line]:
    """Draws one product, writes the photos of all its listings and returns their lines."""
    rng = np.random.default_rng([seed, product.number])
    drawn = draw_product(product.look)
    sellers = rng.permutation(len(SELLERS))[: pick(rng, (2, 3, 3, 4))]
    lines = []
    for number in sorted(int(seller) for seller in sellers):
        product_id = f"p{product.number:04d}-s{number + 1}"
        title, description, attributes, has_photo = _write_listing(rng, product, SELLERS[number])
        photo, image = random_photo(rng, product.look.kind), f"images/{product_id}.jpg"
        if has_photo:
            take_photo(drawn, photo).save(directory / image, quality=photo.quality)
        lines.append(
            {
                "product_id": product_id,
                "kind": "catalog",
                "split": product.split,
                "title": title,
                "description": description,
                "attributes": attributes,
                "images": [image] if has_photo else [],
                "category_path": [KINDS[product.look.kind].department, product.look.kind],
                "fine_label": product.design.design_id,
                "coarse_label": product.look.kind,
                "group": product.group,
                "extra": {"seller": SELLERS[number].name},
            }
        )
    return lines


def _stamp(seed: int, designs: int) -> str:
    return json.dumps({"version": _VERSION, "seed": seed, "designs": designs})


def _is_complete(directory: Path, stamp: str) -> bool:
    files = directory / "catalogue.json", directory / "products.jsonl"
    return all(file.is_file() for file in files) and files[0].read_text(encoding="utf-8") == stamp


def _may_replace(directory: Path) -> bool:
    """Whether nothing but an older catalogue would be lost."""
    if directory.is_file():
        return False
    names = {entry.name for entry in directory.iterdir()} if directory.exists() else set[str]()
    ours = {"catalogue.json", "products.jsonl", "images", "clips", "products_with_clips.jsonl"}
    ours |= {"interactions.csv", "products_with_interactions.jsonl"}
    return not names or ("catalogue.json" in names and names <= ours)


def _render_into(directory: Path, *, seed: int, designs: int) -> None:
    """Writes a whole catalogue into an existing directory, the stamp last."""
    (directory / "images").mkdir()
    lines: list[Line] = []
    products = invent_products(seed=seed, designs=designs)
    for product in each(products, "drawing the catalogue"):
        lines.extend(_list_product(product, directory, seed=seed))
    # Shuffled: a metric that breaks ties by row order must not find a product's listings side by side.
    order = np.random.default_rng([seed, len(lines)]).permutation(len(lines))
    text = "".join(json.dumps(lines[row], ensure_ascii=False) + "\n" for row in order)
    (directory / "products.jsonl").write_text(text, encoding="utf-8")
    (directory / "catalogue.json").write_text(_stamp(seed, designs), encoding="utf-8")


def render_catalogue(directory: Path, *, seed: int = 7, designs: int = 60) -> Path:
    """Draws the catalogue, or leaves it be where the same one is already there.

    It takes its place when it is complete, so that `directory` never holds half a catalogue. An older catalogue (one
    with another seed, say) is replaced.

    Args:
        directory: where `products.jsonl`, `images/` and `catalogue.json` (the stamp) are to be.
        seed: the same seed gives the same catalogue, byte for byte, with the same versions of Pillow and numpy.
        designs: how many, dealt to the twelve kinds in turn; each has four or five colourways.

    Returns:
        The path of `products.jsonl`.

    Raises:
        InputError: with fewer designs than kinds, or if `directory` holds something else than a catalogue or cannot be
            replaced.
    """
    if designs < len(SHAPES):
        raise InputError(f"designs must be at least {len(SHAPES)}, one of each kind, not {designs}")
    target = directory / "products.jsonl"
    if _is_complete(directory, _stamp(seed, designs)):
        return target
    if not _may_replace(directory):
        raise InputError(f"{directory} holds something else than a rendered catalogue: name another folder")
    with replaced_folder(directory) as fresh:
        _render_into(fresh, seed=seed, designs=designs)
    return target
