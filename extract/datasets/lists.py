"""Split lists: text files that assign each sample to a half of a split. Every error names file and line."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.files import PLAIN_BYTES, read_bounded
from cache.dataset import ADDRESS, Dataset, Half, Sample, Video, video_id
from extract.datasets.paths import check_path, is_video_name

LONGEST_LINE = 4096
"""In characters; systems allow no longer paths."""

_NO_TEXT = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x1f\x8b")
"""First bytes of .xlsx, .ods and .zip, of .xls, and of .gz."""


@dataclass(frozen=True)
class Line:
    """A line that is not blank."""

    text: str
    """Without line end and spaces around it, tabs as spaces."""
    where: str
    """File and line number, for messages."""


def read_text(path: Path, advice: str, say: Callable[[str], None] = lambda _: None) -> str:
    """The file's text, UTF-8 or else Latin-1, which is said. Raises DatasetError, with `advice`, if it is no text."""
    try:
        content = read_bounded(path.resolve(), PLAIN_BYTES)
    except FileNotFoundError:
        raise DatasetError(f"looked for the file {path}, which is not there; {advice}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"{path} cannot be read: {reason}; {advice}") from error
    if content.startswith(_NO_TEXT):
        raise DatasetError(f"{path} is a spreadsheet's own file or an archive: save it as CSV UTF-8")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or bytes(4) in (content[0:8:2], content[1:8:2]):
        raise DatasetError(f"{path} is UTF-16: save it as UTF-8 (in a spreadsheet's menu: CSV UTF-8)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        say(f"{path} is not UTF-8 and is read as Latin-1; if names come out wrong, save it as UTF-8")
        return content.decode("latin-1")


def read_lines(path: Path, advice: str) -> Iterator[Line]:
    """Lines of a list, whatever system wrote it (LF, CRLF, trailing spaces, a byte order mark)."""
    for number, line in enumerate(read_text(path, advice).split("\n"), start=1):
        text = line.strip(" \t\r").replace("\t", " ")
        if len(text) > LONGEST_LINE:
            raise DatasetError(f"{path}, line {number}: a line of {len(text):,} characters; this is not a split list")
        if text:
            yield Line(text, f"{path}, line {number}")


@dataclass
class _ListedSample:
    sample: Sample
    """Without its halves."""
    where: str
    """File and line that named it first."""
    halves: dict[int, tuple[Half, str]]
    """For each split the half, and the file and line that say so."""


Span = tuple[float, float] | None
"""As `Sample.span`."""


def _name(path: str, span: Span) -> str:
    return f"video {path!r}" if span is None else f"span {span[0]:g},{span[1]:g} of video {path!r}"


class SplitLists:
    """Collects what the lists of a dataset say about each sample. Raises DatasetError on contradictions."""

    def __init__(self, *, remote: bool = False, files: bool = True) -> None:
        """`remote`: addresses, https:// and s3://, are allowed for paths. `files`: paths name files, not just ids."""
        self._remote, self._files = remote, files
        self._listed: dict[tuple[str, Span], _ListedSample] = {}
        self._path_of_id: dict[str, tuple[str, str]] = {}
        """For each id the path, and the file and line that named it first."""
        self._id_of_path: dict[str, str] = {}

    def add(
        self,
        path: str,
        label: int | None,
        where: str,
        *,
        span: Span = None,
        group: str | None = None,
        line: int | None = None,
    ) -> None:
        """A sample and its label; repeating the same is fine. Raises DatasetError for unsafe paths and repeated ids."""
        if known := self._listed.get((path, span)):
            if (known.sample.label, known.sample.group) != (label, group):
                what = "class" if known.sample.label != label else "group"
                raise DatasetError(f"{where}: {_name(path, span)} has another {what} than in {known.where}")
            return
        if path not in self._id_of_path:
            self._add_video(path, where)
        sample = Sample(video=self._id_of_path[path], span=span, label=label, group=group, line=line)
        self._listed[path, span] = _ListedSample(sample, where, {})

    def _add_video(self, path: str, where: str) -> None:
        if not (self._remote and ADDRESS.fullmatch(path)):
            check_path(path, where)
        if self._files and not is_video_name(path):
            raise DatasetError(f"{where}: {path!r} does not end as a video file's name does, such as .avi or .mp4")
        id_ = video_id(path) if is_video_name(path) else path
        other, other_where = self._path_of_id.setdefault(id_, (path, where))
        if other != path:
            raise DatasetError(
                f"{where}: {path!r} has the same id as {other!r} ({other_where}); rename one of the files"
            )
        self._id_of_path[path] = id_

    def put(self, path: str, split: int, half: Half, where: str, *, span: Span = None) -> None:
        """Assign an added sample to a half of a split. Raises DatasetError if the split already has it."""
        halves = self._listed[path, span].halves
        if split in halves:
            before, before_where = halves[split]
            what = f"in both halves of split {split}" if before != half else f"twice in split {split}"
            raise DatasetError(
                f"{_name(path, span)} is {what}: {before} by {before_where}, {half} by {where}; remove one of the lines"
            )
        halves[split] = (half, where)

    def dataset(self, name: str, source: str, classes: Sequence[str]) -> Dataset:
        """The dataset of all samples and their videos, ordered by id."""
        listed = sorted(self._listed.values(), key=lambda one: (one.sample.video, one.sample.span or ()))
        return Dataset(
            name=name,
            source=source,
            classes=tuple(classes),
            videos=tuple(Video(id=id_, path=path) for id_, (path, _) in sorted(self._path_of_id.items())),
            samples=tuple(
                replace(one.sample, splits={split: half for split, (half, _) in one.halves.items()}) for one in listed
            ),
        )
