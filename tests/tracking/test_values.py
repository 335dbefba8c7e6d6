"""Records become numbers by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fibecfed.core.records import RoundRecord
from fibecfed.tracking.values import of_round

RECORD = RoundRecord(
    phase="tune",
    index=1,
    number=2,
    cohort=("a", "b\nINFO", "c"),
    bytes_down={"a": 10, "b\nINFO": 10, "c": 10},
    bytes_up={"a": 7, "b\nINFO": 5},
    fields_down={},
    fields_up={},
    steps={"a": 2, "b\nINFO": 1},
    examples={"a": 3, "b\nINFO": 1},
    loss={"a": 1.0, "b\nINFO": 3.0},
    compute_s={"a": 0.5, "b\nINFO": 0.25},
    failures={"c": "late"},
    server={},
    seconds=1.0,
    notes={"a": {"kept_neurons": 4, "difficulty": [1.0, 2.0]}, "b\nINFO": {"kept_neurons": 6, "scored": True}},
)


def test_sums_and_means_of_a_round() -> None:
    assert of_round(RECORD, {}, by_client=False) == {
        "train/loss": 1.5,  # (3 * 1 + 1 * 3) / 4
        "train/examples": 4,
        "train/steps": 3,
        "bytes/up": 12,
        "bytes/down": 30,
        "seconds/round": 1.0,
        "seconds/clients": 0.75,
        "clients/asked": 3,
        "clients/failed": 1,
        "clients/rejected": 0,
        "clients/excluded": 0,
        "selected/mean_kept_neurons": 5.0,
    }


def test_what_was_selected_is_a_number_each() -> None:
    selected: dict[str, Any] = {"global_layers": [0, 2], "num_layers": 3, "importance": [0.5, 0.1, 0.4], "ratio": None, "kind": "share"}
    found = of_round(RECORD, {**selected, "ranks": {"a": 4, "b": 8}}, by_client=False)
    assert {name: value for name, value in found.items() if name.startswith("selected/") and "neurons" not in name} == {
        "selected/global_layers": 2,
        "selected/global_layers/00": 1,
        "selected/global_layers/01": 0,
        "selected/global_layers/02": 1,
        "selected/num_layers": 3,
        "selected/importance/00": 0.5,
        "selected/importance/01": 0.1,
        "selected/importance/02": 0.4,
        "selected/ranks": 6.0,
    }


def test_a_client_whose_name_has_a_line_break_stays_one_line() -> None:
    found = of_round(RECORD, {}, by_client=True)
    assert found["client/b\\nINFO/loss"] == 3.0 and found["client/a/kept_neurons"] == 4
    assert not any("\n" in name for name in found) and "client/a/difficulty" not in found and "client/c/loss" not in found


def test_a_round_in_which_nobody_trained_has_no_loss() -> None:
    nobody = replace(RECORD, steps={"a": 0}, examples={"a": 0}, loss={"a": 0.0})
    found = of_round(nobody, {}, by_client=True)
    assert "train/loss" not in found and "client/a/loss" not in found
