"""Which device computes: what was asked for has to be there, and nothing else is taken in silence."""

import re

from cache.errors import MrrnError


def find_device(asked: str) -> str:
    """`asked` itself, or for "auto" CUDA where there is one, else the CPU; MrrnError where this machine lacks it."""
    import torch  # here: nothing else in this folder needs it

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return asked
    known = re.fullmatch("cuda(:([0-9]+))?", asked)
    if known is None:
        raise MrrnError(f"device {asked!r} is not known; choose auto, cpu, cuda or cuda:INDEX (DEVICE=, --device)")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(known[2] or 0) >= count:
        raise MrrnError(
            f"device {asked!r} was asked for, but this machine has {count or 'no'} CUDA devices that PyTorch can use; "
            "choose another with DEVICE= (--device), for example cpu"
        )
    return asked
