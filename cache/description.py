"""What a cache says of itself: cache.json, and how a new cache comes to be."""

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.common.errors import CacheError
from cache.common.files import (
    fsync_folder,
    make_folder_durably,
    read_sealed_json,
    write_bytes_durably,
    write_sealed_json,
)
from cache.dataset import Dataset, write_dataset
from cache.fingerprint import DTYPE, FORMAT_VERSION, JSON, LEVELS, Fingerprint, Level
from cache.ledger import Ledger
from cache.shards import BACKENDS, Backend

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""`Path` has already made one slash of two."""

_README = """\
This folder is a feature cache of MRRN: what a frozen image network says of every frame of the videos of one dataset.
Heads are trained from it without the videos. It took hours to make; keep it, or make it again with `make extract`.

  cache.json      what the features are: format, levels, views, settings, fingerprint
  dataset.json    the videos, their classes and splits
  ledger.sqlite   what became of each video: done, suspect, failed and why (its -wal, where there is one, belongs to it)
  shards/         the features: write-once files, HDF5 or Zarr v3

Each shard holds several videos: video_id [N], offsets [N + 1] (video i has frames offsets[i] to offsets[i + 1]),
pts_seconds [F], low, mid, high [views, F, 128 | 256 | 512] float16, checksum [N, levels, views] (xxh3_64).

  python -m cache info FOLDER      what is in it
  python -m cache verify FOLDER    whether every byte is as it was written

Do not add, rename or change files here. What is in shards/ without a row in the ledger is removed.
"""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of cache.json; checked when made."""

    backend: Backend
    """Format of the shards."""
    fingerprint: Fingerprint
    settings: Mapping[str, JSON]
    """How extraction was asked for, so that the same can be continued."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise CacheError(f"format {self.backend!r} is unknown; choose one of {', '.join(BACKENDS)} (FORMAT=)")
        levels, views = (self.fingerprint.identity.get(name) for name in ("levels", "views"))
        if not levels or list(levels) != [level for level in LEVELS if level in levels]:
            raise CacheError(f"levels are {levels!r}; expected some of {', '.join(LEVELS)}, in this order")
        if not views or not isinstance(views, list | tuple) or not all(isinstance(view, str) for view in views):
            raise CacheError(f"views are {views!r}; expected a list of names, the first one 'center'")
        if not isinstance(self.settings, Mapping):
            raise CacheError(f"settings are {self.settings!r}; expected an object")

    @property
    def levels(self) -> tuple[Level, ...]:
        """From shallow to deep."""
        return tuple(self.fingerprint.identity["levels"])

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views; view 0 is the center."""
        return tuple(self.fingerprint.identity["views"])


def description_json(description: Description) -> dict[str, JSON]:
    """What cache.json says. Levels and views stand in it twice, for people and programs that only look for those."""
    return {
        "format": FORMAT_VERSION,
        "backend": description.backend,
        "levels": description.levels,
        "views": description.views,
        "dtype": DTYPE,
        "fingerprint": description.fingerprint.to_json(),
        "settings": dict(description.settings),
    }


def description_of(value: JSON, where: str) -> Description:
    """The inverse; CacheError where `where` is of another format or no cache's description."""
    try:
        if value["format"] != FORMAT_VERSION:
            raise CacheError(
                f"the cache {where} has format {value['format']!r}, this program reads {FORMAT_VERSION}; "
                "use the version that made it, or extract again into another folder"
            )
        return Description(
            backend=value["backend"],
            fingerprint=Fingerprint.from_json(value["fingerprint"]),
            settings=value["settings"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"{where}/cache.json is not a cache's description: {error!r}; it was changed or is damaged"
        ) from error


def read_description(cache: Path) -> Description:
    """Read the cache.json of the cache in folder `cache`; CacheError where it is missing or of another format."""
    file = cache / "cache.json"
    _check_folder(cache)
    try:
        return description_of(read_sealed_json(file), str(cache))
    except FileNotFoundError:
        raise CacheError(f"{cache} is not a feature cache: it has no cache.json. `make extract` makes one") from None
    except OSError as error:
        raise CacheError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(f"{file} is not a cache's description: {error!r}; it was changed or is damaged") from error


def _check_folder(cache: Path) -> None:
    """Refuse what could lead elsewhere before anything of it is followed: addresses, links, devices."""
    if "::" in str(cache) or _ADDRESS.match(str(cache)):
        raise CacheError(f"{str(cache)!r} looks like an address; a cache is a folder on this machine")
    for name, is_kind in (("cache.json", stat.S_ISREG), ("dataset.json", stat.S_ISREG), ("shards", stat.S_ISDIR)):
        with contextlib.suppress(FileNotFoundError):
            if not is_kind((cache / name).lstat().st_mode):
                raise CacheError(f"{cache / name} is a link or something odd; caches have plain files and folders")


def create_cache(
    path: Path, dataset: Dataset, description: Description, complete: Callable[[Path], None] = lambda _: None
) -> None:
    """Make an empty cache at `path`, where nothing may be yet; it appears there complete or not at all.

    `complete` adds to the folder before it gets its name.
    """
    if path.exists():
        raise CacheError(f"{path} is there already; open it, or choose another folder (WORK= or --work)")
    make_folder_durably(path.parent)
    temporary = path.parent / f".tmp-{os.getpid()}-{path.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "shards").mkdir(parents=True)
        videos = sorted((video.id, video.path) for video in dataset.videos)
        Ledger.create(temporary / "ledger.sqlite", videos).close()
        # Each of these also makes safe that what was made before it is in the folder.
        write_sealed_json(temporary / "cache.json", description_json(description))
        write_dataset(temporary / "dataset.json", dataset)
        complete(temporary)
        write_bytes_durably(temporary / "README.txt", _README.encode())
        temporary.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise CacheError(f"the cache {path} cannot be made: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
