"""What the demo's sellers write about a product: titles, descriptions and attributes, with gaps and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

Attributes: TypeAlias = dict[str, str | float]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What there is to say about one kind of product; the first name is the plain one, the price a typical one."""

    department: str
    names: tuple[str, ...]
    materials: tuple[str, ...]
    sizes: tuple[str, ...]
    price_usd: float


KINDS: dict[str, Kind] = {
    "backpack": Kind(
        department="Bags",
        names=("backpack", "rucksack", "day pack", "school bag"),
        materials=("canvas", "recycled polyester", "nylon"),
        sizes=("16 l", "20 l", "26 l"),
        price_usd=65,
    ),
    "bottle": Kind(
        department="Kitchen",
        names=("bottle", "water bottle", "drinking bottle", "flask"),
        materials=("stainless steel", "aluminium", "tritan"),
        sizes=("500 ml", "750 ml", "1000 ml"),
        price_usd=24,
    ),
    "chair": Kind(
        department="Furniture",
        names=("chair", "dining chair", "side chair", "kitchen seat"),
        materials=("oak", "beech", "ash"),
        sizes=("78 cm", "82 cm", "86 cm"),
        price_usd=140,
    ),
    "cushion": Kind(
        department="Living",
        names=("cushion", "throw pillow", "sofa pillow", "scatter cushion"),
        materials=("cotton", "linen", "velvet"),
        sizes=("40 x 40 cm", "45 x 45 cm", "50 x 50 cm"),
        price_usd=28,
    ),
    "mug": Kind(
        department="Kitchen",
        names=("mug", "coffee mug", "cup", "tea cup"),
        materials=("stoneware", "porcelain", "enamel"),
        sizes=("250 ml", "350 ml", "450 ml"),
        price_usd=14,
    ),
    "plate": Kind(
        department="Kitchen",
        names=("plate", "dinner plate", "serving dish", "side plate"),
        materials=("stoneware", "porcelain", "bamboo"),
        sizes=("21 cm", "24 cm", "27 cm"),
        price_usd=18,
    ),
    "scarf": Kind(
        department="Clothing",
        names=("scarf", "shawl", "wrap", "neck scarf"),
        materials=("merino wool", "cotton", "cashmere"),
        sizes=("150 cm", "170 cm", "190 cm"),
        price_usd=38,
    ),
    "sneaker": Kind(
        department="Shoes",
        names=("sneaker", "trainer", "casual shoe", "low top"),
        materials=("canvas", "suede", "knit"),
        sizes=("narrow fit", "regular fit", "wide fit"),
        price_usd=80,
    ),
    "t-shirt": Kind(
        department="Clothing",
        names=("t-shirt", "tee", "crew neck", "short sleeve top"),
        materials=("organic cotton", "jersey", "linen blend"),
        sizes=("slim fit", "regular fit", "loose fit"),
        price_usd=25,
    ),
    "table lamp": Kind(
        department="Lighting",
        names=("table lamp", "bedside lamp", "desk light", "accent lamp"),
        materials=("ceramic", "glass", "brass"),
        sizes=("36 cm", "42 cm", "48 cm"),
        price_usd=75,
    ),
    "vase": Kind(
        department="Living",
        names=("vase", "flower vase", "bud vase", "decorative jar"),
        materials=("stoneware", "terracotta", "glass"),
        sizes=("18 cm", "24 cm", "30 cm"),
        price_usd=34,
    ),
    "wall clock": Kind(
        department="Living",
        names=("wall clock", "kitchen clock", "silent clock", "timepiece"),
        materials=("bamboo", "aluminium", "acrylic"),
        sizes=("28 cm", "32 cm", "38 cm"),
        price_usd=45,
    ),
}

