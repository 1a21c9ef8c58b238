"""Bundles: three trained heads in one folder to hand to somebody else. Data only: safetensors and JSON.

bundle/
  bundle.json            what it is: classes, fusion weights, the backbone it needs, accuracy, hashes of the files
  README.md              the model card
  low|mid|high/          config.json and checkpoint.safetensors, as training wrote them
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cache.aggregate import PAPER_WEIGHTS, check_weights
from cache.clips import ClipRule
from cache.common.errors import ScoreError, WeightsError
from cache.common.files import (
    make_folder_durably,
    plain_files,
    read_bounded,
    read_json_and_seal,
    remove,
    replace_folder,
    sealed_json,
    write_tree_durably,
)
from cache.common.text import markdown, markdown_table, some
from cache.fingerprint import LEVELS, Level
from fuse.against import said
from fuse.calibration import Calibration
from fuse.caveats import caveats
from fuse.report.tables import models_table
from fuse.results import Results
from fuse.summary import made_now, summarise
from train.config import CHECKPOINT_BYTES, CHECKPOINT_FILE, CONFIG_FILE, note_unchecked

FORMAT: Final = 1
DESCRIPTION: Final = "bundle.json"
CARD: Final = "README.md"
_FILES: Final = (CONFIG_FILE, CHECKPOINT_FILE)
_KEPT: Final = (
    *("notes", "dataset", "split", "pool", "videos", "accuracy", "interval95", "macro", "paper", "fusion_weights"),
    *("calibration", "weights", "subset", "classes", "fingerprint", "runs", "made"),
)
"""Names of results.json that a bundle takes along."""


def write_bundle(out: Path, folders: Mapping[Level, Path], results: Results, clips: ClipRule) -> None:
    """Write the heads of the run folders `folders` and what they reached to `out`; `clips` is how it cuts new videos.

    An older bundle is replaced as a whole, once the new one is complete beside it. Raises `ScoreError` if `out` holds
    anything else.
    """
    out = Path(os.path.realpath(out))  # a link to a folder stays one
    _check_replaceable(out)
    files = {
        f"{level}/{name}": read_bounded(folder / name, CHECKPOINT_BYTES)
        for level, folder in folders.items()
        for name in _FILES
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    summary = summarise(results, caveats(results), made_now())
    about = {name: summary[name] for name in _KEPT}
    description = {"format": FORMAT, **about, "clip_rule": str(clips), "sha256": hashes}
    files |= {CARD: model_card(results, summary, clips).encode(), DESCRIPTION: sealed_json(description)}
    temporary = out.with_name(f".tmp-{out.name}")
    remove(temporary)
    make_folder_durably(out.parent)
    write_tree_durably(temporary, files)
    replace_folder(out, temporary)


def _check_replaceable(out: Path) -> None:
    """Raises `ScoreError` unless `out` is missing, empty, a bundle, or the part of one that earlier versions left."""
    if os.path.ismount(out):
        raise ScoreError(f"{out} is a mount point and cannot be replaced as a whole; choose a folder in it with --out")
    if out.exists() and not out.is_dir():
        raise ScoreError(f"{out} is a file; give a folder for the bundle with --out")
    found = {file.relative_to(out).as_posix() for file in plain_files(out)} if out.exists() else set()
    heads = {f"{level}/{name}" for level in LEVELS for name in _FILES}
    others = sorted(name for name in found - heads - {CARD, DESCRIPTION} if not Path(name).name.startswith(".tmp-"))
    if others or (found and found.isdisjoint(heads | {DESCRIPTION})):
        raise ScoreError(
            f"the folder {out} is not only a bundle: {some(others or sorted(found))}; move that, or choose another "
            "folder with --out"
        )


def read_bundle(
    folder: Path,
) -> tuple[dict[Level, Path], dict[Level, float], Calibration | None, str | None]:
    """Run folders, fusion weights, calibration and clip rule (None: the runs') of a bundle.

    Raises `WeightsError` if it is missing, changed or not readable.
    """
    path = folder / DESCRIPTION
    try:
        description, sealed = read_json_and_seal(path)
        if not sealed:
            note_unchecked(folder)
        if description["format"] != FORMAT:
            raise WeightsError(f"{path} has format {description['format']!r}, this program reads {FORMAT}")
        # In the order in which trained runs are added, so that the sums are the same to the bit.
        weights: dict[Level, float] = {level: float(description["fusion_weights"][level]) for level in PAPER_WEIGHTS}
        check_weights(weights)
        calibration = description.get("calibration")
        calibration = None if calibration is None else Calibration.from_json(calibration)
        rule = description.get("clip_rule")
        _ = rule is None or ClipRule().changed(rule)
        for name in (f"{level}/{file}" for level in LEVELS for file in _FILES):
            if hashlib.sha256(read_bounded(folder / name, CHECKPOINT_BYTES)).hexdigest() != description["sha256"][name]:
                raise WeightsError(f"{folder / name} is not the file that the bundle was made with; copy it again")
    except FileNotFoundError as error:
        raise WeightsError(f"{error.filename} is missing; a bundle is a folder written by `mrrn bundle`") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise WeightsError(f"{folder} is not a bundle that can be read: {error!r}; get it again") from error
    return {level: folder / level for level in LEVELS}, weights, calibration, rule


def model_card(results: Results, summary: Mapping[str, Any], clips: ClipRule) -> str:
    """README.md of a bundle: what the heads are, what they need, how good they are, what they are not for.

    `summary` is of the same results.
    """
    identity, environment, measured = results.cache.identity, results.cache.environment, results.clip_rule
    return _CARD.format(
        dataset=markdown(results.dataset),
        notes="".join(f"> **Note:** {markdown(note)}\n>\n" for note in summary["notes"]) or "\n",
        split=results.split,
        run=results.run,
        videos=f"{len(results.video_ids):,}",
        noun=results.noun,
        accuracies=markdown_table(*models_table(results, ()).without_empty().shown()),
        linear=" Linear: logistic regressions on mean features in the heads' place." if results.linear else "",
        against=said(results, "high"),
        weights=markdown(results.weights),
        sha256=identity["weights_sha256"],
        backbone=markdown(str(identity["backbone"])),
        transform=markdown(str(identity["transform"])),
        precision=markdown(f"{environment['precision']} on {environment['device']}"),
        clips=clips.words + ("" if clips == measured else f"; trained and measured with {measured.words}"),
        certainty=markdown(results.certainty),
        unknown=_UNKNOWN[results.calibration is not None].format(count=len(results.classes)),
        classes=", ".join(map(markdown, results.classes)),
        version=summary["made"]["version"],
        date=summary["made"]["date"],
    )


_UNKNOWN: Final = (
    "It always names one of its {count} classes, also for a video that shows none of them.",
    "A video that shows none of its {count} classes may still be given one. The threshold was found with heads that\n"
    "had not learned from those videos, and all of these show one.",
)
"""What becomes of a video of no class, without calibration and with it."""

_CARD = """# MRRN heads for {dataset}

Three heads (low, mid, high level; run {run}) on frozen image features, fused by 0.7 high + 0.2 mid + 0.1 low; after
Zheng, An, Ruan, "Multi-Level Recurrent Residual Networks for Action Recognition", arXiv 1711.08238.

{notes}
## Use

    mrrn predict --bundle THIS_FOLDER --weights BACKBONE_WEIGHTS VIDEO...

`--weights` is needed where the backbone's weights came from a file; the bundle holds the heads, not the backbone.

## What it needs

- backbone {backbone}, weights {weights} (SHA-256 of their numbers {sha256}); others are refused
- transform: {transform}; trained on features computed in {precision}
- clips: {clips}

## How good it is

{videos} test {noun} of split {split}, none of them seen in training; {noun} without features count as wrong. Macro:
the mean of the classes' accuracies.{linear} Fused against the high level alone: {against}.

{accuracies}

## What it is not for

Its probabilities are {certainty}.

{unknown} Decisions about people should not rest on it. The licences of the backbone's weights and of the training
videos apply to what is made with them.

## Classes

{classes}

Made by mrrn {version} on {date}.
"""
