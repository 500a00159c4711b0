"""Reading word vectors from disk: word2vec's text and binary form, and GloVe's text form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from likeness_client.errors import InputError
from likeness_client.records import composed
from numpy.typing import NDArray

from likeness_export.preprocessing.words import lower, words_of

WordVectors: TypeAlias = dict[str, NDArray[np.float32]]
_MAX_SIZE = 4096  # values per vector; beyond, the first line is no header
_MAX_WORD_BYTES = 1000


class VectorFileError(InputError):
    """A file of word vectors that cannot be used; the message names the file, the line and the reason."""


def read_word_vectors(path: Path, max_words: int) -> WordVectors:
    """Read the first words of a file (the most frequent ones, as such files are sorted).

    Args:
        path: ``word value value ...`` per line, with or without word2vec's first line ``words size``; a file that is
            called ``.bin`` has word2vec's binary form.
        max_words: how many to keep. What no text could contain (punctuation, joined words) is passed over, and of the
            spellings of a word the first stands for all.

    Raises:
        VectorFileError: the file is missing or malformed, or holds no word.
    """
    vectors: WordVectors = {}
    try:
        with path.open("rb") as file:
            for word, vector in _binary(file) if path.suffix == ".bin" else _text(file):
                folded = lower(composed(word))
                if folded not in vectors and words_of(folded) == [folded]:
                    vectors[folded] = vector
                if len(vectors) == max_words:
                    break
    except OSError as error:
        raise VectorFileError(f"{path} cannot be read: {error.strerror}") from error
    except _MalformedError as error:
        raise VectorFileError(f"{path}, {error}") from error
    if not vectors:
        raise VectorFileError(f"{path} holds no word")
    return vectors


class _MalformedError(Exception):
    """The place and the reason."""


def _text(file: BinaryIO) -> Iterator[tuple[str, NDArray[np.float32]]]:
    size = promised = found = number = 0
    for number, raw in enumerate(file, start=1):
        line = raw.decode("utf-8-sig", "replace").rstrip()
        if number == 1 and (header := _header(line)):
            promised, size = header
        elif line:
            word, values = _split(line, size, number)
            size = len(values)
            found += 1
            yield word, _numbers(values, number)
    if found < promised:
        raise _MalformedError(f"line {number}: the file ends after {found} of {promised} words")


def _split(line: str, size: int, number: int) -> tuple[str, list[str]]:
    """Split a line into its word and ``size`` values; 0 where the size is not known yet."""
    # From the right: some words of GloVe have blanks in them (but none that ends with a number).
    word, *values = line.rsplit(" ", size) if size else line.split(" ")
    if not values or len(values) != (size or len(values)) or _is_number(word.rpartition(" ")[2] if " " in word else ""):
        expected = f"a word and {size or 'its'} values are expected"
        raise _MalformedError(f"line {number}: {expected}, found {len(line.split()) - 1} behind {line.split()[0]!r}")
    return word, values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _header(line: str) -> tuple[int, int] | None:
    fields = line.split()
    if len(fields) != 2 or not all(field.isascii() and field.isdigit() for field in fields):
        return None
    words, size = int(fields[0]), int(fields[1])
    return (words, size) if 1 <= size <= _MAX_SIZE else None


def _numbers(values: list[str], line: int) -> NDArray[np.float32]:
    try:
        vector = np.array(values, dtype=np.float32)
    except ValueError as error:
        raise _MalformedError(f"line {line}: {error}") from error
    if not np.isfinite(vector).all():
        raise _MalformedError(f"line {line}: a value is not a finite number")
    return vector


def _binary(file: BinaryIO) -> Iterator[tuple[str, NDArray[np.float32]]]:
    header = _header(file.readline(100).decode("utf-8", "replace"))
    if header is None:
        raise _MalformedError("line 1: the number of words and the size of a vector are expected")
    words, size = header
    for number in range(1, words + 1):
        word = _binary_word(file, number)
        raw = file.read(4 * size)
        if len(raw) < 4 * size:
            raise _MalformedError(f"word {number}: the file ends inside its vector; {words} words are expected")
        vector = np.frombuffer(raw, dtype="<f4").astype(np.float32)
        if not np.isfinite(vector).all():
            raise _MalformedError(f"word {number}: a value is not a finite number")
        yield word, vector


def _binary_word(file: BinaryIO, number: int) -> str:
    found = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte:
            raise _MalformedError(f"word {number}: the file ends before it")
        if byte != b"\n":  # some writers end every vector with one
            found += byte
        if len(found) > _MAX_WORD_BYTES:
            raise _MalformedError(f"word {number}: it has no end; is this file in word2vec's binary form?")
    return found.decode("utf-8", "replace")
