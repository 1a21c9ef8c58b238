"""Clip tables: index lists over the frames of several videos."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache.clips import ClipRule
from train.clips import cut


def test_two_videos_by_hand():
    pts = np.concatenate([np.arange(4) / 25, np.arange(2) / 25])
    table = cut(("a", "b"), (1, 0), np.array([0, 4, 6]), pts, ClipRule(length=3, stride=1, max_clips=9))
    assert table.frames_NT.tolist() == [[0, 1, 2], [1, 2, 3], [4, 5, 4]]
    assert table.spans_N2.tolist() == [[0, 3], [1, 4], [0, 3]]
    assert table.video_N.tolist() == [0, 0, 1]
    assert table.label_N.tolist() == [1, 1, 0]
    assert table.ids_of(np.array([2, 0, 1])) == ["a", "b"]


def test_spans_are_counted_at_the_rules_rate():
    pts = np.arange(60) / 30
    table = cut(("a",), (0,), np.array([0, 60]), pts, ClipRule(length=10, stride=10, max_clips=9, fps=15.0))
    assert table.spans_N2.tolist() == [[0, 10], [10, 20], [20, 30]]
    assert table.frames_NT[1].tolist() == list(range(20, 40, 2))


@given(st.lists(st.integers(1, 70), min_size=1, max_size=8), st.integers(1, 40), st.integers(1, 12), st.integers(1, 5))
def test_every_clip_stays_inside_its_video(counts, length, stride, max_clips):
    offsets = np.concatenate([[0], np.cumsum(counts)])
    pts = np.concatenate([np.arange(count) / 25 for count in counts])
    rule = ClipRule(length=length, stride=stride, max_clips=max_clips)
    table = cut([str(i) for i in range(len(counts))], [0] * len(counts), offsets, pts, rule)
    assert len(table) == sum(rule.count(count) for count in counts)
    assert (table.frames_NT >= offsets[table.video_N][:, None]).all()
    assert (table.frames_NT < offsets[table.video_N + 1][:, None]).all()
