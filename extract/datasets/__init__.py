"""Sources: each finds the videos, labels and splits of a dataset, and checks them."""

from pathlib import Path

from cache.common.errors import DatasetError
from cache.dataset import Dataset, check_dataset_name

SOURCES = ("ucf101", "hmdb51", "manifest", "folder", "demo")


def load_dataset(
    name: str, data: Path | None, *, subset: bool, work: Path, source: str | None = None, remote: bool = False
) -> tuple[Dataset, Path]:
    """The dataset called `name`, and the folder that its videos' paths start from (absolute, links resolved).

    `data` is where it lies, `data/<name>` by default. `source` says by which rules it is read; by default that follows
    from the name (ucf101, hmdb51, demo), else from what `data` is: a .csv file is a manifest, a folder holds
    `<class>/<video>`. With `subset` listed videos may be absent; with `remote` those of a manifest may be elsewhere
    (https://, s3://). `work` is where the demo is made.
    """
    check_dataset_name(name)
    rules = source or (name if name in ("ucf101", "hmdb51", "demo") else None)
    where = data or Path("data") / name
    from extract.datasets import demo, folder, hmdb51, manifest, ucf101

    match rules or _rules_for(name, where):
        case "demo":
            return demo.load(name, data, work)
        case "ucf101":
            return ucf101.load(name, where, subset=subset)
        case "hmdb51":
            return hmdb51.load(name, where, subset=subset)
        case "manifest":
            return manifest.load(name, where, subset=subset, remote=remote)
        case "folder":
            return folder.load(name, where)
        case unknown:
            raise DatasetError(f"there is no source {unknown!r}; choose one of {', '.join(SOURCES)}")


def _rules_for(name: str, data: Path) -> str:
    if data.is_dir():
        return "folder"
    if data.suffix.lower() == ".csv":
        return "manifest"
    raise DatasetError(
        f"dataset {name!r}: {data} is neither a folder of <class>/<video> nor a .csv file that lists videos; "
        "say where it is with DATA= (--data)"
    )
