"""The paper's setting and tables as data. All figures are accuracies in percent on split 1, as printed.

Zheng, An, Ruan, "Multi-Level Recurrent Residual Networks for Action Recognition", arXiv 1711.08238.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cache.fingerprint import LEVELS, Level

Inputs = Literal["simple features with a linear SVM", "RGB only", "several features"]

BIBTEX: Final = """@article{mrrn,
  title   = {Multi-Level Recurrent Residual Networks for Action Recognition},
  author  = {Zheng and An and Ruan},
  journal = {arXiv preprint arXiv:1711.08238},
  year    = {2017}
}"""

SPLIT: Final = 1
"""The split that all of the paper's figures are of."""

BACKBONE: Final = "resnet34"
"""The network whose features the paper used, with ImageNet weights."""

DATASETS: Final[Mapping[str, str]] = {"hmdb51": "HMDB-51", "ucf101": "UCF-101"}
"""Name of each of the paper's datasets in this project -> as printed."""

TABLE_1: Final[Mapping[tuple[int, int], float]] = {
    (256, 3): 48.10,
    (256, 4): 48.10,
    (256, 5): 43.92,
    (512, 3): 48.17,
    (512, 4): 49.28,
    (512, 5): 46.21,
    (1024, 3): 50.78,
    (1024, 4): 49.61,
    (1024, 5): 47.71,
}
"""Hidden units and layers -> accuracy of the high level, mean pooling, HMDB-51."""

TABLE_2: Final[Mapping[tuple[str, str], Mapping[Level, float]]] = {
    ("hmdb51", "mean"): {"low": 26.60, "mid": 36.80, "high": 50.78},
    ("hmdb51", "max"): {"low": 25.36, "mid": 35.82, "high": 47.78},
    ("ucf101", "mean"): {"low": 46.50, "mid": 64.16, "high": 81.38},
    ("ucf101", "max"): {"low": 45.23, "mid": 64.96, "high": 81.25},
}
"""Dataset and pooling -> accuracy of each level."""


@dataclass(frozen=True)
class PaperRow:
    """One row of Table 3."""

    model: str
    """As printed, with the number of its reference in the paper."""
    inputs: Inputs
    """What the model sees: the table has three sets of rows."""
    hmdb51: float | None
    ucf101: float | None

    def accuracy(self, dataset: str) -> float | None:
        """The row's figure for a dataset, in percent; None if the paper has none."""
        return {"hmdb51": self.hmdb51, "ucf101": self.ucf101}.get(dataset)


HIGH: Final = "High RRN (paper)"
FUSED: Final = "MRRN (paper)"

TABLE_3: Final = (
    PaperRow("iDT+SVM [11,41]", "simple features with a linear SVM", 52.1, 76.2),
    PaperRow("iDT+HD encodings [42]", "simple features with a linear SVM", 61.1, 87.9),
    PaperRow("Slow Fusion Network [1]", "RGB only", None, 65.4),
    PaperRow("LRCN [19]", "RGB only", None, 71.1),
    PaperRow("Spatial ConvNet [2]", "RGB only", 40.5, 73.0),
    PaperRow("Soft Attention [26]", "RGB only", 41.3, None),
    PaperRow("cLSTM [22]", "RGB only", 44.1, 75.8),
    PaperRow(HIGH, "RGB only", 50.8, 81.4),
    PaperRow(FUSED, "RGB only", 51.3, 81.9),
    PaperRow("C3D Model [3]", "RGB only", None, 82.3),
    PaperRow("Temporal ConvNet [2]", "several features", None, 83.7),
    PaperRow("scLSTM [43]", "several features", 55.1, 84.0),
    PaperRow("cLSTM [22]", "several features", None, 84.3),
    PaperRow("Two-Stream [2]", "several features", 59.4, 88.0),
    PaperRow("Feature stacking [44]", "several features", 65.4, 89.1),
    PaperRow("TDD+iDT [18]", "several features", 65.9, 91.5),
    PaperRow("RNN-FV+iDT [45]", "several features", 67.7, 94.1),
)
"""Comparison with other methods, in the paper's order."""


def accuracy(dataset: str, pool: str) -> dict[str, float | None]:
    """The paper's percentages for our models: low, mid, high (Table 2) and fused (Table 3, mean pooling only).

    None for a model that the paper has no figure for; it never reports the plain mean of the levels.
    """
    levels = TABLE_2.get((dataset, pool), {})
    fused = next(row for row in TABLE_3 if row.model == FUSED).accuracy(dataset)
    return {**{level: levels.get(level) for level in LEVELS}, "fused": fused if pool == "mean" else None, "mean": None}
