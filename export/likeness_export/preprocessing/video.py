"""Encoded clips to a few squares of RGB pixels each: guarded decoding, even sampling, orientation, one resizer.

A clip is decoded once, from its start to its end and without seeking, because neither its length nor its index can be
trusted: streamed files lack them, cut files contradict them. Frames are thinned out while they come.
"""

from __future__ import annotations

import ctypes
import io
import json
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import TypeAlias

import av
import av._core
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from joblib import cpu_count
from numpy.typing import NDArray
from PIL import Image

SETTINGS_FILE = "video.json"
# FFmpeg's parsers that open untrusted bytes. The others stay shut: playlists (HLS, concat) make it open further files.
DEMUXERS = ("mov", "matroska", "gif")
FORMATS = "MP4, MOV, WebM, Matroska, GIF"
DECODERS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "gif")
# FFmpeg reserves memory for whatever an index claims: 4 GB for 58 million samples named in 2 kB. No block of an honest
# clip is larger than this: a frame in 4K takes 57 MB at most; an index 24 bytes for each sample.
_MAX_BLOCK = 64 << 20
_MAX_STREAMS = 8  # pictures, sound, and what phones note beside them; each has an index of its own
# FFmpeg compares each tag and chapter of a Matroska file with all before it, in one go: 100,000 take a minute. What is
# counted are the numbers by which the format names them; by chance, one pair of bytes in 65,536 is such a number.
_LISTED, _MAX_LISTED, _BY_CHANCE = (b"\x67\xc8", b"\x73\x73", b"\x73\xc4"), 10_000, 1 / 16_384
_EBML = b"\x1aE\xdf\xa3"
_OPACITY = (1).to_bytes(8, "big")  # how WebM numbers what lies beside a picture and says how opaque it is
# Seconds of a processor. The largest clip within the limits takes one or two minutes, a header a fraction of a second.
_OPENING_S, _DECODING_S = 10.0, 300.0
_THREADS = 4  # clips at a time; each holds a few decoded frames, 12 MB each in 4K
# Frames kept per frame wanted: the last one of each cell of time. So a sample was shown at its time, or before it by an
# eighth of the gap between two at most. Of time, not of number: slides may last as long as the film behind them.
_SPARE = 8
# Exact rounding and no shortcuts: the same pixels on every processor.
_SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT

_ffmpeg = ctypes.CDLL(av._core.__file__)  # PyAV has no name for this limit, but finds the library that has
_ffmpeg.av_max_alloc.argtypes = [ctypes.c_size_t]
_ffmpeg.av_max_alloc(_MAX_BLOCK)

_Kept: TypeAlias = tuple[tuple[int, int], NDArray[np.uint8]]
"""A frame's number, and the time when it appears, in ticks since the first one; and its pixels."""


class VideoError(ValueError):
    """A video outside the limits, or without a frame."""


