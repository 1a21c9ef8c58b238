"""Extraction against a plain script, on the same videos and weights: how many times as fast, with the same features.

    python -m benchmarks.naive VIDEOS --weights FILE --videos 5

The script is the first that one would write, in the manner of video_features: one video at a time, frames by PyAV as
PIL images, torchvision's transform of each, batches of one video alone, fp32, features by `create_feature_extractor`.
Both get the same number of threads. The times exclude loading the weights; ours includes starting the decoders and
every commit. Prints both rates in frames per second and their ratio. The cosine between the features of both has to be
at least 0.999 in every frame and level, or nothing is reported.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import click
import numpy as np
import torch
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import v2

from benchmarks.extract import choose_videos, end_to_end
from cache.store import FeatureCache
from extract.device import CPU_BATCH, default_jobs, default_precision
from extract.network.engine import open_engine
from extract.network.preprocess import MEAN, STD
from extract.network.weights import Weights, load_weights
from extract.settings import ExtractSettings

BATCH = 32


def naive_features(path: Path, extractor: torch.nn.Module, max_frames: int | None) -> dict[str, np.ndarray]:
    """Features `[F, C]` of each level of one video, fp32."""
    to_float, scaled = v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)
    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor(), to_float, scaled])
    parts: dict[str, list[torch.Tensor]] = {"low": [], "mid": [], "high": []}
    with torch.no_grad():
        for batch in batches(path, transform, max_frames):
            for level, maps in extractor(batch).items():
                parts[level].append(maps.mean((2, 3)))
    return {level: torch.cat(pieces).numpy() for level, pieces in parts.items()}


def batches(path: Path, transform: v2.Compose, max_frames: int | None) -> Iterator[torch.Tensor]:
    """Transformed frames of one video, up to 32 at a time."""
    frames: list[torch.Tensor] = []
    with av.open(str(path), metadata_errors="ignore") as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == max_frames:
                break
            frames.append(transform(frame.to_image()))
            if len(frames) == BATCH:
                yield torch.stack(frames)
                frames = []
    if frames:
        yield torch.stack(frames)


def naive_extractor(weights: Weights) -> torch.nn.Module:
    """torchvision's own network, fp32."""
    net = models.resnet34(weights=None).eval()
    net.load_state_dict(dict(weights.tensors), strict=False)
    return create_feature_extractor(net, {"layer2": "low", "layer3": "mid", "layer4": "high"})


@click.command()
@click.argument("root", metavar="VIDEOS", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", "spec", default="random:0", show_default=True)
@click.option("--videos", "count", default=5, show_default=True, help="Number of videos, evenly chosen.")
@click.option("--max-frames", type=int, help="Frames per video. [default: all]")
def main(root: Path, spec: str, count: int, max_frames: int | None) -> None:
    """Time extraction against a plain script on the same videos."""
    settings = ExtractSettings(
        weights=spec,
        precision=default_precision("cpu"),
        batch_frames=CPU_BATCH,
        jobs=default_jobs("cpu"),
        max_frames=max_frames,
    )
    weights, videos = load_weights(spec, settings.backbone), choose_videos(root, count, 1)
    extractor, engine = naive_extractor(weights), open_engine(settings, weights)
    with tempfile.TemporaryDirectory() as folder:
        rate, meter, _ = end_to_end(videos, settings, weights, engine, Path(folder))
        started = time.perf_counter()
        theirs = {video_id: naive_features(path, extractor, max_frames) for video_id, path in videos.items()}
        naive_rate = meter.frames / (time.perf_counter() - started)
        with FeatureCache.open(Path(folder) / "cache") as cache:
            cosine = least_cosine(cache, theirs)
    if cosine < 0.999:
        raise SystemExit(f"features do not agree (cosine {cosine:.5f}); nothing is reported")
    threads = torch.get_num_threads()
    click.echo(f"{len(videos)} videos, {meter.frames} frames, {threads} threads, weights {weights.text}")
    click.echo(f"features agree: cosine at least {cosine:.5f} in every frame and level")
    click.echo(f"plain script, fp32: {naive_rate:.1f} frames/s")
    click.echo(f"ours, {settings.precision}: {rate:.1f} frames/s")
    click.echo(f"ours is {rate / naive_rate:.2f} times as fast")


def least_cosine(cache: FeatureCache, theirs: dict[str, dict[str, np.ndarray]]) -> float:
    """Lowest cosine over all videos, levels and frames; 0 if a video's lengths differ."""
    least = 1.0
    for video_id, levels in theirs.items():
        for level in cache.levels:
            ours, other = torch.from_numpy(cache.features(video_id, level)).float(), torch.from_numpy(levels[level])
            if ours.shape != other.shape:
                return 0.0
            least = min(least, float(torch.cosine_similarity(ours, other).min()))
    return least


if __name__ == "__main__":
    main()
