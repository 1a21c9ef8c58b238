"""The feature cache as a whole: made, filled, read, resumed, shared, and refused where it is not what it should be."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cache import reading as bank
from cache.common.errors import CacheError, DamageError, FingerprintError, LeaseLostError
from cache.common.files import read_sealed_json
from cache.fingerprint import LEVELS, Fingerprint
from cache.ledger import Outcome
from cache.shards import BACKENDS, Backend
from cache.store import FeatureCache
from tests.helpers.cache import (
    done,
    fill,
    filled_cache,
    make_cache,
    make_dataset,
    make_fingerprint,
    make_shard,
    num_frames_of,
    video_features,
)

SURROUNDINGS = make_fingerprint().environment


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


def assert_holds_all(cache: FeatureCache, video_ids: list[str], views: int = 1) -> None:
    assert list(cache.video_ids) == sorted(video_ids)
    for video_id in video_ids:
        expected = video_features(video_id, num_frames_of(video_id), views)
        assert cache.num_frames(video_id) == num_frames_of(video_id)
        for level in LEVELS:
            for view in range(views):
                np.testing.assert_array_equal(cache.features(video_id, level, view), expected[level][view])


def all_ids(cache: FeatureCache) -> list[str]:
    return [video.id for video in cache.dataset.videos]


def test_what_was_committed_is_read_back(tmp_path: Path, backend: Backend) -> None:
    filled_cache(tmp_path / "c", 9, backend=backend, views=["center", "center_flip"])
    cache = FeatureCache.open(tmp_path / "c")
    assert cache.backend == backend
    assert cache.views == ("center", "center_flip")
    assert cache.settings == {"data": "nowhere"}
    assert cache.dataset == make_dataset(9)
    assert cache.fingerprint == make_fingerprint(views=["center", "center_flip"])
    assert_holds_all(cache, all_ids(cache), views=2)
    video_id = cache.video_ids[3]
    np.testing.assert_array_equal(cache.pts_seconds(video_id), np.arange(num_frames_of(video_id)) / 25)
    np.testing.assert_array_equal(cache.features(video_id, "low", 1, 2, 5), cache.features(video_id, "low", 1)[2:5])
    cache.require_finished()


def test_two_runs_with_one_configuration_give_the_same_bytes(tmp_path: Path, backend: Backend) -> None:
    files = []
    for name in ("one", "two"):
        fill(make_cache(tmp_path / name, 9, backend=backend))
        root = tmp_path / name
        kept = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith("ledger.sqlite")]
        found = {str(path.relative_to(root)): path.read_bytes() for path in kept}
        # But for the random id that tells the two caches apart.
        described = read_sealed_json(root / "cache.json")
        assert described.pop("cache_id")
        files.append({**found, "cache.json": described})
    assert files[0] == files[1]
    assert sum(name.startswith("shards/") for name in files[0]) >= 3


def test_a_bank_has_whole_videos_in_the_order_asked_for(tmp_path: Path, backend: Backend) -> None:
    cache = filled_cache(tmp_path / "c", 9, backend=backend, views=["center", "random0"])
    for ids in (cache.video_ids, cache.video_ids[::-1], cache.video_ids[3:5], cache.video_ids[:1], ()):
        loaded = cache.load("mid", ids)
        assert loaded.video_ids == ids
        assert loaded.features.shape == (2, sum(map(num_frames_of, ids)), 256)
        for i, video_id in enumerate(ids):
            span = slice(*loaded.offsets[i : i + 2])
            np.testing.assert_array_equal(
                loaded.features[:, span].numpy(), video_features(video_id, num_frames_of(video_id), 2)["mid"]
            )
            np.testing.assert_array_equal(loaded.pts_seconds[span], cache.pts_seconds(video_id))
    one_view = cache.load("low", cache.video_ids, views=[1])
    np.testing.assert_array_equal(one_view.features[0].numpy(), cache.load("low", cache.video_ids).features[1].numpy())


def test_a_bank_that_memory_cannot_hold_is_mapped_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled_cache(tmp_path / "c", 8)
    in_memory = cache.load("high", cache.video_ids)
    monkeypatch.setattr(bank, "available_bytes", lambda: 0)
    before = sorted(tmp_path.rglob("*"))
    mapped = cache.load("high", cache.video_ids)
    np.testing.assert_array_equal(mapped.features.numpy(), in_memory.features.numpy())
    assert sorted(tmp_path.rglob("*")) == before


def test_features_uploaded_in_parts_are_those_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read for a GPU, here with a tensor in main memory as its target."""
    cache = filled_cache(tmp_path / "c", 9, views=["center", "random0"])
    monkeypatch.setattr(bank, "_TASK_BYTES", 20_000)
    expected = cache.load("mid", cache.video_ids, views=[1, 0])
    uploaded = torch.full_like(expected.features, float("nan"))
    pts_F = bank.read_features(cache.pool, "mid", cache.places, [1, 0], bank.upload_to(uploaded))
    assert torch.equal(uploaded, expected.features)
    np.testing.assert_array_equal(pts_F, expected.pts_seconds)


