from __future__ import annotations

from random import Random
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from made_flower import be_an_app

from fibecfed.engine.flower import plain_http, relay
from fibecfed.engine.flower.relay import blob_of, content
from fibecfed.engine.flower.sockets import SocketError

pytestmark = pytest.mark.flower


def sent(blob: bytes, **options: str | float) -> Message:
    be_an_app()
    return Message(content(blob, **options), dst_node_id=1, message_type="train")


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 11])
def test_bytes_come_out_as_they_went_in_however_many_parts_they_take(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_PART", 4)
    assert blob_of(sent(bytes(range(length)))) == bytes(range(length))


def test_messages_of_the_same_bytes_share_nothing_that_flower_stores() -> None:
    """Else one of them may be lost while the other is deleted."""
    blob = Random(0).randbytes(12_000_000)
    first, second = (get_all_nested_objects(sent(blob, timeout_s=1.0)).keys() for _ in range(2))
    assert not first & second
    assert len(first) == 10  # message, container, two records, three Arrays, each of one piece


def test_what_is_not_ours_is_refused() -> None:
    message = sent(b"x")
    message.content[relay.RECORD]["00000000"].data = b"short"
    with pytest.raises(ValueError, match=r"without bytes of type 'fibecfed\.2'; use the same fibecfed on both sides"):
        blob_of(message)


def answered(node_config: dict[str, Any], run_config: dict[str, Any]) -> str:
    """The error that a relay answers with."""
    context = Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config=run_config)
    return str(relay.relay(sent(b"", timeout_s=1.0), context).content[relay.OPTIONS]["error"])


def test_plain_http_is_allowed_on_a_client_by_its_own_word_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_http, "_ancestors", lambda: [["flower-supernode", "--insecure", "--superlink", "server.example:8000"]])
    monkeypatch.setattr(relay, "ask", lambda *_: (_ for _ in ()).throw(SocketError("asked the client")))
    own, allowed = {"socket": "c.sock"}, {"allow-plain-http": True}
    for run_config in (allowed, {}):
        error = answered(own, run_config)
        assert "flower-supernode runs with --insecure on server.example:8000" in error
        assert "start the SuperNode with allow-plain-http=true in its --node-config" in error
        assert answered({**own, **allowed}, run_config) == "asked the client"


@pytest.mark.parametrize("timeout_s", [None, "x", [1.0], 0.0, -1.0, 1e300, float("nan")])
def test_a_message_without_a_sensible_timeout_is_answered_with_an_error(timeout_s: Any) -> None:
    options = {} if timeout_s is None else {"timeout_s": timeout_s}
    context = Context(run_id=1, node_id=1, node_config={"socket": "c.sock"}, state=RecordDict(), run_config={})
    assert "as timeout_s, expected a number of seconds" in str(relay.relay(sent(b"", **options), context).content[relay.OPTIONS]["error"])
