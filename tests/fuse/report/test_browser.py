"""The report in a real browser: Debian's chromium, driven by Playwright, without network.

`apt-get install chromium` and the dev extra bring what is needed; without them these tests are skipped.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuse.caveats import caveats
from fuse.doctor import KINDS, Diagnosis, Suspicion, portions
from fuse.labels import AlikeClasses
from fuse.portions import Portion
from fuse.report.findings import doctor_page
from fuse.report.html import Extras, html
from fuse.report.samples import choose_mistakes, choose_samples
from fuse.results import Results
from tests.helpers.scores import MADE, made_up_results, results_of_a_subset

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")

CHROMIUM = shutil.which("chromium")

HOSTILE = [
    f"{text} {index}"
    for index in range(125)
    for text in (
        "<script>document.title='taken'</script>",
        "<img src=x onerror=\"document.title='taken'\">",
        "</script><svg onload=document.title='taken'>",
        "javascript:document.title='taken'//\u202e\"'`{{1}}",
    )
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # A root user, as in a container, has no sandbox; the page is our own file and has no network.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


class Opened:
    """A report in a page of the browser, and everything that it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(offline=True, **context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        started = time.monotonic()
        self.page.goto(path.as_uri())
        self.seconds = time.monotonic() - started

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    @property
    def network(self) -> list[str]:
        """Requests for anything but the file itself and what stands in it."""
        return [url for url in self.requests[1:] if not url.startswith("data:")]

    def first_column(self) -> list[str]:
        return self.page.eval_on_selector_all("table.classes tbody th", "cells => cells.map(cell => cell.textContent)")

    def fits(self) -> bool:
        """Whether nothing but the scrolling regions is wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def write(folder: Path, results: Results) -> Path:
    path, mistakes = folder / "report.html", choose_mistakes(results)
    picture = np.random.default_rng(0).integers(0, 256, (8, 30, 40, 3), np.uint8)
    frames = {each.video: picture for each in mistakes[:20]}
    extras = Extras(mistakes=mistakes, samples=choose_samples(results), frames=frames)
    path.write_text(html(results, caveats(results), MADE, extras), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small"), results_of_a_subset())


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with mistakes, with and without frames, and classes side by side that are confused."""
    return write(tmp_path_factory.mktemp("wrong"), made_up_results([f"action {index}" for index in range(40)], 400))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = made_up_results(HOSTILE, 1000, id_of=lambda index, name: f"{index}'\"><b onclick=alert(1)>&amp;.<i>")
    return write(tmp_path_factory.mktemp("hostile"), results)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As large as UCF-101's split 1."""
    names = [f"SomeAction{index:03}" for index in range(101)]
    results = made_up_results(names, 3783, id_of=lambda index, name: f"{name}/v_{name}_g{index % 25:02}_c{index:04}")
    return write(tmp_path_factory.mktemp("large"), results)


def test_it_opens_without_complaint_and_without_network(browser: Any, small: Path) -> None:
    with Opened(browser, small) as report:
        assert report.complaints == []
        assert report.network == []
        assert report.page.title() == "UCF-101, split 1 · MRRN"


def test_headings_sort_by_mouse_and_by_keyboard(browser: Any, small: Path) -> None:
    with Opened(browser, small) as report:
        before = report.first_column()
        heading = report.page.get_by_role("button", name="Class", exact=True)
        heading.click()
        assert report.first_column() == sorted(before, key=str.casefold)
        heading.focus()
        report.page.keyboard.press("Enter")
        assert report.first_column() == sorted(before, key=str.casefold, reverse=True)
        assert heading.locator("xpath=..").get_attribute("aria-sort") == "descending"
        report.page.get_by_role("button", name="Low", exact=True).press("Space")
        shares = report.page.eval_on_selector_all(
            "table.classes tbody tr", "rows => rows.map(row => Number(row.cells[6].dataset.value))"
        )
        assert shares == sorted(shares, reverse=True)
        assert report.page.locator("th[aria-sort=descending]").count() == 1


def test_the_matrix_tells_by_mouse_keyboard_and_tap(browser: Any, small: Path) -> None:
    with Opened(browser, small, has_touch=True) as report:
        matrix, detail = report.page.locator("#matrix"), report.page.locator("#matrix-detail")
        report.page.locator("#matrix rect.right").first.hover()
        assert "Archery recognised" in detail.inner_text()
        assert "10 of 10 videos (100 %)" in detail.inner_text()
        assert detail.locator("li.file").count() == 4
        matrix.focus()
        report.page.keyboard.press("ArrowRight")
        assert "Archery taken for =cmd()" in detail.inner_text()
        assert "0 of 10 videos" in detail.inner_text()
        report.page.keyboard.press("ArrowLeft")
        report.page.keyboard.press("ArrowDown")
        assert "=cmd() taken for Archery" in detail.inner_text()
        report.page.keyboard.press("Shift+ArrowRight")
        assert "=cmd() recognised" in detail.inner_text()
        report.page.locator("#matrix rect.right").nth(2).tap()
        assert "<b>|`x` recognised" in detail.inner_text()
        assert report.complaints == []


def test_a_name_in_the_panel_breaks_between_its_words(browser: Any, large: Path) -> None:
    with Opened(browser, large) as report:
        report.page.locator("#matrix rect.right").first.hover()
        found = report.page.locator("#matrix-detail li.file").first
        name = found.text_content()
        parts = found.evaluate("item => [...item.childNodes].filter(each => each.data).map(each => each.data)")
        assert "".join(parts) == name
        assert [part[-1] for part in parts[:-1]].count("_") == name.count("_")


def test_hostile_names_stay_text(browser: Any, hostile: Path) -> None:
    with Opened(browser, hostile) as report:
        assert report.complaints == []
        assert report.network == []
        assert report.page.title() == "tiny, split 1 · MRRN"
        assert len(report.first_column()) == len(HOSTILE) == 500
        assert report.page.locator("main script, main img[onerror], main b, main i, main svg[onload]").count() == 0
        matrix = report.page.locator("#matrix")
        matrix.focus()
        report.page.keyboard.press("ArrowDown")
        assert " taken for " in report.page.locator("#matrix-detail").inner_text()
        report.page.locator("#filter").select_option(index=1)
        report.page.locator(".card:visible .sheet").first.click()
        assert "document.title='taken'" in report.page.locator("#large").inner_text()
        assert (
            report.page.locator("#matrix-detail, #large").locator("script, b, img[onerror], svg[onload]").count() == 0
        )
        assert report.page.title() == "tiny, split 1 · MRRN"


@pytest.mark.parametrize("name", ["small", "wrong", "hostile", "large"])
def test_a_phone_shows_it_whole(browser: Any, name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    with Opened(browser, path, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True) as report:
        assert report.fits()
        sizes = report.page.eval_on_selector_all(
            "p, td, th, dd, li, h2", "all => all.map(each => parseFloat(getComputedStyle(each).fontSize))"
        )
        assert min(sizes) >= 12
        report.page.locator("#matrix rect.right").first.tap()
        detail = report.page.locator("#matrix-detail")
        assert "recognised" in detail.inner_text()
        assert detail.bounding_box()["height"] < 0.45 * 740, "what stands over the matrix leaves room for it"


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing(browser: Any, wrong: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    with Opened(browser, wrong, color_scheme=scheme) as report:
        report.page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        violations = axe.Axe().run(report.page).response["violations"]
        found = [f"{violation['id']}: {node['html'][:120]}" for violation in violations for node in violation["nodes"]]
        assert found == []


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing_on_the_doctors_page(browser: Any, tmp_path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    path = tmp_path / "doctor.html"
    path.write_text(doctor_page(*made_up_diagnosis(), MADE), encoding="utf-8")
    with Opened(browser, path, color_scheme=scheme, viewport={"width": 360, "height": 800}) as doctor:
        assert doctor.complaints == []
        assert doctor.fits()
        violations = axe.Axe().run(doctor.page).response["violations"]
        assert [f"{each['id']}: {node['html'][:120]}" for each in violations for node in each["nodes"]] == []


def made_up_diagnosis() -> tuple[Diagnosis, list[Portion], list[str], dict[str, Any]]:
    """A finding of each kind, with frames, and classes that are alike."""
    results = made_up_results([f"some_action_{index}" for index in range(4)], 40)
    names = results.video_ids
    findings = [
        Suspicion(kind=kind, sample=names[i], other=names[i + 10], score=0.9, advice="look")
        for i, kind in enumerate(KINDS)
    ]
    diagnosis = Diagnosis(
        dataset=results.cache.dataset,
        split=1,
        samples=40,
        groups=40,
        judged=40,
        findings=tuple(findings),
        alike=(AlikeClasses(0, 1, 20, 0.5),),
    )
    picture = np.random.default_rng(0).integers(0, 256, (8, 30, 40, 3), np.uint8)
    return diagnosis, portions(results, diagnosis), ["A note."], dict.fromkeys(names[:15], picture)


def test_a_hundred_classes_stay_small_and_quick(browser: Any, large: Path) -> None:
    assert large.stat().st_size < 5_000_000
    with Opened(browser, large) as report:
        assert report.seconds < 2.0
        assert report.complaints == []
        assert report.page.locator("#matrix text").count() >= 202
        report.page.emulate_media(media="print")
        report.page.set_viewport_size({"width": 760, "height": 1000})
        assert report.fits()


def test_mistakes_by_class_larger_and_by_keyboard(browser: Any, wrong: Path) -> None:
    with Opened(browser, wrong) as report:
        page = report.page
        cards, dialog = page.locator("#mistakes .card"), page.locator("#large")
        assert page.locator(".strips li").count() == 6
        assert cards.count() > 10
        page.locator(".strips a").first.press("Enter")
        assert dialog.locator("img").count() == 1
        first = dialog.inner_text()
        page.keyboard.press("ArrowRight")
        assert dialog.inner_text() != first
        page.keyboard.press("ArrowLeft")
        assert dialog.inner_text() == first
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
        name = cards.nth(3).get_attribute("data-true")
        page.locator("#filter").select_option(name)
        shown = page.locator("#mistakes .card:visible h3").all_inner_texts()
        assert shown
        assert set(shown) == {name}
        page.locator("#search").fill("action 11")
        assert page.locator("table.classes tbody tr:visible").count() == 1
        assert report.complaints == []


def test_the_largest_confusion_is_chosen_with_its_frames(browser: Any, wrong: Path) -> None:
    with Opened(browser, wrong) as report:
        detail = report.page.locator("#matrix-detail")
        pair = report.page.locator("table.pairs tbody tr").first.locator("th, td").all_inner_texts()
        assert f"{pair[0]} taken for {pair[1]}\n" in detail.inner_text()
        assert f"{pair[2]} of 10 videos" in detail.inner_text()
        assert detail.locator("img").count() >= 1


def test_on_a_phone_name_number_and_bar_of_a_class_are_on_the_screen(browser: Any, wrong: Path) -> None:
    with Opened(browser, wrong, viewport={"width": 360, "height": 740}, is_mobile=True) as report:
        right = report.page.eval_on_selector_all(
            "table.classes tbody tr", "rows => rows.map(row => row.cells[3].getBoundingClientRect().right)"
        )
        assert max(right) <= 360


def test_it_can_be_read_without_its_script(browser: Any, wrong: Path) -> None:
    with Opened(browser, wrong, java_script_enabled=False) as report:
        text = report.page.locator("main").inner_text()
        assert "Can it be trusted?" in text
        assert "taken for" in report.page.locator("#matrix-detail").inner_text()
        assert not report.page.locator("#search").is_visible()
