"""Encoded photos to a square of RGB pixels: guarded decoding, orientation, colour mode, one resizer."""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Lock

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

SETTINGS_FILE = "image.json"
SEVERAL = b"photos\0"
"""What several photos of a product begin with; the client's contract says what follows."""
# Pillow's codecs that open untrusted bytes; the rest of its fifty plugins (EPS runs Ghostscript) stay shut.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes it upright. `ImageOps.exif_transpose` also writes metadata anew, where it may fail."""
_TILE_SIZE = (322, 323)  # TIFF's tags TileWidth and TileLength
_OFFSETS = (273, 324)  # TIFF's tags StripOffsets and TileOffsets
_FURTHER_TAGS = (34665, 34853, 40965)  # TIFF's tags that say where more of them are, which Pillow reads, too
_BYTES = (1, 2, 7)  # TIFF's types whose values stay as they are; of others Pillow makes an object for each number
_PLACES = {4: (4, 13), 8: (4, 13, 16, 18)}  # TIFF's types of such a tag, whose value is 4 or, in BigTIFF, 8 bytes long
_TAG_LISTS = 8
_NUMBERS = 250_000  # in the tags of one TIFF; ten million of them would take a minute and gigabytes
_EXIF_SEGMENTS = 16  # photos have one or two; Pillow joins them in a time that grows with the square of their number
# A JPEG may come in scans, each of which goes over all pixels and takes a few bytes: 20 MB would be decoded for many
# minutes. Photos have twenty at most.
_SCANS = 100  # of the most pixels
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SCAN, _END, _BARE = 0xDA, 0xD9, (0x01, 0xD8)  # markers of JPEG; the last two have no length behind them
_SEGMENTS, _FILL = 10_000, 10_000  # Pillow reads each segment, and each byte between two, by itself
_EXIF_BYTES = 1_000_000  # photos have 64 kB at most; here, too, each number may become an object
_LARGE_PIXELS = 4_000_000  # decoded one at a time: 50 million of them with transparency take 1 GB for a moment
# Pillow warns about odd metadata, and about bombs, which `Preprocessor` refuses. Set once: `warnings.catch_warnings` is
# not safe in threads, it can leave every warning of the process silenced.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageSizeError(ValueError):
    """An image outside the limits."""


