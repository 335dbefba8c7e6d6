"""`fibecfed check` of a federation's file, on a machine without data, and `fibecfed client --check` on one with its own."""

from __future__ import annotations

import re
from dataclasses import astuple
from pathlib import Path

import pytest
from saved import save_backbone
from tiny_federation import COMMON
from typer.testing import CliRunner

from fibecfed.build import prepare
from fibecfed.check import plan_traffic
from fibecfed.cli import app
from fibecfed.config import load
from fibecfed.deploy import client as client_module
from fibecfed.reading import assumed

FEDERATION = 'rounds = 3\nclients_per_round = 2\npartition = "machines"'


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "backbone"
    save_backbone(folder)
    return folder


@pytest.fixture
def file(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "federation.toml"
    path.write_text(COMMON.format(backbone=backbone, every=1, data="", federation=FEDERATION))
    return path


def invoked(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join((result.stdout if code == 0 else result.stderr).split())


def test_the_file_of_a_federation_is_checked_without_data_and_nothing_is_written(file: Path) -> None:
    shown = invoked("check", str(file))
    assert "clients the first 3 that answer" in shown and "data on the clients, not read here" in shown
    assert "1,000 training examples at each client" in shown
    assert re.search(r"tune 3 2 [\d.]+ kB to [\d.]+ bytes to [\d.]+ kB", shown) and re.search(r"optimiser steps about [\d,]+", shown)
    assert re.search(r"network, 10/50 Mbit/s about [\d.]+ s a round, at 30 ms", shown) and "network, 1/1 Mbit/s" in shown
    assert "memory of a client" in shown and shown.endswith("The configuration is valid. Nothing was trained or written.")
    assert [path.name for path in file.parent.iterdir()] == ["federation.toml"]


def test_clients_that_have_names_are_shown_by_them(file: Path) -> None:
    assert "clients 3: north, south, west" in invoked("check", str(file), 'federation.client_names=["north", "south", "west"]')


def test_what_a_private_federation_costs_is_said_without_data(file: Path) -> None:
    private = "method.kind=lora federation.on_failure=drop privacy.unit=client privacy.noise_multiplier=1 privacy.delta=1e-3"
    shown = invoked("check", str(file), *private.split())
    assert "2 of 3 rounds at most, 2 of 3 clients at a time" in shown and "4.846 for every client after 3 rounds" in shown


@pytest.mark.parametrize("method", ["fibecfed", "lora", "hetlora", "fedpeptao"])
def test_the_messages_are_those_of_a_simulation_of_the_same_method(file: Path, method: str) -> None:
    config = load(file, [f"method.kind={method}"]).config
    own = file.with_name("own.csv")
    own.write_text("review,verdict\n" + "".join(f"text number {i},{('bad', 'good')[i % 2]}\n" for i in range(60)))
    simulated = load(file, [f"method.kind={method}", "federation.partition=iid", f"data.path={own}"]).config
    across, here = plan_traffic(prepare(config, read_data=assumed(60), trial=True)), plan_traffic(prepare(simulated, trial=True))
    assert [(t.phase, t.num_rounds, t.cohort) for t in across] == [(t.phase, t.num_rounds, t.cohort) for t in here]
    for one, other in zip(across, here, strict=True):
        if method != "hetlora":  # whose messages hang on the rank that a client draws by its name
            sizes, others = ((*astuple(t.down), *astuple(t.up)) for t in (one, other))
            assert sizes == pytest.approx(others, abs=8)  # digits of a number of examples


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.max_length=5000", "data.max_length: got a text of 5000 tokens, expected at most"),
        ("method.layers.rule=last method.layers.value=9", "method.layers.value: got 9 layers, expected at most"),
        ("federation.clients_per_round=9", "federation.clients_per_round: got 9"),
        ("model.name=nowhere/at-all", "model"),
        ("federation.roundz=9", "roundz"),
        ('data.labels=["one"]', "data.labels"),
    ],
)
def test_a_mistake_in_the_file_of_a_federation_is_found(file: Path, override: str, sentence: str) -> None:
    said = invoked("check", str(file), *override.split(), code=2)
    assert sentence in said and 'got "machines"' not in said


def own_data(file: Path) -> tuple[str, ...]:
    rows = [f"a text of some length {i},{'good' if i % 3 else 'bad'}" for i in range(40)] + ["the same again,good"] * 8
    (file.parent / "mine.csv").write_text("\n".join(["review,verdict", *rows]) + "\n")
    return ("client", "--config", str(file), "--data", str(file.parent / "mine.csv"), "--name", "north")


def test_a_client_can_look_at_its_data_without_taking_part(file: Path) -> None:
    shown = invoked(*own_data(file), "--check")
    assert re.search(r"train \d+ bad \d+, good \d+", shown) and "Warnings" in shown and "are duplicates of" in shown
    assert "at the peak" in shown and "Nothing was sent or written." in shown
    assert sorted(path.name for path in file.parent.iterdir()) == ["federation.toml", "mine.csv"]


def test_a_client_that_is_not_of_the_federation_is_told_when_it_looks(file: Path) -> None:
    file.write_text(file.read_text() + 'client_names = ["a", "b", "c"]\n')
    assert "--name: got 'north', expected one of federation.client_names: a, b, c" in invoked(*own_data(file), "--check", code=2)


def test_a_client_says_what_it_has_read_before_it_listens(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "serve", lambda *_: None)
    shown = invoked(*own_data(file), "--socket", "s.sock")
    assert re.search(r"train \d+ bad \d+, good \d+", shown) and "are duplicates of" in shown
    assert shown.index("are duplicates of") < shown.index("client north: loaded") < shown.index("listening at s.sock")
