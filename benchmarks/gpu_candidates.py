"""What might make a GPU faster, measured beside what is done today: results compared first, then both timed in turns.

    python -m benchmarks.gpu_candidates --out candidates.json      # on a GPU; gpu_check.py runs it

None of this is part of the product: a default changes only on a measured gain. A candidate that gives other results, or
that cannot run here, says so in its line and stops no other.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu_profile import CLASSES, FRAME, random_bank
from benchmarks.turns import take_turns, wait_for
from cache.common.files import write_json_durably
from cache.fingerprint import CHANNELS, LEVELS
from extract.decode.wire import Ring
from extract.network.backbones import build_forward, folded_trunk
from extract.network.cuda import Uploads, capture
from extract.network.preprocess import PAPER, Normalise, crop_of, crop_views, resize
from extract.network.weights import Weights, load_weights
from extract.settings import GPU_DEFAULTS
from train.distributed import choose_device
from train.heads import Head
from train.recipes import PRECISIONS, RECIPES, Precision
from train.trainer import Trainer

BLOCK_FRAMES = 32
LARGE_FRAME = (1080, 1920, 3)
TURNS, CALLS = 200, 4
CHECKED_STEPS = 20

Action = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate beside what is done today, ready to be timed."""

    of: str = ""
    """On what, where a candidate has several."""
    unit: str = "frames"
    """What is counted."""
    count: int
    """How many of them a call gets through."""
    today: Action
    candidate: Action
    difference: float
    """Between the results of both."""
    allowed: float
    """Largest difference with which they count as equal."""


Candidate = Callable[[torch.device], Iterator[Comparison]]


def compare(name: str, found: Comparison, device: torch.device, seconds: float) -> dict[str, Any]:
    """Rates of both, median over turns, if their results agree."""
    name = f"{name}, {found.of}" if found.of else name
    if not found.difference <= found.allowed:
        said = f"gives other results: {found.difference:.2g} apart, {found.allowed:.2g} allowed; not timed"
        return {"name": name, "said": said}
    steps = {"today": found.today, "candidate": found.candidate}
    # Several calls before the GPU is waited for, as in the pipeline.
    turns = {side: partial(lambda call: [call() for _ in range(CALLS)], call) for side, call in steps.items()}
    times = take_turns(turns, device, TURNS, warm_up=2, seconds=seconds, fewest=3)
    rates = {side: CALLS * found.count / float(np.median(mine)) for side, mine in times.items()}
    gain = rates["candidate"] / rates["today"]
    said = f"{gain:.2f} times today's rate ({rates['candidate']:,.0f} against {rates['today']:,.0f} {found.unit}/s)"
    return {"name": name, "said": said, "gain": gain, **rates, "difference": found.difference}


