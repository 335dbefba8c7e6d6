"""What figures draw lies where the numbers say."""

from __future__ import annotations

import re

import made_runs
import pytest

from fibecfed.comparison.report import curves, figures, svg
from fibecfed.comparison.report.comparison import read_comparison
from fibecfed.comparison.report.results import SelectionRecord
from fibecfed.comparison.report.selection_figures import _kept, _plain, selections
from fibecfed.comparison.report.standing import standings
from fibecfed.core.units import clock


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("figures") / "c"
    made_runs.write_comparison(folder, ("fibecfed", "lora", "voc", "slw", "momd"), ("sst2",), (0, 1), clients=8, rounds=8)
    return standings(read_comparison(folder))


def group(drawing: str, method: str) -> str:
    match = re.search(rf'<g class="[^"]*" data-m="{method}">.*?</g>', drawing)
    assert match
    return match[0]


def test_a_curve_ends_at_the_mean_score_over_seeds_and_higher_scores_are_drawn_higher(found):
    figure = curves.curves(found, "sst2")
    assert figure is not None and len(figure.drawings) == 6
    ends = {}
    for method in found.ranks:
        runs = found.comparison.of("sst2", method)
        mean = sum(run.last.personalised for run in runs) / len(runs)
        text = group(figure.drawings[0], method)
        assert f"{method}: {100 * mean:.1f} %" in text
        dot = re.search(r'cy="([\d.]+)"', text)
        assert dot
        ends[mean] = float(dot[1])
    assert [ends[mean] for mean in sorted(ends)] == sorted(ends.values(), reverse=True)


def test_fibecfed_and_lora_are_set_off_with_the_best_others_four_altogether(found):
    chosen = figures.slots(found)
    best = [method for method in found.ranks if method not in ("fibecfed", "lora")][:2]
    assert chosen == {"fibecfed": 0, "lora": 1, best[0]: 2, best[1]: 3}


def test_the_spread_over_clients_is_drawn_from_their_percentiles(found):
    figure = figures.clients(found, "sst2")
    assert figure is not None
    values = sorted(value for run in found.comparison.of("sst2", "lora") for value in run.clients)
    middle = 100 * (values[7] + values[8]) / 2
    assert f"lora: median {middle:.0f} %" in group(figure.drawings[0], "lora")


def test_layers_that_stay_are_hatched_and_bars_grow_with_importance(found):
    (title, (figure, *_)), *_ = selections(found)
    assert "Importance" in title
    bars = re.findall(r'<rect class="([^"]*)" [^>]*height="([\d.]+)"', figure.drawings[0])
    assert [style for style, _ in bars] == ["bar stays"] * 3 + ["bar"] * 3
    heights = [float(height) for _, height in bars]
    importance = found.comparison.of("sst2", "fibecfed")[0].selection.importance
    assert sorted(range(6), key=lambda i: heights[i]) == sorted(range(6), key=lambda i: importance[i])


def test_round_clock_times_are_written_in_full():
    assert [clock(value) for value in (0.5, 40, 100, 3600, 9000)] == ["0.5 s", "40 s", "1:40 min", "1:00 h", "2:30 h"]


def test_behind_a_curve_lies_a_band_from_the_lowest_to_the_highest_seed(found):
    figure = curves.curves(found, "sst2")
    assert figure is not None
    for drawing, of in zip((figure.drawings[0], figure.drawings[3]), curves.SCORES.values(), strict=True):
        text = group(drawing, "lora")
        band = re.search(r'class="band" d="M([^"]*)"', text)
        line = re.search(r'class="curve" d="M([^"]*)"', text)
        assert band and line
        edges, middle = ([float(pair.split()[1]) for pair in one[1].split("L")] for one in (band, line))
        tops, bottoms = edges[: len(middle)], edges[: len(middle) - 1 : -1]
        assert all(top <= y <= bottom for top, y, bottom in zip(tops, middle, bottoms, strict=True))
        ends = sorted(100 * of(run.last) for run in found.comparison.of("sst2", "lora"))
        assert f"seeds from {ends[0]:.1f} to {ends[1]:.1f} %" in text


