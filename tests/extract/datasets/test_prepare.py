"""`python -m extract data`: from a server to a complete, counted dataset; continued, and never half in place."""

import hashlib

import pytest
from click.testing import CliRunner

from cache.common.errors import DatasetError
from cache.dataset import read_dataset, write_dataset
from extract.data_cli import data_command
from extract.datasets import hmdb51, ucf101
from extract.datasets.official import archives, prepare
from extract.datasets.official.download import Archive
from extract.datasets.official.prepare import PARTS, Part
from extract.datasets.published import PublishedCounts
from tests.helpers.archives import Entry, Site, serve
from tests.helpers.archives import rar as make_rar

CLASSES = ["climb", "swim", "wave"]
MARKS = [1] * 7 + [2] * 3 + [0] * 2
"""Of the videos of each class."""


@pytest.fixture(autouse=True)
def _small_published_dataset(monkeypatch):
    if archives.library() is None and not any(program.is_there() for program in archives.PROGRAMS):
        pytest.skip("no reader of RAR archives is installed")
    counts = PublishedCounts(title="HMDB-51", videos=36, classes=3, halves=dict.fromkeys((1, 2, 3), (21, 9)))
    monkeypatch.setattr(hmdb51, "PUBLISHED", counts)


def lists_archive():
    return make_rar(
        *(
            Entry(
                f"{hmdb51.LISTS}/{name}_test_split{split}.txt",
                "".join(f"v{index}.avi {mark} \n" for index, mark in enumerate(MARKS)).encode(),
            )
            for name in CLASSES
            for split in (1, 2, 3)
        )
    )


def videos_archive(leave_out=None):
    """As published: an archive for each class in one archive."""
    return make_rar(
        *(
            Entry(f"{name}.rar", make_rar(*(Entry(f"{name}/v{index}.avi") for index in range(len(MARKS)))))
            for name in CLASSES
            if name != leave_out
        )
    )


LISTS, VIDEOS = lists_archive(), videos_archive()


def parts(site):
    lists, videos = (
        Archive(f"{site.url}/{name}", hashlib.sha256(content).hexdigest()) for name, content in site.files.items()
    )
    return (Part(hmdb51.LISTS, lists, 9), Part(hmdb51.VIDEOS, videos, 36, holds_archives=True))


def site_with(videos=VIDEOS):
    return Site({"lists.rar": LISTS, "videos.rar": videos})


def test_a_dataset_is_fetched_unpacked_and_counted_and_then_left_alone(tmp_path, monkeypatch):
    with serve(site_with()) as site:
        monkeypatch.setitem(PARTS, "hmdb51", parts(site))
        for _ in range(2):
            result = CliRunner().invoke(data_command, ["--dataset", "hmdb51", "--data", str(tmp_path)])
            assert (result.exit_code, result.exception) == (0, None), result.output
            assert "complete, 36 videos in 3 classes" in result.output
    assert len(site.log) == 2
    assert {entry.name for entry in tmp_path.iterdir()} == {hmdb51.LISTS, hmdb51.VIDEOS, "archives"}


def test_lists_that_are_there_are_kept_and_what_a_killed_run_left_aside_is_made_anew(tmp_path):
    with serve(site_with()) as site:
        prepare.prepare("hmdb51", tmp_path, parts(site))
        (tmp_path / hmdb51.VIDEOS).rename(
            tmp_path / f".unpacking-{hmdb51.VIDEOS}"
        )  # as a run killed just before the end
        dataset = prepare.prepare("hmdb51", tmp_path, parts(site))
    assert len(site.log) == 2
    write_dataset(tmp_path / "dataset.json", dataset)
    assert len(read_dataset(tmp_path / "dataset.json").videos) == 36


def test_an_incomplete_archive_is_told_and_how_to_go_on(tmp_path):
    message = r"12 of 36 listed videos are missing: swim/v0, (.|\n)*move .* away and run the command again"
    incomplete = site_with(videos_archive(leave_out="swim"))
    with serve(incomplete) as site, pytest.raises(DatasetError, match=message):
        prepare.prepare("hmdb51", tmp_path, parts(site))


def test_two_inner_archives_with_one_folder_are_refused(tmp_path):
    inner = make_rar(Entry("wave/v0.avi"))
    message = r"b\.rar holds 'wave', as another"
    with (
        serve(site_with(make_rar(Entry("a.rar", inner), Entry("b.rar", inner)))) as site,
        pytest.raises(DatasetError, match=message),
    ):
        prepare.prepare("hmdb51", tmp_path, parts(site))
    assert not (tmp_path / hmdb51.VIDEOS).exists()


def test_an_archive_without_the_expected_folder_is_refused(tmp_path):
    message = rf"has no folder {hmdb51.LISTS}; it has elsewhere"
    with (
        serve(Site({"lists.rar": make_rar(Entry("elsewhere/x.txt")), "videos.rar": VIDEOS})) as site,
        pytest.raises(DatasetError, match=message),
    ):
        prepare.prepare("hmdb51", tmp_path, parts(site))


def test_only_the_published_datasets_can_be_fetched():
    result = CliRunner().invoke(data_command, ["--dataset", "kinetics"])
    assert result.exit_code == 2
    assert "ucf101" in result.output


def test_every_published_archive_comes_over_https_with_its_checksum():
    assert {name: [part.folder for part in listed] for name, listed in PARTS.items()} == {
        "ucf101": [ucf101.LISTS, ucf101.VIDEOS],
        "hmdb51": [hmdb51.LISTS, hmdb51.VIDEOS],
    }
    for part in (part for listed in PARTS.values() for part in listed):
        assert part.archive.url.startswith("https://")
        assert len(bytes.fromhex(part.archive.sha256)) == 32
