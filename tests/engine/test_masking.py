"""Masked sums over a transport: the model of the simulator's sums, bit for bit, and what a client remembers of a round."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import federation, made_data, made_method, same
from summing import identities, names, pinned

from fibecfed.core.errors import RunFailed
from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.core.wire import WireError, decode, encode
from fibecfed.engine.failures import STOP
from fibecfed.engine.masking import STEPS, Masked, Opening, OwnSums
from fibecfed.engine.runtime import ClientRuntime
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.sum_exchanges import Told, remembered, table_of, told
from fibecfed.engine.summands import summand
from fibecfed.engine.summing import SumPool, unmasked
from fibecfed.engine.transport import InTurn, Ticket
from fibecfed.privacy.cohorts import Cohorts
from fibecfed.privacy.fixed import FixedPoint
from fibecfed.secure.signed import Misled

NOW = Round("tune", 0, 1, 0)
RUN = "0123456789abcdef"
COHORTS = Cohorts(5, 1, 1)
FIXED = FixedPoint(0.5, 5, 100)


class Clients(InTurn):
    """Clients that mask what they add; `change` may lose or change what the server sends them."""

    def __init__(self, runtime: ClientRuntime, names: tuple[ClientId, ...], folder: Path) -> None:
        super().__init__()
        keys = identities(names)
        self.pinned = pinned(keys)
        self.runtime, self.folder = runtime, folder
        self.sums = {name: OwnSums(name, keys[name], self.pinned, FIXED, COHORTS) for name in names}
        self.change: Callable[[Ticket, bytes], bytes | Failure] = lambda ticket, blob: blob
        self.refusals: dict[ClientId, str] = {}
        self.starts: dict[ClientId, str] = {}
        self.rounds: dict[ClientId, Round] = {}

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        client, now = ticket.client, self.rounds.get(ticket.client, ticket.now)
        changed = self.change(ticket, blob)
        if isinstance(changed, Failure):
            return changed
        try:
            folder = self.folder / client
            return self.sums[client].answer(
                ticket.action,
                RUN,
                now,
                changed,
                folder,
                lambda: self.starts.get(client, "as the server"),
                lambda sent: self.runtime.train(client, sent, now)[0],
            )
        except Misled as error:
            self.refusals[client] = str(error)
            return Failure(str(error))


@pytest.fixture(scope="module")
def data() -> Any:
    return made_data(5, 5)


def world(data: Any, folder: Path | None = None, rounds: int = 1) -> Any:
    made = federation(made_method("lora", rounds=rounds), data=data, per_round=5)
    made.runtime.adding = FIXED
    made.transport = Simulator(made.runtime) if folder is None else Clients(made.runtime, data.clients, folder)
    return made


def masks(made: Any) -> SumPool:
    return SumPool(FIXED, COHORTS, Masked(FIXED, COHORTS, RUN, made.transport.pinned))


def tolerant() -> Any:
    return STOP.model_copy(update={"on_failure": "drop"})


def states(made: Any, pool: SumPool, **more: Any) -> list[Any]:
    return list(made.run(sums=pool, tolerance=tolerant(), **more))


def test_masked_rounds_end_in_the_simulators_bits(data: Any, tmp_path: Path) -> None:
    plain, own = world(data, rounds=2), world(data, tmp_path, rounds=2)
    first, second = states(plain, unmasked(FIXED, COHORTS)), states(own, masks(own))
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        assert same(one.server.params, other.server.params)
        assert one.record.notes == other.record.notes and one.record.fields_up["sum"] == other.record.fields_up["sum"]
        assert sum(other.record.fields_up.values()) == sum(other.record.bytes_up.values())
        assert sum(other.record.fields_down.values()) == sum(other.record.bytes_down.values())
        assert other.record.fields_up["overhead"] < 5 * 5_000
    assert sorted(remembered(tmp_path / data.clients[0])) == ["0", "1"]


@pytest.mark.parametrize("step", ["train", "share", "mask", "confirm", "reveal"])
def test_a_client_lost_at_each_step(step: str, data: Any, tmp_path: Path) -> None:
    lost = data.clients[2]
    early = step in ("train", "share", "mask")
    plain, own = world(data), world(data, tmp_path)
    own.transport.change = lambda ticket, blob: Failure("gone") if (ticket.client, ticket.action) == (lost, step) else blob
    true = plain.transport.answer
    plain.transport.answer = lambda ticket, blob: Failure("gone") if early and ticket.client == lost else true(ticket, blob)
    first, second = states(plain, unmasked(FIXED, COHORTS)), states(own, masks(own))
    for one, other in zip(first, second, strict=True):
        assert same(one.server.params, other.server.params) and set(other.record.failures) == {lost}


def test_two_lost_clients_end_the_run_and_nothing_is_revealed(data: Any, tmp_path: Path) -> None:
    own = world(data, tmp_path)
    lost = data.clients[:2]
    own.transport.change = lambda ticket, blob: Failure("it is gone") if ticket.client in lost and ticket.action == "mask" else blob
    with pytest.raises(RunFailed, match="secure aggregation got the masked answers of 3 of 5 clients, expected at least 4; it is gone"):
        states(own, masks(own))
    assert not any(remembered(tmp_path / client) for client in data.clients)


def test_a_round_that_is_repeated_gives_the_same_sum_and_another_is_refused(data: Any, tmp_path: Path) -> None:
    own = world(data, tmp_path)
    begun = own.server
    (first, *_) = states(own, masks(own))
    own.server = begun
    (again, *_) = states(own, masks(own))
    assert same(first.server.params, again.server.params) and not again.record.failures
    own.server = begun
    own.transport.change = lambda ticket, blob: Failure("gone") if ticket.client == data.clients[0] else blob
    with pytest.raises(RunFailed, match=r"round 0 was summed before, over .*; have the same clients take part"):
        states(own, masks(own))


def test_a_client_that_comes_back_after_its_round_was_unmasked_is_left_out_of_it_again(data: Any, tmp_path: Path) -> None:
    """The server was interrupted before its checkpoint: the others help with the same sum alone."""
    own, back = world(data, tmp_path), data.clients[0]
    begun = own.server
    own.transport.change = lambda ticket, blob: Failure("gone") if (ticket.client, ticket.action) == (back, "mask") else blob
    (first, *_) = states(own, masks(own))
    own.server = begun
    own.transport.change = lambda ticket, blob: blob
    (again, *_) = states(own, masks(own))
    assert same(first.server.params, again.server.params)
    assert again.record.failures == {back: f"client {back}: round 0 was summed before, without it"}


@pytest.mark.parametrize("step", ["train", "share", "mask", "confirm", "reveal"])
def test_where_a_failure_stops_the_run_it_can_go_on_with_everybody(step: str, data: Any, tmp_path: Path) -> None:
    own, lost = world(data, tmp_path), data.clients[2]
    begun = own.server
    own.transport.change = lambda ticket, blob: Failure(f"client {lost}: gone") if (ticket.client, ticket.action) == (lost, step) else blob
    with pytest.raises(RunFailed, match=f"tune round 0: client {lost}: gone"):
        list(own.run(sums=masks(own), tolerance=STOP))
    assert step in ("confirm", "reveal") or not any(remembered(tmp_path / client) for client in data.clients)
    own.server = begun
    own.transport.change = lambda ticket, blob: blob
    (step_, *_) = list(own.run(sums=masks(own), tolerance=STOP))
    assert not step_.record.failures


def test_another_model_for_a_round_that_was_summed_is_refused_and_the_server_named(data: Any, tmp_path: Path) -> None:
    own = world(data, tmp_path)
    states(own, masks(own))
    with pytest.raises(RunFailed, match="the server asks for a second sum of round 0, of another model"):
        states(own, masks(own))  # from the trained model
    assert len(own.transport.refusals) == 5


@pytest.mark.parametrize(
    ("action", "change", "text"),
    [
        ("train", lambda got: encode(Opening(got.broadcast, got.cohort[:4], 0)), "asks for a sum of 4 clients, expected 5"),
        ("train", lambda got: encode(Opening(got.broadcast, (*got.cohort[:4], "x"), 0)), "whose key is not pinned"),
    ],
)
def test_a_server_that_asks_for_what_may_not_be_is_named(
    action: str, change: Callable[[Any], bytes], text: str, data: Any, tmp_path: Path
) -> None:
    own = world(data, tmp_path)
    own.transport.change = lambda ticket, blob: change(decode(Opening, blob)) if ticket.action == action else blob
    with pytest.raises(RunFailed, match=text):
        states(own, masks(own))
    assert all("the server" in reason for reason in own.transport.refusals.values()) and len(own.transport.refusals) == 5


def test_a_client_that_got_another_model_is_in_no_sum(data: Any, tmp_path: Path) -> None:
    """What a lying server would do to tell it apart; `secure/test_lies.py` has servers that hide it from the others."""
    own, last = world(data, tmp_path), data.clients[-1]

    def change(ticket: Ticket, blob: bytes) -> bytes:
        if ticket.action == "train" and ticket.client == last:
            got = decode(Opening, blob)
            return encode(Opening(got.broadcast.clone().index_fill_(0, got.broadcast.argmax()[None], 1), got.cohort, got.attempt))
        return blob

    own.transport.change = change
    (step,) = states(own, masks(own))
    assert step.record.failures == {last: f"client {last}: its keys are for another sum"}
    assert not remembered(tmp_path / last) and remembered(tmp_path / data.clients[0])


@pytest.mark.parametrize("what", ["start", "index", "num_rounds"])
def test_a_server_that_has_one_client_train_from_other_tensors_or_at_another_time_is_named(what: str, data: Any, tmp_path: Path) -> None:
    """With other tensors at the start, or at the end of a schedule of rates, a client's update may be nothing."""
    own, last = world(data, tmp_path), data.clients[-1]
    if what == "start":
        own.transport.starts[last] = "others"
    else:
        own.transport.rounds[last] = replace(NOW, **{what: 7})
    with pytest.raises(RunFailed, match="secure aggregation got the shares of 0 of 5 clients"):
        states(own, masks(own))
    assert f"the server sent another request to client {last} than to" in own.transport.refusals[data.clients[0]]


