"""Bits that flip, files that are cut short, emptied or gone: each is named, none is read as other numbers."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.common.errors import DamageError
from cache.fingerprint import LEVELS
from cache.shards import BACKENDS
from cache.shards.writer import hash_files
from cache.store import FeatureCache
from tests.helpers.cache import filled_cache, num_frames_of, video_features

VIDEOS = 6


def shard_files(cache: FeatureCache) -> list[Path]:
    return sorted(file for file in (cache.path / "shards").rglob("*") if file.is_file())


def read_all(path: Path) -> list[str]:
    """Read every video; those that were refused. An assertion where anything else than the truth was read."""
    refused = []
    cache = FeatureCache.open(path)
    for video_id in cache.video_ids:
        expected = video_features(video_id, num_frames_of(video_id))
        try:
            found = {level: cache.features(video_id, level) for level in LEVELS}
            pts = cache.pts_seconds(video_id)
        except DamageError:
            refused.append(video_id)
            continue
        assert all(np.array_equal(found[level], expected[level][0]) for level in LEVELS), f"{video_id}: other numbers"
        assert np.array_equal(pts, np.arange(len(pts)) / 25), f"{video_id}: other times"
    cache.close()
    return refused


def flip(file: Path, chance: random.Random) -> None:
    with file.open("r+b") as opened:
        position = chance.randrange(file.stat().st_size)
        opened.seek(position)
        byte = opened.read(1)[0]
        opened.seek(position)
        opened.write(bytes([byte ^ (1 << chance.randrange(8))]))


def cut(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def lose(file: Path, chance: random.Random) -> None:
    file.unlink() if chance.random() < 0.5 else os.truncate(file, 0)


def harm_and_look(cache: FeatureCache, harm: Callable[[Path, random.Random], None], times: int) -> int:
    """Do harm, look at all videos and at the hash, and mend, `times` times; how often reading was refused."""
    chance = random.Random(times)
    files = shard_files(cache)
    digests = {row.name: row.digest for row in cache.ledger.shards()}
    refusals = 0
    for _ in range(times):
        file = chance.choice(files)
        content = file.read_bytes()
        harm(file, chance)
        shard = cache.path / "shards" / file.relative_to(cache.path / "shards").parts[0]
        assert not shard.exists() or hash_files(shard).digest != digests[shard.name], "verify would not notice"
        refusals += bool(read_all(cache.path))
        file.write_bytes(content)
    assert read_all(cache.path) == []
    return refusals


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("flips", "cuts", "losses"),
    [
        pytest.param(100, 10, 10, id="short"),
        pytest.param(5000, 100, 100, id="10,000 flips, 200 cuts, 200 losses", marks=pytest.mark.slow),
    ],
)
def test_harmful_damage_is_named_and_never_read(
    tmp_path: Path, backend: str, flips: int, cuts: int, losses: int
) -> None:
    cache = filled_cache(tmp_path / "c", VIDEOS, shard_videos=3, backend=backend)
    assert harm_and_look(cache, flip, flips) > flips / 2
    assert harm_and_look(cache, cut, cuts) > cuts / 2
    assert harm_and_look(cache, lose, losses) > losses / 2


def test_a_flip_in_the_head_of_an_hdf5_file_is_noticed(tmp_path: Path) -> None:
    """Where everything is structure: each of the first bytes, one bit each."""
    cache = filled_cache(tmp_path / "c", 3, shard_videos=3)
    (shard,) = shard_files(cache)
    content = shard.read_bytes()
    for position in range(0, 2048, 16):
        changed = bytearray(content)
        changed[position] ^= 1 << (position // 16 % 8)
        shard.write_bytes(changed)
        read_all(cache.path)
    shard.write_bytes(content)
    assert read_all(cache.path) == []
    shutil.rmtree(cache.path)
