"""cache.json: which features a cache holds, and how they were extracted."""

import contextlib
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from cache.common.errors import CacheError
from cache.common.files import from_json, raise_if_unreadable, read_sealed_json
from cache.fingerprint import DTYPE, FORMAT_VERSION, JSON, LEVELS, Fingerprint, Level, widths_of
from cache.shards import BACKENDS, Backend

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""`Path` has already made one slash of two."""


CacheId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


def new_cache_id() -> int:
    """Returns a random id for a cache."""
    return secrets.randbelow((1 << 31) - 1) + 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of cache.json; checked when made."""

    backend: Backend
    """Format of the shards."""
    fingerprint: Fingerprint
    settings: Mapping[str, JSON]
    """Options that the extraction was started with, so that it can be continued."""
    cache_id: CacheId = 0
    """Random; the cache's ledger has it too. 0 in a cache of an earlier version that was not written to since."""
    converted_from: CacheId = 0
    """Id of the cache that this one is a conversion of; 0 if it is none, or its original had no id."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise CacheError(f"format {self.backend!r} is unknown; choose one of {', '.join(BACKENDS)} (FORMAT=)")
        levels, views = (self.fingerprint.identity.get(name) for name in ("levels", "views"))
        if not levels or list(levels) != [level for level in LEVELS if level in levels]:
            raise CacheError(f"levels are {levels!r}; expected some of {', '.join(LEVELS)}, in this order")
        _ = self.widths
        if not views or not isinstance(views, list | tuple) or not all(isinstance(view, str) for view in views):
            raise CacheError(f"views are {views!r}; expected a list of names, the first one 'center'")

    @property
    def levels(self) -> tuple[Level, ...]:
        """From shallow to deep."""
        return tuple(self.fingerprint.identity["levels"])

    @property
    def widths(self) -> dict[Level, int]:
        """Channels of each level."""
        widths = widths_of(self.fingerprint.identity)
        return {level: widths[level] for level in self.levels}

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views; view 0 is the center."""
        return tuple(self.fingerprint.identity["views"])


def description_json(description: Description) -> dict[str, JSON]:
    """The content of cache.json. Levels, widths and views are in it twice, for readers that only look for those."""
    return {
        "format": FORMAT_VERSION,
        "backend": description.backend,
        "levels": description.levels,
        "widths": description.widths,
        "views": description.views,
        "dtype": DTYPE,
        "fingerprint": description.fingerprint.to_json(),
        "settings": dict(description.settings),
        "cache_id": description.cache_id,
        **({"converted_from": description.converted_from} if description.converted_from else {}),
    }


def description_of(value: JSON, where: str) -> Description:
    """The inverse of `description_json`. Raises `CacheError` naming `where` if `value` is something else."""
    try:
        if value["format"] != FORMAT_VERSION:
            raise CacheError(
                f"the cache {where} has format {value['format']!r}, this program reads {FORMAT_VERSION}; "
                "use the version that made it, or extract again into another folder"
            )
        return from_json(value, Description, exact=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"{where}/cache.json is not a cache's description: {error!r}; it was changed or is damaged"
        ) from error


def read_description(cache: Path) -> Description:
    """Read the cache.json of the cache in folder `cache`. Raises `CacheError` if it is missing or of another format."""
    file = cache / "cache.json"
    try:
        _check_folder(cache)
        return description_of(read_sealed_json(file), str(cache))
    except FileNotFoundError:
        raise CacheError(f"{cache} is not a feature cache: it has no cache.json. `make extract` makes one") from None
    except OSError as error:
        raise_if_unreadable(error, file)
        raise CacheError(f"{file} cannot be read: {error.strerror}") from error


def _check_folder(cache: Path) -> None:
    """Refuse addresses, links and devices before anything follows them."""
    if "::" in str(cache) or _ADDRESS.match(str(cache)):
        raise CacheError(f"{str(cache)!r} looks like an address; a cache is a folder on this machine")
    for name, is_kind in (("cache.json", stat.S_ISREG), ("dataset.json", stat.S_ISREG), ("shards", stat.S_ISDIR)):
        with contextlib.suppress(FileNotFoundError):
            if not is_kind((cache / name).lstat().st_mode):
                raise CacheError(f"{cache / name} is a link or a special file; caches have plain files and folders")