def test_steps_out_of_turn_after_a_restart_are_refused(data: Any, tmp_path: Path) -> None:
    own = world(data, tmp_path)
    fresh = own.transport.sums[data.clients[0]]
    (now,) = [step.now for step in states(own, masks(own))][:1]
    for action in ("share", "mask", "confirm", "reveal"):
        with pytest.raises(Misled, match=f"asks for step '{action}' of a sum of round 0 that this client is in no more"):
            fresh.answer(action, RUN, now, told({}), tmp_path, str, lambda blob: blob)


def test_a_table_with_a_name_twice_is_none() -> None:
    assert table_of(told({"a": "1", "b": ""})) == {"a": "1", "b": ""}
    for bad in (Told(("a", "a"), ("1", "2")), Told(("a",), ())):
        with pytest.raises(WireError, match="expected one for each"):
            table_of(encode(bad))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["train", *STEPS]),
    st.one_of(
        st.binary(max_size=300),
        st.builds(told, st.dictionaries(st.sampled_from(["000", "001", "x", ""]), st.text(max_size=200), max_size=3)),
        st.builds(
            lambda names, attempt: encode(Opening(torch.zeros(3, dtype=torch.uint8), tuple(names), attempt)),
            st.lists(st.text()),
            st.integers(0, 9),
        ),
    ),
)
def test_whatever_a_server_sends_is_rejected_in_a_sentence(tmp_path: Path, action: str, blob: bytes) -> None:
    cohort = names(5)
    keys = identities(cohort)
    client = OwnSums(cohort[0], keys[cohort[0]], pinned(keys), FIXED, COHORTS)
    opening = encode(Opening(torch.zeros(3, dtype=torch.uint8), cohort, 0))
    words = summand(np.zeros(7, np.uint32))
    steps = ["train", *STEPS]
    if action != "train":
        client.answer("train", RUN, NOW, opening, tmp_path, str, lambda sent: words)
    for step in steps[1 : steps.index(action)]:
        with contextlib.suppress(Misled):
            client.answer(step, RUN, NOW, told({}), tmp_path, str, lambda sent: words)
    with pytest.raises((Misled, WireError)):
        client.answer(action, RUN, NOW, blob, tmp_path, str, lambda sent: words)
    assert not remembered(tmp_path)
