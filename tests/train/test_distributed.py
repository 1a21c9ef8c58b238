"""Where training runs: the device; processes that train together over gloo on this machine.

Together they give the result of one process up to rounding, and continue exactly.
"""

import atexit
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cache.common.errors import MrrnError
from cache.scores import read_scores
from tests.helpers.train import trainable_cache
from train.checkpoint import read_checkpoint
from train.distributed import choose_device, join

TRAIN = """
import atexit, os, sys
from dataclasses import replace
from pathlib import Path
import torch
from cache.common.workspace import Workspace
from train.run import run
from train.distributed import join
from train.recipes import RECIPES
from train.split import open_split
torch.set_num_threads(1)
def fail_if_threads_live():
    names = [(Path("/proc/self/task") / each / "comm").read_text() for each in os.listdir("/proc/self/task")]
    if any("gloo" in name for name in names):
        os._exit(8)
atexit.register(fail_if_threads_live)  # called after what `join` registers
workspace = Workspace(Path(sys.argv[1]))
split = open_split(workspace, "tiny", 1)
dropout, stop_after = float(sys.argv[2]), int(sys.argv[3])
recipe = replace(RECIPES["small"], hidden=16, epochs=4, min_steps=0, batch=9)
recipe = replace(recipe, input_dropout=dropout, variational_dropout=dropout, precision="fp32")
config = split.config(level="low", pool="mean", seed=3, recipe=recipe, usual=recipe, holdout=False)
group, device = join(torch.device("cpu"))
if stop_after:
    from train import run as engine
    save, saved = engine.save_checkpoint, []
    def save_then_die(*given):
        save(*given)
        saved.append(1)
        if len(saved) == stop_after:
            os._exit(9)
    engine.save_checkpoint = save_then_die
run(split, config, workspace, device, tick_seconds=0, checkpoint_seconds=0, group=group)
"""


def train(work: Path, processes: int, *, dropout: float = 0.0, stop_after: int = 0) -> int:
    script = work / "train_together.py"
    script.write_text(TRAIN)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        str(script),
        str(work),
        str(dropout),
        str(stop_after),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert stop_after or result.returncode == 0, result.stderr  # 8: the group's threads outlive it, and can abort
    return result.returncode


def run_folder(work: Path) -> Path:
    """The one run below `work`."""
    (folder,) = (work / "runs/tiny/split1").iterdir()
    return folder


def weights(work: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run_folder(work) / "checkpoint.safetensors").tensors


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_together_is_as_alone(tmp_path, processes):
    """28 clips in batches of 9: three processes share the last clip, so that two of them have none."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    for work, count in ((alone, 1), (together, processes)):
        trainable_cache(work)
        train(work, count)
    left, right = weights(alone), weights(together)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-3, atol=1e-5)
    rows = [(run_folder(work) / "metrics.jsonl").read_text().splitlines() for work in (alone, together)]
    assert len(rows[0]) == len(rows[1]) == 4
    tables = [read_scores(run_folder(work) / "scores.npz") for work in (alone, together)]
    torch.testing.assert_close(*(torch.from_numpy(table.softmax) for table in tables), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_that_die_are_continued_to_the_same_bits(tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for work in (whole, torn):
        trainable_cache(work)
    train(whole, 2, dropout=0.5)
    assert train(torn, 2, dropout=0.5, stop_after=2) != 0
    train(torn, 2, dropout=0.5)
    left, right = weights(whole), weights(torn)
    assert all(torch.equal(left[name], right[name]) for name in left)


def page_faults_of_a_step() -> int:
    """Pages asked of the system while sixty megabytes are made, filled and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(5_000_000) for _ in range(3)]
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is set")
def test_memory_that_a_step_freed_is_there_for_the_next():
    assert choose_device("cpu") == torch.device("cpu")
    assert min(page_faults_of_a_step() for _ in range(5)) < 1000  # else some ten thousand each time


@pytest.mark.parametrize(("asked", "backend", "named"), [("cuda", "nccl", "cuda:1"), ("cpu", "gloo", None)])
def test_a_process_names_its_gpu_as_it_joins_and_leaves_at_its_end(monkeypatch, asked, backend, named):
    given, at_end = [], []
    monkeypatch.setattr(atexit, "register", at_end.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *names, **more: given.append((names, more)))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    group, _ = join(torch.device(asked))
    assert (group.rank, group.size) == (1, 2)
    assert at_end == [torch.distributed.destroy_process_group]
    assert given == [((backend,), {"device_id": named and torch.device(named)})]


def test_nothing_is_computed_with_tf32_or_by_kernels_chosen_by_timing(monkeypatch):
    """cuDNN's LSTM would use TF32 by default, and a head's scores then differ from a CPU's by more than a rounding."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    monkeypatch.setattr("train.distributed.find_device", lambda _: "cuda")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    with cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        matmul.allow_tf32 = True
        assert choose_device("auto").type == "cuda"
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(MrrnError, match="CUDA devices"):
        choose_device(f"cuda:{torch.cuda.device_count()}")
