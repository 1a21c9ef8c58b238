"""Tests that run on a CPU here and on a GPU where there is one, by the same function."""

from importlib.util import find_spec
from typing import Any

import pytest

GPU = pytest.param("cuda", marks=pytest.mark.gpu)

on_both = pytest.mark.parametrize("device", ["cpu", GPU])
"""Gives a test its `device`; the one with "cuda" is marked gpu."""


def where_installed(package: str, *values: Any) -> list[Any]:
    """`values` if there is `package`: a machine with a GPU may lack it, and no GPU test may be skipped there."""
    return list(values) if find_spec(package) else []


on_both_slowly = pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
"""The same, where the CPU takes long."""

on_gpu = pytest.mark.parametrize("device", [GPU])
"""For what a CPU has no counterpart of."""
