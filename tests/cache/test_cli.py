"""`python -m cache`: what each command prints, writes and exits with."""

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open

from cache import leases
from cache.cli import main
from cache.common.errors import CacheError, LeaseLostError
from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import LEVELS
from cache.ledger import Outcome
from cache.processes import this_process
from cache.shards import BACKENDS
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


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("arguments", [[], ["info"], ["verify"], ["repair"], ["leases"], ["convert"], ["export"]])
def test_help_teaches_and_needs_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from cache.cli import main; main(sys.argv[1:], standalone_mode=False);"
        " print(sorted({'torch', 'h5py', 'zarr', 'numpy'} & sys.modules.keys()))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage:" in shown.stdout
    assert shown.stdout.endswith("[]\n")


def test_info_for_people(tmp_path: Path) -> None:
    filled_cache(tmp_path / "c", 9)
    shown = run("info", tmp_path / "c")
    assert shown.exit_code == 0
    assert "videos      9: 0 pending, 9 done, 0 suspect, 0 failed" in shown.stdout
    assert "random:0" in shown.stdout
    assert "in 3 shards (h5)" in shown.stdout


def test_info_for_programs_by_workspace(tmp_path: Path) -> None:
    work = Workspace(tmp_path)
    cache = filled_cache(work.cache("toy"), 9)
    work.remember_dataset("toy")
    info = json.loads(run("info", "--work", tmp_path, "--json").stdout)
    assert info["videos"] == {"pending": 0, "done": 9, "suspect": 0, "failed": 0}
    assert info["frames"] == sum(map(num_frames_of, cache.video_ids))
    assert info["fingerprint"]["digest"] == cache.fingerprint.digest
    assert info["bytes"] == sum(file.stat().st_size for file in (cache.path / "shards").iterdir())


def test_a_missing_cache_is_an_expected_error(tmp_path: Path) -> None:
    shown = run("info", tmp_path)
    assert shown.exit_code == 1
    assert shown.stderr.startswith("error: ")
    assert "not a feature cache" in shown.stderr


@pytest.mark.parametrize("name", ["s3://bucket/cache", "file:///tmp/x", "zip::cache", "https://host/c.h5"])
def test_addresses_are_refused(name: str) -> None:
    shown = run("verify", name)
    assert shown.exit_code == 1
    assert "looks like an address" in shown.stdout + shown.stderr


def test_verify_says_that_all_is_well_and_writes_nothing(tmp_path: Path) -> None:
    filled_cache(tmp_path / "c", 9)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*") if not path.name.endswith("-shm")}
    shown = run("verify", tmp_path / "c")
    assert shown.exit_code == 0
    assert "everything is as it was written" in shown.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_damage_is_listed_and_repaired_when_asked(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "c", 9)
    shard = cache.path / "shards" / cache.ledger.shards()[1].name
    shard.write_bytes(shard.read_bytes()[:-1])
    cache.close()
    shown = run("verify", tmp_path / "c")
    assert shown.exit_code == 1
    assert f"shard {shard.name}: its bytes are not those that were written" in shown.stdout
    assert [line.strip() for line in shown.stdout.splitlines() if line.startswith("  ")] == list(cache.video_ids[4:8])
    assert "1 things" in shown.stderr
    repaired = run("repair", tmp_path / "c")
    assert repaired.exit_code == 0
    assert "queued the 4 videos" in repaired.stdout
    assert (tmp_path / "c/quarantine" / shard.name).exists()
    assert run("verify", tmp_path / "c").exit_code == 0
    assert FeatureCache.open(tmp_path / "c").ledger.counts()["pending"] == 4
    assert "nothing to repair" in run("repair", tmp_path / "c").stdout


