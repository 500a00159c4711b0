from __future__ import annotations

import io
import json
import re
import resource
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import onnx
import pytest
import torch
from av.container import Flags
from av.stream import Disposition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from likeness_client.contract import MAX_BYTES
from likeness_export.encoders.base import Encoder
from likeness_export.encoders.video_c3d import C3d, C3dConfig
from likeness_export.encoders.video_cnn_lstm import CnnLstm, CnnLstmConfig
from likeness_export.encoders.video_common import LIMITS
from likeness_export.exporting.onnx_export import export_network
from likeness_export.pipeline import StepSpec
from likeness_export.preprocessing import image, video
from likeness_export.product_network import Tower
from likeness_export.tensors import TensorSpec
from numpy.typing import NDArray
from PIL import Image
from transformers import ResNetConfig, ResNetModel

T, PX = 8, 32
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def grey(count: int) -> list[NDArray[np.uint8]]:
    """Frames from black to white."""
    return [np.full((48, 64, 3), round(255 * place / max(1, count - 1)), np.uint8) for place in range(count)]


def encoded(
    frames: list[NDArray[np.uint8]],
    container: str = "mp4",
    codec: str = "libx264",
    *,
    rate: int = 24,
    times: list[int] | None = None,
    rotation: int = 0,
    pixel_format: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container, container_options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=codec_options or {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if rotation:
            stream.set_display_rotation(rotation)
        for place, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgba" if pixels.shape[2] == 4 else "rgb24")
            if times:
                frame.pts, frame.time_base = times[place], Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


def gif(frames: list[NDArray[np.uint8]], **options: Any) -> bytes:
    out = io.BytesIO()
    first, *rest = [Image.fromarray(pixels) for pixels in frames]
    first.save(out, "GIF", save_all=True, append_images=rest, **{"duration": 50, "loop": 0, **options})
    return out.getvalue()


def sound(container: str = "mp4", codec: str = "aac") -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=48_000)
        assert isinstance(stream, av.AudioStream)
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            frame.sample_rate = 48_000
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


VP9 = {"deadline": "realtime", "cpu-used": "8"}
LIVE = {"live": "1"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
MAKERS: dict[str, Callable[[list[NDArray[np.uint8]]], bytes]] = {
    "MP4": encoded,
    "MP4, MPEG-4": lambda frames: encoded(frames, codec="mpeg4"),
    "MP4, H.265": lambda frames: encoded(frames, codec="libx265", codec_options={"x265-params": "log-level=none"}),
    "MP4, fragmented": lambda frames: encoded(frames, codec_options={"g": "6"}, options=FRAGMENTED),
    "MOV": lambda frames: encoded(frames, "mov"),
    "Matroska": lambda frames: encoded(frames, "matroska"),
    "WebM, VP8": lambda frames: encoded(frames, "webm", "libvpx"),
    "WebM, VP9": lambda frames: encoded(frames, "webm", "libvpx-vp9", codec_options=VP9),
    "WebM, as it is streamed": lambda frames: encoded(frames, "webm", "libvpx", options=LIVE),
    "GIF": gif,
}


@cache
def sample(maker: str, count: int = 24) -> bytes:
    return MAKERS[maker](grey(count))


def preprocessor(folder: Path, **limits: float) -> video.Preprocessor:
    values = {"frames": T, "video_px": PX, **LIMITS, **limits}
    (folder / video.SETTINGS_FILE).write_text(json.dumps(values), encoding="utf-8")
    return video.Preprocessor(folder)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> video.Preprocessor:
    return preprocessor(tmp_path_factory.mktemp("video"))


def levels(pixels: NDArray[np.uint8]) -> list[int]:
    """The grey of every frame, which is the same all over it."""
    return [int(frame.mean()) for frame in pixels]


def reason_beside_neighbours(videos: video.Preprocessor, item: bytes) -> str:
    """Preprocess an item between two good ones, which must not notice; return why it failed, or an empty string."""
    good = sample("GIF", 3)
    tensors, errors = videos([good, item, good])
    assert [errors[0], errors[2]] == ["", ""]
    for row in (0, 2):
        assert np.array_equal(tensors["frames"][row], videos.decode(good))
    assert bool(errors[1]) <= (not tensors["frames"][1].any())
    return errors[1]


# --- which frames


@pytest.mark.parametrize("maker", MAKERS)
def test_frames_are_taken_evenly_from_every_container(videos: video.Preprocessor, maker: str) -> None:
    pixels = videos.decode(sample(maker))
    assert pixels.shape == (T, PX, PX, 3)
    assert pixels.dtype == np.uint8
    # 24 frames in 8 parts of 3, of each the middle one
    assert levels(pixels) == pytest.approx([255 * (3 * part + 1) / 23 for part in range(T)], abs=4)


@pytest.mark.parametrize(
    ("count", "places"), [(1, [0] * 8), (2, [0] * 4 + [1] * 4), (3, [0, 0, 0, 1, 1, 2, 2, 2]), (8, list(range(8)))]
)
@pytest.mark.parametrize("maker", ["MP4", "GIF", "WebM, as it is streamed"])
def test_a_short_clip_repeats_its_frames(videos: video.Preprocessor, maker: str, count: int, places: list[int]) -> None:
    expected = [255 * place / max(1, count - 1) for place in places]
    assert levels(videos.decode(sample(maker, count))) == pytest.approx(expected, abs=4)


@pytest.mark.parametrize("count", [127, 128, 129, 700])
def test_a_long_clip_is_thinned_out_while_it_comes(videos: video.Preprocessor, count: int) -> None:
    expected = [255 * (2 * part + 1) / (2 * T) for part in range(T)]
    assert levels(videos.decode(encoded(grey(count)))) == pytest.approx(expected, abs=255 / T / video._SPARE + 4)


@pytest.mark.parametrize("slides_first", [True, False])
def test_thinning_spares_what_is_shown_for_long(videos: video.Preprocessor, slides_first: bool) -> None:
    slides, film = [130, 170, 210, 250], [100] * (2 * video._SPARE * T)
    shown = [len(film) // len(slides)] * len(slides), [1] * len(film)  # half of the time each
    parts = [(slides, shown[0]), (film, shown[1])]
    found, lasting = (np.concatenate(side).tolist() for side in zip(*parts[:: 1 if slides_first else -1], strict=True))
    times = np.cumsum([0, *lasting]).tolist()  # one more frame says how long the last one is shown
    pictures = [np.full((48, 64, 3), level, np.uint8) for level in (*found, found[-1])]
    clip = encoded(pictures, "matroska", rate=4, times=times)
    expected = [130, 170, 210, 250, 100, 100, 100, 100] if slides_first else [100, 100, 100, 100, 130, 170, 210, 250]
    assert levels(videos.decode(clip)) == pytest.approx(expected, abs=4)


def test_frames_count_by_how_long_they_are_shown(videos: video.Preprocessor) -> None:
    still_first = encoded(grey(4), "webm", "libvpx", times=[0, 21, 22, 23])
    assert levels(videos.decode(still_first)) == pytest.approx([0] * 7 + [170], abs=4)
    still_last = gif(grey(4), duration=[50, 50, 50, 1050])
    assert levels(videos.decode(still_last)) == pytest.approx([85] + [255] * 7, abs=4)


@pytest.mark.parametrize("times", [[None] * 16, [0] * 16, list(range(16, 0, -1)), [*range(8), None, *range(9, 16)]])
def test_without_usable_times_every_frame_counts_the_same(videos: video.Preprocessor, times: list[int | None]) -> None:
    def decoded() -> Iterator[av.VideoFrame]:
        for pixels, time in zip(grey(16), times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = time, Fraction(1, 10)
            yield frame

    assert levels(videos._sample(decoded())) == [round(255 * (2 * part + 1) / 15) for part in range(T)]


# --- which pixels


def quarters() -> NDArray[np.uint8]:
    """Red, green; blue, white."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32], pixels[24:, 32:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    )
    return pixels


@pytest.mark.parametrize(
    ("rotation", "order"), [(0, "RGBW"), (90, "GWRB"), (180, "WBGR"), (-90, "BRWG"), (270, "BRWG")]
)
def test_a_clip_ends_upright_in_its_colours(videos: video.Preprocessor, rotation: int, order: str) -> None:
    colours = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}
    (shown, *_) = videos.decode(encoded([quarters()] * 3, rotation=rotation, pixel_format="yuv444p"))
    found = [shown[y, x].astype(int) for y in (8, 24) for x in (8, 24)]
    assert all(np.abs(pixel - colours[name]).max() < 24 for pixel, name in zip(found, order, strict=True)), found


def matrix(*quarter: int) -> bytes:
    """What an MP4 says about how its pictures are turned: where a step to the right goes, and one down."""
    right_x, right_y, down_x, down_y = (step << 16 for step in quarter)
    return struct.pack(">9i", right_x, right_y, 0, down_x, down_y, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize(
    ("quarter", "order"),
    [((-1, 0, 0, 1), "GRWB"), ((1, 0, 0, -1), "BWRG"), ((0, 1, 1, 0), "RBGW"), ((0, -1, -1, 0), "WGBR")],
)
def test_a_mirrored_clip_is_mirrored_back(
    videos: video.Preprocessor, quarter: tuple[int, int, int, int], order: str
) -> None:
    clip = encoded([quarters()] * 3, pixel_format="yuv444p")
    header = clip.index(b"tkhd")
    assert clip.count(matrix(1, 0, 0, 1), header) == 1
    mirrored = clip[:header] + clip[header:].replace(matrix(1, 0, 0, 1), matrix(*quarter))
    (shown, *_) = videos.decode(mirrored)
    (plain, *_) = videos.decode(clip)
    corners = dict(zip("RGBW", (plain[y, x] for y in (8, 24) for x in (8, 24)), strict=True))
    assert [shown[y, x].tolist() for y in (8, 24) for x in (8, 24)] == [corners[name].tolist() for name in order]


def see_through(hidden: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A red square on nothing; where nothing is, a colour is hidden."""
    pixels = np.full((192, 256, 4), (*hidden, 0), np.uint8)
    pixels[52:142, 68:174] = (200, 30, 30, 255)
    return pixels


CLEAR = {"auto-alt-ref": "0", "crf": "4", "b": "2M"}
SEE_THROUGH: dict[str, Callable[[list[NDArray[np.uint8]]], bytes]] = {
    "WebM, VP8": lambda frames: encoded(frames, "webm", "libvpx", pixel_format="yuva420p", codec_options=CLEAR),
    "WebM, VP9": lambda frames: encoded(frames, "webm", "libvpx-vp9", pixel_format="yuva420p", codec_options=CLEAR),
    "GIF": lambda frames: gif(frames, disposal=2),
}


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("maker", SEE_THROUGH)
def test_what_is_transparent_is_white_as_in_photos(
    videos: video.Preprocessor, maker: str, hidden: tuple[int, int, int]
) -> None:
    pixels = see_through(hidden)
    photo = image.to_rgb(Image.fromarray(pixels)).resize((PX, PX), Image.Resampling.BILINEAR)
    shown = videos.decode(SEE_THROUGH[maker]([pixels] * 3)).astype(int)
    assert np.abs(shown - np.asarray(photo, int)).max() < 16


@pytest.mark.parametrize("maker", ["WebM, VP8", "WebM, VP9"])
def test_what_is_transparent_needs_no_word_of_the_header(videos: video.Preprocessor, maker: str) -> None:
    clip = SEE_THROUGH[maker]([see_through((0, 0, 0))] * 3)
    alpha_mode, void = b"\x53\xc0\x81\x01", b"\xec\x82\x00\x00"
    assert clip.count(alpha_mode) == 1
    np.testing.assert_array_equal(videos.decode(clip.replace(alpha_mode, void)), videos.decode(clip))


def test_a_damaged_word_about_transparency_costs_no_picture(
    videos: video.Preprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = SEE_THROUGH["WebM, VP9"]([see_through((0, 0, 0))] * 3)
    whole = videos.decode(clip)
    monkeypatch.setattr(video, "_OPACITY", bytes(8))  # of another kind
    opaque = videos.decode(clip)
    monkeypatch.undo()

    def damaged(*_: object) -> None:
        raise av.error.InvalidDataError(1, "damaged")

    monkeypatch.setattr(av.CodecContext, "create", lambda *_: SimpleNamespace(decode=damaged))
    np.testing.assert_array_equal(videos.decode(clip), opaque)
    corner, middle = (0, 0), (PX // 2, PX // 2)
    assert (whole[0][corner].min(), opaque[0][corner].max()) == (255, pytest.approx(0, abs=8))
    np.testing.assert_allclose(whole[0][middle], opaque[0][middle], atol=8)


def test_the_edge_of_what_is_transparent_is_half_white(videos: video.Preprocessor) -> None:
    out, half = io.BytesIO(), Image.new("RGBA", (PX * 8, PX * 8), (0, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, PX * 4 + 4, PX * 8))  # its edge is in the middle of a pixel
    half.save(out, "GIF", save_all=True, append_images=[half.copy()], duration=50, disposal=2)
    shown = videos.decode(out.getvalue())[0, 0].astype(int)
    assert np.abs(shown[PX // 2] - [255, 128, 128]).max() < 24, shown
    assert np.abs(shown[PX // 2 - 3] - [255, 0, 0]).max() < 8


# --- what is damaged or refused


@pytest.mark.parametrize("maker", ["WebM, VP8", "WebM, as it is streamed", "MP4, fragmented", "Matroska", "GIF"])
def test_of_a_cut_clip_what_is_there_is_used(videos: video.Preprocessor, maker: str) -> None:
    whole = sample(maker, 120)
    found = levels(videos.decode(whole[: int(0.6 * len(whole))]))
    assert found == sorted(found)
    assert found[0] < 30
    assert 80 < found[-1] < 200


def test_damage_in_the_middle_costs_the_middle(videos: video.Preprocessor) -> None:
    whole = bytearray(encoded(grey(60), codec_options={"g": "5"}))
    whole[len(whole) // 3 : len(whole) // 2] = bytes(len(whole) // 2 - len(whole) // 3)
    found = levels(videos.decode(bytes(whole)))
    assert found[0] < 40
    assert found[-1] > 200


def header_only(item: bytes, frames: int) -> bytes:
    """An MP4 whose index promises so many frames."""
    changed = bytearray(item)
    for box, place, values in (("stsz", 8, (1, frames)), ("stts", 12, (frames,)), ("stsc", 16, (frames,))):
        start = changed.index(box.encode()) + place
        changed[start : start + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    return bytes(changed)


def canvas(side: int) -> bytes:
    """A GIF of a few hundred bytes that would be decoded to this many pixels squared."""
    changed = bytearray(gif(grey(2)))
    changed[6:10] = struct.pack("<HH", side, side)
    return bytes(changed)


def copies(item: bytes, count: int) -> bytes:
    """An MP4 with so many copies of its only track."""
    start = item.index(b"moov") - 4
    size = struct.unpack_from(">I", item, start)[0]
    track = item.index(b"trak", start) - 4
    after = track + struct.unpack_from(">I", item, track)[0]
    moov = item[start + 4 : track] + count * item[track:after] + item[after : start + size]
    return item[:start] + struct.pack(">I", len(moov) + 4) + moov + item[start + size :]


@pytest.mark.parametrize(("tracks", "said"), [(1, "more than 7200 frames"), (20, "not a video in a known format")])
def test_memory_is_not_taken_for_samples_that_an_index_only_claims(
    videos: video.Preprocessor, tracks: int, said: str
) -> None:
    item = copies(header_only(sample("MP4"), 30_000_000 // tracks), tracks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(video.VideoError, match=said):
        videos.decode(item)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < 700, f"{grown} MB for {len(item)} bytes"


SMALL_LIMITS = {
    "max_pixels": 4000,
    "max_decoded_pixels": 80_000,
    "max_frames": 40,
    "max_seconds": 3,
    "max_bytes": 50_000,
}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        pytest.param(lambda: bytes(50_001), "50001 bytes, 50000 are allowed", id="bytes"),
        pytest.param(lambda: encoded([np.zeros((64, 64, 3), np.uint8)]), "64 x 64 pixels, at most 4000", id="pixels"),
        pytest.param(lambda: canvas(65_535), "no size, or one of far more than 4000 pixels", id="a vast canvas"),
        pytest.param(lambda: canvas(3_000), "pixels", id="a large canvas"),
        pytest.param(lambda: encoded([np.zeros((4, 64, 3), np.uint8)]), "64 x 4 pixels, at least 8 x 8", id="a line"),
        pytest.param(lambda: encoded(grey(30)), "more than 80000 pixels in all frames", id="pixels of all frames"),
        pytest.param(lambda: sample("MP4", 41), "more than 40 frames", id="frames, says the header"),
        pytest.param(
            lambda: encoded([np.zeros((16, 16, 3), np.uint8)] * 41, "webm", "libvpx", options=LIVE),
            "more than 40 frames",
            id="frames, says nobody",
        ),
        pytest.param(lambda: encoded(grey(2), times=[0, 24 * 4]), "longer than 3 s", id="seconds, says the header"),
        pytest.param(
            lambda: encoded(grey(2), "webm", "libvpx", times=[0, 24 * 4], options=LIVE),
            "longer than 3 s",
            id="seconds, says nobody",
        ),
        pytest.param(lambda: header_only(sample("MP4"), 200_000_000), "more than 40 frames", id="a lying index"),
        pytest.param(sound, "no video in it", id="sound in MP4"),
        pytest.param(lambda: sound("webm", "libopus"), "no video in it", id="sound in WebM"),
        pytest.param(
            lambda: encoded(grey(2), "mov", "mjpeg", pixel_format="yuvj420p"), "coded in mjpeg: send H.264", id="codec"
        ),
        pytest.param(lambda: sample("MP4")[:1000], "not a video|damaged", id="MP4 without its index"),
        pytest.param(
            lambda: sample("MP4")[: sample("MP4").index(b"trak")],
            "no video in it, or is cut short: send another",
            id="MP4 cut in its index",
        ),
        pytest.param(lambda: encoded(grey(2), "avi", "mpeg4"), "not a video in a known format", id="AVI"),
        pytest.param(lambda: gif(grey(1))[:20], "damaged|no size|not a video", id="GIF without a frame"),
        pytest.param(lambda: b"", "not a video", id="nothing"),
        pytest.param(lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "not a video", id="HLS"),
        pytest.param(lambda: b"ffconcat version 1.0\nfile /etc/hostname\n", "not a video", id="a list of files"),
        pytest.param(lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a video", id="SVG"),
    ],
)
def test_what_cannot_be_decoded_has_a_reason_and_zeros(tmp_path: Path, item: Callable[[], bytes], said: str) -> None:
    videos = preprocessor(tmp_path, **SMALL_LIMITS)
    with pytest.raises(video.VideoError, match=said):
        videos.decode(item())
    assert re.search(r"[:;] send ", reason_beside_neighbours(videos, item()))  # the way out


def test_a_clip_that_grows_is_refused_where_it_does(tmp_path: Path) -> None:
    grown = [av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8)) for side in (16, 16, 64)]
    with pytest.raises(video.VideoError, match="64 x 64 pixels, at most 4000"):
        preprocessor(tmp_path, **SMALL_LIMITS)._sample(iter(grown))


def test_the_limits_let_ordinary_clips_pass() -> None:
    assert LIMITS["max_pixels"] >= 3840 * 2160
    assert LIMITS["max_decoded_pixels"] >= 60 * 60 * 1920 * 1080
    assert LIMITS["max_bytes"] == MAX_BYTES["video"]


def element(name: str, content: bytes) -> bytes:
    """An element of Matroska."""
    return bytes.fromhex(name) + struct.pack(">Q", len(content) | 1 << 56) + content


def tagged(count: int) -> bytes:
    """A Matroska clip with so many tags of different names."""
    head, segment = sample("Matroska").split(bytes.fromhex("18538067"))
    tags = [element("67c8", element("45a3", b"%d" % tag) + element("4487", b"v")) for tag in range(count)]
    unknown_size = bytes.fromhex("1853806701ffffffffffffff")
    return head + unknown_size + element("1254c367", element("7373", b"".join(tags))) + segment[8:]


def test_a_clip_of_countless_tags_is_refused_before_they_are_compared(videos: video.Preprocessor) -> None:
    assert videos.decode(tagged(100)).any()
    assert "more than 10000 tags" in reason_beside_neighbours(videos, tagged(11_000))


@pytest.mark.parametrize("limit", ["_OPENING_S", "_DECODING_S"])
def test_a_clip_that_takes_too_long_to_read_fails(
    videos: video.Preprocessor, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(video, limit, -1.0)
    long = encoded([np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)] * 40, "matroska")
    with pytest.raises(video.VideoError, match="takes too long to read"):
        videos.decode(long)


def test_what_is_only_for_seeking_is_not_read(videos: video.Preprocessor) -> None:
    file = video._File(sample("Matroska"))
    with videos._open(file) as container:
        assert Flags.ign_idx in Flags(container.flags)


MAGIC = [b"", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", b"\x1aE\xdf\xa3\x42\x82\x84webm", b"GIF89a@\0\x30\0\xf0\0\0"]


@few
@given(start=st.sampled_from(MAGIC), rest=st.binary(max_size=300))
def test_random_bytes_never_raise(videos: video.Preprocessor, start: bytes, rest: bytes) -> None:
    reason_beside_neighbours(videos, start + rest)


@settings(few, max_examples=150)
@given(
    maker=st.sampled_from(list(MAKERS)),
    damage=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 4000),
)
def test_damaged_files_never_raise(
    videos: video.Preprocessor, maker: str, damage: list[tuple[int, int]], length: int
) -> None:
    item = bytearray(sample(maker)[:length])
    for place, value in damage:
        if place < len(item):
            item[place] = value
    reason_beside_neighbours(videos, bytes(item))


def test_a_batch_is_its_items(videos: video.Preprocessor) -> None:
    items = [sample(maker) for maker in MAKERS] * 3
    tensors, errors = videos(items)
    assert not any(errors)
    assert tensors["frames"].shape == (len(items), T, PX, PX, 3)
    for item, pixels in zip(items, tensors["frames"], strict=True):
        assert np.array_equal(videos.decode(item), pixels)
    empty, none = videos([])
    assert (len(empty["frames"]), none) == (0, [])


# --- encoders

ENCODERS: dict[str, C3dConfig | CnnLstmConfig] = {
    "c3d": C3dConfig(encoder="c3d", frames=12, video_px=32, width=8),
    "cnn_lstm": CnnLstmConfig(encoder="cnn_lstm", frames=4, video_px=32, width=8, hidden=16, pool="last"),
}


def built(name: str) -> Encoder:
    torch.manual_seed(3)
    return ENCODERS[name].build(Path(), None).eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_exported_encoder_is_the_eager_one(name: str, tmp_path: Path) -> None:
    config, encoder = ENCODERS[name], built(name)
    output = TensorSpec("video_embedding", "FP32", (16,))
    spec = StepSpec(name="video_encoder", inputs=config.tensors(), outputs=(output,), tower="video")
    report = export_network(Tower(encoder, 16), spec, tmp_path / "model.onnx", 5)
    assert report.cases == 3
    assert report.largest_difference < 1e-5
    assert report.batch_difference < 1e-5
    readers = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node if "frames" in node.input]
    assert readers == ["Cast"]  # TensorRT takes bytes for nothing else


@pytest.mark.parametrize("name", ENCODERS)
def test_the_order_of_the_frames_matters(name: str) -> None:
    encoder = built(name)
    (frames,) = encoder.sample(ENCODERS[name].tensors(), 2, 1)
    with torch.inference_mode():
        forth, back = encoder(frames), encoder(frames.flip(1))
    assert forth.shape == (2, encoder.feature_dim)
    assert (forth - back).abs().max() > 1e-6


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_states_are_pooled_as_asked_for(pool: str, bidirectional: bool) -> None:
    values = {"frames": 4, "video_px": 32, "width": 8, "hidden": 16, "pool": pool, "bidirectional": bidirectional}
    config = CnnLstmConfig.model_validate({"encoder": "cnn_lstm", **values})
    encoder = config.build(Path(), None).eval()
    assert isinstance(encoder, CnnLstm)
    (frames,) = encoder.sample(config.tensors(), 2, 1)
    with torch.inference_mode():
        states, _ = encoder.lstm(encoder.cnn(frames.flatten(0, 1)).view(2, 4, -1))
        ends = torch.cat([states[:, -1, :16], states[:, 0, 16:]], 1)  # each direction's own end
        assert torch.allclose(encoder(frames), states.mean(1) if pool == "mean" else ends, atol=1e-6)
    assert encoder.feature_dim == (32 if bidirectional else 16)


@pytest.mark.parametrize("frames", [12, 16])
def test_c3d_learns_in_bf16_what_it_learns_in_fp32(frames: int) -> None:
    """With two steps of time before a convolution, PyTorch's gradients are garbage; see `C3dConfig.frames`."""
    network = C3d(8).train()
    clips = torch.randint(0, 256, (6, frames, 32, 32, 3), dtype=torch.uint8)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = network(clips)
        features.float().square().mean().backward()
        gradients.append(
            torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])
        )
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.98
    with pytest.raises(ValueError, match="greater than or equal to 12"):
        C3dConfig(encoder="c3d", frames=11)


def test_a_cover_is_not_taken_for_the_clip(videos: video.Preprocessor) -> None:
    clip: Any
    codec = SimpleNamespace(name="h264", width=64, height=48)
    cover, clip = (
        SimpleNamespace(disposition=kind, codec_context=codec, frames=1)
        for kind in (Disposition.attached_pic, Disposition(0))
    )
    container: Any = SimpleNamespace(streams=SimpleNamespace(video=[cover, clip]), duration=None)
    assert videos._stream(container) is clip
    container.streams.video = [cover]
    with pytest.raises(video.VideoError, match="no video in it"):
        videos._stream(container)


def test_all_frames_of_a_clip_are_varied_alike() -> None:
    torch.manual_seed(5)
    still = torch.from_numpy(np.stack([quarters()] * 4)).repeat(3, 1, 1, 1, 1)  # (3, 4, 48, 64, 3)
    (varied,) = C3d(8).augment(still)
    assert (varied.shape, varied.dtype) == (still.shape, torch.uint8)
    assert (varied == varied[:, :1]).all()
    assert (varied[0] != varied[1]).any()
    assert (varied != still).any()


def test_a_pretrained_network_sees_the_frames_and_stays_as_it_is(tmp_path: Path) -> None:
    tiny = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(tiny).save_pretrained(tmp_path / "resnet")
    (tmp_path / "resnet/preprocessor_config.json").write_text('{"do_normalize": false}', encoding="utf-8")
    config = CnnLstmConfig(encoder="cnn_lstm", source="resnet", frames=3, video_px=32, hidden=8)
    config.prepare([], tmp_path / "tower", tmp_path)
    encoder = config.build(tmp_path / "tower", tmp_path)
    assert isinstance(encoder, CnnLstm)
    encoder.requires_grad_(True).train()
    assert {name.split(".")[0] for name, weight in encoder.named_parameters() if weight.requires_grad} == {"lstm"}
    assert encoder.lstm.training
    assert not encoder.cnn.training
    (frames,) = encoder.sample(config.tensors(), 2, 1)
    restored = config.build(tmp_path / "tower", None)
    restored.load_state_dict(encoder.state_dict())
    with torch.inference_mode():
        assert torch.allclose(encoder.eval()(frames), restored.eval()(frames), atol=1e-6)
    learning = config.model_copy(update={"freeze_source": False}).build(tmp_path / "tower", tmp_path)
    assert all(weight.requires_grad for weight in learning.requires_grad_(True).parameters())
