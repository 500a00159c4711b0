"""Text to the TF-IDF weights of its terms, as scikit-learn's ``TfidfVectorizer`` computes them; sparse and padded."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOCABULARY_FILE = "tfidf.json"
NOTHING_KNOWN = "nothing in it is known from training: leave the modality out"
_WORD = re.compile(r"\b\w\w+\b")


class Preprocessor:
    """Count the terms of UTF-8 texts and weight each by its rarity.

    Requests whose tensors differ in length cannot share a batch in Triton, so lengths are rounded up to a few buckets.
    A padded place has term 0 with weight 0, which adds nothing.

    Args:
        assets: folder with ``tfidf.json``: ``analyzer`` (``word`` or ``char_wb``), ``ngram_range``, ``sublinear``,
            ``terms``, their ``idf``, ``length_buckets`` (the last holds all terms) and ``max_bytes``.
    """

    def __init__(self, assets: Path) -> None:
        vocabulary = json.loads((assets / VOCABULARY_FILE).read_text(encoding="utf-8"))
        self.analyzer = ANALYZERS[vocabulary["analyzer"]]
        self.shortest, self.longest = vocabulary["ngram_range"]
        self.sublinear: bool = vocabulary["sublinear"]
        self.places: dict[str, int] = {term: place for place, term in enumerate(vocabulary["terms"])}
        self.idf = np.array(vocabulary["idf"], dtype=np.float64)
        self.buckets: list[int] = vocabulary["length_buckets"]
        self.max_bytes: int = vocabulary["max_bytes"]

    def __call__(self, items: list[bytes]) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
        """Turn texts into tensors.

        Args:
            items: UTF-8 texts; invalid bytes become U+FFFD, terms that the vocabulary lacks are skipped, and a text
                without any other fails.

        Returns:
            ``term_ids``, INT64 [n, length], ascending in each row, ``term_weights``, FP32 [n, length], before the
            division by the row's Euclidean length, and the reasons of failed items.
        """
        errors = [self._fault(item) for item in items]
        texts = ["" if error else item.decode("utf-8", "replace") for item, error in zip(items, errors, strict=True)]
        found = [self.weigh(text) for text in texts]
        most = max((len(ids) for ids, _ in found), default=0)
        length = next(bucket for bucket in self.buckets if bucket >= most)
        term_ids = np.zeros((len(items), length), dtype=np.int64)
        term_weights = np.zeros((len(items), length), dtype=np.float32)
        for row, (ids, weights) in enumerate(found):
            errors[row] = errors[row] or ("" if len(ids) else NOTHING_KNOWN)
            term_ids[row, : len(ids)] = ids
            term_weights[row, : len(ids)] = weights
        return {"term_ids": term_ids, "term_weights": term_weights}, errors

    def weigh(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the ids of a text's terms, ascending, and ``tf * idf`` of each (``1 + ln tf`` where sublinear)."""
        terms = self.analyzer(text.lower(), self.shortest, self.longest)
        counts = Counter(self.places[term] for term in terms if term in self.places)
        ids = np.array(sorted(counts), dtype=np.int64)
        frequencies = np.array([counts[place] for place in ids], dtype=np.float64)
        return ids, (1 + np.log(frequencies) if self.sublinear else frequencies) * self.idf[ids]

    def _fault(self, item: bytes) -> str:
        if not item.strip():
            return "the text is empty: leave the modality out instead"
        if len(item) > self.max_bytes:
            return f"the text has {len(item)} bytes, {self.max_bytes} are allowed: shorten it"
        return ""


def word_ngrams(text: str, shortest: int, longest: int) -> Iterator[str]:
    """Yield runs of ``shortest`` to ``longest`` words; a word has two letters, digits or underscores at least."""
    words = _WORD.findall(text)
    for n in range(shortest, longest + 1):
        for start in range(len(words) - n + 1):
            yield " ".join(words[start : start + n])


def char_ngrams(text: str, shortest: int, longest: int) -> Iterator[str]:
    """Yield runs of characters within words, each word with a blank at both ends; a shorter one is a run itself."""
    for word in text.split():
        padded = f" {word} "
        for n in range(shortest, longest + 1):
            yield padded[:n]
            for start in range(1, len(padded) - n + 1):
                yield padded[start : start + n]
            if n >= len(padded):  # longer runs would be this one again
                break


ANALYZERS = {"word": word_ngrams, "char_wb": char_ngrams}
