"""The layout of `work/`: names of folders, and the dataset extracted last."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.files import read_bounded, write_bytes_durably
from cache.common.text import some
from cache.dataset import check_dataset_name, check_folder_name
from cache.fingerprint import Level

_NAME_BYTES = 4096


def run_name(pool: str, seed: int, variant: str) -> str:
    """Name of the runs of all levels: that of their folders without the level."""
    return f"{pool}-seed{seed}" + (f"-{variant}" if variant else "")


@dataclass(frozen=True)
class Workspace:
    """The folder that holds all outputs (`--work`, `WORK=`)."""

    root: Path

    def cache(self, dataset: str) -> Path:
        """Folder of a dataset's feature cache."""
        return self.root / "cache" / check_dataset_name(dataset)

    def runs(self, dataset: str, split: int) -> Path:
        """Folder of all runs on one split."""
        return self.root / "runs" / check_dataset_name(dataset) / f"split{split}"

    def run(self, dataset: str, split: int, level: Level, pool: str, seed: int, variant: str = "") -> Path:
        """Folder of one run; `variant` distinguishes runs with other settings than the dataset's usual ones."""
        return self.runs(dataset, split) / f"{level}-{run_name(pool, seed, variant)}"

    def report(self, dataset: str, split: int) -> Path:
        """Folder of the tables, figures and page for one split."""
        return self.root / "report" / check_dataset_name(dataset) / f"split{split}"

    def sweep(self, dataset: str, name: str) -> Path:
        """Folder of one sweep's table; its runs are in the folder of all runs."""
        return self.root / "sweeps" / check_dataset_name(dataset) / check_folder_name(name, "table")

    def near_datasets(self, name: str, others: Iterable[str] = ()) -> str:
        """The extracted datasets and the `others` there are, the one nearest to `name` first; empty if none."""
        extracted = sorted(path.parent.name for path in self.root.glob("cache/*/cache.json"))
        known = [*dict.fromkeys([*others, *extracted])]
        near = get_close_matches(name, known, n=1)
        asked = f"Did you mean {near[0]}? " if near else ""
        return f"{asked}There are {some(known, 20)}" if known else ""

    def existing_cache(self, name: str, *, damaged: bool = False) -> Path:
        """Folder of a dataset's cache. Raises `DatasetError` if there is none; `damaged`: its description may lack."""
        folder = self.cache(name)
        if not (folder.is_dir() if damaged else (folder / "cache.json").exists()):
            raise DatasetError(
                f"nothing was extracted for dataset {name!r} into {self.root / 'cache'} yet: run "
                f"`make extract DATASET={name}`, or name another folder with --work (WORK=). "
                f"{self.near_datasets(name)}".rstrip()
            )
        return folder

    def last_dataset(self) -> str | None:
        """Name of the dataset extracted last; None if nothing was extracted.

        Raises `DatasetError` if the file that says so holds something else.
        """
        path = self.root / "last-dataset"
        try:
            return check_dataset_name(read_bounded(path, _NAME_BYTES).decode().strip())
        except FileNotFoundError:
            return None
        except (ValueError, DatasetError) as error:
            raise DatasetError(
                f"{path} does not name a dataset: {error}; remove that file, or give --dataset (DATASET=)"
            ) from None

    def remember_dataset(self, name: str) -> None:
        """Make `name` the default dataset of later stages."""
        with suppress(DatasetError):
            if self.last_dataset() == name:
                return
        write_bytes_durably(self.root / "last-dataset", f"{check_dataset_name(name)}\n".encode())
