"""The device to train on: memory is kept between steps on a processor."""

import platform
import resource

import pytest
import torch

from cache.common.errors import MrrnError
from train.distributed import choose_device


def page_faults_of_a_step() -> int:
    """Pages asked of the system while sixty megabytes are made, filled and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(5_000_000) for _ in range(3)]
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is set")
def test_memory_that_a_step_freed_is_there_for_the_next():
    assert choose_device("cpu") == torch.device("cpu")
    assert min(page_faults_of_a_step() for _ in range(5)) < 1000  # else some ten thousand each time


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(MrrnError, match="CUDA devices"):
        choose_device(f"cuda:{torch.cuda.device_count()}")
