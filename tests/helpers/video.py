"""Small videos of any kind, encoded on the spot: containers, codecs, rotation, sound, odd times, odd sizes.

Every picture is grey with a brighter square in its upper left quarter; the grey grows from frame to frame, so that
order, number and orientation can be read off the pixels.
"""

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

KINDS = {
    "avi": "mpeg4",
    "mp4": "libx264",
    "mkv": "libx264",
    "ts": "mpeg2video",
    "mov": "mpeg4",
    "flv": "libx264",
    "webm": "libvpx-vp9",
    "mpg": "mpeg2video",
}
"""A codec for each container, by the file's suffix."""

_FORMATS = {"ts": "mpegts", "mkv": "matroska", "mpg": "mpeg", "wmv": "asf", "m2v": "mpeg2video"}
_FAST = {"libx264": {"preset": "ultrafast"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}}


def picture(index: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """The picture of one frame, [H, W, 3]."""
    grey = 20 + 4 * (index % 40)
    picture_HW3 = np.full((height, width, 3), grey, np.uint8)
    picture_HW3[: height // 2, : width // 2] = grey + 50
    return picture_HW3


def index_of(picture_HW3: NDArray[np.uint8]) -> int:
    """Which frame a decoded picture was (up to a multiple of 40)."""
    height, width, _ = picture_HW3.shape
    grey = np.median(picture_HW3[height // 2 + 2 :, width // 2 + 2 :].astype(float))
    return round((grey - 20) / 4)


def encode(
    path: Path,
    frames: int = 12,
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "",
    pixel_format: str = "yuv420p",
    rate: int = 25,
    times: Sequence[int] | None = None,
    sound: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video of `frames` pictures of `size` (H, W); `times` are presentation times in 1/1000 s."""
    suffix = path.suffix[1:]
    codec = codec or KINDS[suffix]
    with av.open(str(path), "w", format=_FORMATS.get(suffix, suffix), options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=_FAST.get(codec, {}) | (options or {}))
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            _add_silence(container)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24").reformat(format=pixel_format)
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, rate) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def encode_sound(path: Path, cover: bool = False) -> Path:
    """A file of sound alone, or of sound and a cover picture."""
    with av.open(str(path), "w") as container:
        if cover:
            stream = container.add_stream("png", rate=1)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
            stream.disposition = Disposition.attached_pic
        _add_silence(container)
        if cover:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")):
                packet.pts = packet.dts = 0
                container.mux(packet)
    return path


def copy_streams(source: Path, target: Path, *, start: float = 0.0, end: float = math.inf, late: float = 0.0) -> Path:
    """What `ffmpeg -ss START -to END -c copy` writes: from the key frame before `start`; the picture `late` seconds."""
    suffix = target.suffix[1:]
    with av.open(str(source)) as reader, av.open(str(target), "w", format=_FORMATS.get(suffix, suffix)) as writer:
        streams = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
        reader.seek(int(start * av.time_base))
        for packet in reader.demux():
            if packet.dts is None or packet.dts * packet.time_base >= end:
                continue
            is_video = packet.stream.type == "video"
            shift = int((start - late * is_video) / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = streams[packet.stream_index]
            writer.mux(packet)
    return target


def _add_silence(container: av.container.OutputContainer) -> None:
    sound = container.add_stream("aac", rate=48000, layout="mono")
    for index in range(20):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 1024 * index, Fraction(1, 48000)
        container.mux(sound.encode(frame))
    container.mux(sound.encode(None))


def rotate(path: Path, clockwise: int) -> Path:
    """Set the rotation in degrees (90, 180, 270) that players apply to an mp4 or mov, by its track's matrix."""
    one = 1 << 16
    matrix = {
        90: (0, one, 0, -one, 0, 0, 0, 0, 1 << 30),
        180: (-one, 0, 0, 0, -one, 0, 0, 0, 1 << 30),
        270: (0, -one, 0, one, 0, 0, 0, 0, 1 << 30),
    }[clockwise]
    return patch_box(path, b"tkhd", 44, struct.pack(">9i", *matrix))


def claim_size(path: Path, height: int, width: int) -> Path:
    """Make an AVI's headers declare another picture size."""
    content = bytearray(path.read_bytes())
    main, format_ = content.index(b"avih") + 8, content.index(b"strf") + 8
    struct.pack_into("<II", content, main + 32, width, height)
    struct.pack_into("<ii", content, format_ + 4, width, height)
    path.write_bytes(content)
    return path


def claim_frames(path: Path, frames: int) -> Path:
    """Make an AVI's headers declare a number of frames."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"avih") + 8 + 16, frames)
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, frames)
    path.write_bytes(content)
    return path


def patch_box(path: Path, name: bytes, offset: int, content: bytes) -> Path:
    """Overwrite part of an mp4 box, `offset` bytes after its name."""
    file = bytearray(path.read_bytes())
    start = file.index(name) + offset
    file[start : start + len(content)] = content
    path.write_bytes(file)
    return path
