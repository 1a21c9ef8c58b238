"""The settings of an extraction as the fingerprint of its features, and back; whether those asked for fit a cache."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from importlib import metadata
from typing import Final

import msgspec

from cache.common.commands import source_of
from cache.fingerprint import CHANNELS, DTYPE, FORMAT_VERSION, JSON, LEVELS, Fingerprint, check_fingerprint
from extract.decode import decoder_version
from extract.network.architecture import choose_depths, is_timm
from extract.network.weights import is_file_spec, preprocess_of, weights_text
from extract.settings import ExtractSettings, RequestedSettings, flag_of, settings_in

RESNET_DEPTHS: Final[Mapping[str, JSON]] = {"low": "layer2", "mid": "layer3", "high": "layer4"}
"""Where the paper reads ResNet-34. A fingerprint without depths means these, and the widths `CHANNELS`."""


def fingerprint(settings: ExtractSettings, *, weights_text: str, weights_sha256: str) -> Fingerprint:
    """What the features made with `settings` depend on."""
    return Fingerprint(
        identity=_identity(settings, weights_text, weights_sha256, _network(settings)),
        environment={
            **settings.part("environment"),
            **({"timm": metadata.version("timm")} if is_timm(settings.backbone) else {}),
            "decoder_version": decoder_version(settings.decoder),
            "torch": metadata.version("torch"),
            "torchvision": metadata.version("torchvision"),
            "device": device_name(settings.device),
        },
    )


def _network(settings: ExtractSettings) -> dict[str, JSON]:
    """What of the identity follows from the backbone. Raises `MrrnError` if it does not have the depths asked for."""
    preprocess = preprocess_of(settings.backbone, settings.weights)
    chosen = choose_depths(settings.backbone, preprocess.crop, settings.depths)
    depths = {level: depth.name for level, depth in chosen.items()}
    widths = {level: depth.width for level, depth in chosen.items()}
    papers = (depths, widths) == (RESNET_DEPTHS, CHANNELS)
    return {"transform": str(preprocess), **({} if papers else {"depths": depths, "widths": widths})}


def _identity(settings: RequestedSettings, text: str, sha256: JSON, network: Mapping[str, JSON]) -> dict[str, JSON]:
    return {
        **settings.part("identity"),
        "weights_sha256": sha256,
        "weights": text,
        **network,
        "dtype": DTYPE,
        "format_version": FORMAT_VERSION,
    }


def settings_of(identity: Mapping[str, JSON], environment: Mapping[str, JSON]) -> ExtractSettings:
    """The settings in the two parts of a fingerprint, the inverse of `fingerprint`; weights and device are not there.

    KeyError if one is missing, msgspec.ValidationError if it has another type.
    """
    values = {each.name: identity[each.name] for each in settings_in("identity")}
    values |= {each.name: environment[each.name] for each in settings_in("environment")}
    if "depths" in identity:
        values["depths"] = [identity["depths"][level] for level in LEVELS]
    return msgspec.convert(values, ExtractSettings)


def check_given(
    settings: RequestedSettings, given: Collection[str], made_with: Fingerprint, *, allow_drift: bool, where: str
) -> None:
    """FingerprintError if what was asked for is not what the cache holds. Reads no weights and needs no torch.

    Environment fields are compared only if they are among the `given` settings; all of them are as soon as something
    is computed.
    """
    environment = {**made_with.environment, **{k: v for k, v in settings.part("environment").items() if k in given}}
    if "decoder" in given:
        environment["decoder_version"] = decoder_version(settings.decoder)
    theirs = made_with.identity
    text, before = weights_text(settings.weights), str(theirs.get("weights"))
    # Names of weights are told apart at once; of a file, only its numbers tell.
    renamed = text != before and not (is_file_spec(settings.weights) or is_file_spec(before))
    sha256 = None if renamed else theirs.get("weights_sha256")
    network = {name: theirs[name] for name in ("transform", "depths", "widths") if name in theirs}
    depths = dict(zip(LEVELS, settings.depths, strict=False)) or theirs.get("depths")
    if depths != theirs.get("depths", RESNET_DEPTHS) and depths:
        network["depths"] = depths
    ours = Fingerprint(identity=_identity(settings, text, sha256, network), environment=environment)
    if renamed:
        made_with = replace(made_with, identity={**theirs, "weights_sha256": None})
    check_fingerprint(made_with, ours, allow_drift=allow_drift, where=where)


def sources(given: Collection[str], differing: Collection[str]) -> str:
    """Where the settings come from that `differing` fields of a fingerprint follow from; `given` are their names."""
    behind = {"weights_sha256": "weights", "transform": "backbone", "depths": "levels", "widths": "backbone"}
    names = {behind.get(name, name): None for name in differing}
    found = [
        f"{each.name} " + (f"from {source_of(flag_of(each))}" if each.name in given else "as recorded or by default")
        for each in fields(RequestedSettings)
        if each.name in names
    ]
    return f"This run has {' and '.join(found)}" if found else ""


def device_name(device: str) -> str:
    """What the fingerprint calls the device: cpu, or the name of the GPU's model."""
    if not device.startswith("cuda"):
        return device
    import torch

    return f"cuda ({torch.cuda.get_device_name(device)})"
