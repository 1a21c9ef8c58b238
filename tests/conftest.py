"""Fixtures that many tests use."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MRRN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real videos, official splits and stand-in weights; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real videos and splits in {SHARED} (MRRN_SHARED= names another folder)")
    return SHARED
