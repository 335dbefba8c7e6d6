"""The page in a real browser: it opens without errors or requests, figures have marks, tables sort, and it fits a phone."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_runs
import pytest

from fibecfed.comparison.report.comparison import read_report, write_report
from fibecfed.comparison.report.one.report import to_html

CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install fibecfed[dev]")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium browser: apt-get install chromium, or set CHROMIUM to its path")

LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with everything in it: ablations, tuning, something missing, several seeds."""
    folder = tmp_path_factory.mktemp("browser")
    methods = ("fibecfed", "lora", "voc", "prompt-tuning", "without masks")
    made_runs.write_comparison(folder / "c", methods, ("rte", "sst2"), (0, 1), clients=8, rounds=6)
    (folder / "c/runs/rte/voc/1/summary.json").unlink()
    tried = [{"rate": 0.0005 * 3**step, "score": 0.81} for step in range(4)]
    row = {"tried": tried, "chosen": 0.0005, "source": "a paper whose title takes many words " * 4}
    (folder / "c/tuning.json").write_text(json.dumps({"lora": row}))
    write_report(folder / "c", out=folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """Opens the page in a fresh window; whatever it complains of or asks for fails the test."""
    heard: list[str] = []
    contexts = []

    def opened(viewport: dict[str, int], scheme: str = "light") -> Any:
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("request", lambda request: heard.append(f"request: {request.url}") if request.url != report.as_uri() else None)
        page.goto(report.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert heard == []


def column(page: Any, table: str, place: int) -> list[str]:
    return page.eval_on_selector_all(f"#table-{table} tbody tr", f"rows => rows.map(row => row.cells[{place}].textContent)")


def test_every_figure_has_marks_that_can_be_seen_for_each_axis(opened: Any):
    page = opened(LAPTOP)
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    count = """() => [...document.querySelectorAll('figure')].map(figure => [...figure.querySelectorAll('g[data-m] *, rect')]
        .filter(mark => { const box = mark.getBoundingClientRect(); return box.width + box.height > 0; }).length)"""
    for axis in ("time", "bytes", "rounds"):
        page.check(f"input[value={axis}]")
        marks = page.evaluate(count)
        assert len(marks) == 2 + 2 * 2 + 1 + 4 * 2 and min(marks) > 0
        shown = "svgs => svgs.filter(svg => svg.getBoundingClientRect().width > 0).map(svg => svg.getAttribute('class'))"
        assert set(page.eval_on_selector_all(".curves svg", shown)) == {f"plot x-{axis} of-personalised"}


def test_a_switch_shows_the_global_score_and_paper_has_the_personalised_one_over_all_three_axes(opened: Any):
    page = opened(LAPTOP)
    shown = "svgs => [...new Set(svgs.filter(svg => svg.getBoundingClientRect().width > 0).map(svg => svg.getAttribute('class')))]"
    page.check("input[value=bytes]")
    page.check("input[value=global]")
    assert page.eval_on_selector_all(".curves svg", shown) == ["plot x-bytes of-global"]
    page.emulate_media(media="print")
    paper = page.eval_on_selector_all(".curves svg", shown)
    assert paper == [f"plot x-{axis} of-personalised" for axis in ("time", "bytes", "rounds")]


def test_only_methods_that_are_set_off_have_a_band_and_names_of_levels_stay_above_the_lines(opened: Any):
    page = opened(LAPTOP)
    bands = """() => [...new Set([...document.querySelectorAll('.curves .of-personalised.x-time .band')]
        .filter(band => band.getBoundingClientRect().width > 0).map(band => band.parentNode.dataset.m))].sort()"""
    names = sorted(page.eval_on_selector_all("[data-chip][aria-pressed=true]", "chips => chips.map(chip => chip.dataset.chip)"))
    assert page.evaluate(bands) == names
    page.locator("[data-chip=fibecfed]").click()
    assert "fibecfed" not in page.evaluate(bands)
    page.locator("[data-chip=fibecfed]").click()
    last = "svgs => svgs.every(svg => svg.lastElementChild.matches('.over'))"
    assert page.eval_on_selector_all(".curves svg", last)


def test_tables_sort_by_click_and_by_keyboard_both_ways_with_gaps_last(opened: Any):
    page = opened(LAPTOP)
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    button = page.locator("#table-methods thead button").nth(2)
    button.click()
    scores = [float(text) for text in column(page, "methods", 2)]
    assert scores == sorted(scores, reverse=True)
    assert page.locator("#table-methods thead th").nth(2).get_attribute("aria-sort") == "descending"
    button.press("Enter")
    scores = [float(text) for text in column(page, "methods", 2)]
    assert scores == sorted(scores)
    page.locator("#table-methods thead button").nth(0).click()
    assert column(page, "methods", 0) == ["fibecfed", "lora", "prompt-tuning", "voc"]
    for _ in range(2):
        page.locator("#table-methods-all thead button").nth(11).click()
        assert column(page, "methods-all", 11)[-1] == "-"


def test_a_chip_sets_a_method_off_in_every_figure_and_back(opened: Any):
    page = opened(LAPTOP)
    chip = page.locator("[data-chip=voc]")
    classes = "() => [...new Set([...document.querySelectorAll('g[data-m=voc]')].map(mark => mark.getAttribute('class')))]"
    before = page.evaluate(classes)
    chip.click()
    pressed = chip.get_attribute("aria-pressed")
    assert page.evaluate(classes) == (["m"] if pressed == "false" else ["m s3"]) != before
    chip.press("Enter")
    assert chip.get_attribute("aria-pressed") != pressed and page.evaluate(classes) == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_text_can_be_read_on_its_ground(opened: Any, scheme: str):
    page = opened(PHONE, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    colours = page.evaluate("['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number))")
    ink, ground = (sum(colour[:3]) / 3 for colour in colours)
    assert (ink < 80 and ground > 230) if scheme == "light" else (ink > 200 and ground < 50)
    smallest = "texts => Math.min(...texts.map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"
    assert page.eval_on_selector_all("figure .plot text", smallest) >= 11


def test_a_phone_shows_both_scores_of_the_first_table_and_that_there_is_more_at_its_side(opened: Any):
    page = opened(PHONE)
    right = "heads => heads.slice(0, 4).map(head => [head.textContent, head.getBoundingClientRect().right])"
    places = dict(page.eval_on_selector_all("#table-methods thead th", right))
    assert places["personalised %"] < PHONE["width"] and places["global %"] <= PHONE["width"] + 5
    frame = page.locator(".scroll:has(#table-methods)")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    inside = {"x": box["x"] + 4, "y": box["y"] + 4, "width": box["width"] - 8, "height": box["height"] - 8}

    def is_shaded() -> bool:
        pictures = []
        for colour in ("red", "transparent"):
            frame.evaluate("(frame, colour) => frame.style.setProperty('--shade', colour)", colour)
            pictures.append(page.screenshot(clip=inside))
        return pictures[0] != pictures[1]

    assert is_shaded()
    frame.evaluate("frame => { frame.scrollLeft = 10000 }")
    assert not is_shaded()  # at its end there is nothing more to show


def test_a_seventh_method_is_refused_in_words(browser: Any, big_report: Path):
    context = browser.new_context(viewport=LAPTOP)
    page = context.new_page()
    page.goto(big_report.as_uri())
    off, said = page.locator("[data-chip][aria-pressed=false]"), page.locator(".legend [role=status]")
    for _ in range(2):
        off.first.click()
        assert said.inner_text() == ""
    off.first.click()
    assert said.inner_text().startswith("6 are highlighted already") and said.is_visible()
    assert page.locator("[data-chip][aria-pressed=true]").count() == 6
    page.locator("[data-chip][aria-pressed=true]").first.click()
    assert said.inner_text() == ""
    context.close()


def test_every_dot_has_its_name_off_all_others_and_the_long_table_keeps_its_headings_in_sight(browser: Any, big_report: Path):
    context = browser.new_context(viewport=LAPTOP)
    page = context.new_page()
    page.goto(big_report.as_uri())
    boxes = """texts => texts.map(text => { const box = text.getBoundingClientRect();
        return [text.textContent, box.left, box.top + 2, box.right, box.bottom - 2] })"""
    names = page.locator("figure:has-text('Score and bytes') .name").evaluate_all(boxes)
    assert sorted(name for name, *_ in names) == sorted(made_runs.METHODS)
    for (one, *a), (other, *b) in itertools.combinations(names, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one, other)
    page.evaluate("document.querySelector('details:has(#table-runs)').open = true")
    tops = page.locator(".scroll:has(#table-runs)").evaluate(
        "frame => { frame.scrollTop = 3000; return [frame, frame.querySelector('thead th')].map(one => one.getBoundingClientRect().top) }"
    )
    assert abs(tops[0] - tops[1]) < 3
    context.close()


def test_a_figure_is_as_high_as_what_it_shows(opened: Any):
    page = opened(LAPTOP)
    gap = "figure => figure.getBoundingClientRect().bottom - figure.querySelector('.plot').getBoundingClientRect().bottom"
    assert page.eval_on_selector("figure:has(.plot[aria-label^='Mean rank'])", gap) < 20


def test_what_is_folded_is_on_paper_but_for_the_table_of_runs_which_says_so_and_is_folded_again_after(opened: Any):
    page = opened(LAPTOP)
    page.evaluate("document.querySelectorAll('details')[1].open = true")
    states = "folds => folds.map(fold => [!!fold.querySelector('#table-runs'), fold.open])"
    before = page.eval_on_selector_all("details", states)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    folds = page.eval_on_selector_all("details", states)
    assert len(folds) > 3 and all(is_open is not runs for runs, is_open in folds)
    assert "left out on paper; report-runs.csv has it" in page.locator("details:has(#table-runs) summary").inner_text()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.eval_on_selector_all("details", states) == before


def test_headings_that_are_repeated_on_every_sheet_are_text_since_a_button_is_not_painted_there(opened: Any):
    page = opened(LAPTOP)
    page.emulate_media(media="print")
    shown = "buttons => [...new Set(buttons.map(button => getComputedStyle(button).display))]"
    assert page.eval_on_selector_all("thead button", shown) == ["contents"]


def test_long_texts_of_a_table_wrap_on_paper(opened: Any):
    page = opened({"width": 718, "height": 1000})  # A4 between its margins
    width = "table => table.getBoundingClientRect().width"
    assert page.eval_on_selector("#table-tuning", width) > 718
    page.emulate_media(media="print")
    assert page.eval_on_selector("#table-tuning", width) <= 718
    intervals = "cells => Math.max(...cells.map(cell => cell.getBoundingClientRect().height))"
    assert page.eval_on_selector_all("#table-methods tbody td", intervals) < 25  # one line


def test_a_comparison_of_full_size_opens_in_less_than_two_seconds_of_the_pages_own_work(browser: Any, big_report: Path):
    context = browser.new_context(viewport=LAPTOP)
    context.set_default_timeout(120_000)
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # what other processes take does not count
    page.goto(big_report.as_uri())
    page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    context.close()
    assert metrics["Nodes"] > 5000
    assert 0 < metrics["TaskDuration"] < 2


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of three methods on one task, and below it the report of one of its runs."""
    folder = tmp_path_factory.mktemp("small")
    made_runs.write_comparison(folder / "c", ("fibecfed", "lora", "local"), ("sst2",), (0,), clients=12, rounds=6)
    write_report(folder / "c", out=folder)
    write_report(folder / "c/runs/sst2/fibecfed/0", out=folder / "one")
    return folder


PAGES = ("report.html", "one/report.html")


@pytest.mark.parametrize("name", PAGES)
def test_a_laptop_of_1280_pixels_has_figures_side_by_side_and_no_table_is_cut_at_the_edge(browser: Any, small: Path, name: str):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((small / name).as_uri())
    boxes = """figures => figures.filter(figure => figure.checkVisibility()).map(figure => figure.getBoundingClientRect())
        .map(box => [box.left, box.top, box.right])"""
    figures = page.eval_on_selector_all("figure", boxes)
    rows: dict[int, list[float]] = {}
    for left, top, right in figures:
        rows.setdefault(round(top / 40), []).extend((left, right))
    widest = max(rows.values(), key=lambda edges: max(edges) - min(edges))
    assert len(figures) > 2 and len(widest) >= 4 and max(widest) - min(widest) > 1100
    frames = """frames => frames.filter(frame => frame.checkVisibility()).map(frame =>
        [frame.firstElementChild.id, frame.getBoundingClientRect().right, frame.scrollWidth - frame.clientWidth])"""
    shown = page.eval_on_selector_all(".scroll", frames)
    assert shown and max(right for _, right, _ in shown) <= 1280
    assert [name for name, _, hidden in shown if hidden > 1] == []
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_nothing_scrolls_sideways_but_a_table_in_its_frame(browser: Any, small: Path, name: str):
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto((small / name).as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


def test_a_page_of_a_run_that_goes_on_reads_itself_again_until_its_box_is_unticked(browser: Any, small: Path, tmp_path: Path):
    found, path, every_s = read_report(small / "c/runs/sst2/fibecfed/0"), tmp_path / "live.html", 4.0
    texts = {name: to_html(found, every_s).replace("was learned", f"was {name}") for name in ("first", "second", "third")}
    path.write_text(texts["first"])
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(path.as_uri())
    page.evaluate("document.querySelector('#settings details').open = true")
    path.write_text(texts["second"])
    page.get_by_role("heading", name="What was second").wait_for()
    assert page.evaluate("document.querySelector('#settings details').open")
    page.evaluate("document.querySelector('[data-refresh]').click()")
    path.write_text(texts["third"])
    page.wait_for_timeout(1500 * every_s)
    assert page.get_by_role("heading", name="What was second").count() == 1
    page.close()


def test_a_link_to_what_is_folded_opens_it(browser: Any, small: Path):
    page = browser.new_page()
    page.goto((small / "report.html").as_uri())
    fold = page.locator("#conditions details")
    assert fold.get_attribute("open") is None
    page.get_by_role("link", name="What was compared, and how").click()
    page.locator("#conditions details[open]").wait_for()  # a browser tells a page of its new fragment a moment after the click
    page.close()
