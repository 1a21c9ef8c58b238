"""What one video may cost, as the command line says it."""

import pytest

from extract.decode import Limits, parse_limits


def test_named_limits_replace_defaults_and_keep_their_kind():
    given = parse_limits(["frames=5000000", "stall_seconds=2.5"])
    assert given == {"frames": 5_000_000, "stall_seconds": 2.5}
    assert Limits(**given) == Limits(frames=5_000_000, stall_seconds=2.5)
    assert parse_limits([]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour=3", "limit 'colour' is not one of pixels, frames, file_bytes"),
        ("frames=2.5", "limit 'frames=2.5': expected a whole number above zero, as in frames=2000000"),
        ("frames", "limit 'frames': expected a whole number"),
        ("stall_seconds=inf", "expected a number above zero, as in stall_seconds=60.0"),
        ("stall_seconds=nan", "expected a number above zero"),
        ("pixels=0", "expected a whole number above zero"),
        ("memory_bytes=-1", "expected a whole number above zero"),
    ],
)
def test_what_is_no_limit_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_limits([text])
