"""The demo: short videos drawn with numpy and encoded on the spot, to try the whole pipeline without any download.

Six classes in three pairs. The pairs look different from each other; the two classes of a pair show the same pictures
in opposite order, so that only a head that sees the order of events can tell them apart. Place, colours, background,
speed and noise are drawn anew for each group of two videos, and groups are never cut by a split.

Shapes: F frames, H rows, W columns.
"""

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.common.commands import source_of
from cache.common.errors import DatasetError
from cache.common.files import write_bytes_durably
from cache.dataset import SPLITS, Dataset, group_of, video_id
from extract.datasets import folder
from extract.datasets.paths import find_videos

HEIGHT, WIDTH = 96, 128
GROUPS, CLIPS, TEST_GROUPS = 6, 2, 2
"""Groups in a class, videos in a group, and groups of a class for testing."""
FRAMES = (24, 34)
"""Fewest and most frames of a video."""
RATE = 25
"""Frames a second."""

Picture = NDArray[np.float32]
"""`[H, W, 3]`, 0..1."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the clips of one group share."""

    background: Picture
    center: tuple[float, float]
    """Row and column of the shape's middle, in pixels."""
    radius: float
    """Its usual radius, in pixels."""
    color: NDArray[np.float32]
    """`[3]`: colour of shapes that keep it."""
    period: float
    """Width of its pattern, in pixels."""


def draw_scene(random: np.random.Generator) -> Scene:
    """A scene drawn at random: background, place, size, colour."""
    corners = random.uniform(0.2, 0.8, (2, 2, 3)).astype(np.float32)
    down = np.linspace(0, 1, HEIGHT, dtype=np.float32)[:, None, None]
    across = np.linspace(0, 1, WIDTH, dtype=np.float32)[None, :, None]
    top, bottom = (row[0] * (1 - across[0]) + row[1] * across[0] for row in corners)
    return Scene(
        background=top * (1 - down) + bottom * down,
        center=(HEIGHT / 2 + random.uniform(-10, 10), WIDTH / 2 + random.uniform(-12, 12)),
        radius=random.uniform(20, 32),
        color=random.uniform(0.4, 1, 3).astype(np.float32),
        period=random.uniform(7, 11),
    )


def disc_of_size(scene: Scene, done: float) -> Picture:
    """A striped disc that is small at `done=0` and large at `done=1`."""
    return _paint(scene, scene.radius * (0.4 + 1.0 * done), scene.color * _patterns(scene)[0])


def red_to_blue(scene: Scene, done: float) -> Picture:
    """A plain disc that is reddish at `done=0` and bluish at `done=1`."""
    red, blue = np.array([[0.85, 0.12, 0.1], [0.1, 0.2, 0.9]], dtype=np.float32)
    return _paint(scene, scene.radius, 0.85 * (red * (1 - done) + blue * done) + 0.15 * scene.color)


def stripes_to_checks(scene: Scene, done: float) -> Picture:
    """A square whose pattern fades from stripes at `done=0` to checks at `done=1`."""
    stripes, checks = _patterns(scene)
    return _paint(scene, scene.radius, scene.color * (stripes * (1 - done) + checks * done), square=True)


EVENTS: dict[str, tuple[Callable[[Scene, float], Picture], bool]] = {
    "disc_grows": (disc_of_size, False),
    "disc_shrinks": (disc_of_size, True),
    "red_then_blue": (red_to_blue, False),
    "blue_then_red": (red_to_blue, True),
    "stripes_then_checks": (stripes_to_checks, False),
    "checks_then_stripes": (stripes_to_checks, True),
}
"""For each class its pictures, and whether they come in reverse order."""


def render(name: str, scene: Scene, num_frames: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """`[F, H, W, 3]` RGB frames of class `name`. When the event happens and how fast is drawn from `random`."""
    picture, backwards = EVENTS[name]
    middle, length = random.uniform(0.35, 0.65), random.uniform(0.3, 0.6)
    noise = random.uniform(0.01, 0.05)
    frames = []
    for time in np.linspace(0, 1, num_frames):
        done = min(max((float(time) - middle) / length + 0.5, 0.0), 1.0)
        frame = picture(scene, 1 - done if backwards else done) + noise * random.standard_normal(
            (HEIGHT, WIDTH, 3), np.float32
        )
        frames.append(np.round(np.clip(frame, 0, 1) * 255).astype(np.uint8))
    return np.stack(frames)


def _offsets(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows `[H, 1]` and columns `[1, W]` counted from the shape's middle."""
    rows, columns = np.arange(HEIGHT, dtype=np.float32)[:, None], np.arange(WIDTH, dtype=np.float32)[None, :]
    return rows - scene.center[0], columns - scene.center[1]


def _patterns(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Stripes `[H, 1, 1]` and checks `[H, W, 1]`, 0 or 1."""
    down, across = (offsets % scene.period < scene.period / 2 for offsets in _offsets(scene))
    return down.astype(np.float32)[..., None], (down ^ across).astype(np.float32)[..., None]


def _paint(scene: Scene, radius: float, color: NDArray[np.float32], *, square: bool = False) -> Picture:
    """The background with a disc or square of `color` (`[3]` or a picture) on it, its edge one pixel soft."""
    rows, columns = _offsets(scene)
    distance = np.maximum(abs(rows), abs(columns)) if square else np.hypot(rows, columns)
    inside = np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)[..., None]
    return scene.background * (1 - inside) + color * inside


RECIPE = f"version 1: {len(EVENTS)} classes, {GROUPS} groups, {CLIPS} videos, {FRAMES} frames\n"
"""Everything the videos depend on; written beside them, so that videos of another recipe are made again."""


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
        seed = (list(EVENTS).index(self.class_name), self.group)
        scene = draw_scene(np.random.default_rng(seed))
        random = np.random.default_rng((*seed, self.clip))
        num_frames = int(random.integers(FRAMES[0], FRAMES[1], endpoint=True))
        return render(self.class_name, scene, num_frames, random)


VIDEOS = tuple(
    DemoVideo(class_name, group, clip)
    for class_name in EVENTS
    for group in range(1, GROUPS + 1)
    for clip in range(1, CLIPS + 1)
)


def load(name: str, data: Path | None, work: Path) -> tuple[Dataset, Path]:
    """The demo's dataset, its videos made where they are missing, and their folder."""
    home = work / "data" / "demo"
    if data is not None and data.resolve() != home.resolve():
        where = source_of("--data")
        raise DatasetError(f"the demo makes its own videos in {home}, not in {data}, given by {where}; leave that out")
    make(home)
    root = home.resolve()
    return replace(folder.arrange(name, find_videos(root), str(root), _halves()), source="demo"), root


def _halves() -> folder.Known:
    """Two groups of each class for testing, so that no class has few: all its groups are known beforehand."""
    groups = {name: sorted({group_of(video_id(v.path)) for v in VIDEOS if v.class_name == name}) for name in EVENTS}
    return {
        split: {
            group: "test" if place < TEST_GROUPS else "train"
            for of_class in groups.values()
            for place, group in enumerate(sorted(of_class, key=lambda group: folder.draw(group, split)))
        }
        for split in SPLITS
    }


def make(home: Path, videos: Sequence[DemoVideo] = VIDEOS) -> int:
    """Make the videos that are not in `home` yet; returns their number. After a kill, the next call goes on."""
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
