"""Which device is meant, and what is refused instead of being exchanged for another."""

import pytest
import torch

from cache.common import device
from cache.common.device import check_device, find_device, multiplies_bf16
from cache.common.errors import MrrnError


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert find_device("auto") == expected


def test_a_named_device_has_to_be_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [find_device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(MrrnError, match="has 2 CUDA devices"):
        find_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MrrnError, match="has no CUDA devices"):
        find_device("cuda")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", "meta"])
def test_other_names_are_refused_with_what_is_possible(name):
    with pytest.raises(MrrnError, match="choose auto, cpu, cuda or cuda:INDEX"):
        find_device(name)


def test_a_gpu_without_any_driver_is_missed_before_torch_is_imported(monkeypatch):
    monkeypatch.setattr(device, "_driver_here", lambda: False)
    check_device("cpu,auto")
    with pytest.raises(MrrnError, match="'cuda:1' was asked for, but this machine has no CUDA devices"):
        check_device("cpu,cuda:1")


def test_a_gpu_multiplies_bf16_from_compute_capability_8_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    for capability, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert multiplies_bf16("cuda:0") is expected


def test_a_cpu_that_has_to_emulate_bf16_does_not_multiply_it(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not multiplies_bf16("cpu")
