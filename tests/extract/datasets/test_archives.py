"""Archives: what is honest comes out whole, what is hostile is refused and leaves nothing outside the folder."""

import io
import os
import zipfile

import pytest

from cache.common.errors import DatasetError, UnsafePathError
from extract.datasets.official import archives
from extract.datasets.paths import find_videos
from tests.helpers.archives import FIFO, FOLDER, LINK, Entry
from tests.helpers.archives import rar as make_rar

GOOD = (
    Entry("UCF-101", mode=FOLDER),
    Entry("UCF-101/a/#1 (HQ)_300+_Yards!!!_&_[x];~.avi", b"one"),
    Entry("UCF-101/b/two.avi", bytes(range(256)) * 9_000),
    Entry("UCF-101/b/empty.avi"),
)

HOSTILE = {
    "climbs out": [Entry("../outside.avi", b"x")],
    "climbs out in the middle": [Entry("a/../../outside.avi", b"x")],
    "absolute": [Entry("/tmp/outside.avi", b"x")],
    "link": [Entry("a/link", b"/etc", LINK)],
    "through a link": [Entry("a", b"..", LINK), Entry("a/outside.avi", b"x")],
    "control character": [Entry("a\x1b[2J.avi", b"x")],
    "URL chain": [Entry("a::b.avi", b"x")],
}


def make_zip(*entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            info = zipfile.ZipInfo(entry.name + ("/" if entry.mode == FOLDER else ""))
            info.external_attr = entry.mode << 16
            archive.writestr(info, entry.content)
    return buffer.getvalue()


def with_zip(archive, into, wrote):
    archives.unpack(archive, into, wrote)


def with_libarchive(archive, into, wrote):
    if archives.library() is None:
        pytest.skip("libarchive is not installed")
    archives.write_members(archive, archives.rar_members(archive), into, wrote)


def with_program(name):
    def unpack_it(archive, into, wrote):
        program = next(program for program in archives.PROGRAMS if program.name == name)
        if not program.is_there():
            pytest.skip(f"{name} is not installed")
        archives.unpack_with(program, archive, into, wrote)

    return unpack_it


READERS = {
    "zip": (make_zip, with_zip),
    "libarchive": (make_rar, with_libarchive),
    "unrar": (make_rar, with_program("unrar")),
    "unar": (make_rar, with_program("unar")),
}


@pytest.fixture(params=READERS)
def reader(request, tmp_path):
    """Makes an archive of the entries and unpacks it into tmp_path/deep/in; returns the count of files written."""
    make, read = READERS[request.param]

    def run(*entries, content=None):
        archive = tmp_path / f"a.{'zip' if request.param == 'zip' else 'rar'}"
        archive.write_bytes(make(*entries) if content is None else content)
        files = []
        read(archive, tmp_path / "deep/in", lambda: files.append(1))
        return len(files)

    run.make, run.name = make, request.param
    return run


def test_honest_archives_come_out_whole(reader, tmp_path):
    assert reader(*GOOD) == 3
    for entry in GOOD[1:]:
        assert (tmp_path / "deep/in" / entry.name).read_bytes() == entry.content
    assert len(find_videos(tmp_path / "deep/in")) == 3


def test_what_was_in_the_folder_before_is_gone(reader, tmp_path):
    (tmp_path / "deep/in").mkdir(parents=True)
    (tmp_path / "deep/in/old.avi").touch()
    reader(*GOOD)
    assert not (tmp_path / "deep/in/old.avi").exists()


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_members_are_refused_and_nothing_is_written_outside(reader, tmp_path, entries):
    with pytest.raises(DatasetError):
        reader(*entries)
    assert list(tmp_path.rglob("*outside*")) == []
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a/x.avi", "a/x.avi/y.avi"])
def test_members_in_each_others_place_are_refused(reader, second):
    with pytest.raises(DatasetError):
        reader(Entry("a/x.avi", b"1"), Entry(second, b"2"))


def test_a_damaged_archive_is_refused(reader):
    if reader.name == "libarchive":
        pytest.skip("libarchive does not compare RAR members' checksums; the download's SHA-256 has to do")
    content = bytearray(reader.make(*GOOD))
    middle = content.index(b"one") if b"one" in content else len(content) // 3
    content[middle] ^= 0xFF
    with pytest.raises(DatasetError):
        reader(content=bytes(content))


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>", b"PK\x03\x04", b"Rar!\x1a\x07"])
def test_what_is_no_archive_is_refused(reader, content):
    with pytest.raises(DatasetError):
        reader(content=content)


def test_a_rar_archive_goes_through_the_first_reader_that_can(tmp_path, monkeypatch):
    if archives.library() is None and not any(program.is_there() for program in archives.PROGRAMS):
        pytest.skip("no reader of RAR archives is installed")
    (tmp_path / "a.rar").write_bytes(make_rar(*GOOD))
    archives.unpack(tmp_path / "a.rar", tmp_path / "in")
    assert (tmp_path / "in/UCF-101/b/two.avi").read_bytes() == GOOD[2].content


def test_without_any_reader_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.rar").write_bytes(make_rar(*GOOD))
    monkeypatch.setattr(archives, "library", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatasetError, match=r"none of them is here; install one of them \(Debian, Ubuntu: `apt install"):
        archives.unpack(tmp_path / "a.rar", tmp_path / "in")


def test_a_program_that_makes_other_files_than_it_lists_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name, script in {
        "lsar": 'echo \'{"lsarContents": [{"XADFileName": "a.avi"}]}\'',
        "unar": "ln -s /etc a.avi",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "a.rar").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"unar made other files of .* than it listed: a.avi$"):
        with_program("unar")(tmp_path / "a.rar", tmp_path / "in", lambda: None)


@pytest.mark.parametrize("name", ["zip", "libarchive"])
def test_special_files_are_refused(tmp_path, name):
    make, read = READERS[name]
    (tmp_path / "a.zip").write_bytes(make(Entry("pipe", b"", FIFO)))
    with pytest.raises(UnsafePathError, match="neither a file nor a folder"):
        read(tmp_path / "a.zip", tmp_path / "in", lambda: None)


def test_other_kinds_of_archive_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"neither a \.zip nor a \.rar"):
        archives.unpack(tmp_path / "a.tar", tmp_path / "in")
