"""Texts without the words of a label, so that a text cannot state what is measured."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

from likeness_client.records import composed

from likeness_export.preprocessing.words import MARKS

_UNSEEN = "\u00ad\u200c-\u200f\u2060\ufeff"  # in a word: soft hyphens, what joins letters, marks of direction
_WORD = re.compile(rf"[^\W\d_]+(?:[{MARKS}{_UNSEEN}]+[^\W\d_]*)*(?:['\u2019]\w*)?|\d+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f]")
"""A letter of Thai, Lao, Burmese, Khmer, Japanese or Chinese, which have no blanks between words."""
_POINTS = re.compile(r"(?<![a-z\u0300-\u036f])[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670]+")
"""Accents and vowel points of any but Latin letters, on which they make another word."""
_HYPHENS = "\u200b\u2010\u2011-"  # and where a line may end
_BETWEEN = re.compile(rf"[\s{_HYPHENS}]*")
_STRAY = re.compile(rf"(?<![\w{MARKS}])[{_HYPHENS}]+|[{_HYPHENS}]+(?!\w)")


class Mask:
    """Cuts the words of labels out of texts.

    Number (``watches``, ``women``), possession (``women's``), case, and whether a compound is written in one word or in
    two (``T-shirt``, ``Tshirts``, ``t shirt``) make no difference, nor do accents and points that one may write or not:
    those of Greek, Russian, Hebrew and Arabic. In scripts without blanks, where nothing shows the end of a word, a
    label is cut wherever its letters stand.

    Args:
        labels: what must not be stated, each of one or several words.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        pieces = [composed(label).split() for label in set(labels)]
        unspaced = {piece for of_label in pieces for piece in of_label if _UNSPACED.search(piece)}
        # The longest first: a part of it would leave the rest.
        either = "|".join(map(re.escape, sorted(unspaced, key=len, reverse=True)))
        self.unspaced = re.compile(either, re.IGNORECASE) if unspaced else None
        spaced = [" ".join(piece for piece in of_label if piece not in unspaced) for of_label in pieces]
        words = [[word[0] for word in _WORD.finditer(label)] for label in spaced]
        self.stems = {_stem(word) for of_label in words for word in of_label}
        self.stems |= {_stem(one + other) for of_label in words for one, other in pairwise(of_label)}

    def __call__(self, text: str) -> str:
        """Return the text without them; runs of whitespace become one space."""
        text = composed(text)
        if self.unspaced:
            text = self.unspaced.sub(" ", text)
        words = list(_WORD.finditer(text))
        cut = {word for word in words if _stem(word[0]) in self.stems}
        for one, other in pairwise(words):
            together = _BETWEEN.fullmatch(text, one.end(), other.start()) is not None
            if together and _stem(one[0] + other[0]) in self.stems:
                cut |= {one, other}
        if cut:
            kept = "".join(text[start:end] for start, end in _gaps(sorted(word.span() for word in cut), len(text)))
            text = _STRAY.sub(" ", kept)
        return " ".join(text.split())


def _gaps(spans: list[tuple[int, int]], length: int) -> Iterable[tuple[int, int]]:
    """Return what lies between sorted spans."""
    edges = [0, *(edge for span in spans for edge in span), length]
    return zip(edges[::2], edges[1::2], strict=True)


@lru_cache(maxsize=100_000)  # the words of a catalogue come again and again
def _stem(word: str) -> str:
    """Return what a word has in common with its plural and its possessive: both lose the same letters."""
    plain = re.sub(r"['\u2019]s?$", "", _folded(word))
    if len(plain) > 2 and plain.endswith("s") and not plain.endswith("ss"):
        plain = plain[:-1]
    plain = re.sub(r"men$", "man", plain)
    if len(plain) > 2:
        plain = plain.removesuffix("e")  # watch-es as shoe-s
    return re.sub(r"v$", "f", re.sub(r"y$", "i", plain))  # scarves, accessories


def _folded(word: str) -> str:
    """Return a word without case, points and what is not seen; of Turkish with one kind of i."""
    seen = re.sub(f"[{_UNSEEN}]", "", unicodedata.normalize("NFKD", word.casefold()))
    return _POINTS.sub("", seen).replace("i\u0307", "i").replace("\u0131", "i")
