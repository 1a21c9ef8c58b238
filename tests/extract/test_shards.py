"""Finished videos into shards: nothing depends on which video was finished first."""

import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.interrupts import Interrupted
from cache.fingerprint import CHANNELS
from cache.ledger import Claim, ClaimedVideo, FileState, Outcome
from extract import shards
from extract.meter import Forecast, Meter
from extract.pipeline import VideoFeatures, failed
from extract.shards import ExtractTask, ShardCutter, shard_data


def finished(video_id: str, frames: int) -> VideoFeatures:
    if not frames:
        return failed(Outcome(video_id=video_id, status="failed"), "unreadable")
    return VideoFeatures(
        outcome=Outcome(video_id=video_id, status="done", num_frames=frames),
        features={level: np.full((1, frames, width), frames, np.float16) for level, width in CHANNELS.items()},
        pts_seconds=np.arange(frames) / 25,
    )


def shards_of(lengths: list[int], order: list[int], shard_rows: int) -> tuple[ShardCutter, list[list[str]]]:
    """Ids in each shard, with the videos finished in `order`."""
    claim = Claim("me", 1, tuple(ClaimedVideo(f"v{i}", f"v{i}.avi") for i in range(len(lengths))))
    cutter = ShardCutter(claim, shard_rows)
    given_out = [shard for i in order for shard in cutter.add(finished(f"v{i}", lengths[i]))]
    return cutter, [[video.outcome.video_id for video in shard] for shard in given_out]


cases = st.lists(st.integers(0, 9), min_size=1, max_size=12).flatmap(
    lambda lengths: st.tuples(st.just(lengths), st.permutations(range(len(lengths))))
)


@given(cases, st.integers(1, 20))
def test_shards_are_the_same_in_whatever_order_videos_finish(case, shard_rows):
    lengths, order = case
    cutter, shards = shards_of(lengths, order, shard_rows)
    assert shards == shards_of(lengths, sorted(order), shard_rows)[1]
    assert [name for shard in shards for name in shard] == [f"v{i}" for i in range(len(lengths))]
    assert cutter.complete
    for shard in shards:
        assert sum(lengths[int(name[1:])] for name in shard[:-1]) < shard_rows


def test_a_shard_is_given_out_as_soon_as_it_is_full():
    cutter, shards = shards_of([1, 9, 1], [1, 0], 3)
    assert shards == [["v0", "v1"]]
    assert not cutter.complete
    assert [[v.outcome.video_id for v in s] for s in cutter.add(finished("v2", 1))] == [["v2"]]


def test_a_shard_holds_the_videos_with_features_side_by_side():
    data = shard_data([finished("a", 2), finished("b", 0), finished("c", 3)])
    assert data is not None
    assert data.video_ids == ("a", "c")
    assert data.offsets.tolist() == [0, 2, 5]
    assert data.features["low"][0, :, 0].tolist() == [2, 2, 3, 3, 3]
    assert shard_data([finished("b", 0)]) is None


def test_ctrl_c_gives_the_finished_videos_of_each_claim_first():
    claims = [Claim("me", token, tuple(ClaimedVideo(f"{token}{i}", "") for i in range(4))) for token in (1, 2)]
    tasks = [ExtractTask(claim, tuple(Path(video.id) for video in claim.videos)) for claim in claims]

    def extract(videos):
        for video_id, _ in videos:
            if video_id == "22":
                raise Interrupted(signal.SIGINT)
            if video_id != "11":
                yield finished(video_id, 1)

    given_out = []
    with pytest.raises(Interrupted):
        given_out.extend(shards.shards_of(tasks, extract, shard_rows=99, strict=False, meter=Meter()))
    ids = [(shard.claim.token, [video.outcome.video_id for video in shard.videos], shard.last) for shard in given_out]
    assert ids == [(1, ["10", "12", "13"], False), (2, ["20", "21"], False)]


def test_frames_that_are_left_are_told_by_the_sizes_of_files():
    """The forecast's figure at first, then what finished videos had; failed ones have no say."""
    forecast = Forecast(size=100e6, usual_size=1e6, most_size=2e6, sampled_frames=100, sampled_size=1e6)
    meter = Meter(forecast)
    assert meter.amounts() == (0, 10_000)
    for number in range(9):
        state = FileState(size=50_000_000 if number == 8 else 1_000_000, modified_ns=0)
        meter.finish(Outcome(video_id=str(number), status="done", num_frames=200, file=state))
    meter.finish(Outcome(video_id="bad", status="failed", file=None))
    meter.frames = 1900
    known = (100 + 9 * 200) / 11e6
    assert meter.amounts() == (1900, 1800 + known * 89e6)
    other = Meter(forecast)
    other.add_up([meter.counts(), meter.counts()])
    assert (other.finished, other.failed, other.frames, other.finished_size) == (20, 2, 3800, 22e6)
