"""What holds the folders apart: which may import which, what importing costs, what the command lines say."""

import ast
import builtins
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import mrrn
from mrrn.cli import COMMANDS
from mrrn.cli import main as front_door
from tests.helpers.golden import check_golden

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cache", "extract", "train", "fuse", "mrrn")

MAY_IMPORT = {
    "cache": {"cache"},
    "extract": {"extract", "cache"},
    "train": {"train", "cache"},
    "fuse": {"fuse", "cache", "extract", "train"},
    "mrrn": set(FOLDERS),
}
"""Imports go one way."""

HEAVY = (
    "torch",
    "torchvision",
    "decord",
    "av",
    "matplotlib",
    "zarr",
    "h5py",
    "tensorboard",
    "triton",
    "llvmlite",
    "ray",
    "pyarrow",
)
"""What takes a second or more to import, or opens devices; a help text needs none of it."""

SHOW_HELP = """
import importlib, json, sys
import click
from click.testing import CliRunner

def paths(command, path=()):
    yield path
    # The front door's commands are those of the stages.
    for name, child in sorted(getattr(command, "commands", {}).items() if command.name != "mrrn" else ()):
        yield from paths(child, (*path, name))

folder, name, heavy = sys.argv[1], sys.argv[2], sys.argv[3:]
main = importlib.import_module(f"{folder}.cli").main
texts = {}
for path in paths(main):
    result = CliRunner().invoke(main, [*path, "--help"], prog_name=name, terminal_width=100)
    assert result.exit_code == 0, result.output
    texts[" ".join((name, *path))] = result.output
print(json.dumps({"texts": texts, "loaded": sorted(set(heavy) & set(sys.modules))}))
"""


def command_of(folder: str) -> str:
    return "mrrn" if folder == "mrrn" else f"python -m {folder}"


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Dotted names that the file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import in line {node.lineno}; write the full name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder):
    wrong = []
    for file in sources(folder):
        name = str(file.relative_to(ROOT))
        forbidden = set(FOLDERS) - MAY_IMPORT[folder]
        wrong += [f"{name}: {module}" for module in imported(file) if module.split(".")[0] in forbidden]
    assert wrong == []


def module_of(file: Path) -> str:
    """Dotted name of a source file; of a package's `__init__.py` the package's."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, also through others."""
    reached = {name: {name} | arrows[name] for name in arrows}
    changed = True
    while changed:
        changed = False
        for name in reached:
            wider = set().union(*(reached[other] for other in reached[name]))
            changed = changed or wider != reached[name]
            reached[name] = wider
    tied = ({other for other in reached[name] if name in reached[other]} for name in reached)
    return sorted(map(sorted, {frozenset(group) for group in tied if len(group) > 1}))


def test_no_two_files_import_each_other():
    files = {module_of(file): file for folder in FOLDERS for file in sources(folder)}
    arrows = {}
    for name, file in files.items():
        found = {module for module in imported(file) if module in files} - {name}
        # `from package import module` is an arrow to the module alone.
        arrows[name] = {module for module in found if not any(other.startswith(f"{module}.") for other in found)}
    assert circles(arrows) == []


def test_the_check_finds_a_circle_through_a_third():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_the_check_sees_imports_inside_functions(tmp_path):
    (tmp_path / "x.py").write_text("import os.path\ndef f():\n    from train.sru import SRU\n    import extract as e\n")
    assert sorted(imported(tmp_path / "x.py")) == ["extract", "os.path", "train.sru", "train.sru.SRU"]


def test_decoding_has_one_door():
    """Outside of extract/decode/ nothing but `extract.decode` itself is imported, and that loads no decoder."""
    outside = [file for folder in FOLDERS for file in sources(folder) if file.parts[-2] not in ("decode", "backends")]
    inside = {module_of(file) for file in sources("extract/decode")} - {"extract.decode"}
    assert [(str(file), name) for file in outside for name in imported(file) if name in inside] == []
    loaded = run("import sys, extract.decode; print(*sys.modules)").split()
    assert set(loaded) & {*HEAVY, "torchcodec"} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_imports_the_tests_or_benchmarks(folder):
    wrong = [
        file for file in sources(folder) for name in imported(file) if name.split(".")[0] in ("tests", "benchmarks")
    ]
    assert wrong == []


def test_cache_needs_no_torch_at_import():
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in sources("cache")]
    modules = [name for name in modules if not name.endswith("__main__")]
    code = (
        "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print('torch' in sys.modules)"
    )
    assert run(code, *modules).strip() == "False"


