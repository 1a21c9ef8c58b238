"""What a run writes down while it trains: metrics.jsonl and TensorBoard, a row for each epoch."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from cache.files import write_bytes_durably
from train.loop import Tick
from train.runs import METRICS_FILE


class RunLog:
    """Appends a row for each epoch; continued, it first drops the rows of epochs that will be trained again."""

    def __init__(self, folder: Path, from_epoch: int) -> None:
        self.path = folder / METRICS_FILE
        lines = self.path.read_text().splitlines() if from_epoch and self.path.exists() else []
        kept = [line for line in lines if _epoch(line) < from_epoch]
        write_bytes_durably(self.path, "".join(f"{line}\n" for line in kept).encode())
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_epoch)

    def epoch(self, tick: Tick) -> None:
        """Write the row of a complete epoch."""
        rate = tick.clips / tick.seconds
        row = {
            "epoch": tick.epoch,
            "loss": tick.loss,
            "accuracy": tick.accuracy,
            "learning_rate": tick.learning_rate,
            "steps": tick.step,
            "clips": tick.clips,
            "seconds": round(tick.seconds, 4),
            "clips_per_second": round(rate, 1),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name in ("loss", "accuracy", "learning_rate", "clips_per_second"):
            self.board.add_scalar(f"training/{name}", row[name], tick.epoch)

    def close(self) -> None:
        """Write out what is buffered."""
        self.board.close()


def _epoch(line: str) -> float:
    """Epoch of a row; a row that a kill cut in two counts as one to be dropped."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
