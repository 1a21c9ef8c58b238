"""Names from outside as harmless text."""

from hypothesis import given
from hypothesis import strategies as st

from cache.common.text import markdown_table, shortened, some, text_table, visible


def test_a_markdown_table_has_literal_cells_and_numbers_flush_right() -> None:
    table = markdown_table(["name", "share %"], [["a|b", "1.5"], ["c", "–"]], numeric=[1])
    assert table.splitlines() == ["| name | share % |", "| --- | ---: |", "| a\\|b | 1.5 |", "| c | – |"]


def test_a_markdown_table_without_rows_is_its_heading() -> None:
    assert markdown_table(["name"], []) == "| name |\n| --- |"


def test_some_names_and_how_many_more() -> None:
    assert some(["a", "b\n", "c"]) == "a, b\\n, c"
    assert some(["a", "b", "c", "d"], 2) == "a, b and 2 more"


def test_control_and_direction_characters_are_shown() -> None:
    assert visible("a\x1b[31mb\u202ec\nd") == "a\\x1b[31mb\\u202ec\\nd"
    assert visible("café 漢字 ok") == "café 漢字 ok"


@given(st.text(max_size=60), st.integers(3, 30))
def test_shortening_keeps_both_ends(name: str, length: int) -> None:
    short = shortened(name, length)
    assert len(short) <= max(length, 3)
    assert short == name if len(name) <= length else "…" in short


def test_a_table_fits_the_terminal_by_breaking_headings_and_its_first_column() -> None:
    heads = ["setting", "low", "fused 0.7/0.2/0.1", "fused, weights held-out", "95 % from", *["mean of levels"] * 2]
    row = ["hidden 1024, layers 5", *["81.4 ± 0.3"] * 6]
    lines = text_table(heads, [row, row], range(1, 7)).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("hidden")] == ["hidden", "hidden"]
    assert (
        text_table(["a b", "95 %"], [["x", "1"], ["longer", "22"]], [1])
        == "a\nb       95 %\nx          1\nlonger    22"
    )
