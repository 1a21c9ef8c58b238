"""Which runs and weights are taken; what must not be fused is refused, and the error lists it."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cache.clips import ClipRule
from cache.common.errors import ScoreError, TrainingError
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS
from cache.scores import write_scores
from fuse.bundle import model_card
from fuse.caveats import caveats
from fuse.choice import RunChoice
from fuse.report.html import Extras, html
from fuse.report.tables import models_table, table_3, to_text
from fuse.results import evaluate
from fuse.scores import check_same, read_curve, read_heldout, read_levels
from fuse.summary import summarise
from tests.helpers.cache import make_fingerprint
from tests.helpers.scores import HAND_WORKED, LABELS, MADE, hand_worked_tables, make_scored_cache, make_table
from tests.helpers.train import trainable_cache
from train.config import write_config
from train.recipes import RECIPES
from train.split import open_split


def test_runs_that_agree_are_accepted() -> None:
    check_same(hand_worked_tables())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "other"}, "dataset: low 'tiny', mid 'other', high 'tiny'"),
        ({"split": 2}, "split: low 1, mid 2, high 1"),
        ({"pool": "max"}, "pool: low 'mean', mid 'max'"),
        ({"level": "high"}, "what is given as level mid is of level 'high'"),
        ({"cache_digest": "bad"}, "cache digest: low 'c0ffee', mid 'bad'"),
        ({"clips": {"length": 16, "stride": 8}}, "clips, length: low 30, mid 16, high 30"),
        ({"classes": ("left", "top")}, "classes missing in low: top"),
        ({"classes": ("right", "left")}, "classes: the same names in another order"),
    ],
)
def test_runs_of_different_settings_are_refused(change: dict, said: str) -> None:  # type: ignore[type-arg]
    tables = {**hand_worked_tables(), "mid": make_table("mid", HAND_WORKED["mid"], LABELS, **change)}
    with pytest.raises(ScoreError, match="do not belong together") as caught:
        check_same(tables)
    assert said in str(caught.value)


def test_runs_on_different_caches_are_refused_and_the_field_is_named() -> None:
    other = make_fingerprint(backbone="resnet18").to_json()
    tables = {**hand_worked_tables(), "high": make_table("high", HAND_WORKED["high"], LABELS, fingerprint=other)}
    with pytest.raises(ScoreError, match="fingerprint, backbone: low 'resnet34', mid 'resnet34', high 'resnet18'"):
        check_same(tables)


def test_equal_weights_under_two_names_are_one() -> None:
    renamed = make_fingerprint(weights="renamed.pth").to_json()
    check_same({**hand_worked_tables(), "low": make_table("low", HAND_WORKED["low"], LABELS, fingerprint=renamed)})


def test_a_missing_video_and_a_missing_clip_are_listed() -> None:
    without_video = make_table("low", {"a/one": HAND_WORKED["low"]["a/one"]}, LABELS)
    fewer_clips = {**HAND_WORKED["high"], "a/one": HAND_WORKED["high"]["a/one"][:2]}
    tables = {**hand_worked_tables(), "low": without_video, "high": make_table("high", fewer_clips, LABELS)}
    with pytest.raises(ScoreError) as caught:
        check_same(tables)
    assert "videos missing in low: b/two" in str(caught.value)
    assert "clips missing in high: a/one [16, 46)" in str(caught.value)


def test_other_labels_are_listed() -> None:
    tables = {**hand_worked_tables(), "low": make_table("low", HAND_WORKED["low"], {"a/one": 0, "b/two": 0})}
    with pytest.raises(ScoreError, match="labels differ for b/two"):
        check_same(tables)


def test_long_lists_are_cut_and_counted() -> None:
    many = {f"v{index:02}": [(0.5, 0.5)] for index in range(25)}
    labels = dict.fromkeys(many, 0)
    tables = {level: make_table(level, many, labels) for level in ("low", "mid")}
    tables["high"] = make_table("high", {"v00": [(0.5, 0.5)]}, labels)
    with pytest.raises(ScoreError, match="v10 and 14 more"):
        check_same(tables)


def test_levels_that_are_not_trained_are_named_with_the_command(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = workspace.run("tiny", 1, "high", "mean", 0)
    write_scores(folder / "scores.npz", hand_worked_tables()["high"])
    with pytest.raises(ScoreError, match=r"no scores of level low, mid for tiny, split 1.*mrrn train"):
        read_levels(RunChoice(workspace=workspace, dataset="tiny"))


def test_a_test_video_without_features_counts_as_wrong_and_is_reported() -> None:
    labels = {**LABELS, "c/gone": 0, "d/gone": 1}
    cache = make_scored_cache(labels, failed={"c/gone": "truncated file", "d/gone": "no video stream"})
    results = evaluate(hand_worked_tables(), cache, 1)
    assert results.missing == {"c/gone": "truncated file", "d/gone": "no video stream"}
    assert results.accuracy("fused") == 0.5
    assert results.confusion().tolist() == [[1, 0, 1], [0, 1, 1]]
    assert "missing: 2 of 4 test videos have no features and count as wrong." in caveats(results)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"a/one": 0}, "scored, but not test videos of this split: b/two"),
        ({"a/one": 0, "b/two": 0}, "labels differ from the dataset's for: b/two"),
        ({**LABELS, "c/new": 0}, "test videos that have features but no scores: c/new"),
    ],
)
def test_scores_that_do_not_fit_the_cache_are_refused(labels: dict[str, int], said: str) -> None:
    with pytest.raises(ScoreError, match="do not fit the cache") as caught:
        evaluate(hand_worked_tables(), make_scored_cache(labels), 1)
    assert said in str(caught.value)


def test_scores_older_than_the_cache_are_refused() -> None:
    with pytest.raises(ScoreError, match="fingerprint, transform: scores 'resize 256, crop 224', cache 'other'"):
        evaluate(hand_worked_tables(), make_scored_cache(LABELS, transform="other"), 1)
    with pytest.raises(ScoreError, match="classes"):
        evaluate(hand_worked_tables(), make_scored_cache(LABELS, classes=("right", "left")), 1)


def test_caveats_say_random_and_stand_in_weights_in_words() -> None:
    def said(**identity: object) -> str:
        fingerprint = make_fingerprint(**identity).to_json()
        tables = {
            level: make_table(level, clips, LABELS, fingerprint=fingerprint) for level, clips in HAND_WORKED.items()
        }
        return " ".join(caveats(evaluate(tables, make_scored_cache(LABELS, **identity), 1)))

    assert said(weights="imagenet1k_v1").startswith("test videos: 2, too few to judge")
    assert "weights: random:7 (random, never trained)" in said(weights="random:7")
    assert "weights: mine.pth (not the paper's ImageNet weights)" in said(weights="mine.pth")
    assert "weights: imagenet1k_v2 (not the paper's ImageNet weights)" in said(weights="imagenet1k_v2")
    assert "backbone: resnet18 (the paper used resnet34)" in said(weights="imagenet1k_v1", backbone="resnet18")


def test_frames_in_no_clip_and_frames_not_extracted_are_said_in_every_output() -> None:
    run = {"frames": 400, "unread_frames": 100, "fingerprint": make_fingerprint(max_frames=182).to_json()}
    tables = {level: make_table(level, clips, LABELS, **run) for level, clips in HAND_WORKED.items()}
    results = evaluate(tables, make_scored_cache(LABELS, max_frames=182), 1)
    notes = caveats(results)
    summary = summarise(results, notes, MADE)
    assert summary["unread_share"] == 0.25
    outputs = (
        to_text(models_table(results, notes)),
        html(results, notes, MADE, Extras()),
        json.dumps(summary),
        model_card(results, summary, ClipRule().changed("keep=all")),
    )
    for output in outputs:
        assert "25 % of the scored videos" in output
        assert "only the first 182 frames of each video were used" in output
    assert "all of a video; trained and measured with 30 frames" in outputs[-1]


def test_probabilities_keep_the_order_of_the_datasets_videos() -> None:
    results = evaluate(hand_worked_tables(), make_scored_cache({"b/two": 1, "a/one": 0}), 1)
    assert results.video_ids == ("b/two", "a/one")
    np.testing.assert_allclose(results.probabilities["fused"][:, 0], [0.44, 0.60], atol=1e-7)


def with_test_scores(choice: RunChoice) -> RunChoice:
    """The choice, whose runs now have HAND_WORKED's scores of the test videos."""
    for level, table in hand_worked_tables().items():
        write_scores(choice.folder(level) / "scores.npz", table)
    return choice


