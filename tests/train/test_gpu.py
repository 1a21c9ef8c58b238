"""Training on a GPU: the captured step, continuing, streaming, scoring elsewhere.

Each function also runs on a CPU, where nothing is captured, so that the tests themselves are known to work.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train.clips
from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.common.workspace import Workspace
from cache.scores import read_scores
from cache.store import FeatureCache
from tests.helpers.devices import GPU, on_both, on_gpu, where_installed
from tests.helpers.train import trainable_cache
from train.checkpoint import load_head, read_checkpoint
from train.clips import Bank, ClipBank, StreamedBank, load_bank
from train.distributed import choose_device
from train.heads import Head
from train.recipes import AVERAGING, CELLS, POOLS, PRECISIONS, RECIPES, Pool, Recipe
from train.run import run
from train.score import score_bank
from train.split import open_split
from train.steps import GraphStep
from train.trainer import Trainer

RECIPE = replace(RECIPES["small"], hidden=12, layers=2, epochs=3, min_steps=0, batch=8, precision="fp32")
RULE = ClipRule(stride=4)
HEADS = [(cell, pool) for cell in CELLS for pool in POOLS if cell not in AVERAGING or pool == "mean"]
CHANGES = {
    "mixup": {"mixup": 0.4},
    "noise": {"feature_noise": 0.3},
    "smoothing and mixup": {"label_smoothing": 0.1, "mixup": 0.2},
    "dropout between layers": {"dropout": 0.3},
    "weight decay": {"weight_decay": 0.1},
    "no dropout": {"variational_dropout": 0.0},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return trainable_cache(tmp_path_factory.mktemp("work"))


def resident(cache: FeatureCache, device: str) -> Bank:
    """The training clips, whose number is no multiple of the batch."""
    bank = load_bank(cache, "low", cache.dataset.half(1, "train"), RULE, choose_device(device))
    assert isinstance(bank, Bank)
    assert len(bank) > 2 * RECIPE.batch
    assert len(bank) % RECIPE.batch
    return bank


def make_trainer(bank: ClipBank, recipe: Recipe = RECIPE, pool: Pool = "mean", seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    trainer = Trainer(Head(128, 3, recipe, pool).to(bank.label_N.device), bank, recipe, "low", seed)
    captured = bank.label_N.device.type == "cuda" and isinstance(bank, Bank)
    assert isinstance(trainer.take_step, GraphStep) == captured
    return trainer


def launched_eagerly(trainer: Trainer) -> Trainer:
    if isinstance(trainer.take_step, GraphStep):
        trainer.take_step = trainer.take_step.eager
    return trainer


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, moments, sums and the generator."""
    return {name: tensor.detach().clone() for name, tensor in trainer.state()[0].items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    differ = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differ == []


def assert_captured_equals_eager(bank: Bank, recipe: Recipe, pool: Pool) -> None:
    """Losses of every epoch and everything that the next step depends on, bit for bit."""
    trainers = [make_trainer(bank, recipe, pool), launched_eagerly(make_trainer(bank, recipe, pool))]
    losses, states = [], []
    for trainer in trainers:
        losses.append([(tick.loss, tick.accuracy) for tick in trainer.run(tick_seconds=1e9)])
        states.append(state_of(trainer))
    assert len(losses[0]) == recipe.epochs
    assert losses[0] == losses[1]
    assert_same(*states)


@on_gpu  # without a graph both would be the same code; those below see that the test itself works
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("cell", "pool"), HEADS)
def test_a_captured_step_equals_an_eager_one(cache, device, cell, pool, precision):
    assert_captured_equals_eager(resident(cache, device), replace(RECIPE, cell=cell, precision=precision), pool)


@on_both
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_a_captured_step_equals_an_eager_one_with(cache, device, changes):
    assert_captured_equals_eager(resident(cache, device), replace(RECIPE, **changes), "mean")


@on_gpu
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_cudnns_cells_stay_in_full_precision(device, cell):
    module = Head(128, 3, replace(RECIPE, cell=cell, variational_dropout=0.0)).to(device).cell
    x_TBC = torch.randn(5, 2, 128, device=device)
    expected = module(x_TBC)
    with torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(module(x_TBC), expected, rtol=0, atol=0)


