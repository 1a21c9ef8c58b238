"""Checks a GPU: are the results right there, and how fast is it? One command, one folder with everything it finds.

    make gpu-check                                  # the same as python3 benchmarks/gpu_check.py
    python3 benchmarks/gpu_check.py --minutes 9     # steps that no longer fit into nine minutes are left out
    python3 benchmarks/gpu_check.py --rehearse      # every step in a small size on the CPU: tries this script out

Needs python3 and what it imports, nothing else: no installation of this project, no network. Packages, videos, weights
and frame counts that the machine lacks are taken from the folder that `gpu_pack.py` made (--carried). docs/gpu.md says
how to carry it and how to read the verdict.

Each step is a process of its own with a time limit. After each step summary.json and verdict.txt are written again, so
that a run that is cut short keeps what came before. Exit code: 0 right, 1 wrong or not known, 2 no GPU.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

NEEDED = {
    "extraction": [
        "torch",
        "torchvision",
        "numpy",
        "click",
        "rich",
        "av",
        "h5py",
        "zarr",
        "xxhash",
        "msgspec",
        "safetensors",
    ],
    "training": ["torch", "triton", "llvmlite", "tensorboard"],
    "tests": ["pytest"],
}
"""Packages by what needs them."""

EXTRACTION_AIM = 21_000
"""Frames a second at which UCF-101 takes two minutes."""

EPOCH_AIM = 1.0
"""Seconds of an epoch of HMDB-51, one level."""

RIGHT, WRONG, NO_GPU = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process to run."""

    name: str
    command: Sequence[str]
    """Arguments of python."""
    limit_seconds: float
    proves: bool = False
    """Whether its success is what "right" means."""
    anywhere: bool = False
    """Whether it runs without a GPU, too."""
    figures: str = ""
    """JSON file in the scratch folder that it writes."""


@dataclass(kw_only=True)
class Result:
    """What became of a step."""

    name: str
    status: str = "not reached"
    """ok, failed, out of time, no GPU, something missing, or not reached."""
    seconds: float = 0.0
    reason: str = ""
    figures: Any = None


@dataclass
class Check:
    """The run: where it writes, what it found so far."""

    out: Path
    scratch: Path
    carried: Path
    rehearse: bool
    deadline: float
    gpu: str = ""
    """Name of the GPU; empty where there is none."""
    results: list[Result] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Variables of the steps: this checkout and the carried packages can be imported."""
        paths = [str(ROOT), str(self.scratch / "site"), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "120",
            **({} if self.rehearse else {"REQUIRE_GPU": "1"}),
        }

    def run(self, step: Step) -> None:
        """Run a step, and write down what became of it."""
        result = next(each for each in self.results if each.name == step.name)
        left = self.deadline - time.monotonic()
        if not (self.gpu or self.rehearse or step.anywhere):
            result.status = "no GPU"
        elif left < 5:
            result.status, result.reason = "out of time", "the minutes of --minutes were over"
        else:
            self._run(step, result, min(step.limit_seconds, left))
        self.write()
        print(f"{step.name:14} {result.status:12} {result.seconds:6.1f} s  {result.reason}", flush=True)

    def _run(self, step: Step, result: Result, limit: float) -> None:
        started = time.monotonic()
        log = self.out / "log.txt"
        with log.open("a") as file:
            file.write(f"\n===== {step.name}: python3 {' '.join(step.command)}\n")
            file.flush()
            begin = file.tell()
            process = subprocess.Popen(
                [sys.executable, *step.command],
                cwd=ROOT, env=self.environment(), stdout=file, stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                stop(process)
        result.seconds = time.monotonic() - started
        said = log.read_bytes()[begin:].decode(errors="replace")
        result.status, result.reason = judge(code, said, limit, proves=step.proves)
        path = self.scratch / step.figures
        if step.figures and path.exists():
            result.figures = json.loads(path.read_text())
        elif step.name.startswith("run-"):
            result.figures = epochs(self.scratch / "work", step.name.removeprefix("run-"))

    def figures(self, name: str) -> Any:
        """What the step `name` measured; None where it measured nothing."""
        return next((each.figures for each in self.results if each.name == name), None)

    def write(self) -> None:
        """Write summary.json and verdict.txt, complete at any time."""
        content = {"gpu": self.gpu, "rehearsal": self.rehearse, "steps": [asdict(each) for each in self.results]}
        replace_text(self.out / "summary.json", json.dumps(content, indent=1))
        replace_text(self.out / "verdict.txt", "\n".join(verdict(self)) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that it is never found half written."""
    staged = path.with_suffix(".part")
    staged.write_text(text)
    staged.replace(path)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a step with all the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def judge(code: int | None, said: str, limit: float, *, proves: bool = False) -> tuple[str, str]:
    """Status and reason of a step by its exit code (None: stopped at its limit) and what it printed.

    A package that a test lacks is one test's failure; in other steps it means that nothing could run.
    """
    if code is None:
        return "out of time", f"stopped after {limit:.0f} s"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if code == 0:
        return "ok", last[:100]
    lacking = ", ".join(sorted(set(re.findall(r"No module named '?(\w+)", said))))
    if lacking and (not proves or "pytest" in lacking):
        return "missing", f"packages missing: {lacking}"
    return "failed", f"exit code {code}: {last[:160]}" + (f"; packages missing: {lacking}" if lacking else "")


