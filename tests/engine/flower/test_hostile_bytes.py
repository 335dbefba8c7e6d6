"""Bytes that no fibecfed wrote, at a relay's socket and in the envelope: each ends in a sentence of ours, at once, and takes no memory."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import KEY, made_data, made_method, made_task

from fibecfed.core.wire import WireError, decode, encode
from fibecfed.engine.flower.agreement import digest, disagreements, table_of
from fibecfed.engine.flower.envelope import Finish, Hello, Reply, Request, packed, unpacked
from fibecfed.engine.flower.resident import Resident, Start
from fibecfed.engine.flower.sockets import MAX_BYTES, SocketError, receive, serve

CONFIG = {"seed": 7}
TEXT = st.text(max_size=20)
NUMBER = st.integers() | st.sampled_from([2**63, -(2**63), 10**4299, 10**4300 - 1, 1 - 10**4300])
ACTIONS = st.sampled_from(["hello", "start", "train", "evaluate", "finish"]) | TEXT
RUNS = st.sampled_from(["0123456789abcdef", "../../up"]) | TEXT
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=5)
PAYLOAD = st.binary(max_size=40).map(packed) | st.sampled_from([torch.tensor(1.0), torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(0)])
REQUESTS = st.builds(
    Request, ACTIONS, RUNS, st.just("0") | TEXT, st.just(digest(CONFIG)) | TEXT, TEXT, NUMBER, NUMBER, NUMBER, PAYLOAD
)  # fmt: skip
ENVELOPES = {
    Request: REQUESTS,
    Reply: st.builds(Reply, TEXT, TEXT, ACTIONS, RUNS, TEXT, NUMBER, PAYLOAD),
    Hello: st.builds(Hello, TEXT, TEXT, TEXT, TEXT, TEXT),
    Finish: st.builds(Finish, PAYLOAD, TEXT, TEXT, TEXT),
}


@st.composite
def mutated(draw: st.DrawFn, blob: bytes) -> bytes:
    """Bytes cut short, run on, or with some changed."""
    changed = bytearray(blob[: draw(st.integers(0, len(blob)))] if draw(st.booleans()) else blob)
    for _ in range(draw(st.integers(0, 3)) if changed else 0):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed) + draw(st.binary(max_size=4))


def at_socket(sent: bytes, take: Callable[[socket.socket], Any]) -> Any:
    """What `take` makes of bytes behind which the other side has closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            theirs.sendall(sent)
        return take(ours)


# ---- the local socket


@settings(max_examples=200, deadline=1000)
@given(st.binary(max_size=64), st.data())
def test_a_frame_comes_out_whole_or_is_a_socket_error(body: bytes, data: st.DataObject) -> None:
    sent = data.draw(mutated(len(body).to_bytes(8, "big") + body))
    whole = len(sent) >= 8 and int.from_bytes(sent[:8], "big") <= len(sent) - 8
    with contextlib.nullcontext() if whole else pytest.raises(SocketError):
        assert at_socket(sent, lambda connection: receive(connection, MAX_BYTES)) == sent[8 : 8 + int.from_bytes(sent[:8], "big")]


@pytest.mark.parametrize("size", [1, 2**20, MAX_BYTES, MAX_BYTES + 1, 2**63, 2**64 - 1])
def test_a_length_that_is_only_claimed_takes_no_memory(size: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SocketError, match=r"closed after 0 of|expected at most"):
            at_socket(size.to_bytes(8, "big"), lambda connection: receive(connection, MAX_BYTES))
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


class Relays:
    """In place of a listening socket: relays that have sent something and are gone; then the client is interrupted."""

    def __init__(self, sent: list[bytes]) -> None:
        self._sent = iter(sent)

    def accept(self) -> tuple[socket.socket, str]:
        sent = next(self._sent, None)
        if sent is None:
            raise KeyboardInterrupt
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            theirs.sendall(sent)
        return ours, ""


@settings(max_examples=50, deadline=5000)
@given(st.lists(st.binary(max_size=16) | st.binary(max_size=16).map(lambda body: len(body).to_bytes(8, "big") + body), max_size=5))
def test_whatever_relays_send_the_client_serves_the_next_one(sent: list[bytes]) -> None:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        serve(Relays(sent), lambda request: request, told.append, max_bytes=2**20)  # pyright: ignore[reportArgumentType]
    assert all(text.startswith("a relay disconnected: ") for text in told) and len(told) <= len(sent)


# ---- the envelope


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(ENVELOPES)), st.data())
def test_a_changed_envelope_is_decoded_or_a_wire_error(cls: type, data: st.DataObject) -> None:
    blob = data.draw(mutated(encode(data.draw(ENVELOPES[cls]))))
    with contextlib.suppress(WireError):
        decoded = decode(cls, blob)
        for field in fields(cls):
            value = getattr(decoded, field.name)
            if isinstance(value, torch.Tensor):
                unpacked(value)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*ENVELOPES, Start]), JSON, st.data())
def test_foreign_json_in_an_envelope_is_a_wire_error(cls: type, value: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([field.name for field in fields(cls)]))
    for inner in (value, {name: value}):
        table = {"type": cls.__name__, "version": 1, "fields": inner}
        if not (cls is Start and inner == {}):
            with pytest.raises(WireError):
                decode(cls, safetensors.torch.save({}, metadata={"message": json.dumps(table)}))


@settings(max_examples=200, deadline=None)
@given(JSON | st.dictionaries(TEXT, JSON), TEXT)
def test_any_table_of_the_other_side_can_be_compared_and_shown(value: Any, text: str) -> None:
    for told in (json.dumps(value), text, json.dumps(value)[:-1]):
        assert isinstance(disagreements(CONFIG, table_of(told)), str) and isinstance(disagreements(table_of(told), CONFIG), str)


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    return Resident(
        name="0", identity="me", method=made_method(), task=made_task(), data=made_data().client("0"), key=KEY.fold("run"),
        evaluation_batch_size=8, config=CONFIG, versions={"torch": "1"}, folder=tmp_path_factory.mktemp("client"), keep_states=3,
        save=lambda where, params, summary, header: None, say=_shown,
    )  # fmt: skip


def _shown(text: str) -> None:
    assert text.isprintable() and len(text) <= 500, text


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=REQUESTS, data=st.data())
def test_the_client_answers_any_request_with_a_reply_and_writes_outside_of_no_run(
    resident: Resident, request: Request, data: st.DataObject
) -> None:
    blob = encode(request)
    for sent in (blob, data.draw(mutated(blob)), data.draw(st.binary(max_size=40)), struct.pack("<Q", len(blob)) + blob):
        reply = decode(Reply, resident.answer(sent))
        assert reply.status in ("done", "failed", "refused") and bool(reply.reason) == (reply.status != "done")
    folder = Path(resident.folder)
    assert {path.name for path in folder.iterdir()} <= {"0123456789abcdef"} and not list(folder.parent.glob("up*"))
