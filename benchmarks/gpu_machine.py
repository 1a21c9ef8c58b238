"""The machine that `gpu_check.py` runs on: puts there what it lacks, and writes down what it is. Two of its steps.

python3 -m benchmarks.gpu_machine packages SCRATCH CARRIED
python3 -m benchmarks.gpu_machine versions SCRATCH CARRIED
"""

import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

NEEDED = {
    "extraction": "torch torchvision numpy click rich av h5py zarr xxhash msgspec safetensors",
    "training": "torch triton llvmlite tensorboard",
    "tests": "pytest hypothesis",
}
"""Packages by what needs them."""

VERSIONS = ("torch", "torchvision", "triton", "numpy", "av", "zarr", "pytest")
GPU_QUERY = ("--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit", "--format=csv,noheader")


def packages(scratch: Path, carried: Path) -> None:
    """Put into the scratch folder what the steps need: packages that are missing, weights, frame counts, videos."""
    wheels = [wheel for wheel in sorted((carried / "wheels").glob("*.whl")) if not installed(wheel)]
    if wheels:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", scratch / "site", *wheels]
        subprocess.run(command, check=True)
    if (carried / "weights.npz").exists():
        import numpy as np
        import torch

        with np.load(carried / "weights.npz", allow_pickle=False) as arrays:
            torch.save({name: torch.from_numpy(arrays[name]) for name in arrays.files}, scratch / "weights.pth")
    if not (carried / "frames.csv").exists():
        make_up_counts(scratch / "frames.csv")
    if not (carried / "videos").is_dir():
        # The demo's own videos, made on the spot.
        importlib.invalidate_caches()
        from extract.datasets.demo import make

        make(scratch / "videos")
    print(f"unpacked {', '.join(wheel.name.split('-')[0] for wheel in wheels) or 'no packages'}")


def installed(wheel: Path) -> bool:
    """Whether the machine has a package of this name, in whatever version."""
    try:
        metadata.distribution(wheel.name.split("-")[0])
    except metadata.PackageNotFoundError:
        return False
    return True


def make_up_counts(path: Path) -> None:
    """Frame counts of a data set of HMDB-51's size: 51 classes, 70 training and 30 test videos each, 95 frames."""
    rows = ["video,class,split1,frames_decoded_estimate"]
    for label in range(51):
        for index in range(100):
            half = "train" if index < 70 else "test"
            rows.append(f"v{index:03},class{label:02},{half},{45 + (index * 37 + label * 11) % 101}")
    path.write_text("\n".join(rows) + "\n")


def lacking() -> list[str]:
    """What is missing, by what needs it."""
    missing = {
        what: [name for name in names.split() if importlib.util.find_spec(name) is None]
        for what, names in NEEDED.items()
    }
    compilers = (os.environ.get("CC", ""), "gcc", "clang")
    missing["Triton"] = [
        *([] if any(map(shutil.which, filter(None, compilers))) else ["a C compiler"]),
        *([] if Path(sysconfig.get_path("include"), "Python.h").exists() else ["Python.h"]),
    ]
    return [f"{what} lacks {', '.join(names)}" for what, names in missing.items() if names]


def versions(scratch: Path, _carried: Path) -> None:
    """Write down the machine and its packages."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    for name in VERSIONS:
        if importlib.util.find_spec(name):
            found[name] = str(getattr(importlib.import_module(name), "__version__", "unknown"))
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(["nvidia-smi", *GPU_QUERY], capture_output=True, text=True, check=False)
        found["nvidia_smi"] = asked.stdout.strip()
    found["missing"] = lacking()
    (scratch / "versions.json").write_text(json.dumps(found))
    for name, value in found.items():
        print(f"{name}: {value}")
    print("; ".join(found["missing"]) or "nothing is missing")


if __name__ == "__main__":
    {"packages": packages, "versions": versions}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