@on_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_capturing_leaves_everything_as_it_was(cache, device, precision):
    trainer = make_trainer(resident(cache, device), replace(RECIPE, precision=precision, feature_noise=0.1))
    step = trainer.take_step
    assert isinstance(step, GraphStep)
    clip_B = torch.arange(RECIPE.batch, device=device)
    for _ in range(3):  # so that moments, sums and generator are not where they began
        step.eager(clip_B, torch.zeros_like(clip_B), RECIPE.batch)
    step.clip_B.copy_(clip_B)
    before = state_of(trainer)
    step._capture()
    assert_same(state_of(trainer), before)
    assert not trainer.optimizer.found_inf.any()


@on_both
def test_steps_after_a_bad_one_leave_weights_and_moments_alone(cache, device):
    trainer = make_trainer(resident(cache, device))
    clip_B = torch.arange(RECIPE.batch, device=device)
    trainer.take_step(clip_B, torch.zeros_like(clip_B), RECIPE.batch)
    before = state_of(trainer)
    trainer.optimizer.found_inf.fill_(1)  # what a bad step leaves
    trainer.take_step(clip_B, torch.zeros_like(clip_B), RECIPE.batch)
    after = state_of(trainer)
    kept = [name for name in before if name.startswith(("head.", "optimizer."))]
    assert_same({name: after[name] for name in kept}, {name: before[name] for name in kept})


STOPS: dict[str, Callable[[int], int]] = {
    "after the first step": lambda _: 1,
    "before the small batch": lambda steps: steps - 1,
    "at the end of an epoch": lambda steps: steps,
    "in the second epoch": lambda steps: steps + 2,
}


@on_both
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_state_put_into_another_trainer_goes_on_to_the_same_bits(cache, device, precision, stop):
    bank, recipe = resident(cache, device), replace(RECIPE, precision=precision, mixup=0.2)
    whole = make_trainer(bank, recipe)
    expected = [tick.loss for tick in whole.run() if tick.ended]
    first = make_trainer(bank, recipe)
    ticks = first.run(tick_seconds=0)
    for _ in range(stop(first.steps_per_epoch)):
        next(ticks)
    tensors, position = state_of(first), first.state()[1]
    second = make_trainer(bank, recipe)
    torch.manual_seed(99)
    second.restore({name: tensor.cpu() for name, tensor in tensors.items()}, position)
    rest = [tick.loss for tick in second.run() if tick.ended]
    assert rest == expected[-len(rest) :]
    assert_same(state_of(second), state_of(whole))


@on_both
def test_a_step_that_is_not_finite_is_not_taken_and_is_named(cache, device):
    bank = resident(cache, device)
    clip_N, view_N = make_trainer(bank)._order()
    step = 2
    poisoned = replace(bank, features_VFC=bank.features_VFC.clone())
    place = int(view_N[step * RECIPE.batch]), poisoned.frames_NT[int(clip_N[step * RECIPE.batch]), 3]
    poisoned.features_VFC[place] = float("nan")
    trainer, reference = make_trainer(poisoned), make_trainer(bank)
    with pytest.raises(TrainingError, match=r"loss of step [012] of epoch 0") as caught:
        list(trainer.run(tick_seconds=1e9))
    stopped_at = int(str(caught.value).split("step ")[1].split()[0])
    ticks = reference.run(tick_seconds=0)
    for _ in range(stopped_at):
        next(ticks)
    for ours, theirs in zip(trainer.head.parameters(), reference.head.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@on_both
@pytest.mark.parametrize("views", [None, [1]])
def test_features_on_the_device_are_those_of_the_cache(cache, device, views):
    videos, where = cache.dataset.half(1, "train"), choose_device(device)
    bank = load_bank(cache, "mid", videos, ClipRule(), where, views=views)
    assert isinstance(bank, Bank)
    assert {each.device.type for each in (bank.features_VFC, bank.frames_NT, bank.label_N)} == {device}
    for row, view in enumerate(views or [0, 1]):
        expected_FC = np.concatenate([cache.features(video.id, "mid", view) for video in videos])
        np.testing.assert_array_equal(bank.features_VFC[row].cpu().numpy(), expected_FC)


NO_ROOM = {
    "in main memory": lambda patch: patch.setattr(train.clips, "available_bytes", lambda: 1000),
    "on the GPU": lambda patch: patch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 1000)),
}