# The plain word first, then what marketing makes of it; some words are claimed by two colours, as in life.
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("black", "midnight", "charcoal"),
    "blue": ("blue", "ocean", "sky"),
    "brown": ("brown", "walnut", "cocoa"),
    "coral": ("coral", "sunset", "salmon"),
    "cream": ("cream", "ivory", "sand"),
    "green": ("green", "forest", "fern"),
    "grey": ("grey", "stone", "charcoal"),
    "mustard": ("mustard", "honey", "sand"),
    "navy": ("navy", "midnight", "deep blue"),
    "olive": ("olive", "moss", "fern"),
    "pink": ("pink", "blush", "rose"),
    "purple": ("purple", "plum", "violet"),
    "red": ("red", "cherry", "sunset"),
    "teal": ("teal", "ocean", "lagoon"),
}
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "block": ("colour block", "two-tone"),
    "checks": ("checked", "gingham"),
    "chevron": ("chevron", "zigzag"),
    "dots": ("dotted", "polka dot"),
    "gradient": ("gradient", "ombre"),
    "leaves": ("leaf print", "botanical"),
    "plain": ("plain", "solid"),
    "stripes": ("striped", "pinstripe"),
    "terrazzo": ("terrazzo", "speckled"),
    "triangles": ("triangle print", "geometric"),
    "waves": ("wave print", "rippled"),
}
# A brand has several collections, a collection products of many kinds.
COLLECTIONS: dict[str, str] = {
    "Alder": "Nordhus",
    "Brisa": "Casa Lumen",
    "Cove": "Tidewell",
    "Dune": "Casa Lumen",
    "Ember": "Fieldmark",
    "Fjord": "Nordhus",
    "Grove": "Fieldmark",
    "Harbour": "Tidewell",
    "Isla": "Casa Lumen",
    "Juniper": "Nordhus",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The truth about a product, from which every seller's listing departs a little."""

    kind: str
    collection: str
    size: str
    material: str
    pattern: str
    colour: str
    price_usd: float


@dataclass(frozen=True, kw_only=True)
class Seller:
    """The habits of a seller: the order of the words in a title, what joins them, whether they get capitals."""

    name: str
    order: tuple[str, ...]
    joint: str = " "
    capitals: bool = False


SELLERS: tuple[Seller, ...] = (
    Seller(name="Harbour Lane", order=("collection", "colour", "kind", "size")),
    Seller(name="Papaya Home", order=("praise", "collection", "pattern", "kind", "material", "size"), capitals=True),
    Seller(name="Quill & Co", order=("kind", "collection", "size", "colour"), joint=", "),
    Seller(name="Marktplatz 24", order=("brand", "collection", "kind", "colour", "size"), joint=" - "),
    Seller(name="Second Shelf", order=("material", "kind", "collection", "colour", "size")),
    Seller(name="Orbit Outlet", order=("praise", "brand", "kind", "material", "size", "collection"), capitals=True),
)
_PRAISE = ("new", "lovely", "classic", "bestseller", "gift idea", "modern", "handmade", "sale", "original", "everyday")
_WRITTEN = {
    "collection": 0.9,
    "size": 0.82,
    "material": 0.75,
    "pattern": 0.4,
    "colour": 0.6,
    "brand": 0.35,
    "praise": 0.3,
}
_MISLEADING = 0.15  # of the colour and pattern words that are written
_CLOSING = ("Ships within two days.", "A good gift.", "Easy to care for.", "Limited stock.", "", "", "", "")
_MISSING = {
    "kind": 0.15,
    "material": 0.35,
    "colour": 0.42,
    "pattern": 0.4,
    "size": 0.4,
    "brand": 0.5,
    "price_usd": 0.15,
}
_WRONG = 0.06  # of the attributes that are given


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, each as likely as the other."""
    return choices[int(rng.integers(len(choices)))]


def _word(rng: np.random.Generator, words: dict[str, tuple[str, ...]], truth: str) -> str:
    """A word for a colour or pattern: plain, a synonym, or now and then that of another one."""
    meant = pick(rng, list(words)) if rng.random() < _MISLEADING else truth
    return pick(rng, words[meant])


def _words(rng: np.random.Generator, facts: Facts) -> dict[str, str]:
    """One seller's word for each field; "" for what that seller leaves out."""
    size = facts.size.replace(" ", "") if rng.random() < 0.3 else facts.size
    names = KINDS[facts.kind].names
    words = {
        "collection": facts.collection,
        "size": size,
        "material": facts.material,
        "pattern": _word(rng, PATTERN_WORDS, facts.pattern),
        "colour": _word(rng, COLOUR_WORDS, facts.colour),
        "brand": COLLECTIONS[facts.collection],
        "praise": pick(rng, _PRAISE),
    }
    told = {field: word if rng.random() < _WRITTEN[field] else "" for field, word in words.items()}
    return {**told, "kind": pick(rng, names) if rng.random() < 0.4 else names[0]}


def _capitalised(phrase: str) -> str:
    return " ".join(word[0].upper() + word[1:] for word in phrase.split())


def write_title(rng: np.random.Generator, facts: Facts, seller: Seller) -> str:
    """A title in the seller's manner."""
    words = _words(rng, facts)
    if seller.capitals:
        words = {field: word if field == "size" else _capitalised(word) for field, word in words.items()}
    title = seller.joint.join(words[field] for field in seller.order if words[field])
    return title[0].upper() + title[1:]


def write_description(rng: np.random.Generator, facts: Facts) -> str:
    """One or two short sentences; "" in a quarter of the cases."""
    if rng.random() < 0.25:
        return ""
    words = _words(rng, facts)
    opening = " ".join(f"{words['praise']} {words['pattern']} {words['kind']}".split())
    stuff = " ".join(filter(None, (words["colour"] if rng.random() < 0.5 else "", words["material"])))
    made = f" in {stuff}" if stuff else ""
    origin = f" from the {words['collection']} series" if words["collection"] and rng.random() < 0.5 else ""
    return f"{opening[0].upper()}{opening[1:]}{made}{origin}. {pick(rng, _CLOSING)}".rstrip()


def fill_attributes(rng: np.random.Generator, facts: Facts) -> Attributes:
    """The attributes as a seller fills them in: each may be missing, a few are wrong, the price is the seller's own."""
    kind = KINDS[facts.kind]
    truth: dict[str, str] = {
        "kind": facts.kind,
        "material": facts.material,
        "colour": facts.colour,
        "pattern": facts.pattern,
        "size": facts.size,
        "brand": COLLECTIONS[facts.collection],
    }
    others: dict[str, Sequence[str]] = {
        "kind": list(KINDS),
        "material": kind.materials,
        "colour": list(COLOUR_WORDS),
        "pattern": list(PATTERN_WORDS),
        "size": kind.sizes,
        "brand": sorted(set(COLLECTIONS.values())),
    }
    given: Attributes = {}
    for key, value in truth.items():
        claimed = pick(rng, others[key]) if rng.random() < _WRONG else value
        if rng.random() >= _MISSING[key]:
            given[key] = claimed
    if rng.random() >= _MISSING["price_usd"]:
        given["price_usd"] = round(float(facts.price_usd * rng.normal(1, 0.09)), 2)
    return given
