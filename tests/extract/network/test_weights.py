"""Weights: three origins, one hash, and what is refused."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cache.common.errors import WeightsError
from extract.network.architecture import architecture
from extract.network.weights import load_weights


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(load_weights("random:1", "resnet18").tensors)


def saved(state: dict[str, torch.Tensor], path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def test_random_weights_are_the_same_numbers_everywhere():
    assert (
        load_weights("random:0", "resnet34").sha256
        == "caae5103e707e24cc329ef316e24abd13d383d43156493bae62b0a30925f0bef"
    )
    assert load_weights("random:1", "resnet34").sha256 != load_weights("random:0", "resnet34").sha256


def test_the_hash_is_of_the_numbers_and_not_of_the_container(state, tmp_path):
    shuffled = dict(reversed(state.items()))
    classifier = {"fc.weight": torch.ones(7, 512), "fc.bias": torch.zeros(7)}
    files = [
        saved(state, tmp_path / "a.pth"),
        saved(state, tmp_path / "b.safetensors"),
        saved({**shuffled, **classifier, "bn1.num_batches_tracked": torch.tensor(3)}, tmp_path / "c.pth"),
    ]
    original = load_weights("random:1", "resnet18").sha256
    assert {load_weights(file, "resnet18").sha256 for file in files} == {original}
    changed = {**state, "conv1.weight": state["conv1.weight"].nextafter(torch.tensor(9.0))}
    assert load_weights(saved(changed, tmp_path / "d.pth"), "resnet18").sha256 != original


def test_half_precision_files_become_float32(state, tmp_path):
    halved = {name: value.half() for name, value in state.items()}
    weights = load_weights(saved(halved, tmp_path / "half.pth"), "resnet18")
    assert all(value.dtype == torch.float32 for value in weights.tensors.values())
    assert weights.text == "half.pth"


def spoiled(state: dict[str, torch.Tensor], name: str, value: object) -> dict:
    return {**state, name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {name: value for name, value in s.items() if name != "layer3.0.conv1.weight"}, "missing layer3.0"),
        (lambda s: spoiled(s, "layer5.weight", torch.ones(1)), "unknown layer5.weight"),
        (lambda s: spoiled(s, "conv1.weight", torch.ones(64, 3, 3, 3)), r"\(64, 3, 3, 3\), resnet18 needs \(64, 3, 7"),
        (lambda s: spoiled(s, "bn1.bias", torch.full((64,), float("nan"))), "bn1.bias holds NaN"),
        (lambda s: spoiled(s, "bn1.running_var", -torch.ones(64)), "negative variances"),
        (lambda s: spoiled(s, "bn1.bias", torch.ones(64, dtype=torch.int64)), "not a floating-point tensor"),
        (lambda s: spoiled(s, "bn1.bias", "a text"), "not a floating-point tensor"),
        (lambda s: {"state_dict": s}, "missing conv1.weight"),
        (lambda s: [1, 2, 3], "hold a list, expected a state dict"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_by_name(state, tmp_path, change, message):
    file = saved(change(state), tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights(file, "resnet18")


def test_weights_of_another_network_are_refused(state, tmp_path):
    file = saved(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"do not fit resnet34: missing layer1\.2.* --backbone"):
        load_weights(file, "resnet34")


class _RunsCode:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.proof,))


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, write):
    proof = tmp_path / "was-run"
    with (tmp_path / "evil.pth").open("wb") as file:
        write(_RunsCode(proof), file)
    with pytest.raises(WeightsError, match="not a checkpoint of plain tensors"):
        load_weights(str(tmp_path / "evil.pth"), "resnet34")
    assert not proof.exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "text.pth", "empty.pth", "empty.safetensors"])
def test_damaged_files_are_refused(state, tmp_path, name):
    whole = Path(saved(state, tmp_path / f"whole{Path(name).suffix}")).read_bytes()
    content = {"cut": whole[: len(whole) // 2], "text": b"these are not weights", "empty": b""}
    (tmp_path / name).write_bytes(content[Path(name).stem])
    with pytest.raises(WeightsError, match=name):
        load_weights(str(tmp_path / name), "resnet18")


@pytest.mark.parametrize("spec", ["random:", "random:-1", "random:x", "random:4294967296", "no/such/file.pth", "."])
def test_what_names_no_weights_is_refused(spec):
    with pytest.raises(WeightsError, match=r"seed|not a file"):
        load_weights(spec, "resnet34")


def test_without_network_the_message_says_which_file_to_give(tmp_path, monkeypatch):
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(WeightsError, match=r"resnet34-b627a593\.pth.*--weights"):
        load_weights("imagenet1k_v1", "resnet34")


@pytest.mark.shared
@pytest.mark.slow
def test_the_stand_in_checkpoint_loads(stand_in_weights):
    weights = load_weights(str(stand_in_weights), "resnet34")
    assert set(weights.tensors) == set(architecture("resnet34", 224).shapes)
    assert weights.text == "stand-in.pth"
