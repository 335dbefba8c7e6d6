"""Replies that no fibecfed wrote, on the server's side: to a handshake, to initial tensors, to a round."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from made import made_task
from made_flower import Other, ask, be_an_app, connected, residents, stop_time

from fibecfed.core.types import Failure, Round
from fibecfed.core.wire import decode, encode
from fibecfed.engine.flower import post
from fibecfed.engine.flower.envelope import Hello, Reply, Request, unpacked
from fibecfed.engine.transport import exchange

pytestmark = pytest.mark.flower


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["hello", "start", "train"]), st.data())
def test_any_reply_ends_in_bytes_for_the_loop_or_in_a_failure_and_every_sentence_can_be_shown(
    tmp_path_factory: pytest.TempPathFactory, action: str, data: st.DataObject
) -> None:
    be_an_app()
    honest = residents(tmp_path_factory.mktemp("c"), task=Other(made_task()))["0"]
    text = st.text(max_size=20)

    def hostile(blob: bytes) -> bytes:
        reply = decode(Reply, honest.answer(blob))
        if decode(Request, blob).action != action:
            return encode(reply)
        if action == "hello" and data.draw(st.booleans()):
            hello = decode(Hello, unpacked(reply.payload))
            field = data.draw(st.sampled_from(["name", "config", "initial", "versions"]))
            return encode(replace(reply, payload=post.packed(encode(replace(hello, **{field: data.draw(text)})))))
        if data.draw(st.booleans()):
            return encode(replace(reply, **{data.draw(st.sampled_from(["status", "reason", "run", "client"])): data.draw(text)}))
        changed = bytearray(encode(reply))
        for _ in range(data.draw(st.integers(0, 3))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        return bytes(changed[: data.draw(st.integers(0, len(changed)))]) if data.draw(st.booleans()) else bytes(changed)

    with pytest.MonkeyPatch.context() as patch:
        stop_time(patch)
        transport, grid, told = connected({"0": honest})
        grid.nodes[1] = hostile
        for number in range(2):
            ((client, reply),) = exchange(transport, "train", Round("importance", 0, 1, number), {"0": ask()}, 20.0)
            assert client == "0" and isinstance(reply, bytes | Failure)
    assert all(sentence.isprintable() for sentence in told)
