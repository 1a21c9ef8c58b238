"""What extraction is asked for: one frozen record that decides the features, and the fingerprint that names them."""

from dataclasses import dataclass, field

from cache.common.errors import MrrnError
from cache.fingerprint import CENTER_VIEW, DTYPE, FORMAT_VERSION, LEVELS, Fingerprint, Level
from extract.decode import DEFAULT_DECODER, Limits, decoder_version
from extract.network.backbones import PRECISIONS, Precision
from extract.network.preprocess import TRANSFORM
from extract.network.weights import BACKBONES, IMAGENET


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """Everything that the features of a video depend on, but for the weights' numbers themselves."""

    weights: str = IMAGENET
    """imagenet1k_v1, random:SEED, or a .pth or .safetensors file."""
    backbone: str = "resnet34"
    levels: tuple[Level, ...] = LEVELS
    """Which levels are kept, shallow to deep; what lies above the deepest is not computed."""
    views: tuple[str, ...] = (CENTER_VIEW,)
    """Crops of each video; the first one is `center`."""
    views_seed: int = 0
    """Decides the random views, together with the video's id and the view's name."""
    device: str = "cpu"
    """cpu, cuda or cuda:INDEX."""
    precision: Precision = "fp32"
    """What the network computes in."""
    batch_frames: int = 32
    """Crops in one batch of the network; every batch has this size."""
    decoder: str = DEFAULT_DECODER
    max_frames: int | None = None
    """Only the first so many frames of a video (after `fps`); None for all."""
    fps: float | None = None
    """At most so many frames a second; None for all."""
    jobs: int = 1
    """Videos decoded at the same time, each in a process of its own. Does not change the features."""
    limits: Limits = field(default_factory=Limits)
    """What one video may cost; a video that exceeds them fails."""

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES or self.precision not in PRECISIONS:
            raise MrrnError(f"backbone {self.backbone!r} with precision {self.precision!r} is not offered")
        if not self.levels or self.levels != tuple(level for level in LEVELS if level in self.levels):
            raise MrrnError(f"levels {self.levels} are not some of {LEVELS}, shallow to deep")
        if self.views[:1] != (CENTER_VIEW,):
            raise MrrnError(f"views {self.views} do not begin with {CENTER_VIEW}")
        if self.batch_frames < 1 or self.jobs < 1:
            raise MrrnError(f"batch of {self.batch_frames} frames, {self.jobs} jobs: both have to be at least 1")


def fingerprint(settings: ExtractSettings, *, weights_text: str, weights_sha256: str) -> Fingerprint:
    """What the features made with `settings` depend on."""
    from importlib import metadata

    return Fingerprint(
        identity={
            "weights_sha256": weights_sha256,
            "weights": weights_text,
            "backbone": settings.backbone,
            "levels": list(settings.levels),
            "transform": TRANSFORM,
            "views": list(settings.views),
            "views_seed": settings.views_seed,
            "dtype": DTYPE,
            "format_version": FORMAT_VERSION,
            "max_frames": settings.max_frames,
            "fps": settings.fps,
        },
        environment={
            "decoder": settings.decoder,
            "decoder_version": decoder_version(settings.decoder),
            "torch": metadata.version("torch"),
            "torchvision": metadata.version("torchvision"),
            "device": device_name(settings.device),
            "precision": settings.precision,
            "batch_frames": settings.batch_frames,
        },
    )


def device_name(device: str) -> str:
    """What the fingerprint calls the device: cpu, or the name of the GPU's model."""
    if not device.startswith("cuda"):
        return device
    import torch

    return f"cuda ({torch.cuda.get_device_name(device)})"
