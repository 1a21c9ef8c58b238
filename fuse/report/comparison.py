"""Runs side by side as a page, in the style of the report's."""

from collections.abc import Mapping
from typing import Any, Final

from cache.comparison import SIGNIFICANT
from fuse import paper
from fuse.compare import ScoredRun, SideBySide
from fuse.report.page import render
from fuse.report.samples import Frames, pictures_of
from fuse.summary import Made

SHOWN: Final = 6
"""Videos with frames that one run of a pair gets right and the other one wrong, for either."""

LISTED: Final = 40
"""Such videos that are listed by name."""


def shown_videos(found: SideBySide) -> list[str]:
    """Ids of the videos that the page shows with their frames."""
    pairs = [(found.runs[0], run) for run in found.runs[1:]]
    places = [
        each for a, b in pairs for one, other in ((a, b), (b, a)) for each in found.only_right(one, other)[:SHOWN]
    ]
    return list(dict.fromkeys(found.video_ids[place] for place, _ in places))


def comparison_page(found: SideBySide, made: Made, frames: Frames, frames_note: str) -> str:
    """The page."""
    name, first = found.dataset.name, found.runs[0]
    pictures = {video: pictures_of(each) for video, each in frames.items()}
    return render(
        "compare.html",
        heading=f"{paper.DATASETS.get(name, name)}, split {found.split}: {len(found.runs)} runs side by side",
        made=made,
        found=found,
        noun=found.dataset.noun,
        first=first,
        pairs=[_pair(found, run, pictures) for run in found.runs[1:]],
        differing=found.settings_that_differ(),
        by_chance=round(SIGNIFICANT * len(found.dataset.class_counts())),
        frames_note=frames_note,
    )


def _pair(found: SideBySide, run: ScoredRun, pictures: Mapping[str, Any]) -> dict[str, Any]:
    """A run against the first one: differences of classes, and the videos that only one of both gets right."""
    first, classes = found.runs[0], found.dataset.classes
    sides = []
    for one, other in ((run, first), (first, run)):
        videos = [
            {
                "id": found.video_ids[place],
                "label": classes[found.labels[place]],
                "said": classes[said] if said >= 0 else None,
                "picture": pictures.get(found.video_ids[place]),
            }
            for place, said in found.only_right(one, other)
        ]
        sides.append({"run": one, "other": other, "count": len(videos), "videos": videos[:LISTED], "shown": SHOWN})
    return {"run": run, "comparison": found.against_first(run), "classes": found.by_class(run), "sides": sides}
