"""Errors a user can meet and mend. The command line prints their text and exits with 1; anything else is a bug."""

from collections.abc import Sequence


class MrrnError(Exception):
    """What was got, what was expected, what to do next: one or more sentences for the user."""


class DatasetError(MrrnError):
    """The videos, labels or splits are not what the source's rules ask for."""


class UnsafePathError(DatasetError):
    """A name in a split file, manifest or dataset would leave the dataset's root."""


class CacheError(MrrnError):
    """A cache is missing, unfinished, of another format, or asked for what it does not hold."""


class FingerprintError(CacheError):
    """The features asked for and the features in the cache come from different settings."""

    def __init__(self, text: str, fields: Sequence[str] = ()) -> None:
        """`fields`: those of the fingerprint that differ."""
        super().__init__(text)
        self.fields = fields


class UnreadableError(CacheError):
    """Something cannot be read now: permissions, open files, memory, the disk. This tells nothing about its bytes."""


class DamageError(CacheError):
    """Bytes on disk are not the bytes that were committed."""


class LeaseLostError(CacheError):
    """Another extractor took the work over; this one's result must not be committed."""


class ScoreError(MrrnError):
    """Scores are missing, malformed, or belong to other videos than they are used with."""


class WeightsError(MrrnError):
    """A weights or checkpoint file cannot be used: keys, shapes, values or container."""


class DecodeError(MrrnError):
    """A video cannot be decoded; the text is the reason that goes into the ledger."""


class TrainingError(MrrnError):
    """Training cannot start or go on: settings, features or numbers are not usable."""
