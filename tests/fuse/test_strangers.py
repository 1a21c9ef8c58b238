"""Bundles, runs and scores that a stranger made: an error names the file; none hangs or fills the memory."""

import contextlib
import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.common.errors import MrrnError
from cache.common.files import read_json
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS
from cache.scores import read_scores, write_scores
from extract.pipeline import decode_settings
from fuse.bundle import read_bundle
from fuse.choice import RunChoice
from fuse.report.sweeps import mean_over_splits, read_tables
from fuse.report.timing import read_timing
from fuse.trained import load_heads, settings_for, weights_for
from tests.fuse.test_predict import make_bundle, trained
from tests.helpers.damage import each_flipped
from tests.helpers.scores import HAND_WORKED, LABELS, make_table
from train.checkpoint import read_checkpoint
from train.config import note_unchecked, read_config

__all__ = ["trained"]

DEEP = b"[" * 100_000


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


REPLACED: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a terabyte": sparse,
    "nothing": lambda path: path.write_bytes(b""),
    "deep JSON": lambda path: path.write_bytes(DEEP),
    "a deep object": lambda path: path.write_bytes(b'{"format":' * 100_000),
    "null": lambda path: path.write_bytes(b"null"),
    "a list": lambda path: path.write_bytes(b"[]"),
    "an object": lambda path: path.write_bytes(b"{}"),
    "a long number": lambda path: path.write_bytes(b"1" * 100_000),
    "no Unicode": lambda path: path.write_bytes(b'"\xff\xfe"'),
    "a header of exabytes": lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    "a deep header": lambda path: path.write_bytes(struct.pack("<Q", len(DEEP)) + DEEP),
    "a header without metadata": lambda path: path.write_bytes(struct.pack("<Q", 2) + b"{}"),
}


