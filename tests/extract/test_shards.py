"""Finished videos into shards: nothing depends on which video was finished first."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache.fingerprint import CHANNELS
from cache.ledger import Claim, ClaimedVideo, Outcome
from extract.pipeline import VideoFeatures, failed
from extract.shards import ShardCutter, shard_data


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
