"""Text to the ids of its known words, padded to the smallest length bucket that holds the longest text of the batch."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOCABULARY_FILE = "words.json"
NOTHING_KNOWN = "nothing in it is known from training: leave the modality out"
# Vowel signs and the like, which Python's \w leaves out; from Thai on scripts have no blanks between words.
MARKS = "".join(letter for letter in map(chr, range(0x300, 0xE00)) if unicodedata.category(letter) in ("Mn", "Mc"))
_WORD = re.compile(rf"[^\W_]+(?:[{MARKS}]+[^\W_]*)*")


class Preprocessor:
    """Look the words of UTF-8 texts up.

    Requests whose tensors differ in length cannot share a batch in Triton, so lengths are rounded up to a few buckets.

    Args:
        assets: folder with ``words.json``: ``words`` (the first has id 1), ``max_tokens``, ``length_buckets`` and
            ``max_bytes``.
    """

    def __init__(self, assets: Path) -> None:
        vocabulary = json.loads((assets / VOCABULARY_FILE).read_text(encoding="utf-8"))
        self.places: dict[str, int] = {word: place for place, word in enumerate(vocabulary["words"], start=1)}
        self.max_tokens: int = vocabulary["max_tokens"]
        self.buckets: list[int] = vocabulary["length_buckets"]
        self.max_bytes: int = vocabulary["max_bytes"]

    def __call__(self, items: list[bytes]) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
        """Turn texts into tensors.

        Args:
            items: UTF-8 texts; invalid bytes become U+FFFD, unknown words are skipped, and of the known ones what
                exceeds ``max_tokens`` is cut; a text without a known word fails.

        Returns:
            ``word_ids``, INT64 [n, length], 0 behind the last word, and the reasons of failed items.
        """
        errors = [self._fault(item) for item in items]
        found = [[] if error else self.look_up(item) for item, error in zip(items, errors, strict=True)]
        most = max((len(ids) for ids in found), default=0)
        length = next(bucket for bucket in self.buckets if bucket >= most)
        word_ids = np.zeros((len(items), length), dtype=np.int64)
        for row, ids in enumerate(found):
            errors[row] = errors[row] or ("" if ids else NOTHING_KNOWN)
            word_ids[row, : len(ids)] = ids
        return {"word_ids": word_ids}, errors

    def look_up(self, item: bytes) -> list[int]:
        """Return the ids of a text's known words, in its order."""
        words = words_of(item.decode("utf-8", "replace"))
        return [self.places[word] for word in words if word in self.places][: self.max_tokens]

    def _fault(self, item: bytes) -> str:
        if not item.strip():
            return "the text is empty: leave the modality out instead"
        if len(item) > self.max_bytes:
            return f"the text has {len(item)} bytes, {self.max_bytes} are allowed: shorten it"
        return ""


def words_of(text: str) -> list[str]:
    """Split a text into words: runs of letters, with the marks that belong to them, and digits, in lower case."""
    return _WORD.findall(lower(text))


def lower(text: str) -> str:
    """Return a text in lower case, without the second dot that Python puts on the i of a Turkish capital."""
    return text.lower().replace("i\u0307", "i")
