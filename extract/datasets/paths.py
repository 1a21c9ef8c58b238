"""Video files below a dataset's root: how they are found, and which names and links are refused."""

import errno
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.common.errors import DatasetError, UnsafePathError
from cache.common.text import some, visible
from cache.dataset import check_relative_path

_SUFFIXES = {
    "mov": "3g2 3gp 3gp2 3gpp 3gpp2 cmfv f4v insv ismv m4v mj2 mov mp4 mp4v mqv qt",
    "avi": "amv avi divx xvid",
    "matroska": "mk3d mkv webm",
    "mpegts": "m2t m2ts mts tod tp trp ts",
    "flv": "flv",
    "ogg": "ogm ogv",
    "asf": "asf dvr-ms wm wmv",
    "mpeg": "evo m2p mod mpe mpeg mpg mpg2 vob vro",
    "mpegvideo": "m1v m2v mp2v mpv",
}
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffixes in _SUFFIXES.values() for suffix in suffixes.split())
"""Suffixes of the containers that decoding knows, in any case. Whether a file decodes shows when it is opened."""

SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "~snapshot", "@sharebin", "@tmp"),
        *("@__thumb", "network trash folder", "temporary items", "thevolumesettingsfolder", "__macosx"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "lost+found"),
    )
)
"""Folders in which systems keep thumbnails, snapshots and deleted files; not looked into, like hidden ones."""


LONGEST_FOLDER = 4096 - 256
"""Bytes of a folder's path from which on Linux may refuse (PATH_MAX) the files in it, whose names have up to 255."""


@dataclass(frozen=True)
class FolderScan:
    """What is below a folder; paths are relative to it and '/'-separated."""

    videos: tuple[str, ...]
    """In order of their names."""
    passed_over: Mapping[str, int]
    """Number of other files by suffix, in lower case."""
    unread: tuple[str, ...]
    """Hidden and system folders, and those of too long a path, which were not looked into."""
    folders: tuple[str, ...]
    """Names of the folders directly in it that were looked into."""

    def passed_over_text(self) -> list[str]:
        """What was passed over, a line for each kind, for the user."""
        files = ", ".join(f"{count:,} {visible(suffix)}" for suffix, count in sorted(self.passed_over.items()))
        texts = {"files passed over, by suffix": files, "folders not looked into": some(self.unread)}
        return [f"{text}: {what}" for text, what in texts.items() if what]


def is_video_name(name: str, suffixes: Collection[str] = VIDEO_SUFFIXES) -> bool:
    """Whether the name has the suffix of a video file."""
    return _suffix(name) in suffixes


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a million names: no Path objects)


def require_folder(folder: Path, advice: str) -> Path:
    """The folder with links resolved. Raises DatasetError, with `advice` (what to do), if there is none."""
    if not folder.is_dir():
        raise DatasetError(f"looked for the folder {folder}, which is not there; {advice}")
    return folder.resolve()


def is_file(path: Path) -> bool:
    """As `Path.is_file`, also for names that are too long for any file system here."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def check_path(path: str, where: str) -> str:
    """Returns `path`. Raises UnsafePathError, starting with `where` (file and line), if it can leave its root."""
    try:
        return check_relative_path(path)
    except UnsafePathError as error:
        raise UnsafePathError(f"{where}: {error}") from None


def check_link(root: Path, path: str, where: str) -> None:
    """Raises UnsafePathError if `root / path`, all links followed, is not below `root` (itself without links)."""
    target = os.path.realpath(f"{root}/{path}")  # unlike Path.resolve, does not raise on circles of links
    if target != str(root) and not target.startswith(f"{str(root).rstrip('/')}/"):
        raise UnsafePathError(
            f"{where}: {path!r} is a link that leads outside {root}, to {target}; "
            "put the files themselves there, or give the folder that holds them as the data folder"
        )


def find_videos(root: Path) -> tuple[str, ...]:
    """The videos that `scan_folder` finds."""
    return scan_folder(root).videos


def scan_folder(root: Path, suffixes: Collection[str] = VIDEO_SUFFIXES) -> FolderScan:
    """All files below `root` (resolved), at any depth; videos are those with one of the `suffixes`.

    Raises DatasetError for links that lead outside, links to folders (they may form circles), names of videos that are
    not UTF-8, and those that check_relative_path refuses.
    """
    videos: list[str] = []
    passed_over, unread, folders = Counter[str](), list[str](), [""]
    for inside in folders:  # grows on the way
        if len(os.fsencode(root / inside)) > LONGEST_FOLDER:
            unread.append(f"{inside[:40]}… (a path of more than {LONGEST_FOLDER:,} bytes)")
            continue
        for entry in _entries(root / inside):
            path, is_folder = inside + entry.name, entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(".") or (is_folder and entry.name.lower() in SYSTEM_FOLDERS):
                unread += [path] if is_folder else []
                passed_over["hidden"] += not is_folder
            elif is_folder:
                folders.append(f"{path}/")
            elif (
                _is_video_link(root, path, suffixes)
                if entry.is_symlink()
                else entry.is_file() and is_video_name(path, suffixes)
            ):
                videos.append(path)  # bytes that are not UTF-8 as Python's lone surrogates
            elif is_video_name(path):
                passed_over["links to nothing, or pipes"] += 1
            else:
                passed_over[_suffix(path) or "without a suffix"] += 1
    if undecodable := [path for path in videos if path.encode(errors="ignore").decode() != path]:
        raise DatasetError(
            f"{root}: {len(undecodable):,} file names are not UTF-8: {some(undecodable)}; rename them "
            "(for names in Latin-1: `convmv -r -f latin1 -t utf8 --notest FOLDER`)"
        )
    return FolderScan(
        videos=tuple(sorted(check_path(path, str(root)) for path in videos)),
        passed_over=+passed_over,
        unread=tuple(sorted(unread)),
        folders=tuple(sorted(path[:-1] for path in folders if path.count("/") == 1)),
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DatasetError(f"folder {folder} cannot be read: {error.strerror}; change its permissions") from error


def _is_video_link(root: Path, path: str, suffixes: Collection[str]) -> bool:
    link = root / path
    if not link.is_dir() and not is_video_name(path, suffixes):
        return False
    check_link(root, path, str(root))
    if link.is_dir():
        raise DatasetError(f"{link} is a link to a folder; links to folders below a data folder are not followed")
    return link.is_file()
