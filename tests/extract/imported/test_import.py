"""`mrrn cache import`: features of other programs in each layout, those that are wrong or hostile, and continuing."""

import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cache.cli import main as cache_main
from cache.shards import writer as writing
from cache.store import FeatureCache
from extract.cli import main as extract_main
from extract.imported import arrays, run
from fuse.cli import main as fuse_main
from mrrn.cli import main
from train.cli import main as train_main

IDS = [f"{name}/v{i}" for name, first in (("climb", 0), ("wave", 4)) for i in range(first, first + 4)]
HALVES = ("train", "train", "test", "none")


def features_of(video: str) -> np.ndarray:
    """[F, 6]."""
    number = IDS.index(video)
    return np.random.default_rng(number).normal(size=(3 + number, 6)).astype(np.float32)


def times_of(video: str) -> np.ndarray:
    return np.arange(len(features_of(video))) / 4 + 0.5


def list_videos(folder: Path, suffix: str = ".avi") -> Path:
    rows = [f"{video}{suffix},{video.split('/')[0]},{HALVES[i % 4]}" for i, video in enumerate(IDS)]
    (folder / "list.csv").write_text("\n".join(["video,label,split1", *rows]))
    return folder / "list.csv"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes shards and reads HDF5 in this process."""
    monkeypatch.setattr(writing.ShardWriter, "write", lambda self, *what: writing.write_shard(*what))
    monkeypatch.setattr(arrays, "_CHILD", SimpleNamespace(call=lambda function, *given: function(*given)))


def run_(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments])


def mrrn(command: Any, folder: Path, *arguments: object) -> Result:
    return run_(command, *arguments, "--work", folder / "work", "--dataset", "mine")


def import_(source: Path, *options: object) -> Result:
    if not (source.parent / "list.csv").exists():
        list_videos(source.parent)
    listed = ("--data", source.parent / "list.csv", "--source", "a net")
    return mrrn(main, source.parent, "cache", "import", source, *listed, *options)


def imported(source: Path) -> FeatureCache:
    return FeatureCache.open(source.parent / "work/cache/mine")


def save(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


# -- layouts -----------------------------------------------------------------------------------------------------------


def npz_per_video(source: Path) -> None:
    for video in IDS:
        (source / video).parent.mkdir(parents=True, exist_ok=True)
        high = features_of(video)
        np.savez_compressed(source / f"{video}.npz", low=high[:, :2], high=high[None], pts_seconds=times_of(video))


def npy_per_video(source: Path) -> None:
    for video in IDS:
        save(source / f"{video}.npy", np.asfortranarray(features_of(video).astype(">f8")))


def video_features(source: Path) -> None:
    """As the program of that name writes: by the stem alone, what it is behind '_'."""
    for video in IDS:
        stem = source / "resnet" / "resnet50" / video.split("/")[1]
        save(stem.with_name(f"{stem.name}_resnet.npy"), features_of(video))
        save(stem.with_name(f"{stem.name}_fps.npy"), np.array(25.0))
        save(stem.with_name(f"{stem.name}_timestamps_ms.npy"), times_of(video) * 1000)


def one_npz(source: Path) -> None:
    np.savez(source, **{video: features_of(video) for video in IDS})


def hdf5_datasets(source: Path) -> None:
    with h5py.File(source, "w") as file:
        for video in IDS:
            file.create_dataset(video, data=features_of(video), compression="gzip", shuffle=True)


def hdf5_by_file_name(source: Path) -> None:
    with h5py.File(source, "w") as file:
        for video in IDS:
            file[f"{video}.avi"] = features_of(video)


def hdf5_groups(source: Path) -> None:
    with h5py.File(source, "w") as file:
        for video in IDS:
            file[f"{video}/rgb"], file[f"{video}/flow"] = features_of(video), features_of(video)[:, :3]


def hdf5_ragged(source: Path) -> None:
    with h5py.File(source, "w") as file:
        file["video_ids"] = np.array(IDS, dtype=h5py.string_dtype())
        file["offsets"] = np.cumsum([0, *(len(features_of(video)) for video in IDS)])
        file["features"] = np.concatenate([features_of(video) for video in IDS])
        file["pts_seconds"] = np.concatenate([times_of(video) for video in IDS])


LAYOUTS: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "npz per video": (npz_per_video, "in", ()),
    "npy per video": (npy_per_video, "in", ("--fps", "4")),
    "video_features": (video_features, "in", ()),
    "one npz": (one_npz, "all.npz", ("--fps", "4")),
    "HDF5, an array per video": (hdf5_datasets, "all.h5", ("--fps", "4")),
    "HDF5, an array per file": (hdf5_by_file_name, "all.h5", ("--fps", "4")),
    "HDF5, a group per video": (hdf5_groups, "all.hdf5", ("--fps", "4", "--array", "high=rgb", "--array", "mid=flow")),
    "HDF5, one video after the other": (hdf5_ragged, "all.h5", ()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_features(tmp_path: Path, layout: str) -> None:
    write, name, options = LAYOUTS[layout]
    write(source := tmp_path / name)
    done = import_(source, *options)
    assert done.exit_code == 0, done.output
    with imported(source) as cache:
        assert cache.fingerprint.identity["backbone"] == "imported: a net"
        assert cache.video_ids == tuple(IDS)
        halves = dict(zip(IDS, HALVES * 2, strict=True))
        assert {sample.id: sample.splits[1] for sample in cache.dataset.samples} == halves
        others = {"low": 2} if write is npz_per_video else {"mid": 3} if write is hdf5_groups else {}
        assert cache.widths == {**others, "high": 6}
        for video in IDS:
            assert np.array_equal(cache.features(video, "high"), features_of(video).astype(np.float16))
            start = 0 if "--fps" in options else 0.5
            assert np.allclose(cache.pts_seconds(video), times_of(video) - 0.5 + start)
    again = import_(source, *options)
    assert (again.exit_code, "changed" in again.output) == (0, False)


def test_an_exported_cache_comes_back_to_the_bit(tmp_path: Path) -> None:
    npz_per_video(tmp_path / "in")
    assert import_(tmp_path / "in").exit_code == 0
    with imported(tmp_path / "in") as first:
        folder = first.path.rename(tmp_path / "first")
    assert run_(cache_main, "export", folder, tmp_path / "out").exit_code == 0
    assert import_(tmp_path / "out").exit_code == 0
    with FeatureCache.open(folder) as first, imported(tmp_path / "out") as second:
        for video in IDS:
            assert all(
                np.array_equal(first.features(video, level), second.features(video, level)) for level in first.levels
            )
            assert np.array_equal(first.pts_seconds(video), second.pts_seconds(video))


def test_one_vector_for_a_video_needs_no_times(tmp_path: Path) -> None:
    for video in IDS:
        save(tmp_path / "in" / f"{video}.npy", features_of(video).mean(0))
    list_videos(tmp_path, suffix="")
    assert import_(tmp_path / "in").exit_code == 0
    with imported(tmp_path / "in") as cache:
        assert {cache.num_frames(video) for video in IDS} == {1}
    examined = mrrn(fuse_main, tmp_path, "doctor")
    assert "8 videos of 8 groups" in examined.output
    assert "frozen" not in examined.output
    assert "few frames" not in examined.output


# -- what follows ------------------------------------------------------------------------------------------------------


def test_what_later_stages_say(tmp_path: Path) -> None:
    npy_per_video(tmp_path / "in")
    assert import_(tmp_path / "in", "--fps", "4").exit_code == 0
    nothing = mrrn(extract_main, tmp_path).output
    assert "nothing to do" in nothing
    assert "--level high" in nothing.partition("next: mrrn train")[2]
    examined = mrrn(fuse_main, tmp_path, "doctor")
    assert (examined.exit_code, "8 videos of 8 groups" in examined.output) == (0, True), examined.output
    for command, arguments, told in (
        (extract_main, ["--backbone", "resnet50"], "another program made"),
        (extract_main, ["--data", "videos"], "another program made"),
        (train_main, [], "has no level low, mid"),
        (train_main, ["--level", "low"], "has levels high; got 'low'"),
        (train_main, ["sweep", "--grid", "hidden=8"], "in a sweep by --grid level=high"),
        (fuse_main, [], "has no level low, mid"),
        (fuse_main, ["reproduce"], "has no level low, mid"),
        (fuse_main, ["predict", tmp_path / "in" / f"{IDS[0]}.npy"], "another program made (imported: a net)"),
        (fuse_main, ["export", "--out", tmp_path / "x"], "another program made (imported: a net)"),
    ):
        refused = mrrn(command, tmp_path, *arguments)
        assert (refused.exit_code, told in refused.output) == (1, True), refused.output


def test_published_names_are_refused(tmp_path: Path) -> None:
    npy_per_video(tmp_path / "in")
    listed = ("--data", list_videos(tmp_path), "--source", "a net", "--dataset", "ucf101")
    assert "give another name" in run_(main, "cache", "import", tmp_path / "in", *listed).output


def test_killed_on_the_way_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npy_per_video(tmp_path / "in")
    monkeypatch.setattr(run, "SHARD_BYTES", 12)
    real, written = writing.write_shard, []

    def dying(self: Any, *what: Any) -> Any:
        if len(written) == 3:
            raise MemoryError
        written.append(what)
        return real(*what)

    monkeypatch.setattr(writing.ShardWriter, "write", dying)
    assert import_(tmp_path / "in", "--fps", "4").exit_code != 0
    monkeypatch.setattr(writing.ShardWriter, "write", lambda self, *what: real(*what))
    with imported(tmp_path / "in") as cache:
        assert 0 < len(cache.video_ids) < 8
    refused = mrrn(train_main, tmp_path, "--level", "high")
    assert "the same `mrrn cache import` continues" in refused.output
    assert import_(tmp_path / "in", "--fps", "4").exit_code == 0
    with imported(tmp_path / "in") as cache:
        assert cache.video_ids == tuple(IDS)


def test_what_changed_is_imported_again(tmp_path: Path) -> None:
    npy_per_video(tmp_path / "in")
    assert import_(tmp_path / "in", "--fps", "4").exit_code == 0
    save(tmp_path / "in" / f"{IDS[2]}.npy", features_of(IDS[2]) * 2)
    text = (tmp_path / "list.csv").read_text().replace(f"{IDS[3]}.avi,climb,none", f"{IDS[3]}.avi,climb,test")
    (tmp_path / "list.csv").write_text(text)
    done = import_(tmp_path / "in", "--fps", "4")
    assert f"1 videos are imported again, because their features have changed: {IDS[2]}" in done.output
    assert f"1 videos are in another half of a split than before: {IDS[3]}" in done.output
    with imported(tmp_path / "in") as cache:
        assert np.array_equal(cache.features(IDS[2], "high"), (features_of(IDS[2]) * 2).astype(np.float16))
        assert list(cache.ledger.replaced_files()) == [IDS[2]]  # so runs from before do not count any more
    refused = import_(tmp_path / "in", "--fps", "4", "--source", "another net")
    assert 'the cache has "imported: a net", this run has "imported: another net"' in refused.output


# -- what is wrong with one video: it fails, the others do not ---------------------------------------------------------


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def declares_terabytes(path: Path) -> None:
    with path.open("wb") as file:
        header = {"shape": (1 << 38, 6), "fortran_order": False, "descr": "<f4"}
        np.lib.format.write_array_header_1_0(file, header)


def with_value(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        changed = features_of(IDS[1]).astype(np.float64)
        changed[2, 3] = value
        np.save(path, changed)

    return write


class Runs:
    """What a pickle would do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("was-run", "w"))


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (truncated, "declares 192 bytes; there are 187"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "declares 192 bytes; there are more"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text": (lambda path: path.write_text("features"), "cannot be read"),
    "a pickle": (lambda path: np.save(path, np.array([Runs()]), allow_pickle=True), "its type is object"),
    "terabytes": (declares_terabytes, "declares 6,597,069,766,656 bytes; expected 1 to 4,294,967,296"),
    "a broken header": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"(4, 6)", b"((4, 6")),
        "cannot be read",
    ),
    "not finite": (with_value(np.nan), "the numbers of frame 2 are not finite"),
    "infinite": (with_value(-np.inf), "the numbers of frame 2 are not finite"),
    "too large": (with_value(1e5), "has numbers up to 1e+05; the largest float16 is 65504"),
    "too small": (lambda path: np.save(path, features_of(IDS[1]) * 1e-9), "too small for float16"),
    "whose squares are nothing": (lambda path: np.save(path, np.full((4, 6), 1e-30, "f4")), "too small for float16"),
    "integers": (
        lambda path: np.save(path, np.ones((4, 6), dtype=np.int32)),
        "is int32 (4, 6); expected",
    ),
    "maps": (lambda path: np.save(path, np.ones((4, 6, 7, 7))), "float64 (4, 6, 7, 7); expected floating-point"),
    "other channels": (
        lambda path: np.save(path, np.ones((4, 5))),
        "(4, 5); expected [views, frames, channels] (1, 4, ",
    ),
    "other views": (
        lambda path: np.save(path, np.ones((2, 4, 6))),
        "(2, 4, 6); expected [views, frames, channels] (1,",
    ),
    "no frames": (lambda path: np.save(path, np.ones((0, 6))), "declares 0 bytes"),
    "complex": (lambda path: np.save(path, np.ones((4, 6), dtype=complex)), "its type is complex128"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_video_whose_features_are_wrong_fails_alone(tmp_path: Path, kind: str) -> None:
    spoil, reason = WRONG[kind]
    npy_per_video(tmp_path / "in")
    path = tmp_path / "in" / f"{IDS[1]}.npy"
    spoil(path)
    done = import_(tmp_path / "in", "--fps", "4")
    assert done.exit_code == 3, done.output
    assert f"failed {IDS[1]}: {path}" in done.output
    assert reason in done.output
    assert "7 done" in done.output
    assert not Path("was-run").exists()
    save(path, features_of(IDS[1]))
    assert import_(tmp_path / "in", "--fps", "4").exit_code == 0


@pytest.mark.parametrize("odd", [IDS[0], IDS[5]])
def test_one_video_of_another_width_is_the_one_that_fails(tmp_path: Path, odd: str) -> None:
    npy_per_video(tmp_path / "in")
    save(tmp_path / "in" / f"{odd}.npy", np.ones((5, 4)))
    done = import_(tmp_path / "in", "--fps", "4")
    assert done.exit_code == 3, done.output
    assert "7 done" in done.output
    expected = "[views, frames, channels] (1, 5, 6), the views and channels of most videos"
    assert f"failed {odd}: {tmp_path}/in/{odd}.npy is (5, 4); expected {expected}" in done.output


def test_damaged_archives_and_times(tmp_path: Path) -> None:
    npz_per_video(tmp_path / "in")
    one, two, three, four = (tmp_path / "in" / f"{video}.npz" for video in IDS[:4])
    content = bytearray(one.read_bytes())
    content[80] ^= 1  # among the compressed numbers of the first array
    one.write_bytes(content)
    truncated(two)
    np.savez(three, low=np.ones((5, 2)), high=np.ones((5, 6)), pts_seconds=np.arange(4))
    np.savez(four, high=np.ones((5, 6)), pts_seconds=np.arange(5))
    done = import_(tmp_path / "in")
    assert done.exit_code == 3
    assert "4 done, 0 suspect (used, but look at them), 4 failed" in done.output
    for path, reason in (
        (one, ", array 'low' cannot be read"),
        (two, " cannot be read: File is not a zip file"),
        (three, ", array 'pts_seconds' has 4 times; expected 5"),
    ):
        assert f"{path}{reason}" in done.output
    assert f"failed {IDS[3]}: there is no array 'low' for level low; there are high, pts_seconds" in done.output


def test_damaged_lzma(tmp_path: Path) -> None:
    npz_per_video(tmp_path / "in")
    path = tmp_path / "in" / f"{IDS[0]}.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("low.npy", bytes(1000))
    content = bytearray(path.read_bytes())
    content[45:60] = b"\xff" * 15
    path.write_bytes(content)
    done = import_(tmp_path / "in")
    assert (done.exit_code, f"{path}, array 'low' cannot be read" in done.output) == (3, True), done.output


def test_a_bomb_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MOST_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "all.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for video in IDS:
            with archive.open(f"{video}.npy", "w") as member:
                np.save(member, np.zeros((1000, 200)))
    assert "declares 1,600,000 bytes; expected 1 to 1,048,576" in import_(tmp_path / "all.npz", "--fps", "4").output


def test_the_list_of_an_archive_of_all_videos_is_read_once(tmp_path: Path) -> None:
    one_npz(tmp_path / "all.npz")
    arrays._archive.cache_clear()
    found, _ = arrays.find_arrays(tmp_path / "all.npz")
    assert all(np.array_equal(found[video].read(), features_of(video)) for video in IDS)
    assert arrays._archive.cache_info().misses == 1


# -- HDF5 that leads elsewhere -----------------------------------------------------------------------------------------


def external_link(file: h5py.File, secret: Path) -> None:
    file[IDS[0]] = h5py.ExternalLink(str(secret), "secret")


def soft_link(file: h5py.File, secret: Path) -> None:
    file[IDS[0]] = h5py.SoftLink(f"/{IDS[1]}")


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(3, 6), dtype="f4")
    layout[:] = h5py.VirtualSource(str(secret), "secret", shape=(3, 6))
    file.create_virtual_dataset(IDS[0], layout)


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset(IDS[0], shape=(3, 6), dtype="f4", external=[(str(secret), 0, 72)])


