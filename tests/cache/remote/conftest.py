"""A filled cache in an object store in memory."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cache.remote.test_objects import create
from tests.helpers.cache import fill
from tests.helpers.objects import content, names, stores_in_memory


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A working copy of a cache of three shards, and the objects in its store; made once."""
    folder = tmp_path_factory.mktemp("template") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        store = stores_in_memory(patch)
        with create(folder) as cache:
            fill(cache)
        return folder, {name: content(store, name) for name in names(store, "")}


@pytest.fixture
def filled(tmp_path: Path, memory_store: Any, template: tuple[Path, dict[str, bytes]]) -> Path:
    """The same for one test."""
    import obstore

    shutil.copytree(template[0], tmp_path / "cache")
    for name, bytes_ in template[1].items():
        obstore.put(memory_store, name, bytes_)
    return tmp_path / "cache"
