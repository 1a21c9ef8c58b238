"""Checkpoints: what is written comes back; what is not ours, or of another run, is refused by name."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from cache.common.errors import TrainingError, WeightsError
from cache.common.files import write_json_durably
from tests.helpers.cache import make_fingerprint
from tests.helpers.damage import each_flipped
from train.checkpoint import Checkpoint, load_head, new_head, read_checkpoint, save_checkpoint
from train.config import CHECKPOINT_FILE, CONFIG_FILE, RunConfig, note_unchecked, write_config
from train.recipes import RECIPES
from train.trainer import Position

CONFIG = RunConfig(
    dataset="tiny",
    split=1,
    level="low",
    pool="mean",
    seed=0,
    recipe=replace(RECIPES["small"], hidden=8, layers=2),
    classes=("a", "b"),
    holdout=False,
    variant="",
    videos={"training": 4, "scored": 2},
    cache_digest="0" * 64,
    weights="random:0",
    fingerprint=make_fingerprint().to_json(),
    versions={},
)


def head_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"head.{name}": each for name, each in new_head(CONFIG).state_dict().items()}


def write_run(folder: Path, tensors: dict[str, torch.Tensor], config: RunConfig = CONFIG) -> Path:
    write_config(folder, CONFIG, "finished")
    save_checkpoint(folder / CHECKPOINT_FILE, Checkpoint(tensors=tensors, config=config, position=None))
    return folder


def test_a_finished_run_comes_back_in_eval_mode(tmp_path):
    tensors = head_tensors()
    head, config = load_head(write_run(tmp_path, tensors))
    assert config == CONFIG
    assert not head.training
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, tensors[f"head.{name}"])


def test_position_and_configuration_come_back(tmp_path):
    position = Position(3, 7, 1.25, "cpu", 1)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, Checkpoint(tensors={"x": torch.ones(2)}, config=CONFIG, position=position))
    found = read_checkpoint(path)
    assert (found.position, found.config) == (position, CONFIG)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_pickles_are_refused_without_being_read(tmp_path, write):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "checkpoint.safetensors"
    write({"head": Trap()}, path)
    with pytest.raises(WeightsError, match="pickle"):
        read_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"\x08", b"hello, world", b"\xff" * 64])
def test_other_bytes_are_refused(tmp_path, content):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a checkpoint written by this program"):
        read_checkpoint(path)


@pytest.mark.parametrize("broken", [{"position": {"epoch": 1}}, {"config": {"dataset": "tiny"}}, {"config": 3}, None])
def test_a_checkpoint_whose_words_cannot_be_read_is_refused_by_name(tmp_path, broken):
    path = tmp_path / CHECKPOINT_FILE
    told = broken and {"config": CONFIG.to_json(), "position": None, **broken}
    path.write_bytes(save({"x": torch.ones(1)}, {"format": "mrrn-checkpoint-1", "mrrn": json.dumps(told)}))
    with pytest.raises(WeightsError, match=rf"{path} is not a checkpoint written by this program"):
        read_checkpoint(path)


@pytest.mark.parametrize("every", [397, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [CHECKPOINT_FILE, CONFIG_FILE])
def test_a_flipped_bit_is_refused_or_changes_nothing_and_is_said(tmp_path, capsys, name, every):
    tensors = head_tensors()
    path = write_run(tmp_path, tensors) / name
    silent = refused = 0
    for bit in each_flipped(path, every if name == CHECKPOINT_FILE else every // 7 + 1):
        note_unchecked.cache_clear()
        try:
            head, config = load_head(tmp_path)
        except (WeightsError, TrainingError) as error:
            refused += name in str(error)
            continue
        assert config == CONFIG, bit
        assert all(torch.equal(each, tensors[f"head.{name}"]) for name, each in head.state_dict().items()), bit
        silent += "carry no checksums" not in capsys.readouterr().err
    assert refused > 20
    assert silent == 0


def test_runs_of_earlier_versions_carry_no_checksums_and_that_is_said_once(tmp_path, capsys):
    note_unchecked.cache_clear()
    tensors = head_tensors()
    path = write_run(tmp_path, tensors) / CHECKPOINT_FILE
    load_head(tmp_path)
    assert capsys.readouterr().err == ""
    told = json.dumps({"config": CONFIG.to_json(), "position": None})
    path.write_bytes(save(tensors, {"format": "mrrn-checkpoint-1", "mrrn": told}))
    write_json_durably(tmp_path / CONFIG_FILE, {"status": "finished", **CONFIG.to_json()})
    for _ in range(2):
        head, config = load_head(tmp_path)
    assert config == CONFIG
    assert torch.equal(head.linear.bias, tensors["head.linear.bias"])
    assert capsys.readouterr().err.count("files of an earlier version, which carry no checksums") == 1


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x80\x04"])
def test_a_length_of_the_header_that_begins_like_a_pickle_is_none(tmp_path, start):
    told = json.dumps({"config": CONFIG.to_json(), "position": None})
    content = save({"x": torch.ones(1)}, {"format": "mrrn-checkpoint-1", "mrrn": told})
    length = int.from_bytes(content[:8], "little")
    padded = next(number for number in range(length, length + 70_000) if number.to_bytes(8, "little")[:2] == start)
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(padded.to_bytes(8, "little") + content[8 : 8 + length].ljust(padded) + content[8 + length :])
    assert read_checkpoint(path).config == CONFIG


def test_a_cut_checkpoint_is_refused(tmp_path):
    path = write_run(tmp_path, head_tensors()) / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        load_head(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda tensors: tensors.pop("head.linear.bias"), "linear.bias is missing"),
        (lambda tensors: tensors.update({"head.extra": torch.ones(1)}), "extra is unknown"),
        (
            lambda tensors: tensors.update({"head.linear.bias": torch.ones(5)}),
            r"linear.bias is .*\(5,\), expected .*\(2,\)",
        ),
        (lambda tensors: tensors["head.linear.weight"].data.fill_(float("nan")), "linear.weight has NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, spoil, named):
    tensors = head_tensors()
    spoil(tensors)
    with pytest.raises(WeightsError, match=named):
        load_head(write_run(tmp_path, tensors))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"split": 2}, "split is 1, was 2"),
        ({"cache_digest": "1" * 64}, "the cache's fingerprint or videos have changed"),
        ({"level": "mid"}, "level is 'low', was 'mid'"),
        ({"recipe": replace(CONFIG.recipe, hidden=9)}, "recipe.hidden is 8, was 9"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path, changes, named):
    write_run(tmp_path, head_tensors(), replace(CONFIG, **changes))
    with pytest.raises(WeightsError, match=named):
        load_head(tmp_path)


def test_a_run_that_is_missing_or_unfinished_says_so(tmp_path):
    with pytest.raises(WeightsError, match="train that level first"):
        load_head(tmp_path)
    write_config(tmp_path, CONFIG, "training")
    save_checkpoint(
        tmp_path / CHECKPOINT_FILE,
        Checkpoint(tensors=head_tensors(), config=CONFIG, position=Position(1, 0, 0.0, "cpu", 1)),
    )
    with pytest.raises(WeightsError, match="not finished"):
        load_head(tmp_path)