@pytest.mark.parametrize("folder", FOLDERS)
def test_help_is_light_and_as_last_looked_at(folder):
    """After a change that is meant: `UPDATE_GOLDEN=1 pytest tests/test_architecture.py`, and look at the diff."""
    shown = json.loads(run(SHOW_HELP, folder, command_of(folder), *HEAVY))
    assert shown["loaded"] == []
    text = "\n".join(f"$ {command} --help\n{output}" for command, output in shown["texts"].items())
    check_golden(f"help/{folder}.txt", text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_a_command(folder):
    done = python("-m", folder, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {command_of(folder)} ")


def test_the_front_door_costs_nothing():
    """Help, version and the answer to a misspelt command import no stage; each command is one of its stage."""
    for arguments in (["--help"], ["--version"], ["extrat"]):
        code = "import sys; from mrrn.cli import main; main(sys.argv[1:], standalone_mode=False)"
        done = python("-X", "importtime", "-c", code, *arguments)
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "click" in loaded
        assert loaded & {*HEAVY, "rich", "cache.cli", "extract.cli", "train.cli", "fuse.cli"} == set()
    answer = python("-m", "mrrn", "extrat")
    assert answer.returncode == 2
    assert "Did you mean" in answer.stderr
    assert "'extract'" in answer.stderr
    context = click.Context(front_door)
    for name, (module, _, _) in COMMANDS.items():
        command = front_door.get_command(context, name)
        stage = importlib.import_module(module).main
        assert command is stage or command in stage.commands.values()


def test_no_name_shadows_another():
    """Running from the repository's root puts its names before the standard library's and the dependencies'."""
    ours = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or next(path.glob("*.py"), None)}
    assert ours >= set(FOLDERS)
    assert ours & set(sys.stdlib_module_names) == set()
    for name in FOLDERS:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert Path(str(spec.origin)).parent == ROOT / name


def test_every_class_name_is_used_once():
    """Protocols of one method excepted, a name means one thing in the whole project."""
    places: dict[str, list[str]] = {}
    for file in (file for folder in FOLDERS for file in sources(folder)):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_the_map_has_a_phrase_for_every_file():
    """docs/architecture.md names each file once, below its folder."""
    text = (ROOT / "docs/architecture.md").read_text()
    for folder in FOLDERS:
        part = text.split(f"\n{folder}/ ", 1)[1].split("```", 1)[0]
        for name in {file.name for file in sources(folder)} - {"__init__.py", "__main__.py"}:
            assert name in part, f"docs/architecture.md does not name {name} of {folder}/"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("extract", "--dataset", "ucf10"), "Did you mean ucf101? There are ucf101, hmdb51, demo"),
        (("extract", "--dataset", "demo", "--weights", "imagnet1k_v1"), "did you mean imagenet1k_v1?"),
        (("extract", "--device", "tpu"), "device 'tpu' is not known"),
        (("train", "--dataset", "ucf10"), "nothing was extracted for dataset 'ucf10'"),
        (("fuse", "predict", "notes.txt"), "is no video"),
        (("fuse", "predict", "missing.mp4"), "there is no file"),
    ],
)
def test_what_is_wrong_is_told_before_torch_is_imported(command, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("école\n" * 2000)
    stage, *options = command
    real = builtins.__import__

    def checked(name, *rest):
        assert name.partition(".")[0] != "torch", "torch is imported"
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", checked)
    result = CliRunner().invoke(importlib.import_module(f"{stage}.cli").main, options)
    assert result.exit_code == 1, result.output
    assert told in result.output


def test_the_python_door_is_light():
    """`import mrrn` and opening a cache import no torch; every name that it promises is there."""
    code = "import sys, mrrn; mrrn.open_cache; print(mrrn.__version__, len(dir(mrrn)), *sys.modules)"
    version, _, *loaded = run(code).split()
    assert version[0].isdigit()
    assert set(loaded) & set(HEAVY) == set()
    with pytest.raises(AttributeError, match="it has ClipDataset"):
        _ = mrrn.open_cash
    assert all(getattr(mrrn, name) for name in dir(mrrn))


@pytest.mark.parametrize("code", ["import runpy; runpy.run_module('mrrn', run_name='__main__')", "mrrn.open_cache"])
def test_other_systems_are_told_so(code):
    done = python("-c", f"import sys; sys.platform = 'win32'; import mrrn; {code}")
    assert done.returncode == 1
    assert "MRRN runs on Linux, this is Linux: use WSL 2, or a container" in done.stderr
