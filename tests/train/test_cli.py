"""`python -m train` from the outside: what it writes, what it does not do twice, and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cache.aggregate import correct, fraction, log_loss
from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.common.workspace import Workspace
from cache.dataset import Sample, group_of
from cache.scores import read_scores
from fuse.choice import RunChoice
from tests.helpers.cache import make_fingerprint
from tests.helpers.train import grouped_dataset, separable, trainable_cache
from train.cli import main
from train.config import read_config
from train.recipes import RECIPES, with_overrides
from train.split import open_split

FAST = ["--hidden", "8", "--layers", "2", "--epochs", "2"]


def train(work: Path, *options: str, fast: bool = True) -> Result:
    return CliRunner().invoke(main, ["--work", str(work), *(FAST if fast else []), *options])


def run_folder(work: Path, level: str = "low", pool: str = "mean", variant: str = "-h8-l2-e2") -> Path:
    return work / "runs" / "tiny" / "split1" / f"{level}-{pool}-seed0{variant}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    work = tmp_path_factory.mktemp("work")
    trainable_cache(work)
    return work, train(work)


def test_several_devices_are_answered_with_torchrun(tmp_path):
    result = train(tmp_path, "--device", "cuda:0,cuda:3")
    assert result.exit_code == 1
    assert "`CUDA_VISIBLE_DEVICES=0,3 torchrun --nproc-per-node 2 -m train --device cuda`" in result.output


def test_all_levels_are_trained_and_scored(trained):
    work, result = trained
    assert result.exit_code == 0, result.output
    assert "dataset tiny (extracted last" in result.output
    assert "recipe small (the default for own data; RECIPE=" in result.output
    assert "random:0" in result.output
    for level in ("low", "mid", "high"):
        folder = run_folder(work, level)
        assert {"config.json", "checkpoint.safetensors", "metrics.jsonl", "scores.npz"} <= {
            path.name for path in folder.iterdir()
        }
        scores = read_scores(folder / "scores.npz")
        test_videos = [video.id for video in grouped_dataset().half(1, "test")]
        assert sorted(set(scores.video_ids.tolist())) == test_videos
        expected = {"dataset": "tiny", "split": 1, "level": level, "pool": "mean", "seed": 0, "recipe": "small"}
        expected |= {"weights": "random:0", "variant": "h8-l2-e2", "holdout": False, "watch": False}
        expected["clips"] = {"length": 30, "stride": 8, "max_clips": 20, "keep": "even", "fps": None}
        assert scores.run.items() >= expected.items()
        assert scores.run.keys() == expected.keys() | {"fingerprint", "cache_digest", "frames", "unread_frames"}
        assert 0 < scores.run["unread_frames"] < scores.run["frames"]


def test_the_configuration_beside_the_run_tells_everything(trained):
    config = json.loads((run_folder(trained[0]) / "config.json").read_text())
    assert config["status"] == "finished"
    assert (config["dataset"], config["split"], config["level"], config["seed"]) == ("tiny", 1, "low", 0)
    assert (config["cell"], config["hidden"], config["layers"]) == ("sru", 8, 2)
    assert config["recipe"]["name"] == "small"
    assert config["clips"]["length"] == 30
    assert config["classes"] == ["Class0", "Class1", "Class2"]
    assert config["fingerprint"] == make_fingerprint(views=["center", "center_flip"]).to_json()
    assert config["versions"]["torch"]


def test_metrics_have_a_row_for_each_epoch(trained):
    rows = [json.loads(line) for line in (run_folder(trained[0]) / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1 and row["clips"] == 28 for row in rows)
    assert list((run_folder(trained[0]) / "tensorboard").iterdir())


def test_done_work_is_not_done_again_and_torch_is_not_even_imported(trained):
    work, _ = trained
    before = {path: path.stat().st_mtime_ns for path in run_folder(work).iterdir() if path.is_file()}
    code = (
        "import sys; from train.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    command = [sys.executable, "-c", code, "--work", str(work), *FAST]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done already") == 3
    assert {path: path.stat().st_mtime_ns for path in run_folder(work).iterdir() if path.is_file()} == before


def test_other_settings_live_beside_each_other(trained):
    work, _ = trained
    assert train(work, "--level", "low", "--pool", "max", "--cell", "gru").exit_code == 0
    assert train(work, "--level", "low", "--lr", "0.01").exit_code == 0
    assert run_folder(work, pool="max", variant="-gru-h8-l2-e2").is_dir()
    assert run_folder(work, variant="-h8-l2-e2-lr0.01").is_dir()


def test_own_videos_are_read_evenly_and_a_run_keeps_the_clips_it_was_begun_with(tmp_path):
    trainable_cache(tmp_path)
    result = train(tmp_path, "--level", "low")
    assert (
        "clips: 30 frames at the native frame rate, a clip every 8 frames, at most 20 of a video (evenly spread)"
        in (result.output)
    )
    path = run_folder(tmp_path) / "config.json"
    before = json.loads(path.read_text())
    del before["recipe"]["clips"]["keep"], before["seal"]  # as versions wrote it that knew the first clips alone
    path.write_text(json.dumps(before))
    assert "done already" in train(tmp_path, "--level", "low").output
    result = train(tmp_path, "--level", "mid")
    assert "at most 20 of a video (the first)" in result.output
    assert read_scores(run_folder(tmp_path, "mid") / "scores.npz").run["clips"]["keep"] == "first"
    assert train(tmp_path, "--level", "mid", "--fresh").exit_code == 0
    assert read_scores(run_folder(tmp_path, "mid") / "scores.npz").run["clips"]["keep"] == "even"


def test_other_clips_are_a_variant_and_what_they_leave_out_is_said(tmp_path):
    trainable_cache(tmp_path, frames=lambda index: 100)
    result = train(tmp_path, "--level", "low", "--clips", "max=1,keep=first")
    assert "! clips: 70 % of the test videos' frames are in no clip (30 frames at the" in result.output
    assert run_folder(tmp_path, variant="-h8-l2-e2-clips30-8-1-first").is_dir()
    refused = train(tmp_path, "--clips", "keep=last")
    assert refused.exit_code == 2
    assert "keep is 'last'; it must be one of first, even, all" in refused.output


def test_a_number_of_epochs_is_a_variant_even_if_it_is_the_recipes_own_before_steps_are_added(tmp_path):
    trainable_cache(tmp_path)
    result = train(tmp_path, "--level", "low", "--recipe", "small", "--epochs", "1", fast=False)
    assert result.exit_code == 0, result.output
    assert "recipe small (asked for" in result.output
    folders = {path.name for path in (tmp_path / "runs/tiny/split1").iterdir()}
    assert folders == {"low-mean-seed0-e1", "low-mean-seed0-linear-clips30-8-20-even"}
    # Asked for by itself it is the same run.
    assert "low-linear: done already" in train(tmp_path, "--level", "low", "--recipe", "linear", fast=False).output
    linear = RunChoice(workspace=Workspace(tmp_path), dataset="tiny", recipe="linear")
    assert (linear.folder("low") / "scores.npz").exists()


def test_beside_every_head_stands_what_a_regression_reaches(trained):
    _, result = trained
    for level in ("low", "mid", "high"):
        assert f"{level}-linear: 6 of 6 test videos right" in result.output
        line = next(line for line in result.output.splitlines() if line.startswith(f"{level}-mean: "))
        assert re.search(r"against linear, which has 6: [+−][\d.]+ points, too few to judge\)$", line)


def test_a_run_that_watches_has_a_baseline_of_the_same_videos(tmp_path):
    trainable_cache(tmp_path)
    for options in ((), ("--watch",), ()):
        result = train(tmp_path, "--level", "low", *options)
        assert result.exit_code == 0, result.output
    plain, watching = (
        read_config(run_folder(tmp_path, variant=f"-linear-clips30-8-20-even{end}"))[0] for end in ("", "-watch")
    )
    assert plain.videos["training"] > watching.videos["training"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--recipe", "linear", "--pool", "max"), "use --pool mean"),
        (("--recipe", "linear", "--hidden", "7", "--balance", "loss"), "linear has no --hidden and no --balance"),
        (("--cell", "linear", "--epochs", "3"), "linear has no --epochs"),
    ],
)
def test_what_linear_has_not_is_refused_before_anything_is_trained(tmp_path, options, says):
    trainable_cache(tmp_path)
    result = train(tmp_path, "--level", "low", *options, fast=False)
    assert result.exit_code == 1
    assert says in result.output
    assert not (tmp_path / "runs").exists()


def test_a_class_of_one_group_stays_in_training_and_is_named(tmp_path):
    dataset = grouped_dataset()
    alone = [
        replace(each, splits={}) if each.label == 2 and ("_g03_" in each.id or "_g04_" in each.id) else each
        for each in dataset.samples
    ]
    trainable_cache(tmp_path, replace(dataset, samples=tuple(alone)))
    result = train(tmp_path, "--level", "low", "--holdout")
    assert result.exit_code == 0, result.output
    assert "whose videos are of one group: Class2" in result.output


def test_a_class_without_training_videos_is_never_predicted(tmp_path):
    dataset = grouped_dataset()
    trainable_cache(tmp_path, replace(dataset, classes=(*dataset.classes, "Nobody")))
    assert train(tmp_path, "--level", "low").exit_code == 0
    assert read_scores(run_folder(tmp_path) / "scores.npz").softmax[:, 3].max() < 1e-6


def test_heldout_runs_score_held_out_groups_and_never_the_test_half(tmp_path):
    trainable_cache(tmp_path)
    result = train(tmp_path, "--level", "low", "--holdout")
    assert result.exit_code == 0, result.output
    folder = run_folder(tmp_path, variant="-h8-l2-e2-holdout")
    assert not (folder / "scores.npz").exists()
    scores = read_scores(folder / "heldout-scores.npz")
    training = {video.id for video in grouped_dataset().half(1, "train")}
    scored = set(scores.video_ids.tolist())
    assert scored < training
    assert not {group_of(video) for video in scored} & {group_of(video) for video in training - scored}
    assert scores.run["holdout"] is True


def test_watching_measures_held_out_videos_and_trains_as_if_they_were_held_out(tmp_path):
    trainable_cache(tmp_path)
    watched = train(tmp_path, "--level", "low", "--watch")
    assert watched.exit_code == 0, watched.output
    assert "watched after each epoch, not learned from: 6 training videos" in watched.output
    assert watched.output.count(f"tensorboard --logdir {run_folder(tmp_path).parent}") == 1
    assert train(tmp_path, "--level", "low", "--holdout").exit_code == 0
    folder, held_out = (run_folder(tmp_path, variant=f"-h8-l2-e2-{word}") for word in ("watch", "holdout"))
    assert learned(folder) == learned(held_out)
    left, right = (read_scores(each / "heldout-scores.npz") for each in (folder, held_out))
    np.testing.assert_array_equal(left.softmax, right.softmax)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    _, probabilities, labels = right.videos()
    assert rows[-1]["heldout_accuracy"] == fraction(correct(probabilities, labels))
    assert rows[-1]["heldout_loss"] == log_loss(probabilities, labels) != rows[0]["heldout_loss"]
    tested = set(read_scores(folder / "scores.npz").video_ids.tolist())
    assert tested == {video.id for video in grouped_dataset().half(1, "test")}
    assert "done already" in train(tmp_path, "--level", "low", "--watch").output
    (folder / "heldout-scores.npz").unlink()
    assert "done already" not in train(tmp_path, "--level", "low", "--watch").output
    np.testing.assert_array_equal(read_scores(folder / "heldout-scores.npz").softmax, right.softmax)


def test_products_are_in_bf16_where_the_device_multiplies_it_and_a_run_keeps_its_precision(tmp_path, monkeypatch):
    trainable_cache(tmp_path)

    def train_on(bf16: bool, level: str, *options: str) -> tuple[str, str]:
        """What was said, and the precision that was recorded, on a device that does or does not multiply bf16."""
        for module in ("cli", "config"):
            monkeypatch.setattr(f"train.{module}.multiplies_bf16", lambda _: bf16)
        result = train(tmp_path, "--level", level, *options)
        assert result.exit_code == 0, result.output
        recorded = json.loads((run_folder(tmp_path, level) / "config.json").read_text())
        return result.output, recorded["recipe"]["precision"]

    said, precision = train_on(True, "low")
    assert ("products in bf16, which this processor multiplies" in said, precision) == (True, "bf16")
    assert train_on(False, "low")[0].count("done already") == 1
    (run_folder(tmp_path) / "scores.npz").unlink()
    for level in ("low", "mid"):  # the one goes on, the other is of the same run
        said, precision = train_on(False, level)
        assert ("products in bf16;" in said, "--fresh takes" in said, precision) == (True, False, "bf16")
    said, precision = train_on(False, "low", "--fresh")
    assert ("products in fp32: this processor does not multiply bf16" in said, precision) == (True, "fp32")


def test_bf16_reaches_what_fp32_reaches(tmp_path):
    trainable_cache(tmp_path)
    tables = []
    for precision in ("fp32", "bf16"):
        result = train(tmp_path, "--level", "low", "--holdout", "--precision", precision)
        assert f"products in {precision};" in result.output
        folder = run_folder(tmp_path, variant=f"-h8-l2-e2-{precision}-holdout")
        tables.append(read_scores(folder / "heldout-scores.npz").videos())
    (_, expected_NK, label_N), (_, found_NK, _) = tables
    assert fraction(correct(found_NK, label_N)) == fraction(correct(expected_NK, label_N))
    assert log_loss(found_NK, label_N) == pytest.approx(log_loss(expected_NK, label_N), abs=0.01)


def test_nothing_extracted_says_what_to_run(tmp_path):
    result = train(tmp_path, "--dataset", "hmdb51")
    assert result.exit_code == 1
    assert "make extract DATASET=hmdb51" in result.output


def test_a_file_in_the_place_of_a_folder_of_runs_is_named(tmp_path):
    trainable_cache(tmp_path)
    for place in (tmp_path / "runs" / "tiny" / "split1", tmp_path / "runs"):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        result = train(tmp_path, "--level", "low")
        assert (result.exit_code, "--fresh" in result.stderr) == (1, False)
        assert f"{place} is a file where a folder of runs is expected" in result.stderr


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", ".", "a\nb", "a\0b", "a" * 300])
def test_a_sweeps_table_stays_below_the_workspace(trained, name):
    work, _ = trained
    result = CliRunner().invoke(main, ["sweep", "--work", str(work), "--grid", "pool=mean", "--name", name])
    assert result.exit_code == 1
    assert "table name" in result.stderr
    assert "runs, " not in result.output


def test_an_unfinished_cache_is_refused_with_the_command_that_continues_it(tmp_path):
    trainable_cache(tmp_path, leave_out=2)
    result = train(tmp_path)
    assert result.exit_code == 1
    assert "make extract DATASET=tiny" in result.output


def test_a_split_that_the_dataset_does_not_have_is_refused(tmp_path):
    trainable_cache(tmp_path)
    result = train(tmp_path, "--split", "3")
    assert result.exit_code == 1
    assert "no split 3" in result.output


def test_a_cache_that_changed_since_asks_for_fresh_and_fresh_trains_again(tmp_path):
    trainable_cache(tmp_path)
    assert train(tmp_path, "--level", "low").exit_code == 0
    (tmp_path / "cache").rename(tmp_path / "old")
    trainable_cache(tmp_path, fingerprint=make_fingerprint(views=["center", "center_flip"], weights_sha256="1" * 64))
    result = train(tmp_path, "--level", "low")
    assert result.exit_code == 1
    assert "the cache's fingerprint or videos have changed" in result.output
    assert "--fresh" in result.output
    assert train(tmp_path, "--level", "low", "--fresh").exit_code == 0
    assert "done already" in train(tmp_path, "--level", "low").output


def test_a_run_that_another_process_trains_is_left_alone(tmp_path):
    import fcntl

    trainable_cache(tmp_path)
    folder = run_folder(tmp_path)
    folder.mkdir(parents=True)
    with (folder / "run.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = train(tmp_path, "--level", "low")
    assert result.exit_code == 1
    assert "another process" in result.output


def test_what_a_killed_process_left_in_a_run_goes_and_a_pipe_for_a_lock_is_not_waited_for(tmp_path):
    from train.run import _locked

    (tmp_path / ".tmp-1-config.json").touch()
    os.mkfifo(tmp_path / "run.lock")
    with _locked(tmp_path), pytest.raises(TrainingError, match="another process"), _locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    (tmp_path / "run.lock").unlink()
    (tmp_path / "run.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"run\.lock"), _locked(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_device_that_is_not_there_is_refused(tmp_path):
    import torch

    trainable_cache(tmp_path)
    result = train(tmp_path, "--level", "low", "--device", f"cuda:{torch.cuda.device_count()}")
    assert result.exit_code == 1
    assert "CUDA devices" in result.output


def test_poisoned_test_videos_leave_training_the_same_to_the_bit(tmp_path):
    """Every test feature huge and every test label wrong: weights and losses are those of the clean cache."""
    clean = grouped_dataset()

    def poison(sample: Sample, level, frames: int, generator: np.random.Generator):
        features = separable(sample, level, frames, generator)
        return features if sample.splits[1] == "train" else np.full_like(features, 6e4)

    samples = tuple(
        sample if sample.splits[1] == "train" else replace(sample, label=(sample.label + 1) % 3)
        for sample in clean.samples
    )
    poisoned = replace(clean, samples=samples)
    results = []
    for name, dataset, features in (("clean", clean, separable), ("poisoned", poisoned, poison)):
        work = tmp_path / name
        trainable_cache(work, dataset, features=features)
        assert train(work).exit_code == 0
        folders = {level: run_folder(work, level, variant="-h8-l2-e2") for level in ("low", "mid", "high")}
        results.append({level: learned(folder) for level, folder in folders.items()})
    assert results[0] == results[1]


@pytest.mark.slow
def test_frames_that_the_papers_clips_do_not_read_need_not_be_extracted(tmp_path):
    """Extraction with --max-frames 182 and without: the same scores to the bit."""
    limit = ClipRule().first_frames()

    def beginning(sample: Sample, level, frames: int, generator: np.random.Generator):
        return separable(sample, level, 240, generator)[:, :frames]

    found = []
    for name, longest in (("whole", 240), ("limited", limit)):
        trainable_cache(
            tmp_path / name, features=beginning, frames=lambda index, to=longest: min(150 + 12 * (index % 8), to)
        )
        result = train(tmp_path / name, "--level", "low", "--clips", "keep=first")
        assert result.exit_code == 0
        scores = [read_scores(path) for path in sorted((tmp_path / name).rglob("scores.npz"))]
        found.append([(each.softmax.tobytes(), each.spans.tobytes()) for each in scores])
    assert len(found[0]) == 2  # the head's and its baseline's
    assert found[0] == found[1]


def test_training_draws_from_the_first_views_where_the_recipe_says_how_many(tmp_path):
    def second_view_huge(sample: Sample, level, frames: int, generator: np.random.Generator):
        features = separable(sample, level, frames, generator)
        features[1] = 6e4
        return features

    results = {}
    for name, features in (("clean", separable), ("poisoned", second_view_huge)):
        trainable_cache(tmp_path / name, features=features)
        for views in (1, 2):
            results[name, views] = learned(run_with_views(tmp_path / name, views))
    assert results["clean", 1] == results["poisoned", 1]
    assert results["clean", 2] != results["poisoned", 2]
    with pytest.raises(TrainingError, match=r"draws from 3 views .* has 2 \(center, center_flip\)"):
        run_with_views(tmp_path / "clean", 3)


def run_with_views(work: Path, views: int) -> Path:
    """Train a head on so many views; the run's folder."""
    import torch

    from train.run import run

    workspace = Workspace(work)
    split = open_split(workspace, "tiny", 1)
    recipe = with_overrides(RECIPES["small"], hidden=8, layers=1, epochs=2, views=views)
    config = split.config(level="low", pool="mean", seed=0, recipe=recipe, usual=RECIPES["small"], holdout=False)
    run(split, config, workspace, torch.device("cpu"))
    return config.folder(workspace)


