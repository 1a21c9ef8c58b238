"""Video files below a dataset's root: how they are found, and which names and links are refused."""

import os
from collections.abc import Iterator
from pathlib import Path

from cache.common.errors import DatasetError, UnsafePathError
from cache.common.text import some
from cache.dataset import check_relative_path

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
"""Suffixes of video files, in any case. Whether a file can be decoded shows when it is opened."""


def is_video_name(name: str) -> bool:
    """Whether the name has the suffix of a video file."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122 (a million names: no Path objects)


def require_folder(folder: Path, advice: str) -> Path:
    """The folder with links resolved. Raises DatasetError, with `advice` (what to do), if there is none."""
    if not folder.is_dir():
        raise DatasetError(f"looked for the folder {folder}, which is not there; {advice}")
    return folder.resolve()


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
    """Paths of all video files below `root` (resolved), relative and '/'-separated, in order of their names.

    Hidden files and folders (`.name`) are skipped. Raises DatasetError for links that lead outside, links to folders
    (they may form circles), names that are not UTF-8, and names that check_relative_path refuses.
    """
    found: list[str] = []
    undecodable: list[str] = []
    for path in _walk(root):
        (found if _is_utf8(path) else undecodable).append(path)
    if undecodable:
        raise DatasetError(
            f"{root}: {len(undecodable):,} file names are not UTF-8: {some(undecodable)}; rename them "
            "(for names in Latin-1: `convmv -r -f latin1 -t utf8 --notest FOLDER`)"
        )
    return tuple(sorted(check_path(path, str(root)) for path in found))


def _walk(root: Path) -> Iterator[str]:
    """Relative path of each video file; bytes that are not UTF-8 come as Python's lone surrogates."""
    folders = [""]
    while folders:
        inside = folders.pop()
        for entry in _entries(root / inside):
            path = inside + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                if _is_video_link(root, path):
                    yield path
            elif entry.is_dir():
                folders.append(f"{path}/")
            elif entry.is_file() and is_video_name(entry.name):
                yield path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DatasetError(f"folder {folder} cannot be read: {error.strerror}; change its permissions") from error


def _is_video_link(root: Path, path: str) -> bool:
    link = root / path
    if not link.is_dir() and not is_video_name(path):
        return False
    check_link(root, path, str(root))
    if link.is_dir():
        raise DatasetError(f"{link} is a link to a folder; links to folders below a data folder are not followed")
    return link.is_file()


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