def random_frames(shape: tuple[int, int, int], count: int = BLOCK_FRAMES) -> np.ndarray:
    """Frames with smooth and noisy parts."""
    noise = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    noise[:, :, : shape[1] // 2] = np.linspace(0, 255, shape[1] // 2).astype(np.uint8)[None, None, :, None]
    return noise


def distance(ours: Tensor, theirs: Tensor) -> float:
    """1 minus the lowest cosine of two rows; NaN and Inf are infinitely far."""
    lowest = torch.cosine_similarity(ours.float(), theirs.float(), dim=-1).min()
    return float(1 - lowest) if torch.isfinite(ours).all() else float("inf")


# -- extraction -------------------------------------------------------------------------------------------------------


def one_kernel(device: torch.device) -> Iterator[Comparison]:
    """Resize, crop and normalise in one kernel (benchmarks/gpu_resize.py), small and large frames."""
    from benchmarks.gpu_resize import FrameCropper

    crops = [crop_of("v", "center", 0)]
    normalise = Normalise(str(device), torch.float16)
    whole, ready = FrameCropper(torch.uint8, device), FrameCropper(torch.float16, device)
    for shape in (FRAME, LARGE_FRAME):
        frames = torch.from_numpy(random_frames(shape)).to(device)
        expected = crop_views(resize(frames), crops)
        levels = (whole(frames, crops).int() - expected.int()).abs().max()
        normal = ready(frames, crops).flatten(0, 1).permute(0, 3, 1, 2)
        apart = (normal.float() - normalise(expected.flatten(0, 1)).float()).abs().max()
        yield Comparison(
            of=f"{shape[1]} x {shape[0]}", count=len(frames),
            today=lambda frames=frames: normalise(crop_views(resize(frames), crops).flatten(0, 1)),
            candidate=lambda frames=frames: ready(frames, crops),
            # In levels of 255 by the smallest deviation; a fifth more for the rounding to float16.
            difference=max(float(levels), float(apart) * 255 * min(PAPER.std) / 1.2), allowed=1.0,
        )  # fmt: skip


def registered_ring(device: torch.device) -> Iterator[Comparison]:
    """The decoders' shared memory registered as page-locked: frames are copied once instead of twice."""
    frames = random_frames(FRAME)
    ring = Ring.create(4, frames.nbytes)
    slot = ring.slot(0)
    slot[: frames.size] = frames.reshape(-1)
    block = slot[: frames.size].reshape(frames.shape)
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(int(runtime.cudaHostRegister(slot.ctypes.data, ring.slots * ring.slot_bytes, 0)))
    uploads, stream = Uploads(device), torch.cuda.current_stream(device)
    pinned = torch.from_numpy(block)
    assert pinned.is_pinned()

    def candidate() -> Tensor:
        return pinned.to(device, non_blocking=True)

    apart = (candidate().int() - uploads.send(block, stream).int()).abs().max()
    yield Comparison(
        count=len(frames), today=lambda: uploads.send(block, stream), candidate=candidate,
        difference=float(apart), allowed=0.0,
    )  # fmt: skip
    torch.cuda.synchronize(device)
    torch.cuda.check_error(int(runtime.cudaHostUnregister(slot.ctypes.data)))


Conv = Callable[[nn.Conv2d, Tensor], Tensor]
ConvAdd = Callable[[nn.Conv2d, Tensor, Tensor], Tensor]


def relu_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolution, bias, ReLU, one after the other."""
    return F.relu(conv(x))


def relu_conv_add(conv: nn.Conv2d, x: Tensor, shortcut: Tensor) -> Tensor:
    """Convolution, bias, shortcut, ReLU, one after the other."""
    return F.relu(conv(x) + shortcut)


def fused_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The same in one of cuDNN's kernels."""
    where = conv.stride, conv.padding, conv.dilation, conv.groups
    return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *where)


def fused_conv_add(conv: nn.Conv2d, x: Tensor, shortcut: Tensor) -> Tensor:
    """The same in one of cuDNN's kernels."""
    where = conv.stride, conv.padding, conv.dilation, conv.groups
    return torch.cudnn_convolution_add_relu(x, conv.weight, shortcut, 1.0, conv.bias, *where)


def resnet_forward(
    weights: Weights, device: torch.device, dtype: torch.dtype, conv: Conv, conv_add: ConvAdd
) -> Callable[[Tensor], Tensor]:
    """`build_forward` for ResNet-18 and 34, with the given ways to compute a convolution and what follows it."""
    net = folded_trunk(weights).to(device, dtype).to(memory_format=torch.channels_last)
    normalise = Normalise(str(device), dtype)

    def forward(rows_BHW3: Tensor) -> Tensor:
        x, means = net.maxpool(conv(net.conv1, normalise(rows_BHW3))), []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in stage:
                shortcut = x if block.downsample is None else block.downsample(x)
                x = conv_add(block.conv2, conv(block.conv1, x), shortcut)
            means.append(x.mean((2, 3), dtype=torch.float32))
        return torch.cat(means[1:], dim=1).to(torch.float16)

    return forward


def network_by(make: Callable[[Weights, torch.device], Callable[[Tensor], Tensor]]) -> Candidate:
    """The captured network in the default precision, made otherwise."""

    def candidate(device: torch.device) -> Iterator[Comparison]:
        weights = load_weights("random:0", "resnet34")
        rows = np.random.default_rng(0).integers(0, 256, (GPU_DEFAULTS.batch_frames, 224, 224, 3), dtype=np.uint8)
        batch, stream = torch.from_numpy(rows).to(device), torch.cuda.Stream(device)
        today = build_forward(weights, device=str(device), precision="fp16", levels=LEVELS)
        (ours, expected), (graph, features) = (
            capture(forward, batch, stream) for forward in (today, make(weights, device))
        )
        ours.replay()
        graph.replay()
        yield Comparison(
            count=len(batch), today=ours.replay, candidate=graph.replay,
            difference=distance(features, expected), allowed=1e-4,
        )  # fmt: skip

    return candidate


