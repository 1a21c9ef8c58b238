"""Finding video files: which count, and that nothing outside the root is ever taken for one."""

import os

import pytest

from cache.common.errors import DatasetError, UnsafePathError
from extract.datasets.paths import find_videos, scan_folder
from tests.helpers.sources import touch


def test_finds_videos_at_any_depth_in_name_order_and_passes_over_the_rest(tmp_path):
    touch(tmp_path, ["b/x.AVI", "a/y.mp4", "a/deep/er/z.webm", "a/notes.txt", "a/.hidden.avi", ".git/w.avi", "avi"])
    assert find_videos(tmp_path) == ("a/deep/er/z.webm", "a/y.mp4", "b/x.AVI")


def test_what_decoding_opens_is_found_in_any_case_and_the_rest_is_counted(tmp_path):
    videos = [
        f"a/{n}.{suffix}"
        for n, suffix in enumerate(
            ["MTS", "m2ts", "ogv", "VOB", "asf", "3G2", "m2t", "divx", "f4v", "qt", "Mpe", "m4v", "evo"]
        )
    ]
    hidden = [".x.avi", ".cache/y.avi", "a/@eaDir/z.avi", "#recycle/z.avi", "$RECYCLE.BIN/z.avi", ".Trashes/z.avi"]
    hidden += ["a/#snapshot/z.avi", "Network Trash Folder/z.avi"]
    touch(tmp_path, [*videos, *hidden, "a/notes.TXT", "b/notes.txt", "b/README", "c/@home/#1 fan.avi"])
    scan = scan_folder(tmp_path)
    assert scan.videos == tuple(sorted([*videos, "c/@home/#1 fan.avi"]))
    assert scan.passed_over == {".txt": 2, "without a suffix": 1, "hidden": 1}
    unread = ("#recycle", "$RECYCLE.BIN", ".Trashes", ".cache", "Network Trash Folder", "a/#snapshot", "a/@eaDir")
    assert scan.unread == unread
    assert scan.folders == ("a", "b", "c")


def test_a_folder_whose_path_is_too_long_costs_only_itself(tmp_path):
    touch(tmp_path, ["a/x.avi", "b/y.avi"])
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=descriptor)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("z.avi", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    scan = scan_folder(tmp_path)
    assert scan.videos == ("a/x.avi", "b/y.avi")
    assert scan.unread == (f"a/{'d' * 38}… (a path of more than 3,840 bytes)",)


def test_names_with_the_characters_of_hmdb51_are_kept(tmp_path):
    name = "a/#1 (HQ)_300+_Yards!!!_&_[x];~.avi"
    touch(tmp_path, [name])
    assert find_videos(tmp_path) == (name,)


def test_a_fifo_is_not_a_video(tmp_path):
    os.mkfifo(tmp_path / "trap.avi")
    (tmp_path / "gone.avi").symlink_to("nowhere.avi")
    scan = scan_folder(tmp_path)
    assert (scan.videos, scan.passed_over) == ((), {"links to nothing, or pipes": 2})


def test_a_link_to_a_file_inside_is_a_video(tmp_path):
    touch(tmp_path, ["a/x.avi"])
    (tmp_path / "a/y.avi").symlink_to("x.avi")
    assert find_videos(tmp_path) == ("a/x.avi", "a/y.avi")


def test_a_link_that_leads_outside_is_refused(tmp_path):
    touch(tmp_path, ["secret.avi", "root/a/x.avi"])
    (tmp_path / "root/a/y.avi").symlink_to(tmp_path / "secret.avi")
    with pytest.raises(UnsafePathError, match=r"'a/y\.avi' is a link that leads outside"):
        find_videos(tmp_path / "root")


def test_a_folder_link_that_leads_outside_is_refused(tmp_path):
    touch(tmp_path, ["elsewhere/x.avi", "root/a/x.avi"])
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError, match="leads outside"):
        find_videos(tmp_path / "root")


def test_a_folder_link_that_runs_in_a_circle_is_refused(tmp_path):
    touch(tmp_path, ["a/x.avi"])
    (tmp_path / "a/again").symlink_to("..")
    with pytest.raises(DatasetError, match="links to folders"):
        find_videos(tmp_path)


@pytest.mark.parametrize("target", ["nowhere.avi", "self.avi"])
def test_a_link_that_leads_nowhere_is_no_video(tmp_path, target):
    (tmp_path / "self.avi").symlink_to(target)
    assert find_videos(tmp_path) == ()


def test_names_that_are_not_utf8_are_named_and_refused(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.avi")).touch()
    with pytest.raises(DatasetError, match=r"1 file names are not UTF-8: .*udce9.*convmv"):
        find_videos(tmp_path)


@pytest.mark.parametrize("name", ["a\nb.avi", "a::b.avi", "a\\b.avi"])
def test_file_names_that_could_not_be_listed_safely_are_refused(tmp_path, name):
    touch(tmp_path, [name])
    with pytest.raises(UnsafePathError):
        find_videos(tmp_path)


def test_a_folder_that_cannot_be_read_is_a_named_error(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        find_videos(tmp_path / "gone")