def test_weights_are_searched_on_held_out_videos_alone(tmp_path: Path) -> None:
    choice = with_test_scores(RunChoice(workspace=Workspace(tmp_path), dataset="tiny"))
    assert read_heldout(choice) is None
    labels = {f"train/{number}": number % 2 for number in range(12)}
    for level in LEVELS:
        sure = 0.9 if level == "mid" else 0.1
        clips = {video: [(sure, 1 - sure) if label == 0 else (1 - sure, sure)] for video, label in labels.items()}
        write_scores(choice.folder(level, holdout=True) / "heldout-scores.npz", make_table(level, clips, labels))
    results = evaluate(hand_worked_tables(), make_scored_cache(LABELS), 1, read_heldout(choice))
    weights = results.searched_weights
    assert weights is not None
    assert weights["mid"] == 1.0
    assert results.accuracy("searched") == results.accuracy("mid") == 1.0
    summary = summarise(results, [], MADE)
    assert summary["searched"] == {"fusion_weights": weights, "accuracy": 1.0}
    assert set(summary["accuracy"]) == {"low", "mid", "high", "fused", "mean"}
    assert summary["calibration"]["heldout"] == {"right": 0, "right_lost": 0, "wrong": 12, "wrong_refused": 0}
    assert summary["calibration"]["temperatures"]["mid"] == 1 < summary["calibration"]["temperatures"]["high"]
    assert summary["none_of_these"] == {"right": 2, "right_lost": 0, "wrong": 0, "wrong_refused": 0}
    assert summary["reliability"]["fused"]["bins_calibrated"]
    assert summary["calibration"]["temperatures"]["searched"] == summary["calibration"]["temperatures"]["mid"]
    assert summary["reliability"]["searched"]["bins_calibrated"]
    assert "weights found on held-out training data" in to_text(table_3(results, []))
    assert "1 mid" in html(results, [], MADE, Extras())


