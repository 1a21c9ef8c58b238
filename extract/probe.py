"""Measures which decoder is fastest on the user's own videos, and where the time of an extraction goes.

Every figure comes from the code that extraction runs: the decode pool and the engine.
"""

import os
import random
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Final

from cache.common.errors import DatasetError, DecodeError
from extract.decode import (
    DECODER_NAMES,
    DecodePool,
    FrameBlock,
    Limits,
    MissingDecoderError,
    VideoEnd,
    decoder_version,
    open_regular,
)
from extract.meter import STAGES, Meter
from extract.network.engine import Engine, open_engine
from extract.network.preprocess import crop_of
from extract.network.weights import load_weights
from extract.pipeline import decode_settings, features_of_frames
from extract.settings import ExtractSettings

SAMPLE_VIDEOS: Final = 64
"""Videos that are measured with; a measurement that is through with them before its time begins again."""

_STAGE_TEXTS = {"decode": "decoding", "transfer": "resizing and copying", "forward": "the network", "write": "writing"}
_SAME = 0.05
"""Relative difference below which two rates count as equal."""


@dataclass(frozen=True, kw_only=True)
class DecodeRate:
    """One decoder alone, with all its workers."""

    decoder: str
    version: str
    rate: float
    """Frames a second, from the first block on: without the start of the workers."""
    rate_per_core: float
    """Frames for each second of the workers' processor time, including their start."""
    failed: int
    suspect: int


def measured(settings: ExtractSettings, paths: Sequence[Path], seconds: float) -> Iterator[str]:
    """Measures each decoder on videos of `paths`, `seconds` for each measurement; yields lines as they are known."""
    videos = sample_videos(paths)
    engine = open_engine(settings, load_weights(settings.weights, settings.backbone))
    yield f"{len(videos)} videos, {settings.jobs} decoded at once, network on {settings.device} in {settings.precision}"
    yield f"{'decoder':<28}{'frames/s':>10}{'per core':>10}{'failed':>8}{'suspect':>9}{'end to end':>12}"
    rates: list[tuple[DecodeRate, float, dict[str, float]]] = []
    for name in DECODER_NAMES:
        chosen = replace(settings, decoder=name)
        try:
            alone = measure_decoder(chosen, videos, seconds)
        except MissingDecoderError as error:
            yield f"{name:<28}{error}"
            continue
        whole, shares = measure_end_to_end(chosen, engine, videos, seconds)
        rates.append((alone, whole, shares))
        yield (
            f"{f'{name} ({alone.version})':<28}{alone.rate:>10,.0f}{alone.rate_per_core:>10,.0f}"
            f"{alone.failed:>8}{alone.suspect:>9}{whole:>12,.1f}"
        )
    yield _verdict(rates, measure_network(settings, engine, videos, seconds))


def _verdict(rates: Sequence[tuple[DecodeRate, float, dict[str, float]]], network_rate: float) -> str:
    """Which decoder to take, where the time goes, and what decoding and the network could do alone."""
    fastest = max((alone for alone, _, _ in rates), key=lambda alone: alone.rate)
    chosen, whole, shares = max(rates, key=lambda row: row[1])
    slowest = min(rate for _, rate, _ in rates)
    waits = ", ".join(f"{_STAGE_TEXTS[stage]} {100 * share:.0f} %" for stage, share in shares.items())
    choice = (
        f"end to end they differ by less than {100 * _SAME:.0f} %: decoding is not what limits the extraction"
        if slowest > (1 - _SAME) * whole
        else f"fastest end to end: {chosen.decoder}, {whole / slowest:.2f} times the slowest"
    )
    return (
        f"fastest decoder: {fastest.decoder}; {choice}\n"
        f"time of the extraction with {chosen.decoder}: waiting for {waits}\n"
        f"each alone, frames/s: decoding {chosen.rate:,.0f}, the network {network_rate:,.0f}"
    )


def sample_videos(paths: Sequence[Path], count: int = SAMPLE_VIDEOS) -> list[tuple[str, Path]]:
    """Up to `count` videos among files and folders (searched), drawn with a fixed seed."""
    files = [path for path in paths if not path.is_dir()]
    for folder in (path for path in paths if path.is_dir()):
        files += sorted(path for path in folder.rglob("*") if path.is_file())
    random.Random(0).shuffle(files)
    videos = [(str(path), path.absolute()) for path in islice(filter(_is_video, files), count)]
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
    """Decode `videos` again and again for `seconds`; the frames are counted and dropped.

    Raises MissingDecoderError if the decoder is not installed.
    """
    version = decoder_version(settings.decoder)
    before, frames, ends = _children_seconds(), 0, []
    with DecodePool(decode_settings(settings)) as pool, closing(pool.decode(cycle(videos))) as stream:
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
        rate=frames / elapsed,
        rate_per_core=frames / (_children_seconds() - before),
        failed=ends.count("failed"),
        suspect=ends.count("suspect"),
    )


def measure_end_to_end(
    settings: ExtractSettings, engine: Engine, videos: Sequence[tuple[str, Path]], seconds: float
) -> tuple[float, dict[str, float]]:
    """Extract `videos` again and again for `seconds`; the features are dropped.

    Returns frames a second, and the shares of the main thread's time by `extract.meter.STAGES`.
    """
    meter = Meter()
    numbered = ((f"{number} {video_id}", path) for number, (video_id, path) in enumerate(cycle(videos)))
    with DecodePool(decode_settings(settings)) as pool, closing(pool.decode(numbered)) as stream:
        first = next(stream)
        started = time.monotonic()
        for _ in features_of_frames(chain([first], _for_seconds(stream, seconds)), settings, engine, meter):
            pass
        elapsed = time.monotonic() - started
    total = sum(meter.seconds.values())
    return meter.frames / elapsed, {stage: meter.seconds[stage] / total for stage in STAGES}


def measure_network(
    settings: ExtractSettings, engine: Engine, videos: Sequence[tuple[str, Path]], seconds: float
) -> float:
    """Frames a second of the network alone, on a batch that is ready on its device.

    Raises DecodeError if none of `videos` gives a frame to fill it with.
    """
    crops = [crop_of("", view, settings.views_seed) for view in settings.views]
    with DecodePool(decode_settings(replace(settings, jobs=1))) as pool, closing(pool.decode(videos)) as stream:
        block = next((item for item in stream if isinstance(item, FrameBlock)), None)
        if block is None:
            raise DecodeError(f"none of {len(videos)} videos could be decoded with {settings.decoder}")
        rows = engine.prepare(block.frames_FHW3, crops).flatten(0, 1)
    for start in range(0, engine.batch_rows, len(rows)):
        engine.fill(rows[: engine.batch_rows - start], start)
    engine.submit()
    engine.fetch()
    batches, started = 0, time.monotonic()
    while time.monotonic() - started < seconds or not batches:
        engine.submit()
        batches += 1
        if batches > engine.depth:
            engine.fetch()
    for _ in range(min(batches, engine.depth)):
        engine.fetch()
    return batches * engine.batch_rows / len(settings.views) / (time.monotonic() - started)


def _for_seconds(stream: Iterator[FrameBlock | VideoEnd], seconds: float) -> Iterator[FrameBlock | VideoEnd]:
    """The items that come within `seconds`, and the one that comes next."""
    deadline = time.monotonic() + seconds
    for item in stream:
        yield item
        if time.monotonic() > deadline:
            return


def _children_seconds() -> float:
    """Processor time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