def verdict(check: Check) -> list[str]:
    """The findings in words."""
    if not check.gpu and not check.rehearse:
        return ["no GPU: nothing was checked"]
    lines = [f"GPU: {check.gpu or 'none (a rehearsal on the CPU: figures mean nothing)'}"]
    proofs = [each for each in check.results if each.name in PROOFS]
    failed = [each.name for each in check.results if each.status == "failed"]
    if failed:
        lines.append(f"WRONG: {', '.join(failed)} failed; log.txt says why")
    elif all(each.status == "ok" for each in proofs):
        lines.append("RIGHT: all GPU tests passed, none was skipped, and every benchmark's own check held")
    else:
        open_ones = ", ".join(f"{each.name} ({each.status})" for each in proofs if each.status != "ok")
        lines.append(f"NOT KNOWN: {open_ones}")
    return [*lines, *extraction_words(check), *training_words(check), *sru_words(check)]


def extraction_words(check: Check) -> list[str]:
    """Frames a second and what limits them."""
    found = check.figures("extract")
    if not found:
        return ["extraction: not measured"]
    median, shares = found["median"], found["turns"][-1].get("shares", "")
    whole, network, decoding = (median[name] for name in ("end_to_end", "network", "decoding"))
    lower = "the network" if network < decoding else "decoding"
    reached = whole / min(network, decoding)
    limit = (
        f"{lower} limits it" if reached >= 0.9 else f"what lies between them limits it (the driving thread: {shares})"
    )
    return [
        f"extraction: {whole:,.0f} frames/s (aim {EXTRACTION_AIM:,}); the network alone {network:,.0f}, decoding alone "
        f"{decoding:,.0f}: {reached:.0%} of the lesser, so {limit}",
        *(f"  {part['name']}: {part['frames_per_second']:,.0f} frames/s" for part in check.figures("profile") or []),
    ]


def training_words(check: Check) -> list[str]:
    """Seconds of an epoch, measured step by step and in real runs."""
    lines = []
    for precision in ("fp32", "bf16"):
        found = check.figures(f"train-{precision}")
        for table in found["tables"] if found else []:
            ours = next(row for row in table["rows"] if row["name"] == "ours")
            lines.append(
                f"training, {table['level']}, {precision}: {ours['milliseconds']:.2f} ms a step, "
                f"{ours['epoch_seconds']:.2f} s an epoch (aim {EPOCH_AIM:g}); {table['outside_products']:.0%} of it "
                "is outside matrix products"
            )
        lines += [f"python -m train, {precision}: {row}" for row in check.figures(f"run-{precision}") or []]
    return lines or ["training: not measured"]


def epochs(work: Path, precision: str) -> list[str]:
    """The last epoch of each run of the command line, from its metrics."""
    found = []
    for path in sorted(work.glob("**/runs/*/split1/*/metrics.jsonl")):
        if ("bf16" in path.parent.name) == (precision == "bf16") and (lines := path.read_text().splitlines()):
            row = json.loads(lines[-1])
            found.append(f"{path.parent.name}: {row['seconds']:.2f} s for epoch {row['epoch'] + 1}")
    return found


def sru_words(check: Check) -> list[str]:
    """The SRU against its matrix products."""
    found = check.figures("sru")
    return [
        f"SRU, {table['size']}, {table['dtype']}: {row['ratio']:.2f} times its matrix products (aim 1.15)"
        for table in (found["tables"] if found else [])
        for row in table["rows"]
        if row["name"].startswith("SRU")
    ]


