"""The documentation against the code: figures that are quoted twice, links, commands, variables and files exist.

A measured figure that stands on several pages carries its name in an HTML comment behind it, `47.1<!--extract.rate-->`.
Figures of one name have to agree; a page may round.
"""

import ast
import importlib
import re
import shlex
from collections.abc import Iterable, Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import click
import pytest

from mrrn.cli import main as front_door

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
README_LINES = 100
STAGES = ("cache", "extract", "train", "fuse")
MEASURED = {"benchmarks.md", "results.md", "training.md", "videos.md", "reliability.md"}
"""Pages that say what a figure was measured on. Each quoted figure has to be on one of them."""

DERIVED = "scale."
"""Beginning of the names of figures that are calculated, not measured: see `costs`."""

NOT_MEASURED = {"0.7", "0.2", "0.1", "3.11", "3.13", "3.14", "2.0", "1711.08238"}
"""Numbers with a point in README.md that are not measured: fusion weights, versions, the paper's number."""

OUTSIDE_VARIABLES = {"RAY_ADDRESS"}
"""Read from the environment by the commands themselves, not by the Makefile."""

OUTSIDE_OPTIONS = {
    "--address",
    "--disable-usage-stats",
    "--generate",
    "--head",
    "--nproc-per-node",
    "--port",
    "--working-dir",
}
"""Of `ray` and `torchrun`."""

MARKED = re.compile(r"(\d[\d,]*(?:\.\d+)?)<!--([a-z0-9._]+)-->")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```[\s\S]*?^```|^(?: {4}.*\n?)+|`[^`\n]+`", re.MULTILINE)
COMMAND = re.compile(r"(\bpython -m|(?:^ *|&& |\bbin/)mrrn) ([a-z0-9_.]+)([^\n`)>&]*)", re.MULTILINE)
PATH = re.compile(r"(?:cache|extract|train|fuse|tests|docs|benchmarks|deploy)/(?:[\w.-]+/)*[\w.-]*\.(?:py|md|c|yaml)")


def texts(pages: Iterable[Path] = PAGES) -> dict[str, str]:
    return {page.name: page.read_text() for page in pages}


def code(text: str) -> str:
    """The code of a page: fenced and indented blocks, and spans; shell lines that continue are joined, remarks cut."""
    found = "\n".join(match[0].strip("`") for match in CODE.finditer(text)).replace("\\\n", " ")
    return re.sub(r"\s#\s.*", "", found)


# Figures


def rounded(number: str, like: str) -> Decimal:
    """`number` with as many decimals as `like` has."""
    step = Decimal(1).scaleb(-len(like.partition(".")[2]))
    return Decimal(number).quantize(step, ROUND_HALF_UP)


def disagreements(pages: dict[str, str]) -> list[str]:
    """Named figures that differ, that stand on one page only, or that no page of MEASURED has."""
    places: dict[str, list[tuple[str, str]]] = {}
    for page, text in pages.items():
        for number, name in MARKED.findall(text):
            places.setdefault(name, []).append((page, number.replace(",", "")))
    wrong = []
    for name, found in places.items():
        exact = max((number for _, number in found), key=lambda number: len(number.partition(".")[2]))
        wrong += [
            f"{name}: {number} in {page}, {exact} on another page"
            for page, number in found
            if rounded(exact, number) != Decimal(number)
        ]
        if name.startswith(DERIVED):
            continue
        if len(found) < 2 or not MEASURED & {page for page, _ in found}:
            wrong.append(f"{name}: only in {', '.join(page for page, _ in found)}")
    return wrong


def test_figures_of_one_name_are_the_same():
    assert disagreements(texts()) == []


def test_the_check_of_figures_finds_differences():
    page, quote = "rate 47.1<!--rate-->", "rate 47<!--rate-->"
    assert disagreements({"benchmarks.md": page, "README.md": quote}) == []
    assert disagreements({"benchmarks.md": page, "README.md": quote.replace("47", "48")})
    assert disagreements({"benchmarks.md": page}), "quoted nowhere"
    assert disagreements({"README.md": page, "usage.md": quote}), "measured nowhere"


def unnamed(text: str) -> list[str]:
    """Numbers with a point, outside of code and links, that carry no name."""
    text = MARKED.sub("", re.sub(r"```.*?```|`[^`\n]+`|\]\([^)]*\)", "", text, flags=re.DOTALL))
    return [number for number in re.findall(r"\d+\.\d+", text) if number not in NOT_MEASURED]


