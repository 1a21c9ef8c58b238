"""What the user asked for, joined with what the cache on hand was made with: an extraction that can be continued."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cache.fingerprint import CENTER_VIEW, LEVELS, Fingerprint, check_fingerprint
from extract.decode import DEFAULT_DECODER, Limits, decoder_version
from extract.network.weights import is_file_spec, weights_text
from extract.settings import IMAGENET, ExtractSettings, fingerprint

DEFAULTS: Final[Mapping[str, Any]] = {
    "data": None,
    "subset": False,
    "strict": False,
    "weights": IMAGENET,
    "backbone": "resnet34",
    "levels": list(LEVELS),
    "views": [CENTER_VIEW],
    "views_seed": 0,
    "device": "auto",
    "precision": None,
    "batch_frames": None,
    "decoder": DEFAULT_DECODER,
    "max_frames": None,
    "fps": None,
    "limits": {},
}
"""Everything a cache records of how it was asked for, and what holds where nothing was said. None: by the device."""

DEMO_WEIGHTS: Final = "random:0"
"""The demo needs no download; its outputs say that its weights are random."""

ENVIRONMENT: Final = ("precision", "batch_frames", "decoder")
"""Settings that are environment fields of the fingerprint; `device` is compared only where something is computed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One extraction as asked for: given options, then the record of the cache, then defaults."""

    values: Mapping[str, Any]
    """By the names of `DEFAULTS`; ready for JSON."""
    given: frozenset[str]
    """What was said explicitly."""

    @classmethod
    def of(cls, dataset: str, options: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> "Request":
        """Join `options` (None: not given) with `recorded` (None: no cache yet)."""
        base = {**DEFAULTS, **({"weights": DEMO_WEIGHTS} if dataset == "demo" else {}), **(recorded or {})}
        given = {name: value for name, value in options.items() if name in DEFAULTS and value is not None}
        return cls(values={**base, **_absolute(given)}, given=frozenset(given))

    def record(self, settings: ExtractSettings) -> dict[str, Any]:
        """What the cache remembers, so that the same command without options continues."""
        chosen = {"precision": settings.precision, "batch_frames": settings.batch_frames}
        return {**self.values, **chosen, "weights_file": file_mark(self.values["weights"])}

    def settings(self, *, device: str, precision: str, batch_frames: int, jobs: int) -> ExtractSettings:
        """The settings on one device."""
        values = self.values
        return ExtractSettings(
            weights=values["weights"],
            backbone=values["backbone"],
            levels=tuple(values["levels"]),
            views=tuple(values["views"]),
            views_seed=values["views_seed"],
            device=device,
            precision=precision,  # type: ignore[arg-type]
            batch_frames=batch_frames,
            decoder=values["decoder"],
            max_frames=values["max_frames"],
            fps=values["fps"],
            jobs=jobs,
            limits=Limits(**values["limits"]),
        )

    def same_weights(self, recorded: Mapping[str, Any]) -> bool:
        """Whether the weights are those of the record, as far as can be said without reading them."""
        mark = file_mark(self.values["weights"])
        return self.values["weights"] == recorded.get("weights") and (
            mark is None or mark == recorded.get("weights_file") or "weights" not in self.given
        )


def check_against(request: Request, made_with: Fingerprint, *, allow_drift: bool, where: str) -> None:
    """FingerprintError where what was asked for is not what the cache holds. Reads no weights and needs no torch.

    The surroundings are compared only where they were given explicitly; they count in full once something is computed.
    """
    environment = dict(made_with.environment)
    for name in ENVIRONMENT:
        if name in request.given:
            environment[name] = request.values[name]
    if "decoder" in request.given:
        environment["decoder_version"] = decoder_version(request.values["decoder"])
    settings = request.settings(device="cpu", precision="fp32", batch_frames=1, jobs=1)
    sha256 = str(made_with.identity.get("weights_sha256"))
    asked = fingerprint(settings, weights_text=weights_text(settings.weights), weights_sha256=sha256)
    ours = Fingerprint(identity=asked.identity, environment=environment)
    check_fingerprint(made_with, ours, allow_drift=allow_drift, where=where)


def file_mark(weights: str) -> list[int] | None:
    """Size and time of change of a weights file, which tell whether it has to be read again; None where it is none."""
    try:
        stat = Path(weights).stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _absolute(given: dict[str, Any]) -> dict[str, Any]:
    """The same with the paths of data and of a weights file made absolute, for a later run from another folder."""
    values = dict(given)
    if "data" in values:
        values["data"] = str(Path(values["data"]).absolute())
    if is_file_spec(values.get("weights", IMAGENET)):
        values["weights"] = str(Path(values["weights"]).absolute())
    return values
