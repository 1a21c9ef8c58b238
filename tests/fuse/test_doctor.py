"""`mrrn doctor`: faults that are planted in a made-up dataset are found, and nothing else is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.dataset import Dataset, Half, Sample
from cache.fingerprint import CHANNELS, Level
from cache.store import FeatureCache
from fuse.caveats import caveats
from fuse.doctor import Diagnosis, examine, portions, with_black
from fuse.duplicates import ONE_RECORDING, near_pairs
from fuse.labels import alike_classes, doubts
from fuse.report.findings import doctor_page, shown, table, to_text
from fuse.report.tables import to_csv
from fuse.results import evaluate
from fuse.summary import summarise
from tests.fuse.report.test_html import HOSTILE, tags_of
from tests.helpers.scores import LABELS, MADE, hand_worked_results, hand_worked_tables, make_scored_cache
from tests.helpers.train import trainable_cache

Row = tuple[str, int, Half]
"""Id, label and half of a video."""

FRAMES = 24
CLASSES = ("dive", "fence", "juggle", "row")
PLANTED = {
    "dive/new": ("dive/dive1_g01_c1", "copy"),
    "fence/new": ("fence/fence1_g01_c1", "part"),
    "fence/same": ("fence/fence2_g02_c1", "exact"),
    "juggle/new": ("juggle/juggle2_g02_c2", "copy"),
    "juggle/later": ("juggle/juggle1_g01_c7", "scene"),
    "row/still": ("row/row1_g01_c9", "frozen"),
    "row/brief": ("row/row4_g04_c8", "short"),
}
"""Video -> the video whose class, scene and walk through it this one has, and how it differs."""

WRONG = {"juggle/new": 0, "dive/dive5_g05_c1": 3, "fence/fence4_g04_c2": 2}
"""Video -> label that it is given."""
MOVED = "row/row3_g03_c1"
"""A video of a test recording that is put into the training half."""


def features(sample: Sample, level: Level, frames: int, generator: np.random.Generator) -> NDArray[np.floating]:
    """A class, a scene, and a walk through it, each by the video's name: `class/scene_gNN_cNN`."""
    video, what = PLANTED.get(sample.video, (sample.video, ""))
    truth, scene = video.partition("/")[0], video.rpartition("_c")[0]

    def drawn(name: str, *shape: int) -> NDArray[np.floating]:
        return np.random.default_rng([*name.encode(), *level.encode()]).normal(size=(*shape, CHANNELS[level]))

    walk_FC = 0.0 if what == "frozen" else 0.2 * drawn(video, FRAMES).cumsum(axis=0)[-frames:]
    noise_FC = generator.normal(scale=0.1 if what in ("copy", "part") else 0, size=(frames, CHANNELS[level]))
    return np.stack([8 + 2 * drawn(truth) + 2 * drawn(scene) + walk_FC + noise_FC] * 2)


def healthy() -> list[Row]:
    """Three videos of each of six recordings of each class; a third of the recordings are for testing."""
    return [
        (f"{name}/{name}{group}_g{group:02}_c{clip}", label, "test" if group % 3 == 0 else "train")
        for label, name in enumerate(CLASSES)
        for group in range(6)
        for clip in (1, 2, 3)
    ]


