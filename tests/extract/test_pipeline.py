"""Videos in, features and outcomes out: bits that depend on the video alone, one outcome each, whatever else runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import v2

from cache.ledger import Outcome
from extract.decode import FrameBlock, VideoEnd
from extract.meter import Meter
from extract.network.engine import Engine, open_engine
from extract.network.weights import Weights, load_weights
from extract.pipeline import VideoFeatures, extract_features, features_of_frames
from extract.settings import ExtractSettings
from tests.helpers.video import encode

torch.set_num_threads(1)  # tests share the machine; no bit depends on it (test_extract_backbone.py)

SETTINGS = ExtractSettings(
    weights="random:0", backbone="resnet18", views=("center", "random0"), precision="fp32", batch_frames=4
)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0", "resnet18")


@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def engine(request, weights) -> Engine:
    return open_engine(replace(SETTINGS, precision=request.param), weights)


def video(video_id: str, frames: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    random = np.random.default_rng(list(video_id.encode()))
    return random.integers(0, 256, (frames, *size, 3), dtype=np.uint8)


class Stream:
    """Blocks as a decode pool gives them, and whether each was given back."""

    def __init__(self) -> None:
        self.items: list[FrameBlock | VideoEnd] = []
        self.held = 0

    def block(self, video_id: str, first: int, frames: np.ndarray) -> None:
        self.held += 1
        times = np.arange(first, first + len(frames)) / 25
        self.items.append(
            FrameBlock(
                video_id=video_id, first_frame=first, frames_FHW3=frames, pts_seconds_F=times, on_release=self._free
            )
        )

    def end(self, video_id: str, frames: int, status: str = "done", reason: str = "") -> None:
        self.items.append(VideoEnd(Outcome(video_id=video_id, status=status, reason=reason, num_frames=frames)))

    def whole(self, video_id: str, frames: np.ndarray) -> "Stream":
        self.block(video_id, 0, frames)
        self.end(video_id, len(frames))
        return self

    def _free(self) -> None:
        self.held -= 1


def run(stream: Stream, engine: Engine, settings: ExtractSettings = SETTINGS) -> dict[str, VideoFeatures]:
    results = list(features_of_frames(stream.items, settings, engine, Meter()))
    assert stream.held == 0
    by_id = {result.outcome.video_id: result for result in results}
    assert len(by_id) == len(results)
    return by_id


def test_features_are_the_same_alone_packed_and_in_any_order(engine):
    clips = {f"v{index}": video(f"v{index}", frames) for index, frames in enumerate([3, 1, 5])}
    alone = {name: run(Stream().whole(name, frames), engine)[name] for name, frames in clips.items()}
    mixed = Stream()
    mixed.block("v2", 0, clips["v2"][:2])
    mixed.whole("v0", clips["v0"])
    mixed.block("v2", 2, clips["v2"][2:])
    mixed.whole("v1", clips["v1"])
    mixed.end("v2", 5)
    packed = run(mixed, engine)
    assert packed.keys() == alone.keys()
    for name in clips:
        assert packed[name].outcome == alone[name].outcome
        assert np.array_equal(packed[name].pts_seconds, np.arange(len(clips[name])) / 25)
        for level, width in {"low": 128, "mid": 256, "high": 512}.items():
            assert packed[name].features[level].shape == (2, len(clips[name]), width)
            assert np.array_equal(packed[name].features[level], alone[name].features[level])


def test_a_failed_video_costs_its_neighbours_nothing(weights):
    engine = open_engine(SETTINGS, weights)
    good = video("good", 3)
    alone = run(Stream().whole("good", good), engine)["good"]
    stream = Stream()
    stream.block("bad", 0, video("bad", 2))
    stream.block("good", 0, good)
    stream.end("bad", 0, "failed", "the child died")
    stream.end("empty", 0, "failed", "no frames")
    stream.end("good", 3)
    results = run(stream, engine)
    assert results["bad"].outcome.reason == "the child died"
    assert results["empty"].features == results["bad"].features == {}
    for level, features in alone.features.items():
        assert np.array_equal(results["good"].features[level], features)


def test_features_beyond_float16_fail_the_video_by_name_and_level(weights):
    huge = {name: value * 1e6 if name == "layer4.0.bn1.weight" else value for name, value in weights.tensors.items()}
    engine = open_engine(SETTINGS, Weights(text="huge", backbone="resnet18", tensors=huge, sha256=""))
    result = run(Stream().whole("v", video("v", 2)), engine)["v"]
    assert result.outcome.status == "failed"
    assert result.outcome.num_frames == 0
    assert "frame 0, level high, are not finite or beyond 65504" in result.outcome.reason
    assert not result.features


def test_frames_too_narrow_to_be_scaled_are_refused(weights):
    stream = Stream().whole("narrow", np.zeros((1, 2, 4000, 3), np.uint8)).whole("good", video("good", 1))
    results = run(stream, open_engine(SETTINGS, weights))
    assert "4000 x 2" in results["narrow"].outcome.reason
    assert results["narrow"].outcome.status == "failed"
    assert results["good"].outcome.status == "done"


def test_files_go_through_real_decoders(tmp_path, weights):
    good = encode(tmp_path / "good.mp4", 5)
    (tmp_path / "empty.avi").touch()
    engine, meter = open_engine(SETTINGS, weights), Meter()
    videos = [("good", good), ("empty", tmp_path / "empty.avi"), ("gone", tmp_path / "gone.avi")]
    results = {r.outcome.video_id: r for r in extract_features(videos, SETTINGS, engine=engine, meter=meter)}
    assert {name: result.outcome.status for name, result in results.items()} == {
        "good": "done", "empty": "failed", "gone": "failed",
    }  # fmt: skip
    assert results["good"].features["high"].shape == (2, 5, 512)
    assert meter.frames == 5
    assert meter.shares().startswith("decode ")


def independent_features(path: Path, weights: Path, frames: int) -> dict[str, torch.Tensor]:
    """Decoded with PyAV, torchvision's own transform, network and feature extractor, fp32."""
    import av

    preset = v2.Compose([
        v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    net = models.resnet34(weights=None).eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    extractor = create_feature_extractor(net, {"layer2": "low", "layer3": "mid", "layer4": "high"})
    with av.open(str(path)) as container, torch.no_grad():
        decoded = [
            frame.to_ndarray(format="rgb24") for _, frame in zip(range(frames), container.decode(video=0), strict=False)
        ]
        maps = [extractor(preset(torch.from_numpy(frame).permute(2, 0, 1))[None]) for frame in decoded]
    return {level: torch.cat([one[level].mean((2, 3)) for one in maps]) for level in ("low", "mid", "high")}


@pytest.mark.slow
@pytest.mark.shared
def test_five_real_videos_against_an_independent_computation(shared, stand_in_weights):
    """The first frames of each; benchmarks/extract.py compares whole videos."""
    frames = 2
    files = sorted((shared / "data" / "ucf101-sample" / "UCF-101").rglob("*.avi"))[::25]
    files = [*files[:4], *sorted((shared / "data" / "kinetics-sample").glob("*.mp4"))[:1]]
    assert len(files) == 5
    expected = {file.stem: independent_features(file, stand_in_weights, frames) for file in files}
    for precision in ("fp32", "bf16"):
        settings = ExtractSettings(
            weights=str(stand_in_weights), precision=precision, batch_frames=8, max_frames=frames
        )
        for result in extract_features([(file.stem, file) for file in files], settings):
            for level, theirs in expected[result.outcome.video_id].items():
                ours = torch.from_numpy(result.features[level][0]).float()
                assert ours.shape == theirs.shape
                if precision == "fp32":
                    relative = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
                    assert relative.max() < 1e-3
                assert torch.cosine_similarity(ours, theirs).min() > 0.999
