"""What training does to features and targets so that a head does not learn them by heart. Testing does none of it.

Every draw comes from the device's own generator, in a fixed order and number, so that a captured step redraws at each
replay and a continued run draws what it would have drawn. Shapes: T steps, B batch, C channels, K classes.

One optimizer step, and what is counted and watched on the device while steps go by, without asking it.

Shapes: T steps in a clip, B batch, C channels, K classes.

The training step captured once as a CUDA graph and replayed: one launch a step instead of hundreds.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.clips import ClipBank
from train.distributed import Group
from train.heads import Head
from train.recipes import Recipe


def add_noise(x_TBC: Tensor, noise: float) -> Tensor:
    """Each feature times its own draw from a normal distribution around 1 with standard deviation `noise`."""
    return x_TBC * torch.randn_like(x_TBC).mul_(noise).add_(1) if noise else x_TBC


def mix(x_TBC: Tensor, label_B: Tensor, largest: float, classes: int) -> tuple[Tensor, Tensor]:
    """Blend into each clip a share of the next one in the batch, evenly drawn from [0, `largest`), and its target too.

    Gives the features and the targets: probabilities `[B, K]`; class indices `[B]`, as they came, where `largest` is 0.
    Clips stand in random order in a batch, so that the next one is any other. (Mixup, Zhang et al., arXiv 1710.09412,
    with an even distribution of shares in place of the symmetric Beta: the first clip stays the larger part.)
    """
    if not largest:
        return x_TBC, label_B
    share_B = largest * torch.rand(len(label_B), device=x_TBC.device)
    one_BK = F.one_hot(label_B, classes).to(x_TBC.dtype)
    target_BK = torch.lerp(one_BK, one_BK.roll(1, dims=0), share_B[:, None])
    return torch.lerp(x_TBC, x_TBC.roll(1, dims=1), share_B[:, None]), target_BK


Cause = Literal["loss", "gradient"]


class Tally:
    """Sums over an epoch's steps, on the device; and the first step whose loss or gradient was not finite."""

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.clips = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.bad = torch.zeros((), dtype=torch.float32, device=device)
        """1 from the first step on that was not finite: the optimizer then leaves the weights as they are."""
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.bad_loss = torch.zeros((), dtype=torch.bool, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """What has to be kept to go on in the middle of an epoch, the same in all processes."""
        return {"loss_sum": self.loss_sum, "clips": self.clips, "steps": self.steps}

    def everything(self) -> list[Tensor]:
        """The sums, and what is known of steps that were not finite."""
        return [*self.tensors().values(), self.correct, self.bad, self.bad_step, self.bad_loss]

    def restart(self) -> None:
        """Begin an epoch."""
        for tensor in (*self.tensors().values(), self.correct):
            tensor.zero_()

    def count(self, loss: Tensor, gradient_norm: Tensor, logits_BK: Tensor, label_B: Tensor, batch: int) -> None:
        """Add a step whose mean loss over `batch` clips is `loss`; keep in mind whether it was finite.

        `correct` counts this process's clips alone, everything else those of all processes.
        """
        finite = torch.isfinite(loss) & torch.isfinite(gradient_norm)
        first = ~finite & (self.bad_step < 0)
        self.bad_step.copy_(torch.where(first, self.steps, self.bad_step))
        self.bad_loss.copy_(torch.where(first, ~torch.isfinite(loss), self.bad_loss))
        self.bad.copy_(torch.maximum(self.bad, (~finite).float()))
        self.loss_sum += loss.double() * batch
        self.correct += (logits_BK.argmax(dim=1) == label_B).sum()
        self.clips += batch
        self.steps += 1

    def read(self, group: Group) -> tuple[float, float, tuple[int, Cause] | None]:
        """Mean loss, share of right clips, and the first bad step with its cause. Waits for the device."""
        correct_here = self.correct.double()
        group.add_up([correct_here])
        values = torch.stack(
            [each.double() for each in (self.loss_sum, correct_here, self.clips, self.bad_step, self.bad_loss)]
        ).tolist()
        loss_sum, correct, clips, bad_step, bad_loss = values
        bad: tuple[int, Cause] | None = (int(bad_step), "loss" if bad_loss else "gradient") if bad_step >= 0 else None
        return loss_sum / max(clips, 1), correct / max(clips, 1), bad


def make_optimizer(
    head: nn.Module, learning_rate: float, weight_decay: float, device: torch.device
) -> torch.optim.Adam:
    """Fused Adam (AdamW with weight decay), its moments at zero; on a GPU fit for capture, the rate on the device."""
    on_gpu = device.type == "cuda"
    rate = torch.tensor(learning_rate, device=device) if on_gpu else learning_rate
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimizer = kind(head.parameters(), lr=rate, weight_decay=weight_decay, fused=True, capturable=on_gpu)
    for parameter in head.parameters():
        # What Adam would make at its first step; made here, a state can be taken out, or put in, before that step.
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Change the learning rate in place, so that a captured step sees it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


class EagerStep:
    """Gather, forward, backward, count, update: launched one after the other."""

    def __init__(
        self,
        head: Head,
        optimizer: torch.optim.Optimizer,
        bank: ClipBank,
        tally: Tally,
        recipe: Recipe,
        group: Group,
    ) -> None:
        self.head, self.optimizer, self.bank, self.tally = head, optimizer, bank, tally
        self.recipe, self.group = recipe, group
        self.parameters = list(head.parameters())
        # The fused optimizer reads this on the device and skips the update where it is 1.
        optimizer.found_inf = tally.bad  # type: ignore[attr-defined]

    def __call__(self, clip_B: Tensor, view_B: Tensor, batch: int) -> None:
        """One step on the clips `clip_B`, each in its view; `batch` counts those of all processes."""
        self.optimizer.zero_grad(set_to_none=True)
        label_B = self.bank.label_N[clip_B]
        if len(clip_B):
            loss, logits_BK = self._backward(clip_B, view_B, label_B, batch)
        else:
            # More processes than clips in an epoch's last batch: this one adds nothing to the sum.
            loss, logits_BK = torch.zeros((), device=label_B.device), label_B.new_zeros((0, 1))
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.group.add_up([*gradients, loss])
        self.tally.count(loss, nn.utils.get_total_norm(gradients), logits_BK, label_B, batch)
        self.optimizer.step()

    def _backward(self, clip_B: Tensor, view_B: Tensor, label_B: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """These clips' part of the batch's mean loss, and their logits; gradients are in the parameters."""
        recipe = self.recipe
        x_TBC = add_noise(self.bank.gather(clip_B, view_B), recipe.feature_noise)
        x_TBC, target = mix(x_TBC, label_B, recipe.mixup, self.head.settings.classes)
        with torch.autocast(x_TBC.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits_BK = self.head(x_TBC).float()
        smoothing = recipe.label_smoothing
        loss = nn.functional.cross_entropy(logits_BK, target, label_smoothing=smoothing, reduction="sum") / batch
        loss.backward()
        return loss.detach(), logits_BK.detach()


_WARM_UP_STEPS = 3
"""Steps before capture: kernels are compiled and libraries set up, which a capture may not do."""


class GraphStep:
    """Does what its EagerStep does, for full batches by replay; the last, smaller batch of an epoch stays eager.

    Dropout draws from the device's generator, whose offset a replay advances as the eager step does, so that a
    continued run goes on with the same masks.
    """

    def __init__(self, eager: EagerStep, batch: int) -> None:
        self.eager, self.batch = eager, batch
        self.device = eager.tally.bad.device
        self.clip_B = torch.zeros(batch, dtype=torch.int64, device=self.device)
        self.view_B = torch.zeros_like(self.clip_B)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, clip_B: Tensor, view_B: Tensor, batch: int) -> None:
        """One step on the clips `clip_B`, each in its view."""
        if batch < self.batch:
            self.eager(clip_B, view_B, batch)
            return
        self.clip_B.copy_(clip_B)
        self.view_B.copy_(view_B)
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Warm up and record, leaving weights, moments, sums and the generator as they were."""
        kept = [(tensor, tensor.clone()) for tensor in self.eager.tally.everything()]
        random = torch.cuda.get_rng_state(self.device)
        # With this set the optimizer leaves weights and moments alone.
        self.eager.tally.bad.fill_(1)
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_STEPS):
                self.eager(self.clip_B, self.view_B, self.batch)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.eager.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.eager(self.clip_B, self.view_B, self.batch)
        for tensor, before in kept:
            tensor.copy_(before)
        torch.cuda.set_rng_state(random, self.device)
        return graph