def gpu_tests() -> list[str]:
    """Test files with tests for GPUs; others may import what only a development checkout has."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if re.search(r"mark\.gpu\b|\bon_both\b", file.read_text())]


PROOFS = ("kernels", "tests")


def steps(check: Check) -> list[Step]:
    """All steps in their order: what proves first."""
    small, scratch, carried = check.rehearse, check.scratch, check.carried
    device = "cpu" if small else "cuda"
    own, work = str(Path(__file__).relative_to(ROOT)), scratch / "work"
    counts = carried / "frames.csv" if (carried / "frames.csv").exists() else scratch / "frames.csv"
    weights = scratch / "weights.pth" if (carried / "weights.npz").exists() else "random:0"
    have_videos = (carried / "videos").is_dir()
    videos = carried / "videos" if have_videos else scratch / "videos"

    def tests(name: str, limit: float, *options: str) -> Step:
        pytest = ("-m", "pytest", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "-rfEs")
        return Step(name=name, command=[*pytest, *options], limit_seconds=limit, proves=True)

    def measure(name: str, limit: float, module: str, *options: object) -> Step:
        figures = scratch / f"{name}.json"
        command = ["-m", f"benchmarks.{module}", "--device", device, "--out", str(figures), *map(str, options)]
        return Step(name=name, command=command, limit_seconds=limit, figures=figures.name)

    def train(precision: str, limit: float) -> Step:
        tiny = ("--every", 137, "--steps", 2, "--turn", 1, "--level", "low", "--recipe", "small")
        size = tiny if small else ("--steps", 320, "--turn", 40)
        what = ("--counts", counts, "--precision", precision, "--scratch", work)
        return measure(f"train-{precision}", limit, "train", *what, *size)

    def run(precision: str) -> Step:
        size = ["--level", "low", "--hidden", "16"] if small else []
        where = ["--device", device, "--work", str(work / "every137" if small else work)]
        what = ["--dataset", "random-features", "--recipe", "paper-24fps", "--epochs", "2", "--precision", precision]
        return Step(name=f"run-{precision}", command=["-m", "train", *where, *what, *size], limit_seconds=60)

    def own_step(name: str, limit: float) -> Step:
        command = [own, f"--{name}", str(scratch), "--carried", str(carried)]
        return Step(name=name, command=command, limit_seconds=limit, anywhere=True, figures=f"{name}.json")

    sru = ("--turns", 3, "--seconds", 1, "--shape", 3, 2, 8, 8, 1) if small else ("--turns", 40, "--seconds", 2)
    extract = ("--videos", 1, "--max-frames", 20) if small else ("--copies", 20 if have_videos else 50)
    rounds = ("--rounds", 1, "--seconds", 1) if small else ("--rounds", 2, "--seconds", 4)
    profile = ("--seconds", 0.2, "--hidden", 16) if small else ()
    figure = ("--batches", 2, "--model", "Low RRN, cached") if small else ("--batches", 100, "--seconds", 4)
    return [
        own_step("packages", 90),
        own_step("versions", 60),
        tests("kernels", 120, "tests/train/sru/test_triton.py"),
        tests("tests", 240, "-m", "not slow" if small else "gpu", *gpu_tests()),
        measure("sru", 60, "sru", *sru),
        train("fp32", 120),
        train("bf16", 90),
        run("fp32"),
        run("bf16"),
        measure("extract", 150, "extract", videos, "--weights", weights, *extract, *rounds),
        measure("profile", 90, "gpu_profile", "--tables", check.out / "profile.txt", *profile),
        measure("figure6", 90, "figure6", *figure),
    ]


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
    from importlib import metadata

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


def versions(scratch: Path) -> None:
    """Write down the machine and its packages."""
    lacking = {
        what: [name for name in names if importlib.util.find_spec(name) is None] for what, names in NEEDED.items()
    }
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "missing": lacking,
    }
    for name in ("torch", "torchvision", "triton", "numpy", "av", "zarr", "pytest"):
        if importlib.util.find_spec(name):
            found[name] = str(getattr(__import__(name), "__version__", "unknown"))
    if shutil.which("nvidia-smi"):
        command = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ]
        found["nvidia_smi"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    (scratch / "versions.json").write_text(json.dumps(found))
    for name, value in found.items():
        print(f"{name}: {value}")
    print(
        "; ".join(f"{what} lacks {', '.join(names)}" for what, names in lacking.items() if names)
        or "nothing is missing"
    )


def find_gpu() -> str:
    """Name of the GPU as PyTorch gives it, asked in a process of its own; empty where there is none."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return asked.stdout.strip().splitlines()[-1] if asked.returncode == 0 and asked.stdout.strip() else ""


def main() -> int:
    """Run all steps; the exit code says right, wrong or no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("OUT") or ROOT / "work" / "gpu-check")
    parser.add_argument("--out", type=Path, default=default, help="for what it finds [$OUT, else work/gpu-check]")
    parser.add_argument("--carried", type=Path, default=ROOT / "work" / "gpu-pack", help="folder made by gpu_pack.py")
    parser.add_argument("--minutes", type=float, default=14.0, help="time for all steps [14]; about 7 are needed")
    parser.add_argument("--only", default="", help="comma-separated names of steps to run")
    parser.add_argument("--rehearse", action="store_true", help="run every step in a small size on the CPU")
    parser.add_argument("--packages", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--versions", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path[0] = str(ROOT)  # in place of this script's own folder, where `cache` and `train` are other files
    if given.packages:
        packages(given.packages, given.carried)
        return 0
    if given.versions:
        versions(given.versions)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the step under way is ended, too
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "log.txt").write_text("")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        deadline = time.monotonic() + 60 * given.minutes
        check = Check(
            given.out.absolute(), Path(scratch), given.carried.absolute(), given.rehearse, deadline, find_gpu()
        )
        planned = steps(check)
        check.results = [Result(name=step.name) for step in planned]
        wanted = {"packages", "versions", *given.only.split(",")} if given.only else {step.name for step in planned}
        for step in planned:
            if step.name in wanted:
                check.run(step)
        check.write()
    print(f"\n{(given.out / 'verdict.txt').read_text()}\neverything: {given.out}")
    if not check.gpu:
        return NO_GPU
    by_name = {each.name: each.status for each in check.results}
    right = all(by_name[name] == "ok" for name in PROOFS) and "failed" not in by_name.values()
    return RIGHT if right else WRONG


if __name__ == "__main__":
    sys.exit(main())
