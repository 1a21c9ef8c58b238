"""Which files are opened at all."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DecodeError
from extract.decode.containers import FFMPEG_NAMES, container_of, open_regular
from tests.helpers.processes import open_descriptors
from tests.helpers.video import KINDS, encode

FAMILIES = {
    "avi": "avi",
    "mp4": "mov",
    "mov": "mov",
    "mkv": "matroska",
    "webm": "matroska",
    "ts": "mpegts",
    "flv": "flv",
    "mpg": "mpeg",
}

NOT_VIDEOS = {
    "playlist": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
    "concat script": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "text": b"hello",
    "one byte": b"G",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "sound": b"RIFF\x00\x00\x00\x00WAVEfmt ",
    "DASH manifest": b'<?xml version="1.0"?><MPD></MPD>',
    "SDP": b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
}


@pytest.mark.parametrize("suffix", KINDS)
def test_containers_are_recognised_by_their_first_bytes(tmp_path: Path, suffix: str) -> None:
    video = encode(tmp_path / f"video.{suffix}", 2)
    assert container_of(video.read_bytes()[:4096]) == FAMILIES[suffix]


@pytest.mark.parametrize("kind", NOT_VIDEOS)
def test_what_is_not_a_container_is_refused_whatever_its_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(NOT_VIDEOS[kind])
    with pytest.raises(DecodeError, match="not a known video container"):
        open_regular(path, 1 << 30)


@given(st.binary(max_size=600))
def test_any_bytes_are_a_known_container_or_none(head: bytes) -> None:
    assert container_of(head) in {None, *FFMPEG_NAMES}


def test_a_transport_stream_may_begin_in_the_middle_of_a_packet(tmp_path: Path) -> None:
    content = encode(tmp_path / "video.ts", 30).read_bytes()
    assert container_of(content[100:4196]) == "mpegts"
    assert container_of(content[:300]) is None, "too short to tell"


def test_files_that_cannot_be_read_are_refused_with_the_reason(tmp_path: Path) -> None:
    fifo, loop = tmp_path / "fifo.mp4", tmp_path / "loop.mp4"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    (tmp_path / "empty.mp4").touch()
    reasons = {
        fifo: "not a regular file",
        tmp_path: "not a regular file",
        Path("/dev/zero"): "not a regular file",
        loop: "cannot be opened: Too many levels",
        tmp_path / "missing.mp4": "cannot be opened: No such file",
        tmp_path / "empty.mp4": "empty file",
    }
    for path, reason in reasons.items():
        with pytest.raises(DecodeError, match=reason):
            open_regular(path, 1 << 30)


def test_files_over_the_limit_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "video.mp4", 2)
    with pytest.raises(DecodeError, match=r"the limit is 100 bytes"):
        open_regular(path, 100)
    descriptor, container = open_regular(path, path.stat().st_size)
    os.close(descriptor)
    assert container == "mov"


def test_no_descriptor_is_left_open_by_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    before = open_descriptors()
    for _ in range(20):
        with pytest.raises(DecodeError):
            open_regular(tmp_path / "text.mp4", 1 << 30)
    assert open_descriptors() == before