def test_names_of_levels_have_room_beside_each_other_and_off_the_title_of_the_axis(tmp_path):
    for name, final in (("near", 0.61), ("far", 0.95)):
        made_runs.write_run(tmp_path / name / "runs" / "rte" / "fibecfed" / "0", task="rte", final=final, clients=8, rounds=8)
        found = standings(read_comparison(tmp_path / name))
        figure = curves.curves(found, found.comparison.tasks[0])
        assert figure is not None
        places = re.findall(r'class="hint(?: end)?" x="([\d.]+)" y="([\d.]+)">(?:target|majority)', figure.drawings[0])
        (x1, y1), (x2, y2) = ((float(x), float(y)) for x, y in places)
        assert abs(y1 - y2) > 10 or abs(x1 - x2) > 150
        assert min(y1, y2) - 10 >= 24 and max(y1, y2) <= 260 - 38


def test_the_name_of_a_level_is_put_where_the_least_is_drawn():
    plot = svg.Plot(svg.linear([0, 1], 44, 388), svg.linear([0, 100], 222, 24), 400, 260)
    left = [(44.0 + x, plot.y(50) - 5) for x in range(170)]
    assert 'class="hint" x="48" y="134' in curves._hint(plot, "target", 50, left + [(x + 170, y) for x, y in left])  # below
    assert 'class="hint end"' in curves._hint(plot, "target", 50, left) and 'class="hint"' in curves._hint(plot, "target", 50, [])


def test_difficulties_stand_as_plain_numbers(found):
    (*_, (title, (figure, *_))) = selections(found)
    assert "Difficulty" in title
    ticks = re.findall(r'class="tick mid"[^>]*>([^<]*)<', figure.drawings[0])
    assert len(ticks) > 1 and all(re.fullmatch(r"[\d,]*\.?\d+", tick) for tick in ticks)
    assert [_plain(value) for value in (0.0005, 0.1, 1.0, 20.0, 3000.0)] == ["0.0005", "0.1", "1", "20", "3,000"]


def test_names_of_dots_at_one_place_get_places_of_their_own_with_lines_to_the_dot():
    names = figures._names({name: (100.0, 100.0 + place) for place, name in enumerate("abcdef")}, svg.Box(44, 24, 388, 222))
    places = [re.findall(r'<text class="([^"]*)" x="([^"]*)" y="([^"]*)"', "".join(parts))[0] for parts in names.values()]
    assert len(set(places)) == 6
    assert sum('class="lead only"' in "".join(parts) for parts in names.values()) >= 4
    (wide,) = figures._names({"x" * 80: (200.0, 100.0)}, svg.Box(44, 24, 388, 222)).values()
    assert "x" * 80 in wide[0]


def test_how_many_neurons_are_updated_is_said_of_how_many() -> None:
    kept = {1: 10.0, 2: 12.0}
    assert "of 2,352 neurons, mean" in str(_kept(SelectionRecord(kept=kept, own=2352), "rte"))
    assert "neurons, mean over clients" in str(_kept(SelectionRecord(kept=kept), "rte"))


def test_the_label_of_an_axis_stays_inside_the_drawing(found):
    plot = svg.Plot(svg.Scale(0, 1, 320, 388), svg.Scale(0, 1, 60, 20), 400, 98)
    for label in ("nat", "difference to fibecfed, nat, lower is better"):
        placed = re.search(r'<text class="label mid" x="([\d.]+)"', "".join(plot.axes(label, "", str, None)))
        assert placed
        half = len(label) * 6.2 / 2
        assert half <= float(placed[1]) <= 400 - half
        assert len(label) > 10 or float(placed[1]) == 354  # where there is room, below the middle
