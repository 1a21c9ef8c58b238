"""Tests that run on a CPU here and on a GPU where there is one, by the same function."""

import pytest

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
"""Gives a test its `device`; the one with "cuda" is marked gpu."""

on_both_slowly = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
"""The same, where the CPU takes long."""

on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
"""For what a CPU has no counterpart of."""
