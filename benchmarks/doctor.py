"""How much of what is wrong with a dataset `mrrn doctor` finds: plants known faults, extracts them, and measures.

    python -m benchmarks.doctor --data FOLDER --work WORK --out NEW

FOLDER is laid out as HMDB-51's archives unpack, with the videos there are; WORK has its cache as `hmdb51`. NEW gets a
copy of both, into which faults are planted: copies of training videos in the test half of split 2 in several disguises,
some with another class; black, frozen and very short videos; and 5 % of the samples get another class at random. Only
the planted videos are extracted. Prints a JSON object: for each kind of fault how many were planted and found, and how
many findings there are of that kind.
"""

import csv
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache.common.workspace import Workspace
from cache.dataset import Dataset, Half, video_id
from cache.store import FeatureCache
from extract.datasets import hmdb51

SPLIT = 2
EACH = 10
"""Copies in each disguise; of these OTHER_CLASS get another class."""
OTHER_CLASS = 3
RELABELLED = 0.05

Frames = NDArray[np.uint8]


def cropped(frames: Frames, random: np.random.Generator) -> Frames:
    """80 to 95 % of the height and width, at a random place, three quarters of the size."""
    height, width = frames.shape[1:3]
    inner = [int(side * random.uniform(0.8, 0.95)) for side in (height, width)]
    top, left = (int(random.integers(0, side - each + 1)) for side, each in zip((height, width), inner, strict=True))
    part = frames[:, top : top + inner[0], left : left + inner[1]]
    size = (2 * int(inner[1] * 0.375), 2 * int(inner[0] * 0.375))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in part])


def mirrored(frames: Frames, _random: np.random.Generator) -> Frames:
    """Left and right exchanged."""
    return frames[:, :, ::-1]


def trimmed(frames: Frames, random: np.random.Generator) -> Frames:
    """60 % of the frames, from a random place on."""
    length = round(0.6 * len(frames))
    start = int(random.integers(0, len(frames) - length + 1))
    return frames[start : start + length]


DISGUISES: dict[str, Callable[[Frames, np.random.Generator], Frames]] = {
    "cropped": cropped,
    "mirrored": mirrored,
    "trimmed": trimmed,
}
"""What is done to a copy's frames before it is encoded anew, at a low quality."""


@dataclass(frozen=True)
class Planted:
    """A video that was added."""

    path: str
    """Relative to the folder of videos: `class/name.avi`."""
    kind: str
    half: Half
    source: str | None = None
    """Id of the video that it is a copy of."""