class Preprocessor:
    """Decode photos and squash them to ``image_px`` x ``image_px``.

    The tensor holds plain bytes; the encoder's graph does the normalisation. That is a quarter of the float's size
    between steps, and one place less where training and serving can differ.

    Args:
        assets: folder with ``image.json`` (``image_px``, ``max_photos``, ``min_px``, ``max_pixels``, ``max_bytes``).

    Attributes:
        buckets: the numbers of photos that products are padded to; empty where it reads one of each.
    """

    def __init__(self, assets: Path) -> None:
        settings = json.loads((assets / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.image_px: int = settings["image_px"]
        self.max_photos: int = settings.get("max_photos", 1)  # runs of before there was a choice have none
        powers = (1 << power for power in range(self.max_photos.bit_length()))
        self.buckets = sorted({*powers, self.max_photos}) if self.max_photos > 1 else []
        self.min_px: int = settings["min_px"]
        self.max_pixels: int = settings["max_pixels"]
        self.max_bytes: int = settings["max_bytes"]
        self.large = Lock()
        # Pillow releases the interpreter lock while it decodes and resizes.
        self.pool = ThreadPoolExecutor(max_workers=cpu_count(), thread_name_prefix="decode")

    def __call__(self, items: list[bytes]) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
        """Turn encoded images into tensors.

        Args:
            items: JPEG, PNG, WebP, GIF (first frame), BMP, TIFF or PNM files; of each product one, or several joined
                behind `SEVERAL`, of which the first ``max_photos`` are read.

        Returns:
            ``pixels``, UINT8 [n, image_px, image_px, 3], RGB, and the reasons of failed items. Where several photos are
            read, ``pixels`` [n, k, image_px, image_px, 3], k being the smallest bucket that holds all, and ``photos``
            INT64 [n, k], 1 where there is one.
        """
        reasons = [""] * len(items)
        places: list[tuple[int, int, bytes, str]] = []
        counts = [0] * len(items)
        for row, item in enumerate(items):
            try:
                found = photos_of(item, self.max_photos)
            except ValueError as error:
                reasons[row] = str(error)
                continue
            different = named(found)
            counts[row] = len(different)
            places += [(row, place, *which) for place, which in enumerate(different)]
        most = next((size for size in self.buckets if size >= max(counts, default=0)), 1)
        pixels = np.zeros((len(items), most, self.image_px, self.image_px, 3), dtype=np.uint8)

        def fill(what: tuple[int, int, bytes, str]) -> str:
            row, place, photo, name = what
            try:
                pixels[row, place] = self.decode(photo)
            except ValueError as error:
                return f"{name}{error}"
            return ""

        each = map if len(places) == 1 else self.pool.map
        for (row, *_), reason in zip(places, each(fill, places), strict=True):
            reasons[row] = reasons[row] or reason
        if not self.buckets:
            return {"pixels": pixels[:, 0]}, reasons
        photos = (np.arange(most) < np.array(counts, np.int64)[:, None]).astype(np.int64)
        return {"pixels": pixels, "photos": photos}, reasons

    def decode(self, item: bytes) -> NDArray[np.uint8]:
        """Decode one image.

        Raises:
            ValueError: the bytes are no image, a damaged one, or one outside the limits; the message says which.
        """
        if len(item) > self.max_bytes:
            raise ValueError(f"the image file has {len(item)} bytes, {self.max_bytes} are allowed: send a smaller copy")
        if item.startswith((b"II", b"MM")) and numbers_in_tags(item) > _NUMBERS:
            raise ImageSizeError(f"the image's tags are odd, or hold more than {_NUMBERS} numbers: save it anew")
        if is_jpeg := item.startswith(b"\xff\xd8"):
            if item.count(b"Exif\0\0") > _EXIF_SEGMENTS:
                raise ImageSizeError("the image has far too many EXIF segments: send another copy")
            _refuse_endless_header(item)
        try:
            with Image.open(io.BytesIO(item), formats=FORMATS) as image:
                self._check_size(*image.size)
                if is_jpeg:
                    self._check_scans(item, *image.size)
                pixels = self._decoded_pixels(image)
                # A JPEG decodes faster at an eighth to a half of its size; twice the target keeps the quality.
                image.draft("RGB", (2 * self.image_px, 2 * self.image_px))
                with self.large if max(pixels, image.width * image.height) > _LARGE_PIXELS else nullcontext():
                    image.load()
                    small = to_rgb(upright(image)).resize((self.image_px, self.image_px), Image.Resampling.BILINEAR)
        except ImageSizeError:
            raise
        except Image.DecompressionBombError as error:  # by a limit of Pillow's own, before `_check_size`
            raise ValueError(f"the image is too large to decode ({error}): send a smaller copy") from error
        except UnidentifiedImageError as error:
            raise ValueError(
                f"not an image in a known format ({', '.join(FORMATS)}), or a damaged one: send such a file's own bytes"
            ) from error
        except Exception as error:  # codecs report damage with a dozen unrelated types
            raise ValueError(f"the image is damaged or cut short ({error}): send another copy") from error
        return np.asarray(small)

    def _decoded_pixels(self, image: Image.Image) -> int:
        """Return how many pixels a decoder holds at a time, whatever of them is wanted.

        Raises:
            ImageSizeError: the tiles of a TIFF are too large; its decoder fills them whole, however small the image.
        """
        if image.format == "TIFF":
            tags: Mapping[int, int] = getattr(image, "tag_v2", {})
            width, height = (int(tags.get(tag, 0)) for tag in _TILE_SIZE)
            if width * height > self.max_pixels:
                raise ImageSizeError(
                    f"the image has tiles of {width} x {height} pixels, at most {self.max_pixels} are decoded: "
                    "save it without tiles"
                )
            return width * height
        # A progressive JPEG is held at its full size, even where it is decoded at a smaller one.
        return image.width * image.height if image.info.get("progressive") else 0

    def _check_size(self, width: int, height: int) -> None:
        if width < self.min_px or height < self.min_px:
            raise ImageSizeError(
                f"the image has {width} x {height} pixels, at least {self.min_px} x {self.min_px} are needed"
            )
        if width * height > self.max_pixels:
            raise ImageSizeError(
                f"the image has {width} x {height} pixels, at most {self.max_pixels} in all are decoded: "
                "send a smaller copy"
            )

    def _check_scans(self, item: bytes, width: int, height: int) -> None:
        most = _SCANS * self.max_pixels // (width * height)
        # Counted twice, because what is fast also counts what looks like a scan by chance.
        if item.count(bytes((0xFF, _SCAN))) > most and sum(marker == _SCAN for marker in markers(item)) > most:
            raise ImageSizeError("the image comes in far too many scans: save it anew")


def photos_of(item: bytes, most: int) -> list[bytes]:
    """Return the photos of one product: the only one, or the first ``most`` of those joined behind `SEVERAL`.

    Raises:
        ValueError: they are not joined as they should be.
    """
    if not item.startswith(SEVERAL):
        return [item]
    found, start = list[bytes](), len(SEVERAL)
    while start < len(item) and len(found) < most:
        size = int.from_bytes(item[start : start + 4], "little")
        start += 4
        if not size or start + size > len(item):
            raise ValueError("the photos are cut short: before each, give its size as 4 bytes, little-endian")
        found.append(item[start : start + size])
        start += size
    if not found:
        raise ValueError("there are no photos behind the mark of several: leave the modality out")
    return found


def named(photos: list[bytes]) -> list[tuple[bytes, str]]:
    """Return the photos, one that is listed twice once, and what stands before their errors."""
    if len(photos) == 1:
        return [(photos[0], "")]
    found: dict[bytes, str] = {}
    for place, photo in enumerate(photos, 1):
        found.setdefault(photo, f"photo {place} of {len(photos)}: ")
    return [*found.items()]


def markers(item: bytes) -> Iterator[int]:
    """Yield the markers of a JPEG; those of what stands behind the photo, a phone's clip say, are not its own.

    Raises:
        ImageSizeError: it has far too many segments, or too much between two of them.
    """
    place, header = 0, True
    for _ in range(_SEGMENTS):
        found = _MARKER.search(item, place)
        if found is None or (marker := item[found.end() - 1]) == _END:
            return
        if header and found.start() - place > _FILL:
            break
        yield marker
        header = header and marker != _SCAN
        place = found.end()
        if marker not in _BARE:
            place += int.from_bytes(item[place : place + 2], "big")
    raise ImageSizeError("the image has far too many segments, or too much between two of them: save it anew")


def _refuse_endless_header(item: bytes) -> None:
    for marker in markers(item):  # which raises
        if marker == _SCAN:  # Pillow's own code reads up to here
            return


def numbers_in_tags(item: bytes) -> int:
    """Return how many numbers the tags of a TIFF's first image hold, or more than `_NUMBERS` where they are odd.

    It sees what Pillow would; where the file ends before its tags do, Pillow stops, too.
    """
    order = "<" if item.startswith(b"II") else ">"
    header, few, entry, least = ("Q", "Q", "HHQQ", 8) if item[2:3] == b"+" else ("I", "H", "HHII", 4)  # +: BigTIFF
    found, places = 0, list(struct.unpack_from(order + header, item.ljust(16, b"\0"), least))
    for place in places:
        with suppress(struct.error, OverflowError):
            (tags,) = struct.unpack_from(order + few, item, place)
            size = struct.calcsize(order + entry)
            first = place + struct.calcsize(order + few)
            for at in range(first, first + tags * size, size):
                tag, kind, count, value = struct.unpack_from(order + entry, item, at)
                if count <= len(item) and (kind not in _BYTES or tag in _OFFSETS):
                    found += count
                if tag in _FURTHER_TAGS:
                    places.append(value & 0xFFFF_FFFF)
                    found += 0 if kind in _PLACES[least] and len(places) <= _TAG_LISTS else _NUMBERS + 1
                if found > _NUMBERS:
                    return found
    return found


def upright(image: Image.Image) -> Image.Image:
    """Turn a loaded image as its orientation says; one whose metadata cannot be read stays as it is.

    Raises:
        ImageSizeError: there is too much of it.
    """
    if len(image.info.get("exif", b"")) > _EXIF_BYTES:
        raise ImageSizeError(f"the image has more than {_EXIF_BYTES} bytes of EXIF: save it anew without")
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # metadata that is damaged takes nothing from the pixels, which are there
        return image
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any colour mode to RGB: alpha is flattened on white, wide values are scaled (Pillow alone would clip)."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=np.inf)
        full_scale = _full_scale(image.mode, values[values < np.inf].max(initial=0))
        image = Image.fromarray(np.rint(values.clip(0, full_scale) * (255.0 / full_scale)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _full_scale(mode: str, largest: float) -> float:
    """Return the value that is white. Modes I and F do not say it: it is the scale that the values reach."""
    if mode == "F":
        # Scientific tools write floats from 0 to 1, as bytes black; where they sharpen, some are more than white.
        return 1.0 if largest < 2 else 255.0 if largest < 2 * 255 else 65535.0
    return 65535.0 if mode.startswith("I;16") or largest > 255 else 255.0
