"""The fingerprint: what features depend on, and how two fingerprints differ; levels, widths, the format's version."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import xxhash

from cache.common.errors import CacheError, FingerprintError

Level = Literal["low", "mid", "high"]

LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""From shallow to deep: ResNet-34's layer2, layer3, layer4 (paper, section 4.2)."""

CHANNELS: Final[dict[Level, int]] = {"low": 128, "mid": 256, "high": 512}
"""Width of each level's spatial mean (equation 7) in ResNet-34 and ResNet-18, whose fingerprints do not name widths."""

MOST_CHANNELS: Final = 1 << 16
"""Width of a level up to which a fingerprint is believed."""

DTYPE: Final = "float16"
"""How features are stored; they are computed and averaged in float32."""

FORMAT_VERSION: Final = 1
"""Raised when the files of a cache change in a way that older code would misread."""

CENTER_VIEW: Final = "center"
"""View 0 of every cache, the one that testing uses."""


IMPORTED: Final = "imported: "
"""Before what is said of their making, for a backbone: the features were made by another program."""

JSON: TypeAlias = Any
"""What `json.dumps` takes: dicts with string keys, lists, strings, numbers, booleans, None."""

ABSENT = "(absent)"
"""Shown for a field that one side lacks."""


def canonical_json(value: JSON) -> str:
    """Returns the same text for equal values: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Settings and environment that features come from."""

    identity: Mapping[str, JSON]
    """Must match to append or train: weights_sha256, weights, backbone, levels, transform, views, views_seed, dtype,
    format_version, max_frames, fps."""
    environment: Mapping[str, JSON]
    """May differ when the user allows it: decoder, decoder_version, torch, torchvision, device, precision,
    batch_frames."""

    def __post_init__(self) -> None:
        for part in (self.identity, self.environment):
            if not isinstance(part, Mapping) or any(not isinstance(name, str) for name in part):
                raise CacheError(f"a fingerprint's parts map names to values; got {part!r}")
            canonical_json(dict(part))

    @property
    def digest(self) -> str:
        """Hex over the identity fields; equal digests mean interchangeable features."""
        return xxhash.xxh3_128_hexdigest(canonical_json(_compared(self.identity)).encode())

    def to_json(self) -> dict[str, JSON]:
        """Returns both parts as a JSON object."""
        return {"identity": dict(self.identity), "environment": dict(self.environment)}


@dataclass(frozen=True)
class Difference:
    """One field whose values differ."""

    field: str
    theirs: JSON
    ours: JSON
    identity: bool
    """True for an identity field, which must match; False for an environment field."""
    names: tuple[str, str] = ("", "")
    """What people call the two values, where these are hashes."""

    def __str__(self) -> str:
        theirs, ours = (
            ABSENT if value == ABSENT else json.dumps(value, ensure_ascii=False) + (f" ({name})" if name else "")
            for value, name in zip((self.theirs, self.ours), self.names, strict=True)
        )
        return f"{self.field}: the cache has {theirs}, this run has {ours}"


def is_imported(identity: Mapping[str, JSON]) -> bool:
    """Whether features of this identity were made by another program."""
    return str(identity.get("backbone")).startswith(IMPORTED)


def widths_of(identity: Mapping[str, JSON]) -> dict[Level, int]:
    """Channels of each level's features: those of the identity, else ResNet-34's. Raises `CacheError` if unusable.

    Imported features have the levels that somebody has made.
    """
    widths = identity.get("widths", CHANNELS)
    known = [level for level in LEVELS if not is_imported(identity) or level in identity.get("levels", LEVELS)]
    if not isinstance(widths, Mapping) or any(
        type(widths.get(level)) is not int or not 0 < widths[level] <= MOST_CHANNELS for level in known
    ):
        raise CacheError(f"widths are {widths!r}; expected a number of channels for each of {', '.join(known)}")
    return {level: widths[level] for level in known}


def differences(theirs: Fingerprint, ours: Fingerprint) -> list[Difference]:
    """Returns every field that differs, identity first, each part in name order.

    `weights` is a name for reports: it is not compared if there is a hash of the weights.
    """
    found = []
    for identity, left, right in (
        (True, _compared(theirs.identity), _compared(ours.identity)),
        (False, theirs.environment, ours.environment),
    ):
        for name in sorted({*left, *right}):
            a, b = left.get(name, ABSENT), right.get(name, ABSENT)
            if canonical_json(a) != canonical_json(b):
                hashes = name == "weights_sha256"
                names = [str(each.identity.get("weights", "")) if hashes else "" for each in (theirs, ours)]
                found.append(Difference(name, a, b, identity, (names[0], names[1])))
    return found


def check_fingerprint(theirs: Fingerprint, ours: Fingerprint, *, allow_drift: bool, where: str) -> None:
    """Raises `FingerprintError` with each differing field and both values if `ours` cannot extend `theirs`."""
    found = differences(theirs, ours)
    identity = "; ".join(str(difference) for difference in found if difference.identity)
    if identity:
        raise FingerprintError(
            f"{where} was made with other settings. {identity}. "
            "Use the cache's settings, or extract into another cache (WORK= or --work names another folder)",
            [difference.field for difference in found],
        )
    if found and not allow_drift:
        raise FingerprintError(
            f"{where} was made in another environment. {'; '.join(map(str, found))}. "
            "Use the same one, or give --allow-drift to go on; the shards made from now on then record the difference",
            [difference.field for difference in found],
        )


def _compared(identity: Mapping[str, JSON]) -> dict[str, JSON]:
    """The identity fields that decide: the weights' hash instead of their name, where there is a hash."""
    return {name: value for name, value in identity.items() if name != "weights" or not identity.get("weights_sha256")}