def test_every_figure_of_the_readme_has_a_name():
    assert unnamed((ROOT / "README.md").read_text()) == []


def test_the_check_of_names_finds_a_figure_without_one():
    assert unnamed("0.7 high, 2.19<!--ratio-->, `1.5`, and 44.0 frames") == ["44.0"]


# Arithmetic of docs/scale.md


def costs(text: str) -> list[str]:
    """Figures of docs/scale.md that do not follow from the rates in its table; the text names rates and results."""
    value = {name: Decimal(number.replace(",", "")) for number, name in MARKED.findall(text)}
    frames, gpu, core = value["scale.frames"], value["scale.gpu_rate"], value["extract.end_to_end"] / 2
    expected = {
        "scale.core_rate": core,
        "scale.gpu_videos": 3600 * gpu / frames,
        "scale.core_videos": 3600 * core / frames,
        "scale.gpu_cores": gpu / value["decode.pyav"],
        "scale.gpu_hours": 10**6 * frames / gpu / 3600,
        "scale.core_hours": 10**6 * frames / core / 3600,
        "scale.kinetics_gpu_hours": 650_000 * frames / gpu / 3600,
        "scale.kinetics_core_hours": 650_000 * frames / core / 3600,
        "scale.large_gpu_hours": 10**8 * frames / gpu / 3600,
        "scale.large_core_hours": 10**8 * frames / core / 3600,
    }
    return [
        f"{name}: {value.get(name)}, expected {wanted:.4g}"
        for name, wanted in expected.items()
        if abs(value.get(name, Decimal(0)) / wanted - 1) > Decimal("0.02")
    ]


def test_the_costs_follow_from_the_rates():
    assert costs((ROOT / "docs/scale.md").read_text()) == []


def test_the_check_of_costs_finds_a_rate_that_was_changed():
    text = (ROOT / "docs/scale.md").read_text()
    rate = re.search(r"[\d,]+(?=<!--scale.gpu_rate-->)", text)
    assert rate is not None
    assert len(costs(text.replace(rate[0], "20,513"))) >= 5


# Links, files


def slug(heading: str) -> str:
    """Anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page whose file, or whose heading in it, is not there."""
    wrong = []
    for target in LINK.findall(text):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists():
            wrong.append(f"{page.name}: {target}")
        elif anchor and anchor not in map(slug, re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)):
            wrong.append(f"{page.name}: {target} (no such heading)")
    return wrong