def test_a_bank_is_never_made_of_damaged_features(tmp_path: Path, backend: Backend) -> None:
    cache = filled_cache(tmp_path / "c", 8, backend=backend)
    damage(cache, cache.video_ids[5], "mid")
    cache.load("low", cache.video_ids)
    with pytest.raises(DamageError, match=f"'{cache.video_ids[5]}': level mid"):
        cache.load("mid", cache.video_ids)
    uploaded = torch.empty(1, cache.load("low", cache.video_ids).features.shape[1], cache.widths["mid"]).half()
    with pytest.raises(DamageError, match=f"'{cache.video_ids[5]}': level mid"):
        bank.read_features(cache.pool, "mid", cache.places, [0], bank.upload_to(uploaded))
    for _ in range(2):
        with pytest.raises(DamageError, match=f"'{cache.video_ids[5]}': level mid"):
            cache.features(cache.video_ids[5], "mid", 0, 0, 1)


def damage(cache: FeatureCache, video_id: str, level: str) -> None:
    """Flip one bit in the middle of a video's features."""
    needle = video_features(video_id, num_frames_of(video_id))[level].tobytes()[:64]
    for file in (cache.path / "shards").rglob("*"):
        if file.is_file() and needle in (content := file.read_bytes()):
            position = content.index(needle) + 17
            file.write_bytes(content[:position] + bytes([content[position] ^ 8]) + content[position + 1 :])
            return
    raise AssertionError("features not found")


def test_a_shard_that_is_gone_or_replaced_is_named(tmp_path: Path, backend: Backend) -> None:
    cache = filled_cache(tmp_path / "c", 8, backend=backend)
    first, second = (cache.path / "shards" / row.name for row in cache.ledger.shards())
    shutil.rmtree(first) if first.is_dir() else first.unlink()
    with pytest.raises(DamageError, match=first.name):
        cache.load("low", cache.video_ids)
    shutil.copytree(second, first) if second.is_dir() else shutil.copy(second, first)
    with pytest.raises(DamageError, match="replaced"):
        cache.load("low", cache.video_ids)


def test_questions_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "c", 3)
    video_id = cache.video_ids[0]
    frames = num_frames_of(video_id)
    with pytest.raises(CacheError, match="no features of video 'nobody'"):
        cache.features("nobody", "low")
    with pytest.raises(CacheError, match="no features of video 'nobody'"):
        cache.load("low", [video_id, "nobody"])
    with pytest.raises(CacheError, match="'top'"):
        cache.features(video_id, "top")  # type: ignore[arg-type]
    with pytest.raises(CacheError, match=r"has no view 1; it has 0 \(center\)"):
        cache.load("low", [video_id], views=[1])
    for start, stop in [(-1, 1), (2, 1), (0, frames + 1)]:
        with pytest.raises(CacheError, match=rf"\[{start}, {stop}\) is outside"):
            cache.features(video_id, "low", 0, start, stop)