@pytest.mark.parametrize(
    ("device", "no_room"),
    [("cpu", "in main memory"), *(pytest.param("cuda", each, marks=pytest.mark.gpu) for each in NO_ROOM)],
)
def test_a_streamed_bank_trains_to_the_bits_of_a_resident_one(cache, device, no_room, monkeypatch):
    bank = resident(cache, device)
    NO_ROOM[no_room](monkeypatch)
    streamed = load_bank(cache, "low", cache.dataset.half(1, "train"), RULE, choose_device(device))
    assert isinstance(streamed, StreamedBank)
    trainers = [make_trainer(each, replace(RECIPE, mixup=0.2)) for each in (bank, streamed)]
    losses = [[tick.loss for tick in trainer.run()] for trainer in trainers]
    assert losses[0] == losses[1]
    assert_same(*map(state_of, trainers))


TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
from cache.common.workspace import Workspace
from train.distributed import choose_device
from train.recipes import RECIPES
from train.run import run
from train.split import open_split
workspace = Workspace(Path(sys.argv[1]))
split = open_split(workspace, "tiny", 1)
recipe = replace(RECIPES["small"], hidden=16, epochs=80, min_steps=0, batch=7, precision="bf16")
config = split.config(level="mid", pool="max", seed=3, recipe=recipe, usual=recipe, holdout=False)
print(config.folder(workspace), flush=True)
run(split, config, workspace, choose_device(sys.argv[2]), tick_seconds=0, checkpoint_seconds=0)
"""


def start(work: Path, device: str) -> tuple[subprocess.Popen, Path]:
    """A process that trains in `work`, and the run's folder."""
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(work), device], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@on_both
@pytest.mark.slow
def test_killed_and_continued_gives_the_same_bits(device, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for work in (whole, torn):
        trainable_cache(work)
    process, whole_run = start(whole, device)
    process.communicate(timeout=300)
    assert process.returncode == 0
    for rows in (2, 31):
        process, torn_run = start(torn, device)
        metrics = torn_run / "metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < rows):
            time.sleep(0.005)
        assert process.poll() is None, "the run was over before it was killed"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    process, _ = start(torn, device)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert_same(*(read_checkpoint(folder / "checkpoint.safetensors").tensors for folder in (whole_run, torn_run)))
    tables = [read_scores(folder / "scores.npz") for folder in (whole_run, torn_run)]
    np.testing.assert_array_equal(tables[0].softmax, tables[1].softmax)


@on_both
@pytest.mark.parametrize("cell", CELLS)
def test_a_head_trained_there_scores_the_same_on_a_cpu(device, cell, tmp_path):
    trainable_cache(tmp_path)
    workspace = Workspace(tmp_path)
    split = open_split(workspace, "tiny", 1)
    recipe = replace(RECIPE, cell=cell)
    config = split.config(level="low", pool="mean", seed=0, recipe=recipe, usual=recipe, holdout=False)
    scores = run(split, config, workspace, choose_device(device))
    assert scores is not None
    head, _ = load_head(config.folder(workspace))
    bank = load_bank(split.cache, "low", split.test, config.clips, torch.device("cpu"), views=[0])
    on_cpu = score_bank(head, bank, config)
    np.testing.assert_allclose(on_cpu.softmax, scores.softmax, atol=1e-4)
    assert on_cpu.video_ids.tolist() == scores.video_ids.tolist()


@pytest.mark.parametrize("device", ["cpu", *where_installed("onnxruntime", GPU)])
@pytest.mark.slow
def test_a_head_trained_there_is_exported(device, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    trainable_cache(tmp_path)
    workspace = Workspace(tmp_path)
    split = open_split(workspace, "tiny", 1)
    config = split.config(level="low", pool="mean", seed=0, recipe=RECIPE, usual=RECIPE, holdout=False)
    run(split, config, workspace, choose_device(device))
    folder = config.folder(workspace)
    command = [sys.executable, "-m", "train", "export", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(folder / "head.onnx", providers=["CPUExecutionProvider"])
    x_TBC = torch.randn(config.clips.length, 3, 128)
    (logits,) = session.run(["logits"], {"features": x_TBC.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), load_head(folder)[0](x_TBC).detach(), rtol=1e-5, atol=1e-5)
