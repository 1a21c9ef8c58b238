"""Files that grow and pipes are decoded as they come, to the same frames; what cannot be is an error that says so."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.common.errors import DecodeError
from extract.decode import DecodePool, DecodeSettings, VideoEnd, VideoRequest
from extract.decode.follow import FollowedFile
from extract.decode.worker import CAN_BE_FOLLOWED
from tests.helpers.video import encode, index_of

IDLE_SECONDS = 2.0
FRAMES = 300
"""More than FFmpeg looks at before the first one comes, and a block."""


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(DecodeSettings(workers=1)) as pool:
        yield pool


def follow(pool: DecodePool, path: Path, content: bytes, after_first_block: bytes = b"") -> tuple[list[int], VideoEnd]:
    """The pictures that come of a path while another thread writes to it, and the end.

    The writer waits for the first block of pictures before the second part.
    """
    came = threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            file.write(content)
            if after_first_block and came.wait(60):
                file.write(after_first_block)

    writer = threading.Thread(target=write)
    writer.start()
    shown: list[int] = []
    for item in pool.decode([VideoRequest("v", path, follow_seconds=IDLE_SECONDS)]):
        if isinstance(item, VideoEnd):
            came.set()
            writer.join()
            return shown, item
        shown += [index_of(picture) for picture in item.frames_FHW3]
        item.release()
        came.set()
    raise AssertionError


@pytest.mark.parametrize(
    ("suffix", "pipe"),
    [
        ("ts", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("mkv", True), ("ts", False), ("mkv", False))),
    ],
)
def test_what_grows_is_decoded_as_it_comes(pool: DecodePool, tmp_path: Path, suffix: str, pipe: bool) -> None:
    content = encode(tmp_path / f"whole.{suffix}", FRAMES).read_bytes()
    path = tmp_path / "growing"
    os.mkfifo(path) if pipe else path.touch()
    most = 9 * len(content) // 10
    shown, end = follow(pool, path, content[:most], content[most:])
    assert shown == [index % 40 for index in range(FRAMES)]
    assert (end.outcome.status, end.outcome.num_frames) == ("done", FRAMES)


def test_an_index_at_the_end_and_what_is_no_video_are_errors_that_say_what_can_be_followed(pool, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    large = encode(tmp_path / "large.mp4", 20, size=(256, 256), codec="mjpeg", pixel_format="yuvj420p")
    for content in (large.read_bytes(), b"#EXTM3U\n/etc/passwd\n"):
        _, end = follow(pool, tmp_path / "pipe", content)
        assert end.outcome.status == "failed"
        assert end.outcome.reason.endswith(CAN_BE_FOLLOWED)


def test_a_file_is_waited_for_within_its_limits_and_only_files_and_pipes_are_read(tmp_path: Path) -> None:
    path, waited = tmp_path / "growing", list[int]()
    path.write_bytes(b"one")

    def tick() -> None:
        waited.append(len(waited))
        if len(waited) == 1:
            with path.open("ab") as file:
                file.write(b"two")

    followed = FollowedFile(path, 0.15, 6, tick)
    assert [followed.read(10) for _ in range(4)] == [b"one", b"two", b"", b""]
    assert 2 <= len(waited) <= 4
    path.write_bytes(b"seven..")
    with pytest.raises(DecodeError, match="more than 6 bytes"):
        FollowedFile(path, 0.1, 6, tick).read(10)
    for where, reason in ((tmp_path, "neither a regular file nor a pipe"), (tmp_path / "none", "cannot be opened")):
        with pytest.raises(DecodeError, match=reason):
            FollowedFile(where, 0.1, 1, tick)
