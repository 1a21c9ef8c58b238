"""Which decoder is fastest on the user's own videos, and where the time of an extraction goes. Measured, not guessed.

Every figure comes from the code that extraction runs: the decode pool, the engine, the shard writer.
"""

import os
import random
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from cache.common.errors import DatasetError, DecodeError
from cache.common.files import write_bytes_durably
from cache.fingerprint import CHANNELS
from cache.ledger import Outcome
from cache.shards import encode
from extract.decode import DecodePool, FrameBlock, Limits, MissingDecoderError, VideoEnd, decoder_version, open_regular
from extract.meter import STAGES, Meter
from extract.network.engine import Engine
from extract.network.preprocess import Crop, crop_of
from extract.pipeline import VideoFeatures, decode_settings, features_of_frames
from extract.settings import ExtractSettings
from extract.shards import shard_data

SAMPLE_VIDEOS: Final = 64
"""Videos looked at; a run that is over before its time begins with them again."""


@dataclass(frozen=True, kw_only=True)
class DecodeRate:
    """One decoder alone, with all its workers."""

    decoder: str
    version: str
    missing: str = ""
    """Why it could not be tried; then there are no figures."""
    frames: int = 0
    seconds: float = 0.0
    """From the first block on, so without the start of the workers."""
    processor_seconds: float = 0.0
    """Of the workers, their start included."""
    videos: int = 0
    failed: int = 0
    suspect: int = 0

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def rate_per_core(self) -> float:
        """Frames for each second of processor time."""
        return self.frames / self.processor_seconds if self.processor_seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """A whole extraction with one decoder."""

    rate: float
    """Frames a second."""
    shares: dict[str, float]
    """Of the driving thread's time, by `extract.meter.STAGES`."""


@dataclass(frozen=True, kw_only=True)
class Alone:
    """Each later stage on ready input, frames a second."""

    transfer: float
    """Host memory to resized crops on the device."""
    forward: float
    """The network on ready batches."""
    write: float
    """Features into a shard, to the disk and fsynced."""


def sample_videos(paths: Sequence[Path], count: int = SAMPLE_VIDEOS) -> list[tuple[str, Path]]:
    """Up to `count` videos among files and folders (searched), drawn with a fixed seed."""
    files = [path for path in paths if not path.is_dir()]
    for folder in (path for path in paths if path.is_dir()):
        files += sorted(path for path in folder.rglob("*") if path.is_file())
    random.Random(0).shuffle(files)
    videos: list[tuple[str, Path]] = []
    for path in files:
        if len(videos) == count:
            break
        if _is_video(path):
            videos.append((str(path), path.absolute()))
    if not videos:
        raise DatasetError(f"no videos among {len(files)} files in {', '.join(map(str, paths))}: name files or folders")
    return videos


def _is_video(path: Path) -> bool:
    try:
        descriptor, _ = open_regular(path, Limits().file_bytes)
    except DecodeError:
        return False
    os.close(descriptor)
    return True


def measure_decoder(settings: ExtractSettings, videos: Sequence[tuple[str, Path]], seconds: float) -> DecodeRate:
    """Decode `videos`, over and over, for `seconds`; frames are counted and thrown away."""
    try:
        version = decoder_version(settings.decoder)
        return _decode(settings, videos, seconds, version)
    except MissingDecoderError as error:
        return DecodeRate(decoder=settings.decoder, version="", missing=str(error))


def _decode(settings: ExtractSettings, videos: Sequence[tuple[str, Path]], seconds: float, version: str) -> DecodeRate:
    before = _children_seconds()
    frames, started, ends = 0, time.monotonic(), []
    with DecodePool(decode_settings(settings)) as pool, closing(pool.decode(_repeat(videos))) as stream:
        first = next(stream)
        started = time.monotonic()
        for item in _for_seconds(stream, seconds):
            if isinstance(item, FrameBlock):
                frames += len(item.frames_FHW3)
                item.release()
            else:
                ends.append(item.outcome.status)
        if isinstance(first, FrameBlock):
            first.release()
        elapsed = time.monotonic() - started
    return DecodeRate(
        decoder=settings.decoder,
        version=version,
        frames=frames,
        seconds=elapsed,
        processor_seconds=_children_seconds() - before,
        videos=len(ends),
        failed=ends.count("failed"),
        suspect=ends.count("suspect"),
    )


