"""What a cache records and how its fingerprint is made: the same as ever, so that caches of older versions go on."""

import json
from dataclasses import fields
from typing import Any

import pytest

from cache.common.errors import CacheError, FingerprintError
from cache.fingerprint import check_fingerprint
from extract.fingerprint import check_given, fingerprint, settings_of
from extract.network.weights import weights_text
from extract.settings import RequestedSettings

RECORD = {
    "data": None,
    "subset": False,
    "strict": False,
    "weights": "imagenet1k_v1",
    "backbone": "resnet34",
    "levels": ["low", "mid", "high"],
    "views": ["center"],
    "views_seed": 0,
    "device": "auto",
    "precision": "fp32",
    "batch_frames": 32,
    "decoder": "pyav",
    "max_frames": None,
    "fps": None,
    "limits": {},
    "weights_file": None,
}
GIVEN = {
    "data": "/videos",
    "subset": True,
    "strict": True,
    "weights": "/w/net.pth",
    "backbone": "resnet18",
    "levels": ["low", "high"],
    "views": ["center", "center_flip", "random0"],
    "device": "cpu",
    "precision": "bf16",
    "batch_frames": 8,
    "decoder": "pyav",
    "max_frames": 24,
    "fps": 12.5,
    "limits": {"frames": 300, "stall_seconds": 2.5},
}
OLDER = {"data": "/v", "weights": "random:3", "backbone": "resnet18", "precision": "fp32", "batch_frames": 4}
FP32 = {"precision": "fp32"}

CASES = {
    "nothing given": ("toy", FP32, None, {}, "5eadffae58db4667a0f944e1f61a1e5b"),
    "the demo": ("demo", FP32, None, {"weights": "random:0"}, "5eadffae58db4667a0f944e1f61a1e5b"),
    "everything given": ("toy", {**GIVEN, "jobs": 3}, None, GIVEN, "17efc17f7fd056c5176418cee2b9819f"),
    "a cache continued": (
        "toy",
        {"fps": 5.0, "limits": {"frames": 4}},
        {**OLDER, "views": ["center", "random0"], "limits": {"pixels": 9}, "weights_file": None},
        {**OLDER, "views": ["center", "random0"], "fps": 5.0, "limits": {"frames": 4}},
        "b578c637f76ec9c43e8394ceba332341",
    ),
}
"""Data set, what is given, what is recorded; how the new record differs from `RECORD`, and the digest with the hash
below. Records and digests were computed by the version that spelled each setting six times."""


def made_with(settings: RequestedSettings) -> Any:
    return fingerprint(settings.decided("cpu"), weights_text=weights_text(settings.weights), weights_sha256="ab" * 32)


@pytest.mark.parametrize("case", CASES)
def test_records_and_fingerprints_are_those_of_older_versions(case):
    dataset, given, recorded, differs, digest = CASES[case]
    settings = RequestedSettings.joined(dataset, given, recorded)
    record = settings.record(settings.decided("cpu"))
    assert json.loads(json.dumps(record)) == {**RECORD, **differs}
    ours = made_with(settings)
    assert ours.digest == digest
    expected = {name: record[name] for name in ("decoder", "precision", "batch_frames")}
    versions = {name: ours.environment[name] for name in ("decoder_version", "torch", "torchvision")}
    assert ours.environment == {**expected, **versions, "device": "cpu"}


def test_a_record_is_read_as_it_was_written():
    settings = RequestedSettings.joined("toy", GIVEN)
    record = json.loads(json.dumps(settings.record(settings.decided("cpu"))))
    assert RequestedSettings.joined("toy", {}, record) == settings


def test_a_fingerprint_gives_the_settings_that_made_it():
    settings = RequestedSettings.joined("toy", GIVEN)
    ours = made_with(settings)
    again = settings_of(ours.identity, ours.environment)
    in_it = [each.name for each in fields(RequestedSettings) if each.metadata["part"]]
    assert len(in_it) == 9
    assert all(getattr(again, name) == getattr(settings, name) for name in in_it)


@pytest.mark.parametrize(
    "wrong", [{"levels": "low"}, {"fps": "5"}, {"fps": 0}, {"max_frames": 0}, {"limits": {"frames": "many"}}]
)
def test_a_record_of_other_types_is_refused(wrong):
    with pytest.raises(CacheError, match=f"not those of an extraction.*{next(iter(wrong))}"):
        RequestedSettings.joined("toy", {}, wrong)


def test_caches_of_two_backbones_never_mix():
    """Not before anything is loaded, and not after, even if the weights' hash were the same."""
    cached = made_with(RequestedSettings.joined("toy", {"weights": "random:0", "backbone": "resnet18"}))
    for given in ({"backbone": "resnet50"}, {"backbone": "resnet34"}, {"levels": ["layer1", "layer2", "layer3"]}):
        asked = RequestedSettings.joined("toy", {"weights": "random:0", "backbone": "resnet18", **given})
        field = "backbone" if "backbone" in given else "depths"
        with pytest.raises(FingerprintError, match=rf"{field}: the cache has .*, this run has .*(resnet|layer1)"):
            check_given(asked, given, cached, allow_drift=True, where="the cache")
        with pytest.raises(FingerprintError, match=f"{field}: "):
            check_fingerprint(cached, made_with(asked), allow_drift=True, where="the cache")