class Preprocessor:
    """Decode clips and squash ``frames`` of their frames to ``video_px`` x ``video_px``.

    The tensor holds plain bytes; the encoder's graph does the normalisation.

    Args:
        assets: folder with ``video.json``: ``frames``, ``video_px``, and the limits ``min_px``, ``max_pixels`` (of one
            frame), ``max_decoded_pixels`` (of all frames), ``max_frames``, ``max_seconds``, ``max_bytes``.
    """

    def __init__(self, assets: Path) -> None:
        settings = json.loads((assets / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.frames: int = settings["frames"]
        self.video_px: int = settings["video_px"]
        self.min_px: int = settings["min_px"]
        self.max_pixels: int = settings["max_pixels"]
        self.max_decoded_pixels: int = settings["max_decoded_pixels"]
        self.max_frames: int = settings["max_frames"]
        self.max_seconds: float = settings["max_seconds"]
        self.max_bytes: int = settings["max_bytes"]
        # FFmpeg releases the interpreter lock while it decodes and resizes.
        self.pool = ThreadPoolExecutor(min(_THREADS, cpu_count()), thread_name_prefix="decode")

    def __call__(self, items: list[bytes]) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
        """Turn encoded videos into tensors.

        Args:
            items: MP4, MOV, WebM, Matroska or GIF files.

        Returns:
            ``frames``, UINT8 [n, frames, video_px, video_px, 3], RGB, and the reasons of failed items.
        """
        frames = np.zeros((len(items), self.frames, self.video_px, self.video_px, 3), dtype=np.uint8)

        def fill(row: int) -> str:
            try:
                frames[row] = self.decode(items[row])
            except ValueError as error:
                return str(error)
            return ""

        rows = range(len(items))
        errors = [fill(0)] if len(items) == 1 else list(self.pool.map(fill, rows))
        return {"frames": frames}, errors

    def decode(self, item: bytes) -> NDArray[np.uint8]:
        """Decode one video to UINT8 [frames, video_px, video_px, 3].

        A clip with fewer frames repeats them. Of a damaged or cut clip what can be decoded is used.

        Raises:
            ValueError: the bytes are no video, one without a frame, or one outside the limits; the message says which.
        """
        if len(item) > self.max_bytes:
            raise VideoError(f"the video file has {len(item)} bytes, {self.max_bytes} are allowed: send a shorter clip")
        if item.startswith(_EBML) and max(map(item.count, _LISTED)) > _MAX_LISTED + len(item) * _BY_CHANCE:
            raise VideoError(f"the video has more than {_MAX_LISTED} tags or chapters: send a copy without them")
        file = _File(item)
        try:
            with self._open(file) as container:
                file.spend(_DECODING_S)
                return self._sample(self._decoded(container, self._stream(container)))
        except VideoError:
            raise
        except Exception as error:  # FFmpeg reports damage with a dozen unrelated types
            raise VideoError(f"the video is damaged or cut short ({error}): send another copy") from error

    def _open(self, file: _File) -> InputContainer:
        # What stands here reaches the decoders that look for the streams' properties, too.
        limits = {
            "format_whitelist": ",".join(DEMUXERS),
            "codec_whitelist": ",".join(DECODERS),
            "max_pixels": str(self.max_pixels),
            "max_streams": str(_MAX_STREAMS),
            # What is only for seeking, and for players' menus: both may take hours to sort.
            "fflags": "+ignidx",
            "ignore_chapters": "1",
        }
        try:
            file.spend(_OPENING_S)
            try:
                return av.open(file, "r", options=limits)
            except av.FFmpegError:
                file.seek(0)  # perhaps a fragmented MP4, cut inside an index, which is not looked for in a stream
                return av.open(_Pipe(file), "r", options=limits)
        except VideoError:
            raise
        except Exception as error:  # as above
            raise VideoError(
                f"not a video in a known format ({FORMATS}), or damaged, or cut short, or of more than {_MAX_STREAMS} "
                "streams: send another copy, of the picture alone"
            ) from error

    def _stream(self, container: InputContainer) -> VideoStream:
        """Return the first moving picture (a song's cover is none), or refuse it for what its header says."""
        moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not moving:
            raise VideoError("the file has no video in it, or is cut short: send another copy, or leave the clip out")
        stream = moving[0]
        codec = stream.codec_context
        if codec is None or codec.name not in DECODERS:
            name = "a codec that is not known here, or is cut short" if codec is None else codec.name
            raise VideoError(f"the video is coded in {name}: send H.264, H.265, VP8, VP9, AV1, MPEG-4 or GIF")
        self._check_size(codec.width, codec.height)
        self._check_length(stream.frames, (container.duration or 0) / av.time_base)
        codec.options = {"max_pixels": str(self.max_pixels)}
        codec.thread_count = 1  # the pool shares the processors out; threads inside a decoder would fight over them
        return stream

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Yield the frames in the order in which they are shown; what is damaged is left out."""
        packets = _until_damaged(container.demux(stream))
        opacity = _Opacity(stream)
        for packet in islice(packets, 4 * self.max_frames):  # some packets hold no frame; a hostile file only such
            try:
                frames = packet.decode()
                seen = opacity.decode(packet)
            except av.FFmpegError:
                continue
            for frame in frames:
                if seen is not None:
                    frame.opaque = seen
                yield frame
        try:  # frames that wait for their turn, where the file ends before its time
            yield from stream.codec_context.decode(None)
        except av.FFmpegError:
            return

    def _checked(self, decoded: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield the frames until one of them, or all together, are too large: a stream may change its size."""
        pixels = 0
        for frame in decoded:
            self._check_size(frame.width, frame.height)
            pixels += frame.width * frame.height
            if pixels > self.max_decoded_pixels:
                raise VideoError(
                    f"the video has more than {self.max_decoded_pixels} pixels in all frames: send a smaller copy"
                )
            yield frame

    def _sample(self, decoded: Iterator[VideoFrame]) -> NDArray[np.uint8]:
        """Return what is shown in the middle of each of ``frames`` equal parts of the clip."""
        kept: list[_Kept] = []
        last: VideoFrame | None = None  # of its cell, as far as is known
        clock, count, cells, place = _Clock(), 0, [1, 1], (0, 0)  # cells of frames, of ticks
        for count, frame in enumerate(self._checked(decoded), start=1):
            clock.show(frame, count)
            self._check_length(count, clock.seconds)
            here, by = (count - 1, clock.now - clock.start), clock.usable
            if last and place[by] // cells[by] < here[by] // cells[by]:
                kept.append((place, self._small(last)))
                while len(kept) == 2 * _SPARE * self.frames:
                    cells[by] *= 2
                    kept = _last_of_each(kept, cells[by], by=by)
            last, place = frame, here
        if not last:
            raise VideoError("the video is damaged or cut short: not one frame of it can be decoded; send another copy")
        kept.append((place, self._small(last)))
        end = clock.end - clock.start if clock.usable else count
        middles = (2 * np.arange(self.frames) + 1) * end // (2 * self.frames)
        shown = np.searchsorted([when[clock.usable] for when, _ in kept], middles, side="right").clip(1) - 1
        return np.stack([kept[which][1] for which in shown])

    def _small(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return UINT8 [video_px, video_px, 3], upright; what is transparent is white, as in photos.

        Of a GIF FFmpeg makes it white itself, so that the edges mix with white, and its alpha can be dropped.
        """
        square = _on_white(frame).reformat(
            width=self.video_px, height=self.video_px, format="rgb24", interpolation=_SCALING, threads=1
        )
        return _upright(np.asarray(square.to_ndarray(), np.uint8), frame)

    def _check_size(self, width: int, height: int) -> None:
        if not width or not height:  # of what is far too large FFmpeg does not even tell the size
            raise VideoError(
                f"the video has no size, or one of far more than {self.max_pixels} pixels: send a smaller copy"
            )
        if min(width, height) < self.min_px:
            raise VideoError(
                f"the video has {width} x {height} pixels, at least {self.min_px} x {self.min_px} are needed: "
                "send a larger copy"
            )
        if width * height > self.max_pixels:
            raise VideoError(
                f"the video has {width} x {height} pixels, at most {self.max_pixels} in all are decoded: "
                "send a smaller copy"
            )

    def _check_length(self, frames: int, seconds: float) -> None:
        if frames > self.max_frames:
            raise VideoError(f"the video has more than {self.max_frames} frames: send a shorter clip")
        if seconds > self.max_seconds:
            raise VideoError(f"the video lasts longer than {self.max_seconds:g} s: send a shorter clip")


class _Clock:
    """When the frames of a clip are shown, in ticks of its stream.

    Attributes:
        start: when the first frame appears.
        now: when the last one appeared.
        end: when that one is gone.
        seconds: from start to end.
        usable: whether every frame says when it appears, each later than the one before. If not, all the rest means
            nothing, and every frame has to be taken to be shown for as long.
    """

    def __init__(self) -> None:
        self.start = self.now = self.end = 0
        self.seconds = 0.0
        self.usable = True

    def show(self, frame: VideoFrame, count: int) -> None:
        """Take note of the next frame, the ``count``-th."""
        now, tick = frame.pts, frame.time_base
        if now is None or tick is None or (count > 1 and now <= self.now):
            self.usable, self.seconds = False, 0.0
        elif self.usable:
            self.start = now if count == 1 else self.start
            self.now = now
            mean = (now - self.start) // max(1, count - 1)
            self.end = now + (frame.duration or mean or 1)
            self.seconds = float((self.end - self.start) * tick)


def _last_of_each(kept: list[_Kept], cell: int, *, by: bool) -> list[_Kept]:
    """Return the last frame of each cell of so many frames or, ``by`` time, ticks."""
    return [[*frames][-1] for _, frames in groupby(kept, lambda one: one[0][by] // cell)]


class _File(io.BytesIO):
    """A clip, which cannot be read any more when its thread has spent too long on it.

    There are many ways to write a file that FFmpeg reads for hours, and nearly all need much of it read.
    """

    def spend(self, seconds: float) -> None:
        """Give the thread so long from now on; not by the clock: it may wait for others."""
        self.end, self.over = time.thread_time() + seconds, False

    def read(self, size: int | None = -1) -> bytes:
        if self.over:  # FFmpeg asks again before it gives up
            return b""
        self.over = time.thread_time() > self.end
        if self.over:
            raise VideoError("the video takes too long to read: send another copy, of the picture alone")
        return super().read(size)


class _Pipe:
    """A file that can only be read from its start to its end."""

    def __init__(self, file: _File) -> None:
        self.read = file.read


class _Opacity:
    """The second picture of a WebM clip that is partly transparent: its brightness says how opaque each pixel is.

    It lies beside the first one in each packet, coded alike; FFmpeg's own decoders of VP8 and VP9 do not look at it.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.decoder: VideoCodecContext | None = None
        if stream.codec_context.name in ("vp8", "vp9"):
            self.decoder = av.CodecContext.create("vp8" if stream.codec_context.name == "vp8" else "vp9", "r")
            self.decoder.options, self.decoder.thread_count = stream.codec_context.options, 1

    def decode(self, packet: av.Packet[VideoStream]) -> NDArray[np.uint8] | None:
        """Return UINT8 [h, w], 255 being opaque; None where nothing is said, or nothing that can be read."""
        if self.decoder is None or not packet.has_sidedata("matroska_block_additional"):
            return None
        beside = bytes(packet.get_sidedata("matroska_block_additional"))
        kind, picture = beside[:8], beside[8:]
        if kind != _OPACITY or not picture:
            return None
        try:
            frames = self.decoder.decode(av.Packet(picture))
        except av.FFmpegError:
            return None
        shown = None
        for frame in frames:
            plane = frame.planes[0]
            shown = np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
        return shown


def _on_white(frame: VideoFrame) -> VideoFrame:
    """Return a frame without what `_Opacity` says of it. It is not resized yet: hidden colours would get in."""
    opacity = frame.opaque
    if not isinstance(opacity, np.ndarray) or opacity.shape != (frame.height, frame.width) or opacity.min() == 255:
        return frame
    picture = Image.fromarray(frame.reformat(format="rgb24", interpolation=_SCALING, threads=1).to_ndarray())
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=Image.fromarray(opacity))
    return VideoFrame.from_ndarray(np.asarray(white), "rgb24")


def _upright(pixels: NDArray[np.uint8], frame: VideoFrame) -> NDArray[np.uint8]:
    """Return pixels [h, w, 3] turned by quarters and mirrored as a frame's matrix says."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, Buffer):
        return pixels
    right_x, right_y, _, down_x, down_y, *_ = struct.unpack("=9i", bytes(matrix))  # where a step right or down goes
    if abs(right_y) + abs(down_x) > abs(right_x) + abs(down_y):  # rows become columns
        pixels, right_x, down_y = pixels.swapaxes(0, 1), down_x, right_y
    return pixels[:: -1 if down_y < 0 else 1, :: -1 if right_x < 0 else 1]


def _until_damaged(packets: Iterator[av.Packet[VideoStream]]) -> Iterator[av.Packet[VideoStream]]:
    try:
        yield from packets
    except av.FFmpegError:
        return
