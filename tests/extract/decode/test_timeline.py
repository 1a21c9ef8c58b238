"""Times of frames and which of them are kept."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.decode.timeline import Sampling, Timeline


def placed(times: list[float | None], frame_seconds: float = 0.04) -> list[float]:
    timeline = Timeline(frame_seconds)
    return [timeline.place(time) for time in times]


def test_good_times_are_kept_and_begin_at_zero() -> None:
    assert placed([3.0, 3.04, 3.5, 9.0]) == pytest.approx([0, 0.04, 0.5, 6.0])


def test_missing_equal_and_backward_times_follow_at_the_usual_distance() -> None:
    assert placed([None, None, None]) == pytest.approx([0, 0.04, 0.08])
    assert placed([1.0, 1.0, 0.5, 1.2]) == pytest.approx([0, 0.04, 0.08, 0.2])
    assert placed([None, 7.0, 7.1]) == pytest.approx([0, 0.04, 0.14]), "the first known time continues the line"


def test_absurd_times_are_not_believed() -> None:
    assert placed([-3e17, 0.0, 0.04]) == pytest.approx([0, 0.04, 0.08])
    assert placed([0.0, math.inf, math.nan, 0.2]) == pytest.approx([0, 0.04, 0.08, 0.2])


@pytest.mark.parametrize("jump", [-36_000.0, -3_600.0, 601.0, 3_600.0, 36_000.0, 1e12])
@pytest.mark.parametrize("where", [1, 5, 9])
def test_a_jump_by_hours_is_taken_out_and_told(jump: float, where: int) -> None:
    timeline = Timeline(120.0 if where == 1 else 0.04)  # a jump at the start makes the header's average useless
    times = [0.04 * index + (jump if index >= where else 0) for index in range(10)]
    assert [timeline.place(time) for time in times] == pytest.approx([0.04 * index for index in range(10)], abs=0.5)
    assert timeline.jumps == f"times jump by {jump + 0.04:+.0f} s at frame {where}"


def test_one_frame_elsewhere_is_two_jumps() -> None:
    timeline = Timeline(0.04)
    assert [timeline.place(time) for time in (1.0, 1.5, 7200.0, 2.0, 2.5)] == [0, 0.5, 1.0, 1.5, 2.0]
    assert timeline.jumps == "times jump by +7198 s at frame 2, and 1 more jumps"


def test_a_picture_may_stand_still_for_minutes() -> None:
    timeline = Timeline(0.04)
    assert [timeline.place(time) for time in (0.0, 590.0, 590.04)] == [0, 590.0, 590.04]
    assert not timeline.jumps


@given(st.lists(st.none() | st.floats(), max_size=50), st.floats(1e-3, 10))
def test_times_ascend_whatever_is_reported(times: list[float | None], frame_seconds: float) -> None:
    line = placed(times, frame_seconds)
    assert all(math.isfinite(time) for time in line)
    assert all(after > before for before, after in pairwise(line))
    assert not line or line[0] == 0


def kept(sampling: Sampling, times: list[float]) -> list[float]:
    chosen: list[float] = []
    for time in times:
        if sampling.keeps(chosen[-1] if chosen else None, time):
            chosen.append(time)
    return chosen


def test_the_first_frame_after_each_tick_is_kept() -> None:
    assert kept(Sampling(fps=10), [0, 0.04, 0.08, 0.12, 0.16, 0.20]) == [0, 0.12, 0.20]
    assert kept(Sampling(fps=10), [0, 0.5, 2.0, 2.05]) == [0, 0.5, 2.0], "a slower video keeps its frames, once"
    assert kept(Sampling(), [0, 0.01, 0.02]) == [0, 0.01, 0.02]


@given(st.sampled_from([24, 25, 30, 50, 60]), st.sampled_from([1, 5, 8, 12, 24, 25]), st.integers(1, 400))
def test_as_many_frames_are_kept_as_the_rate_asks_for(rate: int, fps: int, frames: int) -> None:
    times = [index / rate for index in range(frames)]
    if fps <= rate:
        assert len(kept(Sampling(fps=fps), times)) == (frames - 1) * fps // rate + 1