def test_only_prune_deletes_and_a_dry_run_shows_what(tmp_path: Path) -> None:
    path = filled_cache(tmp_path / "c", 9).path
    shards = sorted((path / "shards").iterdir())
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    other = filled_cache(tmp_path / "other", 9, shard_videos=3).path
    stray = next(shard for shard in (other / "shards").iterdir() if not (path / "shards" / shard.name).exists())
    shutil.copy(stray, path / "shards")
    (path / "shards/.tmp-99-1-1").write_bytes(b"half")

    def content() -> dict[str, bytes]:
        files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("ledger.sqlite-"))
        return {str(file.relative_to(path)): file.read_bytes() for file in files}

    before = content()
    shown = run("repair", path, "--dry-run", "--prune").stdout
    assert f"would have moved {stray.name} to quarantine/" in shown
    assert "would have removed .tmp-99-1-1" in shown
    assert f"would have queued 4 videos again (shard {shards[1].name}" in shown
    assert shown.endswith("nothing was changed\n")
    assert content() == before
    assert run("repair", path, "--prune").exit_code == 0
    assert {file.name for file in (path / "quarantine").iterdir()} == {stray.name, shards[1].name}, "set aside just now"
    assert run("repair", path).stdout == f"{path}: there was nothing to repair\n"
    shown = run("repair", path, "--prune", "--dry-run").stdout
    assert shown.count("would have deleted quarantine/") == 2
    assert len(list((path / "quarantine").iterdir())) == 2
    assert run("repair", path, "--prune").stdout.count("deleted quarantine/") == 2
    assert list((path / "quarantine").iterdir()) == []
    assert run("verify", path).exit_code == 0


def test_leases_are_listed_and_broken_where_nobody_renews_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases.break_leases, "__defaults__", (0.0,))
    cache = make_cache(tmp_path / "c", 9)
    assert run("leases", tmp_path / "c").stdout == f"{tmp_path / 'c'}: nobody holds anything\n"
    elsewhere, mine = cache.ledger.claim("elsewhere-" + "0" * 16 + "-77-5", 4, 120), None
    assert "process 77 on elsewhere, not of this machine: 4 videos (claim 1)" in run("leases", tmp_path / "c").stdout
    mine = cache.ledger.claim(this_process(), 2, 120)
    assert f"process {os.getpid()} on" in run("leases", tmp_path / "c").stdout
    refused = run("leases", "--break", tmp_path / "c")
    assert refused.exit_code == 1
    assert "is alive and works on" in refused.stderr
    assert len(cache.ledger.leases()) == 2
    cache.ledger.release(mine)
    shown = run("leases", "--break", tmp_path / "c")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("broke the lease of process 77 on elsewhere")
    ids = [video.id for video in elsewhere.videos]
    with cache, pytest.raises(LeaseLostError, match="cache leases --break"):
        cache.commit(elsewhere, make_shard(ids), done(ids), {})
    assert cache.ledger.claim(this_process(), 9, 120).videos[:4] == elsewhere.videos


def test_a_lease_that_is_renewed_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(tmp_path / "c", 9)
    claim = cache.ledger.claim("elsewhere", 4, 120)
    monkeypatch.setattr(time, "sleep", lambda _: cache.ledger.renew(claim, 120))
    with pytest.raises(CacheError, match="elsewhere still works on"):
        leases.break_leases(cache)
    cache.ledger.renew(claim, 120)
    cache.close()


@pytest.mark.parametrize(("before", "after"), [("h5", "zarr"), ("zarr", "h5"), ("h5", "h5")])
def test_convert_keeps_everything(tmp_path: Path, before: str, after: str) -> None:
    source = filled_cache(tmp_path / "a", 9, backend=before, views=["center", "center_flip"])
    shown = run("convert", tmp_path / "a", tmp_path / "b", "--to", after)
    assert shown.exit_code == 0, shown.output
    assert "9 videos" in shown.stdout
    made = FeatureCache.open(tmp_path / "b")
    assert made.backend == after
    assert made.dataset == source.dataset
    assert made.fingerprint == source.fingerprint
    assert list(made.ledger.outcomes()) == list(source.ledger.outcomes())
    for video_id in source.video_ids:
        np.testing.assert_array_equal(made.features(video_id, "mid", 1), source.features(video_id, "mid", 1))
    assert run("verify", tmp_path / "b").exit_code == 0
    assert run("convert", tmp_path / "a", tmp_path / "b", "--to", after).exit_code == 0
    assert len(made.ledger.shards()) == 3


