"""Text to token ids, padded to the smallest length bucket that holds the longest text of the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

SETTINGS_FILE = "text.json"
TOKENIZER_FILE = "tokenizer.json"
_STRANGE = "\U0010fffd"  # for private use: in no vocabulary
NOTHING_KNOWN = "nothing in it is known from training: leave the modality out"


class Preprocessor:
    """Tokenise UTF-8 text.

    Requests whose tensors differ in length cannot share a batch in Triton, so lengths are rounded up to a few buckets.
    Padding is 0 whatever the tokenizer's own is: the mask hides it from the network, and the server, which cuts zeros
    off, sees where a text ends.

    Args:
        assets: folder with ``tokenizer.json`` and ``text.json`` (``max_tokens``, ``length_buckets``, ``max_bytes``,
            ``prompt``, which stands before every text, and ``unknown_id``, of the token that stands for all that the
            vocabulary lacks).
    """

    def __init__(self, assets: Path) -> None:
        settings = json.loads((assets / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.max_bytes: int = settings["max_bytes"]
        self.buckets: list[int] = settings["length_buckets"]
        self.prompt: str = settings.get("prompt", "")
        self.tokenizer = Tokenizer.from_file(str(assets / TOKENIZER_FILE))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(settings["max_tokens"])
        # What says nothing of a text: the marks around each, blanks, and what stands for all that is unknown.
        unknown, (blank, space, strange) = settings.get("unknown_id"), self._tokens(["", " ", _STRANGE])
        # SentencePiece begins every word with a mark of its own, an unknown one, too.
        self.silent = {unknown, *blank, *space, *(strange if unknown in strange else ())}

    def __call__(self, items: list[bytes]) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
        """Turn texts into tensors.

        Args:
            items: UTF-8 texts; invalid bytes become U+FFFD, what exceeds ``max_tokens`` is cut, and a text of which the
                vocabulary has no part (in another script, say, or of pictures) fails.

        Returns:
            ``input_ids`` and ``attention_mask``, INT64 [n, length], and the reasons of failed items.
        """
        errors = [self._fault(item) for item in items]
        texts = ["" if error else item.decode("utf-8", "replace") for item, error in zip(items, errors, strict=True)]
        found = bare = self._tokens(texts)
        if self.prompt:  # with which the first token of a text may grow together
            found = self._tokens([self.prompt + text for text in texts])
        longest = max(map(len, found), default=0)
        length = next(bucket for bucket in self.buckets if bucket >= longest)
        input_ids = np.zeros((len(items), length), dtype=np.int64)
        attention_mask = np.zeros((len(items), length), dtype=np.int64)
        for row, ids in enumerate(found):
            errors[row] = errors[row] or (NOTHING_KNOWN if self.silent.issuperset(bare[row]) else "")
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}, errors

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]

    def _fault(self, item: bytes) -> str:
        if not item.strip():
            return "the text is empty: leave the modality out instead"
        if len(item) > self.max_bytes:
            return f"the text has {len(item)} bytes, {self.max_bytes} are allowed: shorten it"
        return ""
