"""The demo: short videos made on the spot, so that the whole pipeline can be tried without any download.

Six classes in three pairs. The pairs look different from each other; the two classes of a pair show the same pictures
in opposite order, so that only a head that sees the order of events can tell them apart. Place, colours, background,
speed and noise are drawn anew for each group of two videos, and groups are never cut by a split.
"""

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.dataset import Dataset
from cache.errors import DatasetError
from cache.files import write_bytes_durably
from extract.sources import folder, scenes

GROUPS, CLIPS = 6, 2
"""Groups of a class, and videos of a group."""
FRAMES = (24, 34)
"""Fewest and most frames of a video."""
RATE = 25
"""Frames a second."""

RECIPE = f"version 1: {len(scenes.EVENTS)} classes, {GROUPS} groups, {CLIPS} videos, {FRAMES} frames\n"
"""What the videos follow from; written beside them, so that those of another recipe are made again."""


@dataclass(frozen=True)
class DemoVideo:
    """One video of the demo."""

    class_name: str
    group: int
    clip: int

    @property
    def path(self) -> str:
        """Relative to the demo's folder; both containers occur in every class and group."""
        suffix = ("avi", "mp4")[self.clip % 2]
        return f"{self.class_name}/v_{self.class_name}_g{self.group:02d}_c{self.clip:02d}.{suffix}"

    def frames(self) -> NDArray[np.uint8]:
        """`[F, H, W, 3]` RGB, the same on every call. The scene is the group's, the rest the video's own."""
        seed = (list(scenes.EVENTS).index(self.class_name), self.group)
        scene = scenes.draw_scene(np.random.default_rng(seed))
        random = np.random.default_rng((*seed, self.clip))
        num_frames = int(random.integers(FRAMES[0], FRAMES[1], endpoint=True))
        return scenes.render(self.class_name, scene, num_frames, random)


VIDEOS = tuple(
    DemoVideo(class_name, group, clip)
    for class_name in scenes.EVENTS
    for group in range(1, GROUPS + 1)
    for clip in range(1, CLIPS + 1)
)


def load(name: str, data: Path | None, work: Path) -> tuple[Dataset, Path]:
    """The demo's dataset, its videos made where they are missing, and their folder."""
    home = work / "data" / "demo"
    if data is not None and data.resolve() != home.resolve():
        raise DatasetError(f"the demo makes its own videos in {home}, not in {data}; leave DATA= (--data) out")
    make(home)
    dataset, root = folder.load(name, home)
    return replace(dataset, source="demo"), root


def make(home: Path, videos: Sequence[DemoVideo] = VIDEOS) -> int:
    """Make the videos that are not in `home` yet; returns how many those were. A killed maker is continued."""
    marker = home / "recipe.txt"
    if home.is_dir() and not (marker.is_file() and marker.read_text() == RECIPE):
        shutil.rmtree(home)
    if not marker.is_file():
        write_bytes_durably(marker, RECIPE.encode())
    missing = [video for video in videos if not (home / video.path).is_file()]
    for video in missing:
        write_bytes_durably(home / video.path, encode(video.frames(), Path(video.path).suffix[1:]))
    return len(missing)


def encode(frames: NDArray[np.uint8], container: str) -> bytes:
    """A video file with `frames` (`[F, H, W, 3]` RGB). MPEG-4 part 2: an encoder that every build of FFmpeg has."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("mpeg4", rate=RATE, options={"qscale": "3", "flags": "+qscale"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()
