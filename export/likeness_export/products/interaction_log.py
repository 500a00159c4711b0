"""A shop's log of who viewed or bought what becomes the ``interactions`` of the products in a file."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from likeness_client.errors import InputError
from likeness_client.records import Record, field_value, read_jsonl
from likeness_client.writing import check_place, written_aside

from likeness_export.products.csv_lines import read_lines

COLUMNS = ("user", "item", "count")


@dataclass(frozen=True, kw_only=True)
class JoinedLog:
    """What became of a log.

    Attributes:
        products: how many products the file has.
        known: how many of them occur in the log, and so have interactions now.
        strange: items of the log that are no product of the file -> how many lines they have.
    """

    products: int
    known: int
    strange: Mapping[str, int]


def join_log(products: Path, log: Path, out: Path) -> JoinedLog:
    """Write a copy of a product file with the ``interactions`` of a log, instead of any that the products had.

    The log is read line by line; what is held in memory is one count per user and product.

    Args:
        products: JSON lines; items of the log are their ``product_id``.
        log: CSV with the columns ``user``, ``item`` and ``count``, a number above 0; without the column ``count`` every
            line counts 1. Lines of the same user and item add up; other columns are not read.
        out: where to, in the folder of ``products``, because the paths of images and videos are relative to the file.
            It may be ``products`` itself.

    Raises:
        InputError: a file cannot be read, a line of the log is wrong, no item of the log is a product, or ``out`` is in
            another folder, or the log.
        RecordError: a line of the product file is wrong.
    """
    if out.parent.resolve() != products.parent.resolve():
        raise InputError(
            f"{out} is not in the folder of {products}, where its paths of images and videos start from: write to "
            f"{products.parent / out.name}"
        )
    check_place(out, log)
    counts: dict[str, defaultdict[str, float]] = {
        name: defaultdict(float) for record in read_jsonl(products) if (name := _name(record))
    }
    strange = Counter[str]()
    for user, item, count in _read_log(log):
        if item in counts:
            counts[item][user] = min(counts[item][user] + count, sys.float_info.max)  # JSON has no infinity
        else:
            strange[item] += 1
    if not any(counts.values()):
        example = f", such as {next(iter(strange))!r}," if strange else ""
        raise InputError(f"no item of {log} is a product of {products}: its items{example} must be their product_id")
    total = known = 0
    with written_aside(out) as aside, aside.open("w", encoding="utf-8") as file:
        for record in read_jsonl(products):
            found = counts.get(_name(record))
            record.pop("interactions", None)
            if found:
                record["interactions"] = {user: _whole(count) for user, count in found.items()}
            file.write(json.dumps(record) + "\n")  # ASCII: it may hold what UTF-8 cannot
            total, known = total + 1, known + bool(found)
    return JoinedLog(products=total, known=known, strange=strange)


def write_log(path: Path, lines: Iterator[tuple[str, str, float]]) -> None:
    """Write a log: user, item and count of each line."""
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(lines)


def _name(record: Record) -> str:
    """Return a product's id as it stands there; a label would be compared in its canonical form."""
    name = record.get("product_id")
    return name if isinstance(name, str) else field_value(record, "product_id")


def _read_log(path: Path) -> Iterator[tuple[str, str, float]]:
    """Yield user, item and count of each line.

    Raises:
        InputError: the file cannot be read or a line is wrong; names the line and the reason.
    """
    needed, optional = COLUMNS[:2], COLUMNS[2:]
    for where, line in read_lines(path, "log", needed, optional):
        if empty := [name for name in needed if not line[name]]:
            raise InputError(f"{where}: {' and '.join(empty)} empty; each line needs both")
        yield line["user"], line["item"], _count(line.get("count", "1"), where)


def _count(text: str, where: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = math.nan
    if not 0 < count < math.inf:
        raise InputError(f"{where}: count {text!r:.80}, a number above 0 is needed")
    return count


def _whole(count: float) -> float:
    return int(count) if count.is_integer() else count
