"""Decoders behind one protocol, chosen by name. Loaded in decode workers only: each brings a native library."""

import importlib
from importlib import metadata
from typing import Final, cast

from cache.common.errors import DecodeError
from extract.decode.backends.protocol import OpenDecoder

DEFAULT_DECODER: Final = "pyav"
"""Fastest for each processor core, leanest, and never invents frames: docs/videos.md has the figures."""

_DISTRIBUTIONS: Final = {"pyav": "av", "decord": "decord2", "torchcodec": "torchcodec"}

DECODER_NAMES: Final = tuple(_DISTRIBUTIONS)


class MissingDecoderError(DecodeError):
    """The decoder asked for, or something it needs, is not installed."""


def decoder_version(name: str) -> str:
    """Package and version behind a decoder's name, as the fingerprint records them; nothing native is imported."""
    if name not in _DISTRIBUTIONS:
        return name
    distribution = _DISTRIBUTIONS[name]
    try:
        return f"{distribution} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError as error:
        raise _missing(name, "it is not installed") from error


def require_decoder(name: str) -> None:
    """Raises ValueError if `name` is not a decoder, MissingDecoderError if it is one that is not installed."""
    if ":" in name:
        return
    if name not in DECODER_NAMES:
        raise ValueError(f"decoder {name!r} is not one of {', '.join(DECODER_NAMES)}")
    decoder_version(name)


def load_decoder(name: str) -> OpenDecoder:
    """The decoder called `name`; `module:attribute` names one outside the project, as tests do."""
    module, _, attribute = name.partition(":")
    if attribute:
        return cast(OpenDecoder, getattr(importlib.import_module(module), attribute))
    require_decoder(name)
    try:
        return cast(OpenDecoder, importlib.import_module(f"extract.decode.backends.{name}").open_video)
    except (ImportError, OSError, RuntimeError) as error:
        raise _missing(name, f"it does not load: {str(error).strip().splitlines()[0]}") from error


def _missing(name: str, what: str) -> MissingDecoderError:
    needs = " and FFmpeg's shared libraries (apt install ffmpeg)" if name == "torchcodec" else ""
    return MissingDecoderError(
        f"decoder {name!r} cannot be used: {what}. Install it with `pip install {_DISTRIBUTIONS[name]}`{needs}, "
        f"or choose another: {', '.join(other for other in DECODER_NAMES if other != name)}."
    )
