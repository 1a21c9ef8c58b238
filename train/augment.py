"""What training does to features and targets so that a head does not learn them by heart. Testing does none of it.

Every draw comes from the device's own generator, in a fixed order and number, so that a captured step redraws at each
replay and a continued run draws what it would have drawn. Shapes: T steps, B batch, C channels, K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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
