"""Finding video files: which count, and that nothing outside the root is ever taken for one."""

import os

import pytest

from cache.common.errors import DatasetError, UnsafePathError
from extract.datasets.paths import find_videos
from tests.helpers.sources import touch


def test_finds_videos_at_any_depth_in_name_order_and_passes_over_the_rest(tmp_path):
    touch(tmp_path, ["b/x.AVI", "a/y.mp4", "a/deep/er/z.webm", "a/notes.txt", "a/.hidden.avi", ".git/w.avi", "avi"])
    assert find_videos(tmp_path) == ("a/deep/er/z.webm", "a/y.mp4", "b/x.AVI")


def test_names_with_the_characters_of_hmdb51_are_kept(tmp_path):
    name = "a/#1 (HQ)_300+_Yards!!!_&_[x];~.avi"
    touch(tmp_path, [name])
    assert find_videos(tmp_path) == (name,)


def test_a_fifo_is_not_a_video(tmp_path):
    os.mkfifo(tmp_path / "trap.avi")
    assert find_videos(tmp_path) == ()


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
