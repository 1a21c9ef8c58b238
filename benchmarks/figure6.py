"""Figure 6 of the paper: time of a training step on one batch, for our heads and other models, on this machine.

    python -m benchmarks.figure6                      # on a GPU if there is one; writes work/benchmarks/figure6.json
    python -m benchmarks.figure6 --device cpu --seconds 30

As the paper describes it (section 5.3): whole models, the same samples in every step, the mean of 100 batches; 10
clips in a batch for ours and LRCN, 4 for the stacked LSTM, 40 for C3D. A step of each model:

    ours            frozen ResNet-34 up to the level, then training the head: 30 frames of 224 x 224
    ours, cached    training the head on cached features, as this project does: the network has run before
    LRCN-like       AlexNet to fc6 with an LSTM of 256 units, trained end to end: 16 frames of 224 x 224
    stacked LSTM    GoogLeNet with five LSTM layers of 512 units, trained end to end: 30 frames of 224 x 224
    C3D             eight 3 x 3 x 3 convolutions and three linear layers: 16 frames of 112 x 112

Training is forward, cross-entropy, backward and Adam, in single precision (no TF32), without compilation, and in
cuDNN's benchmark mode on a GPU. Before a model is timed, its logits have to be finite and of the right shape, and a
step has to change its parameters. A model that would take longer than --seconds is timed on fewer batches, and the
output says so. The report of `python -m fuse` shows the times in the file.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from benchmarks.turns import machine, take_turns
from cache.common.device import available_bytes
from cache.common.files import write_sealed_json
from cache.fingerprint import CHANNELS, LEVELS, Level
from extract.network.backbones import build_forward, columns_of
from extract.network.weights import load_weights
from fuse.report.timing import FILE, Timed
from train.distributed import choose_device
from train.heads import Head
from train.recipes import RECIPES

CLASSES = 101
WARM_UP = 2
FEWEST = 2
"""Batches that are always timed, however long they take."""

Step = Callable[[], Tensor]
"""One training step; returns the logits [B, K]."""


@dataclass(frozen=True)
class Case:
    """One bar of the figure."""

    model: str
    ours: bool
    batch: int
    frames: int
    what: str
    build: Callable[["Case", torch.device], tuple[nn.Module, Step]]
    """Returns the module that is trained, and its step."""
    memory_bytes: int = 0
    """Memory that a step needs on a CPU, roughly; with less the model is left out."""


class Lrcn(nn.Module):
    """AlexNet to fc6, one LSTM, a linear layer at each step, mean over time (Donahue et al.)."""

    def __init__(self) -> None:
        super().__init__()
        net = torchvision_models.alexnet(weights=None)
        self.features = nn.Sequential(net.features, net.avgpool, nn.Flatten(), *list(net.classifier)[:3])
        self.lstm, self.linear = nn.LSTM(4096, 256), nn.Linear(256, CLASSES)

    def forward(self, frames_BT3HW: Tensor) -> Tensor:
        batch, steps = frames_BT3HW.shape[:2]
        features = self.features(frames_BT3HW.flatten(0, 1)).unflatten(0, (batch, steps)).transpose(0, 1)
        return self.linear(self.lstm(features)[0]).mean(dim=0)


class StackedLstm(nn.Module):
    """GoogLeNet and five LSTM layers of 512 units, a linear layer at each step, mean over time (Ng et al.)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision_models.googlenet(weights=None, aux_logits=False, init_weights=False)
        self.features.fc = nn.Identity()
        self.lstm, self.linear = nn.LSTM(1024, 512, num_layers=5), nn.Linear(512, CLASSES)

    def forward(self, frames_BT3HW: Tensor) -> Tensor:
        batch, steps = frames_BT3HW.shape[:2]
        features = self.features(frames_BT3HW.flatten(0, 1)).unflatten(0, (batch, steps)).transpose(0, 1)
        return self.linear(self.lstm(features)[0]).mean(dim=0)


class C3d(nn.Module):
    """Eight convolutions of 3 x 3 x 3 and three linear layers (Tran et al.)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for widths, pool in (([64], 1), ([128], 2), ([256, 256], 2), ([512, 512], 2), ([512, 512], 2)):
            for out in widths:
                layers += [nn.Conv3d(width, out, 3, padding=1), nn.ReLU(inplace=True)]
                width = out
            layers.append(nn.MaxPool3d((pool, 2, 2), ceil_mode=True))
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classify = nn.Sequential(
            nn.Linear(512 * 4 * 4, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
            nn.Linear(4096, CLASSES),
        )  # fmt: skip

    def forward(self, frames_B3THW: Tensor) -> Tensor:
        return self.classify(self.features(frames_B3THW))


def training_step(model: nn.Module, inputs: Callable[[], Tensor], batch: int, device: torch.device) -> Step:
    """Forward, cross-entropy, backward, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    labels_B = torch.arange(batch, device=device) % CLASSES

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        logits_BK: Tensor = model(inputs())
        nn.functional.cross_entropy(logits_BK, labels_B).backward()
        optimizer.step()
        return logits_BK.detach()

    return step