def diagnosed(work: Path, rows: list[Row]) -> Diagnosis:
    listed = sorted((f"{video}.avi", label, {1: half}) for video, label, half in rows)
    dataset = Dataset.of_whole_videos("mine", "folder", CLASSES, listed)
    videos = [sample.video for sample in dataset.samples]
    shorter = {"part": FRAMES // 2, "short": 4}
    lengths = [shorter.get(PLANTED[video][1], FRAMES) if video in PLANTED else FRAMES for video in videos]
    trainable_cache(work, dataset, features=features, frames=lambda index: lengths[index])
    with FeatureCache.open(work / "cache" / "mine") as cache:
        return examine(cache, 1)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    rows = [(video, WRONG.get(video, label), "train" if video == MOVED else half) for video, label, half in healthy()]
    halves: dict[str, Half] = {"juggle/new": "train", "row/still": "train", "row/brief": "none"}
    for video in PLANTED:
        label = WRONG.get(video, CLASSES.index(video.partition("/")[0]))
        rows.append((video, label, halves.get(video, "test")))
    return diagnosed(tmp_path_factory.mktemp("planted"), rows)


def of_kind(diagnosis: Diagnosis, kind: str) -> dict[str, str | None]:
    return {each.sample: each.other for each in diagnosis.findings if each.kind == kind}


def test_copies_of_training_videos_are_leaks_also_disguised(planted: Diagnosis) -> None:
    assert of_kind(planted, "leak") == {video: PLANTED[video][0] for video in ("dive/new", "fence/new", "fence/same")}
    assert planted.of_kind("leak")[0].score == pytest.approx(1, abs=1e-5)


def test_other_clips_of_a_recording_are_no_copies(planted: Diagnosis) -> None:
    found = of_kind(planted, "recording")
    assert str(found.pop("juggle/later")).startswith("juggle/juggle1_g01_c")
    assert found == dict.fromkeys(("row/row3_g03_c2", "row/row3_g03_c3"), MOVED)


def test_likeness_says_little_where_all_look_alike() -> None:
    def units(noise: float) -> NDArray[np.float32]:
        vectors_NC = np.random.default_rng(0).normal(size=(6, 64)) * noise
        vectors_NC[:, 0] += 1
        return (vectors_NC / np.linalg.norm(vectors_NC, axis=1, keepdims=True)).astype(np.float32)

    alike_NC, groups = units(0.06), np.arange(6)
    assert (alike_NC @ alike_NC.T).min() > ONE_RECORDING - 0.15
    assert not any(pair.copy for pair in near_pairs(alike_NC, groups, lambda one, other: 1.0))
    alike_NC[5] = alike_NC[0]
    copies = [pair for pair in near_pairs(alike_NC, groups, lambda one, other: 1.0) if pair.copy]
    assert [(pair.first, pair.second) for pair in copies] == [(0, 5)]


def test_copies_with_two_labels_are_both_in_doubt(planted: Diagnosis) -> None:
    one, other = "juggle/new", "juggle/juggle2_g02_c2"
    assert of_kind(planted, "conflict") == {one: other, other: one}
    assert of_kind(planted, "copy") == {one: other}


def test_a_wrong_label_is_found(planted: Diagnosis) -> None:
    advice = {each.sample: each.advice for each in planted.of_kind("label")}
    assert set(advice) == set(WRONG)
    assert advice["dive/dive5_g05_c1"] == "row here, looks like dive: watch it"


def test_videos_that_show_nothing_are_found(planted: Diagnosis) -> None:
    assert set(of_kind(planted, "frozen")) == {"row/still"}
    assert set(of_kind(planted, "short")) == {"row/brief"}
    black = with_black(planted, {"row/still": np.zeros((8, 4, 4, 3), np.uint8)})
    assert set(of_kind(black, "black")) == {"row/still"}
    assert not of_kind(black, "frozen")
    assert of_kind(with_black(planted, {"row/still": np.full((8, 4, 4, 3), 90, np.uint8)}), "frozen")


def test_a_healthy_dataset_has_no_findings(tmp_path: Path) -> None:
    found = diagnosed(tmp_path, healthy())
    assert not found.findings
    assert not found.alike
    assert (found.samples, found.groups, found.judged) == (72, 24, 72)
    assert "findings: 0" in to_text(found, [], [])


def test_doubts_are_as_large_as_the_share_of_wrong_labels() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 10, 2000)
    logits = 2 * random.normal(size=(2000, 10))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([random.choice(10, p=row) for row in softmax])
    assert doubts(softmax, truth).sum() < 20
    labels, wrong = truth.copy(), random.permutation(2000)[:200]
    labels[wrong] = random.integers(0, 10, 200)
    found = doubts(softmax, labels)
    assert found.sum() == pytest.approx(200, rel=0.3)
    likely = found > 0.5
    assert np.isin(np.flatnonzero(likely), wrong).mean() > 0.5
    assert not doubts(np.full((3, 2), np.nan), np.zeros(3, np.int64)).any()


