"""Invents who looked at and bought what in a catalogue: shoppers with tastes, and listings that nobody has seen yet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from likeness_client.records import Record, field_value, read_jsonl
from numpy.typing import NDArray

from likeness_export.products.interaction_log import write_log

LOG_FILE = "interactions.csv"
COLD_SHARE = 0.25
"""How many listings nobody has interacted with."""
_VIEWS, _VIEWS_PER_PURCHASE, _PURCHASE = 24, 4, 5  # of one shopper; a purchase counts like five views
_STRAY = 0.15  # of all views go anywhere


@dataclass(frozen=True, kw_only=True)
class Taste:
    """What one shopper looks for; how much more each trait of a listing attracts."""

    kinds: Mapping[str, float]
    colours: Mapping[str, float]
    brands: Mapping[str, float]
    design: str

    def weights(self, listings: Sequence[Listing]) -> NDArray[np.float64]:
        """Return how likely each listing is to be viewed."""
        return np.array(
            [
                self.kinds.get(listing.kind, 0.0)
                * self.colours.get(listing.colour, 0.2)
                * self.brands.get(listing.brand, 0.3)
                * (4.0 if listing.design == self.design else 1.0)
                for listing in listings
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The traits of a listing that shoppers see, whether its attributes name them or not."""

    kind: str
    colour: str
    brand: str
    design: str


def log_shoppers(products: Path, out: Path, *, seed: int = 7, shoppers: int = 600) -> Path:
    """Write the log of a rendered catalogue's shoppers, and return where it is; see `interaction_log`.

    Shoppers go by kind, colour, brand and design, so listings of one product draw the same shoppers, by chance not all.
    The same seed and catalogue give the same file.
    """
    records = list(read_jsonl(products))
    counts = draw_interactions(records, seed=seed, shoppers=shoppers)
    views = (
        (shopper, str(record["product_id"]), count)
        for record, found in zip(records, counts, strict=True)
        for shopper, count in found.items()
    )
    write_log(out, views)
    return out


def draw_interactions(records: Sequence[Record], *, seed: int, shoppers: int) -> list[dict[str, int]]:
    """Return, per record, how often each shopper viewed or bought it; cold listings have nothing."""
    rng = np.random.default_rng([seed, len(records)])
    listings = list(_listings(records))
    warm = rng.permutation(len(listings))[round(COLD_SHARE * len(listings)) :]
    offered = [listings[row] for row in warm]
    found: list[Counter[str]] = [Counter() for _ in listings]
    for number in range(shoppers):
        for place, count in _shop(rng, offered).items():
            found[warm[place]][f"shopper-{number:04d}"] += count
    return [dict(sorted(counts.items())) for counts in found]


def _shop(rng: np.random.Generator, offered: Sequence[Listing]) -> Counter[int]:
    """Let one shopper view and buy; returns what, and how often."""
    wanted = _taste(rng, offered).weights(offered)
    likely = (1 - _STRAY) * wanted / wanted.sum() + _STRAY / len(offered)
    views = rng.choice(len(offered), size=1 + rng.poisson(_VIEWS), p=likely)
    bought = rng.choice(views, size=rng.binomial(len(views), 1 / _VIEWS_PER_PURCHASE), replace=False)
    return Counter(int(place) for place in [*views, *np.repeat(bought, _PURCHASE)])


def _taste(rng: np.random.Generator, offered: Sequence[Listing]) -> Taste:
    """Draw two kinds, three colours, two brands, and one design that the shopper had in mind."""
    favourite = offered[rng.integers(len(offered))]
    kinds, colours, brands = (
        sorted({getattr(listing, trait) for listing in offered}) for trait in ("kind", "colour", "brand")
    )
    return Taste(
        kinds={_one_of(rng, kinds): 0.5, favourite.kind: 1.0},
        colours={**{_one_of(rng, colours): 1.0 for _ in range(2)}, favourite.colour: 2.0},
        brands={_one_of(rng, brands): 1.0, favourite.brand: 2.0},
        design=favourite.design,
    )


def _one_of(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[rng.integers(len(values))]


def _listings(records: Sequence[Record]) -> Iterator[Listing]:
    """Yield the traits of every listing; a brand that its own attributes lack is that of its design's others."""
    brands: defaultdict[str, str] = defaultdict(str)
    for record in records:
        brands[record["fine_label"]] = max(brands[record["fine_label"]], field_value(record, "attributes.brand"))
    for record in records:
        design = record["fine_label"]
        colour = record["group"].removeprefix(f"{design}-")
        yield Listing(kind=record["coarse_label"], colour=colour, brand=brands[design], design=design)