def test_an_unfinished_cache_says_how_to_go_on(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", 5)
    claim = cache.ledger.claim("a", 2, 60)
    assert claim is not None
    ids = [video.id for video in claim.videos]
    cache.commit(claim, make_shard(ids), done(ids), SURROUNDINGS)
    with pytest.raises(CacheError, match=r"3 of 5 videos are not extracted yet\. `make extract DATASET=toy`"):
        cache.require_finished()
    assert_holds_all(cache, ids)
    cache.close()


def test_failed_and_suspect_videos_are_recorded_with_their_reasons(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c", 4) as cache:
        claim = cache.ledger.claim("a", 4, 60)
        assert claim is not None
        a, b, c, d = (video.id for video in claim.videos)
        outcomes = [
            Outcome(video_id=c, status="failed", reason="not a video"),
            dataclasses.replace(
                done([b])[0], status="suspect", reason="2 errors", decoder_errors=2, declared_frames=99
            ),
            done([a])[0],
        ]
        cache.commit(claim, make_shard([a, b]), outcomes, SURROUNDINGS)
        cache.commit(claim, None, [Outcome(video_id=d, status="failed", reason="empty")], SURROUNDINGS)
        assert_holds_all(cache, [a, b])
        assert cache.ledger.counts() == {"pending": 0, "done": 1, "suspect": 1, "failed": 2}
        assert [(o.video_id, o.reason) for o in cache.ledger.outcomes("failed")] == [(c, "not a video"), (d, "empty")]
        assert next(cache.ledger.outcomes("suspect")) == outcomes[1]
        cache.require_finished()


def test_a_commit_must_agree_with_its_outcomes(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c", 4) as cache:
        claim = cache.ledger.claim("a", 4, 60)
        assert claim is not None
        ids = [video.id for video in claim.videos]
        wrong_frames = [dataclasses.replace(outcome, num_frames=1000) for outcome in done(ids)]
        for data, outcomes, words in [
            (make_shard(ids[:2]), done(ids[:3]), "3 outcomes"),
            (make_shard(ids[:2]), done(ids[:1]), "1 outcomes"),
            (None, done(ids[:1]), "1 outcomes"),
            (make_shard(ids), wrong_frames, "says 1000"),
            (make_shard(ids, views=2), done(ids), "2 views"),
        ]:
            with pytest.raises(CacheError, match=words):
                cache.commit(claim, data, outcomes, SURROUNDINGS)
        assert list((cache.path / "shards").iterdir()) == []
        assert cache.ledger.counts()["pending"] == 4


def test_a_worker_that_was_overtaken_leaves_nothing(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c", 2) as cache:
        late = cache.ledger.claim("a", 2, 0.0)
        new = cache.ledger.claim("b", 2, 0.0)
        assert late is not None
        assert new is not None
        ids = [video.id for video in new.videos]
        with pytest.raises(LeaseLostError):
            cache.commit(late, make_shard(ids), done(ids), SURROUNDINGS)
        assert list((cache.path / "shards").iterdir()) == []
        cache.commit(new, make_shard(ids), done(ids), SURROUNDINGS)
        with pytest.raises(LeaseLostError):
            cache.commit(late, make_shard(ids), done(ids), SURROUNDINGS)
        assert len(list((cache.path / "shards").iterdir())) == 1
        assert_holds_all(cache, ids)


def test_other_settings_are_refused_and_drift_is_recorded(tmp_path: Path) -> None:
    make_cache(tmp_path / "c", 3)
    with pytest.raises(FingerprintError, match="backbone"):
        FeatureCache.open_for_extraction(tmp_path / "c", make_fingerprint(backbone="resnet18"), allow_drift=True)
    drifted = make_fingerprint(torch="3.0.0")
    with pytest.raises(FingerprintError, match=r"torch.*--allow-drift"):
        FeatureCache.open_for_extraction(tmp_path / "c", drifted)
    with FeatureCache.open_for_extraction(tmp_path / "c", drifted, allow_drift=True) as cache:
        claim = cache.ledger.claim("a", 3, 60)
        assert claim is not None
        ids = [video.id for video in claim.videos]
        cache.commit(claim, make_shard(ids), done(ids), drifted.environment)
        assert json.loads(cache.ledger.shards()[0].environment)["torch"] == "3.0.0"


def test_a_stray_shard_is_adopted_once_and_a_changed_one_removed(tmp_path: Path, backend: Backend) -> None:
    """A shard without a row is what a crash between the rename and the ledger's commit leaves."""
    filled_cache(tmp_path / "full", 8, backend=backend)
    make_cache(tmp_path / "c", 8, backend=backend)
    first, second = sorted((tmp_path / "full/shards").iterdir())
    for shard in (first, second):
        copy = shutil.copytree if shard.is_dir() else shutil.copy
        copy(shard, tmp_path / "c/shards" / shard.name)
    changed = tmp_path / "c/shards" / second.name
    with (changed if changed.is_file() else changed / "low/c/0/0/0").open("r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(b"\x55" * 8)
    (tmp_path / "c/shards/.tmp-99-1-0").write_bytes(b"half")
    (tmp_path / "c/shards/notes.txt").write_text("somebody's own")
    with FeatureCache.open_for_extraction(tmp_path / "c", make_fingerprint()) as cache:
        assert_holds_all(cache, all_ids(cache)[:4])
        assert cache.ledger.counts()["pending"] == 4
        fill(cache)
        assert cache.recover() == []
        assert_holds_all(FeatureCache.open(tmp_path / "c"), all_ids(cache))
    assert sorted(path.name for path in (tmp_path / "c/shards").iterdir()) == [first.name, second.name, "notes.txt"]


def test_a_stray_whose_videos_were_done_meanwhile_is_removed(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "c", 4)
    (shard,) = (cache.path / "shards").iterdir()
    shutil.copy(shard, shard.with_name(shard.name.replace("000000", "000007")))
    cache.recover()
    assert list((cache.path / "shards").iterdir()) == [shard]


def test_the_shard_of_a_living_worker_is_left_alone(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", 4)
    claim = cache.ledger.claim("someone", 2, 60)
    assert claim is not None
    (cache.path / f"shards/.tmp-{claim.token}-1-0").write_bytes(b"being written")
    assert cache.recover() == []
    cache.ledger.release(claim)
    assert len(cache.recover()) == 1


def test_threads_and_forked_children_read_the_same(tmp_path: Path, backend: Backend) -> None:
    cache = filled_cache(tmp_path / "c", 9, backend=backend)
    expected = {video_id: cache.features(video_id, "low").sum() for video_id in cache.video_ids}
    cache = FeatureCache.open(tmp_path / "c")
    with ThreadPoolExecutor(8) as threads:
        sums = threads.map(lambda video_id: cache.features(video_id, "low").sum(), list(cache.video_ids) * 5)
        assert list(sums) == list(expected.values()) * 5
    forks = multiprocessing.get_context("fork")
    queue = forks.Queue()

    def read() -> None:
        found = {video_id: cache.features(video_id, "low").sum() for video_id in cache.video_ids}
        queue.put((found == expected, cache.ledger.counts()["done"], len(FeatureCache.open(cache.path).video_ids)))

    children = [forks.Process(target=read) for _ in range(3)]
    for child in children:
        child.start()
    assert [queue.get(timeout=30) for _ in children] == [(True, 9, 9)] * 3
    for child in children:
        child.join()
        assert child.exitcode == 0


def test_a_cache_travels_to_other_processes_by_its_path(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "c", 3)
    copy = pickle.loads(pickle.dumps(cache))  # noqa: S301
    assert_holds_all(copy, all_ids(cache))


def test_a_cache_is_not_made_over_something_else(tmp_path: Path) -> None:
    make_cache(tmp_path / "c", 1)
    with pytest.raises(CacheError, match="is there already"):
        make_cache(tmp_path / "c", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_levels_and_views_must_be_known(tmp_path: Path) -> None:
    for changes in (
        {"levels": ["mid", "low"]},
        {"levels": []},
        {"levels": ["top"]},
        {"views": []},
        {"views": "center"},
        *({"widths": widths} for widths in ([1, 2, 3], {"low": 1, "mid": 1}, dict.fromkeys(LEVELS, 0), {"low": "1"})),
    ):
        fingerprint = Fingerprint(identity=make_fingerprint().identity | changes, environment={})
        with pytest.raises(CacheError):
            FeatureCache.create(tmp_path / "c", dataset=make_dataset(1), fingerprint=fingerprint, settings={})
    with pytest.raises(CacheError, match="'npy'"):
        make_cache(tmp_path / "c", 1, backend="npy")
    assert list(tmp_path.iterdir()) == []


def test_a_level_is_as_wide_as_the_backbone_makes_it(tmp_path: Path, backend: Backend) -> None:
    widths = {"low": 3, "mid": 256, "high": 700}
    fingerprint = Fingerprint(identity=make_fingerprint().identity | {"widths": widths}, environment={})
    create = partial(FeatureCache.create, dataset=make_dataset(2), settings={}, backend=backend)
    with create(tmp_path / "c", fingerprint=fingerprint) as cache:
        assert cache.widths == widths
        claim = cache.ledger.claim("a", 2, 60)
        assert claim is not None
        ids = [video.id for video in claim.videos]
        usual = make_shard(ids)
        with pytest.raises(CacheError, match=r"'low': 128.*'low': 3"):
            cache.commit(claim, usual, done(ids), SURROUNDINGS)
        features = {level: usual.features["high"][..., [0] * width] for level, width in widths.items()}
        cache.commit(claim, dataclasses.replace(usual, features=features), done(ids), SURROUNDINGS)
        for level, width in widths.items():
            assert cache.load(level, ids).features.shape == (1, usual.index.num_frames, width)
            assert cache.features(ids[0], level, stop=1).shape == (1, width)
    with FeatureCache.open(tmp_path / "c") as cache:
        cache.pool.widths = {**widths, "high": 512}
        with pytest.raises(DamageError, match=r"'high': 700.*'high': 512"):
            cache.features(ids[0], "low")


def test_some_levels_are_enough(tmp_path: Path) -> None:
    fingerprint = make_fingerprint(levels=["low", "high"])
    with FeatureCache.create(tmp_path / "c", dataset=make_dataset(2), fingerprint=fingerprint, settings={}) as cache:
        claim = cache.ledger.claim("a", 2, 60)
        assert claim is not None
        ids = [video.id for video in claim.videos]
        whole = make_shard(ids)
        with pytest.raises(CacheError, match="levels"):
            cache.commit(claim, whole, done(ids), SURROUNDINGS)
        data = dataclasses.replace(whole, features={level: whole.features[level] for level in ("low", "high")})
        cache.commit(claim, data, done(ids), SURROUNDINGS)
        np.testing.assert_array_equal(cache.load("high", ids).features.numpy(), whole.features["high"])


def test_a_folder_that_is_no_cache_says_so(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not a feature cache"):
        FeatureCache.open(tmp_path)
    with pytest.raises(CacheError, match="not a feature cache"):
        FeatureCache.open(tmp_path / "missing")


def test_new_videos_join_a_cache(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "c", 4)
    assert cache.replace_dataset(make_dataset(7)) == 3
    assert cache.replace_dataset(make_dataset(7)) == 0
    assert cache.ledger.counts()["pending"] == 3
    fill(cache)
    assert_holds_all(cache, [video.id for video in make_dataset(7).videos])
    assert FeatureCache.open(tmp_path / "c").dataset == make_dataset(7)


def test_a_cache_that_nothing_can_be_written_to_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled_cache(tmp_path / "c", 4)
    monkeypatch.setattr(os, "access", lambda *_: False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*")}
    read_only = FeatureCache.open(tmp_path / "c")
    assert_holds_all(read_only, all_ids(cache))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*")} == before