def test_convert_leaves_out_what_was_requeued_and_what_is_pending(tmp_path: Path) -> None:
    source = filled_cache(tmp_path / "a", 9)
    with source.ledger.transaction() as connection:
        source.ledger.forget_video(connection, source.video_ids[5])
    assert run("convert", tmp_path / "a", tmp_path / "b", "--to", "zarr").exit_code == 0
    made = FeatureCache.open(tmp_path / "b")
    assert made.ledger.counts() == {"pending": 1, "done": 8, "suspect": 0, "failed": 0}
    assert made.ledger.leases() == []
    assert run("verify", tmp_path / "b").exit_code == 0


def test_convert_follows_a_source_that_grew_or_changed(tmp_path: Path) -> None:
    """Also where an earlier conversion was killed, by which shards are adopted without their decode times."""
    source = filled_cache(tmp_path / "a", 9)
    with source.ledger.transaction() as connection:
        connection.execute("UPDATE videos SET seconds = 1.5")
        source.ledger.forget_shard(connection, 1)
    convert = ("convert", tmp_path / "a", tmp_path / "b", "--to", "zarr")
    assert run(*convert).exit_code == 0
    made = FeatureCache.open(tmp_path / "b")
    with made.ledger.transaction() as connection:
        connection.execute("UPDATE videos SET seconds = 0.0")
        made.ledger.forget_video(connection, source.video_ids[0])
    source.recover()
    source.replace_dataset(make_dataset(12))
    fill(source)
    assert run(*convert).output.endswith("b: 12 videos as zarr, equal to " + str(tmp_path / "a") + " bit by bit\n")
    with source.ledger.transaction() as connection:
        source.ledger.forget_video(connection, source.video_ids[3])
    claim = source.ledger.claim("test", 4, 60)
    source.commit(claim, None, [Outcome(video_id=claim.videos[0].id, status="failed", reason="gone")], {})
    assert "11 videos" in run(*convert).output
    assert run("verify", tmp_path / "b").exit_code == 0


def test_convert_says_who_keeps_it_waiting(tmp_path: Path) -> None:
    filled_cache(tmp_path / "a", 9)
    convert = ("convert", tmp_path / "a", tmp_path / "b", "--to", "zarr")
    assert run(*convert).exit_code == 0
    with FeatureCache.open(tmp_path / "b") as made:
        with made.ledger.transaction() as connection:
            made.ledger.forget_video(connection, made.video_ids[0])
        claim = made.ledger.claim("elsewhere-" + "0" * 16 + "-77-5", 4, 120)
    assert "process 77 on elsewhere is at work on" in run(*convert).stderr
    with FeatureCache.open(tmp_path / "b") as made:
        made.ledger.release(claim)
    assert run(*convert).exit_code == 0


def test_convert_does_not_mix_caches(tmp_path: Path) -> None:
    filled_cache(tmp_path / "a", 9)
    make_cache(tmp_path / "b", 5)
    assert "another cache" in run("convert", tmp_path / "a", tmp_path / "b", "--to", "h5").stderr


def test_damage_is_not_converted(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "a", 9)
    shard = cache.path / "shards" / cache.ledger.shards()[0].name
    content = shard.read_bytes()
    shard.write_bytes(content[:-5000] + bytes(5000))
    shown = run("convert", tmp_path / "a", tmp_path / "b", "--to", "zarr")
    assert shown.exit_code == 1
    assert "is not what was written" in shown.stderr


def test_export_a_video_each(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "c", 9, backend="zarr", views=["center", "center_flip"])
    assert run("export", tmp_path / "c", tmp_path / "npz").exit_code == 0
    assert run("export", tmp_path / "c", tmp_path / "st", "--to", "safetensors").exit_code == 0
    for video_id in cache.video_ids:
        expected = video_features(video_id, num_frames_of(video_id), 2)
        with (
            np.load(tmp_path / f"npz/{video_id}.npz") as npz,
            safe_open(tmp_path / f"st/{video_id}.safetensors", "np") as st,
        ):
            assert npz["views"].tolist() == json.loads(st.metadata()["views"]) == ["center", "center_flip"]
            for level in LEVELS:
                np.testing.assert_array_equal(npz[level], expected[level])
                np.testing.assert_array_equal(st.get_tensor(level), expected[level])
            np.testing.assert_array_equal(st.get_tensor("pts_seconds"), cache.pts_seconds(video_id))
    assert run("export", tmp_path / "c", tmp_path / "npz").exit_code == 0, "the same again is no error"
    path = tmp_path / f"npz/{cache.video_ids[0]}.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "is there already, with other features" in run("export", tmp_path / "c", tmp_path / "npz").stderr
    path.unlink()
    assert "is there already; choose" in run("export", tmp_path / "c", tmp_path / "npz").stderr
    assert {path.name for path in tmp_path.iterdir()} == {"c", "npz", "st"}


