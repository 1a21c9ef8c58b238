"""The training loop: epochs of steps, seeded, and continued from a checkpoint to the same bits.

The host waits for the device only when it reads the sums, at most once in `tick_seconds`.

Shapes: N clips of the training videos, B batch.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.common.errors import TrainingError
from cache.common.text import some
from cache.fingerprint import Level
from train.clips import Bank, ClipBank
from train.distributed import SINGLE, ProcessGroup
from train.heads import Head
from train.recipes import Recipe
from train.steps import EagerStep, EpochSums, GraphStep, make_optimizer, set_learning_rate

_STEPS_BETWEEN_TICKS = 50
"""Of several processes, which have to read the sums at the same step and so cannot go by their clocks."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """The state of training, reported now and then and at the end of every epoch."""

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
    """How far training has come: what a checkpoint holds beside tensors."""

    epoch: int
    """Index of the current epoch, from 0."""
    step: int
    """Steps of it that are done."""
    seconds: float
    """Time spent in it."""
    device: str
    """Kind of device: cpu or cuda."""
    processes: int
    """Number of processes that train together."""


def derived_seed(*parts: object) -> int:
    """Returns a different seed for each combination of `parts`."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def balanced_order(label_N: Tensor, generator: torch.Generator) -> Tensor:
    """Returns N of the N clips at random, int64 `[N]`, as many of each class (or one more).

    The clips of a class come equally often (or once more): those of large classes at most once, of small ones many
    times. Each epoch draws other ones.
    """
    classes = label_N.unique()
    classes = classes[torch.randperm(len(classes), generator=generator)]
    each, more = divmod(len(label_N), len(classes))
    drawn = []
    for index, label in enumerate(classes):
        clips, wanted = (label_N == label).nonzero()[:, 0], each + (index < more)
        rounds = [clips[torch.randperm(len(clips), generator=generator)] for _ in range(-(-wanted // len(clips)))]
        drawn.append(torch.cat(rounds)[:wanted])
    return torch.cat(drawn)[torch.randperm(len(label_N), generator=generator)]


class Trainer:
    """Trains one head on one bank. Its state between two steps can be saved, and restored in another Trainer."""

    def __init__(
        self, head: Head, bank: ClipBank, recipe: Recipe, level: Level, seed: int, group: ProcessGroup = SINGLE
    ) -> None:
        if not len(bank):
            raise TrainingError("the training split has no clips; look at the split files, or extract more videos")
        self.head, self.bank, self.recipe, self.level, self.seed = head, bank, recipe, level, seed
        self.group = group
        self.device = bank.label_N.device
        self.steps_per_epoch = -(-len(bank) // recipe.batch)
        self.epochs = recipe.epochs_for(self.steps_per_epoch)
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.sums = EpochSums(self.device)
        self.optimizer = make_optimizer(head, recipe.rate(level, 0, self.epochs), recipe.weight_decay, self.device)
        eager = EagerStep(head, self.optimizer, bank, self.sums, recipe, group)
        captured = self.device.type == "cuda" and isinstance(bank, Bank) and group.size == 1
        self.take_step = GraphStep(eager, recipe.batch) if captured else eager

    def run(self, tick_seconds: float = 1.0) -> Iterator[Tick]:
        """Train to the end. Yields a Tick at each epoch's end, and when `tick_seconds` have passed since the last one.

        Nothing waits for the device between ticks. Raises `TrainingError` at the first tick after a loss or gradient
        that is not finite; the weights are then those from before that step.
        """
        self.head.train()
        if (self.epoch, self.step) == (0, 0):
            torch.manual_seed(derived_seed("dropout", self.seed, self.group.rank))
        while self.epoch < self.epochs:
            yield from self._run_epoch(tick_seconds)

    def _run_epoch(self, tick_seconds: float) -> Iterator[Tick]:
        batch, share = self.recipe.batch, self.group.share
        learning_rate = self.recipe.rate(self.level, self.epoch, self.epochs)
        set_learning_rate(self.optimizer, learning_rate)
        clip_N, view_N = self._order()
        starts = range(self.step * batch, len(self.bank), batch)
        ours = ((share(clip_N[at : at + batch]), share(view_N[at : at + batch])) for at in starts)
        self.bank.announce(pair for pair in ours if len(pair[0]))
        there_clip_N, there_view_N = clip_N.to(self.device), view_N.to(self.device)
        since = time.monotonic()
        for at in starts:
            chosen = slice(at, at + batch)
            self.take_step(share(there_clip_N[chosen]), share(there_view_N[chosen]), len(clip_N[chosen]))
            self.step += 1
            ended = self.step == self.steps_per_epoch
            by_clock = time.monotonic() - since >= tick_seconds
            due = by_clock if self.group.size == 1 else self.step % _STEPS_BETWEEN_TICKS == 0
            if not (ended or due):
                continue
            loss, accuracy = self._read_sums(clip_N)
            self.seconds += time.monotonic() - since
            tick = Tick(
                epoch=self.epoch,
                step=self.step,
                loss=loss,
                accuracy=accuracy,
                learning_rate=learning_rate,
                seconds=self.seconds,
                clips=min(at + batch, len(self.bank)),
                ended=ended,
            )
            if ended:
                self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
                self.sums.restart()
            yield tick
            since = time.monotonic()

    def _order(self) -> tuple[Tensor, Tensor]:
        """The epoch's order of clips and the view of each, int64 `[N]` on the CPU: a function of seed and epoch."""
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
        if self.recipe.balance == "sample":
            clip_N = balanced_order(torch.from_numpy(self.bank.clips.label_N), generator)
        else:
            clip_N = torch.randperm(len(self.bank), generator=generator)
        view_N = torch.randint(self.bank.num_views, (len(self.bank),), generator=generator)
        return clip_N, view_N

    def _read_sums(self, clip_N: Tensor) -> tuple[float, float]:
        """Returns loss and accuracy. Raises `TrainingError` if a step of this epoch was not finite."""
        loss, accuracy, bad = self.sums.read(self.group)
        if bad is None:
            return loss, accuracy
        step, cause = bad
        clips = clip_N[step * self.recipe.batch : (step + 1) * self.recipe.batch].numpy()
        raise TrainingError(
            f"the {cause} of step {step} of epoch {self.epoch} is NaN or Inf (clips of "
            f"{some(self.bank.clips.ids_of(clips))}); training stopped before that step. The learning rate is "
            f"{self.recipe.rate(self.level, self.epoch, self.epochs):g}: try a lower one with --lr"
        )

    def state(self) -> tuple[dict[str, Tensor], Position]:
        """All that the next step depends on, as named tensors, and the position. To be called between ticks only."""
        tensors = self._shared_state()
        on_gpu = self.device.type == "cuda"
        generator = torch.cuda.get_rng_state(self.device) if on_gpu else torch.get_rng_state()
        own = self.sums.correct, generator.to(self.device)
        for rank, (correct, random) in enumerate(zip(*map(self.group.gather, own), strict=True)):
            tensors |= {f"tally.correct.{rank}": correct, f"random.{rank}": random}
        return tensors, Position(self.epoch, self.step, self.seconds, self.device.type, self.group.size)

    def _shared_state(self) -> dict[str, Tensor]:
        """The tensors that are equal in all processes, by their names in a checkpoint."""
        tensors = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        for name, parameter in self.head.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = tensor
        return tensors | {f"tally.{name}": tensor for name, tensor in self.sums.tensors().items()}

    def restore(self, tensors: dict[str, Tensor], position: Position) -> None:
        """Restore what `state` returned for the same head. Raises `TrainingError` on another kind of device."""
        begun, now = (position.device, position.processes), (self.device.type, self.group.size)
        if begun != now:
            raise TrainingError(
                f"this run was begun on {begun[0]} by {begun[1]} processes and would not go on to the same bits on "
                f"{now[0]} by {now[1]}: continue it as it was begun, or begin again with --fresh"
            )
        for name, tensor in self._shared_state().items():
            tensor.copy_(tensors[name])
        self.sums.correct.copy_(tensors[f"tally.correct.{self.group.rank}"])
        generator = tensors[f"random.{self.group.rank}"].cpu()
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(generator, self.device)
        else:
            torch.set_rng_state(generator)
        self.epoch, self.step, self.seconds = position.epoch, position.step, position.seconds
