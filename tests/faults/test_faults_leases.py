"""Many extractors on one cache, some of which fall asleep for longer than their lease: one commit each."""

from collections import Counter
from pathlib import Path

import pytest

from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.faults import assert_sound, serving


@pytest.mark.parametrize(
    ("workers", "videos", "claimed", "lease"),
    [
        pytest.param(4, 240, 4, 0.3, id="4 workers, 240 videos"),
        pytest.param(16, 10_000, 10, 1.5, id="16 workers, 10,000 videos", marks=pytest.mark.slow),
    ],
)
def test_each_video_is_committed_once_and_the_late_are_refused(
    tmp_path: Path, workers: int, videos: int, claimed: int, lease: float
) -> None:
    cache = tmp_path / "cache"
    with serving() as server:
        assert server.run("create", cache=cache, backend="h5", videos=videos) == 0
        settings = {"cache": cache, "videos": claimed, "lease": lease, "pause": 2.5 * lease}
        started = [server.start("compete", log=tmp_path / f"log{n}", seed=n, **settings) for n in range(workers)]
        assert [server.wait(worker) for worker in started] == [0] * workers
    events = [line.split() for n in range(workers) for line in (tmp_path / f"log{n}").read_text().splitlines()]
    committed = Counter(video_id for event, video_id in events if event == "commit")
    refused = sum(event == "refused" for event, _ in events)
    with FeatureCache.open(cache) as opened:
        wanted = {video.id for video in opened.dataset.videos}
    assert committed == Counter(wanted), "a video was committed twice or not at all"
    assert refused > 0, "nobody was late; the test showed nothing"
    assert assert_sound(cache, wanted) == wanted
    assert verify(cache) == []
