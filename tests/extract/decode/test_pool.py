"""The decode pool: its stream, its survival of decoders that go wrong, and what it leaves behind (nothing)."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.common.errors import DecodeError
from extract.decode import (
    DecodePool,
    DecodeSettings,
    FrameBlock,
    Limits,
    MissingDecoderError,
    VideoEnd,
    VideoRequest,
)
from tests.helpers.decoders import LETTERS, SINS
from tests.helpers.decoding import by_path, decode_here, pixels_digest, receive
from tests.helpers.processes import alive, children, open_descriptors, wait_until
from tests.helpers.video import KINDS, claim_frames, claim_size, encode, encode_sound

EVIL = "tests.helpers.decoders:by_name"
DEADLINE_SECONDS = 2
MEMORY_BYTES = 1 << 26


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy video of 100 frames."""
    return encode(tmp_path_factory.mktemp("video") / "healthy.mp4", 100)


def named(video: Path, folder: Path, *names: str) -> list[tuple[str, Path]]:
    """The video under other names."""
    for name in names:
        os.link(video, folder / f"{name}.mp4")
    return [(name, folder / f"{name}.mp4") for name in names]


def evil(**limits: float) -> DecodeSettings:
    """Two workers whose decoder sins by the file's name, with a short deadline."""
    return DecodeSettings(
        decoder=EVIL,
        workers=2,
        limits=Limits(**{"stall_seconds": DEADLINE_SECONDS, "memory_bytes": MEMORY_BYTES} | limits),  # type: ignore[arg-type]
    )


