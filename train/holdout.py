"""The held-out part of a training split: cut by group, so that no two clips of one filming stand on both sides."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence

from cache.dataset import Video
from cache.errors import TrainingError

FIFTHS = 5
"""Of so many parts of each class's groups one is held out."""

_UCF_GROUP = re.compile(r"_g\d+(?=_|$)")
_HMDB_ENDING = re.compile(r"_[fhlu]_[cn]m_np\d+_(ba|fr|le|ri)_(bad|med|goo)_\d+$")


def group(video_id: str) -> str:
    """Name of the filming that a video was cut from, as far as its id tells.

    Archery/v_Archery_g03_c02               -> Archery/v_Archery_g03  (UCF-101: g is the group)
    wave/TrumanShow_wave_f_nm_np1_fr_med_26 -> wave/TrumanShow_wave   (HMDB-51: the ending tells a film's clips apart)
    anything/else                           -> itself
    """
    found = _UCF_GROUP.search(video_id)
    if found:
        return video_id[: found.end()]
    return _HMDB_ENDING.sub("", video_id)


def split_off(videos: Sequence[Video], turn: int = 0) -> tuple[tuple[Video, ...], tuple[Video, ...]]:
    """Cut training videos into (to learn from, held out), each class's groups apart, the same way at every call.

    Of each class a fifth of the groups is held out, at least one, by a hash of their names; `turn` says which fifth, so
    that turns 0 to 4 hold each group out once. A class with a single group is refused (TrainingError): nothing would be
    left to learn from or to check on.
    """
    groups: dict[int, set[str]] = defaultdict(set)
    for video in videos:
        if video.label is not None:
            groups[video.label].add(group(video.id))
    held: set[str] = set()
    for label, names in sorted(groups.items()):
        if len(names) < 2:
            raise TrainingError(
                f"class {label} has training videos of one group only ({next(iter(names))!r}); a held-out part needs "
                "at least two: train without --holdout"
            )
        ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        parts = min(FIFTHS, len(ordered))
        held |= set(ordered[turn % parts :: parts])
    inside = tuple(video for video in videos if group(video.id) not in held)
    return inside, tuple(video for video in videos if group(video.id) in held)