def test_held_out_videos_may_stand_in_another_order_in_each_level(tmp_path: Path) -> None:
    choice = with_test_scores(RunChoice(workspace=Workspace(tmp_path), dataset="tiny"))
    labels = {f"train/{number}": int(number < 2) for number in range(6)}
    for level in LEVELS:
        sure = 0.9 if level == "mid" else 0.4
        clips = {video: [(1 - sure, sure) if label else (sure, 1 - sure)] for video, label in labels.items()}
        order = reversed(clips) if level == "mid" else clips
        table = make_table(level, {video: clips[video] for video in order}, labels)
        write_scores(choice.folder(level, holdout=True) / "heldout-scores.npz", table)
    results = evaluate(hand_worked_tables(), make_scored_cache(LABELS), 1, read_heldout(choice))
    assert results.searched_weights is not None
    assert results.searched_weights["mid"] == 1.0
    assert results.calibration is None
    assert "not calibrated, because no runs held 10 training videos or more out" in results.certainty


def test_held_out_scores_of_test_videos_or_of_another_cache_are_refused(tmp_path: Path) -> None:
    choice = with_test_scores(RunChoice(workspace=Workspace(tmp_path), dataset="tiny"))
    for level in LEVELS:
        path = choice.folder(level, holdout=True) / "heldout-scores.npz"
        write_scores(path, make_table(level, HAND_WORKED[level], LABELS, cache_digest="other"))
    with pytest.raises(ScoreError, match=r"cache digest: test 'c0ffee', held-out 'other'; a/one"):
        read_heldout(choice)


