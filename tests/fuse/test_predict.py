"""New videos: the same code as extraction and training, so the same numbers; bad files cost only themselves."""

import doctest
import json
import re
import shutil
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import mrrn
from cache.aggregate import PAPER_WEIGHTS, clips_to_videos, fuse_levels
from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import LEVELS
from cache.scores import read_scores, write_scores
from cache.store import FeatureCache
from extract.fingerprint import fingerprint
from extract.network.weights import load_weights
from extract.settings import CPU_DEFAULTS, ExtractSettings
from fuse.bundle import read_bundle
from fuse.cli import main
from fuse.report import samples
from fuse.report.samples import sample_frames
from tests.helpers.cache import make_fingerprint
from tests.helpers.scores import make_table
from tests.helpers.train import grouped_dataset
from tests.helpers.video import encode, index_of

SETTINGS = ExtractSettings(weights="random:3", backbone="shufflenet_v2_x0_5", batch_frames=8)
FRAMES = 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a cache of small videos and a small trained head for each level."""
    root = tmp_path_factory.mktemp("predict")
    dataset = grouped_dataset(classes=2, groups=3, videos_per_group=1)
    for index, video in enumerate(dataset.videos):
        path = root / "videos" / video.path
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, frames=FRAMES + index)
    workspace = Workspace(root / "work")
    extract(workspace, dataset, root / "videos")
    train(workspace, dataset)
    return workspace


def extract(workspace: Workspace, dataset: Dataset, videos: Path) -> None:
    """What `python -m extract` does, in one shard."""
    from extract.pipeline import extract_features
    from extract.shards import shard_data

    weights = load_weights(SETTINGS.weights, SETTINGS.backbone)
    made_with = fingerprint(SETTINGS, weights_text=weights.text, weights_sha256=weights.sha256)
    settings = {"data": str(videos), "weights": SETTINGS.weights}
    with FeatureCache.create(
        workspace.cache(dataset.name), dataset=dataset, fingerprint=made_with, settings=settings
    ) as cache:
        claim = cache.ledger.claim("test", 100, 600.0)
        assert claim is not None
        paths = [(video.id, videos / video.path) for video in dataset.videos]
        found = sorted(extract_features(paths, SETTINGS), key=lambda video: video.outcome.video_id)
        cache.commit(claim, shard_data(found), [video.outcome for video in found], made_with.environment)
    workspace.remember_dataset(dataset.name)


def train(workspace: Workspace, dataset: Dataset) -> None:
    import torch

    from train.recipes import RECIPES
    from train.run import run
    from train.split import open_split

    split = open_split(workspace, dataset.name, 1)
    recipe = replace(RECIPES["small"], name="tiny", hidden=8, layers=1, epochs=2, min_steps=0)
    for level in LEVELS:
        config = split.config(level=level, pool="mean", seed=0, recipe=recipe, usual=recipe, holdout=False)
        assert run(split, config, workspace, torch.device("cpu")) is not None


def predict(workspace: Workspace, *arguments: str | Path) -> Result:
    command = ["predict", "--work", str(workspace.root), "--device", "cpu", *map(str, arguments)]
    return CliRunner().invoke(main, command)


def test_videos_of_it(workspace: Workspace) -> Sequence[Path]:
    root = workspace.root.parent / "videos"
    with FeatureCache.open(workspace.cache("tiny")) as cache:
        path_of = {video.id: root / video.path for video in cache.dataset.videos}
        return [path_of[sample.video] for sample in cache.dataset.half(1, "test")]


test_videos_of_it.__test__ = False  # type: ignore[attr-defined]


def probabilities(workspace: Workspace, *arguments: str | Path) -> dict[str, np.ndarray]:
    result = predict(workspace, "--json", *arguments)
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)["predictions"]
    return {answer["video"]: np.array(answer["fused"]) for answer in answers}


def scored(workspace: Workspace) -> dict[str, np.ndarray]:
    """Fused probabilities of each test video's file, as the report has them."""
    levels = {}
    for level in LEVELS:
        table = read_scores(workspace.run("tiny", 1, level, "mean", 0) / "scores.npz")
        ids, levels[level] = clips_to_videos(table.video_ids, table.softmax)
    of_videos = dict(zip(ids, fuse_levels(levels), strict=True))
    root = workspace.root.parent / "videos"
    return {str(path): of_videos[str(path.relative_to(root).with_suffix(""))] for path in test_videos_of_it(workspace)}


