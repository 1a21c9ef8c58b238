"""Fixtures for caches made to deceive."""

import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from tests.helpers.untrusted import Watch, shard_data


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is none of the cache's business, with the very arrays that the shard should have."""
    folder = tmp_path / "outside"
    folder.mkdir()
    data = shard_data()
    with h5py.File(folder / "secret.h5", "w") as file:
        for name, array in {**data.features, "offsets": data.offsets}.items():
            file[name] = array
    (folder / "secret.bin").write_bytes(data.features["low"].tobytes())
    return folder


@pytest.fixture
def watch(outside: Path) -> Iterator[Watch]:
    if not sys.platform.startswith("linux"):
        pytest.skip("asks the kernel who opens files, which is Linux's inotify")
    watch = Watch(outside)
    yield watch
    watch.close()
