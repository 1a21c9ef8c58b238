"""The training loop: epochs of steps, seeded, continued to the same bits, looked at from the host only now and then.

Shapes: N clips of the training videos, B batch.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.common.errors import TrainingError
from cache.fingerprint import Level
from train.clips import Bank, ClipBank
from train.distributed import Group
from train.heads import Head
from train.recipes import Recipe
from train.steps import EagerStep, GraphStep, Tally, make_optimizer, set_learning_rate

_ALONE = Group()

_STEPS_BETWEEN_LOOKS = 50


@dataclass(frozen=True, kw_only=True)
class Tick:
    """How training stands; given now and then, and at the end of every epoch."""

    epoch: int
    """Index of the epoch, from 0."""
    step: int
    """Steps of this epoch that are done."""
    loss: float
    """Mean cross-entropy of the epoch's clips so far, each at the time of its step."""
    accuracy: float
    """Share of the epoch's training clips so far that were classified right, dropout on."""
    learning_rate: float
    seconds: float
    """Time spent in this epoch."""
    clips: int
    """Clips of this epoch that are done."""
    ended: bool
    """Whether the epoch is complete."""


@dataclass(frozen=True)
class Position:
    """How far training is: what a checkpoint holds beside tensors."""

    epoch: int
    """Index of the epoch under way, from 0."""
    step: int
    """Steps of it that are done."""
    seconds: float
    """Time spent in it."""
    device: str
    """Kind of device: cpu or cuda."""
    processes: int
    """Processes that train together."""