def test_a_test_video_is_predicted_as_it_was_scored(trained: Workspace) -> None:
    expected, found = scored(trained), probabilities(trained, *test_videos_of_it(trained))
    assert found.keys() == expected.keys()
    for path, fused in found.items():
        np.testing.assert_allclose(fused, expected[path], atol=2e-6)


@pytest.mark.parametrize(
    ("rule", "read", "note"),
    [
        ("length=2,stride=4,max=2,keep=even", 4, "clips: 60 % of the video's frames are in no clip"),
        ("length=2,stride=4,max=1,keep=first", 2, "clips: 80 % of the video's frames are in no clip"),
        ("length=4,stride=2,keep=all", 10, ""),
        ("length=4,stride=1,max=2,keep=even,fps=10", 4, "clips: 60 % of the video's frames are in no clip"),
    ],
)
def test_only_what_clips_read_goes_through_the_network_to_the_same_result(trained, rule, read, note) -> None:
    from fuse.trained import load_heads
    from train.score import score_clips

    path = test_videos_of_it(trained)[0]
    (answer,) = json.loads(predict(trained, "--json", "--clips", rule, path).stdout)["predictions"]
    assert (answer["frames_read"], answer["clips_note"][: len(note)]) == (read, note)
    heads = load_heads({level: trained.run("tiny", 1, level, "mean", 0) for level in LEVELS}, clips=rule)
    with FeatureCache.open(trained.cache("tiny")) as cache:
        video = str(path.relative_to(trained.root.parent / "videos").with_suffix(""))
        clips_NT = heads.clips.frames(cache.pts_seconds(video))
        for level, head in heads.heads.items():
            softmax_NK = score_clips(head, cache.features(video, level, 0).astype(np.float32), clips_NT)
            np.testing.assert_allclose(answer["levels"][level], softmax_NK.mean(axis=0), atol=2e-6)


def test_heads_of_a_gpus_cache_predict_on_a_cpu_in_batches_that_suit_it(trained: Workspace) -> None:
    from fuse.trained import load_heads, settings_for

    heads = load_heads({level: trained.run("tiny", 1, level, "mean", 0) for level in LEVELS})
    made_there = {**heads.environment, "device": "cuda (NVIDIA H100)", "precision": "fp16", "batch_frames": 256}
    for environment, size in ((heads.environment, 8), (made_there, CPU_DEFAULTS.batch_frames)):
        settings = settings_for(replace(heads, environment=environment), weights="random:3", device="cpu", jobs=1)
        assert (settings.precision, settings.batch_frames) == ("fp32", size)


def test_a_timeline_of_a_file_and_of_one_that_is_no_video(trained: Workspace, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"this is no video")
    result = predict(trained, "--timeline", "--clips", "length=4,stride=2", test_videos_of_it(trained)[0], bad)
    assert result.exit_code == 3, result.output
    assert "  10 frames, 4 windows" in result.output
    assert "not read to its end: " in result.output
    assert predict(trained, "--format", "vtt", bad).exit_code == 2


def test_it_names_classes_with_probabilities_and_times(trained: Workspace) -> None:
    result = predict(trained, test_videos_of_it(trained)[0])
    assert result.exit_code == 0, result.output
    assert "! weights: random:3 (random, never trained)" in result.output
    assert "Class0" in result.output
    assert "Class1" in result.output
    assert f"{FRAMES} frames, {FRAMES} read, 1 clips; features" in result.output


def test_a_bad_file_alone_is_an_error(trained: Workspace, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"this is no video")
    result = predict(trained, bad)
    assert result.exit_code == 1
    assert f"error: no video could be predicted: {bad}: " in result.output


def test_a_bad_file_among_others_costs_only_itself(trained: Workspace, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"this is no video")
    encode(tmp_path / "good <b>.avi", frames=5)
    (tmp_path / "notes.txt").write_text("not looked at")
    result = predict(trained, tmp_path, "--json")
    assert result.exit_code == 3
    answers = json.loads(result.stdout)["predictions"]
    assert [(Path(answer["video"]).name, answer["predicted"]) for answer in answers] == [
        ("bad.mp4", False),
        ("good <b>.avi", True),
    ]
    assert answers[0]["reason"]
    assert sum(answers[1]["fused"]) == pytest.approx(1)


def test_what_is_not_there_is_said_before_any_work(trained: Workspace, tmp_path: Path) -> None:
    missing = predict(trained, tmp_path / "gone.mp4")
    assert missing.exit_code == 1
    assert f"there is no file or folder {tmp_path / 'gone.mp4'}" in missing.output
    (tmp_path / "film.rmvb").write_bytes(b"x")
    empty = predict(trained, tmp_path)
    assert empty.exit_code == 1
    assert "holds no video files" in empty.output
    assert "files passed over, by suffix: 1 .rmvb" in empty.output