def learned(folder: Path) -> tuple[dict[str, bytes], list[tuple[float, float]]]:
    """The run's weights as bytes, and its losses and accuracies."""
    from train.checkpoint import read_checkpoint

    tensors = read_checkpoint(folder / "checkpoint.safetensors").tensors
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (
        {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        [(row["loss"], row["accuracy"]) for row in rows],
    )


def test_help_teaches_and_needs_no_torch():
    code = (
        "import sys; from train.cli import main; main(['--help'], standalone_mode=False); "
        "assert 'torch' not in sys.modules and 'h5py' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Examples:" in result.stdout


def test_recipes_are_listed_with_what_they_change():
    result = CliRunner().invoke(main, ["recipes"])
    assert result.exit_code == 0
    assert "paper-24fps" in result.output


@pytest.mark.parametrize("name", ["light-dropout", "paper"])
def test_a_run_begun_when_its_recipe_was_another_goes_on_as_it_was_begun(name, tmp_path):
    trainable_cache(tmp_path)
    assert train(tmp_path, "--level", "low").exit_code == 0
    folder = run_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["recipe"] |= {"name": name, "inputs": "raw", "batch": 7, "shortcut": 1}
    del config["recipe"]["input_dropout"], config["seal"]
    (folder / "config.json").write_text(json.dumps({**config, "status": "training"}))
    (folder / "checkpoint.safetensors").unlink()
    result = train(tmp_path, "--level", "low")
    assert result.exit_code == 0, result.output
    assert f"recipe {name} as it was when these runs were begun; --fresh takes today's" in result.output
    recipe = json.loads((folder / "config.json").read_text())["recipe"]
    assert (recipe["inputs"], recipe["batch"], recipe["shortcut"]) == ("raw", 7, "mean")
    assert "--fresh takes" not in train(tmp_path, "--level", "low", "--fresh").output


def test_a_recipe_that_there_is_no_more_names_its_successor(tmp_path):
    result = train(tmp_path, "--recipe", "light-dropout")
    assert result.exit_code == 2
    assert "'small' takes its place" in result.output
