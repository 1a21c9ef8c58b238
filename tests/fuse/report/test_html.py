"""The page: what it says, and that names from outside stay text. What a browser makes of it: test_browser.py."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from cache.dataset import Dataset
from fuse.caveats import caveats
from fuse.report.html import Extras, html
from fuse.report.samples import choose_mistakes, choose_samples
from fuse.results import Results, evaluate
from tests.helpers.golden import check_golden
from tests.helpers.scores import (
    HAND_WORKED,
    MADE,
    hand_worked_results,
    made_up_results,
    make_scored_cache,
    make_table,
    results_of_a_subset,
)

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}{% raw %}",
    "</script><script>alert(2)</script>",
    "javascript:alert(1)",
    "\u202eevil\u202c\x00\x1b[31m",
    "]]><!--",
    "&lt;b&gt;",
)


def page(results: Results) -> str:
    return html(results, caveats(results), MADE, Extras(samples=choose_samples(results)))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}


def tags_of(text: str) -> _Tags:
    parser = _Tags()
    parser.feed(text)
    return parser


def test_the_page_is_as_it_was() -> None:
    check_golden("fuse/report.html", page(results_of_a_subset()))


def test_hostile_names_stay_text() -> None:
    tame = made_up_results([f"class {index}" for index in range(len(HOSTILE))], 64)
    wild = made_up_results(HOSTILE, 64, id_of=lambda index, name: f"<b onclick=x>{index}<script>'\"&{{{{7*7}}}}")
    expected, found = tags_of(page(tame)), tags_of(page(wild))
    for tags in (found.tags, expected.tags):
        tags.pop("wbr", None)  # where names may break
    assert found.tags == expected.tags
    assert found.attributes == expected.attributes
    assert not any(name.startswith("on") for name in found.attributes)
    assert "\u202e" not in page(wild)
    assert "49" not in re.findall(r"<th scope=\"row\"[^>]*>(.*?)</th>", page(wild))


def test_the_policy_allows_exactly_what_stands_in_the_file() -> None:
    text = page(hand_worked_results())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(scripts) == len(styles) == 1
    for directive, text in (("script-src", scripts[0]), ("style-src", styles[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} &#39;sha256-{digest}&#39;" in policy[1]
    assert policy[1].startswith("default-src &#39;none&#39;")
    assert "unsafe" not in policy[1]
    assert " style=" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_what_has_to_be_known_first_stands_first() -> None:
    text = page(results_of_a_subset())
    first = text.index("<strong>subset</strong>: 44 of 13,320 videos")
    weights = text.index("<strong>weights</strong>: random:0 (random, never trained)")
    assert text.index("97.5") < weights < first < text.index('id="classes"')
    assert "1 of 40 test videos have no features and count as wrong." in text


def test_missing_failed_and_suspect_videos_are_listed_with_reasons() -> None:
    text = page(results_of_a_subset())
    assert "Videos that could not be decoded: 1" in text
    assert "truncated &lt;file&gt;" in text
    assert "48 of 50" in text


def test_samples_that_are_spans_are_called_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dataset, "noun", "samples")
    whole = re.sub(r"<(script|style)\b.*?</\1>", "", page(results_of_a_subset()), flags=re.DOTALL)
    said = {line.strip() for line in re.sub(r"<[^>]*>", "\n", whole).splitlines() if "video" in line.lower()}
    said -= {line for line in said if line.startswith(": 44 of 13,320 videos") or "backbone" in line}
    assert said == {"The same settings on the same videos give the same figures:"}


def test_one_mistake_beside_a_video_without_features_is_the_only_one() -> None:
    labels = {"a/one": 0, "b/two": 0, "c/gone": 0}
    tables = {level: make_table(level, clips, labels) for level, clips in HAND_WORKED.items()}
    results = evaluate(tables, make_scored_cache(labels, failed={"c/gone": "cut short"}), 1)
    mistakes = choose_mistakes(results)
    assert len(mistakes) == 1
    assert "The only mistake," in html(results, [], MADE, Extras(mistakes=mistakes))
