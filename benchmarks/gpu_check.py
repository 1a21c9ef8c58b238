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
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of this script's own folder, where `cache` and `train` are other files

from benchmarks.gpu_verdict import PROOFS, is_right, verdict  # noqa: E402  (it needs the path)

RIGHT, WRONG, NO_GPU = 0, 1, 2


@dataclass(kw_only=True)
class Step:
    """One process to run, and what became of it."""

    name: str
    command: Sequence[str]
    """Arguments of python."""
    limit_seconds: float
    anywhere: bool = False
    """Whether it runs without a GPU, too."""
    figures_file: str = ""
    """JSON file in the scratch folder that it writes."""
    status: str = "not reached"
    """ok, failed, out of time, no GPU, missing (packages), or not reached."""
    seconds: float = 0.0
    reason: str = ""
    figures: Any = None

    @property
    def found(self) -> dict[str, Any]:
        """Its entry in summary.json."""
        return {name: getattr(self, name) for name in ("name", "status", "seconds", "reason", "figures")}


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
    steps: list[Step] = field(default_factory=list)

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
        left = self.deadline - time.monotonic()
        if not (self.gpu or self.rehearse or step.anywhere):
            step.status = "no GPU"
        elif left < 5:
            step.status, step.reason = "out of time", "the minutes of --minutes were over"
        else:
            # The limits are a GPU's: a busy processor takes longer to rehearse.
            self._run(step, left if self.rehearse else min(step.limit_seconds, left))
        self.write()
        print(f"{step.name:14} {step.status:12} {step.seconds:6.1f} s  {step.reason}", flush=True)

    def _run(self, step: Step, limit: float) -> None:
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
            code = None
            try:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(limit)
            finally:
                stop(process)
        step.seconds = time.monotonic() - started
        said = log.read_bytes()[begin:].decode(errors="replace")
        step.status, step.reason = judge(code, said, limit, proves=step.name in PROOFS)
        path = self.scratch / step.figures_file
        if path.is_file():
            step.figures = json.loads(path.read_text())
        elif step.name.startswith("run-"):
            step.figures = epochs(self.scratch / "work", step.name.removeprefix("run-"))

    @property
    def status(self) -> dict[str, str]:
        """Of each step, by name."""
        return {step.name: step.status for step in self.steps}

    def write(self) -> None:
        """Write summary.json and verdict.txt, complete at any time."""
        content = {"gpu": self.gpu, "rehearsal": self.rehearse, "steps": [step.found for step in self.steps]}
        replace_text(self.out / "summary.json", json.dumps(content, indent=1))
        lines = ["no GPU: nothing was checked"]
        if self.gpu or self.rehearse:
            lines = verdict(self.gpu, self.status, {step.name: step.figures for step in self.steps})
        replace_text(self.out / "verdict.txt", "\n".join(lines) + "\n")


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


def epochs(work: Path, precision: str) -> list[str]:
    """The last epoch of each run of the command line, from its metrics."""
    found = []
    for path in sorted(work.glob("**/runs/*/split1/*/metrics.jsonl")):
        if ("bf16" in path.parent.name) == (precision == "bf16") and (lines := path.read_text().splitlines()):
            row = json.loads(lines[-1])
            found.append(f"{path.parent.name}: {row['seconds']:.2f} s for epoch {row['epoch'] + 1}")
    return found


def gpu_tests() -> list[str]:
    """Test files with tests for GPUs; others may import what only a development checkout has."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if re.search(r"mark\.gpu\b|\bon_both\b", file.read_text())]


def steps(check: Check) -> list[Step]:
    """All steps in their order: what proves first."""
    small, scratch, carried = check.rehearse, check.scratch, check.carried
    device = "cpu" if small else "cuda"
    work = scratch / "work"
    counts = carried / "frames.csv" if (carried / "frames.csv").exists() else scratch / "frames.csv"
    weights = scratch / "weights.pth" if (carried / "weights.npz").exists() else "random:0"
    have_videos = (carried / "videos").is_dir()
    videos = carried / "videos" if have_videos else scratch / "videos"

    def tests(name: str, limit: float, *options: str) -> Step:
        pytest = ("-m", "pytest", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "-rfEs", "--durations=15")
        # A test that hangs leaves a traceback in the log before the step is ended.
        return Step(name=name, command=[*pytest, "-o", "faulthandler_timeout=100", *options], limit_seconds=limit)

    def measure(name: str, limit: float, module: str, *options: object) -> Step:
        figures = scratch / f"{name}.json"
        command = ["-m", f"benchmarks.{module}", "--device", device, "--out", str(figures), *map(str, options)]
        return Step(name=name, command=command, limit_seconds=limit, figures_file=figures.name)

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

    def machine(name: str, limit: float) -> Step:
        command = ["-m", "benchmarks.gpu_machine", name, str(scratch), str(carried)]
        return Step(name=name, command=command, limit_seconds=limit, anywhere=True, figures_file=f"{name}.json")

    sru = ("--turns", 3, "--seconds", 1, "--shape", 3, 2, 8, 8, 1) if small else ("--turns", 40, "--seconds", 2)
    extract = ("--videos", 1, "--max-frames", 20) if small else ("--copies", 20 if have_videos else 50)
    rounds = ("--rounds", 1, "--seconds", 1) if small else ("--rounds", 2, "--seconds", 4)
    profile = ("--seconds", 0.2, "--hidden", 16) if small else ()
    figure = ("--batches", 2, "--model", "Low RRN, cached") if small else ("--batches", 100, "--seconds", 4)
    return [
        machine("packages", 90),
        machine("versions", 90),
        tests("kernels", 120, "tests/train/sru/test_triton.py"),
        tests("tests", 240, "-m", "not slow" if small else "gpu", *gpu_tests()),
        measure("sru", 60, "sru", *sru),
        train("fp32", 120),
        train("bf16", 90),
        run("fp32"),
        run("bf16"),
        measure("extract", 150, "extract", videos, "--weights", weights, *extract, *rounds),
        measure("profile", 90, "gpu_profile", "--tables", check.out / "profile.txt", *profile),
        measure("candidates", 150, "gpu_candidates", *(("--seconds", 0.1, "--hidden", 16) if small else ())),
        measure("figure6", 90, "figure6", *figure),
    ]


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
    parser.add_argument("--minutes", type=float, default=14.0, help="time for all steps [14]; about 8 are needed")
    parser.add_argument("--only", default="", help="comma-separated names of steps to run")
    parser.add_argument("--rehearse", action="store_true", help="run every step in a small size on the CPU")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the step under way is ended, too
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "log.txt").write_text("")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        deadline = time.monotonic() + 60 * given.minutes
        gpu = "" if given.rehearse else find_gpu()
        check = Check(given.out.absolute(), Path(scratch), given.carried.absolute(), given.rehearse, deadline, gpu)
        check.steps = steps(check)
        for step in check.steps:
            if not given.only or step.name in ("packages", "versions", *given.only.split(",")):
                check.run(step)
        check.write()
    print(f"\n{(given.out / 'verdict.txt').read_text()}\neverything: {given.out}")
    if not check.gpu:
        return NO_GPU
    return RIGHT if is_right(check.status) else WRONG


if __name__ == "__main__":
    sys.exit(main())