def measure_end_to_end(
    settings: ExtractSettings, engine: Engine, videos: Sequence[tuple[str, Path]], seconds: float
) -> EndToEnd:
    """Extract `videos`, over and over, for `seconds`; the features are thrown away."""
    meter = Meter()
    numbered = ((f"{number} {video_id}", path) for number, (video_id, path) in enumerate(_repeat(videos)))
    with DecodePool(decode_settings(settings)) as pool, closing(pool.decode(numbered)) as stream:
        first = next(stream)
        started = time.monotonic()
        for _ in features_of_frames(_for_seconds(stream, seconds, first), settings, engine, meter):
            pass
        elapsed = time.monotonic() - started
    total = sum(meter.seconds.values())
    return EndToEnd(rate=meter.frames / elapsed, shares={stage: meter.seconds[stage] / total for stage in STAGES})


def measure_alone(
    settings: ExtractSettings, engine: Engine, videos: Sequence[tuple[str, Path]], seconds: float
) -> Alone:
    """The stages behind the decoder, each on ready input, for `seconds` in all."""
    frames_FHW3 = _first_frames(settings, videos)
    crops = [crop_of("", view, settings.views_seed) for view in settings.views]
    transfer = _transfer_rate(engine, frames_FHW3, crops, seconds / 3)
    forward = _forward_rate(engine, frames_FHW3, crops, seconds / 3)
    return Alone(transfer=transfer, forward=forward / len(settings.views), write=_write_rate(settings, seconds / 3))


def _first_frames(settings: ExtractSettings, videos: Sequence[tuple[str, Path]]) -> np.ndarray:
    """A block of frames of the first video that has one."""
    with (
        DecodePool(decode_settings(replace(settings, jobs=1))) as pool,
        closing(pool.decode(videos)) as stream,
    ):
        for item in stream:
            if isinstance(item, FrameBlock):
                return item.frames_FHW3.copy()
    raise DecodeError(f"none of {len(videos)} videos could be decoded with {settings.decoder}")


def _transfer_rate(engine: Engine, frames_FHW3: np.ndarray, crops: Sequence[Crop], seconds: float) -> float:
    rows = engine.prepare(frames_FHW3, crops)
    count, started = 0, time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds or not count:
        rows = engine.prepare(frames_FHW3, crops)
        count += len(frames_FHW3)
    # The last copy may still be under way on a device that works by itself; reading it back waits.
    rows.cpu()
    return count / max(elapsed, time.monotonic() - started)


def _forward_rate(engine: Engine, frames_FHW3: np.ndarray, crops: Sequence[Crop], seconds: float) -> float:
    """Crops a second."""
    rows = engine.prepare(frames_FHW3, crops).flatten(0, 1)
    for start in range(0, engine.batch_rows, len(rows)):
        engine.fill(rows[: engine.batch_rows - start], start)
    engine.submit()
    engine.fetch()
    count, under_way, started = 0, 0, time.monotonic()
    while time.monotonic() - started < seconds or not count:
        engine.submit()
        under_way += 1
        if under_way > engine.depth:
            engine.fetch()
            under_way -= 1
        count += engine.batch_rows
    for _ in range(under_way):
        engine.fetch()
    return count / (time.monotonic() - started)


def _write_rate(settings: ExtractSettings, seconds: float) -> float:
    frames = 2048
    features = {level: np.ones((len(settings.views), frames, CHANNELS[level]), np.float16) for level in settings.levels}
    outcome = Outcome(video_id="probe", status="done", num_frames=frames)
    data = shard_data([VideoFeatures(outcome=outcome, features=features, pts_seconds=np.arange(frames, dtype=float))])
    assert data is not None
    count, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() - started < seconds or not count:
            for name, content in encode("h5", data).items():
                write_bytes_durably(Path(folder) / f"shard{name}", content)
            count += frames
        return count / (time.monotonic() - started)


def _repeat(videos: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    while True:
        yield from videos


def _for_seconds(
    stream: Iterable[FrameBlock | VideoEnd], seconds: float, first: FrameBlock | VideoEnd | None = None
) -> Iterator[FrameBlock | VideoEnd]:
    """The items that come within `seconds`, after `first`."""
    if first is not None:
        yield first
    deadline = time.monotonic() + seconds
    for item in stream:
        yield item
        if time.monotonic() > deadline:
            return


def _children_seconds() -> float:
    """Processor time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
