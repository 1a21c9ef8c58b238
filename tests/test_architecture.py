"""What holds the folders apart: which may import which, what importing costs, what the command lines say."""

import ast
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers_golden import check_golden

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cache", "extract", "train", "fuse")

MAY_IMPORT = {
    "cache": {"cache"},
    "extract": {"extract", "cache"},
    "train": {"train", "cache"},
    "fuse": {"fuse", "cache"},
    "fuse/predict.py": {"fuse", "cache", "extract", "train"},
}
"""Design §3: imports go one way; the folder's line holds for every file that has none of its own."""

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
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from paths(child, (*path, name))

folder, heavy = sys.argv[1], sys.argv[2:]
main = importlib.import_module(f"{folder}.cli").main
texts = {}
for path in paths(main):
    result = CliRunner().invoke(main, [*path, "--help"], prog_name=f"python -m {folder}", terminal_width=100)
    assert result.exit_code == 0, result.output
    texts[" ".join((f"python -m {folder}", *path))] = result.output
print(json.dumps({"texts": texts, "loaded": sorted(set(heavy) & set(sys.modules))}))
"""


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
        allowed = MAY_IMPORT.get(name, MAY_IMPORT[folder])
        wrong += [f"{name}: {module}" for module in imported(file) if module.split(".")[0] in set(FOLDERS) - allowed]
    assert wrong == []


def test_the_check_sees_imports_inside_functions(tmp_path):
    (tmp_path / "x.py").write_text("import os.path\ndef f():\n    from train.sru import SRU\n    import extract as e\n")
    assert sorted(imported(tmp_path / "x.py")) == ["extract", "os.path", "train.sru"]


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
    shown = json.loads(run(SHOW_HELP, folder, *HEAVY))
    assert shown["loaded"] == []
    text = "\n".join(f"$ {command} --help\n{output}" for command, output in shown["texts"].items())
    check_golden(f"help/{folder}.txt", text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_a_command(folder):
    done = python("-m", folder, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: python -m {folder} ")


def test_no_name_shadows_another():
    """Running from the repository's root puts its names before the standard library's and the dependencies'."""
    ours = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or next(path.glob("*.py"), None)}
    assert ours >= set(FOLDERS)
    assert ours & set(sys.stdlib_module_names) == set()
    for name in FOLDERS:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert Path(str(spec.origin)).parent == ROOT / name


def test_no_two_test_files_have_one_name():
    """pytest imports them by their bare names."""
    counts = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_the_readme_has_a_phrase_for_every_file():
    text = (ROOT / "README.md").read_text()
    for folder in FOLDERS:
        part = text.split(f"**{folder}/**", 1)[1].split("\n**", 1)[0]
        for file in sources(folder):
            named = f"`{file.name}`" in part or (file.parent.name != folder and f"`{file.parent.name}/`" in part)
            assert named or file.name in ("__init__.py", "__main__.py"), (
                f"README.md does not name {file.relative_to(ROOT)}"
            )
