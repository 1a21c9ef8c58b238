"""Commands of the cache, killed and refused at each of their system calls: the same command continues."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from cache.convert import prove_equal
from cache.fingerprint import LEVELS
from cache.remote.address import WebAddress
from cache.remote.client import Location
from cache.remote.index import index_of, sha256_of
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.breaking import break_each_call
from tests.helpers.cache import fill, filled_cache, make_dataset, make_fingerprint, num_frames_of, video_features
from tests.helpers.objects import S3Server, use
from tests.helpers.web import web_server

VIDEOS = 5

MODULES = ("h5py", "zarr", "numpy", "safetensors.numpy", "cache.shards.hdf5", "cache.shards.zarr")


def assert_convertible(place: Path) -> None:
    """The source is as it was, and the target equal to it."""
    with FeatureCache.open(place / "source") as source, FeatureCache.open(place / "target") as target:
        assert len(target.video_ids) == VIDEOS
        prove_equal(source, target, {outcome.video_id: outcome for outcome in source.ledger.outcomes()})
    assert [finding for finding in verify(place / "target") if not finding.harmless] == []
    assert verify(place / "source") == []


def convert(place: Path) -> Sequence[object]:
    filled_cache(place / "source", VIDEOS, shard_videos=3)
    return ("convert", place / "source", place / "target", "--to", "zarr")


def export(place: Path) -> Sequence[object]:
    filled_cache(place / "source", VIDEOS, shard_videos=3)
    return ("export", place / "source", place / "target")


def assert_exported(place: Path) -> None:
    """All files, none besides, and each whole."""
    with FeatureCache.open(place / "source") as source:
        wanted = {place / "target" / f"{video_id}.npz": video_id for video_id in source.video_ids}
    assert {path for path in (place / "target").rglob("*") if path.is_file()} == set(wanted)
    for path, video_id in wanted.items():
        expected = video_features(video_id, num_frames_of(video_id))
        with np.load(path) as found:
            assert all(np.array_equal(found[level], expected[level]) for level in LEVELS)
    assert {path.name for path in place.iterdir()} == {"source", "target"}


def export_whole_or_not(place: Path) -> None:
    if (place / "target").exists():
        assert_exported(place)


def repair(place: Path) -> Sequence[object]:
    cache = filled_cache(place / "source", VIDEOS, shard_videos=3)
    first, second = (cache.path / "shards" / row.name for row in cache.ledger.shards())
    cache.close()
    first.write_bytes(first.read_bytes()[:-1])
    second.rename(second.with_name(second.name.replace("000001", "000007")))
    return ("repair", place / "source")


def assert_repaired(place: Path) -> None:
    assert verify(place / "source") == []


@pytest.mark.slow
@pytest.mark.parametrize("every", [pytest.param(1, id="each")])
def test_attach_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server, every: int) -> None:
    use(monkeypatch, s3_server.endpoint)
    where = Location("bucket", "caches/attached")
    dataset, fingerprint = make_dataset(VIDEOS), make_fingerprint()
    created = {"dataset": dataset, "fingerprint": fingerprint, "settings": {}, "backend": "zarr", "location": where}
    fill(FeatureCache.create(tmp_path / "first", **created))

    def prepare(place: Path) -> Sequence[object]:
        return ("attach", where, "--work", place / "work", "--dataset", "toy")

    def finished(place: Path) -> None:
        with FeatureCache.open(place / "work/cache/toy") as cache:
            assert len(cache.video_ids) == VIDEOS
            assert cache.features(cache.video_ids[0], "low").shape[1] == 128
        assert list((place / "work/cache").glob(".tmp-*")) == []

    fired = break_each_call(tmp_path, "cache", prepare, finished, every=every, modules=("numpy",))
    print(f"attach: broken {fired} times")


def publish(place: Path) -> Sequence[object]:
    filled_cache(place / "source", VIDEOS, shard_videos=3)
    return ("publish", place / "source", place / "site", "--source", "made up", "--license", "CC0-1.0")


def served_whole_or_not(place: Path) -> None:
    """What the index names is there, as it says: readers may come at any moment."""
    if (place / "site/index.json").exists():
        for name, entry in index_of((place / "site/index.json").read_bytes(), "index.json").objects.items():
            assert sha256_of((place / "site" / name).read_bytes()) == entry.sha256


def assert_published(place: Path) -> None:
    served_whole_or_not(place)
    with web_server(place / "site") as server:
        copy = place / "copy"
        with (
            FeatureCache.attach(copy, WebAddress.parse(server.address)) as found,
            FeatureCache.open(place / "source") as source,
        ):
            prove_equal(source, found, {outcome.video_id: outcome for outcome in source.ledger.outcomes()})
        shutil.rmtree(copy)
    assert {path.name for path in place.iterdir()} == {"source", "site"}
    assert [path for path in (place / "site").rglob(".*") if path.is_file()] == []


@pytest.mark.slow
def test_publish_continues(tmp_path: Path) -> None:
    fired = break_each_call(
        tmp_path, "cache", publish, assert_published, broken=served_whole_or_not, every=1, modules=MODULES
    )
    print(f"publish: broken {fired} times")


COMMANDS: dict[str, tuple[Callable[[Path], Sequence[object]], Callable[[Path], None], Callable[[Path], None]]] = {
    "convert": (convert, assert_convertible, lambda _: None),
    "export": (export, assert_exported, export_whole_or_not),
    "repair": (repair, assert_repaired, lambda _: None),
}


@pytest.mark.parametrize(
    ("command", "every"),
    [pytest.param(command, 211, id=f"some-{command}") for command in ("export", "repair")]
    + [pytest.param(command, 1, id=f"each-{command}", marks=pytest.mark.slow) for command in COMMANDS],
)
def test_the_same_command_continues(tmp_path: Path, command: str, every: int) -> None:
    prepare, finished, broken = COMMANDS[command]
    fired = break_each_call(tmp_path, "cache", prepare, finished, broken=broken, every=every, modules=MODULES)
    print(f"{command}: broken {fired} times")
