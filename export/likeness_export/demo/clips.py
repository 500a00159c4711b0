"""Films some of a catalogue's products: short clips in which the product is turned, zoomed or passed by."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import av
import numpy as np
from likeness_client.records import read_jsonl
from likeness_client.writing import told_if_full, write_text
from PIL import Image

from likeness_export.demo.catalogue import invent_products
from likeness_export.demo.drawing import draw_product
from likeness_export.demo.photo import Photo, random_photo, take_photo
from likeness_export.demo.shapes import MASTER_PX
from likeness_export.demo.wording import pick
from likeness_export.progress import each

Motion: TypeAlias = Literal["turn", "zoom", "pan"]
Container: TypeAlias = Literal["mp4", "webm", "gif"]

CLIP_PX = 96
CLIP_SHARE = 0.6
"""How many listings have a clip."""
PRODUCTS_FILE = "products_with_clips.jsonl"
_RATE = 12  # frames a second
_MOTIONS: Sequence[Motion] = ("turn", "turn", "zoom", "pan")
_CONTAINERS: Sequence[Container] = ("mp4", "mp4", "mp4", "mp4", "webm", "webm", "gif")
# Per container, the first encoder that this FFmpeg has, and its options: one thread and (x264) no B-frames, because
# otherwise the bytes differ each time.
_ENCODERS: dict[str, dict[str, dict[str, str]]] = {
    "mp4": {"libx264": {"preset": "veryfast", "threads": "1", "bf": "0"}, "mpeg4": {"threads": "1"}},
    "webm": {
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0", "threads": "1"},
        "libvpx": {"deadline": "realtime", "b": "300k", "threads": "1"},
    },
}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """How a seller films.

    Attributes:
        photo: the scene, and how the product stands in it.
        motion: what happens.
        reach: how far, -1..1; a negative one goes the other way.
        frames: how many.
        container: the kind of file.
    """

    photo: Photo
    motion: Motion
    reach: float
    frames: int
    container: Container


def random_clip(rng: np.random.Generator, kind: str) -> Clip:
    """A clip as one of many sellers would take it."""
    return Clip(
        photo=random_photo(rng, kind),
        motion=pick(rng, _MOTIONS),
        reach=float(rng.uniform(0.6, 1.0) * pick(rng, (-1, 1))),
        frames=int(rng.integers(12, 25)),
        container=pick(rng, _CONTAINERS),
    )


def film(product: Image.Image, clip: Clip) -> list[Image.Image]:
    """A clip of a drawn product: RGB frames of CLIP_PX x CLIP_PX, not yet compressed."""
    empty = Image.new("RGBA", (MASTER_PX, MASTER_PX))
    scene = np.asarray(take_photo(empty, clip.photo).resize((CLIP_PX, CLIP_PX)), dtype=np.float32)
    small = product.resize((CLIP_PX, CLIP_PX)).convert("RGBa")
    frames = []
    for step in np.linspace(-clip.reach, clip.reach, clip.frames):
        size, back = (CLIP_PX, CLIP_PX), _back(clip, float(step))
        placed = small.transform(size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
        pixels = np.asarray(placed, dtype=np.float32)
        lit = pixels[..., :3] * np.asarray(clip.photo.gains, dtype=np.float32)
        whole = scene * (1 - pixels[..., 3:] / 255) + lit
        frames.append(Image.fromarray(np.clip(whole, 0, 255).astype(np.uint8)))
    return frames


def _back(clip: Clip, step: float) -> tuple[float, float, float, float, float, float]:
    """From a frame's pixels back to the product's, as Pillow wants it; ``step`` goes from -1 to 1."""
    photo, middle = clip.photo, CLIP_PX / 2
    zoom = photo.zoom * (1 + 0.3 * step if clip.motion == "zoom" else 1)
    squeeze = math.cos(math.radians(60) * step) if clip.motion == "turn" else 1.0
    right = photo.shift[0] + (0.2 * step if clip.motion == "pan" else 0)
    turned = math.radians(photo.rotation_deg)
    cos, sin = math.cos(turned) / zoom, math.sin(turned) / zoom
    x, y = middle + right * CLIP_PX, middle + photo.shift[1] * CLIP_PX
    across, down = (cos / squeeze, -sin / squeeze), (sin, cos)
    return (*across, middle - across[0] * x - across[1] * y, *down, middle - down[0] * x - down[1] * y)


def write_clip(frames: Sequence[Image.Image], path: Path) -> None:
    """Write frames as the container that the file's suffix names."""
    container = path.suffix.removeprefix(".")
    if container == "gif":  # Pillow chooses 256 colours per clip; FFmpeg would take the same ones for all
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // _RATE, loop=0)
        return
    encoder = next(name for name in _ENCODERS[container] if name in av.codecs_available)
    # Without this flag the files would hold random identifiers.
    with av.open(str(path), "w", format=container, container_options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream(encoder, rate=_RATE, options=_ENCODERS[container][encoder])
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame))))
        out.mux(stream.encode(None))


def add_clips(products: Path, out: Path, *, seed: int = 7) -> Path:
    """Film listings of a rendered catalogue and write a copy of its product file with the key ``video``.

    Args:
        products: a product file of a rendered catalogue; the clips go into ``clips/`` beside it.
        out: where to; in the same folder, because paths are relative to it.
        seed: the same seed and catalogue give the same clips, but for an encoder's rounding, with the same versions of
            FFmpeg, Pillow and numpy.

    Returns:
        ``out``.
    """
    stamp = json.loads((products.parent / "catalogue.json").read_text(encoding="utf-8"))
    invented = invent_products(seed=stamp["seed"], designs=stamp["designs"])
    looks = {f"p{product.number:04d}": product.look for product in invented}
    records = sorted(read_jsonl(products), key=lambda record: str(record["product_id"]))
    folder = products.parent / "clips"
    out.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    videos, drawn = {}, ("", Image.new("RGBA", (1, 1)))
    for place, record in enumerate(each(records, "filming the catalogue")):
        rng, name = np.random.default_rng([seed, place]), str(record["product_id"])
        look = looks[name.split("-")[0]]
        clip, filmed = random_clip(rng, look.kind), rng.random() < CLIP_SHARE
        if filmed:
            if drawn[0] != name.split("-")[0]:  # the listings of one product follow one another
                drawn = (name.split("-")[0], draw_product(look))
            videos[name] = f"clips/{name}.{clip.container}"
            with told_if_full(folder):
                write_clip(film(drawn[1], clip), products.parent / videos[name])
    lines = [
        {**record, "video": videos[name]} if (name := record["product_id"]) in videos else record
        for record in read_jsonl(products)
    ]
    write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return out
