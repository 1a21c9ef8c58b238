"""Clip arithmetic: worked examples, properties, and the paper's clip counts."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.clips import ClipRule

rules = st.builds(
    ClipRule,
    length=st.integers(1, 40),
    stride=st.integers(1, 20),
    max_clips=st.integers(1, 25),
    keep=st.sampled_from(["first", "even", "all"]),
)


def frame_times(num_frames: int, fps: float) -> np.ndarray:
    return np.arange(num_frames) / fps


def test_clips_start_every_stride_frames_while_they_fit() -> None:
    assert ClipRule().starts(46) == [0, 8, 16]
    assert ClipRule().starts(45) == [0, 8]
    assert ClipRule().starts(30) == [0]


def test_a_short_video_gives_one_clip_that_loops() -> None:
    frames = ClipRule(length=5).frames(frame_times(2, 25))
    assert frames.tolist() == [[0, 1, 0, 1, 0]]


def test_even_keeps_the_first_and_the_last_clip() -> None:
    starts = ClipRule(length=10, stride=1, max_clips=3, keep="even").starts(110)
    assert starts == [0, 50, 100]


def test_resampling_picks_the_frame_shown_at_each_tick() -> None:
    assert ClipRule(fps=24).resample(frame_times(13, 30)).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]
    assert ClipRule(fps=50).resample(frame_times(3, 25)).tolist() == [0, 0, 1, 1, 2]
    assert ClipRule().resample(frame_times(4, 30)).tolist() == [0, 1, 2, 3]


def test_resampling_counts_from_the_first_frame_and_follows_uneven_times() -> None:
    assert ClipRule(fps=1).resample(np.array([7.0, 7.4, 8.5, 9.0, 12.0])).tolist() == [0, 1, 3, 3, 3, 4]


def test_a_rule_as_text_comes_back() -> None:
    assert str(ClipRule()) == "length=30,stride=8,max=20,keep=first,fps="
    assert str(ClipRule(keep="all", fps=12.5)) == "length=30,stride=8,keep=all,fps=12.5"
    assert ClipRule(fps=24.0).changed("keep=even, max=40") == ClipRule(fps=24.0, keep="even", max_clips=40)
    assert ClipRule(fps=24.0).changed("fps=") == ClipRule()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected parts of length="),
        ("keep", "'keep' in 'keep': expected parts"),
        ("keep=even,keep=all", "each once"),
        ("clips=3", "'clips=3'"),
        ("length=3.5", "expected a number"),
        ("fps=fast", "expected a number"),
        ("length=", "expected a number"),
        ("keep=last", "first, even, all"),
        ("stride=0", "stride is 0"),
        ("keep=all,max=3", "max has no meaning"),
    ],
)
def test_text_that_is_no_rule_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClipRule().changed(text)


def test_more_than_a_hundredth_left_out_is_said() -> None:
    rule = ClipRule(keep="even")
    assert rule.note(1, 100, "the video's") == ""
    assert rule.note(0, 0, "the video's") == ""
    expected = "clips: 53 % of the video's frames are in no clip (30 frames at the native frame rate, a clip every 8 "
    assert rule.note(53, 100, "the video's").startswith(expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"length": 0}, "length is 0"),
        ({"stride": -1}, "stride is -1"),
        ({"max_clips": 0}, "max_clips is 0"),
        ({"keep": "last"}, "'last'"),
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": float("inf")}, "fps is inf"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClipRule(**changes)


def test_a_video_without_frames_has_no_clips() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        ClipRule().starts(0)


@given(rules, st.integers(1, 500))
def test_every_clip_lies_within_the_video_and_starts_on_the_grid(rule: ClipRule, num_frames: int) -> None:
    starts = rule.starts(num_frames)
    assert len(starts) >= 1
    assert len(starts) <= rule.max_clips or rule.keep == "all"
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert all(start % rule.stride == 0 for start in starts)
    if num_frames >= rule.length:
        assert starts[-1] + rule.length <= num_frames


@given(rules, st.integers(1, 500))
def test_no_clip_is_left_out_unless_there_are_too_many(rule: ClipRule, num_frames: int) -> None:
    possible = [s for s in range(0, num_frames, rule.stride) if s + rule.length <= num_frames] or [0]
    starts = rule.starts(num_frames)
    if len(possible) <= rule.max_clips or rule.keep == "all":
        assert starts == possible
    else:
        assert len(starts) == rule.max_clips
        if rule.keep == "first":
            assert starts == possible[: rule.max_clips]
        else:
            assert set(starts) <= set(possible)
            assert starts[-1] == possible[-1] or rule.max_clips == 1


@given(rules, st.floats(5, 120))
def test_a_rule_survives_its_text(rule: ClipRule, fps: float) -> None:
    rule = replace(rule, fps=round(fps, 2))
    # `max` is not written where it has no meaning.
    assert ClipRule(max_clips=rule.max_clips).changed(str(rule)) == rule


@given(rules, st.integers(1, 500))
def test_what_lies_behind_the_first_clips_does_not_count(rule: ClipRule, num_frames: int) -> None:
    rule, pts = replace(rule, keep="first"), frame_times(num_frames, 25)
    assert ClipRule().first_frames() == 182
    np.testing.assert_array_equal(rule.frames(pts[: rule.first_frames()]), rule.frames(pts))


@given(rules, st.integers(1, 300), st.floats(5, 120))
def test_clips_are_consecutive_frames_that_loop(rule: ClipRule, num_frames: int, fps: float) -> None:
    frames = rule.frames(frame_times(num_frames, fps))
    assert frames.shape == (len(rule.starts(num_frames)), rule.length)
    assert ((frames[:, 1:] - frames[:, :-1]) % num_frames == 1 % num_frames).all()


@given(st.integers(1, 400), st.floats(5, 120), st.floats(1, 120))
def test_resampled_frames_are_the_ones_on_screen(num_frames: int, native: float, fps: float) -> None:
    pts = frame_times(num_frames, native)
    shown = ClipRule(fps=fps).resample(pts)
    times = np.arange(len(shown)) / fps
    assert shown[0] == 0
    assert (np.diff(shown) >= 0).all()
    assert (pts[shown] <= times + 2e-6).all()
    following = shown + 1 < num_frames
    assert (pts[shown[following] + 1] > times[following] - 2e-6).all()
    assert times[-1] <= pts[-1] + 2e-6 < times[-1] + 1 / fps + 4e-6


@given(rules, st.integers(1, 400), st.sampled_from([None, 24.0, 10.0]), st.sampled_from([25.0, 30.0, 29.97]))
def test_counting_agrees_with_cutting(rule: ClipRule, num_frames: int, fps: float | None, native: float) -> None:
    rule = ClipRule(length=rule.length, stride=rule.stride, max_clips=rule.max_clips, keep=rule.keep, fps=fps)
    assert rule.count(num_frames, native_fps=native) == len(rule.frames(frame_times(num_frames, native)))


def test_counting_at_another_rate_needs_the_native_one() -> None:
    with pytest.raises(ValueError, match="native_fps"):
        ClipRule(fps=24).count(100)


@pytest.mark.shared
@pytest.mark.parametrize(("fps", "train", "test"), [(None, 28_462, 11_708), (24, 21_541, 8_857)])
def test_clip_counts_of_hmdb51_split_1(shared: Path, fps: float | None, train: int, test: int) -> None:
    """The paper counts 21,147 and 8,791 (section 4.2); its words at 24 frames a second come within 2 %."""
    with (shared / "data/frame-counts/hmdb51_frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    counted = {"train": 0, "test": 0, "unused": 0}
    for row in rows:
        counted[row["split1"]] += ClipRule(fps=fps).count(int(row["frames_decoded_estimate"]), native_fps=30)
    assert (counted["train"], counted["test"]) == (train, test)