def missing_paths(text: str) -> list[str]:
    """Files of the repository that a page names and that are not there."""
    return [path for path in PATH.findall(text) if not (ROOT / path).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    assert broken_links(page, text) == []
    assert missing_paths(code(text)) == []


def test_the_checks_of_links_and_paths_find_what_is_missing():
    page = ROOT / "README.md"
    assert broken_links(page, "[a](docs/gone.md) [b](docs/usage.md#gone) [c](docs/usage.md) [d](https://x.org)") == [
        "README.md: docs/gone.md",
        "README.md: docs/usage.md#gone (no such heading)",
    ]
    named = "cache/gone.py, cache/store.py, tests/cache/gone.py"
    assert missing_paths(named) == ["cache/gone.py", "tests/cache/gone.py"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < README_LINES


# Commands


def wrong_make(text: str) -> list[str]:
    """Targets and variables after `make` that the Makefile has not."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = (
        set(re.findall(r"^override VARIABLES := ([A-Z_ ]+)$", makefile, re.MULTILINE)[0].split()) | OUTSIDE_VARIABLES
    )
    wrong = []
    for words in re.findall(r"(?:^|[\s(])make((?: +[^\s&]+)*)", text, re.MULTILINE):
        for word in words.split():
            name, equals, _ = word.partition("=")
            if equals and name not in variables:
                wrong.append(f"make {name}=")
            elif not equals and re.fullmatch(r"[a-z-]+", name) and name not in targets:
                wrong.append(f"make {name}")
    return wrong


def test_make_commands_exist():
    wrong = {name: found for name, text in texts().items() if (found := wrong_make(code(text)))}
    assert wrong == {}


def test_the_check_of_make_finds_what_is_missing():
    text = "make fuse DATASET=a\n  make fusion POOL=max COLOUR=red\nexport A=1 && make extract && make gone"
    assert wrong_make(text) == ["make fusion", "make COLOUR=", "make gone"]


def options_of(command: click.Command) -> set[str]:
    return {"--help", *(name for parameter in command.params for name in parameter.opts)}


def options_of_script(name: str) -> set[str] | None:
    """Options of a script in benchmarks/, read off its source; None if there is no such script."""
    file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    if not file.exists():
        return None
    literals = (node.value for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Constant))
    return {"--help", *(text for text in literals if isinstance(text, str) and text.startswith("--"))}


def wrong_python(text: str) -> Iterator[str]:
    """Packages, commands and options after `python -m` or `mrrn` that are not there."""
    for way, name, rest in COMMAND.findall(text):
        words = shlex.split(rest.replace("'", ""))
        asked = [word.partition("=")[0] for word in words if word.startswith("--") and len(word) > 2]
        if name.startswith("benchmarks."):
            known = options_of_script(name)
            if known is None:
                yield f"python -m {name}"
                continue
            yield from (f"python -m {name} {option}" for option in asked if option not in known)
        elif name in STAGES or way.endswith("mrrn"):
            main = front_door.get_command(click.Context(front_door), name)
            if main is None:
                yield f"mrrn {name}"
                continue
            commands: list[click.Command] = [main]
            if isinstance(main, click.Group) and words and re.fullmatch(r"[a-z|]+", words[0]):
                named = words[0].split("|")
                yield from (f"mrrn {name} {command}" for command in named if command not in main.commands)
                commands += [main.commands[command] for command in named if command in main.commands]
            known = set().union(*map(options_of, commands))
            yield from (f"mrrn {name} {option}" for option in asked if option not in known)


def test_python_commands_exist():
    deploy = {file.name: file.read_text() for file in (ROOT / "deploy").iterdir()}
    pages = {name: code(text) for name, text in texts().items()} | deploy
    wrong = {name: found for name, text in pages.items() if (found := list(wrong_python(text)))}
    assert wrong == {}


def test_the_check_of_commands_finds_what_is_missing():
    text = """
        python -m cache info|mend
        mrrn cache info --colours && mrrn extrat
        python -m train sweep --table 2 --colours 5
        .venv/bin/mrrn predict --bundle a --colours b.mp4 && python -m benchmarks.sru --device cpu --speed 3
        python -m benchmarks.gone
    """
    assert list(wrong_python(text)) == [
        "mrrn cache mend",
        "mrrn cache --colours",
        "mrrn extrat",
        "mrrn train --colours",
        "mrrn predict --colours",
        "python -m benchmarks.sru --speed",
        "python -m benchmarks.gone",
    ]


def every_option() -> set[str]:
    """Options of all commands and of the benchmarks."""
    known = OUTSIDE_OPTIONS | options_of(front_door)
    for stage in STAGES:
        main: click.Group = importlib.import_module(f"{stage}.cli").main
        for command in (main, *main.commands.values()):
            known |= options_of(command)
    for file in (ROOT / "benchmarks").glob("*.py"):
        known |= options_of_script(f"benchmarks.{file.stem}") or set()
    return known


def unknown_options(text: str) -> set[str]:
    """Options that a page names, also alone, and that no command has."""
    return set(re.findall(r"(?<![\w!-])--[a-z][a-z-]+", text)) - every_option()


def test_options_exist():
    assert {name: found for name, text in texts().items() if (found := unknown_options(code(text)))} == {}


def test_the_check_of_options_finds_what_is_missing():
    assert unknown_options("`--strict` and `--limit frames=5`, not `--strictly` nor a--b") == {"--strictly"}


def test_every_command_and_variable_of_make_is_explained():
    """docs/usage.md lists each target with a help text, and each variable."""
    makefile, usage = (ROOT / "Makefile").read_text(), (ROOT / "docs/usage.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) - {"help", "install"}
    variables = re.findall(r"^override VARIABLES := ([A-Z_ ]+)$", makefile, re.MULTILINE)[0].split()
    assert {target for target in targets if f"`make {target}`" not in usage} == set()
    assert {variable for variable in variables if not re.search(rf"`{variable}[`=]", usage)} == set()
