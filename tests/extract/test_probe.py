"""The probe: what it draws, what it measures, what it says."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cache.common.errors import DatasetError, DecodeError
from extract.cli import probe_command
from extract.decode import MissingDecoderError
from extract.network.engine import open_engine
from extract.network.weights import load_weights
from extract.probe import measure_decoder, measure_end_to_end, measure_network, sample_videos
from extract.settings import ExtractSettings
from tests.helpers.decoding import without
from tests.helpers.video import encode

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = ExtractSettings(weights="random:0", backbone="shufflenet_v2_x0_5", batch_frames=4, jobs=1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos among other files."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "class").mkdir()
    for name in ("a.mp4", "class/b.avi", "class/c.mkv"):
        encode(folder / name, 40)
    (folder / "notes.txt").write_text("no video")
    (folder / "list.m3u8").write_text("#EXTM3U\na.mp4\n")
    return folder


def test_videos_are_found_by_content_and_drawn_the_same_way_each_time(folder: Path) -> None:
    found = sample_videos([folder])
    assert sorted(path.name for _, path in found) == ["a.mp4", "b.avi", "c.mkv"]
    assert found == sample_videos([folder])
    assert len(sample_videos([folder], count=2)) == 2
    assert [path.name for _, path in sample_videos([folder / "a.mp4"])] == ["a.mp4"]
    with pytest.raises(DatasetError, match="no videos among 1 files"):
        sample_videos([folder / "notes.txt"])


def test_a_decoder_alone_is_timed_and_its_outcomes_counted(folder: Path) -> None:
    (folder / "class" / "liar.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    rate = measure_decoder(SETTINGS, [("a", folder / "a.mp4"), ("liar", folder / "class" / "liar.mp4")], 0.5)
    assert rate.rate > 80
    assert rate.rate_per_core > 0
    assert rate.failed > 0
    assert rate.version.startswith("av ")


def test_a_missing_decoder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise MissingDecoderError(f"{name} is missing")

    monkeypatch.setattr("extract.probe.decoder_version", missing)
    with pytest.raises(MissingDecoderError, match="pyav is missing"):
        measure_decoder(SETTINGS, [("a", folder / "a.mp4")], 0.5)


@pytest.mark.slow
def test_the_stages_and_the_whole_are_timed(folder: Path) -> None:
    engine = open_engine(SETTINGS, load_weights(SETTINGS.weights, SETTINGS.backbone))
    videos = [("a", folder / "a.mp4")]
    rate, shares = measure_end_to_end(SETTINGS, engine, videos, 1.0)
    assert rate > 0
    assert sum(shares.values()) == pytest.approx(1)
    assert measure_network(SETTINGS, engine, videos, 0.3) > 0
    with pytest.raises(DecodeError, match="none of 1 videos could be decoded"):
        measure_network(SETTINGS, engine, [("list", folder / "list.m3u8")], 0.3)


@pytest.mark.slow
def test_the_command_prints_a_table_and_says_what_follows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extract.probe.DECODER_NAMES", ("pyav", "torchcodec"))
    without(monkeypatch, "torchcodec")
    options = [
        "--seconds",
        "0.5",
        "--device",
        "cpu",
        "--jobs",
        "1",
        "--backbone",
        "shufflenet_v2_x0_5",
        "--batch-frames",
        "4",
    ]
    result = CliRunner().invoke(probe_command, [str(folder), *options])
    assert result.exit_code == 0, result.output
    assert "decoded at once, network on cpu" in result.output
    assert any(line.startswith("pyav (av ") for line in result.output.splitlines())
    assert "pip install torchcodec" in result.output
    assert "fastest decoder: pyav; end to end they differ by less than 5 %" in result.output
    assert "each alone, frames/s: decoding" in result.output
