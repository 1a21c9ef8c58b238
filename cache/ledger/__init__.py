"""The ledger: what became of each video, as values. `database.py` keeps them, `consistency.py` checks them."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, NamedTuple, get_args

import msgspec

from cache.common.files import ADDED_LATER

Status = Literal["pending", "done", "suspect", "failed"]

STATUSES: Final[tuple[Status, ...]] = get_args(Status)

WITH_FEATURES: Final[tuple[Status, ...]] = ("done", "suspect")
"""Statuses of videos whose features are in a shard."""

LEASE_SECONDS: Final = 120.0
"""How long a worker that gives no sign of life keeps its videos, and a driver its object store.

One that died on this machine loses them at once.
"""

WATCH_SECONDS: Final = LEASE_SECONDS / 2
"""Leases are renewed twice in that time."""

SHARD_NAME: Final = re.compile(r"\d{6,}-(?P<digest>[0-9a-f]{16})\.(h5|zarr)")
"""Number, first half of the hash over its bytes, format."""

HEADER_NOTE: Final = re.compile(r"decoded \d+ frames, \d+ declared")
"""Reason that names a header's count alone. It is a note; earlier versions made such a video suspect."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
"""Checked where a value comes from outside, by `from_json`."""


@dataclass(frozen=True, kw_only=True)
class FileState:
    """A video's file as it was extracted, so that a later extraction can tell whether it has changed."""

    size: Count
    """In bytes; 0 if a remote video's server does not say."""
    modified_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    """Its modification time, on the machine that extracted it; 0 if that is not known."""
    hash: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{32})?\Z")] = ""
    """xxh3_128 of its bytes; empty if it is not known, because it changed while the video was extracted.

    Of a remote video's ETag; empty if its server sends none.
    """


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one video."""

    video_id: str
    status: Status
    reason: str = ""
    """Why it failed or is suspect."""
    num_frames: Count = 0
    """Frames decoded and cached."""
    declared_frames: Count | None = None
    """Frames that the file's header declares; None if it does not."""
    decoder_errors: Count = 0
    """Errors that the decoder reported."""
    seconds: float = 0.0
    """Time spent decoding."""
    file: FileState | None = field(default=None, compare=False, metadata=ADDED_LATER)
    """The file; None where `Ledger.outcomes` reads it."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status of video {self.video_id!r} is {self.status!r}; expected one of {STATUSES}")

    @property
    def is_header_doubt(self) -> bool:
        """Whether it is suspect for nothing but the count in its header."""
        return self.status == "suspect" and not self.decoder_errors and bool(HEADER_NOTE.fullmatch(self.reason))


class ClaimedVideo(NamedTuple):
    """One video to work on."""

    id: str
    path: str
    """Relative to the dataset's root."""


@dataclass(frozen=True)
class Claim:
    """The right to commit some videos, until somebody else takes them because it is not renewed."""

    owner: str
    token: int
    """Fencing token: later claims have larger ones, and a token that was taken away never comes back."""
    videos: tuple[ClaimedVideo, ...]


@dataclass(frozen=True, kw_only=True)
class HeldLease:
    """Who holds what in a cache."""

    owner: str
    """See `cache.processes.this_process`."""
    token: int
    """Of the claim; 0 is the lease of an object store's driver."""
    expires: float
    """Unix time by its owner's clock, for people; each renewal changes it."""
    num_videos: int


@dataclass(frozen=True, kw_only=True)
class ShardRow:
    """The ledger's row of one shard."""

    number: Count
    name: Annotated[str, msgspec.Meta(pattern=rf"\A{SHARD_NAME.pattern}\Z")]
    """Of the file or folder in `shards/`."""
    digest: str
    """Over its bytes; see `cache.shards.writer.hash_files`."""
    content: str
    """Over its index; see `ShardIndex.content`."""
    num_videos: Count
    num_frames: Count
    num_bytes: Count
    environment: str
    """JSON: the fingerprint's environment fields as they were when this shard was made."""


class Place(NamedTuple):
    """Where a video's features are."""

    video_id: str
    shard: int
    position: int
    num_frames: int
