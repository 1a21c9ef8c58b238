"""Files without their end are found; whole ones that differ from their header are not doubted."""

import os
import struct
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.decode import DecodePool, DecodeSettings
from extract.decode.completeness import missing_bytes
from extract.decode.containers import FFMPEG_NAMES, open_regular
from tests.helpers.decoding import by_path, receive
from tests.helpers.video import KINDS, copy_streams, encode, encode_sound


def finding(path: Path) -> str:
    descriptor, container = open_regular(path, 1 << 40)
    try:
        return missing_bytes(descriptor, container)
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole video in each container."""
    folder = tmp_path_factory.mktemp("whole")
    return {suffix: encode(folder / f"whole.{suffix}", 40) for suffix in KINDS}


@pytest.mark.parametrize("suffix", KINDS)
def test_a_cut_file_is_found_by_its_lengths(suffix: str, whole: dict[str, Path], tmp_path: Path) -> None:
    content, chance = whole[suffix].read_bytes(), Random(suffix)
    cut = tmp_path / f"cut.{suffix}"
    assert finding(whole[suffix]) == ""
    for _ in range(20):
        length = chance.randrange(len(content) // 5, len(content) - 9)
        if (suffix == "ts" and length % 188 == 0) or 0 <= length - content.find(b"moov") + 4 < 8:
            continue  # whole packets, and a box that does not say its length, declare nothing that is missing
        cut.write_bytes(content[:length])
        assert finding(cut).startswith("cut short: "), length


def test_what_stands_behind_the_end_is_no_matter(whole: dict[str, Path], tmp_path: Path) -> None:
    for suffix in set(KINDS) - {"ts"}:
        longer = tmp_path / f"longer.{suffix}"
        longer.write_bytes(whole[suffix].read_bytes() + bytes(500) + b"TAG" + b"\xff" * 500)
        assert finding(longer) == ""


def test_a_transport_stream_cut_between_packets_is_found_where_lengths_are_declared(tmp_path: Path) -> None:
    declared = {"omit_video_pes_length": "0"}
    content = encode(tmp_path / "whole.ts", 3, size=(480, 640), container_options=declared).read_bytes()
    packets, cut = len(content) // 188, tmp_path / "cut.ts"
    findings = []
    for count in range(5, packets + 1):
        cut.write_bytes(content[: count * 188])
        findings.append(finding(cut))
    assert findings[-1] == ""
    assert sum("the last packet of its stream 256 lacks" in text for text in findings) > packets // 2


def test_an_index_of_segments_is_a_declaration(tmp_path: Path) -> None:
    options = {"movflags": "dash+global_sidx+frag_keyframe+empty_moov"}
    path = encode(tmp_path / "dash.mp4", 60, options={"g": "12"}, container_options=options)
    content = path.read_bytes()
    assert finding(path) == ""
    path.write_bytes(content[: content.rindex(b"moof") - 4])
    assert "its index (sidx) needs" in finding(path)


@settings(max_examples=50)
@given(st.sampled_from(sorted(FFMPEG_NAMES)), st.binary(max_size=300))
def test_any_bytes_have_an_answer(container: str, content: bytes) -> None:
    starts = {"avi": b"RIFF", "matroska": b"\x18\x53\x80\x67", "mpeg": b"\0\0\1\xba", "ogg": b"OggS"}
    descriptor = os.memfd_create("file")
    try:
        os.write(descriptor, starts.get(container, b"") + content)
        assert isinstance(missing_bytes(descriptor, container), str)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("container", "content"),
    [
        ("flv", b"FLV\x01\x05\x00\x08filesize\x00" + struct.pack(">d", float("-inf"))),
        ("flv", b"FLV\x01\x05\x00\x08filesize\x00" + struct.pack(">d", float("nan"))),
        ("mov", struct.pack(">I4sQ", 1, b"free", (1 << 64) - 1) + bytes(16)),
        ("mov", struct.pack(">I4sQ", 1, b"free", (1 << 63) - 1) + bytes(16)),
    ],
)
def test_absurd_lengths_have_an_answer(tmp_path: Path, container: str, content: bytes) -> None:
    (tmp_path / "video").write_bytes(content)
    with (tmp_path / "video").open("rb") as file:
        assert missing_bytes(file.fileno(), container) == ""


def test_doubt_comes_from_what_is_broken(whole: dict[str, Path], tmp_path: Path) -> None:
    with_sound = encode(tmp_path / "sound.mp4", 60, sound=True, options={"g": "12"})
    reordered = encode(tmp_path / "reordered.ts", 60, codec="libx264", options={"bf": "3", "preset": "medium"})
    hour = [0, *(3_600_000 + 40 * index for index in range(1, 30))]
    cut = {suffix: tmp_path / f"cut.{suffix}" for suffix in ("avi", "mkv", "ts", "mpg", "flv", "mp4")}
    for suffix, path in cut.items():
        path.write_bytes(whole[suffix].read_bytes()[: whole[suffix].stat().st_size * 2 // 3 | 1])
    expected = {
        copy_streams(
            with_sound, tmp_path / "edit-list.mp4", start=0.9, end=1.9
        ): "done: decoded 25 frames, 36 declared",
        copy_streams(reordered, tmp_path / "empty-chunks.avi"): "done: decoded 60 frames, 1440 declared",
        copy_streams(with_sound, tmp_path / "late.mkv", late=3.0): "done: ",
        encode_sound(tmp_path / "cover.mp4", cover=True): "failed: no video stream (found: audio, cover picture)",
        encode(tmp_path / "hour.mkv", 30, times=hour): "suspect: times jump by +3600 s at frame 1; decoded 1.2 s of",
        **{path: "suspect: cut short: its " for suffix, path in cut.items() if suffix not in ("mp4", "flv")},
        cut["flv"]: "suspect: cut short: by its metadata it needs",
        cut[
            "mp4"
        ]: "failed: damaged mov header: Invalid data found when processing input; cut short: its box mdat needs",
    }
    with DecodePool(DecodeSettings(workers=2)) as pool:
        received = receive(pool, by_path(expected))
    for path, text in expected.items():
        outcome = received[path.name].outcome
        assert outcome is not None
        assert f"{outcome.status}: {outcome.reason}".startswith(text), path.name
    assert max(received["hour.mkv"].times) < 2, "clips at another rate see the video"


@pytest.mark.shared
def test_real_files_are_whole_whatever_their_headers_count(shared: Path) -> None:
    """J-HMDB declares 48 and holds 40; HMDB-51 has a last packet without a picture, UCF-101 four of 7 bytes."""
    paths = sorted((shared / "data" / "jhmdb-train").rglob("*.avi"))[::50]
    paths += sorted((shared / "data" / "hmdb51-sample").rglob("*.avi"))
    paths += (shared / "data" / "ucf101-sample").rglob("v_JumpingJack_g20_c01.avi")
    with DecodePool(DecodeSettings(workers=2)) as pool:
        received = receive(pool, by_path(paths))
    assert {name: video.outcome.reason for name, video in received.items() if video.outcome.status != "done"} == {}
    assert any("declared" in video.outcome.reason for video in received.values())
