"""Fingerprints: every field that differs is named with both values; names of equal weights do not count."""

import json
from typing import Any

import pytest

from cache.common.errors import CacheError, FingerprintError
from cache.description import description_of
from cache.fingerprint import Fingerprint, check_fingerprint, differences
from tests.helpers.cache import ENVIRONMENT, IDENTITY, make_fingerprint


def other(value: Any) -> Any:
    """A value of the same kind that differs."""
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return [*value, "more"]
    return 17 if value is None else value + 1


@pytest.mark.parametrize("field", [name for name in IDENTITY if name != "weights"])
def test_each_identity_field_changed_alone_is_refused_and_named(field: str) -> None:
    changed = make_fingerprint(**{field: other(IDENTITY[field])})
    assert [(d.field, d.identity) for d in differences(make_fingerprint(), changed)] == [(field, True)]
    assert changed.digest != make_fingerprint().digest
    for allow_drift in (False, True):
        with pytest.raises(FingerprintError) as caught:
            check_fingerprint(make_fingerprint(), changed, allow_drift=allow_drift, where="the cache x")
        assert f"{field}: the cache has {json.dumps(IDENTITY[field])}" in str(caught.value)
        assert json.dumps(other(IDENTITY[field])) in str(caught.value)


@pytest.mark.parametrize("field", ENVIRONMENT)
def test_each_environment_field_changed_alone_is_refused_unless_drift_is_allowed(field: str) -> None:
    changed = make_fingerprint(**{field: other(ENVIRONMENT[field])})
    assert [(d.field, d.identity) for d in differences(make_fingerprint(), changed)] == [(field, False)]
    assert changed.digest == make_fingerprint().digest
    with pytest.raises(FingerprintError, match=rf"{field}: the cache has .*--allow-drift"):
        check_fingerprint(make_fingerprint(), changed, allow_drift=False, where="the cache x")
    check_fingerprint(make_fingerprint(), changed, allow_drift=True, where="the cache x")


def test_the_name_of_equal_weights_is_not_compared() -> None:
    renamed = make_fingerprint(weights="the_same_in_another_file.pth")
    assert differences(make_fingerprint(), renamed) == []
    assert renamed.digest == make_fingerprint().digest


def test_hashes_of_weights_stand_beside_their_names() -> None:
    other_file = make_fingerprint(weights="mine.pth", weights_sha256="ab")
    with pytest.raises(FingerprintError, match=r'\(imagenet1k_v1\), this run has "ab" \(mine.pth\)') as caught:
        check_fingerprint(make_fingerprint(weights="imagenet1k_v1"), other_file, allow_drift=True, where="x")
    assert caught.value.fields == ["weights_sha256"]


def test_without_a_hash_the_name_of_the_weights_decides() -> None:
    first, second = (make_fingerprint(weights_sha256=None, weights=name) for name in ("a", "b"))
    assert [d.field for d in differences(first, second)] == ["weights"]


def test_a_field_that_one_side_lacks_is_named() -> None:
    fewer = Fingerprint(identity={**IDENTITY, "new": 1}, environment=ENVIRONMENT)
    with pytest.raises(FingerprintError, match=r"new: the cache has \(absent\), this run has 1"):
        check_fingerprint(make_fingerprint(), fewer, allow_drift=True, where="x")


def test_the_digest_does_not_depend_on_the_order_of_fields() -> None:
    backwards = Fingerprint(identity=dict(reversed(IDENTITY.items())), environment=ENVIRONMENT)
    assert backwards.digest == make_fingerprint().digest


def described(fingerprint: Any) -> Any:
    """What cache.json says of a cache with this fingerprint."""
    return {"format": 1, "backend": "h5", "settings": {}, "fingerprint": fingerprint}


def test_json_and_back() -> None:
    fingerprint = make_fingerprint()
    value = json.loads(json.dumps(described(fingerprint.to_json())))
    assert description_of(value, "x").fingerprint == fingerprint


@pytest.mark.parametrize("value", [None, [], {}, {"identity": {}}, {"identity": 3, "environment": {}}])
def test_what_is_no_fingerprint_is_refused(value: Any) -> None:
    with pytest.raises(CacheError):
        description_of(described(value), "x")
