"""Seconds are foretold: on a machine whose time is the tokens that pass through the model, they are those of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saved import run_config, save_backbone

from fibecfed import estimate, session
from fibecfed.build import prepare
from fibecfed.config import Config
from fibecfed.effort import Passes, plan_effort
from fibecfed.estimate import Line, measure
from fibecfed.models.transformer_task import AdaptedModel

CALL = 50
"""Tokens that a batch costs by itself on the machine of these tests."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT, and 240 reviews of 2 to 41 words."""
    place = tmp_path_factory.mktemp("estimate")
    save_backbone(place / "backbone")
    rows = [f"{['film', 'plot', 'cast', 'scene'][n % 4] + ' the' * (n * 7 % 40)} {('bad', 'good')[n % 2]},{n % 2}" for n in range(240)]
    (place / "reviews.csv").write_text("review,verdict\n" + "\n".join(rows) + "\n")
    return place


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stopwatch that shows the tokens that passed through the model, which are counted in the list returned."""
    passed = [0]
    logits: Any = AdaptedModel._logits

    def counted(self: Any, params: Any, batch: Any, *more: Any, **options: Any) -> Any:
        passed[0] += batch["input_ids"].numel() + CALL
        return logits(self, params, batch, *more, **options)

    class Stopwatch:
        def __init__(self, device: object) -> None:
            self.start = passed[0]

        def seconds(self) -> float:
            return float(passed[0] - self.start)

    monkeypatch.setattr(AdaptedModel, "_logits", counted)
    monkeypatch.setattr(estimate, "Stopwatch", Stopwatch)
    return passed


def config(folder: Path, method: dict[str, Any], **more: Any) -> Config:
    federation = {"clients": 6, "clients_per_round": 3, "rounds": 5}
    table = {"data": {"max_length": 48}, "federation": federation, "evaluation": {"every": 2}, "training": {"batch_size": 4}, **more}
    return run_config(folder, method=method, **table)


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "lora"},
        {"kind": "lora", "finetune": True},
        {"kind": "fibecfed", "score_after": 0},
        {"kind": "fibecfed", "curriculum": {"scoring": "pass"}, "score_after": 0},
        {"kind": "fedpeptao"},
        {"kind": "fedalt"},
    ],
    ids=str,
)
def test_the_seconds_of_a_run_are_foretold(folder: Path, tmp_path: Path, machine: list[int], method: dict[str, Any]) -> None:
    wanted = config(folder, method)
    prepared = prepare(wanted)
    promised = sum(measure(prepared).seconds(plan_effort(prepared)))
    set_up = machine[0]
    prepare(wanted)
    set_up = machine[0] - set_up
    before = machine[0]
    session.start(wanted, tmp_path / "run", adapters=False)
    assert promised == pytest.approx(machine[0] - before - set_up, rel=0.2)


def test_twice_as_many_rounds_and_longer_texts_are_promised_to_take_longer(folder: Path, machine: list[int]) -> None:
    lora = {"kind": "lora"}
    efforts = [
        plan_effort(prepare(config(folder, lora, **more)))
        for more in ({}, {"federation": {"clients": 6, "clients_per_round": 6, "rounds": 10}}, {"data": {"max_length": 8}})
    ]
    pace = measure(prepare(config(folder, lora)))
    plain, more, short = (pace.seconds(effort) for effort in efforts)
    assert more[0] == pytest.approx(4 * plain[0], rel=0.25)  # twice the rounds, twice the clients
    assert short[0] < 0.7 * plain[0] and short[1] < plain[1]


def test_workers_take_turns_at_the_clients_of_a_round(folder: Path, machine: list[int]) -> None:
    prepared = prepare(config(folder, {"kind": "lora"}, federation={"clients": 6, "clients_per_round": 5, "rounds": 2}))
    pace, effort = measure(prepared), plan_effort(prepared)
    one, two, many = (pace.seconds(effort, workers) for workers in (1, 2, 9))
    server = pace.phases["tune"].server * effort.parts["tune"].answers
    assert two[0] - server == pytest.approx(3 / 5 * (one[0] - server)) and many[0] - server == pytest.approx(1 / 5 * (one[0] - server))
    assert two[1] == pytest.approx(one[1] / 2)


@given(st.floats(0, 10), st.floats(0, 10), st.integers(1, 100), st.integers(101, 1000))
def test_a_line_goes_through_its_points_and_never_below_zero(each: float, per_token: float, x: int, y: int) -> None:
    line = Line.through([(tokens, each + per_token * tokens) for tokens in (y, x)])
    assert line.of(Passes(1, x)) == pytest.approx(each + per_token * x, abs=1e-6)
    assert line.of(Passes(3, 3 * y)) == pytest.approx(3 * (each + per_token * y), abs=1e-6)
    falling = Line.through([(x, 2.0), (y, 1.0)])
    assert falling.per_token == 0 and falling.each == pytest.approx(1.5)
    assert Line.through([(1, 0.0), (2, 5.0)]).each == 0  # what measuring makes of a short pass may lie anywhere
