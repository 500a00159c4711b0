"""Attribute mining: what a product's neighbours say about an attribute that it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from likeness_client.errors import InputError
from likeness_client.records import Product, canonical, composed, own_key, plain_number
from numpy.typing import NDArray

from likeness_export.preprocessing.attributes import normalised
from likeness_export.products.catalogue import named_keys
from likeness_export.uses.related import Neighbours

Value: TypeAlias = str | float


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A value for an attribute that a product lacks.

    Attributes:
        row: which product.
        key: the attribute.
        value: what to write there.
        share: the part of the neighbours' votes that the value has, in (0, 1].
        support: how many neighbours voted for it.
    """

    row: int
    key: str
    value: Value
    share: float
    support: int


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """How mining does for one key, measured on the products whose value is known.

    Attributes:
        key: the attribute.
        known: how many products have a value.
        precision: the share of right ones among the predictions; NaN if there is none.
        coverage: the share of the known products for which there is a prediction; NaN if none is known.
        missing: how many products lack a value.
        proposed: for how many of them there is a proposal.
    """

    key: str
    known: int
    precision: float
    coverage: float
    missing: int
    proposed: int


@dataclass(frozen=True, kw_only=True)
class Votes:
    """What the neighbours of n products elect.

    Attributes:
        codes: [n], the elected value; -1 where no neighbour has one.
        shares: FP64 [n], its part of the votes.
        supports: [n], how many neighbours voted for it.
    """

    codes: NDArray[np.intp]
    shares: NDArray[np.float64]
    supports: NDArray[np.intp]


def mine(
    products: Sequence[Product], neighbours: Neighbours, keys: Sequence[str], min_share: float
) -> tuple[list[Proposal], list[KeyReport]]:
    """Propose values for missing attributes, and measure how good proposals are.

    Every product's value is elected by its neighbours, never by itself. Where the product has one, that is a test of
    the election; where it has none, a proposal. The test hides the value from the vote, not from the embedding: with an
    attribute tower the neighbours of a known product are alike in the very value, and precision is an upper bound.
    Elections with a smaller share than ``min_share`` count for nothing.

    Returns:
        The proposals in the order of the products, and one report per key; without keys of all that occur.

    Raises:
        InputError: no product has one of the keys.
    """
    proposals: list[Proposal] = []
    reports: list[KeyReport] = []
    for key in check_keys(products, keys):
        values, own = _codes(products, key)
        votes = elect(own, neighbours)
        elected, known = (votes.codes >= 0) & (votes.shares >= min_share), own >= 0
        tested = elected & known
        reports.append(
            KeyReport(
                key=key,
                known=int(known.sum()),
                precision=float((votes.codes == own)[tested].mean()) if tested.any() else float("nan"),
                coverage=float(elected[known].mean()) if known.any() else float("nan"),
                missing=int((~known).sum()),
                proposed=int((elected & ~known).sum()),
            )
        )
        proposals += [
            Proposal(
                row=int(row),
                key=key,
                value=values[votes.codes[row]],
                share=float(votes.shares[row]),
                support=int(votes.supports[row]),
            )
            for row in np.flatnonzero(elected & ~known)
        ]
    return sorted(proposals, key=lambda proposal: proposal.row), reports


def elect(codes: NDArray[np.intp], neighbours: Neighbours) -> Votes:
    """Let neighbours vote with their cosine; one below 0 has no vote. Of equally strong values the nearest wins.

    Args:
        codes: [c], the value of each product of the catalogue as a number; -1 where it is missing.
        neighbours: [n, k], the voters of n products, as places in the catalogue.
    """
    said = codes[neighbours.rows]  # (n, k)
    weights = np.where(said >= 0, np.maximum(neighbours.cosines, 0.0), 0.0).astype(np.float64)
    totals = np.zeros_like(weights)
    supports = np.zeros(said.shape, dtype=np.intp)
    for place in range(said.shape[1]):
        agree = (said == said[:, place, None]) & (weights > 0)
        totals[:, place] = (weights * agree).sum(1)
        supports[:, place] = agree.sum(1)
    if not said.shape[1]:
        nothing = np.zeros(len(said))
        return Votes(codes=np.full(len(said), -1), shares=nothing, supports=nothing.astype(np.intp))
    here, best = np.arange(len(said)), totals.argmax(1)
    voted = totals[here, best] > 0
    return Votes(
        codes=np.where(voted, said[here, best], -1),
        shares=totals[here, best] / np.where(voted, weights.sum(1), 1.0),
        supports=np.where(voted, supports[here, best], 0),
    )


def check_keys(products: Sequence[Product], keys: Sequence[str]) -> list[str]:
    """Return the keys, or all that occur, in alphabetical order, if there are none.

    Raises:
        InputError: no product has one of the keys.
    """
    counts = Counter(composed(key) for product in products for key in product.attributes)
    asked = list(dict.fromkeys(map(composed, keys)))
    if unknown := [key for key in asked if key not in counts]:
        frequent = [key for key, _ in counts.most_common()]
        raise InputError(f"no product has the attribute {', '.join(unknown)}; there are: {named_keys(frequent)}")
    return asked or sorted(counts)


def _codes(products: Sequence[Product], key: str) -> tuple[list[Value], NDArray[np.intp]]:
    """Return the values of a key, and the place of each product's own among them; -1 where it is missing or blank.

    Values are the same as they are in one-hot vectors, whatever their case; the most frequent spelling stands for them.
    """
    spellings: dict[str, Counter[Value]] = {}
    names: list[str] = []
    for product in products:
        value = product.attributes.get(own_key(product.attributes, key), "")
        value = canonical(value) if isinstance(value, str) else plain_number(value)
        names.append(normalised(value))
        spellings.setdefault(names[-1], Counter())[value] += 1
    spellings.pop("", None)
    places = {name: place for place, name in enumerate(spellings)}
    values = [found.most_common(1)[0][0] for found in spellings.values()]
    return values, np.array([places.get(name, -1) for name in names], dtype=np.intp)
