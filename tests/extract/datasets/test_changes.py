"""Files that change after their extraction: found by size, time and hash, and extracted again."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from cache.common.files import unsealed_json
from cache.ledger import FileState, Outcome
from cache.processes import this_process
from cache.verify import verify
from extract import plan, shards
from extract.datasets.changes import file_state, find_changes, hashed
from tests.helpers.cache import make_cache, make_shard, num_frames_of
from tests.helpers.extract import cache_of, extract, make_videos
from tests.helpers.video import encode

DONE = "4 videos: 4 done, 0 suspect (used, but look at them), 0 failed"


def test_size_then_time_then_bytes_tell_whether_a_file_has_changed(tmp_path):
    before = {}
    for name in ("same", "touched", "edited", "grown", "restless", "new", "gone"):
        (tmp_path / name).write_bytes(b"12345")
        before[name] = hashed(tmp_path / name, file_state(tmp_path / name))
    assert before["same"].hash == before["grown"].hash != ""
    before |= {"restless": file_state(tmp_path / "restless"), "new": None}
    os.utime(tmp_path / "touched", (1, 1))
    (tmp_path / "edited").write_bytes(b"1234x")
    (tmp_path / "grown").write_bytes(b"123456")
    (tmp_path / "gone").unlink()
    found = find_changes(before, {name: tmp_path / name for name in before})
    assert {kind: sorted(names) for kind, names in found.items()} == {
        "changed": ["edited", "grown", "restless"],
        "touched": ["touched"],
        "unknown": ["new"],
    }
    assert found["touched"]["touched"] == FileState(size=5, modified_ns=10**9, hash=before["same"].hash)


def test_a_file_that_changes_while_it_is_read_has_no_hash(tmp_path):
    (tmp_path / "film").write_bytes(b"12345")
    earlier = FileState(size=4, modified_ns=0)
    assert hashed(tmp_path / "film", earlier) == earlier
    os.mkfifo(tmp_path / "pipe")
    assert file_state(tmp_path / "pipe") is None


def test_what_changed_is_extracted_again_and_nothing_else(tmp_path):
    videos = make_videos(tmp_path / "videos")
    first, second = videos / "class0/v_g00_c01.avi", videos / "class1/v_g01_c01.avi"
    assert DONE in extract(tmp_path, "--data", str(videos)).output
    with cache_of(tmp_path) as cache:
        before = cache.ledger.places()
    # Another time alone is no change; the next extraction does not even read the file again.
    os.utime(first)
    assert "1 files have another time and the same bytes" in extract(tmp_path, quick=False).output
    assert "another time" not in extract(tmp_path, quick=False).output
    # Other bytes are, and so is a request by name.
    shutil.copy(second, first)
    result = extract(tmp_path, "--again", "class1/v_g03_c01.avi", "--again", "class0/v_g00_c01", quick=False)
    assert "1 videos are extracted again, because their files have changed: class0/v_g00_c01" in result.output
    assert "2 videos are extracted again, as asked for: class1/v_g03_c01, class0/v_g00_c01" in result.output
    assert "2 of 4 videos to extract" in result.output
    assert DONE in result.output
    with cache_of(tmp_path) as cache:
        after = cache.ledger.places()
        assert [place for place in after if place not in before] == [after[0], after[3]]
        assert cache.ledger.replaced_files().keys() == {"class0/v_g00_c01"}
        assert (cache.features("class0/v_g00_c01", "low") == cache.features("class1/v_g01_c01", "low")).all()
        assert verify(cache.path) == []
    assert "nothing to do" in extract(tmp_path, quick=False).output
    result = extract(tmp_path, "--again", "class1/v_g09_c01", quick=False)
    assert "error: --again: there is no video 'class1/v_g09_c01' in 'toy'; the nearest are class1/v_g0" in result.output
    assert result.exit_code == 1


def test_a_doubt_about_a_header_alone_ends_where_the_file_is_complete(tmp_path, capsys):
    """In one transaction, without decoding; `verify` accepts it, and what else was doubted stays so."""
    count = "decoded 40 frames, 48 declared"
    reasons = [count, count, f"2 decoder errors; {count}", "decoded 1.2 s of 3601.2 s declared", count]
    complete = encode(tmp_path / "video.avi", 3).read_bytes()
    with make_cache(tmp_path / "cache", 5) as cache:
        claim = cache.ledger.claim(this_process(), 5, 60)
        ids = [video.id for video in claim.videos]
        outcomes = [
            Outcome(video_id=each, status="suspect", reason=reason, num_frames=num_frames_of(each))
            for each, reason in zip(ids, reasons, strict=True)
        ]
        cache.commit(claim, make_shard(ids), outcomes, cache.fingerprint.environment)
        paths = plan.paths_of(cache.dataset, tmp_path / "videos")
        for index, path in enumerate(paths.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
            if index != 4:
                path.write_bytes(complete[:-100] if index == 1 else complete)
        plan.compare_files(cache, paths)
        assert "1 suspect videos are done now" in capsys.readouterr().out
        assert list(cache.ledger.outcomes("done")) == [replace(outcomes[0], status="done")]
        assert list(cache.ledger.outcomes("suspect")) == outcomes[1:]
        assert verify(cache.path) == []
        with cache.ledger.transaction() as connection:
            cache.ledger.accept(connection, ids)
    assert len(verify(tmp_path / "cache")) == 1  # errors are no header's count


@pytest.mark.slow
def test_a_copy_under_way_is_told_and_extracted_again(tmp_path, monkeypatch):
    videos = make_videos(tmp_path / "videos")
    whole = (videos / "class0/v_g00_c01.avi").read_bytes()
    monkeypatch.setattr(shards, "hashed", lambda path, state: _growing(path, state, whole))
    result = extract(tmp_path, "--data", str(videos))
    assert "the files of 1 videos changed while they were extracted" in result.output
    monkeypatch.undo()
    assert "1 videos are extracted again, because their files have changed" in extract(tmp_path, quick=False).output


def _growing(path, state, more):
    if path.name == "v_g00_c01.avi":
        path.write_bytes(path.read_bytes() + more)
    return hashed(path, state)


@pytest.mark.slow
def test_a_cache_of_an_earlier_version_learns_its_files(tmp_path):
    videos = make_videos(tmp_path / "videos")
    extract(tmp_path, "--data", str(videos))
    path = tmp_path / "work/cache/toy"
    with cache_of(tmp_path) as cache, cache.ledger.transaction() as connection:
        connection.execute("DROP TABLE files")
    with cache_of(tmp_path) as cache:
        dataset = cache.dataset
        assert set(cache.ledger.files().values()) == {None}
        assert cache.ledger.replaced_files() == {}
    assert "4 files are remembered as they are now" in extract(tmp_path, quick=False).output
    shutil.copy(videos / "class1/v_g01_c01.avi", videos / "class0/v_g00_c01.avi")
    assert DONE in extract(tmp_path, quick=False).output
    value = unsealed_json((path / "dataset.json").read_bytes(), "dataset.json")
    assert (value["format"], len(value["samples"])) == (2, len(dataset.samples))
    assert json.dumps(value)
