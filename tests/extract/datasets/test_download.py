"""Downloads from a server on loopback: continued after cuts, whatever the server does, and never wrong in silence."""

import fcntl
import hashlib
import os
import subprocess
import sys
import time

import pytest

from cache.common.errors import DatasetError
from cache.remote import https
from cache.remote.https import FetchRetries
from extract.datasets.official import download
from extract.datasets.official.download import Archive, fetch
from tests.helpers.archives import Site, serve

CONTENT = os.urandom(300_000)
QUICK = FetchRetries(attempts=3, pause_seconds=0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(https, "RETRIES", QUICK)


def archive_at(site, content=CONTENT, name="a.rar"):
    return Archive(f"{site.url}/{name}", hashlib.sha256(content).hexdigest())


def test_a_file_is_fetched_checked_and_not_fetched_again(tmp_path):
    with serve(Site({"a.rar": CONTENT})) as site:
        for _ in range(2):
            assert fetch(archive_at(site), tmp_path).read_bytes() == CONTENT
    assert site.log == [("/a.rar", None)]
    assert [file.name for file in tmp_path.iterdir()] == ["a.rar"]


@pytest.mark.parametrize("says_length", [True, False])
def test_a_cut_connection_is_taken_up_where_it_was_cut(tmp_path, says_length):
    with serve(Site({"a.rar": CONTENT}, cut_after=70_000, says_length=says_length)) as site:
        if says_length:
            assert fetch(archive_at(site), tmp_path).read_bytes() == CONTENT
            assert [asked for _, asked in site.log] == [None, *(f"bytes={n}-" for n in range(70_000, 300_000, 70_000))]
        else:  # an end without a length cannot be told from a cut: the checksum can
            with pytest.raises(DatasetError, match=r"70,000 bytes\) has SHA-256"):
                fetch(archive_at(site), tmp_path)


def test_what_an_earlier_run_fetched_is_not_fetched_again(tmp_path):
    (tmp_path / "a.rar.part").write_bytes(CONTENT[:123_456])
    with serve(Site({"a.rar": CONTENT})) as site:
        assert fetch(archive_at(site), tmp_path).read_bytes() == CONTENT
    assert site.log == [("/a.rar", "bytes=123456-")]


def test_a_part_that_is_already_whole_is_taken(tmp_path):
    (tmp_path / "a.rar.part").write_bytes(CONTENT)
    with serve(Site({"a.rar": CONTENT})) as site:
        assert fetch(archive_at(site), tmp_path).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_started_over(tmp_path):
    (tmp_path / "a.rar.part").write_bytes(CONTENT + b"more")
    with serve(Site({"a.rar": CONTENT})) as site:
        assert fetch(archive_at(site), tmp_path).read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_everything_anew(tmp_path):
    (tmp_path / "a.rar.part").write_bytes(CONTENT[:1000])
    with serve(Site({"a.rar": CONTENT}, ranges=False)) as site:
        assert fetch(archive_at(site), tmp_path).read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_and_cuts_is_given_up_not_asked_for_ever(tmp_path):
    with (
        serve(Site({"a.rar": CONTENT}, ranges=False, cut_after=1000)) as site,
        pytest.raises(DatasetError, match=r"cut at 1,000 of 300,000 bytes.*any other way and put it at"),
    ):
        fetch(archive_at(site), tmp_path)
    assert len(site.log) == 1 + QUICK.attempts


def test_a_range_that_starts_elsewhere_is_refused(tmp_path):
    (tmp_path / "a.rar.part").write_bytes(CONTENT[:1000])
    with (
        serve(Site({"a.rar": CONTENT}, wrong_start=1)) as site,
        pytest.raises(DatasetError, match=r"asked for bytes from 1,000, got 'bytes 1001-"),
    ):
        fetch(archive_at(site), tmp_path)
    assert (tmp_path / "a.rar.part").read_bytes() == CONTENT[:1000]


def test_other_content_is_refused_and_forgotten(tmp_path):
    with (
        serve(Site({"a.rar": b"<html>moved</html>"})) as site,
        pytest.raises(DatasetError, match=r"18 bytes\) has SHA-256 .* as published has .*what came is deleted"),
    ):
        fetch(archive_at(site), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_put_there_by_hand_is_checked_and_left(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"something else")
    with pytest.raises(DatasetError, match="delete it, or put the published archive there"):
        fetch(Archive("https://nowhere.invalid/a.rar", "0" * 64), tmp_path)
    assert (tmp_path / "a.rar").read_bytes() == b"something else"


def test_a_busy_server_is_asked_again(tmp_path):
    with serve(Site({"a.rar": CONTENT}, statuses=[503, 429])) as site:
        assert fetch(archive_at(site), tmp_path).read_bytes() == CONTENT


def test_a_server_without_the_file_is_asked_once(tmp_path):
    message = r"404.*put it at .*a\.rar \(its SHA-256 is"
    with serve(Site({})) as site, pytest.raises(DatasetError, match=message):
        fetch(archive_at(site), tmp_path)
    assert len(site.log) == 1


def test_no_server_at_all_is_a_named_error(tmp_path):
    with serve(Site({})) as site:
        pass
    with pytest.raises(DatasetError, match="Connection refused"):
        fetch(archive_at(site), tmp_path)


def test_a_file_larger_than_the_disk_is_refused_before_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: _Disk)
    with serve(Site({"a.rar": CONTENT})) as site, pytest.raises(DatasetError, match="make room"):
        fetch(archive_at(site), tmp_path)


class _Disk:
    free = 1000


@pytest.mark.parametrize("says_length", [True, False])
def test_more_than_any_archive_has_is_refused(tmp_path, monkeypatch, says_length):
    monkeypatch.setattr(download, "LARGEST_BYTES", len(CONTENT) // 2)
    site = Site({"a.rar": CONTENT}, says_length=says_length)
    with serve(site), pytest.raises(DatasetError, match="no published archive has"):
        fetch(archive_at(site), tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_two_at_once_are_told_of_each_other(tmp_path):
    with (tmp_path / "a.rar.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="another process is fetching"):
            fetch(Archive("https://nowhere.invalid/a.rar", "0" * 64), tmp_path)


def test_a_killed_download_is_continued(tmp_path):
    command = (
        "import sys, pathlib; from cache.remote import https; from extract.datasets.official.download import *;"
        "https.RETRIES = https.FetchRetries(pause_seconds=60);"
        "fetch(Archive(*sys.argv[1:3]), pathlib.Path(sys.argv[3]))"
    )
    with serve(Site({"a.rar": CONTENT}, cut_after=20_000)) as site:
        archive = archive_at(site)
        child = subprocess.Popen([sys.executable, "-c", command, archive.url, archive.sha256, tmp_path])
        while len(site.log) < 3:
            time.sleep(0.005)
        child.kill()
        child.wait()
        assert not (tmp_path / "a.rar").exists()
        before = len(site.log)
        assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert site.log[before][1] is not None
