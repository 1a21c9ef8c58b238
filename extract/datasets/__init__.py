"""Dataset sources: each finds the videos, labels and splits of a dataset, and checks them."""

from collections.abc import Callable
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.workspace import Workspace
from cache.dataset import Dataset, check_dataset_name

PUBLISHED = ("ucf101", "hmdb51", "demo")
"""Datasets that need no location to be understood."""

SOURCES = ("ucf101", "hmdb51", "manifest", "folder", "demo")


def load_dataset(
    name: str,
    data: Path | None,
    *,
    subset: bool,
    work: Path,
    source: str | None = None,
    remote: bool = False,
    recorded: Dataset | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Dataset, Path]:
    """The dataset called `name`, and the root of its videos' paths (absolute, links resolved).

    `data` is its location, `data/<name>` by default. `source` is one of `SOURCES`; by default it follows from the name
    (ucf101, hmdb51, demo), else from `data`: a .csv file is a manifest, a folder holds `<class>/<video>`. With `subset`
    listed videos may be missing; with `remote` those of a manifest may be remote (https://, s3://). `work` is where the
    demo is made. `recorded`: what a cache has; splits that are drawn here keep its halves. `say` is told what a folder
    holds that is no video. Raises DatasetError if the dataset is not as its source requires.
    """
    check_dataset_name(name)
    where = data or Path("data") / name
    from extract.datasets import demo, folder, hmdb51, manifest, ucf101
    from extract.datasets.paths import find_videos, require_folder
    from extract.datasets.published import match_files

    match source or (name if name in PUBLISHED else _rules_for(name, where, Workspace(work))):
        case "demo":
            return demo.load(name, data, work)
        case "ucf101" | "hmdb51" as published:
            layout = ucf101 if published == "ucf101" else hmdb51
            root = require_folder(where / layout.VIDEOS, layout.ADVICE)
            listed = layout.read_lists(name, where / layout.LISTS)
            return match_files(listed, find_videos(root), root, layout.PUBLISHED, subset=subset), root
        case "manifest":
            return manifest.load(name, where, subset=subset, remote=remote, say=say)
        case "folder":
            return folder.load(name, where, say, recorded)
        case unknown:
            raise DatasetError(f"there is no source {unknown!r}; choose one of {', '.join(SOURCES)}")


def _rules_for(name: str, data: Path, workspace: Workspace) -> str:
    if data.is_dir():
        return "folder"
    if data.suffix.lower() == ".csv":
        return "manifest"
    raise DatasetError(
        f"dataset {name!r}: {data} is neither a folder of <class>/<video> nor a .csv file that lists videos; "
        f"say where it is with DATA= (--data). {workspace.near_datasets(name, PUBLISHED)}"
    )