def replaced(path: Path, how: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    REPLACED[how](path)
    return path


def use(folder: Path) -> None:
    """What `predict --bundle` reads before it decodes."""
    heads = load_heads(*read_bundle(folder))
    settings = settings_for(heads, weights=weights_for(heads, None), device="cpu", jobs=1)
    decode_settings(settings)
    heads.clips.frames(np.arange(100) / 25)


@pytest.fixture
def bundle(trained: Workspace, tmp_path: Path) -> Path:
    assert make_bundle(trained, tmp_path / "bundle").exit_code == 0
    use(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize("how", REPLACED)
@pytest.mark.parametrize("name", ["bundle.json", "high/config.json", "low/checkpoint.safetensors"])
def test_a_bundle_with_another_file_in_a_files_place(bundle: Path, name: str, how: str) -> None:
    replaced(bundle / name, how)
    with pytest.raises(MrrnError, match=bundle.name):
        use(bundle)


@pytest.mark.parametrize("how", REPLACED)
def test_other_files_in_the_place_of_those_of_runs_and_reports(tmp_path: Path, how: str) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="ucf101")
    readers: dict[Path, Callable[[Path], object]] = {
        tmp_path / "run" / "config.json": lambda path: read_config(path.parent),
        tmp_path / "run" / "checkpoint.safetensors": read_checkpoint,
        tmp_path / "run" / "scores.npz": read_scores,
        tmp_path / "figure6.json": read_timing,
        choice.workspace.report("ucf101", 2) / "results.json": lambda _: mean_over_splits(choice),
        choice.workspace.sweep("ucf101", "table1") / "results.json": lambda _: read_tables(
            choice.workspace, "ucf101", [], 1, None
        ),
    }
    for path, read in readers.items():
        with pytest.raises(MrrnError, match=path.name):
            read(replaced(path, how))


VALUES: tuple[Any, ...] = (None, [], {}, "", "x", -1, 10**12, 10**30, 1e300, True, [[]], {"x": {}})
FIELDS = ("pool", "level", "classes", "clips", "recipe", "fingerprint", "dataset", "videos", "cache_digest", "split")
RECIPE = ("hidden", "layers", "cell", "clips", "learning_rate", "dropout", "variational_dropout", "name", "views")
CLIPS = ("length", "stride", "max_clips", "keep", "fps")
FINGERPRINT = ("identity", "environment")
IDENTITY = ("backbone", "weights", "weights_sha256", "transform", "fps", "max_frames", "decoder", "levels")
CHANGES = [
    *((name,) for name in FIELDS),
    *(("recipe", name) for name in RECIPE),
    *(("recipe", "clips", name) for name in CLIPS),
    *(("fingerprint", name) for name in FINGERPRINT),
    *(("fingerprint", "identity", name) for name in IDENTITY),
    ("fingerprint", "environment", "device"),
    ("fingerprint", "environment", "precision"),
]


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the configuration of all heads, in both of their files, and the hashes with it."""
    description = read_json(bundle / "bundle.json")
    for level in LEVELS:
        folder = bundle / level
        config = read_json(folder / "config.json")
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        content = (folder / "checkpoint.safetensors").read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        words = json.loads(header["__metadata__"]["mrrn"])
        change(words["config"])
        header["__metadata__"].pop("checksum", None)
        header["__metadata__"]["mrrn"] = json.dumps(words)
        text = json.dumps(header).encode()
        written = struct.pack("<Q", len(text)) + text + content[8 + length :]
        (folder / "checkpoint.safetensors").write_bytes(written)
        for name in ("config.json", "checkpoint.safetensors"):
            description["sha256"][f"{level}/{name}"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(description))


@pytest.mark.parametrize("path", CHANGES, ids=".".join)
def test_a_bundle_whose_heads_say_anything(bundle: Path, path: tuple[str, ...]) -> None:
    files = {each: each.read_bytes() for each in bundle.rglob("*.*") if each.is_file()}

    def put(value: Any) -> Callable[[dict[str, Any]], None]:
        def change(config: dict[str, Any]) -> None:
            for name in path[:-1]:
                config = config[name]
            config[path[-1]] = value
            if value == "x":
                del config[path[-1]]

        return change

    for value in VALUES:
        rewrite(bundle, put(value))
        with contextlib.suppress(MrrnError):
            use(bundle)
        for each, content in files.items():
            each.write_bytes(content)


def test_a_flipped_bit_in_a_description_is_refused_or_said(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = read_bundle(bundle)[1]
    capsys.readouterr()
    for bit in each_flipped(bundle / "bundle.json", 211):
        note_unchecked.cache_clear()
        try:
            assert read_bundle(bundle)[1] == weights
        except MrrnError as error:
            assert str(bundle) in str(error)  # noqa: PT017
        else:
            assert "carry no checksums" in capsys.readouterr().err, bit


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", ["format", "fusion_weights", "sha256", "calibration"])
def test_a_bundle_that_says_anything(bundle: Path, name: str, value: Any) -> None:
    if (value is True and name == "format") or (value is None and name == "calibration"):
        pytest.skip("is 1, or what bundles without it say")
    description = read_json(bundle / "bundle.json")
    (bundle / "bundle.json").write_text(json.dumps({**description, name: value}))
    with pytest.raises(MrrnError, match=r"bundle"):
        use(bundle)
    if name not in ("format", "calibration"):
        inner = {**description[name], next(iter(description[name])): value}
        (bundle / "bundle.json").write_text(json.dumps({**description, name: inner}))
        with pytest.raises(MrrnError, match=r"bundle|weights"):
            use(bundle)


@pytest.mark.slow
def test_scores_that_claim_to_be_large_or_are_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    write_scores(path, make_table("low", HAND_WORKED["low"], LABELS))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def refused(**changes: bytes) -> str:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {**members, **{f"{name}.npy": content for name, content in changes.items()}}.items():
                archive.writestr(name, content)
        with pytest.raises(MrrnError, match=r"scores\.npz (is not a score table|needs more memory)") as caught:
            read_scores(path)
        return str(caught.value)

    def array(header: str, content: bytes = b"") -> bytes:
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content

    for shape in ("(1000000000000000,)", "(10,)", "(-1,)", "(2.5,)", "(" * 200):
        refused(labels=array(f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}\n"))
    refused(labels=array("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"))
    assert "unpacks to" in refused(more=bytes((1 << 30) + 1))
    for text in ("[" * 100_000, "NaN", '{"a": NaN}', "1e999", "[]"):
        header = f"{{'descr': '<U{len(text)}', 'fortran_order': False, 'shape': (), }}\n"
        refused(run=array(header, text.encode("utf-32-le")))
    floats = array("{'descr': '<f8', 'fortran_order': False, 'shape': (6,), }\n", bytes(48))
    assert "labels of another type" in refused(labels=floats)
