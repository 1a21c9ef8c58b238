"""Scores: the softmax of each test clip, with its video id. Written by training, read by fusion.

Shapes: N clips, K classes.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cache.aggregate import clips_to_videos
from cache.common.errors import ScoreError
from cache.common.files import raise_if_unreadable, read_bounded, write_bytes_durably

SCORES_BYTES = 1 << 30
"""Bytes of a file of scores at most; UCF-101's 3,783 test videos of 20 clips have 31 million."""

_KINDS = {"video_ids": "U", "spans": "i", "labels": "i", "softmax": "f", "classes": "U", "run": "U"}
"""The kind of each array's dtype."""


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Softmax scores of the clips of one run. Raises `ScoreError` if the arrays are inconsistent or no softmax."""

    video_ids: NDArray[np.str_]
    """`[N]`: id of each clip's sample (a video, or a span of one); the clips of one sample follow one another."""
    spans: NDArray[np.int64]
    """`[N, 2]`: first frame of the clip in its sample and one past its last, counted at the clip rule's rate."""
    labels: NDArray[np.int64]
    """`[N]`: index of the video's class."""
    softmax: NDArray[np.float32]
    """`[N, K]`: each row sums to 1."""
    classes: NDArray[np.str_]
    """`[K]`: class names in label order."""
    run: Mapping[str, Any]
    """Origin of the scores: dataset, split, level, pooling, seed, recipe, the cache's fingerprint; JSON values."""

    def __post_init__(self) -> None:
        fingerprint = self.run.get("fingerprint", {}) if isinstance(self.run, Mapping) else None
        if not (isinstance(fingerprint, Mapping) and isinstance(fingerprint.get("identity", {}), Mapping)):
            raise ScoreError("scores: run and its fingerprint are not mappings of names to values")
        clips, classes = len(self.video_ids), len(self.classes)
        expected = {"video_ids": (clips,), "spans": (clips, 2), "labels": (clips,), "softmax": (clips, classes)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ScoreError(f"scores: {name} has shape {getattr(self, name).shape}; expected {shape}")
        sums_N = self.softmax.sum(axis=1, dtype=np.float64)
        problems = {
            "scores of video {} are not finite": ~np.isfinite(self.softmax).all(axis=1),
            "scores of video {} are not a softmax: negative, or not summing to 1": (np.abs(sums_N - 1) > 1e-3)
            | (self.softmax < 0).any(axis=1),
            f"label of video {{}} is outside 0..{classes - 1}": (self.labels < 0) | (self.labels >= classes),
        }
        for problem, wrong_N in problems.items():
            if wrong_N.any():
                raise ScoreError(problem.format(repr(str(self.video_ids[wrong_N.argmax()]))))
        changes = int((self.video_ids[1:] != self.video_ids[:-1]).sum()) + 1 if clips else 0
        if changes != len(set(self.video_ids.tolist())):
            raise ScoreError("scores: the clips of one video do not follow one another")

    @property
    def label_of(self) -> dict[str, int]:
        """Label of each scored video."""
        return dict(zip(self.video_ids.tolist(), self.labels.tolist(), strict=True))

    def videos(self) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
        """The scored videos in order: ids, mean softmax of each one's clips `[videos, K]`, and labels `[videos]`."""
        ids, probabilities = clips_to_videos(self.video_ids, self.softmax)
        label_of = self.label_of
        return ids, probabilities, np.fromiter((label_of[video] for video in ids), dtype=np.int64)


def write_scores(path: Path, scores: ScoreTable) -> None:
    """Write an npz of plain arrays (no pickles), replacing the file `path` at once."""
    arrays = {
        "video_ids": np.asarray(scores.video_ids, dtype=np.str_),
        "spans": np.asarray(scores.spans, dtype=np.int64),
        "labels": np.asarray(scores.labels, dtype=np.int64),
        "softmax": np.asarray(scores.softmax, dtype=np.float32),
        "classes": np.asarray(scores.classes, dtype=np.str_),
        "run": np.asarray(json.dumps(dict(scores.run), sort_keys=True, allow_nan=False)),
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes_durably(path, buffer.getvalue())


def read_scores(path: Path) -> ScoreTable:
    """Read a scores.npz. Raises `ScoreError` if it is missing, malformed, or holds anything but plain arrays."""
    try:
        with np.load(io.BytesIO(read_bounded(path, SCORES_BYTES)), allow_pickle=False) as archive:
            if (size := sum(member.file_size for member in archive.zip.infolist())) > SCORES_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes; expected at most {SCORES_BYTES:,}")
            arrays = {name: archive[name] for name in _KINDS}
        if wrong := [name for name, kind in _KINDS.items() if arrays[name].dtype.kind != kind]:
            raise ValueError(f"{', '.join(wrong)} of another type than expected")
        return ScoreTable(**{**arrays, "run": msgspec.json.decode(str(arrays["run"]))})
    except FileNotFoundError:
        raise ScoreError(f"{path} is missing; train that level first (`make train`)") from None
    except OSError as error:
        raise_if_unreadable(error, path)
        raise ScoreError(f"{path} cannot be read: {error.strerror}") from error
    except MemoryError:
        raise ScoreError(
            f"{path} needs more memory than there is: free some (or raise `ulimit -v`) and run the same command again; "
            "if there is enough, it is damaged, train that level again"
        ) from None
    # Whatever numpy and zipfile raise at a file that is none of ours, up to tokenize.TokenError.
    except Exception as error:
        raise ScoreError(
            f"{path} is not a score table written by this program: {error}; train that level again"
        ) from error