def test_watching_runs_bring_their_curves_and_held_out_scores(tmp_path: Path) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="tiny", recipe="paper", watch=True)
    assert choice.options()[-1] == "--watch"
    folder = choice.folder("low")
    assert folder.name == "low-mean-seed0-paper-watch"
    assert choice.folder("low", holdout=True) == folder
    assert read_curve(folder) == ()
    folder.mkdir(parents=True)
    row = {"epoch": 0, "loss": 1.5, "accuracy": 0.25, "clips": 28}
    rows = [row, {**row, "epoch": 1, "heldout_loss": 1.25, "heldout_accuracy": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    curve = read_curve(folder)
    assert [(epoch.epoch, epoch.loss, epoch.heldout_loss) for epoch in curve] == [(0, 1.5, None), (1, 1.5, 1.25)]
    tables = {level: make_table(level, clips, LABELS, watch=True) for level, clips in HAND_WORKED.items()}
    results = evaluate(tables, make_scored_cache(LABELS), 1, None, {"low": curve})
    assert any(note.startswith("watched: the heads were trained without a fifth") for note in caveats(results))
    assert summarise(results, [], MADE)["curves"]["low"][1]["heldout_accuracy"] == 0.5
    (folder / "metrics.jsonl").write_text('{"epoch": 0, "lo')
    with pytest.raises(ScoreError, match=r"metrics\.jsonl is not a log"):
        read_curve(folder)


def test_another_recipes_runs_are_found_by_its_name(tmp_path: Path) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="tiny", recipe="paper")
    assert choice.folder("low").name == "low-mean-seed0-paper"
    assert choice.folder("low", holdout=True).name == "low-mean-seed0-paper-holdout"
    trainable_cache(tmp_path)
    paper = RECIPES["paper"]
    for holdout in (False, True):
        config = open_split(choice.workspace, "tiny", 1).config(
            level="low", pool="mean", seed=0, recipe=paper, usual=paper, holdout=holdout
        )
        write_config(config.folder(choice.workspace), config, "finished")
        assert choice.folder("low", holdout=holdout) == config.folder(choice.workspace)
    assert choice.folder("low").name == "low-mean-seed0"


def test_runs_of_other_clips_are_found_where_training_puts_them(tmp_path: Path) -> None:
    usual = RunChoice(workspace=Workspace(tmp_path), dataset="tiny")
    choice = replace(usual, clips="max=3,keep=first")
    assert choice.options()[-2:] == ["--clips", "max=3,keep=first"]
    trainable_cache(tmp_path)
    opened = open_split(choice.workspace, "tiny", 1)
    small = opened.usual_recipe()[0]
    for recipe in (small, opened.recipes["paper"]):
        of_recipe = replace(choice, recipe=recipe.name)
        cut = replace(recipe, clips=recipe.clips.changed(str(choice.clips)))
        assert of_recipe.of_new_videos().clips is None
        for level, holdout in product(LEVELS, (True, False)):
            config = opened.config(level=level, pool="mean", seed=0, recipe=cut, usual=small, holdout=holdout)
            folder = config.folder(choice.workspace)
            assert of_recipe.folder(level, holdout=holdout) == folder
            write_scores(folder / config.scores_file, hand_worked_tables()[level])
        assert of_recipe.of_new_videos() == of_recipe
    assert choice.folder("low").name == "low-mean-seed0-clips30-8-3-first"
    assert replace(choice, clips=str(small.clips)).folder("low") == usual.folder("low")


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"recipe": {"name": "paper"}}', '{"status": "finished", "recipe": 1}']
)
def test_a_run_whose_configuration_is_none_is_an_error_not_a_crash(tmp_path: Path, content: str) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="tiny", recipe="paper")
    usual = tmp_path / "runs" / "tiny" / "split1" / "low-mean-seed0"
    usual.mkdir(parents=True)
    (usual / "config.json").write_text(content)
    with pytest.raises(TrainingError, match="configuration"):
        choice.folder("low")
