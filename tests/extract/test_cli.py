"""`python -m extract` on small data sets: what it makes, what it continues, what it refuses, what it says."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cache.common.errors import CacheError
from cache.repair import repair
from cache.verify import verify
from extract.cli import main
from tests.helpers.extract import QUICK, assert_same, cache_of, everything, extract, make_videos
from tests.helpers.video import encode

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a data set of four videos in videos/, and work/ with its cache."""
    folder = tmp_path_factory.mktemp("finished")
    result = extract(folder, "--data", str(make_videos(folder / "videos")), "--views", "center,random:1")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of `finished` that may be changed; the videos are where they were."""
    shutil.copytree(finished / "work", tmp_path / "work")
    return tmp_path


def test_a_run_says_what_it_does_and_what_came_of_it(tmp_path):
    videos = make_videos(tmp_path / "videos", count=2)
    result = extract(tmp_path, "--data", str(videos))
    assert result.exit_code == 0
    for text in ("2 of 2 videos to extract", "x0_5 with random:0", "on cpu in fp32", "of disk needed", "2 done"):
        assert text in result.output
    assert (tmp_path / "work" / "last-dataset").read_text().strip() == "toy"


def test_what_is_cached_has_all_frames_levels_and_views(finished):
    with cache_of(finished) as cache:
        assert cache.video_ids == tuple(f"class{i % 2}/v_g{i:02d}_c01" for i in (0, 2, 1, 3))
        assert cache.views == ("center", "random0")
        assert [cache.num_frames(video_id) for video_id in cache.video_ids] == [5, 7, 6, 5]
        assert {features.dtype.name for features in everything(cache).values()} == {"float16"}
        assert cache.fingerprint.identity["weights"] == "random:0"
        assert cache.fingerprint.environment["device"] == "cpu"


def test_two_runs_give_the_same_shard_bytes(finished, tmp_path):
    extract(tmp_path, "--data", str(finished / "videos"), "--views", "center,random:1", "--jobs", "2")
    names = [sorted(p.name for p in (f / "work/cache/toy/shards").iterdir()) for f in (finished, tmp_path)]
    assert names[0] == names[1]
    for name in names[0]:
        ours, theirs = (f / "work/cache/toy/shards" / name for f in (finished, tmp_path))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_second_run_does_nothing_and_needs_neither_torch_nor_the_options(finished):
    program = (
        "import sys; from extract.cli import main\n"
        f"code = main(['--work', {str(finished / 'work')!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--weights", "random:1"], 'weights: the cache has "random:0", this run has "random:1"'),
        (["--backbone", "resnet34"], 'backbone: the cache has "shufflenet_v2_x0_5", this run has "resnet34"'),
        (["--views", "center"], r'views: the cache has \["center", "random0"\], this run has \["center"\]'),
        (["--levels", "high"], "levels: the cache has"),
        (["--max-frames", "3"], "max_frames: the cache has null, this run has 3"),
        (["--fps", "5"], "fps: the cache has null, this run has 5.0"),
        (["--precision", "bf16"], 'precision: the cache has "fp32", this run has "bf16".*--allow-drift'),
        (["--batch-frames", "8"], "batch_frames: the cache has 4, this run has 8"),
        (["--decoder", "decord"], 'decoder: the cache has "pyav", this run has "decord"'),
        (["--format", "zarr"], "has format h5, and zarr was asked for"),
    ],
)
def test_an_explicit_other_setting_is_refused_by_name(copy, options, named):
    result = extract(copy, *options, quick=False)
    assert result.exit_code == 1
    assert re.search(named, result.output), result.output
    assert "Traceback" not in result.output


def test_an_exported_variable_that_contradicts_the_cache_is_named(copy, monkeypatch):
    monkeypatch.setenv("MRRN_MAKE", "WEIGHTS=random:1 make extract VIEWS=center")
    result = extract(copy, "--weights", "random:1", "--views", "center", quick=False)
    assert "This run has weights from the environment variable WEIGHTS (`unset WEIGHTS` takes it away)" in result.output
    assert " and views from VIEWS= of make's command line" in result.output


def test_settings_not_given_are_those_of_the_cache_and_new_videos_are_added(finished, tmp_path):
    videos = make_videos(tmp_path / "videos")
    gone = videos / "class0" / "v_g02_c01.avi"
    aside = gone.rename(tmp_path / "aside.avi")
    assert extract(tmp_path, "--data", str(videos), "--views", "center,random:1").exit_code == 0
    aside.rename(gone)
    result = extract(tmp_path, quick=False)
    assert "new since the cache was made: 1 of the videos, class0/v_g02_c01" in result.output
    assert result.exit_code == 0
    with cache_of(tmp_path) as ours, cache_of(finished) as theirs:
        assert_same(everything(ours), everything(theirs))
        assert len(ours.dataset.videos) == 4


def test_a_vanished_video_leaves_the_data_set_and_brings_its_features_back(tmp_path):
    videos = make_videos(tmp_path / "videos")
    extract(tmp_path, "--data", str(videos))
    with cache_of(tmp_path) as cache:
        before = everything(cache)
    gone = videos / "class1" / "v_g01_c01.avi"
    aside = gone.rename(tmp_path / "aside.avi")
    result = extract(tmp_path, quick=False)
    told = "1 videos are no longer in the data set (their features stay in the shards): class1/v_g01_c01"
    assert told in result.output
    assert "3 videos: 3 done" in result.output
    assert result.exit_code == 0
    with cache_of(tmp_path) as cache:
        assert "class1/v_g01_c01" not in cache.video_ids
        assert [video.id for video in cache.dataset.videos] == list(cache.video_ids)
        assert cache.ledger.counts()["pending"] == 0
        assert verify(cache.path) == []
        (cache.path / "ledger.sqlite").unlink()
    assert repair(tmp_path / "work/cache/toy")
    aside.rename(gone)
    result = extract(tmp_path, quick=False)
    assert "nothing to do" in result.output
    with cache_of(tmp_path) as cache:
        assert_same(everything(cache), before)
        assert verify(cache.path) == []
    shutil.rmtree(videos)
    result = extract(tmp_path, quick=False)
    assert (result.exit_code, "not at hand, and not needed" in result.output) == (0, True)


def test_the_folder_given_last_is_the_one_that_later_commands_follow(tmp_path):
    videos = make_videos(tmp_path / "videos")
    extract(tmp_path, "--data", str(videos))
    shutil.copytree(videos, tmp_path / "moved")
    (videos / "class1" / "v_g01_c01.avi").unlink()
    assert "nothing to do" in extract(tmp_path, "--data", str(tmp_path / "moved"), quick=False).output
    result = extract(tmp_path, quick=False)
    assert ("nothing to do" in result.output, "no longer" in result.output) == (True, False), result.output
    with cache_of(tmp_path) as cache:
        assert len(cache.dataset.videos) == 4
        assert verify(cache.path) == []


@pytest.mark.slow
def test_a_video_that_vanished_before_it_was_extracted_is_neither_pending_nor_failed(tmp_path):
    videos = make_videos(tmp_path / "videos")
    extract(tmp_path, "--data", str(videos))
    (videos / "class0" / "broken.avi").write_bytes(b"no video")
    assert extract(tmp_path, quick=False).exit_code == 3
    with cache_of(tmp_path) as cache:
        cache.requeue(["failed", "done"])
    (videos / "class0" / "broken.avi").unlink()
    (videos / "class1" / "v_g01_c01.avi").unlink()
    result = extract(tmp_path, quick=False)
    assert (result.exit_code, "3 videos: 3 done, 0 suspect" in result.output) == (0, True), result.output
    with cache_of(tmp_path) as cache:
        cache.require_finished()
        assert verify(cache.path) == []


def test_a_relabelled_video_has_its_new_label_and_half_only(tmp_path):
    videos = make_videos(tmp_path / "videos")
    table = tmp_path / "list.csv"
    files = sorted(str(path.relative_to(tmp_path)) for path in videos.rglob("*.avi"))
    table.write_text("video,label,split1\n" + "".join(f"{file},{file[7:13]},train\n" for file in files))
    extract(tmp_path, "--data", str(table))
    table.write_text(table.read_text().replace(f"{files[0]},class0,train", f"{files[0]},class1,test"))
    result = extract(tmp_path, quick=False)
    assert f"1 videos have another label than before: {files[0][:-4]}" in result.output
    assert f"1 videos are in another half of a split than before: {files[0][:-4]}" in result.output
    with cache_of(tmp_path) as cache:
        assert (cache.dataset.samples[0].label, cache.dataset.samples[0].splits[1]) == (1, "test")
    # The same by folders: the file is another video now.
    result = extract(tmp_path, "--data", str(videos), dataset="folders")
    (videos / "class0" / "v_g00_c01.avi").rename(videos / "class1" / "v_g00_c01.avi")
    result = extract(tmp_path, dataset="folders", quick=False)
    assert result.exit_code == 0, result.output
    with cache_of(tmp_path, "folders") as cache:
        ids = [video.id for video in cache.dataset.videos]
        assert ids == list(cache.video_ids) == ["class0/v_g02_c01", *(f"class1/v_g0{n}_c01" for n in (0, 1, 3))]


def test_an_id_does_not_depend_on_the_locale(tmp_path):
    videos = make_videos(tmp_path / "videos")
    (videos / "class0").rename(videos / "école")
    assert extract(tmp_path, "--data", str(videos)).exit_code == 0
    # Python's UTF-8 mode is off, as in a locale of Latin-1: names come as bytes that are no ASCII.
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "extract", "--work", str(tmp_path / "work"), "--dataset", "toy"]
    found = subprocess.run(command, env=os.environ | locale, capture_output=True, text=True)
    assert "nothing to do" in found.stdout, found.stdout + found.stderr
    assert "new since" not in found.stdout
    with cache_of(tmp_path) as cache:
        assert [video.id for video in cache.dataset.videos][-1] == "école/v_g02_c01"


def test_classes_and_what_is_passed_over_are_told_before_anything_is_decoded(tmp_path):
    videos = make_videos(tmp_path / "videos")
    shutil.copytree(videos / "class1", videos / "Class1")
    (videos / "class2").mkdir()
    (videos / "class2" / "film.rmvb").write_bytes(b"x")
    (videos / "class1" / "@eaDir").mkdir()
    (videos / "class1" / "v_g01_c01.avi").rename(videos / "class1" / "v_g01_c01.AVI")
    result = extract(tmp_path, "--data", str(videos))
    assert result.exit_code == 0, result.output
    for line in (
        "files passed over, by suffix: 1 .rmvb\n",
        "folders not looked into: class1/@eaDir\n",
        "folders without a video, which give no class: class2\n",
        "  3 classes: Class1 2, class0 2, class1 2\n",
        "classes whose names look alike, so that they may be meant as one: 'Class1' and 'class1'\n",
    ):
        assert line in result.output


@pytest.mark.parametrize("halves", [("train", "test"), ("Training", "val", "unsorted"), ("test_set", "train_set")])
def test_halves_of_a_split_are_not_classes(tmp_path, halves):
    for half in halves:
        make_videos(tmp_path / "videos" / half, count=2)
    result = extract(tmp_path, "--data", str(tmp_path / "videos"))
    assert result.exit_code == 1
    assert "are halves of a split and not classes" in result.output
    assert re.search(r"\n  video,label,split1\n  \S+/class0/v_g00_c01\.avi,class0,(train|test)", result.output)
    assert not (tmp_path / "work" / "cache").exists()


def test_one_class_is_an_error(tmp_path):
    videos = make_videos(tmp_path / "videos")
    shutil.rmtree(videos / "class1")
    result = extract(tmp_path, "--data", str(videos))
    assert result.exit_code == 1
    assert "all 2 labelled videos are of one class, 'class0'" in result.output
    (tmp_path / "list.csv").write_text("video,label,split1\nvideos/class0/v_g00_c01.avi,a,train\n")
    assert extract(tmp_path, "--data", str(tmp_path / "list.csv")).exit_code == 1


def test_another_folder_under_the_same_name_is_refused(copy):
    for name in ("x", "y"):
        encode((copy / "other" / name).mkdir(parents=True) or copy / "other" / name / "a.avi")
    result = extract(copy, "--data", str(copy / "other"), quick=False)
    assert result.exit_code == 1
    assert "none of the 4 videos in the cache of 'toy' is among the 2 found now" in result.output


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """A data set with a good, a cut and an empty video."""
    folder = tmp_path_factory.mktemp("damaged")
    videos = make_videos(folder / "videos", count=2, frames=24)
    cut = encode(videos / "class0" / "cut.avi", 40)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
    (videos / "class1" / "empty.avi").touch()
    return folder


def test_damaged_videos_are_recorded_and_the_exit_code_is_3(damaged, tmp_path):
    result = extract(tmp_path, "--data", str(damaged / "videos"))
    assert result.exit_code == 3
    assert "2 done, 1 suspect (used, but look at them), 1 failed" in result.output
    assert "failed class1/empty: " in result.output
    assert "suspect class0/cut: cut short: its RIFF chunk needs" in result.output
    again = extract(tmp_path, quick=False)
    assert (again.exit_code, "nothing to do" in again.output) == (3, True)
    encode(damaged / "videos" / "class1" / "empty.avi", 3)
    retried = extract(tmp_path, "--retry-failed", quick=False)
    assert retried.exit_code == 0
    assert "1 failed videos will be tried once more" in retried.output
    (damaged / "videos" / "class1" / "empty.avi").write_bytes(b"")


def test_a_limit_fails_a_video_and_a_higher_one_lets_it_through(tmp_path):
    videos = make_videos(tmp_path / "videos", count=2, frames=3)
    result = extract(tmp_path, "--data", str(videos), "--limit", "frames=3")
    assert result.exit_code == 3
    assert "failed class1/v_g01_c01: more than 3 frames" in result.output
    assert extract(tmp_path, "--retry-failed", quick=False).exit_code == 3  # the limit is the cache's
    assert extract(tmp_path, "--retry-failed", "--limit", "frames=4", quick=False).exit_code == 0


def test_strict_leaves_suspect_videos_out(damaged, tmp_path):
    result = extract(tmp_path, "--data", str(damaged / "videos"), "--strict")
    assert result.exit_code == 3
    assert "failed class0/cut: left out by --strict: cut short" in result.output
    with cache_of(tmp_path) as cache:
        assert "class0/cut" not in cache.video_ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "no/such.pth"], "are not a file"),
        (["--weights", "random:x"], "the seed has to be"),
        (["--device", "cuda:99"], "was asked for, but this machine has"),
        (["--device", "tpu"], "'tpu' is not known; choose auto, cpu, cuda"),
        (["--data", "/no/such/folder"], "say where it is with DATA="),
    ],
)
def test_what_cannot_start_leaves_nothing_behind(finished, tmp_path, options, message):
    result = extract(tmp_path, "--data", str(finished / "videos"), *QUICK, *options, quick=False)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "work" / "cache").exists()


@pytest.mark.parametrize("option", ["--data=elsewhere", "--subset", "--again=class0/a", "--retry-failed"])
def test_what_a_published_cache_cannot_do_is_refused(copy, option, monkeypatch):
    monkeypatch.setattr("cache.store.FeatureCache.read_only", True)
    result = extract(copy, option, quick=False)
    assert result.exit_code == 1
    assert "read only" in result.output
    assert f"{option.partition('=')[0]} was given" in result.output


@pytest.mark.parametrize(
    "options",
    [
        ["--views", "center,left"],
        ["--levels", "deep"],
        ["--max-frames", "0"],
        ["--fps", "0"],
        ["--fps", "inf"],
        ["--fps", "nan"],
        ["--limit", "frames=x"],
    ],
)
def test_wrong_usage_exits_with_2(tmp_path, options):
    assert extract(tmp_path, *options).exit_code == 2


def test_a_full_disk_is_noticed_before_the_start(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("extract.forecast.RESERVE_BYTES", 1 << 60)
    result = extract(tmp_path, "--data", str(finished / "videos"))
    assert result.exit_code == 1
    assert re.search(r"about 5\d KiB of disk needed, .* free, in .*: make room", result.output)


def test_training_from_an_unfinished_cache_is_refused(copy):
    with sqlite3.connect(copy / "work" / "cache" / "toy" / "ledger.sqlite") as ledger:
        ledger.execute("UPDATE videos SET status = 'pending', shard = NULL, position = NULL")
    with cache_of(copy) as cache, pytest.raises(CacheError, match=r"4 of 4 videos are not extracted yet"):
        cache.require_finished()
    assert extract(copy, quick=False).exit_code == 0


def test_the_settings_are_recorded_for_the_next_run(finished):
    settings = json.loads((finished / "work/cache/toy/cache.json").read_text())["settings"]
    assert settings["views"] == ["center", "random0"]
    assert settings["weights"] == "random:0"
    assert Path(settings["data"]) == finished / "videos"
    assert (settings["precision"], settings["batch_frames"]) == ("fp32", 4)


def test_help_teaches_without_torch():
    program = (
        "import sys; from extract.cli import main\n"
        "main(['--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "Whatever interrupts it, the same command continues" in done.stdout
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0