def test_classes_at_chance_cannot_be_told_apart() -> None:
    random = np.random.default_rng(0)
    label_N = np.repeat([0, 1, 2], 40)
    share_NK = np.full((120, 3), 0.1)
    share_NK[:80, :2] += random.uniform(0, 0.3, (80, 2))
    share_NK[80:, 2] = 0.9
    (found,) = alike_classes(share_NK, label_N, np.arange(120))
    assert (found.first, found.second, found.samples) == (0, 1, 80)
    # The same shares from three recordings are no evidence.
    assert not alike_classes(share_NK, label_N, np.arange(120) // 14)


def test_accuracy_is_given_with_and_without_the_suspects(planted: Diagnosis) -> None:
    results = hand_worked_results()
    leak = replace(planted.of_kind("leak")[0], sample="a/one")
    found = portions(results, replace(planted, dataset=results.cache.dataset, findings=(leak,)))
    assert [(each.name, each.videos, each.right) for each in found] == [
        ("test videos", 2, 2),
        ("copies of training videos", 1, 1),
        ("others", 1, 1),
    ]


def test_a_report_says_that_test_videos_are_exact_copies() -> None:
    cache = make_scored_cache(LABELS)
    contents = {"a/one": b"1", "b/two": b"2", "learned/0": b"1", "learned/1": b"3"}
    results = evaluate(hand_worked_tables(), replace(cache, contents=contents), 1)
    assert results.copies == {"a/one": "learned/0"}
    assert any(note.startswith("copies: 1 of 2 test videos are copies") for note in caveats(results))
    assert summarise(results, [], MADE)["doctor"] == {"test_copies_of_training": 1}
    assert summarise(hand_worked_results(), [], MADE)["doctor"] is None


def test_names_from_outside_stay_text(planted: Diagnosis) -> None:
    def renamed(names: list[str]) -> Diagnosis:
        new = {each.sample: names[i % len(names)] for i, each in enumerate(planted.findings)}
        samples = tuple(replace(each, video=new.get(each.id, each.video)) for each in planted.dataset.samples)
        dataset = replace(planted.dataset, name="tiny")
        object.__setattr__(dataset, "samples", samples)
        findings = [
            replace(each, sample=new[each.sample], other=each.other and new.get(each.other, each.other))
            for each in planted.findings
        ]
        return replace(planted, dataset=dataset, findings=tuple(findings))

    frames = {name: np.zeros((8, 6, 8, 3), np.uint8) for name in HOSTILE}
    wild = doctor_page(renamed(list(HOSTILE)), [], [], frames, MADE)
    tame = doctor_page(renamed(list("abcdefgh")), [], [], dict(zip("abcdefgh", frames.values(), strict=True)), MADE)
    for text in (wild, tame):
        assert "<script" not in text
    found, expected = tags_of(wild), tags_of(tame)
    assert found.tags | {"wbr": 0} == expected.tags | {"wbr": 0}  # where names may break
    assert found.attributes == expected.attributes
    assert "\u202e" not in wild + to_text(renamed(list(HOSTILE)), [], [])
    rows = to_csv(table(renamed(["=1+1", "@sum", "-2", "+3", "e", "f", "g", "h"]))).splitlines()
    assert rows[0] == "video,finding,other_video,score,suggestion"
    assert rows[1].startswith("'=1+1,leak,")
    assert not any(cell[:1] in "=@+-" for row in rows for cell in row.split(",") if cell)


def test_the_terminal_has_80_columns(planted: Diagnosis) -> None:
    text = to_text(planted, [], [])
    assert max(map(len, text.splitlines())) <= 80
    assert "  3  test videos that are copies of training videos" in text
    assert set(shown(planted)) >= {"dive/new", "dive/dive1_g01_c1"}
