"""What the size of a catalogue costs: ``likeness embed`` on files of different length, against one server."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # ships no type information
import typer
from likeness_bench.processes import look
from likeness_bench.sources import rendered
from likeness_client import InputError
from likeness_export.server.serve import stop_group

from comparisons.configs import SizeConfig, numbers_of
from comparisons.measured import Measurement, Quantity, Take, measure
from comparisons.memory import SERVER_EVERY_S, high_water_mb, watching
from comparisons.report import ComparisonReport, machine
from comparisons.rounds import ComparisonError
from comparisons.servers import likeness_server, process_of

SPEED = Quantity(name="products/s", higher_is_better=True, compared=True)
CLIENT_MB = Quantity(name="client, peak MB", digits=0, compared=True)
SECONDS = Quantity(name="s")
SERVER_BEFORE_MB = Quantity(name="server before, MB", digits=0)
SERVER_PEAK_MB = Quantity(name="server, peak MB", digits=0)
SERVER_AFTER_MB = Quantity(name="server after, MB", digits=0)
KEPT = ("title", "description", "attributes")
_WARM_UP = 256  # products before anything counts: one step of the command
_EVERY_S = 0.02  # how often the client's peak is read: what it reaches in its last moments may be missed


def compare_sizes(config: SizeConfig) -> ComparisonReport:
    """Measure; see the module.

    Raises:
        LikenessError: something that is needed is missing, the server fails, or a product was not embedded.
    """
    sizes, facts = numbers_of(config.sizes, "--sizes"), machine()
    with tempfile.TemporaryDirectory(prefix="likeness-size-") as name:
        folder = Path(name)
        typer.echo(f"rendering {config.photos} products", err=True)
        templates = write_photos(config.photos, config.seed, folder)
        files = {size: write_products(templates, size, folder / f"{size}.jsonl") for size in sizes}
        warm_up = write_products(templates, _WARM_UP, folder / "warm-up.jsonl")
        with likeness_server(config.repository, config.environments / "likeness.log") as address:
            run_embed(warm_up, _WARM_UP, address)
            found = measure_sizes(files, address, config.rounds)
    facts |= {
        "repository": f"{config.repository}, cpu profile, gRPC",
        "products": f"text, photo and attributes; {config.photos} photos under titles that occur once",
        **flatness(found, sizes),
    }
    said = (
        "flat means: products/s and the client's peak memory of every size are about those of the smallest (ratios "
        "near 1); the embeddings themselves grow with the products, so memory can be flat but for them",
        "products/s counts from the start of the command to its end: a small file pays for the start, too",
        "server, MB: the sum over its processes; pages that they share count several times",
    )
    return ComparisonReport(title="What the size of a catalogue costs", settings=(found,), facts=facts, notes=said)


def flatness(found: Measurement, sizes: Sequence[int]) -> dict[str, str]:
    """Say how speed and memory of the largest size compare with those of the smallest, where both were measured."""
    small, large = name_of(min(sizes)), name_of(max(sizes))
    compared = [ratio.median for ratio in found.ratios if (ratio.ours, ratio.theirs) == (large, small)]
    if not compared:
        return {}
    speed, memory = compared
    more = found.median(large, CLIENT_MB) - found.median(small, CLIENT_MB)
    beyond = max(sizes) - min(sizes)
    seconds = found.median(large, SECONDS) - found.median(small, SECONDS)
    rate = f"{beyond / seconds:.1f} products/s" if seconds > 0 else "no time"
    return {
        f"{large} against {small}": f"{speed:.2f} x the rate, {memory:.2f} x the memory",
        f"each product beyond {small}": f"{rate}, {1000 * more / beyond:.2f} kB",
    }


def name_of(size: int) -> str:
    """Name a contender."""
    return f"{size:,} products"


def write_photos(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Render products, and write their photos into a folder.

    Returns:
        Their records, of text and attributes, with the name of the photo; those without one of them are left out.

    Raises:
        MissingExtraError: what draws them is not installed.
    """
    templates = []
    (folder / "images").mkdir()
    for place, (product, record) in enumerate(rendered(count, seed)):
        photo = next((view for view in product.images if isinstance(view, bytes)), None)
        if photo is None or not record.get("title") or not record.get("attributes"):
            continue
        name = f"images/{place}.jpg"
        (folder / name).write_bytes(photo)
        templates.append({key: record[key] for key in KEPT if key in record} | {"images": [name]})
    if not templates:
        raise InputError(f"none of {count} rendered products has text, photo and attributes: render more (--photos)")
    return templates


def unique_records(templates: Sequence[Mapping[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """Yield records whose titles all differ, or a client would send some of them only once."""
    for place in range(count):
        template = templates[place % len(templates)]
        yield {**template, "product_id": f"p{place}", "title": f"No. {place} {template['title']}"}


def write_products(templates: Sequence[Mapping[str, Any]], count: int, file: Path) -> Path:
    """Write a product file with ``count`` records."""
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in unique_records(templates, count))
    return file


def measure_sizes(files: Mapping[int, Path], address: str, rounds: int) -> Measurement:
    """Embed the files in turns, on a server that has its warm-up behind it.

    Raises:
        ComparisonError: the server cannot be seen.
    """
    server = process_of(address)
    contenders: dict[str, Take] = {
        name_of(size): partial(_take, file, size, address, server) for size, file in files.items()
    }
    smallest = name_of(min(files))
    return measure(
        title="likeness embed FILE.jsonl --out FILE.npz",
        contenders=contenders,
        rounds=rounds,
        quantities=(SPEED, SECONDS, CLIENT_MB, SERVER_BEFORE_MB, SERVER_PEAK_MB, SERVER_AFTER_MB),
        pairs=tuple((name, smallest) for name in contenders if name != smallest),
    )


def run_embed(file: Path, count: int, address: str) -> tuple[float, float]:
    """Run the command on one file to its end.

    Returns:
        Its seconds, and the most memory that it held, in 10^6 bytes.

    Raises:
        ComparisonError: it failed, or a product of the file did.
    """
    out, log = file.with_suffix(".npz"), file.with_suffix(".log")
    command = [str(Path(sys.executable).with_name("likeness")), "embed", str(file)]
    command += [f"--out={out}", f"--server={address}", "--strict"]
    with log.open("wb") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            with watching(lambda: high_water_mb(process.pid), _EVERY_S) as peak:
                code = process.wait()
            seconds = time.perf_counter() - began
        finally:
            stop_group(process)
    if code:
        end = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise ComparisonError(f"`likeness embed` of {count} products ended with code {code}: {end}")
    out.unlink()
    return seconds, peak.mb


def _take(file: Path, count: int, address: str, server: psutil.Process, _round: int) -> Mapping[str, float]:
    """Run the command, and look at the server before, meanwhile and after."""
    before_mb = look(server).rss_mb
    with watching(lambda: look(server).rss_mb, SERVER_EVERY_S) as server_peak:
        seconds, peak_mb = run_embed(file, count, address)
    return {
        SPEED.name: count / seconds,
        SECONDS.name: seconds,
        CLIENT_MB.name: peak_mb,
        SERVER_BEFORE_MB.name: before_mb,
        SERVER_PEAK_MB.name: server_peak.mb,
        SERVER_AFTER_MB.name: look(server).rss_mb,
    }
