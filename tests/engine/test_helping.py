"""Sums with a helper over a transport: the model of the simulator's sums, bit for bit, and who rejects what."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helping import RUN, Parties
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import federation, made_data, made_method, same
from summing import drawn, names, plain

from fibecfed.core.errors import RunFailed
from fibecfed.core.types import Failure, Round
from fibecfed.core.wire import Tensors, WireError, decode, encode, message
from fibecfed.engine.failures import STOP
from fibecfed.engine.helped import HELPED
from fibecfed.engine.helping import Given, HelpedOpening, Masks
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.sum_exchanges import SUMMAND, remembered, table_of, told
from fibecfed.engine.summands import summand, words_of
from fibecfed.engine.summing import Sum, SumPool, SumRequest, unmasked
from fibecfed.engine.transport import Ticket
from fibecfed.privacy.cohorts import Cohorts
from fibecfed.privacy.fixed import LANES, Adding, ClippedGrid, FixedPoint
from fibecfed.privacy.options import HELPER
from fibecfed.secure.signed import Misled

NOW = Round("tune", 0, 1, 0)
COHORTS = Cohorts(5, 1, 1, helped=True)
FIXED = FixedPoint(0.5, 5, 100)
TOLERANT = STOP.model_copy(update={"on_failure": "drop"})


def world(data: Any, folder: Path | None, cohorts: Cohorts, adding: Adding) -> Any:
    made = federation(made_method("lora", rounds=2), data=data, per_round=cohorts.size)
    made.runtime.adding = adding
    if folder is None:
        made.transport, made.pool = Simulator(made.runtime), unmasked(adding, cohorts)
    else:
        parties = Parties(made.runtime, data.clients, folder, adding, cohorts)
        made.transport, made.pool = parties, parties.pool()
    return made


def states(made: Any) -> list[Any]:
    return list(made.run(sums=made.pool, tolerance=TOLERANT))


def losing(clients: Any, action: str = "train") -> Any:
    return lambda ticket, blob: Failure("gone") if ticket.client in clients and ticket.action == action else blob


@pytest.mark.parametrize(("count", "lost"), [(5, ()), (5, (1,)), (10, (0, 7, 9))])
def test_rounds_with_a_helper_end_in_the_simulators_bits(count: int, lost: tuple[int, ...], tmp_path: Path) -> None:
    data = made_data(count, 5)
    adding, cohorts = FixedPoint(0.5, count, 100), Cohorts(count, 1, len(lost), helped=True)
    gone = [data.clients[number] for number in lost]
    own, other = (world(data, folder, cohorts, adding) for folder in (tmp_path, None))
    true = other.transport.answer
    other.transport.answer = lambda ticket, blob: Failure("gone") if ticket.client in gone else true(ticket, blob)
    own.transport.change = losing(gone)
    first, second = states(other), states(own)
    assert len(first) == len(second) == 2
    for one, two in zip(first, second, strict=True):
        assert same(one.server.params, two.server.params)
        carried = two.record.notes[HELPER]
        assert one.record.notes == {name: note for name, note in two.record.notes.items() if name != HELPER}
        assert set(two.record.failures) == set(gone)
        assert sum(two.record.fields_up.values()) == sum(two.record.bytes_up.values())
        assert sum(two.record.fields_down.values()) == sum(two.record.bytes_down.values())
        words = one.record.fields_up["sum"] // (count - len(lost))
        assert carried["bytes_up"] - words < 2_000 and carried["bytes_down"] < 2_000 * count
    assert (tmp_path / HELPER / HELPED).read_bytes().count(b"\n") == 2


# ---- sums of words that are drawn: no model is trained for them

FIVE = names(5)


@message
class Model:
    params: Tensors


def played(folder: Path, adding: Adding = FIXED, cohorts: Cohorts = COHORTS) -> Parties:
    cohort = names(cohorts.size)
    parties = Parties(None, cohort, folder, adding, cohorts)
    words = drawn(cohort, dtype=adding.dtype)
    parties.trained = lambda client: summand(words[client].copy())
    return parties


def summed(parties: Parties, start: float = 0.0, now: Round = NOW, on_failure: Any = "drop", pool: SumPool | None = None) -> Sum:
    """One sum, of whose phase nothing is used; by a new process of the server, or by `pool`."""
    sent = {"x": torch.full((37 - LANES if parties.adding is FIXED else 37,), start)}
    request = SumRequest(None, Model(sent), sent, names(parties.cohorts.size), on_failure)
    return (pool or parties.pool()).sum_of(made_method("lora").phases[0], parties, now, request, None)


def fails(parties: Parties, text: str, **more: Any) -> None:
    with pytest.raises(RunFailed, match=text):
        summed(parties, **more)


def test_fifty_clients_with_drop_outs(tmp_path: Path) -> None:
    adding, cohorts, lost = FixedPoint(0.5, 50, 100), Cohorts(50, 5, 5, helped=True), names(50)[3:50:10]
    parties = Parties(None, names(50), tmp_path, adding, cohorts)
    words = drawn(names(50))
    parties.change, parties.trained = losing(lost), lambda client: summand(words[client].copy())
    sent = {"x": torch.zeros(37 - LANES)}
    got = parties.pool().summing(made_method("lora").phases[0], parties, NOW, SumRequest(None, Model(sent), sent, names(50), "drop"), None)
    assert np.array_equal(got.total, plain(words, got.clients)) and set(got.failures) == set(lost)


def test_private_runs_have_words_of_64_bits(tmp_path: Path) -> None:
    got = summed(played(tmp_path, ClippedGrid(1.0)))
    assert got.total.dtype == np.uint64 and np.array_equal(got.total, plain(drawn(FIVE, dtype=np.uint64), FIVE))


def test_a_key_is_asked_for_once_and_then_comes_with_the_masks(tmp_path: Path) -> None:
    parties, asked = played(tmp_path), list[str]()
    parties.change = lambda ticket, blob: asked.append(ticket.action) or blob if ticket.client == HELPER else blob
    pool = parties.pool()
    for number in range(3):
        summed(parties, now=replace(NOW, number=number), pool=pool)
    assert asked == ["key", "unmask", "unmask", "unmask"]


# ---- who does not answer, and what is repeated


def test_too_many_lost_clients_end_the_run_and_the_helper_is_not_asked(tmp_path: Path) -> None:
    own = played(tmp_path)
    own.change = losing(FIVE[:2])
    fails(own, "secure aggregation got the masked answers of 3 of 5 clients, expected at least 4; gone. The checkpoint")
    assert (tmp_path / HELPER / HELPED).read_bytes() == b""


@pytest.mark.parametrize("action", ["key", "unmask"])
def test_a_helper_that_does_not_answer_ends_the_run_and_it_can_go_on(action: str, tmp_path: Path) -> None:
    own = played(tmp_path)
    own.change = losing([HELPER], action)
    fails(own, "tune round 0: the helper did not help, and without it nothing of the round can be used: gone. The checkpoint")
    own.change = losing([])
    assert np.array_equal(summed(own).total, plain(drawn(FIVE), FIVE))


def test_a_helper_that_was_started_again_before_it_answered_ends_the_round_and_it_can_be_repeated(tmp_path: Path) -> None:
    own = played(tmp_path)

    def restarted(ticket: Ticket, blob: bytes) -> bytes:
        if ticket.action == "unmask":
            own.restart_helper()
        return blob

    own.change = restarted
    fails(own, "the helper did not help.* is sealed to a key that this helper does not have any more: it was started again")
    own.change = losing([])
    assert np.array_equal(summed(own).total, plain(drawn(FIVE), FIVE))


def test_a_helper_that_was_started_again_between_two_rounds_gives_a_new_key_and_the_round_is_asked_for_again(tmp_path: Path) -> None:
    own, asked = played(tmp_path), list[tuple[str, str]]()
    pool = own.pool()
    summed(own, pool=pool)
    own.restart_helper()
    own.change = lambda ticket, blob: asked.append((ticket.client, ticket.action)) or blob
    got = summed(own, now=replace(NOW, number=1), pool=pool)
    assert np.array_equal(got.total, plain(drawn(FIVE), FIVE)) and not got.failures
    assert [action for client, action in asked if client == HELPER] == ["unmask", "key", "unmask"]
    assert [action for client, action in asked if client == FIVE[0]] == ["train", "train"]
    own.change = losing([HELPER], "unmask")
    with pytest.raises(RunFailed, match="the helper did not help"):
        summed(own, now=replace(NOW, number=2), pool=pool)


def test_a_round_whose_masks_were_lost_on_the_way_is_repeated_with_the_same_clients_alone(tmp_path: Path) -> None:
    """Or the server died before its checkpoint. Who was not in it is left out again, although the helper was started again too."""
    own, lost = played(tmp_path), FIVE[1]
    own.change = losing([lost])
    own.back = lambda ticket, blob: Failure("cut") if ticket.action == "unmask" else blob
    fails(own, "the helper did not help")
    own.back = lambda ticket, blob: blob
    own.restart_helper()
    own.change = losing([FIVE[3]])
    fails(own, "secure aggregation got the masked answers of 3 of 5")
    own.change = losing([])
    got = summed(own)
    assert got.failures == {lost: f"client {lost}: round 0 was summed before, without it"}
    assert (tmp_path / HELPER / HELPED).read_bytes().count(b"\n") == 1


def test_a_round_that_was_summed_over_everybody_cannot_be_repeated_without_one(tmp_path: Path) -> None:
    own = played(tmp_path)
    summed(own)
    own.change = losing([FIVE[3]])
    fails(own, r"round 0 was summed before, over 000, 001, 002, 003, 004, and now over .* one sum in a round; have the same clients")


def test_a_client_that_trains_again_to_other_bits_gives_what_it_gave_before(tmp_path: Path) -> None:
    own = played(tmp_path)
    true, first = own.trained, summed(own)
    own.trained = lambda client: summand(np.asarray(words_of(true(client), FIXED, 37) + 1, np.uint32))
    again = summed(own)
    assert np.array_equal(first.total, again.total) and not again.failures
    (tmp_path / FIVE[0] / SUMMAND).write_bytes(b"cut")
    fails(own, "round 0 was summed before, over 000, 001, 002, 003, 004, and now over 001, 002, 003, 004")
    assert "a second sum of round 0 would have other numbers of this client in it" in own.refusals[FIVE[0]]


def test_where_a_failure_stops_the_run_nothing_is_unmasked(tmp_path: Path) -> None:
    own = played(tmp_path)
    own.change = losing([FIVE[0]])
    fails(own, "tune round 0: gone", on_failure="stop")
    assert (tmp_path / HELPER / HELPED).read_bytes() == b""


# ---- a server that lies


def test_masks_of_a_round_are_not_added_up_twice(tmp_path: Path) -> None:
    own = played(tmp_path)
    true, said = own.answer, list[str]()

    def twice(ticket: Ticket, blob: bytes) -> bytes | Failure:
        reply = true(ticket, blob)
        if ticket.action == "unmask":
            fewer = told(dict(list(table_of(blob).items())[1:]))
            said.extend(again.reason for again in (true(ticket, fewer), true(ticket, blob)) if isinstance(again, Failure))
        return reply

    own.answer = twice
    summed(own)
    assert "a second sum of round 0, of 001, 002, 003, 004 after that of 000, 001, 002, 003, 004: their difference would show" in said[0]
    assert "is sealed to a key that this helper does not have any more" in said[1]


def test_nor_after_a_restart_with_seeds_sealed_to_the_new_key(tmp_path: Path) -> None:
    own = played(tmp_path)
    summed(own)
    own.restart_helper()
    own.change = lambda ticket, blob: told(dict(list(table_of(blob).items())[1:])) if ticket.action == "unmask" else blob
    fails(own, "the helper did not help.* a second sum of round 0, of 001, 002, 003, 004 after that of 000, 001, 002, 003, 004")


def test_masks_of_too_few_clients(tmp_path: Path) -> None:
    own = played(tmp_path)
    own.change = lambda ticket, blob: told(dict(list(table_of(blob).items())[2:])) if ticket.action == "unmask" else blob
    fails(own, "the helper did not help.* asks for the masks of 3 clients, expected at least 4")
    assert (tmp_path / HELPER / HELPED).read_bytes() == b""


def test_another_model_to_one_client(tmp_path: Path) -> None:
    """An honest server leaves it out, which the tolerance allows; one that hides it is told by the helper (`secure/test_helper.py`)."""
    own, last = played(tmp_path), FIVE[-1]

    def change(ticket: Ticket, blob: bytes) -> bytes:
        if ticket.action == "train" and ticket.client == last:
            got = decode(HelpedOpening, blob)
            return encode(replace(got, broadcast=got.broadcast.clone().index_fill_(0, got.broadcast.argmax()[None], 1)))
        return blob

    own.change = change
    got = summed(own)
    assert got.failures == {last: f"client {last}: its seed is for another sum"}


@pytest.mark.parametrize("what", ["start", "index", "num_rounds"])
def test_one_client_trains_from_other_tensors_or_at_another_time(what: str, tmp_path: Path) -> None:
    """As `test_another_model_to_one_client`."""
    own, last = played(tmp_path), FIVE[-1]
    if what == "start":
        own.starts[last] = "others"
    else:
        own.rounds[last] = replace(NOW, **{what: 7})
    assert summed(own).failures == {last: f"client {last}: its seed is for another sum"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda got: replace(got, cohort=got.cohort[:4]), "asks for a sum of 4 clients, expected 5"),
        (lambda got: replace(got, cohort=(*got.cohort[:4], "x")), "named client x, whose key is not pinned"),
        (lambda got: replace(got, cohort=got.cohort[::-1]), "the cohort is not a sorted list"),
        (lambda got: replace(got, offer="00" * 64 + "{}"), "hands on a key as the helper's, but its signature is not"),
    ],
)
def test_an_opening_that_may_not_be_is_not_answered(change: Any, text: str, tmp_path: Path) -> None:
    own = played(tmp_path)
    own.change = lambda ticket, blob: encode(change(decode(HelpedOpening, blob))) if ticket.action == "train" else blob
    fails(own, "got the masked answers of 0 of 5")
    assert set(own.refusals) >= set(FIVE[:4]) and not remembered(tmp_path / FIVE[0])
    assert text in own.refusals[FIVE[0]]


def test_a_key_of_an_earlier_round_is_not_sealed_to(tmp_path: Path) -> None:
    own, first = played(tmp_path), list[str]()

    def change(ticket: Ticket, blob: bytes) -> bytes:
        if ticket.action != "train":
            return blob
        got = decode(HelpedOpening, blob)
        first.append(got.offer)
        return encode(replace(got, offer=first[0]))

    own.change = change
    summed(own)
    fails(own, "hands on a key as the helper's, but it is for another round: 0 of run 0123456789abcdef", now=replace(NOW, number=1))


def test_another_model_for_a_round_that_was_summed(tmp_path: Path) -> None:
    own = played(tmp_path)
    summed(own)
    own.restart_helper()
    fails(own, "the server asks for a second sum of round 0, of another model", start=1.0)
    assert set(own.refusals) == set(FIVE)


# ---- clients and helpers that lie


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda got: replace(got, words=got.words[:-1].clone()), "got torch.int32 of shape"),
        (
            lambda got: replace(got, seed=got.seed[:-9] + "00000000}"),
            "its seed cannot be used: its signature is not that of the",
        ),
        (lambda got: replace(got, seed=got.seed + " " * 2**16), "its seed has 66,"),
        (lambda got: replace(got, seed=got.seed + " " * 2**21), r"expected at most 1,05\d,\d\d\d"),
    ],
)
def test_an_answer_that_is_none_is_left_out(change: Any, reason: str, tmp_path: Path) -> None:
    own, last = played(tmp_path), FIVE[-1]
    own.back = lambda ticket, blob: encode(change(decode(Given, blob))) if ticket.client == last else blob
    got = summed(own)
    assert list(got.failures) == [last] and re.search(reason, got.failures[last])


def test_a_helper_whose_key_or_masks_cannot_be_used(tmp_path: Path) -> None:
    own = played(tmp_path)
    own.back = lambda ticket, blob: b"00" if ticket.action == "key" else blob
    fails(own, "tune round 0: the helper's key cannot be used: its signature is not that of the pinned key")
    own.back = lambda ticket, blob: encode(replace(decode(Masks, blob), words=torch.zeros(3))) if ticket.action == "unmask" else blob
    fails(own, r"tune round 0: the helper's masks cannot be used: got torch.float32 of shape \(3,\)")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["unmask", "train"]),
    st.one_of(
        st.binary(max_size=300),
        st.builds(told, st.dictionaries(st.sampled_from(["000", "001", "x", HELPER, ""]), st.text(max_size=200), max_size=7)),
        st.builds(
            lambda cohort, offer: encode(HelpedOpening(torch.zeros(3, dtype=torch.uint8), tuple(cohort), 0, offer)),
            st.lists(st.text()),
            st.text(),
        ),
    ),
)
def test_whatever_a_server_sends_is_rejected_in_a_sentence(tmp_path: Path, action: str, blob: bytes) -> None:
    parties = played(tmp_path)
    with pytest.raises((Misled, WireError)):
        if action == "unmask":
            parties.helping.answer("unmask", RUN, 0, blob)
        else:
            parties.sums["000"].answer("train", RUN, NOW, blob, tmp_path / "000", str, lambda sent: summand(np.zeros(7, np.uint32)))
    assert (tmp_path / HELPER / HELPED).read_bytes() == b"" and not remembered(tmp_path / "000")
