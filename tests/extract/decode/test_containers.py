"""Which files are opened at all."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DecodeError
from extract.decode.containers import FFMPEG_NAMES, container_of, open_regular
from tests.helpers.decoding import decode_here
from tests.helpers.processes import open_descriptors
from tests.helpers.untrusted import Watch
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


def box(name: str, content: bytes = bytes(32)) -> bytes:
    return (8 + len(content)).to_bytes(4) + name.encode() + content


FIRST_BOXES = ("sidx", "styp", "uuid", "emsg", "udta", "junk", "meta", "pdin", "free", "mfra", "pnot", "xyz1")


@pytest.mark.parametrize("name", FIRST_BOXES)
def test_an_mp4_may_begin_with_any_box(name: str, tmp_path: Path) -> None:
    path = encode(
        tmp_path / "video.mp4", 5, container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    )
    path.write_bytes(box(name) + path.read_bytes())
    assert len(decode_here(path).frames_FHW3) == 5


@pytest.mark.parametrize("zeros", [4, 16, 2048])
@pytest.mark.parametrize("suffix", ["mpg", "m2v"])
def test_zeros_before_a_stream_are_passed_over(suffix: str, zeros: int, tmp_path: Path) -> None:
    video = encode(tmp_path / f"video.{suffix}", 5, codec="mpeg2video")
    video.write_bytes(bytes(zeros) + video.read_bytes())
    assert len(decode_here(video).frames_FHW3) == 5


@pytest.mark.parametrize(("before", "after"), [(0, 16), (4, 0)])
def test_packets_of_a_transport_stream_may_be_longer(before: int, after: int, tmp_path: Path) -> None:
    video = encode(tmp_path / "video.ts", 25)
    content = video.read_bytes()
    packets = [content[start : start + 188] for start in range(0, len(content), 188)]
    video.write_bytes(b"".join(bytes(before) + packet + bytes(after) for packet in packets))
    assert len(decode_here(video).frames_FHW3) == 25


SCRIPTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{name}'\n",
    "DASH": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp2t">'
    '<Representation id="0" bandwidth="1"><BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 33\n",
}
BEFORE = {
    "nothing": b"",
    "BOM": b"\xef\xbb\xbf",
    "white space": b" \r\n\t",
    "zeros": bytes(64),
    "junk": b"\x89\xff" * 20,
    "a box": box("free", b""),
    "a pack": b"\0\0\1\xba\x44" + bytes(9),
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_scripts_open_no_other_file_whatever_stands_around_them(kind: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    encode(inside / "other.ts", 5)
    watch = Watch(inside)
    for before in BEFORE.values():
        for after in BEFORE.values():
            script = inside.parent / "script.mp4"
            script.write_bytes(before + SCRIPTS[kind].format(name="inside/other.ts").encode() + after)
            with pytest.raises(DecodeError, match=r"not a known video container|damaged \w+ header|no video stream"):
                decode_here(script)
    assert not watch.touched()
    watch.close()


@given(st.binary(max_size=600))
def test_any_bytes_are_a_known_container_or_none(head: bytes) -> None:
    with suppress(DecodeError):
        assert container_of(head) in FFMPEG_NAMES


def test_a_transport_stream_may_begin_in_the_middle_of_a_packet(tmp_path: Path) -> None:
    content = encode(tmp_path / "video.ts", 30).read_bytes()
    assert container_of(content[100:4196]) == "mpegts"
    with pytest.raises(DecodeError):
        container_of(content[:300])  # too short to tell


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