def read_frames(path: Path) -> Frames:
    with av.open(str(path), metadata_errors="ignore") as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def write_frames(path: Path, frames: Frames, quality: int) -> None:
    """MPEG-4 part 2, even sizes; `quality` from 1, the best, to 31."""
    height, width = (side - side % 2 for side in frames.shape[1:3])
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25, options={"qscale": str(quality), "flags": "+qscale"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames[:, :height, :width]:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


def plant(data: Path, random: np.random.Generator) -> Iterator[Planted]:
    """Add videos with known faults to the folder `data`, and yield each."""
    listed = hmdb51.read_lists("hmdb51", data / hmdb51.LISTS)
    videos = data / hmdb51.VIDEOS
    there = {sample.video for sample in listed.samples if (videos / f"{sample.video}.avi").is_file()}
    train, test = ([each for each in listed.half(SPLIT, half) if each.video in there] for half in ("train", "test"))
    classes = sorted({str(listed.class_of(sample)) for sample in train})
    chosen = random.permutation(len(train)).tolist()
    for name, disguise in DISGUISES.items():
        for number in range(EACH):
            sample = train[chosen.pop()]
            label = listed.class_of(sample)
            if number < OTHER_CLASS:
                label = random.choice([each for each in classes if each != label])
            path = f"{label}/planted_{name}_{number}.avi"
            frames = disguise(read_frames(videos / f"{sample.video}.avi"), random)
            write_frames(videos / path, frames, int(random.integers(6, 16)))
            yield Planted(path, name, "test", sample.video)
    for number in range(3):
        path = f"{random.choice(classes)}/planted_black_{number}.avi"
        write_frames(videos / path, np.zeros((40, 240, 320, 3), np.uint8), 5)
        yield Planted(path, "black", "train")
    for number, sample in enumerate(test[i] for i in random.permutation(len(test))[:6].tolist()):
        kind, path = ("frozen", "short")[number % 2], f"{listed.class_of(sample)}/planted_{{}}_{number}.avi"
        frames = read_frames(videos / f"{sample.video}.avi")
        frames = np.repeat(frames[:1], 40, axis=0) if kind == "frozen" else frames[:5]
        write_frames(videos / path.format(kind), frames, 5)
        yield Planted(path.format(kind), kind, "none")


def list_planted(data: Path, planted: list[Planted]) -> None:
    """Add the planted videos to the lists of all splits; in other splits than SPLIT they are in no half."""
    marks = {"none": 0, "train": 1, "test": 2}
    for each in planted:
        class_name, file = each.path.split("/")
        for split in (1, 2, 3):
            with (data / hmdb51.LISTS / f"{class_name}_test_split{split}.txt").open("a") as lines:
                lines.write(f"{file} {marks[each.half] if split == SPLIT else 0} \n")


def relabel(dataset: Dataset, planted: list[Planted], random: np.random.Generator) -> tuple[Dataset, dict[str, str]]:
    """The dataset in which 5 % of the samples that were there have another class, and these samples' true classes."""
    added = {video_id(each.path) for each in planted}
    old = [index for index, sample in enumerate(dataset.samples) if sample.video not in added]
    used = sorted({sample.label for sample in dataset.samples})
    samples, truth = list(dataset.samples), {}
    for index in random.choice(old, round(RELABELLED * len(old)), replace=False).tolist():
        label = samples[index].label
        wrong = random.choice([each for each in used if each != label])
        truth[samples[index].id] = dataset.classes[label]
        samples[index] = replace(samples[index], label=int(wrong))
    return replace(dataset, samples=tuple(samples)), truth


def run(command: str, root: Path, *options: str) -> None:
    """A command of `mrrn` on the cache in the workspace `root`."""
    arguments = [command, "--work", str(root), "--dataset", "hmdb51", *options]
    subprocess.run([sys.executable, "-m", "mrrn", *arguments], check=True, stdout=sys.stderr)


def prepare(data: Path, work: Path, root: Path, seed: int) -> None:
    """Make `root` a workspace whose cache `hmdb51` has the planted faults, and write planted.json."""
    random = np.random.default_rng(seed)
    shutil.copytree(data, root / "data", copy_function=shutil.copy2)
    cache = Workspace(root).cache("hmdb51")
    shutil.copytree(Workspace(work).cache("hmdb51"), cache)
    planted = list(plant(root / "data", random))
    list_planted(root / "data", planted)
    run("extract", root, "--data", str(root / "data"), "--subset")
    with FeatureCache.open(cache) as opened:
        dataset, relabelled = relabel(opened.dataset, planted, random)
        opened.replace_dataset(dataset)
    copies = [each for each in planted if each.source]
    other = [video_id(each.path) for each in copies if Path(each.path).parent != Path(each.source or "").parent]
    truth: dict[str, Any] = {"relabelled": relabelled, "copies with another class": other}
    for each in planted:
        truth.setdefault(each.kind, {})[video_id(each.path)] = each.source
    (root / "planted.json").write_text(json.dumps(truth, indent=1))


def measure(root: Path) -> dict[str, dict[str, int]]:
    """Run `mrrn doctor` in the workspace `root`, and compare its list with what was planted there."""
    run("doctor", root, "--split", str(SPLIT))
    with (Workspace(root).report("hmdb51", SPLIT) / "doctor.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row["finding"]].add(row["video"])
    truth = json.loads((root / "planted.json").read_text())
    copies = set().union(*(truth[disguise] for disguise in DISGUISES))
    mislabelled = {*truth["relabelled"], *truth["copies with another class"]}
    planted = {
        **{f"{disguise} copies": ("leak", set(truth[disguise])) for disguise in DISGUISES},
        "all copies": ("leak", copies),
        "copies with another class": ("conflict", set(truth["copies with another class"])),
        "wrong labels": ("label", mislabelled),
        **{kind: (kind, set(truth[kind])) for kind in ("black", "frozen", "short")},
    }
    return {
        name: {"planted": len(there), "found": len(there & found[kind]), "findings": len(found[kind])}
        for name, (kind, there) in planted.items()
    }


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(data: Path, work: Path, out: Path, seed: int) -> None:
    """Plant faults in a copy of J-HMDB's (or HMDB-51's) cache, and say which of them `mrrn doctor` finds."""
    if not (out / "planted.json").exists():
        prepare(data, work, out, seed)
    print(json.dumps(measure(out), indent=2))


if __name__ == "__main__":
    main()
