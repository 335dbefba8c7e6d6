"""Planted canaries: who holds which, what a release says of them, and the bound that guesses give."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from answer_runs import save_chats, trained
from made import KEY, made_data
from saved import run_config, save_inputs
from typer.testing import CliRunner

from fibecfed import cli, session
from fibecfed.audit.canaries import bound, canary_rows, least_epsilon, trained_with
from fibecfed.audit.planting import planted
from fibecfed.audit.views import FINAL
from fibecfed.build import prepare
from fibecfed.config import Config
from fibecfed.core.errors import RunFailed
from fibecfed.core.types import Examples


def texts(examples: Examples) -> list[tuple[int, ...]]:
    found = [examples.batch([place]) for place in range(len(examples))]
    return [tuple(one["input_ids"][one["attention_mask"].bool()].tolist()) for one in found]


def test_a_client_trains_on_its_own_examples_and_on_the_canaries_whose_coin_shows_heads() -> None:
    data = made_data(4, 9)
    grown, canaries = planted(data, 6, KEY)
    assert planted(data, 6, KEY)[0].checksum() == grown.checksum() != planted(data, 6, KEY.fold("other"))[0].checksum()
    for client in data.clients:
        own, before = grown.client(client), data.client(client)
        examples, coins = canaries[client].examples, canaries[client].planted
        assert len(coins) == 12 and texts(own.train) == texts(before.train) + [
            text for text, heads in zip(texts(examples), coins, strict=True) if heads
        ]
        assert texts(own.test) == texts(before.test) and texts(own.validation) == texts(before.validation)
        assert own.train.labels is not None and examples.labels is not None and before.train.labels is not None
        assert own.train.labels.tolist() == before.train.labels.tolist() + examples.labels[coins].tolist()
        lengths = {len(text) for text in texts(before.train)}
        assert {len(text) for text in texts(examples)} <= lengths and not set(texts(examples)) & set(texts(before.train))
    everywhere = sum(int(one.planted.sum()) for one in canaries.values())
    assert 12 <= everywhere <= 36 and int(grown.class_counts("train").sum()) == int(data.class_counts("train").sum()) + everywhere


def test_where_examples_are_of_people_each_canary_is_of_a_person_of_its_own() -> None:
    data = made_data(4, 9)
    table = replace(data.train.table, units=torch.arange(len(data.train.table)) % 5)
    data = replace(data, train=replace(data.train, table=table))
    grown, canaries = planted(data, 6, KEY)
    for client in data.clients:
        before, own, number = data.client(client).train.units, grown.client(client).train.units, int(canaries[client].planted.sum())
        assert before is not None and own is not None and own[: len(before)].tolist() == before.tolist()
        assert len(own[len(before) :].unique()) == number and not set(own[len(before) :].tolist()) & set(before.tolist())


def test_of_an_answer_its_words_alone_are_replaced(tmp_path: Path) -> None:
    save_chats(tmp_path)
    run = trained(tmp_path, "run", method={"kind": "lora"})
    result = CliRunner().invoke(cli.app, ["audit", str(run), "--canaries", "4", "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    assert rows["members by loss"]["views"] and rows["members by angle"]["views"] and rows["canaries"]["views"]
    assert rows["label shares"]["views"] == {} and rows["label shares"]["why_empty"] == "these examples have no classes"


def test_the_bound_is_that_of_a_binomial_tail() -> None:
    for guesses in (100, 1000):  # all of them right
        assert least_epsilon(guesses, guesses) == pytest.approx(-math.log(0.05 ** (-1 / guesses) - 1), abs=1e-9)
    scores, coins = torch.arange(200.0), torch.arange(200) % 2 == 0
    assert bound([(1000.0 * coins + scores, coins)]).value == pytest.approx(least_epsilon(100, 100))
    assert bound([(scores, coins)]).value == bound([(0 * scores, coins)]).value == 0  # neither scores that tell nothing nor a tie
    assert least_epsilon(50, 100) == least_epsilon(0, 100) == least_epsilon(0, 0) == 0
    found = least_epsilon(70, 100)
    chance = 1 / (1 + math.exp(-found))
    tail = sum(math.comb(100, k) * chance**k * (1 - chance) ** (100 - k) for k in range(70, 101))
    assert tail == pytest.approx(0.05, abs=1e-6)


def test_a_model_that_learns_its_texts_exposes_canaries_and_one_that_does_not_move_exposes_none(tmp_path: Path) -> None:
    inputs = save_inputs(tmp_path)
    training = {"local_epochs": 12, "learning_rate": 0.05}
    config = run_config(inputs, method={"kind": "lora"}, training=training, federation={"rounds": 1})
    task, rounds, start, end, canaries = trained_with(config, 8)
    exposure, _ = canary_rows(task, rounds, start, end, canaries, 5)
    assert exposure.figures["round 0: one update"].low > exposure.guessing and FINAL in exposure.figures
    turned = {client: type(both)(both.examples, ~both.planted) for client, both in canaries.items()}
    wrong, none = canary_rows(task, rounds, start, end, turned, 5)
    assert wrong.figures["round 0: one update"].value < exposure.guessing and none.figures["round 0: one update"].value == 0
    still = [
        type(rounds[0])(
            rounds[0].now, rounds[0].before, rounds[0].before, {c: {n: v * 0 for n, v in u.items()} for c, u in rounds[0].updates.items()}
        )
    ]
    exposure, epsilon = canary_rows(task, still, start, start, canaries, 5)
    assert {figure.value for figure in epsilon.figures.values()} == {0.0}
    assert all(figure.value == pytest.approx(1.0, abs=0.05) for figure in exposure.figures.values())  # the middle of one tie


def test_the_run_with_canaries_has_the_noise_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    privacy = {"unit": "client", "epsilon": 8.0, "delta": 1e-3, "evaluation": "noised"}
    config = run_config(
        save_inputs(tmp_path), method={"kind": "lora"}, privacy=privacy, federation={"on_failure": "drop"}, evaluation={"every": 1}
    )
    began: list[Config] = []

    def start(config: Config, *args: object, **more: object) -> None:
        began.append(config)
        raise RunFailed("far enough")

    monkeypatch.setattr(session, "start", start)
    with pytest.raises(RunFailed):
        trained_with(config, 2)
    plan, again = prepare(config).privacy, prepare(began[0]).privacy
    assert plan is not None and again is not None and again.noise_multiplier == plan.noise_multiplier


def test_without_canaries_the_row_says_how_to_get_them(tmp_path: Path) -> None:
    inputs = save_inputs(tmp_path)
    session.start(run_config(inputs, method={"kind": "lora"}), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    result = CliRunner().invoke(cli.app, ["audit", str(tmp_path / "run"), "--clients", "1"])
    assert result.exit_code == 0 and "not measured: needs --canaries N" in " ".join(result.stdout.split())
    assert {path: path.read_bytes() for path in before} == before