def test_export_follows_no_link_and_two_do_not_mix(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "c", 4)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").touch()
    (tmp_path / ".tmp-out").symlink_to(tmp_path / "elsewhere")
    assert run("export", tmp_path / "c", tmp_path / "out").exit_code == 0
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["precious"]
    (tmp_path / ".tmp-two").mkdir()
    held = os.open(tmp_path / ".tmp-two", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert "another process writes" in run("export", cache.path, tmp_path / "two").stderr
    os.close(held)
    assert run("export", cache.path, tmp_path / "two").exit_code == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_export_a_level_each(tmp_path: Path, backend: str) -> None:
    cache = filled_cache(tmp_path / "c", 9, backend=backend)
    assert run("export", tmp_path / "c", tmp_path / "npz", "--per", "level").exit_code == 0
    assert run("export", tmp_path / "c", tmp_path / "st", "--per", "level", "--to", "safetensors").exit_code == 0
    for level in LEVELS:
        whole = np.concatenate([cache.features(video_id, level) for video_id in cache.video_ids])
        with np.load(tmp_path / f"npz/{level}.npz") as npz, safe_open(tmp_path / f"st/{level}.safetensors", "np") as st:
            np.testing.assert_array_equal(npz["features"][0], whole)
            np.testing.assert_array_equal(st.get_tensor("features")[0], whole)
            assert npz["video_ids"].tolist() == json.loads(st.metadata()["video_ids"]) == list(cache.video_ids)
            np.testing.assert_array_equal(np.diff(npz["offsets"]), [num_frames_of(v) for v in cache.video_ids])
            np.testing.assert_array_equal(npz["pts_seconds"], st.get_tensor("pts_seconds"))


HOSTILE = "c0/a\u202eb\u009b2Jc"
"""Text that turns the direction of a line and, in some terminals, clears the screen; allowed in a file's name."""


def test_names_and_reasons_reach_a_terminal_only_made_visible(tmp_path: Path) -> None:
    dataset = Dataset.of_whole_videos("toy", "folder", ("a",), [(f"{HOSTILE}.avi", 0, {})])
    environment = {"decoder": "x\x1b[2Jy"}
    cache = FeatureCache.create(
        tmp_path / "c",
        dataset=dataset,
        fingerprint=make_fingerprint(**environment),
        settings={},
    )
    claim = cache.ledger.claim("test", 1, 60)
    assert claim is not None
    cache.commit(claim, None, [Outcome(video_id=HOSTILE, status="failed", reason="\x1b]0;title\x07\nnew")], {})
    cache.close()
    for options in (["info"], ["info", "--json"]):
        shown = run(*options, tmp_path / "c").stdout
        assert not set("\u202e\u009b\x1b\x07") & set(shown), shown
    assert r"c0/a\u202eb\x9b2Jc: \x1b]0;title\x07\nnew" in run("info", tmp_path / "c").stdout
    assert json.loads(run("info", "--json", tmp_path / "c").stdout)["failed"][0]["video"] == HOSTILE
    with sqlite3.connect(tmp_path / "c/ledger.sqlite") as connection:
        connection.execute("UPDATE videos SET status = 'done'")
    (tmp_path / "c/shards/a\x1b[2J").write_bytes(b"")
    for command in ("verify", "repair"):
        shown = run(command, tmp_path / "c").output
        assert not set("\u202e\u009b\x1b\x07") & set(shown), shown


def test_an_error_reaches_a_terminal_only_made_visible(tmp_path: Path) -> None:
    shown = run("info", tmp_path / "a\u202eb\x1b[2J")
    assert shown.exit_code == 1
    assert r"a\u202eb\x1b[2J is not a feature cache" in shown.output