def derived_seed(*parts: object) -> int:
    """A seed of its own for each combination of `parts`."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


class Trainer:
    """Trains one head on one bank. Its state between two steps can be taken out and put into another Trainer."""

    def __init__(
        self, head: Head, bank: ClipBank, recipe: Recipe, level: Level, seed: int, group: Group = _ALONE
    ) -> None:
        if not len(bank):
            raise TrainingError("the training split has no clips; look at the split files, or extract more videos")
        self.head, self.bank, self.recipe, self.level, self.seed = head, bank, recipe, level, seed
        self.group = group
        self.device = bank.label_N.device
        self.steps_per_epoch = -(-len(bank) // recipe.batch)
        self.epochs = recipe.epochs_for(self.steps_per_epoch)
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.tally = Tally(self.device)
        self.optimizer = make_optimizer(head, recipe.rate(level, 0, self.epochs), recipe.weight_decay, self.device)
        eager = EagerStep(head, self.optimizer, bank, self.tally, recipe, group)
        captured = self.device.type == "cuda" and isinstance(bank, Bank) and group.size == 1
        self.take_step = GraphStep(eager, recipe.batch) if captured else eager

    @property
    def learning_rate(self) -> float:
        """Learning rate of the epoch that is under way."""
        return self.recipe.rate(self.level, self.epoch, self.epochs)

    def run(self, tick_seconds: float = 1.0) -> Iterator[Tick]:
        """Train to the end, giving a Tick at each epoch's end and whenever `tick_seconds` have passed since the last.

        Between ticks nothing waits for the device. TrainingError at the first tick after a loss or gradient was not
        finite; the weights are then those from before that step.
        """
        self.head.train()
        if (self.epoch, self.step) == (0, 0):
            torch.manual_seed(derived_seed("dropout", self.seed, self.group.rank))
        while self.epoch < self.epochs:
            yield from self._run_epoch(tick_seconds)

    def _run_epoch(self, tick_seconds: float) -> Iterator[Tick]:
        batch, epoch = self.recipe.batch, self.epoch
        clip_N, view_N = self._order()
        starts = range(self.step * batch, len(self.bank), batch)
        share = self.group.share
        ours = ((share(clip_N[at : at + batch]), share(view_N[at : at + batch])) for at in starts)
        self.bank.announce(pair for pair in ours if len(pair[0]))
        there_clip_N, there_view_N = clip_N.to(self.device), view_N.to(self.device)
        set_learning_rate(self.optimizer, self.learning_rate)
        since = time.monotonic()
        while self.epoch == epoch:
            chosen = slice(self.step * batch, (self.step + 1) * batch)
            self.take_step(share(there_clip_N[chosen]), share(there_view_N[chosen]), len(clip_N[chosen]))
            self.step += 1
            ended = self.step == self.steps_per_epoch
            if ended or self._time_to_look(time.monotonic() - since >= tick_seconds):
                loss, accuracy = self._look(clip_N)
                self.seconds += time.monotonic() - since
                tick = self._tick(loss, accuracy, ended)
                if ended:
                    self.epoch, self.step, self.seconds = epoch + 1, 0, 0.0
                    self.tally.restart()
                yield tick
                since = time.monotonic()

    def _time_to_look(self, due: bool) -> bool:
        """Processes that train together have to look at the same steps, so they go by steps, not by their clocks."""
        return due if self.group.size == 1 else self.step % _STEPS_BETWEEN_LOOKS == 0

    def _order(self) -> tuple[Tensor, Tensor]:
        """The epoch's order of clips and the view each is drawn from, int64 `[N]`: a function of seed and epoch."""
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
        clip_N = torch.randperm(len(self.bank), generator=generator)
        view_N = torch.randint(self.bank.num_views, (len(self.bank),), generator=generator)
        return clip_N, view_N

    def _look(self, clip_N: Tensor) -> tuple[float, float]:
        loss, accuracy, bad = self.tally.read(self.group)
        if bad is not None:
            self._stop(*bad, clip_N)
        return loss, accuracy

    def _tick(self, loss: float, accuracy: float, ended: bool) -> Tick:
        return Tick(
            epoch=self.epoch,
            step=self.step,
            loss=loss,
            accuracy=accuracy,
            learning_rate=self.learning_rate,
            seconds=self.seconds,
            clips=min(self.step * self.recipe.batch, len(self.bank)),
            ended=ended,
        )

    def _stop(self, step: int, cause: str, clip_N: Tensor) -> None:
        batch = self.recipe.batch
        clips: np.ndarray = clip_N[step * batch : (step + 1) * batch].cpu().numpy()
        videos = self.bank.clips.ids_of(clips)
        shown = ", ".join(map(repr, videos[:3])) + (f" and {len(videos) - 3} more" if len(videos) > 3 else "")
        raise TrainingError(
            f"the {cause} of step {step} of epoch {self.epoch} is NaN or Inf (clips of {shown}); training stopped "
            f"before that step. The learning rate is {self.learning_rate:g}: try a lower one with --lr"
        )

    def state(self) -> tuple[dict[str, Tensor], Position]:
        """All that the next step depends on, as named tensors, and the position. Taken between ticks only."""
        tensors = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        for name, parameter in self.head.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = tensor
        tensors |= {f"tally.{name}": tensor for name, tensor in self.tally.tensors().items()}
        for rank, (correct, state) in enumerate(zip(*map(self.group.gather, self._own_state()), strict=True)):
            tensors[f"tally.correct.{rank}"] = correct
            tensors[f"random.{rank}"] = state
        return tensors, Position(self.epoch, self.step, self.seconds, self.device.type, self.group.size)

    def _own_state(self) -> tuple[Tensor, Tensor]:
        """What each process has its own of: clips that were right, and the generator of dropout masks."""
        on_gpu = self.device.type == "cuda"
        state = torch.cuda.get_rng_state(self.device) if on_gpu else torch.get_rng_state()
        return self.tally.correct, state.to(self.device)

    def restore(self, tensors: dict[str, Tensor], position: Position) -> None:
        """Put a state back that `state` gave, of the same head; TrainingError on another kind of device."""
        begun, now = (position.device, position.processes), (self.device.type, self.group.size)
        if begun != now:
            raise TrainingError(
                f"this run was begun on {begun[0]} by {begun[1]} processes and would not go on to the same bits on "
                f"{now[0]} by {now[1]}: continue it as it was begun, or begin again with --fresh"
            )
        self.head.load_state_dict({name[5:]: each for name, each in tensors.items() if name.startswith("head.")})
        for name, parameter in self.head.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensor.copy_(tensors[f"optimizer.{key}.{name}"])
        for name, tensor in self.tally.tensors().items():
            tensor.copy_(tensors[f"tally.{name}"])
        self.tally.correct.copy_(tensors[f"tally.correct.{self.group.rank}"])
        state = tensors[f"random.{self.group.rank}"].cpu()
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)
        self.epoch, self.step, self.seconds = position.epoch, position.step, position.seconds
