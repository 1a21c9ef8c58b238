"""One optimizer step: features gathered and augmented, gradients, sums over the epoch, update; eager or captured.

A step never waits for the device. Its sums stay there, and it skips the update after a loss or gradient that is not
finite. Every random number comes from the device's own generator, in a fixed order and amount, so that a captured step
draws anew at each replay and a continued run draws what it would have drawn.

Shapes: T steps in a clip, B batch, C channels, K classes.
"""

import gc
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.clips import ClipBank
from train.distributed import ProcessGroup
from train.heads import Head
from train.recipes import Recipe

Cause = Literal["loss", "gradient"]
"""Which of the two was not finite."""

_WARM_UP_STEPS = 3
"""Steps before a capture: they compile kernels and set up libraries, which a capture may not do."""


def add_noise(x_TBC: Tensor, noise: float) -> Tensor:
    """Returns each feature times its own draw from a normal distribution around 1 with standard deviation `noise`."""
    return x_TBC * torch.randn_like(x_TBC).mul_(noise).add_(1) if noise else x_TBC


def mix(x_TBC: Tensor, label_B: Tensor, largest: float, classes: int) -> tuple[Tensor, Tensor]:
    """Mixup: blends into each clip and its target a share of the next clip in the batch.

    Shares are uniform in [0, `largest`). Returns the features and the targets: probabilities `[B, K]`, or `label_B`
    itself if `largest` is 0. The next clip is a random one, because batches are in random order. (Zhang et al., arXiv
    1710.09412, but with a uniform distribution instead of the symmetric Beta: the first clip stays the larger part.)
    """
    if not largest:
        return x_TBC, label_B
    share_B = largest * torch.rand(len(label_B), device=x_TBC.device)
    one_BK = F.one_hot(label_B, classes).to(x_TBC.dtype)
    target_BK = torch.lerp(one_BK, one_BK.roll(1, dims=0), share_B[:, None])
    return torch.lerp(x_TBC, x_TBC.roll(1, dims=1), share_B[:, None]), target_BK


def class_weights(label_N: Tensor, classes: int) -> Tensor:
    """Returns the weight of each class's clips `[K]`, float32 on the device, with which all classes weigh the same.

    The mean over the clips `label_N` is 1. A class without clips has weight 0.
    """
    count_K = torch.bincount(label_N.cpu(), minlength=classes).double()
    weight_K = torch.where(count_K > 0, len(label_N) / (count_K * (count_K > 0).sum()), 0)
    return weight_K.float().to(label_N.device)


