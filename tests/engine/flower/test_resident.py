from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made import KEY, made_data, made_method, made_task

from fibecfed.core.types import Round
from fibecfed.core.wire import decode, encode
from fibecfed.engine.flower.agreement import digest, disagreements, table_of
from fibecfed.engine.flower.envelope import Hello, Reply, Request, packed, unpacked
from fibecfed.engine.flower.resident import Resident
from fibecfed.methods.importance import AskImportance

RUN = "0123456789abcdef"
CONFIG = {"seed": 7}


@pytest.fixture
def resident(tmp_path: Path) -> Resident:
    return Resident(
        name="0", identity="me", method=made_method(), task=made_task(), data=made_data().client("0"), key=KEY.fold("run"),
        evaluation_batch_size=8, config=CONFIG, versions={"torch": "1"}, folder=tmp_path, keep_states=3,
        save=lambda where, params, summary, header: None, say=lambda text: None,
    )  # fmt: skip


def request(action: str, payload: bytes = b"", *, run: str = RUN, client: str = "0", config: str = digest(CONFIG)) -> bytes:
    now = Round("importance", 0, 1, 0)
    return encode(Request(action, run, client, config, now.phase, now.index, now.num_rounds, now.number, packed(payload)))


def answer(resident: Resident, blob: bytes) -> Reply:
    return decode(Reply, resident.answer(blob))


def test_whatever_comes_in_there_is_an_answer(resident: Resident, tmp_path: Path) -> None:
    whole = request("train", b"no message")
    for blob in (b"", b"\xff" * 99, whole[: len(whole) // 2], whole.replace(b'\\"version\\":1', b'\\"version\\":9')):
        assert answer(resident, blob).status == "refused"
    failed = answer(resident, whole)
    assert failed.status == "failed" and "not a fibecfed message" in failed.reason
    assert answer(resident, request("dance")).status == "refused"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", ["../../../tmp/x", "", "0123456789ABCDEF", "0" * 17, "0123456789abcdef\n"])
def test_the_name_of_a_run_cannot_lead_out_of_the_clients_folder(resident: Resident, run: str) -> None:
    refused = answer(resident, request("train", run=run))
    assert refused.status == "refused" and "16 hexadecimal digits" in refused.reason


def test_a_request_for_another_client_or_of_another_configuration_is_refused(resident: Resident) -> None:
    assert "for '1', and this is '0'" in answer(resident, request("train", client="1")).reason
    other = answer(resident, request("train", config=digest({"seed": 8})))
    assert other.status == "refused" and table_of(unpacked(other.payload).decode()) == CONFIG


def test_a_greeting_is_answered_with_name_configuration_and_checksum_but_no_example(resident: Resident) -> None:
    hello = decode(Hello, unpacked(answer(resident, request("hello", b'{"seed": 7}', client="")).payload))
    assert (hello.name, hello.identity, table_of(hello.config)) == ("0", "me", CONFIG)
    assert len(hello.initial) == 64


def test_tables_that_differ_are_told_key_by_key() -> None:
    assert disagreements({"a": 1, "b": None, "c": [1]}, {"a": 1, "b": None, "c": [1]}) == ""
    told = disagreements({"a": 1, "b": "x"}, {"a": 2, "c": None})
    assert told == 'a is 2 on the client and 1 on the server; b is not set on the client and "x" on the server; ' + (
        "c is not set on the client and not set on the server"
    )
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert table_of("[1]") == table_of("nonsense") == {}


def test_a_value_that_can_be_read_but_is_nested_too_deeply_to_be_written_again_is_shown_in_words() -> None:
    value: list[object] = []
    for _ in range(10_000):
        value = [value]
    assert disagreements({}, {"a": value}) == "a is a deeply nested value on the client and not set on the server"


def test_bytes_survive_their_tensor() -> None:
    for blob in (b"", b"\0\xff", bytes(range(256))):
        assert unpacked(packed(blob)) == blob and packed(blob).dtype == torch.uint8


@pytest.mark.parametrize("payload", [torch.tensor(1.0), torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)])
@pytest.mark.parametrize("action", ["hello", "train"])
def test_a_payload_that_is_no_bytes_does_not_end_the_client(resident: Resident, action: str, payload: torch.Tensor) -> None:
    asked = decode(Request, request(action))
    failed = answer(resident, encode(replace(asked, payload=payload)))
    assert failed.status == "failed" and "expected bytes" in failed.reason


def test_a_deeply_nested_greeting_does_not_end_the_client(resident: Resident) -> None:
    assert answer(resident, request("hello", b"[" * 200_000)).status == "done"


@pytest.mark.parametrize(
    ("name", "advice"), [("state-00000000.safetensors", "remove it: the client"), ("start.safetensors", "sends it again")]
)
def test_a_damaged_file_of_a_client_is_named_with_what_to_do(resident: Resident, tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / name).write_bytes(b"damaged")
    failed = answer(resident, request("evaluate", encode(AskImportance())))
    assert failed.status == "failed" and str(tmp_path / RUN / name) in failed.reason and advice in failed.reason


HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202egnp\x9b31m\nwarning: all is well\r\u2066"
"""A terminal's title, a cleared screen, letters in another order, colours, lines that are none of ours."""


def test_what_a_server_says_reaches_the_clients_terminal_as_one_line_that_steers_nothing(resident: Resident) -> None:
    told: list[str] = []
    resident = replace(resident, say=told.append)
    asked = decode(Request, request("train", b"no message"))
    for change in ({"action": HOSTILE}, {"phase": HOSTILE}, {"client": HOSTILE}, {"run": HOSTILE}, {"action": "a" * 10_000}):
        resident.answer(encode(replace(asked, **change)))
    resident.answer(request("hello", json.dumps({"seed": HOSTILE, HOSTILE: 1}).encode()))
    assert len(told) == 7 and all(text.isprintable() and len(text) < 501 for text in told)
    assert told[0].startswith("?]0;owned??[2J?gnp?31m?warning: all is w: ") and ": refused (unknown action" in told[0]
    assert any("the server has another configuration" in text for text in told)
