"""Checkpoints: one safetensors file, never a pickle, with the weights, the run's configuration and what training needs
to continue. The checkpoint of a finished run holds only weights and configuration.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cache.common.errors import CacheError, TrainingError, WeightsError
from cache.common.files import read_bounded, write_bytes_durably
from train.config import CHECKPOINT_BYTES, CHECKPOINT_FILE, RunConfig, note_unchecked, read_config
from train.heads import Head
from train.trainer import Position

_FORMAT = "mrrn-checkpoint-1"
_CHECKSUM = re.compile(rb'"checksum":"(?P<digest>[0-9a-f]{32})"')
_NO_DIGEST = b"0" * 32
"""Stands in the place of the checksum while it is computed, over all bytes of the file."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds."""

    tensors: dict[str, Tensor]
    """`head.*` and, until the run is finished, `optimizer.*`, `tally.*` (sums of the epoch) and `random.*`."""
    config: RunConfig
    position: Position | None
    """How far training has come; None if it is finished."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file durably; replaces `path` in one step."""
    content = json.dumps(msgspec.to_builtins({"config": checkpoint.config, "position": checkpoint.position}))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    saved = save_tensors(tensors, {"format": _FORMAT, "mrrn": content, "checksum": _NO_DIGEST.decode()})
    start = saved.index(b'"checksum":"') + len(b'"checksum":"')
    write_bytes_durably(path, saved[:start] + _digest(saved, start) + saved[start + len(_NO_DIGEST) :])


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns the checkpoint at `path`.

    Raises `WeightsError` if it is missing, a pickle, damaged, or not written by this program. A checkpoint without a
    checksum is of an earlier version, and that is said.
    """
    try:
        content = read_bounded(path, CHECKPOINT_BYTES)
    except ValueError as error:
        raise WeightsError(f"{path} is not a checkpoint: {error}; train with --fresh") from None
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; train that level first (`make train`)") from None
    try:
        header_bytes = content[8 : 8 + int.from_bytes(content[:8], "little")]
        checksum = _CHECKSUM.search(header_bytes)
        if checksum and checksum["digest"] != _digest(content, 8 + checksum.start("digest")):
            raise ValueError("its bytes are not those of its checksum")
        tensors = load_tensors(content)
        header = json.loads(header_bytes)["__metadata__"]
        unknown = header.keys() - {"format", "mrrn", "checksum"}
        if unknown or ("checksum" in header and not checksum):
            raise ValueError(f"its metadata are damaged, or of a later version: {sorted(unknown)}")
        if header.get("format") != _FORMAT:
            raise WeightsError(f"{path} has format {header.get('format')!r}; expected {_FORMAT!r}: train with --fresh")
        described = json.loads(header["mrrn"])
        position = msgspec.convert(described["position"], Position | None)
        if not checksum:
            note_unchecked(path.parent.parent)
        return Checkpoint(tensors=tensors, config=RunConfig.from_json(described["config"]), position=position)
    except (
        SafetensorError,
        TrainingError,
        ValueError,  # also msgspec's
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        # Not before: the length that a sound file begins with may have the same first bytes.
        if content[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
            raise WeightsError(
                f"{path} is a pickle or zip archive (such as torch.save writes), which can run code when read; "
                "a checkpoint is a safetensors file: train again with --fresh"
            ) from None
        raise WeightsError(
            f"{path} is not a checkpoint written by this program, or is damaged: {error!r}; train with --fresh"
        ) from error


def _digest(content: bytes, start: int) -> bytes:
    """xxh3_128 of a checkpoint whose checksum begins at byte `start`, in hexadecimal."""
    view, hashed = memoryview(content), xxhash.xxh3_128()
    for part in (view[:start], _NO_DIGEST, view[start + len(_NO_DIGEST) :]):
        hashed.update(part)
    return hashed.hexdigest().encode()


def new_head(config: RunConfig) -> Head:
    """Returns an untrained head for the run, its weights drawn from torch's generator."""
    return Head(config.channels, len(config.classes), config.recipe, config.pool)


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raises `WeightsError` if tensors in `found` are missing, unknown, not finite, or of another shape or dtype."""
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        mine, theirs = expected[name], found[name]
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            wrong.append(f"{name} is {theirs.dtype} {tuple(theirs.shape)}, expected {mine.dtype} {tuple(mine.shape)}")
        elif theirs.is_floating_point() and not bool(torch.isfinite(theirs).all()):
            wrong.append(f"{name} has NaN or Inf")
    if wrong:
        raise WeightsError(f"{path} does not fit the run's head: {'; '.join(sorted(wrong))}; train with --fresh")


def head_from(checkpoint: Checkpoint, path: Path) -> Head:
    """Returns the checkpoint's head in eval mode on the CPU. Raises `WeightsError` if tensors do not fit."""
    config = checkpoint.config
    found = {name[5:]: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("head.")}
    try:
        # Without memory first: the configuration may name any size, the tensors have the one that is there.
        with torch.device("meta"):
            recipe = replace(config.recipe, layers=min(config.recipe.layers, len(found) + 1))
            expected = new_head(replace(config, recipe=recipe)).state_dict()
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, CacheError) as error:
        raise WeightsError(f"{path} is of a head that cannot be built: {error!r}; train with --fresh") from error
    check_tensors(found, expected, path)
    head = new_head(config)
    head.load_state_dict(found)
    return head.eval()


def load_head(run_folder: Path) -> tuple[Head, RunConfig]:
    """Returns the head (in eval mode, on the CPU) and the configuration of the finished run in `run_folder`.

    Raises `WeightsError` if the run is missing, unfinished or damaged, or if the checkpoint belongs to another run.
    """
    path = run_folder / CHECKPOINT_FILE
    checkpoint = read_checkpoint(path)
    found = read_config(run_folder)
    if checkpoint.position is not None or found is None:
        raise WeightsError(f"the run in {run_folder} is not finished; the same `make train` continues it")
    check_same_run(checkpoint, found[0], path)
    return head_from(checkpoint, path), checkpoint.config


def check_same_run(checkpoint: Checkpoint, wanted: RunConfig, path: Path) -> None:
    """Raises `WeightsError` if the checkpoint's split, cache or settings differ from those of `wanted`."""
    differences = wanted.differences(checkpoint.config)
    if differences:
        raise WeightsError(
            f"{path} belongs to another run: {'; '.join(differences)}. Put the right file there, or train with --fresh"
        )