class EpochSums:
    """Sums over an epoch's steps, kept on the device, and the first step whose loss or gradient was not finite."""

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.clips = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.bad = torch.zeros((), dtype=torch.float32, device=device)
        """1 from the first step on that was not finite: the optimizer then leaves the weights alone."""
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.bad_loss = torch.zeros((), dtype=torch.bool, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Sums that a checkpoint keeps and that are equal in all processes."""
        return {"loss_sum": self.loss_sum, "clips": self.clips, "steps": self.steps}

    def everything(self) -> list[Tensor]:
        """All tensors that a step changes here."""
        return [*self.tensors().values(), self.correct, self.bad, self.bad_step, self.bad_loss]

    def restart(self) -> None:
        """Set the sums to zero at the start of an epoch."""
        for tensor in (*self.tensors().values(), self.correct):
            tensor.zero_()

    def count(self, loss: Tensor, gradient_norm: Tensor, logits_BK: Tensor, label_B: Tensor, batch: int) -> None:
        """Add a step whose mean loss over `batch` clips is `loss`, and note whether it was finite.

        `correct` counts the clips of this process only, everything else those of all processes.
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

    def read(self, group: ProcessGroup) -> tuple[float, float, tuple[int, Cause] | None]:
        """Returns the mean loss, the share of right clips, and the first bad step with its cause, if there is one.

        Waits for the device. All processes have to call it together.
        """
        correct_everywhere = self.correct.double()
        group.add_up([correct_everywhere])
        values = (self.loss_sum, correct_everywhere, self.clips, self.bad_step, self.bad_loss)
        loss_sum, correct, clips, bad_step, bad_loss = torch.stack([each.double() for each in values]).tolist()
        bad: tuple[int, Cause] | None = (int(bad_step), "loss" if bad_loss else "gradient") if bad_step >= 0 else None
        return loss_sum / max(clips, 1), correct / max(clips, 1), bad


def make_optimizer(
    head: nn.Module, learning_rate: float, weight_decay: float, device: torch.device
) -> torch.optim.Adam:
    """Returns fused Adam, or AdamW if there is weight decay, with its moments at zero.

    On a GPU it can be captured, and its learning rate is a tensor on the device.
    """
    on_gpu = device.type == "cuda"
    rate = torch.tensor(learning_rate, device=device) if on_gpu else learning_rate
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimizer = kind(head.parameters(), lr=rate, weight_decay=weight_decay, fused=True, capturable=on_gpu)
    for parameter in head.parameters():
        # Adam would make this at its first step. A checkpoint may be taken or restored before that step.
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Change the learning rate in place, so that a captured step sees it."""
    for parameters in optimizer.param_groups:
        if isinstance(parameters["lr"], Tensor):
            parameters["lr"].fill_(learning_rate)
        else:
            parameters["lr"] = learning_rate


class EagerStep:
    """A step whose operations are launched one after the other."""

    def __init__(
        self,
        head: Head,
        optimizer: torch.optim.Optimizer,
        bank: ClipBank,
        sums: EpochSums,
        recipe: Recipe,
        group: ProcessGroup,
    ) -> None:
        self.head, self.optimizer, self.bank, self.sums = head, optimizer, bank, sums
        self.recipe, self.group = recipe, group
        self.parameters = list(head.parameters())
        self.weight_K = class_weights(bank.label_N, head.classes) if recipe.balance == "loss" else None
        # The fused optimizer reads this on the device and skips the update if it is 1.
        optimizer.found_inf = sums.bad  # type: ignore[attr-defined]

    def __call__(self, clip_B: Tensor, view_B: Tensor, batch: int) -> None:
        """Take a step on the clips `clip_B`, each in its view; `batch` is the number of clips in all processes."""
        self.optimizer.zero_grad(set_to_none=True)
        label_B = self.bank.label_N[clip_B]
        if len(clip_B):
            loss, logits_BK = self._backward(clip_B, view_B, label_B, batch)
        else:
            # An epoch's last batch has fewer clips than there are processes: this one contributes zeros.
            loss, logits_BK = torch.zeros((), device=label_B.device), label_B.new_zeros((0, 1))
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.group.add_up([*gradients, loss])
        self.sums.count(loss, nn.utils.get_total_norm(gradients), logits_BK, label_B, batch)
        self.optimizer.step()

    def _backward(self, clip_B: Tensor, view_B: Tensor, label_B: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Returns these clips' part of the batch's mean loss, and their logits. Leaves gradients in the parameters."""
        recipe = self.recipe
        x_TBC = add_noise(self.bank.gather(clip_B, view_B), recipe.feature_noise)
        x_TBC, target = mix(x_TBC, label_B, recipe.mixup, self.head.classes)
        with torch.autocast(x_TBC.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits_BK = self.head(x_TBC).float()
        loss_sum = F.cross_entropy(
            logits_BK, target, self.weight_K, label_smoothing=recipe.label_smoothing, reduction="sum"
        )
        loss = loss_sum / batch
        loss.backward()
        return loss.detach(), logits_BK.detach()


class GraphStep:
    """An EagerStep captured once as a CUDA graph and replayed: one launch a step instead of hundreds.

    The last, smaller batch of an epoch stays eager. A replay advances the offset of the device's generator as the eager
    step does, so that a continued run draws the same dropout masks.
    """

    def __init__(self, eager: EagerStep, batch: int) -> None:
        self.eager, self.batch = eager, batch
        self.device = eager.sums.bad.device
        self.clip_B = torch.zeros(batch, dtype=torch.int64, device=self.device)
        self.view_B = torch.zeros_like(self.clip_B)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, clip_B: Tensor, view_B: Tensor, batch: int) -> None:
        """Take a step on the clips `clip_B`, each in its view."""
        if batch < self.batch:
            self.eager(clip_B, view_B, batch)
            return
        self.clip_B.copy_(clip_B)
        self.view_B.copy_(view_B)
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Warm up and record. Weights, moments, sums and the generator are then as they were before."""
        kept = [(tensor, tensor.clone()) for tensor in self.eager.sums.everything()]
        random = torch.cuda.get_rng_state(self.device)
        # The optimizer now leaves weights and moments alone.
        self.eager.sums.bad.fill_(1)
        # One stream for both: what the warm-up sets up, such as autograd's nodes and cuBLAS's workspace, belongs to it.
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_STEPS):
                self.eager(self.clip_B, self.view_B, self.batch)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.eager.optimizer.zero_grad(set_to_none=True)
        # What the collector frees during a capture, such as another graph, would end it.
        gc.collect()
        with torch.cuda.graph(graph, stream=side):
            self.eager(self.clip_B, self.view_B, self.batch)
        for tensor, before in kept:
            tensor.copy_(before)
        torch.cuda.set_rng_state(random, self.device)
        return graph