class TestStream:
    def test_every_video_comes_whole_and_in_order_and_ends_once(self, tmp_path: Path) -> None:
        paths = [encode(tmp_path / f"{number}.{suffix}", 70) for number, suffix in enumerate(KINDS)]
        with DecodePool(DecodeSettings(workers=2)) as pool:
            received = receive(pool, by_path(paths))
        assert received.keys() == {path.name for path in paths}
        for path in paths:
            video, expected = received[path.name], decode_here(path)
            assert video.outcome is not None
            assert (video.outcome.status, video.frames, video.blocks) == ("done", 70, 3)
            assert video.pixels.hexdigest() == pixels_digest(expected.frames_FHW3)
            assert video.times == expected.pts_seconds.tolist()
            assert video.outcome.declared_frames == expected.declared
            assert video.outcome.seconds > 0

    def test_sampling_reaches_the_workers(self, video: Path) -> None:
        with DecodePool(DecodeSettings(workers=1, fps=5, max_frames=7)) as pool:
            received = receive(pool, [("a", video)])["a"]
        assert received.frames == 7
        assert received.times == pytest.approx([index / 5 for index in range(7)])

    def test_chosen_frames_are_those_of_the_whole_video(self, video: Path) -> None:
        whole = decode_here(video)
        spans = ((0, 1), (3, 40), (40, 41), (90, 95), (99, 300))
        with DecodePool(DecodeSettings(workers=1)) as pool:
            shown: dict[int, bytes] = {}
            ends: dict[str, VideoEnd] = {}
            requests = [("some", spans), ("none", ()), ("first", ((2, 4),)), ("beyond", ((100, 101),))]
            for item in pool.decode(VideoRequest(name, video, frames) for name, frames in requests):
                if isinstance(item, VideoEnd):
                    ends[item.outcome.video_id] = item
                elif item.video_id == "some":
                    for index, frame in enumerate(item.frames_FHW3, item.first_frame):
                        shown[index] = frame.tobytes()
                        assert item.pts_seconds_F[index - item.first_frame] == whole.pts_seconds[index]
                    item.release()
                else:
                    assert (item.video_id, item.first_frame, len(item.frames_FHW3)) == ("first", 2, 2)
                    item.release()
        wanted = [index for start, stop in spans for index in range(start, min(stop, 100))]
        assert shown == {index: whole.frames_FHW3[index].tobytes() for index in wanted}
        decoded = {"some": 100, "none": 100, "first": 4, "beyond": 100}
        for name, count in decoded.items():
            assert (ends[name].outcome.status, ends[name].outcome.num_frames) == ("done", count)
            assert ends[name].pts_seconds_F.tolist() == whole.pts_seconds[:count].tolist()

    @pytest.mark.parametrize("spans", [[(2, 2)], [(0, 5), (4, 6)], [(-1, 3)], [(5, 6), (0, 1)]])
    def test_spans_ascend(self, spans: list[tuple[int, int]]) -> None:
        with pytest.raises(ValueError, match="expected ascending half-open spans"):
            VideoRequest("a", Path("a.mp4"), spans)

    def test_no_videos_no_workers(self) -> None:
        with DecodePool(DecodeSettings(workers=2)) as pool:
            assert list(pool.decode([])) == []
            assert children() == []

    def test_no_more_workers_than_videos(self, video: Path) -> None:
        with DecodePool(DecodeSettings(workers=2)) as pool:
            receive(pool, [("a", video)])
            assert len(children()) == 1

    def test_videos_are_taken_one_by_one_in_the_callers_thread(self, video: Path) -> None:
        threads, taken = set(), 0

        def source() -> Iterator[tuple[str, Path]]:
            nonlocal taken
            for number in range(40):
                threads.add(threading.current_thread())
                taken += 1
                yield str(number), video

        with DecodePool(DecodeSettings(workers=1)) as pool:
            stream = pool.decode(source())
            next(stream)
            assert taken < 10
            stream.close()
        assert threads == {threading.current_thread()}

    def test_a_consumer_that_holds_blocks_makes_the_worker_wait_without_blame(self, tmp_path: Path) -> None:
        path = encode(tmp_path / "long.avi", 300)
        settings = DecodeSettings(workers=1, limits=Limits(stall_seconds=0.4, video_seconds=2.0))
        with DecodePool(settings) as pool:
            stream = pool.decode([("a", path)])
            blocks = [next(stream) for _ in range(settings.blocks_ahead)]
            time.sleep(3 * settings.limits.stall_seconds)
            frames = 0
            for item in blocks:
                assert isinstance(item, FrameBlock)
                frames += len(item.frames_FHW3)
                item.release()
                item.release()
            for item in stream:
                if isinstance(item, FrameBlock):
                    frames += len(item.frames_FHW3)
                    item.release()
                else:
                    assert item.outcome.status == "done"
        assert frames == 300

    def test_leaving_early_gives_up_what_is_under_way(self, video: Path) -> None:
        with DecodePool(DecodeSettings(workers=2)) as pool:
            stream = pool.decode([(str(number), video) for number in range(20)])
            first = next(stream)
            stream.close()
            again = receive(pool, [("again", video)])
        assert isinstance(first, FrameBlock)
        assert again.keys() == {"again"}
        assert again["again"].frames == 100
        assert first.frames_FHW3.shape == (32, 48, 64, 3), "a block outlives its pool"
        first.release()

    def test_an_error_in_the_consumer_ends_the_pool(self, video: Path) -> None:
        with pytest.raises(ZeroDivisionError), DecodePool(DecodeSettings(workers=2)) as pool:  # noqa: PT012
            for _item in pool.decode([(str(number), video) for number in range(20)]):
                raise ZeroDivisionError
        del _item
        gc.collect()
        assert children() == []

    def test_workers_are_replaced_after_so_many_videos(self, video: Path) -> None:
        seen: set[int] = set()
        with DecodePool(DecodeSettings(workers=1, videos_per_worker=3)) as pool:
            for item in pool.decode([(str(number), video) for number in range(9)]):
                seen.update(children())
                if isinstance(item, FrameBlock):
                    item.release()
        assert len(seen) >= 3