def test_other_weights_are_refused(trained: Workspace) -> None:
    result = predict(trained, "--weights", "random:4", test_videos_of_it(trained)[0])
    assert result.exit_code == 1
    assert "the heads were trained on features of weights random:3" in result.output


def make_bundle(workspace: Workspace, out: Path) -> Result:
    return CliRunner().invoke(main, ["bundle", "--work", str(workspace.root), "--out", str(out)])


def test_the_advice_after_a_bundle_names_the_weights_file(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuse.cli.is_file_spec", lambda spec: True)
    assert re.search(
        r"next: mrrn predict --bundle \S+ --weights \S+ clip.mp4", make_bundle(trained, tmp_path / "b").output
    )


def test_a_bundle_predicts_the_same_from_an_empty_folder(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_bundle(trained, tmp_path / "made").exit_code == 0
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    shutil.copytree(tmp_path / "made", empty / "heads")
    monkeypatch.chdir(empty)
    video = test_videos_of_it(trained)[0]
    alone = probabilities(Workspace(empty / "none"), "--bundle", "heads", video)
    np.testing.assert_allclose(alone[str(video)], scored(trained)[str(video)], atol=2e-6)
    np.testing.assert_array_equal(alone[str(video)], probabilities(trained, video)[str(video)])
    assert list(read_bundle(empty / "heads")[1].items()) == list(PAPER_WEIGHTS.items())
    assert sorted(path.name for path in empty.iterdir()) == ["heads"]


def test_a_bundle_holds_data_only_and_says_what_it_is(trained: Workspace, tmp_path: Path) -> None:
    result = make_bundle(trained, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} == {".json", ".md", ".safetensors"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**Note:** weights: random:3 (random, never trained)" in card
    description = json.loads((tmp_path / "out" / "bundle.json").read_text())
    assert description["classes"] == ["Class0", "Class1"]
    assert description["fingerprint"]["identity"]["backbone"] == SETTINGS.backbone
    text = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json"))
    assert str(tmp_path) not in text
    assert str(trained.root) not in text


@pytest.mark.slow
def test_held_out_runs_calibrate_what_predict_says_and_the_bundle_takes_it_along(
    trained: Workspace, tmp_path: Path
) -> None:
    workspace, video = Workspace(tmp_path / "work"), test_videos_of_it(trained)[0]
    shutil.copytree(trained.root, workspace.root)
    plain = make_bundle(workspace, tmp_path / "plain")
    assert "probabilities: not calibrated" in " ".join(plain.output.split())
    assert "--holdout" not in plain.output  # of four training videos they would hold out too few
    before = json.loads(predict(workspace, "--json", video).stdout)
    assert before["calibration"] is before["predictions"][0]["none_of_these"] is None
    labels = {f"held/{number}": number % 2 for number in range(12)}
    clips = {name: [(0.99, 0.01) if label == 0 else (0.01, 0.99)] for name, label in labels.items()}
    for level in LEVELS:
        table = read_scores(workspace.run("tiny", 1, level, "mean", 0) / "scores.npz")
        held = make_table(level, clips, labels, classes=tuple(table.classes.tolist()), **table.run)
        write_scores(workspace.run("tiny", 1, level, "mean", 0, "holdout") / "heldout-scores.npz", held)
    made = make_bundle(workspace, tmp_path / "made")
    assert "found on 12 held-out training videos" in " ".join(made.output.split())
    card = (tmp_path / "made" / "README.md").read_text()
    assert "none of these" in card
    assert "A video that shows none of its 2 classes may still be given one" in card
    after = json.loads(predict(workspace, "--json", "--bundle", tmp_path / "made", video).stdout)
    old, new = before["predictions"][0], after["predictions"][0]
    assert (new["fused"], new["levels"]) == (old["fused"], old["levels"])
    assert [each["class"] for each in new["top"]] == [each["class"] for each in old["top"]]
    assert after["calibration"]["threshold"] == pytest.approx(0.99)
    assert new["top"][0]["probability"] == max(new["calibrated"]) < after["calibration"]["threshold"]
    assert new["none_of_these"] is True
    said = f"none of these (most like {new['top'][0]['class']}, {100 * new['top'][0]['probability']:.0f} %)"
    assert said in predict(workspace, video).output
    description = json.loads((tmp_path / "made" / "bundle.json").read_text())
    assert description["calibration"] == after["calibration"]


def test_a_bundle_that_was_changed_is_refused(trained: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    make_bundle(trained, folder)
    video = test_videos_of_it(trained)[0]
    content = bytearray((folder / "mid" / "checkpoint.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "mid" / "checkpoint.safetensors").write_bytes(content)
    result = predict(trained, "--bundle", folder, video)
    assert result.exit_code == 1
    assert "is not the file that the bundle was made with" in result.output
    (folder / "bundle.json").unlink()
    assert "a bundle is a folder written by `mrrn bundle`" in predict(trained, "--bundle", folder, video).output


def test_a_bundle_does_not_overwrite_what_is_none(trained: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    result = make_bundle(trained, tmp_path)
    assert result.exit_code == 1
    assert "is not only a bundle" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_report_shows_frames_of_the_videos_that_are_there(trained: Workspace) -> None:
    with FeatureCache.open(trained.cache("tiny")) as cache:
        ids = [video.id for video in cache.dataset.half(1, "test")]
    frames, note = sample_frames(trained, "tiny", [*ids, "unknown/video"])
    assert set(frames) == set(ids)
    assert all(each.shape == (8, 48, 64, 3) for each in frames.values())
    assert note == "Without frames: 1 whose files are no longer there."


def test_the_report_says_when_decoding_took_too_long(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "DECODE_SECONDS", -1.0)
    with FeatureCache.open(trained.cache("tiny")) as cache:
        ids = [video.id for video in cache.dataset.half(1, "test")]
    frames, note = sample_frames(trained, "tiny", ids)
    assert not frames
    assert note == f"Without frames: {len(ids)} that were not reached in the -1 s that decoding may take."


def test_frames_of_a_long_video_do_not_fill_the_memory(tmp_path: Path) -> None:
    data = tmp_path / "videos"
    (data / "Class0").mkdir(parents=True)
    encode(data / "Class0" / "long.mp4", frames=41, rate=4, size=(1080, 1920))
    workspace = Workspace(tmp_path / "work")
    rows = [("Class0/long.mp4", 0, {1: "test"})]
    dataset = Dataset.of_whole_videos("tiny", "folder", ("Class0",), rows)
    FeatureCache.create(
        workspace.cache("tiny"), dataset=dataset, fingerprint=make_fingerprint(), settings={"data": str(data)}
    ).close()
    sample_frames(workspace, "tiny", [])  # what is imported on the way does not count
    tracemalloc.start()
    frames, _ = sample_frames(workspace, "tiny", ["Class0/long"])
    (frames_FHW3,) = frames.values()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [index_of(frame) for frame in frames_FHW3] == [4, 9, 13, 18, 22, 27, 31, 36]
    assert frames_FHW3.shape == (8, 117, 208, 3)
    assert peak < 64 << 20


def test_the_whole_report_of_real_runs(trained: Workspace) -> None:
    result = CliRunner().invoke(main, ["--work", str(trained.root)])
    assert result.exit_code == 0, result.output
    page = (trained.report("tiny", 1) / "report.html").read_text()
    assert page.count('src="data:image/webp;base64,') >= 2  # as many as there are videos, some twice
    assert (trained.report("tiny", 1) / "samples.png").exists()


@pytest.mark.slow
def test_the_page_about_python_is_true(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line of docs/python.md, on the cache of this file."""
    (tmp_path / "work" / "cache").mkdir(parents=True)
    shutil.copytree(trained.cache("tiny"), tmp_path / "work" / "cache" / "tiny")
    assert make_bundle(trained, tmp_path / "tiny-heads").exit_code == 0
    shutil.copy(test_videos_of_it(trained)[0], tmp_path / "new.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text().replace("mine", "tiny")
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    example = doctest.DocTestParser().get_doctest(blocks, {}, "docs/python.md", None, None)
    failed, attempted = doctest.DocTestRunner().run(example)
    assert (failed, attempted) == (0, page.count(">>> ")), capsys.readouterr().out


@pytest.mark.slow
def test_clips_are_read_by_spawned_workers_as_by_none(trained: Workspace) -> None:
    clips = mrrn.ClipDataset(mrrn.open_cache(str(trained.cache("tiny"))), "low", clips="length=8,stride=4")
    loader = torch.utils.data.DataLoader(clips, batch_size=3, num_workers=2, multiprocessing_context="spawn")
    found = torch.cat([features for features, _ in loader])
    assert torch.equal(found, torch.stack([features for features, _ in clips]))  # type: ignore[arg-type]
