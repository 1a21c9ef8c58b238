"""Spans: many samples in few videos, each video decoded once; labels that change cost no extraction."""

import json

import pytest
import torch
from click.testing import CliRunner

import fuse.cli
import train.cli
from cache.clips import ClipRule
from cache.common.workspace import Workspace
from cache.scores import read_scores
from fuse.scores import read_scored_cache
from tests.fuse.test_cli import write_runs
from tests.helpers.extract import cache_of, extract
from tests.helpers.video import encode
from train.clips import load_bank
from train.split import open_split

FRAMES, RATE = 18, 10
"""Of each video, and in a second."""

SPANS = [(0, 0.2), (0.2, 0.6), (0.1, 1.0), (0.5, 1.5), (0.9, 1.0), (1, 1.3), (1.3, 1.8), (0, 1.8)]
"""At both ends, one beside the other, overlapping, of a single frame; all but one shorter than a clip of 30 frames."""


def write_manifest(folder, *, turned=(), more=""):
    """40 spans in 5 videos, the last two for testing; `turned`: spans that have the next label instead."""
    rows = [
        f"film{video}.avi,{('rest', 'run', 'walk')[(index + ((video, index) in turned)) % 3]},"
        f"{'test' if video > 2 else 'train'},{start},{stop}"
        for video in range(5)
        for index, (start, stop) in enumerate(SPANS)
    ]
    (folder / "spans.csv").write_text("\n".join(["video,label,split1,start,end", *rows]) + f"\n{more}")
    return folder / "spans.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    for video in range(5):
        encode(folder / f"film{video}.avi", FRAMES, rate=RATE, size=(48, 64))
    return folder


def test_forty_spans_of_five_videos_are_extracted_trained_and_reported(folder):
    result = extract(folder, "--data", str(write_manifest(folder)))
    assert (result.exit_code, "5 videos: 5 done" in result.output) == (0, True), result.output
    split = open_split(Workspace(folder / "work"), "toy", 1)
    assert (len(split.training), len(split.test)) == (24, 16)
    check_clips(split)
    # Other labels cost no extraction.
    with cache_of(folder) as cache:
        before = cache.ledger.places()
    result = extract(folder, "--data", str(write_manifest(folder, turned={(0, 0), (4, 7)})), quick=False)
    assert "2 videos have another label than before: film0#t=0,0.2, film4#t=0,1.8" in result.output
    assert "nothing to do" in result.output
    with cache_of(folder) as cache:
        assert cache.ledger.places() == before


def check_clips(split):
    """The frames of every clip are in its span, and loop there if the span is shorter."""
    bank = load_bank(split.cache, "low", split.training, ClipRule(length=3, stride=2), torch.device("cpu"))
    first = {video: FRAMES * index for index, video in enumerate(dict.fromkeys(each.video for each in split.training))}
    for clip, frames_T in enumerate(bank.clips.frames_NT):
        sample = split.training[bank.clips.sample_N[clip]]
        start, stop = (round(seconds * RATE) for seconds in sample.span)
        assert set((frames_T - first[sample.video]).tolist()) <= set(range(start, stop))
        assert len(set(frames_T.tolist())) == min(3, stop - start)


def test_a_span_beyond_the_end_is_named_with_its_line_and_counts_as_wrong(folder):
    more = "film4.avi,run,test,3,4\nfilm4.avi,run,test,1.5,2\nfilm4.avi,run,test,1.5,1.84\n"
    result = extract(folder, "--data", str(write_manifest(folder, more=more)))
    assert "line 42: span film4#t=3,4 has no frame of its video: its frames in the cache end at 1.80 s" in result.output
    assert "line 43: span film4#t=1.5,2 ends after its video, and counts up to there" in result.output
    assert "film4#t=1.5,1.84" not in result.output.partition("line 43")[2]
    assert result.exit_code == 3
    split = open_split(Workspace(folder / "work"), "toy", 1)
    assert (len(split.test), len(split.dataset.half(1, "test"))) == (18, 19)
    assert [len(split.cache.frames_of(sample)) for sample in split.test[-3:]] == [5, 3, 3]
    cache = read_scored_cache(Workspace(folder / "work"), "toy")
    assert cache.failed == {"film4#t=3,4": "no frame of its video is in the span"}
    assert len(cache.video_ids) == 42


@pytest.mark.slow
def test_scores_and_report_speak_of_spans(folder):
    extract(folder, "--data", str(write_manifest(folder)))
    workspace = Workspace(folder / "work")
    options = ["--work", str(workspace.root), "--dataset", "toy"]
    small = ["--hidden", "8", "--layers", "1", "--epochs", "1", "--level", "low", "--recipe", "paper"]
    result = CliRunner().invoke(train.cli.main, [*options, *small], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = [read_scores(path) for path in workspace.root.rglob("scores.npz")]  # the head's and its baseline's
    assert [len(set(scores.video_ids.tolist())) for scores in found] == [16, 16]
    with cache_of(folder) as cache:
        write_runs(workspace, cache)
    result = CliRunner().invoke(fuse.cli.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = workspace.report("toy", 1)
    assert json.loads((report / "results.json").read_text())["videos"] == 16
    assert "film3#t=0.9,1" in (report / "report.html").read_text()
