"""What figures draw lies where the numbers say."""

from __future__ import annotations

import re

import made_runs
import pytest

from fibecfed.report import figures
from fibecfed.report.comparison import read_comparison
from fibecfed.report.selection import selections
from fibecfed.report.standing import standings


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
    figure = figures.curves(found, "sst2")
    assert figure is not None and len(figure.drawings) == 3
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
    assert [figures._clock(value) for value in (0.5, 40, 100, 3600, 9000)] == ["0.5 s", "40 s", "1:40 min", "1:00 h", "2:30 h"]
