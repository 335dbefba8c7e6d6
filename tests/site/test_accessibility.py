"""Pages of the site and of reports as a browser shows them: no serious fault for axe-core, and nothing makes a phone scroll sideways."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_runs
import pytest

from fibecfed.comparison.report.comparison import write_report

pytestmark = pytest.mark.docs
PAGES = ("index", "how-it-works", "quick-start", "results", "tutorials/fisher-scores", "reference/python")
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-docs")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs chromium: apt-get install chromium, or CHROMIUM set to its path")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--allow-file-access-from-files"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_has_a_serious_fault(site: Path, browser: Any, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python: make test-docs").Axe()
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    faults = []
    for name in PAGES:
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_timeout(300)  # the theme wraps tables once a page is there
        for fault in axe.run(page).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                faults.append(f"{name}: {fault['help']}: {fault['nodes'][0]['html'][:120]}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert faults == []


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The page of a comparison, and that of one run."""
    folder = tmp_path_factory.mktemp("reports")
    made_runs.write_comparison(folder / "c", ("fibecfed", "lora", "local"), ("rte", "sst2"), (0,), clients=12, rounds=6)
    write_report(folder / "c", out=folder)
    write_report(folder / "c/runs/sst2/fibecfed/0", out=folder / "one")
    return [folder / "report.html", folder / "one" / "report.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_report_has_a_serious_fault(reports: list[Path], browser: Any, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python: make test-docs").Axe()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for path in reports:
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        found = axe.run(page).response["violations"]
        assert [f"{one['help']}: {one['nodes'][0]['html'][:120]}" for one in found if one["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
