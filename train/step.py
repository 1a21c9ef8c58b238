"""One optimizer step, and what is counted and watched on the device while steps go by, without asking it.

Shapes: T steps in a clip, B batch, C channels, K classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from train.bank import ClipBank
from train.recipes import Recipe

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
        """What has to be kept to go on in the middle of an epoch."""
        return {"loss_sum": self.loss_sum, "correct": self.correct, "clips": self.clips, "steps": self.steps}

    def everything(self) -> list[Tensor]:
        """The sums, and what is known of steps that were not finite."""
        return [*self.tensors().values(), self.bad, self.bad_step, self.bad_loss]

    def restart(self) -> None:
        """Begin an epoch."""
        for tensor in self.tensors().values():
            tensor.zero_()

    def count(self, loss: Tensor, gradient_norm: Tensor, logits_BK: Tensor, label_B: Tensor) -> None:
        """Add a step whose mean loss is `loss`; keep in mind whether it was finite."""
        finite = torch.isfinite(loss) & torch.isfinite(gradient_norm)
        first = ~finite & (self.bad_step < 0)
        self.bad_step.copy_(torch.where(first, self.steps, self.bad_step))
        self.bad_loss.copy_(torch.where(first, ~torch.isfinite(loss), self.bad_loss))
        self.bad.copy_(torch.maximum(self.bad, (~finite).float()))
        self.loss_sum += loss.double() * len(label_B)
        self.correct += (logits_BK.argmax(dim=1) == label_B).sum()
        self.clips += len(label_B)
        self.steps += 1

    def read(self) -> tuple[float, float, tuple[int, Cause] | None]:
        """Mean loss, share of right clips, and the first bad step with its cause. Waits for the device."""
        values = torch.stack(
            [each.double() for each in (self.loss_sum, self.correct, self.clips, self.bad_step, self.bad_loss)]
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
        self, head: nn.Module, optimizer: torch.optim.Optimizer, bank: ClipBank, tally: Tally, recipe: Recipe
    ) -> None:
        self.head, self.optimizer, self.bank, self.tally, self.recipe = head, optimizer, bank, tally, recipe
        self.parameters = list(head.parameters())
        # The fused optimizer reads this on the device and skips the update where it is 1.
        optimizer.found_inf = tally.bad  # type: ignore[attr-defined]

    def __call__(self, clip_B: Tensor, view_B: Tensor) -> None:
        """One step on the clips `clip_B`, each in its view."""
        label_B = self.bank.label_N[clip_B]
        x_TBC = self.bank.gather(clip_B, view_B)
        with torch.autocast(x_TBC.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits_BK = self.head(x_TBC).float()
        smoothing = self.recipe.label_smoothing
        loss = nn.functional.cross_entropy(logits_BK, label_B, label_smoothing=smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.tally.count(loss.detach(), norm, logits_BK.detach(), label_B)
        self.optimizer.step()
