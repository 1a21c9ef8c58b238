"""What training, fusion, and extraction after a file changed write, killed and refused at each of their system calls:
the same command continues.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from cache.common.files import read_json, write_sealed_json
from cache.fingerprint import LEVELS
from cache.scores import read_scores
from cache.store import FeatureCache
from cache.verify import verify
from fuse.bundle import DESCRIPTION, read_bundle
from tests.helpers.breaking import break_each_call
from tests.helpers.extract import QUICK, make_videos
from tests.helpers.faults import serving
from tests.helpers.train import grouped_dataset, trainable_cache
from train.checkpoint import load_head
from train.config import read_config

MODULES: Final = (
    *("h5py", "cache.shards.hdf5", "torch", "torch.utils.tensorboard", "train.cli", "fuse.cli", "fuse.bundle"),
    *("fuse.report.samples", "fuse.report.sweeps", "fuse.report.timing", "fuse.trained", "tests.faults.hasty"),
    *("torch._dynamo", "train.sru.backends", "train.linear", "click._textwrap", "numpy.ma", "extract.run"),
)
RUN: Final = "runs/tiny/split1/low-mean-seed0-h4-e2-b8"
SMALL: Final = ("--hidden", "4", "--epochs", "2", "--batch", "8")
GRID: Final = ("--grid", "level=low", "--grid", "epochs=1", "--grid", "hidden=4", "--seeds", "1", "--jobs", "1")
LINEAR: Final = ("--recipe", "linear")
CHANGED: Final = "class0/v_g00_c01"
"""A video whose file changed since it was extracted."""
LIKE: Final = "class1/v_g01_c01"
"""The one whose bytes it has now."""
OLDER: Final = ["the older one"]
"""Notes of the bundle that the broken command replaces."""


@dataclass(frozen=True)
class Broken:
    """A command that is broken, and what is looked at."""

    stage: str
    arguments: tuple[str, ...]
    finished: Callable[[Path, Path], None]
    """Takes the workspace, and the finished one."""
    removed: tuple[str, ...] = ()
    """What of the finished workspace the command makes anew; nothing if it replaces what is there."""
    whole: Callable[[Path], None] = lambda _: None
    """Looks at the workspace after the broken command."""
    dataset: str = "tiny"


def same_run(work: Path, done: Path) -> None:
    """Scores and losses to the same bits."""
    found, expected = (read_scores(each / RUN / "scores.npz") for each in (work, done))
    assert np.array_equal(found.softmax, expected.softmax)
    logs = [(each / RUN / "metrics.jsonl").read_text().splitlines() for each in (work, done)]
    rows = [[json.loads(row)["loss"] for row in log] for log in logs]
    assert rows[0] == rows[1]
    config = read_config(work / RUN)
    assert config is not None
    assert config[1] == "finished"
    load_head(work / RUN)


def same_table(work: Path, done: Path) -> None:
    found, expected = (read_json(each / "sweeps" / "tiny" / "grid" / "results.json") for each in (work, done))
    assert found == expected


def same_report(work: Path, done: Path) -> None:
    found, expected = (read_json(each / "report" / "tiny" / "split1" / "results.json") for each in (work, done))
    assert found["accuracy"] == expected["accuracy"]
    assert "</html>" in (work / "report" / "tiny" / "split1" / "report.html").read_text()


def new_bundle(work: Path, done: Path) -> None:
    a_bundle(work)
    for level in LEVELS:
        (run,) = (done / "runs/tiny/split1").glob(f"{level}-mean-seed0-linear-*")
        _, made_of = load_head(run)
        assert load_head(work / "bundle" / level)[1] == made_of
    assert read_json(work / "bundle" / DESCRIPTION)["notes"] != OLDER


def a_bundle(work: Path) -> None:
    """The older one or the new one, whole."""
    read_bundle(work / "bundle")


def follows_the_files(work: Path, done: Path) -> None:
    """The changed video has the features of its new bytes, the others theirs; nothing is extracted twice."""
    path = work / "cache" / "toy"
    with FeatureCache.open(path) as cache, FeatureCache.open(done / "cache" / "toy") as before:
        assert cache.ledger.counts() == {"pending": 0, "done": 4, "suspect": 0, "failed": 0}
        assert cache.ledger.replaced_files().keys() == {CHANGED}
        for level in cache.levels:
            for video_id in cache.video_ids:
                same_as = LIKE if video_id == CHANGED else video_id
                assert np.array_equal(cache.features(video_id, level), before.features(same_as, level))
    assert verify(path) == []


def others_stay(work: Path) -> None:
    """Features of videos whose files did not change are never lost."""
    with FeatureCache.open(work / "cache" / "toy") as cache:
        assert {*cache.video_ids, CHANGED} == {video.id for video in cache.dataset.videos}


COMMANDS: Final[Mapping[str, Broken]] = {
    "extract": Broken(
        "extract",
        ("--device", "cpu"),
        follows_the_files,
        whole=others_stay,
        dataset="toy",
    ),
    "train": Broken("train", ("--level", "low", *SMALL), same_run, removed=(RUN,)),
    "sweep": Broken("train", ("sweep", *GRID), same_table, removed=("sweeps", "runs/tiny/split1/low-mean-seed0-h4-e1")),
    "fuse": Broken("fuse", LINEAR, same_report),
    "bundle": Broken("fuse", ("bundle", *LINEAR, "--out", "WORK/bundle"), new_bundle, whole=a_bundle),
}


def given(command: Broken, work: Path) -> list[str]:
    """The command's arguments for the workspace `work`."""
    named = [each.replace("WORK", str(work)) for each in command.arguments]
    # A subcommand's options come after its name.
    place = 0 if named[0].startswith("--") else 1
    return [*named[:place], "--work", str(work), "--dataset", command.dataset, *named[place:]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two caches, runs of all levels, a variant, a table, a report, and a bundle said to be older."""
    folder = tmp_path_factory.mktemp("results")
    work, output = folder / "work", folder / "output"
    trainable_cache(work, grouped_dataset(classes=2, groups=3, videos_per_group=1)).close()
    levels = Broken("train", LINEAR, same_run)
    videos = make_videos(folder / "videos")
    options = ("--data", str(videos), "--device", "cpu", "--jobs", "1", *QUICK)
    extracted = Broken("extract", options, follows_the_files, dataset="toy")
    with serving(modules=MODULES) as server:
        for command in (extracted, levels, *COMMANDS.values()):
            code = server.run("command", stage=command.stage, arguments=given(command, work), output=output)
            assert code == 0, output.read_text()
    shutil.copy(videos / f"{LIKE}.avi", videos / f"{CHANGED}.avi")
    description = read_json(work / "bundle" / DESCRIPTION)
    write_sealed_json(work / "bundle" / DESCRIPTION, description | {"notes": OLDER})
    return work


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
@pytest.mark.parametrize("every", [29, 1], ids=["some", "each"])
def test_the_same_command_continues(tmp_path: Path, done: Path, command: str, every: int) -> None:
    broken = COMMANDS[command]

    def prepare(place: Path) -> Sequence[str]:
        shutil.copytree(done, place / "work")
        for name in broken.removed:
            shutil.rmtree(place / "work" / name)
        return given(broken, place / "work")

    def finished(place: Path) -> None:
        broken.finished(place / "work", done)
        assert [path for path in place.rglob(".tmp-*") if path.is_file()] == []

    fired = break_each_call(
        tmp_path,
        broken.stage,
        prepare,
        finished,
        broken=lambda place: broken.whole(place / "work"),
        every=every,
        modules=MODULES,
    )
    print(f"{command}: broken {fired} times")
