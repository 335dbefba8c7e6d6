"""The page as text: complete, small, self-contained, and escaped; scales and histograms of its figures."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import made_runs
import pytest

from fibecfed.comparison.report.comparison import read_comparison, write_report
from fibecfed.comparison.report.html import to_html
from fibecfed.comparison.report.overview import all_tables
from fibecfed.comparison.report.standing import standings
from fibecfed.comparison.report.svg import Scale, linear, logarithmic

VOID = {"meta", "input", "br"}


class Balanced(HTMLParser):
    """Fails on an element that is closed in the wrong place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(folder: Path) -> str:
    found = standings(read_comparison(folder))
    return to_html(found, all_tables(found))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods and an ablation on two tasks with two seeds."""
    folder = tmp_path_factory.mktemp("report") / "made"
    made_runs.write_comparison(folder, ("fibecfed", "lora", "voc", "without masks"), ("rte", "sst2"), (0, 1), clients=8, rounds=6)
    return folder


def test_the_page_is_well_formed_with_unique_ids_and_links_that_lead_somewhere(made: Path):
    text = page(made)
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert set(re.findall(r'href="#([\w-]+)"', text)) <= set(parser.ids)


def test_the_page_leads_from_the_verdict_and_losses_over_figures_and_tables_to_the_conditions(made: Path):
    titles = re.findall(r"<h2>(.*?)</h2>", page(made))
    assert titles == [
        "Verdict", "Where FibecFed loses", "Figures", "Tables", "What FibecFed selected", "What was compared, and how", "How to read this",
    ]  # fmt: skip
    for fact in ("A processor, 2 cores", "torch 2.13.0", "0, 1", "10 Mbit/s up, 50 Mbit/s down, 30 ms"):
        assert fact in page(made)


def test_it_asks_for_nothing_from_anywhere(made: Path):
    text = page(made)
    assert not re.findall(r"""\bsrc=|href="[^#]|url\([^#]|@import|https?://""", text)
    assert "default-src 'none'" in text


def test_every_drawing_is_xml_with_marks_a_description_and_numbers_inside_its_frame(made: Path):
    drawings = re.findall(r'<svg class="plot.*?</svg>', page(made), re.DOTALL)
    # ranks, trade-off; per task two scores over three axes and the clients; ablations; four of the selection a task
    assert len(drawings) == 2 + 2 * 7 + 1 + 2 * 4
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.get("aria-label")
        assert root.findall(".//g") or root.findall("rect")
        width, height = map(float, (root.get("viewBox") or "").split()[2:])
        for mark in root.iter("path"):
            numbers = [float(n) for n in re.findall(r"[-\d.]+", mark.get("d") or "")]
            assert all(-1 <= x <= width + 1 for x in numbers[::2]) and all(-1 <= y <= height + 1 for y in numbers[1::2])


def test_what_comes_from_files_is_escaped(tmp_path: Path):
    made_runs.write_run(tmp_path / "<i>" / "runs" / "a&b" / "<script>x" / "0", task="a&b", method="lora")
    made_runs.write_run(tmp_path / "<i>" / "runs" / "a&b" / "fibecfed" / "0", task="a&b")
    (tmp_path / "<i>" / "comparison.toml").write_text("")
    text = page(tmp_path / "<i>")
    assert "<script>x" not in text and "<i>" not in text
    assert "&lt;script&gt;x" in text and "a&amp;b" in text


def test_a_single_run_has_a_page_without_ranks_that_is_well_formed(tmp_path: Path):
    made_runs.write_run(tmp_path / "one", clients=6, rounds=4)
    write_report(tmp_path / "one")
    text = (tmp_path / "one" / "report.html").read_text()
    assert "fibecfed for sst2 on 6 clients, 5 rounds, seed 0." in text
    assert "<h2>Verdict</h2>" not in text and "Mean rank over tasks" not in text
    assert "<h2>What the method selected</h2>" in text
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and len(parser.ids) == len(set(parser.ids))
    assert set(re.findall(r'href="#([\w-]+)"', text)) <= set(parser.ids)
    for drawing in re.findall(r'<svg class="plot.*?</svg>', text, re.DOTALL):
        width, height = map(float, (ET.fromstring(drawing).get("viewBox") or "").split()[2:])
        for x, y in re.findall(r'<text[^>]* x="([-\d.]+)" y="([-\d.]+)"', drawing):
            assert 0 <= float(x) <= width and 0 <= float(y) <= height


def test_a_comparison_without_fibecfed_has_a_page(tmp_path: Path):
    made_runs.write_comparison(tmp_path / "c", ("lora", "voc"), ("rte",), (0,), clients=6, rounds=4)
    text = page(tmp_path / "c")
    assert "is first: mean rank 1.00 of 2 methods over 1 task." in text
    assert "What FibecFed selected" not in text and "Where FibecFed loses" not in text


def test_what_was_selected_is_shown_with_the_seed_of_its_run(tmp_path: Path):
    for task, seed in (("rte", 0), ("sst2", 3), ("sst2", 5)):
        made_runs.write_run(tmp_path / f"{task}{seed}", task=task, seed=seed, clients=6, rounds=4)
    text = page(tmp_path)
    assert "<figcaption>rte, seed 0</figcaption>" in text and "<figcaption>sst2, seed 3</figcaption>" in text and "seed 5</" not in text


def test_what_is_missing_is_on_the_page(made: Path, tmp_path: Path):
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora"), ("rte",), (0,), clients=6, rounds=4)
    (tmp_path / "c/runs/rte/lora/0/records.jsonl").write_text("{\n")
    text = page(tmp_path / "c")
    assert "<h2>Missing from this report</h2>" in text
    assert "records.jsonl, line 1: not JSON" in text


def test_a_report_of_eighteen_methods_on_ten_tasks_with_three_seeds_is_below_three_megabytes(big_report: Path):
    assert 200_000 < big_report.stat().st_size < 3_000_000
    text = big_report.read_text()
    assert all(f">{name}<" in text for name in (*made_runs.METHODS, *made_runs.TASKS))


@pytest.mark.parametrize(
    "scale", [Scale(0, 1, 0, 100), Scale(63.2, 91.7, 200, 20), Scale(0.001, 0.0042, 0, 10), Scale(3, 3000, 0, 10, log=True)]
)
def test_scales_map_their_ends_and_have_a_few_round_ticks_inside(scale: Scale):
    assert scale(scale.low) == pytest.approx(scale.start) and scale(scale.high) == pytest.approx(scale.end)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 11
    assert all(scale.low - 1e-9 <= tick <= scale.high + 1e-9 for tick in ticks)
    assert all(math.isclose(float(f"{tick:.3g}"), tick, abs_tol=1e-12) for tick in ticks)


def test_scales_of_equal_values_have_room_around_them():
    assert linear([5.0, 5.0], 0, 10)(5.0) == pytest.approx(5.0)
    assert logarithmic([5.0], 0, 10)(5.0) == pytest.approx(5.0)
    assert linear([0.0, 0.0], 0, 10)(0.0) == pytest.approx(5.0)
