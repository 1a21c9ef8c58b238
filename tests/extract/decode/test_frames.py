"""The decoder contract, over every decoder that is installed; and what becomes of each kind of input."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DecodeError
from extract.decode import Limits
from extract.decode.backends import (
    DECODER_NAMES,
    DEFAULT_DECODER,
    MissingDecoderError,
    decoder_version,
    load_decoder,
    require_decoder,
)
from extract.decode.backends.protocol import Header
from extract.decode.frames import DecodeCounts, FrameReader, Verdict, judge, opened
from extract.decode.timeline import Sampling
from tests.helpers.decoding import Decoded, decode_here, without
from tests.helpers.video import (
    KINDS,
    claim_frames,
    claim_size,
    encode,
    encode_sound,
    index_of,
    rotate,
)

FAILS_ON = {("decord", "ts"), ("torchcodec", "mpg"), ("torchcodec", "ts")}
"""Healthy files that a decoder does not decode completely: docs/videos.md."""

OTHER_COUNTS = {"decord": range(5), "torchcodec": (-1, 0)}
"""Frames more or less in AVI files with B-frames: decord repeats the last one, torchcodec leaves it out."""


def installed() -> Iterator[str]:
    for name in DECODER_NAMES:
        try:
            load_decoder(name)
        except MissingDecoderError:
            continue
        yield name


DECODERS = list(installed())


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A healthy video in each container."""
    folder = tmp_path_factory.mktemp("videos")
    return {suffix: encode(folder / f"video.{suffix}", 40, size=(50, 66)) for suffix in KINDS}


