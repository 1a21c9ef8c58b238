"""Timelines: windows of a stream are the clips of the whole video; segments cover it; every shape is safe to read."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fuse.timeline
from cache.aggregate import fuse_levels
from cache.clips import ClipRule
from cache.fingerprint import LEVELS
from cache.ledger import Outcome
from extract.pipeline import VideoFeatures
from fuse.timeline import Segment, TimelineEnd, Window, _Frames, _Resampler, timeline
from fuse.trained import Heads
from fuse.writer import Shape, Strip, Writer, clock
from train.heads import Head
from train.recipes import Recipe
from train.score import score_clips

CHANNELS = 4
CLASSES = ("jump", "<b>wave & run --> away</b>", "=SUM(1)")


@pytest.fixture(scope="module")
def heads() -> Heads:
    torch.manual_seed(0)
    recipe = Recipe(hidden=4, layers=1)
    made = {level: Head(CHANNELS, len(CLASSES), recipe).eval() for level in LEVELS}
    return Heads(
        heads=made,
        classes=CLASSES,
        clips=ClipRule(length=6, stride=4),
        identity={},
        environment={},
        fusion_weights={"high": 0.7, "mid": 0.2, "low": 0.1},
    )


class Pool:
    """Decodes nothing."""

    def decode(self, requests: object) -> object:
        return requests


def events(monkeypatch: pytest.MonkeyPatch, heads: Heads, features: np.ndarray, pts_F: np.ndarray, piece: int) -> list:
    """The timeline of a video whose features come in pieces of `piece` frames."""

    def stream(*_: Any) -> Iterator[VideoFeatures | Outcome]:
        for first in range(0, len(pts_F), piece):
            part = slice(first, first + piece)
            levels = dict.fromkeys(LEVELS, features[None, part])
            yield VideoFeatures(outcome=Outcome(video_id="v", status="done"), features=levels, pts_seconds=pts_F[part])
        yield Outcome(video_id="v", status="done", num_frames=len(pts_F))

    monkeypatch.setattr(fuse.timeline, "stream_features", stream)
    nothing: Any = None
    return list(timeline(Path("v"), heads, nothing, nothing, Pool()))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["", "stride=9", "fps=10", "fps=60,stride=3", "length=1,stride=1"])
@pytest.mark.parametrize(("frames", "piece"), [(47, 5), (47, 32), (4, 32), (6, 1), (1, 1)])
def test_windows_are_all_clips_of_the_video_and_segments_cover_it(monkeypatch, heads, rule, frames, piece) -> None:
    features = np.random.default_rng(0).normal(size=(frames, CHANNELS)).astype(np.float16)
    pts_F = np.arange(frames) / 25
    clips = replace(heads.clips.changed(rule) if rule else heads.clips, keep="all")
    found = events(monkeypatch, replace(heads, clips=clips), features, pts_F, piece)
    windows = [event for event in found if isinstance(event, Window)]
    segments = [event for event in found if isinstance(event, Segment)]
    frames_NT = clips.frames(pts_F)
    levels = {level: score_clips(heads.heads[level], features.astype(np.float32), frames_NT) for level in LEVELS}
    expected_NK = fuse_levels(levels, heads.fusion_weights)
    np.testing.assert_allclose([each.probabilities_K for each in windows], expected_NK, atol=1e-6)
    np.testing.assert_allclose([each.start_seconds for each in windows], pts_F[frames_NT[:, 0]])
    assert segments[0].start_seconds == 0
    assert all(before.end_seconds == after.start_seconds for before, after in pairwise(segments))
    assert all(before.label != after.label for before, after in pairwise(segments))
    assert segments[-1].end_seconds == pytest.approx(frames / 25, abs=0.05)
    assert sum(each.windows for each in segments) == len(windows)
    assert isinstance(found[-1], TimelineEnd)
    assert found[-1].windows == len(windows)


@given(st.lists(st.floats(0.001, 2), min_size=1, max_size=60), st.integers(1, 9), st.floats(0.5, 60))
def test_resampling_in_pieces_is_resampling_at_once(gaps: list[float], piece: int, fps: float) -> None:
    pts_F = np.cumsum([0.0, *gaps])
    rule = ClipRule(fps=fps)
    resampler = _Resampler(fps)
    found = [resampler.add(_Frames(pts_F[at : at + piece], {})).pts_F for at in range(0, len(pts_F), piece)]
    found.append(resampler.rest().pts_F)
    np.testing.assert_array_equal(np.concatenate(found), pts_F[rule.resample(pts_F)])


def test_a_strip_stays_small_and_shows_what_takes_most_time() -> None:
    strip, at = Strip(width=10), 0.0
    for index in range(20_000):
        label = 1 if 5_000 <= index < 10_000 else index % 2
        strip.add(Segment(label=label, start_seconds=at, end_seconds=(at := at + 0.3)))
        assert len(strip._cells) <= 21
    labels = strip.labels()
    assert len(labels) == 10
    assert labels[3:5] == [1, 1]
    assert sum(strip.seconds.values()) == pytest.approx(6000)


def lines(shape: Shape) -> list[str]:
    spans = [(0, 0.0, 7.4), (1, 7.4, 27.4), (None, 27.4, 3700.0), (2, 3700.0, 3701.0)]
    made = [Segment(label=a, start_seconds=b, end_seconds=c, windows=2, summed=1.8) for a, b, c in spans]
    probabilities_K = np.array([0.2, 0.7, 0.1])
    window = Window(start_seconds=0, end_seconds=1.2, own_start_seconds=0, probabilities_K=probabilities_K, label=1)
    outcome = Outcome(video_id="a", status="suspect", reason="2 decoder errors", num_frames=90)
    end = TimelineEnd(outcome=outcome, windows=8, seconds=3701.0)
    writer = Writer(shape, CLASSES)
    return [*writer.head(["a note"]), *writer.lines("=a\n.mp4", [window, *made, end])]


def test_text_has_segments_a_strip_and_what_it_means_in_80_columns() -> None:
    found = lines("text")
    assert found[:2] == ["=a\\n.mp4", "  0:00.0 – 0:07.4         90.0 %  jump"]
    assert found[3] == "  0:27.4 – 1:01:40.0      90.0 %  none of these"
    assert set(found[5].strip()) == {"A", "B"}
    assert "  A none of these: 1:01:12.6, 99 %" in found
    assert found[-2:] == ["  90 frames, 8 windows", "  note: 2 decoder errors"]
    assert all(len(line) <= 80 for line in found)


def test_json_is_a_line_for_each_event() -> None:
    values = [json.loads(line) for line in lines("json")]
    assert [value["kind"] for value in values] == ["notes", "window", *["segment"] * 4, "end"]
    assert values[1]["class"] == CLASSES[1]
    assert values[1]["fused"] == [0.2, 0.7, 0.1]
    assert values[3]["end"] == 27.4
    assert values[4]["class"] == "none of these"


def test_csv_is_safe_for_spreadsheets_and_vtt_for_players() -> None:
    rows = list(csv.DictReader(io.StringIO("\n".join(lines("csv")))))
    assert rows[3]["label"] == "'=SUM(1)"
    assert (rows[1]["start"], rows[1]["end"], rows[1]["windows"]) == ("7.400", "27.400", "2")
    text = "\n".join(lines("vtt"))
    assert text.startswith("WEBVTT\n\nNOTE a note\n\n00:00:00.000 --> 00:00:07.400\njump 90 %\n")
    assert "&lt;b&gt;wave &amp; run --&gt; away&lt;/b&gt; 90 %\n\n" in text
    assert "01:01:40.000 --> 01:01:41.000" in text


def test_times_for_people() -> None:
    assert [clock(each) for each in (0, 59.96, 3599.99, 3723.04)] == ["0:00.0", "1:00.0", "1:00:00.0", "1:02:03.0"]
