"""One run from its configuration to its scores: train or continue, save checkpoints, score, and only then be finished.

While a run trains it writes metrics.jsonl and TensorBoard's files, a row for each epoch, and a checkpoint now and then.
A run that watches held-out videos measures them after each epoch; nothing is stopped or chosen by that.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from cache.aggregate import correct, fraction, log_loss
from cache.common.console import say
from cache.common.errors import TrainingError
from cache.common.files import JSON_BYTES, discard, read_bounded, remove, write_bytes_durably
from cache.common.interrupts import Interrupted, held_back
from cache.common.progress import Progress, progress
from cache.common.workspace import Workspace
from cache.dataset import Sample
from cache.scores import ScoreTable, write_scores
from train.checkpoint import (
    Checkpoint,
    check_same_run,
    check_tensors,
    head_from,
    new_head,
    read_checkpoint,
    save_checkpoint,
)
from train.clips import ClipBank, channel_statistics, load_bank
from train.config import (
    CHECKPOINT_FILE,
    HELDOUT_SCORES_FILE,
    METRICS_FILE,
    RunConfig,
    state_of,
    with_decided_precision,
    write_config,
)
from train.distributed import SINGLE, ProcessGroup
from train.heads import NEVER, Head, MomentShortcut, moments
from train.linear import fit_linear
from train.recipes import LINEAR
from train.score import score_bank
from train.split import Split
from train.trainer import Tick, Trainer

Show = Callable[..., AbstractContextManager[Progress]]
"""Shows progress: takes title, total, unit and `initial`, as `cache.common.console.progress` does."""

_LOCK_FILE = "run.lock"


def run(
    split: Split,
    config: RunConfig,
    workspace: Workspace,
    device: torch.device,
    *,
    fresh: bool = False,
    tick_seconds: float = 1.0,
    checkpoint_seconds: float = 30.0,
    show: Show = progress,
    group: ProcessGroup = SINGLE,
) -> ScoreTable | None:
    """Finish one run. Returns its scores, or None if it was finished before, or in a process that does not lead.

    An unfinished run continues from its checkpoint to the same bits that it would have had; `fresh` starts again from
    nothing. A kill costs about `checkpoint_seconds` of training. In a group all processes train, and only the leader
    writes and scores. Raises `MrrnError` if the folder holds another run, or if another process trains in it.
    """
    folder = config.folder(workspace)
    scores = None
    # Several heads share a baseline: one trains it in seconds, the others wait.
    with _locked(folder, wait=config.recipe.cell == LINEAR) if group.leads else nullcontext():
        if group.leads:
            for each in folder.iterdir() if fresh else ():
                if each.name != _LOCK_FILE:
                    remove(each)
            config = with_decided_precision(config, folder, str(device))
            if state_of(folder, config) != "finished":
                write_config(folder, config, "training")
        in_bf16 = group.as_leader_says(config.recipe.precision == "bf16", device)  # also waits until it has written
        config = replace(config, recipe=replace(config.recipe, precision="bf16" if in_bf16 else "fp32"))
        if state_of(folder, config) != "finished":
            watched = None
            if config.watch and group.leads:
                held_out = split.held_out(config.seed)
                watched = load_bank(split.cache, config.level, held_out, config.clips, device, views=[0])
            head = _train(split, config, folder, device, group, show, tick_seconds, checkpoint_seconds, watched)
            if group.leads:
                if watched is not None:
                    write_scores(folder / HELDOUT_SCORES_FILE, score_bank(head, watched, config))
                _, scored = split.learned_and_scored(holdout=config.holdout, seed=config.seed)
                bank = load_bank(split.cache, config.level, scored, config.clips, device, views=[0])
                scores = score_bank(head, bank, config)
                write_scores(folder / config.scores_file, scores)
                write_config(folder, config, "finished")
        group.wait()
    return scores


@contextmanager
def _locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a run's folder for as long as this one lives. Waits for those that are in it, or not.

    Raises `TrainingError` if it does not wait and there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # What others put there is neither followed (a link) nor waited for (a pipe).
    lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise TrainingError(f"another process is training in {folder}; wait for it, or end it") from None
        for path in folder.glob(".tmp-*"):
            discard(path)
        yield
    finally:
        os.close(lock)


def _train(
    split: Split,
    config: RunConfig,
    folder: Path,
    device: torch.device,
    group: ProcessGroup,
    show: Show,
    tick_seconds: float,
    checkpoint_seconds: float,
    watched: ClipBank | None,
) -> Head:
    """Returns the trained head. Continues from the checkpoint if there is one. `watched` is measured each epoch."""
    path = folder / CHECKPOINT_FILE
    found = read_checkpoint(path) if path.exists() else None
    if found is not None:
        check_same_run(found, config, path)
        if found.position is None:
            return head_from(found, path).to(device)
    if config.recipe.cell == "linear":
        head = new_head(config).to(device)
        fit_linear(head, *_load_training(split, config, device))
        if group.leads:
            _save_finished(path, head, config)
        return head
    trainer = _make_trainer(split, config, device, group)
    if found is not None and found.position is not None:
        expected, _ = trainer.state()
        check_tensors(found.tensors, expected, path)
        trainer.restore(found.tensors, found.position)
        if group.leads:
            say(f"{config.level}-{config.pool} goes on at {_place(trainer)}")
    # No process writes a checkpoint before all have read the last one.
    group.wait()
    saved = time.monotonic()
    with held_back() as signalled, _logged(trainer, config, folder, show, watched) as write:
        for tick in trainer.run(tick_seconds):
            write(tick)
            stopping = group.as_leader_says(signalled() != 0, device)
            if stopping or group.as_leader_says(time.monotonic() - saved >= checkpoint_seconds, device):
                tensors, position = trainer.state()
                if group.leads:
                    save_checkpoint(path, Checkpoint(tensors=tensors, config=config, position=position))
                saved = time.monotonic()
            if stopping:
                raise Interrupted(
                    signalled() or signal.SIGINT, f"{config.level}-{config.pool} is saved at {_place(trainer)}"
                )
    if group.leads:
        _save_finished(path, trainer.head, config)
    return trainer.head


def _place(trainer: Trainer) -> str:
    if trainer.epoch == trainer.epochs:
        return "its end"
    step = f", after {trainer.step:,} of its {trainer.steps_per_epoch:,} steps" if trainer.step else ""
    return f"epoch {trainer.epoch + 1} of {trainer.epochs}{step}"


def _save_finished(path: Path, head: Head, config: RunConfig) -> None:
    weights = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    save_checkpoint(path, Checkpoint(tensors=weights, config=config, position=None))


def _load_training(split: Split, config: RunConfig, device: torch.device) -> tuple[ClipBank, tuple[Sample, ...]]:
    """Returns the clips that a run learns from, and their samples."""
    learned, _ = split.learned_and_scored(holdout=config.holdout, seed=config.seed, watch=config.watch)
    views = range(config.recipe.views or len(split.cache.views))
    return load_bank(split.cache, config.level, learned, config.clips, device, views=views), learned


def _make_trainer(split: Split, config: RunConfig, device: torch.device, group: ProcessGroup) -> Trainer:
    """Returns the trainer of a run at its beginning, with the features of its training videos loaded."""
    bank, _ = _load_training(split, config, device)
    torch.manual_seed(config.seed)
    head = new_head(config).to(device)
    if head.standardised and len(bank):
        head.standardise_by(*channel_statistics(bank))
    if isinstance(head.shortcut, MomentShortcut) and len(bank):
        head.shortcut.standardise_by(*channel_statistics(bank, moments))
        with torch.no_grad():
            absent_K = torch.bincount(bank.label_N, minlength=head.classes) == 0
            head.linear.bias[absent_K] -= NEVER
    return Trainer(head, bank, config.recipe, config.level, config.seed, group)


@contextmanager
def _logged(
    trainer: Trainer, config: RunConfig, folder: Path, show: Show, watched: ClipBank | None
) -> Iterator[Callable[[Tick], None]]:
    """Gives a function that shows a tick on a live line, and writes a row of metrics if the tick ends an epoch.

    In a process that does not lead, the function does nothing. A continued run first drops the rows of epochs that it
    trains again.
    """
    if not trainer.group.leads:
        yield lambda tick: None
        return
    path = folder / METRICS_FILE
    lines = _rows(path) if trainer.epoch and path.exists() else []
    kept = [line for line in lines if _epoch(line) < trainer.epoch]
    write_bytes_durably(path, "".join(f"{line}\n" for line in kept).encode())
    per_epoch, epochs = trainer.steps_per_epoch, trainer.epochs
    done = trainer.epoch * per_epoch + trainer.step
    with (
        SummaryWriter(str(folder / "tensorboard"), purge_step=trainer.epoch) as board,
        show(f"train {config.level}-{config.pool}", epochs * per_epoch, "steps", initial=done) as line,
    ):

        def write(tick: Tick) -> None:
            text = (
                f"epoch {tick.epoch + 1}/{epochs}, loss {tick.loss:.4f}, {tick.accuracy:.1%} of training clips right, "
                f"{tick.clips / tick.seconds:,.0f} clips/s"
            )
            line.update(tick.epoch * per_epoch + tick.step, text)
            if not tick.ended:
                return
            row = {
                "epoch": tick.epoch,
                "loss": tick.loss,
                "accuracy": tick.accuracy,
                "learning_rate": tick.learning_rate,
                "steps": tick.step,
                "clips": tick.clips,
                "seconds": round(tick.seconds, 4),
                "clips_per_second": round(tick.clips / tick.seconds, 1),
            }
            heldout = _measure(trainer.head, watched, config) if watched is not None else {}
            with path.open("a") as file:
                file.write(json.dumps({**row, **{f"heldout_{name}": value for name, value in heldout.items()}}) + "\n")
            for name in ("loss", "accuracy", "learning_rate", "clips_per_second"):
                board.add_scalar(f"training/{name}", row[name], tick.epoch)
            for name, value in heldout.items():
                board.add_scalar(f"heldout/{name}", value, tick.epoch)

        yield write


def _rows(path: Path) -> list[str]:
    try:
        return read_bounded(path, JSON_BYTES).decode(errors="replace").splitlines()
    except ValueError as error:
        raise TrainingError(f"{path} is not a log written by this program: {error}; remove it") from None


def _measure(head: Head, watched: ClipBank, config: RunConfig) -> dict[str, float]:
    """Log loss and accuracy of the watched videos, as `--holdout` scores them. Draws no random number."""
    _, probabilities_NK, label_N = score_bank(head, watched, config).videos()
    head.train()
    return {"loss": log_loss(probabilities_NK, label_N), "accuracy": fraction(correct(probabilities_NK, label_N))}


def _epoch(line: str) -> float:
    """Epoch of a row; infinity for a row that a kill cut in two, so that it is dropped."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")