def circle(file: h5py.File, secret: Path) -> None:
    file["climb/again"] = file["/"]


def huge(file: h5py.File, secret: Path) -> None:
    file.create_dataset(IDS[0], shape=(1 << 30, 512), chunks=(1, 512), dtype="f4")


ELSEWHERE = {
    external_link: "is a link, perhaps to another file",
    soft_link: "is a link, perhaps to another file",
    circle: "has two places in the file",
    virtual: "its numbers lie in other files",
    external_storage: "its numbers lie in other files",
    huge: "declares 2,199,023,255,552 bytes",
}


@pytest.mark.parametrize("spoil", ELSEWHERE, ids=lambda spoil: spoil.__name__)
def test_nothing_is_followed(tmp_path: Path, spoil: Callable[[h5py.File, Path], None]) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = np.ones((3, 6), dtype="f4")
    hdf5_datasets(tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5", "a") as file:
        if spoil is not circle:
            del file[IDS[0]]
        spoil(file, tmp_path / "secret.h5")
    done = import_(tmp_path / "all.h5", "--fps", "4")
    # What the whole file is refused for ends the command, what one array is refused for fails its video.
    assert done.exit_code == (1 if "link" in ELSEWHERE[spoil] or spoil is circle else 3), done.output
    assert f"{tmp_path / 'all.h5'}" in done.output
    assert ELSEWHERE[spoil] in done.output


@pytest.mark.slow
@pytest.mark.parametrize("call", [(time.sleep, 600), (os.abort,)])
def test_hdf5_that_hangs_or_crashes_is_ended(call: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    child = arrays._Child()
    assert child.call(len, "four") == 4
    monkeypatch.setattr(arrays, "HDF5_SECONDS", 1.0)
    with pytest.raises(ValueError, match="does not come to its end within 1 s, or crashes"):
        child.call(*call)
    monkeypatch.setattr(arrays, "HDF5_SECONDS", 300.0)
    assert child.call(len, "four") == 4
    child.pool.terminate()


def test_links_to_other_folders_are_not_followed(tmp_path: Path) -> None:
    npy_per_video(tmp_path / "in")
    np.save(tmp_path / "secret.npy", np.ones((3, 6)))
    (tmp_path / "in" / f"{IDS[0]}.npy").unlink()
    (tmp_path / "in" / f"{IDS[0]}.npy").symlink_to(tmp_path / "secret.npy")
    assert "a link that leads outside" in import_(tmp_path / "in", "--fps", "4").output


# -- what the arrays are ----------------------------------------------------------------------------------------------


def test_what_is_open_is_asked(tmp_path: Path) -> None:
    hdf5_groups(tmp_path / "all.h5")
    assert "the arrays flow, rgb: say which of them" in import_(tmp_path / "all.h5").output
    hdf5_datasets(tmp_path / "one.h5")
    refused = import_(tmp_path / "one.h5").output
    assert f"array '{IDS[0]}': nothing says when these 3 frames are. Give --fps" in refused
    assert "'deep=rgb' is not LEVEL=NAME" in import_(tmp_path / "all.h5", "--array", "deep=rgb").output


def test_missing_and_unlisted_ones_are_named(tmp_path: Path) -> None:
    npy_per_video(tmp_path / "in")
    (tmp_path / "in" / f"{IDS[3]}.npy").rename(tmp_path / "in" / "other.npy")
    (tmp_path / "in" / "notes.txt").write_text("x")
    refused = import_(tmp_path / "in", "--fps", "4")
    assert f"1 of 8 listed videos are missing: {IDS[3]}" in refused.output
    done = import_(tmp_path / "in", "--fps", "4", "--subset")
    assert done.exit_code == 0, done.output
    assert "1 arrays are of no listed video: other" in done.output
    assert "files passed over, by suffix: 1 .txt" in done.output
    with imported(tmp_path / "in") as cache:
        assert cache.dataset.subset is not None
        assert cache.dataset.subset.missing == (IDS[3],)
    (tmp_path / "elsewhere").mkdir()
    assert "no array is of a listed video" in import_(tmp_path / "elsewhere").output


def test_the_longest_id_has_the_array_and_no_array_has_two(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("video,label,split1\na,x,train\na_b,y,train\na_b_c,x,test\n")
    for name in ("a_rgb", "a_b_rgb", "a_b_c_rgb"):
        save(tmp_path / "in" / f"{name}.npy", np.full(3, len(name)))
    for name in ("a_rgb", "a_b_rgb", "a_b_c_rgb"):
        save(tmp_path / "in" / f"{name}.npy", np.full(3, float(len(name))))
    assert import_(tmp_path / "in").exit_code == 0
    with imported(tmp_path / "in") as cache:
        assert [float(cache.features(video, "high")[0, 0]) for video in ("a", "a_b", "a_b_c")] == [5, 7, 9]
    np.savez(tmp_path / "in" / "a.npz", rgb=np.ones(3))
    assert "are both of video 'a'" in import_(tmp_path / "in").output
