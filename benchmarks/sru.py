"""Forward and backward of the SRU, against its matrix products alone, nn.LSTM, nn.GRU and the `sru` package.

    python -m benchmarks.sru                                        # on a GPU if there is one
    python -m benchmarks.sru --device cpu --dtype float32 --shape 30 28 512 1024 3

The first size is the paper's: 28 clips of 30 frames, 512 channels in, three layers of 1024 units. "matrix products" are
those of the SRU and nothing else: forward, and backward for weights and for inputs (except those of the first layer,
which are features). Before anything is timed, the SRU's outputs and gradients have to equal the reference's.

Contestants take turns, one step each. `x products` is the median over turns of a step's time divided by that of the
matrix products in the same turn, so that other load of the machine affects both. On a GPU a step is a replayed CUDA
graph, as in training. A contestant that has used up --seconds skips the later turns. The `sru` package compiles itself
when it is imported and needs ninja and a compiler; if that fails, the output says why. Its gates also read the state
(arXiv 1709.02755, later versions); ours and the paper's do not.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from benchmarks.turns import Step, machine, matrix_products, take_turns
from cache.common.files import write_json_durably
from train.distributed import choose_device
from train.sru import SRU, backends, reference
from train.sru.reference import TOLERANCES, error

BASELINE = "matrix products"
WARM_UP = 3
FEWEST = 3
"""Turns that every contestant takes, however long they last."""


@dataclass(frozen=True)
class Size:
    """Shape of the input and of the network."""

    steps: int
    batch: int
    channels: int
    hidden: int
    layers: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.steps} steps, {self.channels} -> {self.layers} x {self.hidden}"


SIZES = (
    Size(30, 28, 512, 1024, 3),
    Size(30, 28, 128, 256, 3),
    Size(30, 128, 512, 1024, 3),
    Size(120, 28, 512, 512, 4),
)


def forward_and_backward(module: nn.Module, size: Size, device: torch.device, dtype: torch.dtype) -> Step:
    """A step of a recurrent module: one pass over features, and the gradients of its parameters."""
    module = module.to(device, dtype)
    parameters = list(module.parameters())
    x_TBC = torch.randn(size.steps, size.batch, size.channels, device=device, dtype=dtype)
    dh_TBD = torch.randn(size.steps, size.batch, size.hidden, device=device, dtype=dtype)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x_TBC)[0], parameters, dh_TBD)

    return step


def contestants(size: Size) -> tuple[dict[str, nn.Module], list[str]]:
    """The modules to time, and a note on each that cannot run on this machine."""
    arguments = (size.channels, size.hidden, size.layers)
    modules = {"SRU (ours)": SRU(*arguments), "nn.LSTM": nn.LSTM(*arguments), "nn.GRU": nn.GRU(*arguments)}
    try:
        import sru
    except (ImportError, RuntimeError, OSError) as problem:  # it compiles when imported
        return modules, [f"the sru package is left out: {str(problem).splitlines()[0]}"]
    return modules | {"sru package": sru.SRU(*arguments, layer_norm=False)}, []


def check(size: Size, device: torch.device, dtype: torch.dtype) -> None:
    """Raises AssertionError unless outputs and gradients of the timed recurrence equal the reference's at this size."""
    shape, state = (size.steps, size.batch, size.hidden), torch.promote_types(dtype, torch.float32)
    given = [
        torch.randn(size.steps, size.batch, 3, size.hidden, device=device).to(dtype),
        torch.randn(shape, device=device).to(dtype),
        torch.randn(2, size.hidden, device=device, dtype=state),
        torch.randn(shape[1:], device=device, dtype=state),
    ]
    dh_TBD, dc_BD = torch.randn(shape, device=device).to(dtype), torch.randn(shape[1:], device=device, dtype=state)

    def results(recurrence: backends.Recurrence, convert: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [convert(tensor).detach().requires_grad_() for tensor in given]
        h, c = recurrence(*leaves)
        return [h.detach(), c.detach(), *torch.autograd.grad([h, c], leaves, [convert(dh_TBD), convert(dc_BD)])]

    ours = results(backends.recurrence("auto", device), lambda tensor: tensor)
    theirs = results(reference.recurrence, Tensor.double)
    for name, one, other in zip(("h", "c", "du", "dx", "dbias", "dc0"), ours, theirs, strict=True):
        off = error(one, other)
        assert off <= TOLERANCES[one.dtype], f"{name} differs from the reference by {off:.1e} at {size}, {dtype}"


def captured(step: Step) -> Step:
    """The step as a CUDA graph: what it launches, without the processor's part in it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # the operands were made there
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        kept = step()  # the graph writes to these tensors
    return lambda: (graph.replay(), kept)


def measure(size: Size, device: torch.device, dtype: torch.dtype, turns: int, seconds: float) -> dict[str, Any]:
    """One table: the median time of each contestant and the median of its ratios to the matrix products."""
    torch.manual_seed(0)
    check(size, device, dtype)
    modules, notes = contestants(size)
    weights = [each.detach().flatten(0, 1) for each in SRU(size.channels, size.hidden, size.layers).weights]
    steps: dict[str, Step] = {BASELINE: matrix_products(weights, size.steps * size.batch, device, dtype)}
    steps |= {name: forward_and_backward(module, size, device, dtype) for name, module in modules.items()}
    if device.type == "cuda":
        steps = {name: captured(step) for name, step in steps.items()}
    times = take_turns(steps, device, turns, warm_up=WARM_UP, seconds=seconds, fewest=FEWEST, steady=BASELINE)
    rows = [
        {
            "name": name,
            "milliseconds": 1000 * statistics.median(mine),
            "fastest_milliseconds": 1000 * min(mine),
            "ratio": statistics.median(a / b for a, b in zip(mine, times[BASELINE], strict=False)),
            "turns": len(mine),
        }
        for name, mine in times.items()
    ]
    return {"size": str(size), "dtype": str(dtype).removeprefix("torch."), "rows": rows, "notes": notes}


def show(table: dict[str, Any]) -> None:
    """The table as text."""
    click.echo(f"\n{table['size']}, {table['dtype']}")
    click.echo(f"  {'':16} {'median ms':>10} {'fastest ms':>11} {'x products':>11} {'turns':>6}")
    for row in table["rows"]:
        figures = f"{row['milliseconds']:10.3f} {row['fastest_milliseconds']:11.3f} {row['ratio']:11.3f}"
        click.echo(f"  {row['name']:16} {figures} {row['turns']:6}")
    for note in table["notes"]:
        click.echo(f"  {note}")


@click.command()
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["float32", "bfloat16", "float16"]),
              default=["float32", "bfloat16"], show_default=True)  # fmt: skip
@click.option(
    "--shape", "shapes", type=(int,) * 5, multiple=True, metavar="T B C D LAYERS", help="[default: four sizes]"
)
@click.option("--turns", type=click.IntRange(FEWEST), default=20, show_default=True, help="Steps timed per contestant.")
@click.option("--seconds", default=20.0, show_default=True, help="Time per contestant, after which it skips turns.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("work/benchmarks/sru.json"), show_default=True)
def main(
    device: str, dtypes: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], turns: int, seconds: float, out: Path
) -> None:
    """Time the SRU's forward and backward pass against its matrix products and other recurrent networks."""
    where = choose_device(device)
    name = machine(where)
    click.echo(f"{name}, torch {torch.__version__}")
    tables = []
    for size in [Size(*shape) for shape in shapes] or SIZES:
        for dtype in dtypes:
            tables.append(measure(size, where, getattr(torch, dtype), turns, seconds))
            show(tables[-1])
    date = datetime.now(UTC).date().isoformat()
    write_json_durably(out, {"device": name, "date": date, "torch": torch.__version__, "tables": tables})
    click.echo(f"\nfigures: {out}")


if __name__ == "__main__":
    main()
