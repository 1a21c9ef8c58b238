"""One run from its configuration to its scores: train or continue, checkpoint, score, and only then be finished."""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.console import Progress, progress
from cache.errors import TrainingError
from cache.scores import ScoreTable, write_scores
from cache.workspace import Workspace
from train.bank import load_bank
from train.checkpoint import (
    Checkpoint,
    check_same_run,
    check_tensors,
    head_from,
    head_settings,
    read_checkpoint,
    save_checkpoint,
)
from train.heads import Head
from train.logs import RunLog
from train.loop import Tick, Trainer
from train.runs import CHECKPOINT_FILE, RunConfig, state_of, write_config
from train.score import score_bank
from train.split import Split

Show = Callable[..., AbstractContextManager[Progress]]
"""How progress is shown: takes title, total, unit and `initial`, as `cache.console.progress` does."""

CHECKPOINT_SECONDS = 30.0
"""A kill costs at most about so many seconds of training."""


def run(
    split: Split,
    config: RunConfig,
    workspace: Workspace,
    device: torch.device,
    *,
    fresh: bool = False,
    tick_seconds: float = 1.0,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    show: Show = progress,
) -> ScoreTable | None:
    """Bring one run to its end and give its scores; None where it was finished already.

    `fresh` starts again from nothing. An unfinished run goes on from its checkpoint to the same bits that it would have
    had. MrrnError where the folder holds another run, or another process is at work in it.
    """
    folder = config.folder(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if fresh:
            _empty(folder)
        if state_of(folder, config) == "finished":
            return None
        write_config(folder, config, "training")
        pace = _Pace(tick_seconds, checkpoint_seconds, show)
        head = _train(split, config, folder, device, pace)
        _, scored = split.learned_and_scored(holdout=config.holdout)
        scores = score_bank(head, load_bank(split.cache, config.level, scored, config.clips, device, views=[0]), config)
        write_scores(folder / config.scores_file, scores)
        write_config(folder, config, "finished")
    return scores


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder for as long as this one lives."""
    with (folder / "run.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"another process is training in {folder}; wait for it, or end it") from None
        yield


def _empty(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        elif each.name != "run.lock":
            each.unlink()


@dataclass(frozen=True)
class _Pace:
    """How often the host looks, and how it shows what it sees."""

    tick_seconds: float
    checkpoint_seconds: float
    show: Show


def _train(split: Split, config: RunConfig, folder: Path, device: torch.device, pace: _Pace) -> Head:
    """The trained head, from the checkpoint as far as there is one."""
    path = folder / CHECKPOINT_FILE
    before = read_checkpoint(path) if path.exists() else None
    if before is not None:
        check_same_run(before, config, path)
        if before.position is None:
            return head_from(before, path).to(device)
    learned, _ = split.learned_and_scored(holdout=config.holdout)
    bank = load_bank(split.cache, config.level, learned, config.clips, device)
    torch.manual_seed(config.seed)
    trainer = Trainer(Head(head_settings(config)).to(device), bank, config.recipe, config.level, config.seed)
    if before is not None and before.position is not None:
        expected, _ = trainer.state()
        check_tensors(before.tensors, expected, path)
        trainer.restore(before.tensors, before.position)
    _run_logged(trainer, config, folder, pace)
    weights = {name: each for name, each in trainer.state()[0].items() if name.startswith("head.")}
    save_checkpoint(path, Checkpoint(tensors=weights, config=config, position=None))
    return trainer.head


def _run_logged(trainer: Trainer, config: RunConfig, folder: Path, pace: _Pace) -> None:
    """Train to the end with a live line, a row of metrics for each epoch, and a checkpoint now and then."""
    log = RunLog(folder, trainer.epoch)
    per_epoch, total = trainer.steps_per_epoch, trainer.steps_per_epoch * trainer.epochs
    done = trainer.epoch * per_epoch + trainer.step
    saved = time.monotonic()
    try:
        with pace.show(f"train {config.level}-{config.pool}", total, "steps", initial=done) as line:
            for tick in trainer.run(pace.tick_seconds):
                line.update(tick.epoch * per_epoch + tick.step, _text(tick, trainer.epochs))
                if tick.ended:
                    log.epoch(tick)
                if time.monotonic() - saved >= pace.checkpoint_seconds:
                    tensors, position = trainer.state()
                    save_checkpoint(
                        folder / CHECKPOINT_FILE, Checkpoint(tensors=tensors, config=config, position=position)
                    )
                    saved = time.monotonic()
    finally:
        log.close()


def _text(tick: Tick, epochs: int) -> str:
    return (
        f"epoch {tick.epoch + 1}/{epochs}, loss {tick.loss:.4f}, {tick.accuracy:.1%} of training clips right, "
        f"{tick.clips / tick.seconds:,.0f} clips/s"
    )
