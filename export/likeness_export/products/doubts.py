"""What training products probably do not mean as it stands there: gaps that became words, and HTML."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from html.entities import name2codepoint

from likeness_client.records import field_value

from likeness_export.products.catalogue import Catalogue

log = logging.getLogger(__name__)
_GAPS = {"nan", "NaN", "NaT", "<NA>", "None", "null"}
"""What ``str`` makes of the empty cells of data frames and databases."""
_TAGS = "a b big br center div em font h[1-6] hr i img li ol p pre small span strong sub sup table tbody td th tr u ul"
_HTML = re.compile(
    rf"</?(?:{_TAGS.replace(' ', '|')})(?:\s[^<>]*)?/?>|&(?:{'|'.join(['apos', *name2codepoint])}|#\d+|#x[0-9a-f]+);",
    re.IGNORECASE,
)
"""What shops write; `<XL>` and `M&Ms;` are words."""


def warn_of_doubts(catalogue: Catalogue, labels: Iterable[str], read: Sequence[str]) -> None:
    """Log which fields say "nan" where they probably say nothing, and which hold HTML.

    Args:
        catalogue: the products that are trained on.
        labels: what says that two are alike; of ``a + b`` each part counts.
        read: the fields that make up the text, and the attributes that towers read.
    """
    parts = [part.strip() for label in labels for part in label.split("+")]
    for field in dict.fromkeys([*parts, *read]):
        values = [field_value(record, field) for record in catalogue.records]
        if gaps := [value for value in values if value in _GAPS]:
            log.warning(
                "%s is %r in %d of %d training products, and read as a word: where it stands for a gap, leave the key "
                "out or write null",
                field,
                gaps[0],
                len(gaps),
                len(values),
            )
        found = [html for value in values if (html := _HTML.search(value))] if field in read else []
        if found:
            log.warning(
                "%s holds HTML in %d of %d training products, e.g. %r, and it is read as words: take it out here, and "
                "of what is served later, too",
                field,
                len(found),
                len(values),
                found[0][0][:40],
            )