class TestContract:
    @pytest.mark.parametrize("suffix", KINDS)
    def test_frames_are_those_of_the_default_decoder(self, decoder: str, suffix: str, videos: dict[str, Path]) -> None:
        if (decoder, suffix) in FAILS_ON:
            pytest.skip(f"{decoder} does not decode this container completely")
        theirs, reference = decode_here(videos[suffix], decoder), decode_here(videos[suffix])
        assert theirs.frames_FHW3.shape == (40, 50, 66, 3)
        assert theirs.declared in (40, None)
        np.testing.assert_array_equal(theirs.frames_FHW3, reference.frames_FHW3)
        np.testing.assert_allclose(theirs.pts_seconds, reference.pts_seconds, atol=1e-4)

    def test_frames_come_in_presentation_order(self, decoder: str, tmp_path: Path) -> None:
        video = encode(tmp_path / "reordered.mp4", 30, options={"bf": "3", "preset": "medium"})
        decoded = decode_here(video, decoder)
        assert [index_of(frame) for frame in decoded.frames_FHW3] == list(range(30))

    @pytest.mark.parametrize("block_frames", [1, 7, 40, 64])
    def test_blocks_hold_the_same_frames_whatever_their_size(
        self, decoder: str, block_frames: int, videos: dict[str, Path]
    ) -> None:
        whole, blocks = (
            decode_here(videos["avi"], decoder),
            decode_here(videos["avi"], decoder, block_frames=block_frames),
        )
        np.testing.assert_array_equal(blocks.frames_FHW3, whole.frames_FHW3)
        np.testing.assert_array_equal(blocks.pts_seconds, whole.pts_seconds)

    def test_times_of_a_variable_rate_are_kept(self, decoder: str, tmp_path: Path) -> None:
        times = [100, 140, 160, 300, 1100, 1101, 1600, 3100]
        decoded = decode_here(encode(tmp_path / "vfr.mkv", 8, times=times), decoder)
        np.testing.assert_allclose(decoded.pts_seconds, (np.array(times) - 100) / 1000, atol=1e-4)

    @pytest.mark.parametrize(("clockwise", "bright_corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
    def test_rotation_is_applied(
        self, decoder: str, clockwise: int, bright_corner: tuple[int, int], tmp_path: Path
    ) -> None:
        video = rotate(encode(tmp_path / "turned.mp4", 3, size=(50, 66)), clockwise)
        frame_HW3 = decode_here(video, decoder).frames_FHW3[0]
        assert frame_HW3.shape == ((50, 66, 3) if clockwise == 180 else (66, 50, 3))
        corners = {(row, column): int(frame_HW3[row, column].mean()) for row in (0, -1) for column in (0, -1)}
        assert max(corners, key=corners.__getitem__) == bright_corner

    @pytest.mark.parametrize("width", [48, 54, 64, 66, 86, 96, 128])
    def test_rows_are_not_skewed_by_padding(self, decoder: str, width: int, tmp_path: Path) -> None:
        video = encode(tmp_path / "narrow.avi", 2, size=(34, width))
        np.testing.assert_array_equal(decode_here(video, decoder).frames_FHW3, decode_here(video).frames_FHW3)

    @pytest.mark.parametrize(
        ("codec", "pixel_format"),
        [("libx264", "yuv420p10le"), ("ffv1", "gray"), ("ffv1", "bgr0"), ("mjpeg", "yuvj420p")],
    )
    def test_every_pixel_format_becomes_8_bit_rgb(
        self, decoder: str, codec: str, pixel_format: str, tmp_path: Path
    ) -> None:
        video = encode(tmp_path / "video.mkv", 4, codec=codec, pixel_format=pixel_format)
        frames_FHW3 = decode_here(video, decoder).frames_FHW3
        np.testing.assert_array_equal(frames_FHW3, decode_here(video).frames_FHW3)
        assert abs(int(frames_FHW3[0, 5, 5].mean()) - 70) < 4
        assert abs(int(frames_FHW3[0, -5, -5].mean()) - 20) < 4

    def test_sampling_keeps_the_chosen_frames(self, decoder: str, videos: dict[str, Path]) -> None:
        whole = decode_here(videos["mp4"], decoder)
        first = decode_here(videos["mp4"], decoder, sampling=Sampling(max_frames=5))
        np.testing.assert_array_equal(first.frames_FHW3, whole.frames_FHW3[:5])
        assert first.counts.stopped
        slower = decode_here(videos["mp4"], decoder, sampling=Sampling(fps=5))
        np.testing.assert_array_equal(slower.frames_FHW3, whole.frames_FHW3[::5])
        assert slower.counts.decoded == 40

    def test_packets_that_the_decoder_still_holds_are_not_lost(self, decoder: str, tmp_path: Path) -> None:
        video = encode(tmp_path / "reordered.mp4", 30, options={"bf": "3", "preset": "medium"})
        whole = decode_here(video, decoder)
        first = decode_here(video, decoder, sampling=Sampling(max_frames=7))
        assert (whole.doubt, first.doubt) == ("", "")

    def test_a_file_of_sound_is_refused(self, decoder: str, tmp_path: Path) -> None:
        with pytest.raises(DecodeError, match=r"no video stream \(found: audio\)"):
            decode_here(encode_sound(tmp_path / "sound.mp4"), decoder)

    def test_one_frame_is_a_video(self, decoder: str, tmp_path: Path) -> None:
        decoded = decode_here(encode(tmp_path / "one.mp4", 1), decoder)
        assert decoded.frames_FHW3.shape[0] == 1
        assert decoded.pts_seconds.tolist() == [0.0]

    def test_a_picture_larger_than_allowed_is_refused_by_its_header(self, decoder: str, tmp_path: Path) -> None:
        video = claim_size(encode(tmp_path / "huge.avi", 2, codec="ffv1", pixel_format="bgr0"), 15_000, 15_000)
        with pytest.raises(DecodeError, match="pictures of 15000 x 15000, the limit is 35389440 pixels"):
            decode_here(video, decoder)
        with pytest.raises(DecodeError, match="pictures of 64 x 48, the limit is 100 pixels"):
            decode_here(encode(tmp_path / "small.avi", 2), decoder, limits=Limits(pixels=100))

    def test_a_file_named_otherwise_than_it_is_is_decoded(
        self, decoder: str, videos: dict[str, Path], tmp_path: Path
    ) -> None:
        named = tmp_path / "playlist.m3u8"
        named.write_bytes(videos["avi"].read_bytes())
        assert len(decode_here(named, decoder).frames_FHW3) == 40

    @pytest.mark.shared
    def test_real_videos_have_the_same_pixels(self, decoder: str, shared: Path) -> None:
        if decoder == DEFAULT_DECODER:
            pytest.skip("it is what the others are compared with")
        folders = ("ucf101-sample/UCF-101/*/*_g01_c01.avi", "hmdb51-sample/hmdb51_org/*/*.avi", "kinetics-sample/*.mp4")
        for path in [path for pattern in folders for path in sorted((shared / "data").glob(pattern))][::12]:
            theirs, reference = decode_here(path, decoder), decode_here(path)
            frames = len(reference.frames_FHW3)
            assert len(theirs.frames_FHW3) - frames in OTHER_COUNTS.get(decoder, (0,)), path
            both = min(frames, len(theirs.frames_FHW3))
            np.testing.assert_array_equal(theirs.frames_FHW3[:both], reference.frames_FHW3[:both])
            assert (np.diff(theirs.pts_seconds) > 0).all()


def outcome(decoded: Decoded, errors: int = 0) -> Verdict:
    header = Header(width=1, height=1, frame_seconds=0.04, declared_frames=decoded.declared, declared_seconds=None)
    return judge(decoded.counts, header, errors)


def header(declared: int | None, seconds: float | None = None) -> Header:
    return Header(width=64, height=48, frame_seconds=0.04, declared_frames=declared, declared_seconds=seconds)


class TestJudge:
    @pytest.mark.parametrize(
        ("decoded", "declared", "status"),
        [(100, 100, "done"), (100, None, "done"), (99, 100, "done"), (430, 427, "done"), (40, 48, "done"),
         (48, 40, "done"), (12, 1_000_000, "done"), (0, 100, "failed"), (0, None, "failed")],
    )  # fmt: skip
    def test_a_header_that_counts_otherwise_is_noted(self, decoded: int, declared: int | None, status: str) -> None:
        verdict = judge(DecodeCounts(decoded=decoded, kept=decoded), header(declared), 0)
        assert verdict.status == status
        assert bool(verdict.reason) == (status == "failed" or declared not in (None, decoded))

    def test_errors_make_a_video_suspect(self) -> None:
        verdict = judge(DecodeCounts(decoded=100), header(100), 3)
        assert verdict == Verdict(status="suspect", reason="3 decoder errors")

    def test_a_shorter_time_than_declared_is_noted(self) -> None:
        noted = Verdict(status="done", reason="decoded 4.0 s of 10.0 s declared")
        assert judge(DecodeCounts(decoded=100, seconds=4.0), header(None, 10.0), 0) == noted
        assert not judge(DecodeCounts(decoded=100, seconds=9.5), header(None, 10.0), 0).reason, "sound is often longer"

    def test_what_is_broken_comes_before_what_is_noted(self) -> None:
        counts = DecodeCounts(decoded=90, jumps="times jump by +3600 s at frame 1")
        verdict = judge(counts, replace(header(100), cut_short="cut short: gone"), 1, "2 packets without a frame")
        assert verdict == Verdict(
            status="suspect",
            reason="cut short: gone; 1 decoder error; 2 packets without a frame; times jump by +3600 s at frame 1; "
            "decoded 90 frames, 100 declared",
        )

    def test_counts_mean_nothing_where_decoding_was_stopped_early(self) -> None:
        assert judge(DecodeCounts(decoded=5, kept=5, stopped=True, seconds=0.2), header(100, 4.0), 0).status == "done"

    @given(st.integers(0, 10**6), st.none() | st.integers(1, 10**6), st.integers(0, 100), st.text(max_size=5))
    def test_a_doubt_is_always_explained(self, decoded: int, declared: int | None, errors: int, note: str) -> None:
        verdict = judge(DecodeCounts(decoded=decoded), header(declared), errors, note)
        assert verdict.status in ("done", "suspect", "failed")
        assert verdict.status == "done" or verdict.reason
        assert verdict.status == "failed" or decoded


class TestDamage:
    """PyAV alone: it goes on behind a packet that does not decode, and says so."""

    def test_a_changed_size_in_mid_stream_is_scaled_to_the_first(self, tmp_path: Path) -> None:
        small, large = encode(tmp_path / "small.ts", 10), encode(tmp_path / "large.ts", 10, size=(96, 128))
        both = tmp_path / "both.ts"
        both.write_bytes(small.read_bytes() + large.read_bytes())
        with opened(both, load_decoder("pyav"), Limits()) as video:
            reader = FrameReader(video, Sampling(), Limits())
            shapes = {block.frames_FHW3.shape[1:] for block in reader.blocks(lambda: np.empty(10**6, np.uint8), int)}
            doubt = video.doubt
        assert shapes == {(48, 64, 3)}
        assert doubt.split("; ")[-1] == "picture size changes from 64 x 48 to 128 x 96: scaled to the first"

    def test_a_claimed_million_frames_costs_nothing(self, tmp_path: Path) -> None:
        decoded = decode_here(claim_frames(encode(tmp_path / "liar.avi", 12), 1_000_000))
        assert len(decoded.frames_FHW3) == 12
        assert outcome(decoded) == Verdict(status="done", reason="decoded 12 frames, 1000000 declared")

    @pytest.mark.parametrize("suffix", ["avi", "mkv", "ts", "flv"])
    def test_a_file_cut_in_half_gives_its_first_half(self, suffix: str, tmp_path: Path) -> None:
        whole = encode(tmp_path / f"whole.{suffix}", 300)
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        decoded, healthy = decode_here(cut), decode_here(whole)
        frames = len(decoded.frames_FHW3)
        assert 20 < frames < 280
        np.testing.assert_array_equal(decoded.frames_FHW3[: frames - 2], healthy.frames_FHW3[: frames - 2])

    def test_a_bad_packet_costs_its_own_frames(self, videos: dict[str, Path], tmp_path: Path) -> None:
        content = bytearray(videos["mp4"].read_bytes())
        middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
        content[middle : middle + 30] = bytes(30)
        damaged = tmp_path / "damaged.mp4"
        damaged.write_bytes(content)
        decoded = decode_here(damaged)
        assert 20 < len(decoded.frames_FHW3) <= 40

    def test_more_frames_than_allowed_end_the_video(self, videos: dict[str, Path]) -> None:
        with pytest.raises(DecodeError, match="more than 10 frames"):
            decode_here(videos["mp4"], limits=Limits(frames=10))


class TestNames:
    def test_an_unknown_decoder_is_refused(self) -> None:
        with pytest.raises(ValueError, match="decoder 'opencv' is not one of pyav, decord, torchcodec"):
            require_decoder("opencv")

    def test_a_missing_decoder_says_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        without(monkeypatch, "torchcodec")
        with pytest.raises(MissingDecoderError, match=r"pip install torchcodec.*FFmpeg's shared libraries"):
            require_decoder("torchcodec")

    def test_versions_name_the_package(self) -> None:
        package, version = decoder_version("pyav").split()
        assert package == "av"
        assert version[0].isdigit()
