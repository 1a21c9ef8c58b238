"""Publish a cache: a folder of files that never change, which any web server can serve, with an index and a card.

    index.json               each object with size and SHA-256; written last, so it never names what is not there
    cache.json, datasets/, records/, shards/    as in an object store (`cache/remote/log.py`)
    README.md, card.json     the data card, for people and for programs

The shards are always HDF5: one file each. The same command continues what was killed, and adds what is new.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.common.errors import CacheError
from cache.common.files import (
    discard_leftovers,
    make_folder_durably,
    plain_files,
    read_bounded,
    read_json,
    write_bytes_durably,
    write_json_durably,
)
from cache.common.progress import progress
from cache.common.text import visible
from cache.convert import copy_all
from cache.description import Description, new_cache_id
from cache.export import held_folder
from cache.fingerprint import JSON, LEVELS
from cache.remote.attachment import Attachment, find_cache, make_in_store, required
from cache.remote.folder import FolderObjects, NoLease
from cache.remote.index import MAX_BYTES, NAME, Entry, Index, check_successor, index_bytes, index_of, sha256_of
from cache.remote.log import object_of, record_name
from cache.remote.storage import ObjectStorage
from cache.storage import create_folder
from cache.store import FeatureCache

_OURS = {"cache.json", "datasets", "records", "shards", NAME, "card.json", "README.md"}


def publish(source: FeatureCache, folder: Path, source_text: str | None, licence: str | None) -> str:
    """Make `folder` hold all that `source` holds. Returns the SHA-256 of the index.

    `source_text`, `licence`: what the features are made from, and what one may do with them; needed the first time.
    Raises `CacheError` if `source` is unfinished, or `folder` is something else.
    """
    source.require_finished()
    _check_folder(folder)
    card = _about(folder, source_text, licence)
    make_folder_durably(folder)
    objects = FolderObjects(folder)
    work = folder.with_name(f".publishing-{folder.name}")
    with held_folder(work):
        for each in (folder, folder / "datasets", folder / "records", folder / "shards"):
            discard_leftovers(each)
        with _published(source, objects, work / "cache") as made:
            copy_all(source, made)
            content = index_bytes(_entries(made, objects))
            digest = sha256_of(content)
            there = _old_index(folder)
            if there is not None:
                check_successor(there, index_of(content, NAME), str(folder))
            card |= _facts(made, digest)
            write_json_durably(folder / "card.json", card)
            write_bytes_durably(folder / "README.md", _readme(card).encode())
            write_bytes_durably(folder / NAME, content)
    return digest


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else {""}
    if strange := sorted(name for name in names - _OURS if not name.startswith(".tmp-")):
        raise CacheError(
            f"{folder} is there already and is no published cache (it has {visible(strange[0])!r}); choose a new folder"
        )


def _about(folder: Path, source_text: str | None, licence: str | None) -> dict[str, JSON]:
    """What only the publisher knows; what is not given is as it was."""
    try:
        before = read_json(folder / "card.json")
    except (OSError, ValueError):
        before = {}
    about = {"source": source_text or before.get("source"), "licence": licence or before.get("licence")}
    for name, option in (("source", "--source"), ("licence", "--license")):
        if not about[name]:
            raise CacheError(
                f"a data card needs {option}: "
                + (
                    "which videos these are features of, and where they are from"
                    if name == "source"
                    else "what others may do with the features (a name such as CC-BY-4.0, or a sentence)"
                )
            )
        about[name] = " ".join(visible(str(about[name])).split())
    return {"format": 1, **about}


def _old_index(folder: Path) -> Index | None:
    try:
        return index_of(read_bounded(folder / NAME, MAX_BYTES), str(folder / NAME))
    except FileNotFoundError:
        return None


@contextmanager
def _published(source: FeatureCache, objects: FolderObjects, work: Path) -> Iterator[FeatureCache]:
    """The published cache, made if there is none, opened to be added to; `work` is its working copy."""
    if find_cache(objects) is None:
        settings = {name: value for name, value in source.settings.items() if not _is_private(name, value)}
        made = Description(
            backend="h5",
            fingerprint=source.fingerprint,
            settings=settings,
            cache_id=new_cache_id(),
            converted_from=source.storage.description.cache_id,
        )
        make_in_store(objects, source.dataset, made)
    description, first = required(objects)
    origin = source.storage.description.cache_id
    ours = (origin and description.converted_from == origin) or first == source.dataset
    if description.fingerprint.digest != source.fingerprint.digest or not ours:
        raise CacheError(f"{objects.folder} has another cache, of {first.name}; choose a new folder")
    create_folder(work, first, description)
    attachment = Attachment(location=str(objects.location), driver="publisher", copy_bytes=1)
    storage = ObjectStorage(work, description, attachment, objects)
    storage.lease = NoLease(objects, "publisher")
    storage.address = str(objects.folder)
    with FeatureCache(storage) as cache:
        if cache.dataset != source.dataset:
            cache.replace_dataset(source.dataset)
        yield cache


def _is_private(name: str, value: JSON) -> bool:
    """Where the publisher's files are is nobody's business, and of no use."""
    return name == "data" or (isinstance(value, str) and Path(value).is_absolute())


def _entries(made: FeatureCache, objects: FolderObjects) -> dict[str, Entry]:
    """All that readers need."""
    with made.ledger.reading() as connection:
        records = range(made.ledger.applied(connection))
    paths = [objects.folder / "cache.json", *plain_files(objects.folder / "datasets")]
    paths += [objects.folder / record_name(position) for position in records]
    paths += [objects.folder / object_of(row) for row in made.ledger.shards()]
    entries = {}
    with progress("hashing", len(paths), "files") as shown:
        for done, path in enumerate(paths, 1):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries[str(path.relative_to(objects.folder))] = Entry(num_bytes=path.stat().st_size, sha256=digest)
            shown.update(done)
    return entries


# -- the card ----------------------------------------------------------------------------------------------------------


def _facts(made: FeatureCache, digest: str) -> dict[str, JSON]:
    identity = made.fingerprint.identity
    return {
        "dataset": made.dataset.name,
        "classes": len(made.dataset.classes),
        "samples": len(made.dataset.samples),
        "splits": list(made.dataset.split_numbers),
        "videos": made.ledger.counts(),
        "frames": made.ledger.num_frames(),
        "bytes": sum(row.num_bytes for row in made.ledger.shards()),
        "backbone": identity.get("backbone"),
        "weights": identity.get("weights"),
        "weights_sha256": identity.get("weights_sha256"),
        "widths": made.widths,
        "views": list(made.views),
        "fingerprint": made.fingerprint.digest,
        "index_sha256": digest,
    }


def _readme(card: dict[str, Any]) -> str:
    videos, name = card["videos"], card["dataset"]
    features = videos["done"] + videos["suspect"]
    failed = f", {videos['failed']:,} that could not be read" if videos["failed"] else ""
    level = "" if len(card["widths"]) == len(LEVELS) else [*card["widths"]][-1]
    use = f"make train DATASET={name} LEVEL={level}" if level else f"make fuse DATASET={name}"
    widths = ", ".join(f"{level} [{width}]" for level, width in card["widths"].items())
    return f"""# Features of {name}

For each frame of {features:,} videos{failed}: the outputs of a frozen network, {widths}, as float16.
{card["frames"]:,} frames, {card["bytes"] / 1e6:,.1f} MB. With MRRN heads for action recognition are trained from them
without the videos.

| | |
| --- | --- |
| Source | {card["source"]} |
| Licence | {card["licence"]} |
| Network | {card["backbone"]}, weights {card["weights"]} |
| Labels | {card["samples"]:,} samples of {card["classes"]:,} classes, splits {", ".join(map(str, card["splits"]))} |
| Views | {", ".join(card["views"])} |
| Fingerprint | `{card["fingerprint"]}` |
| Index | sha256 `{card["index_sha256"]}` |

## Use

With this folder on a web server, at https://HOST/PATH:

    {use} CACHE=https://HOST/PATH

or, step by step,

    mrrn cache attach https://HOST/PATH
    mrrn train --dataset {name}{level and f" --level {level}"}

Nothing is extracted and no video is needed. Each byte is checked against `index.json`, whose SHA-256 is shown when it
is first attached; compare it with the one above if you have it from somebody you trust. To serve the folder from this
machine: `python -m http.server --bind 127.0.0.1`, then `CACHE=http://127.0.0.1:8000`.
"""
