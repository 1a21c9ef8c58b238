"""gpu-check and gpu-pack themselves: what they say without a GPU, of failed steps, of a run that is cut short."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_machine, gpu_pack
from benchmarks.gpu_check import Check, Step, judge
from benchmarks.gpu_verdict import is_right, verdict

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_without_a_gpu_each_step_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_check.py", "--out", tmp_path / "out", "--carried", tmp_path / "nothing"],
        cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == gpu_check.NO_GPU, done.stderr
    steps = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    assert {step["name"] for step in steps if step["status"] == "ok"} == {"packages", "versions"}
    assert {step["status"] for step in steps[2:]} == {"no GPU"}
    assert (tmp_path / "out" / "verdict.txt").read_text() == "no GPU: nothing was checked\n"


def test_a_step_past_its_limit_is_ended_and_what_came_before_is_kept(tmp_path):
    first = Step(name="first", command=["-c", "print('all is well')"], limit_seconds=20)
    endless = Step(name="endless", command=["-c", "import time; time.sleep(60)"], limit_seconds=0.5)
    never = Step(name="never", command=["-c", ""], limit_seconds=20)
    check = Check(tmp_path, tmp_path, tmp_path, False, time.monotonic() + 60, "a GPU", [first, endless, never])
    check.run(first)
    check.run(endless)
    found = {step["name"]: step for step in json.loads((tmp_path / "summary.json").read_text())["steps"]}
    assert (found["first"]["status"], found["first"]["reason"]) == ("ok", "all is well")
    assert found["endless"]["status"] == "out of time"
    assert found["endless"]["seconds"] < 20
    assert found["never"]["status"] == "not reached"
    check.deadline = time.monotonic()
    check.run(never)
    assert never.status == "out of time"


def test_what_a_step_lacks_is_told_apart_from_what_fails():
    lacks = "Traceback ...\nModuleNotFoundError: No module named 'av'"
    assert judge(1, lacks, 9) == ("missing", "packages missing: av")
    assert judge(1, "x: No module named pytest", 9, proves=True)[0] == "missing"
    assert judge(1, f"{lacks}\n1 failed", 9, proves=True) == ("failed", "exit code 1: 1 failed; packages missing: av")
    assert judge(0, "3 passed", 9) == ("ok", "3 passed")


def test_the_verdict_is_right_only_where_all_tests_ran():
    status = dict.fromkeys(("kernels", "tests", "extract", "run-fp32"), "not reached")
    assert verdict("a GPU", status, {})[1].startswith("NOT KNOWN: kernels (not reached), tests (not reached)")
    status |= {"kernels": "ok", "tests": "ok"}
    median = {"end_to_end": 900, "network": 2000, "decoding": 1000}
    figures = {
        "extract": {"median": median, "turns": [{"shares": "decode 90 %"}]},
        "run-fp32": ["low-mean-seed0: 0.90 s for epoch 2"],
        "candidates": [{"name": "an idea", "said": "1.50 times today's rate"}],
    }
    right, extraction, training, candidate = verdict("a GPU", status, figures)[1:]
    assert right.startswith("RIGHT")
    assert "90% of the lesser, so decoding limits it" in extraction
    assert training == "python -m train, fp32: low-mean-seed0: 0.90 s for epoch 2"
    assert candidate == "candidate, an idea: 1.50 times today's rate"
    assert is_right(status)
    assert verdict("a GPU", status | {"extract": "failed"}, figures)[1].startswith("WRONG: extract failed")
    assert not is_right(status | {"extract": "failed"})
    assert verdict("", status, figures)[1].startswith("REHEARSED"), "without a GPU nothing is right"


def test_gpu_tests_are_found_and_made_up_counts_have_both_halves(tmp_path):
    assert {"tests/train/test_gpu.py", "tests/extract/network/test_gpu.py"} <= set(gpu_check.gpu_tests())
    gpu_machine.make_up_counts(tmp_path / "frames.csv")
    rows = [line.split(",") for line in (tmp_path / "frames.csv").read_text().splitlines()]
    assert rows[0] == ["video", "class", "split1", "frames_decoded_estimate"]
    assert [row[2] for row in rows].count("train") == 3570
    assert len({(row[0], row[1]) for row in rows[1:]}) == 5100


def test_the_package_takes_the_smallest_videos_of_each_folder_and_pinned_versions(tmp_path):
    source, to = tmp_path / "source", tmp_path / "to"
    for name, size in {"a/1.avi": 30, "a/2.avi": 10, "a/3.avi": 20, "b/4.mp4": 99, "b/notes.txt": 1}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(bytes(size))
    gpu_pack.copy_videos(source, to, 3)
    assert {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()} == {"a/2.avi", "a/3.avi", "b/4.mp4"}
    assert gpu_pack.size_of(to) == 129
    assert all("==" in each for each in gpu_pack.pinned(gpu_pack.PACKAGES))
    if (ROOT / ".git").exists():  # not where a checkout was carried
        assert gpu_pack.checkout_size(to) > 100_000