class TestSurvival:
    @pytest.mark.slow
    def test_each_sin_costs_its_one_video_in_time(self, video: Path, tmp_path: Path) -> None:
        sins = [*SINS, "late-hold_the_interpreter", "late-segfault", "late-eat_memory"]
        good = [f"good{number}" for number in range(len(sins))]
        order = [name for pair in zip(sins, good, strict=True) for name in pair]
        digest = pixels_digest(decode_here(video).frames_FHW3)
        with DecodePool(evil()) as pool:
            received = receive(pool, named(video, tmp_path, *order))
        for name in good:
            assert received[name].pixels.hexdigest() == digest
        for name in sins:
            outcome = received[name].outcome
            assert outcome is not None
            assert outcome.status == "failed"
            assert outcome.num_frames == 0
            assert REASONS[name.removeprefix("late-")] in outcome.reason
            assert outcome.seconds < DEADLINE_SECONDS + 5

    def test_a_video_without_an_end_is_bounded_by_frames_and_by_time(self, video: Path, tmp_path: Path) -> None:
        videos = named(video, tmp_path, "endless")
        with DecodePool(evil(frames=5000)) as pool:
            ended = receive(pool, videos)["endless"].outcome
            assert ended is not None
            assert (ended.status, ended.reason) == ("failed", "more than 5000 frames")
        with DecodePool(evil(video_seconds=1.0)) as pool:
            ended = receive(pool, videos)["endless"].outcome
            assert ended is not None
            assert (ended.status, ended.reason) == ("failed", "took longer than 1 s")

    @pytest.mark.slow
    def test_a_message_that_no_worker_sends_costs_the_one_video(self, video: Path, tmp_path: Path) -> None:
        good = [f"good{number}" for number in range(len(LETTERS))]
        order = [name for pair in zip(LETTERS, good, strict=True) for name in pair]
        with DecodePool(evil()) as pool:
            received = receive(pool, named(video, tmp_path, *order))
        outcomes = {name: each.outcome for name, each in received.items() if each.outcome is not None}
        assert {outcomes[name].status for name in good} == {"done"}
        for name in LETTERS:
            assert outcomes[name].status == "failed", name
            assert "a message that makes no sense" in outcomes[name].reason, name

    def test_processor_time_is_bounded(self, video: Path, tmp_path: Path) -> None:
        with DecodePool(evil(stall_seconds=60.0, processor_seconds=1)) as pool:
            outcome = receive(pool, named(video, tmp_path, "burn_processor"))["burn_processor"].outcome
        assert outcome is not None
        assert outcome.reason == "used more processor time than the limit allows"

    def test_a_worker_killed_from_outside_costs_at_most_its_video(self, video: Path) -> None:
        videos = [(str(number), video) for number in range(60)]
        killed = 0
        failed = 0
        with DecodePool(DecodeSettings(workers=2)) as pool:
            for item in pool.decode(videos):
                if isinstance(item, FrameBlock):
                    item.release()
                    continue
                failed += item.outcome.status == "failed"
                if item.outcome.status == "failed":
                    assert "killed from outside (SIGKILL)" in item.outcome.reason
                elif killed < 4 and (victims := children()):
                    with contextlib.suppress(ProcessLookupError):  # one that was killed before, removed meanwhile
                        os.kill(victims[0], signal.SIGKILL)
                        killed += 1
        assert failed <= killed == 4

    def test_workers_that_do_not_start_end_the_run_with_their_last_words(self, video: Path) -> None:
        with (
            DecodePool(DecodeSettings(decoder="tests.helpers.decoders:no_such_name")) as pool,
            pytest.raises(DecodeError, match=r"decode workers do not start \(5 tries\).*no_such_name"),
        ):
            receive(pool, [("a", video)])

    def test_workers_that_start_and_never_begin_end_the_run(self, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        told = DecodeSettings().for_worker()
        monkeypatch.setattr(DecodeSettings, "for_worker", lambda _: told | {"sampling": {"no_such_field": 1}})
        with (
            DecodePool(DecodeSettings(workers=2)) as pool,
            pytest.raises(DecodeError, match=r"decode workers do not start \(5 tries\).*no_such_field"),
        ):
            receive(pool, [("a", video), ("b", video)])

    def test_a_decoder_that_turns_out_to_be_missing_ends_the_run(self, video: Path) -> None:
        with DecodePool(DecodeSettings(decoder="tests.helpers.decoders:not_installed")) as pool:
            for _ in range(2):
                with pytest.raises(MissingDecoderError, match="install it"):
                    receive(pool, [("a", video)])

    def test_settings_are_checked_before_anything_starts(self) -> None:
        for wrong in ({"workers": 0}, {"fps": 0}, {"decoder": "opencv"}, {"blocks_ahead": 0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                DecodeSettings(**wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="limit stall_seconds is 0"):
            Limits(stall_seconds=0)


REASONS = {
    "hold_the_interpreter": f"no new frame for {DEADLINE_SECONDS} s",
    "burn_processor": f"no new frame for {DEADLINE_SECONDS} s",
    "wait_for_ever": f"no new frame for {DEADLINE_SECONDS} s",
    "chatter": "",
    "segfault": "decoder crashed with SIGSEGV",
    "abort": "decoder crashed with SIGABRT",
    "eat_memory": f"needs more than {MEMORY_BYTES} bytes of memory",
    "leave": "decoder stopped with exit code 7",
    "shrink_the_ring": "PermissionError",
    "leave_a_child": "decoder stopped with exit code 7",
    "stumble": "ZeroDivisionError: a bug in the decoder",
}


class TestInputs:
    def test_every_kind_of_bad_input_has_its_outcome(self, tmp_path: Path) -> None:
        def written(name: str, content: bytes) -> Path:
            (tmp_path / name).write_bytes(content)
            return tmp_path / name

        secret = written("secret.mp4", b"never opened")
        healthy = encode(tmp_path / "healthy.mp4", 30)
        os.mkfifo(tmp_path / "fifo.mp4")
        huge = claim_size(encode(tmp_path / "huge.avi", 3, codec="rawvideo"), 100_000, 100_000)
        expected = {
            healthy: ("done", ""),
            claim_frames(encode(tmp_path / "liar.avi"), 10**6): ("done", "decoded 12 frames, 1000000 declared"),
            huge: ("failed", "no frames decoded"),
            written("playlist.mp4", f"#EXTM3U\n#EXTINF:1,\n{secret}\n".encode()): ("failed", "not a known video"),
            written("concat.mp4", f"ffconcat version 1.0\nfile '{secret}'\n".encode()): ("failed", "not a known video"),
            written("empty.mp4", b""): ("failed", "empty file (0 bytes)"),
            written("cut.mp4", healthy.read_bytes()[:1000]): ("failed", "damaged mov header"),
            encode_sound(tmp_path / "sound.mp4"): ("failed", "no video stream (found: audio)"),
            tmp_path / "fifo.mp4": ("failed", "not a regular file"),
            tmp_path / "missing.mp4": ("failed", "cannot be opened: No such file or directory"),
            tmp_path: ("failed", "not a regular file"),
        }
        with DecodePool(DecodeSettings(workers=2)) as pool:
            received = receive(pool, by_path(expected))
        outcomes = {name: video.outcome for name, video in received.items()}
        for path, (status, reason) in expected.items():
            outcome = outcomes[path.name]
            assert outcome is not None
            assert (outcome.status, outcome.reason[: len(reason)]) == (status, reason), path
            assert "/proc/" not in outcome.reason

    @pytest.mark.parametrize(
        "name", [b"caf\xe9.mp4", "日本語.mp4".encode(), b"a%03d.mp4", b"-i.mp4", b"concat:x|y.mp4"]
    )
    def test_names_mean_nothing(self, video: Path, tmp_path: Path, name: bytes) -> None:
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(video.read_bytes())
        with DecodePool(DecodeSettings(workers=1)) as pool:
            assert receive(pool, [("a", path)])["a"].frames == 100

    def test_decoder_errors_are_counted(self, tmp_path: Path) -> None:
        content = bytearray(encode(tmp_path / "video.mp4", 60).read_bytes())
        start = content.index(b"mdat")
        for position in range(start + 900, len(content) - 900, 211):
            content[position : position + 5] = b"\xff" * 5
        (tmp_path / "damaged.mp4").write_bytes(content)
        with DecodePool(DecodeSettings(workers=1)) as pool:
            outcome = receive(pool, [("a", tmp_path / "damaged.mp4"), ("b", tmp_path / "video.mp4")])
        damaged, healthy = outcome["a"].outcome, outcome["b"].outcome
        assert damaged is not None
        assert healthy is not None
        assert damaged.status == "suspect"
        assert damaged.decoder_errors > 0
        assert f"{damaged.decoder_errors} decoder error" in damaged.reason
        assert (healthy.status, healthy.decoder_errors) == ("done", 0), "errors belong to the video that made them"


class TestNothingIsLeftBehind:
    def test_no_process_descriptor_or_file(self, video: Path, tmp_path: Path) -> None:
        def run() -> None:
            with DecodePool(evil()) as pool:
                receive(pool, named(video, tmp_path, *(f"{name}{time.monotonic_ns()}" for name in "abc")))

        run()
        before, shared_memory = open_descriptors(), sorted(Path("/dev/shm").iterdir())
        run()
        assert children() == []
        assert open_descriptors() == before
        assert sorted(Path("/dev/shm").iterdir()) == shared_memory

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    def test_workers_die_with_their_parent(self, video: Path, tmp_path: Path, how: signal.Signals) -> None:
        (tmp_path / "hold_the_interpreter.mp4").write_bytes(video.read_bytes())
        script = f"""
            import signal, sys
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            sys.path[:0] = {sys.path!r}
            from pathlib import Path
            from extract.decode import DecodePool, DecodeSettings
            videos = [(str(n), Path({str(tmp_path / "hold_the_interpreter.mp4")!r})) for n in range(2)]
            with DecodePool(DecodeSettings(decoder={EVIL!r}, workers=2)) as pool:
                for item in pool.decode(videos):
                    pass
        """
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE)
        wait_until(lambda: len(children(process.pid)) == 2, 20)
        workers = children(process.pid)
        time.sleep(0.5)
        process.send_signal(how)
        _, stderr = process.communicate(timeout=10)
        wait_until(lambda: not any(alive(pid) for pid in workers), 5)
        assert stderr.count(b"Traceback") <= (how is signal.SIGINT), stderr
        assert b"leaked" not in stderr