def whole(make: Callable[[], nn.Module], *shape: int) -> Callable[[Case, torch.device], tuple[nn.Module, Step]]:
    """A model trained end to end on frames of `shape` (without the batch)."""

    def build(case: Case, device: torch.device) -> tuple[nn.Module, Step]:
        model = make().to(device).train()
        frames = torch.rand(case.batch, *shape, device=device)
        return model, training_step(model, lambda: frames, case.batch, device)

    return build


def rrn(level: Level, *, cached: bool) -> Callable[[Case, torch.device], tuple[nn.Module, Step]]:
    """Our head of one level, on features from the cache or from the frozen network in each step."""

    def build(case: Case, device: torch.device) -> tuple[nn.Module, Step]:
        head = Head(CHANNELS[level], CLASSES, RECIPES["paper"]).to(device).train()
        backbone = load_weights("random:0", "resnet34")
        levels = LEVELS[: LEVELS.index(level) + 1]
        forward = build_forward(backbone, device=str(device), precision="fp32", levels=levels)
        rows = torch.randint(0, 256, (case.batch * case.frames, 224, 224, 3), dtype=torch.uint8, device=device)

        def features() -> Tensor:
            with torch.inference_mode():
                made = torch.cat([forward(part) for part in rows.split(100)])[:, columns_of(backbone, levels)[level]]
            return made.float().unflatten(0, (case.batch, case.frames)).transpose(0, 1).clone()

        kept = features()
        return head, training_step(head, (lambda: kept) if cached else features, case.batch, device)

    return build


CASES = (
    *(
        Case(f"{level.capitalize()} RRN{', cached' if cached else ''}", True, 10, 30,
             "training the head on cached features" if cached else f"frozen ResNet-34 to {level}, training the head",
             rrn(level, cached=cached))
        for cached in (True, False)
        for level in LEVELS
    ),
    Case("LRCN-like", False, 10, 16, "training AlexNet and LSTM", whole(Lrcn, 16, 3, 224, 224)),
    Case("stacked LSTM", False, 4, 30, "training GoogLeNet and five LSTM layers", whole(StackedLstm, 30, 3, 224, 224)),
    Case("C3D", False, 40, 16, "training the 3D convolutions", whole(C3d, 3, 16, 112, 112), 16 << 30),
)  # fmt: skip


def check(case: Case, model: nn.Module, step: Step) -> None:
    """Raises AssertionError unless logits are finite and of the right shape, and a step changes every parameter."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    logits_BK = step()
    assert logits_BK.shape == (case.batch, CLASSES), f"{case.model}: logits have shape {tuple(logits_BK.shape)}"
    assert logits_BK.isfinite().all(), f"{case.model}: logits are not finite"
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert all(moved), f"{case.model}: {moved.count(False)} of {len(moved)} parameters did not move"


def measure(case: Case, device: torch.device, batches: int, seconds: float) -> Timed:
    """Mean time of a step; each is waited for."""
    model, step = case.build(case, device)
    check(case, model, step)
    turns = take_turns({case.model: step}, device, batches, warm_up=WARM_UP, seconds=seconds, fewest=FEWEST)
    times = turns[case.model]
    mean = sum(times) / len(times)
    return Timed(case.model, case.ours, case.batch, case.frames, mean, len(times), case.what)


@click.command()
@click.option("--device", default="auto", show_default=True)
@click.option("--batches", type=click.IntRange(FEWEST), default=100, show_default=True, help="Batches timed.")
@click.option("--seconds", default=60.0, show_default=True, help="Time per model; then no further batch is timed.")
@click.option("--clips", type=click.IntRange(1), help="Clips in a batch of each model. [default: the paper's]")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only this model. [default: all]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("work/benchmarks") / FILE, show_default=True)
def main(device: str, batches: int, seconds: float, clips: int | None, models: tuple[str, ...], out: Path) -> None:
    """Time a training step of our heads and of other models (the paper's Figure 6)."""
    where = choose_device(device)
    # Other models' kernels are the fastest ones, too; none uses TF32 (`choose_device`).
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    notes, timed = ["All models in single precision, none with TF32."] if where.type == "cuda" else [], []
    if clips:
        notes.append(f"Batches of {clips} clips, not the paper's.")
    for case in (case for case in CASES if not models or case.model in models):
        if clips:
            case = replace(case, batch=clips, memory_bytes=case.memory_bytes * clips // case.batch)
        if where.type == "cpu" and available_bytes() < case.memory_bytes:
            notes.append(f"{case.model} is left out: it needs about {case.memory_bytes >> 30} GiB of memory.")
            continue
        result = measure(case, where, batches, seconds)
        timed.append(result)
        click.echo(
            f"{result.model}: {result.seconds:.4f} s for a batch of {result.batch} x {result.frames}, "
            f"mean of {result.batches}"
        )
        if where.type == "cuda":
            torch.cuda.empty_cache()
    fewer = [f"{each.model} {each.batches}" for each in timed if each.batches < batches]
    if fewer:
        notes.append(f"Fewer than {batches} batches were timed, because they took too long: {', '.join(fewer)}.")
    name = machine(where)
    date = datetime.now(UTC).date().isoformat()
    write_sealed_json(out, {"device": name, "date": date, "notes": notes, "models": [asdict(each) for each in timed]})
    click.echo(f"times: {out}")


if __name__ == "__main__":
    main()
