"""The site is whole: every link and anchor leads somewhere, nothing comes from another server, every page is in the navigation."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import fibecfed

from .conftest import ROOT, environment

pytestmark = pytest.mark.docs


class Read(HTMLParser):
    """What a page links to, what it loads, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {name for name in (found.get("id"), found.get("name")) if name}
        if tag == "a" and found.get("href") is not None:
            self.links.append(str(found["href"]))
        elif tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loads.append(str(found["src"]))
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loads.append(str(found["href"]))


@cache
def read(page: Path) -> Read:
    return Read(page.read_text(encoding="utf-8"))


def broken(site: Path, page: Path) -> list[str]:
    """Links of a page within the site that lead nowhere."""
    found = []
    for link in read(page).links:
        to = urlsplit(link)
        if to.scheme or to.netloc:
            continue
        target = (page.parent / unquote(to.path)).resolve() if to.path else page
        target = target / "index.html" if target.is_dir() else target
        if (
            not target.is_relative_to(site.resolve())
            or not target.is_file()
            or (to.fragment and target.suffix == ".html" and unquote(to.fragment) not in read(target).anchors | {"__skip"})
        ):
            found.append(link)
    return found


def pages(site: Path) -> list[Path]:
    return [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    wrong = {str(page.relative_to(site)): found for page in pages(site) if (found := broken(site, page))}
    assert wrong == {}
    assert len(pages(site)) > 60


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="here"><a href="#here">a</a><a href="#gone">b</a><a href="b.html">c</a><a href="https://x.org">d</a>'
    )
    assert broken(tmp_path, tmp_path / "a.html") == ["#gone", "b.html"]


def test_nothing_is_loaded_from_another_server(site: Path) -> None:
    assert [load for page in pages(site) for load in read(page).loads if urlsplit(load).netloc] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style.name


def test_every_page_is_in_the_navigation(site: Path) -> None:
    home = site / "index.html"
    reachable = {(home.parent / urlsplit(link).path).resolve() for link in read(home).links if not urlsplit(link).netloc}
    # A section's pages are listed on its own pages: follow once more.
    for page in list(reachable):
        if page.suffix == ".html" and page.is_file():
            reachable |= {(page.parent / urlsplit(link).path).resolve() for link in read(page).links if not urlsplit(link).netloc}
    assert [str(page.relative_to(site)) for page in pages(site) if page.resolve() not in reachable | {home.resolve()}] == []


def test_every_public_name_and_every_command_is_documented(site: Path) -> None:
    names = {anchor.rpartition(".")[2] for anchor in read(site / "reference" / "python.html").anchors if anchor.startswith("fibecfed.")}
    assert set(fibecfed.__all__) - {"load_config", "PACES", "Tensors"} <= names
    assert {"fibecfed-run", "fibecfed-client", "fibecfed-flower-init"} <= read(site / "reference" / "command-line.html").anchors


def test_the_figures_are_those_that_the_script_draws() -> None:
    done = subprocess.run([sys.executable, "tools/figures.py", "--check"], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_every_figure_is_in_the_page_with_words_for_those_who_do_not_see_it(site: Path) -> None:
    for name, count in (("index", 1), ("how-it-works", 4)):
        drawn = re.findall(r"<svg [^>]*viewBox[^>]*>", (site / f"{name}.html").read_text(encoding="utf-8"))
        figures = [one for one in drawn if 'class="plot' in one]
        assert len(figures) == count
        assert all(re.search(r'aria-label="[^"]{40,}"', one) for one in figures)
