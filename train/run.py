"""What a run writes down while it trains: metrics.jsonl and TensorBoard, a row for each epoch.

One run from its configuration to its scores: train or continue, checkpoint, score, and only then be finished.
"""

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from cache.common.console import Progress, progress
from cache.common.errors import TrainingError
from cache.common.files import write_bytes_durably
from cache.common.workspace import Workspace
from cache.scores import ScoreTable, write_scores
from train.checkpoint import (
    Checkpoint,
    check_same_run,
    check_tensors,
    head_from,
    head_settings,
    read_checkpoint,
    save_checkpoint,
)
from train.clips import load_bank
from train.config import CHECKPOINT_FILE, METRICS_FILE, RunConfig, state_of, write_config
from train.distributed import Group
from train.heads import Head
from train.score import score_bank
from train.split import Split
from train.trainer import Tick, Trainer


class RunLog:
    """Appends a row for each epoch; continued, it first drops the rows of epochs that will be trained again."""

    def __init__(self, folder: Path, from_epoch: int) -> None:
        self.path = folder / METRICS_FILE
        lines = self.path.read_text().splitlines() if from_epoch and self.path.exists() else []
        kept = [line for line in lines if _epoch(line) < from_epoch]
        write_bytes_durably(self.path, "".join(f"{line}\n" for line in kept).encode())
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_epoch)

    def epoch(self, tick: Tick) -> None:
        """Write the row of a complete epoch."""
        rate = tick.clips / tick.seconds
        row = {
            "epoch": tick.epoch,
            "loss": tick.loss,
            "accuracy": tick.accuracy,
            "learning_rate": tick.learning_rate,
            "steps": tick.step,
            "clips": tick.clips,
            "seconds": round(tick.seconds, 4),
            "clips_per_second": round(rate, 1),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name in ("loss", "accuracy", "learning_rate", "clips_per_second"):
            self.board.add_scalar(f"training/{name}", row[name], tick.epoch)

    def close(self) -> None:
        """Write out what is buffered."""
        self.board.close()


def _epoch(line: str) -> float:
    """Epoch of a row; a row that a kill cut in two counts as one to be dropped."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


Show = Callable[..., AbstractContextManager[Progress]]
"""How progress is shown: takes title, total, unit and `initial`, as `cache.common.console.progress` does."""

_ALONE = Group()

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
    group: Group = _ALONE,
) -> ScoreTable | None:
    """Bring one run to its end and give its scores; None where it was finished already.

    `fresh` starts again from nothing. An unfinished run goes on from its checkpoint to the same bits that it would have
    had. MrrnError where the folder holds another run, or another process is at work in it. In a group all processes
    train; only the leader writes, scores, and gives the scores.
    """
    folder = config.folder(workspace)
    pace = _Pace(tick_seconds, checkpoint_seconds, show if group.leads else _unseen)
    if not group.leads:
        group.wait()
        if state_of(folder, config) != "finished":
            _train(split, config, folder, device, pace, group)
        group.wait()
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if fresh:
            _empty(folder)
        finished = state_of(folder, config) == "finished"
        if not finished:
            write_config(folder, config, "training")
        group.wait()
        scores = None
        if not finished:
            head = _train(split, config, folder, device, pace, group)
            scores = _score(head, split, config, device)
            write_scores(folder / config.scores_file, scores)
            write_config(folder, config, "finished")
        group.wait()
    return scores


def _score(head: Head, split: Split, config: RunConfig, device: torch.device) -> ScoreTable:
    _, scored = split.learned_and_scored(holdout=config.holdout, seed=config.seed)
    return score_bank(head, load_bank(split.cache, config.level, scored, config.clips, device, views=[0]), config)


class _Unseen:
    """Progress that nobody looks at."""

    def update(self, done: float, text: str = "") -> None:
        """Show nothing."""


@contextmanager
def _unseen(*_: object, **__: object) -> Iterator[Progress]:
    yield _Unseen()


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


def _train(split: Split, config: RunConfig, folder: Path, device: torch.device, pace: _Pace, group: Group) -> Head:
    """The trained head, from the checkpoint as far as there is one."""
    path = folder / CHECKPOINT_FILE
    before = read_checkpoint(path) if path.exists() else None
    if before is not None:
        check_same_run(before, config, path)
        if before.position is None:
            return head_from(before, path).to(device)
    learned, _ = split.learned_and_scored(holdout=config.holdout, seed=config.seed)
    views = _views(split, config)
    bank = load_bank(split.cache, config.level, learned, config.clips, device, views=views)
    torch.manual_seed(config.seed)
    trainer = Trainer(Head(head_settings(config)).to(device), bank, config.recipe, config.level, config.seed, group)
    if before is not None and before.position is not None:
        expected, _ = trainer.state()
        check_tensors(before.tensors, expected, path)
        trainer.restore(before.tensors, before.position)
    # Nobody writes a checkpoint before everybody has read the one from before.
    group.wait()
    _run_logged(trainer, config, folder, pace)
    if group.leads:
        weights = {f"head.{name}": each for name, each in trainer.head.state_dict().items()}
        save_checkpoint(path, Checkpoint(tensors=weights, config=config, position=None))
    return trainer.head


def _views(split: Split, config: RunConfig) -> list[int]:
    """The views that training draws from, as the recipe has it."""
    have, wanted = len(split.cache.views), config.recipe.views
    if wanted > have:
        raise TrainingError(
            f"recipe {config.recipe.name!r} draws from {wanted} views of each video, the cache of {config.dataset!r} "
            f"has {have} ({', '.join(split.cache.views)}): extract with more VIEWS=, or ask for fewer"
        )
    return list(range(wanted or have))


def _run_logged(trainer: Trainer, config: RunConfig, folder: Path, pace: _Pace) -> None:
    """Train to the end with a live line, a row of metrics for each epoch, and a checkpoint now and then."""
    leads = trainer.group.leads
    log = RunLog(folder, trainer.epoch) if leads else None
    per_epoch, total = trainer.steps_per_epoch, trainer.steps_per_epoch * trainer.epochs
    done = trainer.epoch * per_epoch + trainer.step
    saved = time.monotonic()
    try:
        with pace.show(f"train {config.level}-{config.pool}", total, "steps", initial=done) as line:
            for tick in trainer.run(pace.tick_seconds):
                line.update(tick.epoch * per_epoch + tick.step, _text(tick, trainer.epochs))
                if log and tick.ended:
                    log.epoch(tick)
                due = time.monotonic() - saved >= pace.checkpoint_seconds
                if trainer.group.as_leader_says(due, trainer.device):
                    tensors, position = trainer.state()
                    if leads:
                        checkpoint = Checkpoint(tensors=tensors, config=config, position=position)
                        save_checkpoint(folder / CHECKPOINT_FILE, checkpoint)
                    saved = time.monotonic()
    finally:
        if log:
            log.close()


def _text(tick: Tick, epochs: int) -> str:
    return (
        f"epoch {tick.epoch + 1}/{epochs}, loss {tick.loss:.4f}, {tick.accuracy:.1%} of training clips right, "
        f"{tick.clips / tick.seconds:,.0f} clips/s"
    )
