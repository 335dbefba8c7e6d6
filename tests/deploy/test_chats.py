"""Federations across machines on prompts with answers: each client its own file, the simulator's bits, and no text on the way."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from chats import CHATML, DONE, SAID, rows, save_chat_model, write_lines
from made_flower import be_an_app, stop_time
from rich.console import Console
from served import serve
from tiny_federation import NAMES, outcome

from fibecfed import session
from fibecfed.build import prepare
from fibecfed.config import config_hash, federation_toml, from_table, load
from fibecfed.config.common import common
from fibecfed.core.errors import UserError
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.deploy import check
from fibecfed.deploy.client import _resident
from fibecfed.engine.flower.resident import Resident
from fibecfed.reading import only
from fibecfed.trained.answers import load as load_answers

pytestmark = [pytest.mark.flower, pytest.mark.filterwarnings("ignore")]

CONFIG = """
[model]
name = "{here}/model"
rank = 2
[training]
batch_size = 4
learning_rate = 0.05
precision = "float32"
device = "cpu"
[evaluation]
every = 1
generate = 2
max_new_tokens = 6
[data]
kind = "instruction"
max_length = 64
validation_fraction = 0.0
chat_template = "{here}/template.jinja"
{data}
[federation]
clients = 3
clients_per_round = 2
rounds = 4
on_failure = "drop"
{federation}
[method]
kind = "{method}"
{keys}
"""
METHODS = {
    "lora": "",
    "fibecfed": 'preset = "paper"\nscore_after = 1\nlayers = {importance_clients = 2}',
    "by tokens and alignment": 'preset = "paper"\nscore_after = 1\ncurriculum = {order = "ira"}\nlayers = {importance_clients = 2}',
}


@pytest.fixture(autouse=True)
def _app(monkeypatch: pytest.MonkeyPatch) -> None:
    be_an_app()
    stop_time(monkeypatch)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, each client's chats, and all of them for the simulator."""
    folder = tmp_path_factory.mktemp("chats")
    save_chat_model(folder / "model")
    (folder / "template.jinja").write_text(CHATML)
    for part, number in (("train", 60), ("test", 24)):
        table = [{**row, "client": NAMES[place % 3 if place % 5 else 0]} for place, row in enumerate(rows(number))]
        write_lines(folder / f"all-{part}.jsonl", table)
        for name in NAMES:
            own = [{"prompt": row["prompt"], "completion": row["completion"]} for row in table if row["client"] == name]
            write_lines(folder / f"{name}-{part}.jsonl", own)
    return folder


def write_configs(here: Path, method: str) -> None:
    data = f'path = "{here}/all-train.jsonl"\ntest_path = "{here}/all-test.jsonl"\nclient_column = "client"'
    for name, data_keys, more in (("federation", "", 'partition = "machines"'), ("sim", data, 'partition = "column"')):
        kind = "lora" if method == "lora" else "fibecfed"
        text = CONFIG.format(here=here, data=data_keys, federation=more, method=kind, keys=METHODS[method])
        (here / f"{name}.toml").write_text(text)


def residents(here: Path, folder: Path) -> dict[str, Resident]:
    found = {}
    for name in NAMES:
        (folder / name).mkdir()
        own = (f"data.path={here}/{name}-train.jsonl", f"data.test_path={here}/{name}-test.jsonl")
        prepared = prepare(load(here / "federation.toml", own).config, read_data=only(name))
        found[name] = _resident(prepared, name, f"of {name}", folder / name, lambda text: None)
    return found


def told(out: Path) -> list[Any]:
    """What was recorded, but for times, what an evaluation sends, and the scores of the global model."""
    found: list[Any] = []
    for record in read(out / "records.jsonl")[1]:
        if isinstance(record, RoundRecord):
            found.append((record.failures, record.cohort, record.bytes_up, record.fields_up, record.steps, record.loss))
        elif isinstance(record, EvalRecord):
            found.append((record.failures, record.clients, record.pooled))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_clients_with_their_own_chats_give_the_simulators_bits(method: str, here: Path, tmp_path: Path) -> None:
    write_configs(here, method)
    session.start(load(here / "sim.toml").config, tmp_path / "sim")
    out = serve(here, tmp_path / "runs", residents(here, tmp_path))
    assert outcome(out) == outcome(tmp_path / "sim")
    assert told(out)[1:] == told(tmp_path / "sim")[1:]  # before the first round the simulator scores one model once
    one, other = (json.loads((folder / "summary.json").read_text())["scores"] for folder in (out, tmp_path / "sim"))
    assert one["metrics"]["personalised"] == other["metrics"]["personalised"]
    assert one["metrics"]["global"] == pytest.approx(other["metrics"]["global"], rel=1e-6)
    assert one["metrics"]["global"].keys() >= {"rouge_l", "exact_match", "stop_rate"}
    assert one["pooled_personalised"] < one["untrained"]["pooled_personalised"]


def test_what_is_saved_answers_and_holds_no_text_of_a_client(here: Path, tmp_path: Path) -> None:
    write_configs(here, "lora")
    out = serve(here, tmp_path / "runs", residents(here, tmp_path))
    assert load_answers(out).answer([SAID[0]], 6)[0].tokens
    assert not (out / "answers.jsonl").exists() and not (out / "clients").exists()
    for path in out.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".md", ".toml"):
            held = path.read_text()
            assert not any(text in held for text in (*SAID, *DONE) if len(text) > 4), path


def test_no_message_of_a_client_holds_its_texts_or_their_tokens(here: Path, tmp_path: Path) -> None:
    write_configs(here, "fibecfed")
    sent = list[bytes]()

    def heard(resident: Resident) -> Any:
        def answer(request: bytes) -> bytes:
            sent.append(resident.answer(request))
            return sent[-1]

        return answer

    clients = residents(here, tmp_path)
    serve(here, tmp_path / "runs", clients, instead={name: heard(one) for name, one in clients.items()})
    assert sent and not any(text.encode() in blob for blob in sent for text in (*SAID, *DONE) if len(text) > 4)


def test_where_the_chats_lie_and_how_their_columns_are_called_is_each_machines_own(here: Path) -> None:
    write_configs(here, "lora")
    one = load(here / "federation.toml").config
    other = load(here / "federation.toml", ("data.prompt_column=question", "data.shape=prompt", f"data.chat_template={CHATML}")).config
    assert common(one, "") == common(other, "") and config_hash(one) != config_hash(other)
    assert common(one, "") != common(load(here / "federation.toml", ("data.system=be brief",)).config, "")


def test_check_prices_a_federation_on_answers_without_their_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_configs(here, "fibecfed")
    check.report(load(here / "federation.toml").config, Console(width=200))
    shown = capsys.readouterr().out
    assert "answers to prompts" in shown and "1,000 training examples at each client, of 64 tokens" in shown and "optimiser steps" in shown


def test_a_file_for_answers_is_written_and_taken(tmp_path: Path) -> None:
    table = tomllib.loads(federation_toml("instruction"))
    config = from_table(table)
    assert config.data.kind == "instruction" and config.federation.partition == "machines" and "labels" not in table["data"]
    with pytest.raises(UserError, match=r"data\.labels"):
        from_table({**table, "data": {**table["data"], "labels": ["a", "b"]}})
