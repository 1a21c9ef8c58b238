"""Packs what `gpu_check.py` needs on a machine without network: wheels, videos, weights, frame counts. One command.

    python -m benchmarks.gpu_pack --videos UCF-101 --weights resnet34.pth --counts hmdb51_frames.csv

Run it where the network is, in an environment of this project. It fills a folder (work/gpu-pack by default) with

    wheels/       packages that a machine with PyTorch usually lacks, for its Python and processor
    videos/       the smallest videos of --videos, --number of them, spread over its folders
    weights.npz   the backbone's weights as float16, compressed
    frames.csv    frame counts of a data set, for training at its real size

and prints what each takes. Together with this checkout it must not exceed --limit, or the command fails. Carry the
checkout with the folder inside it; `gpu_check.py` finds it there.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

from extract.datasets.paths import find_videos
from extract.network.weights import load_weights

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20

PACKAGES = ("av", "donfig", "google-crc32c", "msgspec", "numcodecs", "zarr")
"""What a machine with PyTorch, h5py, rich, safetensors, tensorboard and pytest still lacks. decord2 and torchcodec are
optional decoders and do not fit."""

GLIBC = (35, 34, 31, 28, 27, 24, 17)
"""Minor versions of glibc, up to the other machine's, that wheels are built for; pip takes those that it is told."""


def pinned(names: tuple[str, ...]) -> list[str]:
    """Each package with the version that constraints.txt names."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = dict(line.lower().split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return [f"{name}=={versions[name.lower()]}" if name.lower() in versions else name for name in names]


def fetch_wheels(folder: Path, names: tuple[str, ...], python: str) -> None:
    """Download the packages' wheels for x86-64 Linux; fails where one has none for this Python."""
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC), "manylinux2014_x86_64", "manylinux1_x86_64"]
    options = [option for each in platforms for option in ("--platform", each)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *options]
    subprocess.run([*command, "--dest", str(folder), *pinned(names)], check=True)


def copy_videos(source: Path, folder: Path, number: int) -> None:
    """The smallest videos below `source`, taken from its folders in turn so that all kinds are there."""
    by_folder: dict[Path, list[Path]] = {}
    source = source.resolve()
    for name in find_videos(source):
        by_folder.setdefault((source / name).parent, []).append(source / name)
    if not by_folder:
        raise click.ClickException(f"there are no videos below {source}")
    for paths in by_folder.values():
        paths.sort(key=lambda path: (path.stat().st_size, path.name), reverse=True)
    chosen: list[Path] = []
    while len(chosen) < number and any(by_folder.values()):
        chosen += [paths.pop() for _, paths in sorted(by_folder.items()) if paths]
    for path in chosen[:number]:
        place = folder / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def pack_weights(source: Path, path: Path) -> None:
    """ResNet-34's weights from a file as float16 in a compressed .npz."""
    tensors = load_weights(str(source), "resnet34").tensors
    np.savez_compressed(path, **{name: tensor.half().numpy() for name, tensor in tensors.items()})


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, or of a file."""
    files = folder.rglob("*") if folder.is_dir() else [folder]
    return sum(path.stat().st_size for path in files if path.is_file())


def checkout_size(folder: Path) -> int:
    """Bytes of this checkout without .git, what git ignores, and the package itself."""
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, capture_output=True, check=True).stdout.split(b"\0")
    paths = [ROOT / name.decode() for name in names if name]
    return sum(path.stat().st_size for path in paths if path.is_file() and not path.is_relative_to(folder))


@click.command()
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path("work/gpu-pack"), show_default=True)
@click.option("--videos", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A folder of videos.")
@click.option("--number", default=40, show_default=True, help="Videos to take.")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="ResNet-34, a file.")
@click.option("--counts", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Frame counts, CSV.")
@click.option("--python", default="3.12", show_default=True, help="The other machine's Python.")
@click.option("--also", multiple=True, metavar="NAME", help="Another package to carry; may be given several times.")
@click.option("--limit", default=64.0, show_default=True, help="MiB that all may take, the checkout included.")
def main(
    folder: Path,
    videos: Path | None,
    number: int,
    weights: Path | None,
    counts: Path | None,
    python: str,
    also: tuple[str, ...],
    limit: float,
) -> None:
    """Pack what gpu_check.py needs on a machine without network."""
    folder = folder.absolute()
    if not re.fullmatch(r"3\.\d+", python):
        raise click.ClickException(f"--python is {python!r}; give it as 3.12")
    if folder.exists():
        if any(path.name not in ("wheels", "videos", "weights.npz", "frames.csv") for path in folder.iterdir()):
            raise click.ClickException(f"{folder} holds other things; name a new folder with --to")
        shutil.rmtree(folder)
    (folder / "wheels").mkdir(parents=True)
    fetch_wheels(folder / "wheels", PACKAGES + also, python)
    if videos:
        copy_videos(videos, folder / "videos", number)
    if weights:
        pack_weights(weights, folder / "weights.npz")
    if counts:
        shutil.copyfile(counts, folder / "frames.csv")
    sizes = {path.name: size_of(path) for path in sorted(folder.iterdir())} | {"the checkout": checkout_size(folder)}
    for name, size in (sizes | {"together": sum(sizes.values())}).items():
        click.echo(f"{size / MIB:6.1f} MiB  {name}")
    if sum(sizes.values()) > limit * MIB:
        raise click.ClickException(
            f"that is more than {limit:g} MiB (--limit): take fewer videos (--number), or leave --weights out "
            "(random ones are as fast)"
        )
    click.echo(f"carry the checkout with {folder} in it, and run there: python3 benchmarks/gpu_check.py")


if __name__ == "__main__":
    main()
