"""Messages to many clients go out a few at a time, whatever is sent to each."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from made_flower import CONFIG, RUN, Grid, answering, be_an_app

from fibecfed.core.types import Round
from fibecfed.engine.flower import transport as transport_module
from fibecfed.engine.flower.envelope import Finish, packed
from fibecfed.engine.flower.post import Post
from fibecfed.engine.flower.transport import AT_ONCE, FlowerTransport
from fibecfed.engine.requests import OnDemand
from fibecfed.engine.transport import exchange

pytestmark = pytest.mark.flower

NAMES = tuple(f"{n:03d}" for n in range(100))


@pytest.mark.parametrize("action", ["train", "finish"])
def test_a_message_of_its_own_for_each_of_many_clients_is_made_when_it_is_sent(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_an_app()
    monkeypatch.setattr(transport_module, "POLL_S", 0.0)
    grid = Grid({number: answering(name) for number, name in enumerate(NAMES, start=1)})
    transport = FlowerTransport(grid, RUN, CONFIG, {}, 0, lambda text: None, unregistered_names=True)
    transport.start_from({})
    assert transport.wait_for(100, NAMES, 5.0) == NAMES
    made: list[str] = []
    ahead: list[int] = []  # messages that were made and not sent yet, whenever some are sent
    send = Post.send

    def counted(self: Post, requests: Any, seconds: float) -> Any:
        ahead.append(len(made))
        made.clear()
        return send(self, requests, seconds)

    monkeypatch.setattr(Post, "send", counted)
    now = Round("tune", 0, 1, 0)
    if action == "train":
        got = dict(exchange(transport, "train", now, OnDemand(NAMES, lambda name: made.append(name) or name.encode()), 5.0))
        assert got == {name: name.encode() for name in NAMES}
    else:
        last = OnDemand(NAMES, lambda name: made.append(name) or Finish(packed(b""), "", name, "{}"))
        assert transport.finish(last, now, 5.0) == {name: name for name in NAMES}
    assert sum(ahead) == 100 and max(ahead) <= AT_ONCE