def hardware_decoding(device: torch.device) -> Iterator[Comparison]:
    """NVDEC through torchcodec, frames left on the GPU, beside its decoding on one core; 1080p H.264."""
    from torchcodec.decoders import VideoDecoder

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.mp4")
        encode(path, random_frames(LARGE_FRAME, 64) >> 3)  # with little noise, as real videos

        def decode(where: str) -> Tensor:
            decoder = VideoDecoder(path, device=where, dimension_order="NHWC", num_ffmpeg_threads=1)
            return decoder.get_frames_in_range(0, 64).data

        apart = (decode(str(device)).cpu().int() - decode("cpu").int()).abs().float().mean()
        yield Comparison(
            count=64, today=lambda: decode("cpu"), candidate=lambda: decode(str(device)),
            difference=float(apart), allowed=2.0,
        )  # fmt: skip


def encode(path: Path, frames: np.ndarray) -> None:
    """A video in H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


# -- training ---------------------------------------------------------------------------------------------------------


def side_by_side(precision: Precision, hidden: int) -> Candidate:
    """Steps of three levels' heads, each on its own stream, beside one after the other."""

    def candidate(device: torch.device) -> Iterator[Comparison]:
        # All captured graphs draw from one generator: with dropout the order of the steps would decide the masks.
        recipe = replace(RECIPES["paper"], precision=precision, variational_dropout=0.0, hidden=hidden)
        clip_B = torch.arange(recipe.batch, device=device)
        view_B, on_gpu = torch.zeros_like(clip_B), device.type == "cuda"

        def trainers() -> list[Trainer]:
            torch.manual_seed(0)
            made = []
            for level, channels in CHANNELS.items():
                bank, head = random_bank(device, 4 * recipe.batch, channels), Head(channels, CLASSES, recipe)
                made.append(Trainer(head.to(device), bank, recipe, level, 0))
            return made

        def together(ours: list[Trainer], streams: list[Any]) -> Action:
            def step() -> None:
                for trainer, stream in zip(ours, streams, strict=True):
                    with torch.cuda.stream(stream) if stream else nullcontext():
                        trainer.take_step(clip_B, view_B, recipe.batch)

            return step

        alone, beside = trainers(), trainers()
        wait_for(device)  # what the streams read was made on another one
        today = together(alone, [None] * len(alone))
        candidate = together(beside, [torch.cuda.Stream(device) if on_gpu else None for _ in beside])
        for _ in range(CHECKED_STEPS):
            today()
            candidate()
        wait_for(device)
        pairs = [zip(a.head.parameters(), b.head.parameters(), strict=True) for a, b in zip(alone, beside, strict=True)]
        apart = max(float((a - b).detach().abs().max()) for pair in pairs for a, b in pair)
        yield Comparison(
            unit="steps", count=len(alone), today=today, candidate=candidate, difference=apart, allowed=0.0
        )  # fmt: skip

    return candidate


def candidates(hidden: int) -> dict[str, Candidate]:
    """All by name, last what is most likely to leave the GPU in a state that nothing runs in any more.

    `hidden`: units of the heads' layers.
    """
    return {
        "upload from the decoders' own memory": registered_ring,
        "the network by cuDNN's fused convolutions": network_by(
            lambda weights, device: resnet_forward(weights, device, torch.float16, fused_conv, fused_conv_add)
        ),
        "the network by torch.compile": network_by(
            lambda weights, device: torch.compile(
                resnet_forward(weights, device, torch.float16, relu_conv, relu_conv_add)
            )
        ),
        **{f"three levels side by side, {each}": side_by_side(each, hidden) for each in PRECISIONS},
        "1080p H.264 decoded by the GPU, beside one core": hardware_decoding,
        "resize, crop and normalise in one kernel": one_kernel,
    }


@click.command()
@click.option("--device", default="auto", show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="Time for each side of a comparison.")
@click.option("--hidden", default=1024, show_default=True, help="Units of the heads' layers.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("work/benchmarks/candidates.json"))
def main(device: str, seconds: float, hidden: int, out: Path) -> None:
    """Compare all candidates with what is done today."""
    where = choose_device(device)
    found: list[dict[str, Any]] = []
    for name, candidate in candidates(hidden).items():
        try:
            for comparison in candidate(where):
                found.append(compare(name, comparison, where, seconds))
        except Exception as error:  # noqa: BLE001  (whatever a candidate meets; the others are still tried)
            line = (str(error).strip().splitlines() or [""])[0]
            found.append({"name": name, "said": f"does not run here: {type(error).__name__}: {line}"})
        write_json_durably(out, found)
    for each in found:
        click.echo(f"{each['name']}: {each['said']}")


if __name__ == "__main__":
    main()
