"""What is to be predicted, and by which heads, as it is given. Checked before torch is imported."""

import os
from collections.abc import Iterable
from pathlib import Path

from cache.common.console import say
from cache.common.errors import DecodeError, MrrnError
from extract.datasets.paths import require_folder, scan_folder
from fuse.choice import Choose, RunChoice


def unless_bundled(choose: Choose, bundle: Path | None, clips: str | None = None) -> RunChoice | None:
    """The runs that are chosen if no bundle is given. Raises `MrrnError` if the bundle's folder does not exist."""
    if bundle is None:
        return choose(clips)
    if not bundle.is_dir():
        raise MrrnError(f"there is no folder {bundle}; --bundle takes one that `mrrn bundle` has written")
    return None


def find_files(given: Iterable[Path]) -> list[Path]:
    """The files given, and the video files below the folders given. Raises `MrrnError` naming what does not exist."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            root = require_folder(path, "give a video file or a folder of them")
            scan = scan_folder(root)
            for line in scan.passed_over_text():
                say(f"{path}: {line}", err=True)
            inside = [path / name for name in scan.videos]
            if not inside:
                raise MrrnError(f"the folder {path} holds no video files")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise MrrnError(f"there is no file or folder {path}; give videos with VIDEO= or as arguments")
    if all(map(_is_text, found)):
        raise DecodeError(f"no video could be predicted: {found[0]}: it holds text, or nothing, and is no video")
    return list(dict.fromkeys(found))


def _is_text(path: Path) -> bool:
    """Whether the file begins as no video does: with nothing, or with UTF-8 without control characters."""
    try:
        with path.open("rb") as file:
            begin = file.read(4096)
        text = begin.decode("utf-8", errors="strict" if len(begin) < 4096 else "ignore")
    except (OSError, UnicodeDecodeError):
        return False
    return len(text.encode()) > len(begin) - 4 and all(each.isprintable() or each.isspace() for each in text)


def growing(path: Path) -> Path:
    """The file or pipe to follow, by a name that other processes can open. Raises `MrrnError` if there is none."""
    path = Path("/dev/fd/0") if str(path) == "-" else path
    if not path.exists() or path.is_dir():
        raise MrrnError(f"there is no file or pipe {path} to follow; give one, or - for what is piped in")
    return Path(os.path.realpath(path.parent), path.name)  # not /proc/self
