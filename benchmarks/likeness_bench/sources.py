"""Where the products of a load come from: a file, or the demo's renderer; and how their sizes are varied."""

from __future__ import annotations

import io
import math
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from likeness_client import InputError, MissingExtraError, Product, read_products
from likeness_client.records import Record

from likeness_bench.workload import held

if TYPE_CHECKING:
    from PIL import Image

PRODUCTS = 1000
"""How many products of a file are sent by default."""
_RENDERER = "likeness_export.demo.catalogue"
_FEWEST_DESIGNS = 12  # the renderer draws at least one of each kind
_LISTINGS_PER_DESIGN = 11  # a little below the mean, so that one rendering is mostly enough
_JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Span:
    """A range of whole numbers, both ends included.

    Raises:
        InputError: it begins below 1, or ends before it begins.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise InputError(f"{self.low}:{self.high} is no range: give two numbers, 1 <= low <= high")

    def draw(self, rng: random.Random) -> int:
        """Draw a number; all are equally likely."""
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Which products are sent.

    Attributes:
        file: a product file; None when products are rendered.
        rendered: how many products to render; 0 when they are read.
        count: how many of them to send; all are held in memory.
        text_words: title and description together are cut, or repeated, to a drawn number of words; None: as they are.
        image_px: photos are scaled to a drawn long side and encoded as JPEG; None: as they are.
        seed: of what is rendered and drawn.

    Raises:
        InputError: neither or both of a file and rendered products are asked for.
    """

    file: Path | None = None
    rendered: int = 0
    count: int = PRODUCTS
    text_words: Span | None = None
    image_px: Span | None = None
    seed: int = 7

    def __post_init__(self) -> None:
        if (self.file is None) == (not self.rendered):
            raise InputError("give a product file or --rendered N, one of the two")

    def plain(self) -> dict[str, Any]:
        """Return this as JSON can hold it."""
        return asdict(self) | {"file": str(self.file) if self.file else None}


def read_sources(config: SourceConfig, *, everything: bool = False) -> list[tuple[Product, Record]]:
    """Read or render products, each with its record (which holds the labels); sizes are not varied yet.

    Args:
        config: which products.
        everything: all that there are, not only those that are sent.

    Raises:
        InputError: there are none, or they cannot be read.
        MissingExtraError: products are to be rendered, and what draws them is not installed.
    """
    if config.file is None:
        return rendered(config.rendered, config.seed)
    found = list(islice(read_products(config.file), None if everything else config.count))
    if not found:
        raise InputError(f"{config.file} holds no products: give a file with one JSON object per line")
    return found


def rendered(count: int, seed: int) -> list[tuple[Product, Record]]:
    """Draw products of the demo catalogue; their photos are in memory.

    Raises:
        MissingExtraError: what draws them is not installed.
    """
    try:
        # By name: the harness stands without the exporter, and this alone asks for it.
        renderer: Any = import_module(_RENDERER)
    except ModuleNotFoundError as error:
        raise MissingExtraError("demo", f"`{error.name}`, which renders products,") from error
    designs = max(_FEWEST_DESIGNS, math.ceil(count / _LISTINGS_PER_DESIGN))
    while True:
        with tempfile.TemporaryDirectory(prefix="likeness-rendered-") as folder:
            file = renderer.render_catalogue(Path(folder) / "catalogue", seed=seed, designs=designs)
            found = [(held(product), record) for product, record in islice(read_products(file), count)]
        if len(found) == count:
            return found
        designs *= 2


def varied(products: Iterable[Product], config: SourceConfig) -> list[Product]:
    """Return products whose texts and photos have the sizes that were asked for; what is missing stays missing.

    Raises:
        InputError: a photo cannot be read.
    """
    rng = random.Random(config.seed)
    found = []
    for product in products:
        changed = product
        if config.text_words:
            changed = _with_words(changed, config.text_words.draw(rng))
        if config.image_px and product.images:
            changed = replace(changed, images=(_scaled(product, config.image_px.draw(rng)),))
        found.append(changed)
    return found


def _with_words(product: Product, count: int) -> Product:
    """Cut or repeat title and description, each by the same ratio, until together they have so many words."""
    title, description = _words(product.title), _words(product.description)
    total = len(title) + len(description)
    if not total:
        return product
    of_title = round(count * len(title) / total)
    return replace(product, title=_repeated(title, of_title), description=_repeated(description, count - of_title))


def _words(text: str | bytes) -> list[str]:
    return (text.decode("utf-8", "replace") if isinstance(text, bytes) else text).split()


def _repeated(words: Sequence[str], count: int) -> str:
    return " ".join(words[place % len(words)] for place in range(count)) if words else ""


def _scaled(product: Product, long_side: int) -> bytes:
    """Return the main view as a JPEG with this long side, in pixels."""
    from PIL import ImageOps

    try:
        with _opened(product) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # codecs report damage with a dozen unrelated types
        raise InputError(
            f"product '{product.product_id}': its photo cannot be scaled ({error}); leave it out, or --image-px"
        ) from error
    ratio = long_side / max(upright.size)
    width, height = (max(1, round(side * ratio)) for side in upright.size)
    out = io.BytesIO()
    upright.resize((width, height)).save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()


def _opened(product: Product) -> Image.Image:
    from PIL import Image

    source = product.images[0]
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
