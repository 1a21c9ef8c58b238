"""What the ledger's rows say, as values: outcomes of videos, claims on them, shards and places in them."""

import re
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from cache.errors import DamageError

Status = Literal["pending", "done", "suspect", "failed"]

STATUSES: Final[tuple[Status, ...]] = get_args(Status)

SHARD_NAME: Final = re.compile(r"\d{6,}-(?P<digest>[0-9a-f]{16})\.(h5|zarr)")
"""Number, beginning of the hash over its bytes, format."""

WITH_FEATURES: Final[tuple[Status, ...]] = ("done", "suspect")
"""Statuses of videos whose features are in a shard."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one video."""

    video_id: str
    status: Status
    reason: str = ""
    """Why it failed or is suspect."""
    num_frames: int = 0
    """Frames decoded and cached."""
    declared_frames: int | None = None
    """Frames the file's header promises; None where it does not say."""
    decoder_errors: int = 0
    """Errors the decoder reported on the way."""
    seconds: float = 0.0
    """Time spent decoding."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status of video {self.video_id!r} is {self.status!r}; expected one of {STATUSES}")


class ClaimedVideo(NamedTuple):
    """One video to work on."""

    id: str
    path: str
    """Relative to the dataset's root."""


@dataclass(frozen=True)
class Claim:
    """The right to commit some videos, until somebody else takes them after `expires`."""

    owner: str
    token: int
    """Fencing token: later claims have larger ones, and a token that was taken away never comes back."""
    videos: tuple[ClaimedVideo, ...]
    expires: float
    """Unix time in seconds."""


@dataclass(frozen=True, kw_only=True)
class ShardRow:
    """What the ledger knows of one shard."""

    number: int
    name: str
    """Of the file or folder in `shards/`."""
    digest: str
    """Over its bytes; see `cache.shards.writing.hash_files`."""
    content: str
    """Over what it says; see `ShardIndex.content`."""
    num_videos: int
    num_frames: int
    num_bytes: int
    environment: str
    """JSON: the fingerprint's environment fields as they were when this shard was made."""

    def __post_init__(self) -> None:
        numbers = (self.number, self.num_videos, self.num_frames, self.num_bytes)
        texts = (self.name, self.digest, self.content, self.environment)
        plain = all(isinstance(n, int) and n >= 0 for n in numbers) and all(isinstance(t, str) for t in texts)
        if not plain or not SHARD_NAME.fullmatch(self.name):
            raise DamageError(f"the ledger lists shard {self.name!r}, which no ledger of ours does; it is damaged")


class Place(NamedTuple):
    """Where a video's features are."""

    video_id: str
    shard: int
    position: int
    num_frames: int
