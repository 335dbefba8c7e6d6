"""A server that lies, and messages that are not of this sum: each is told by name, and the client tells nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from summing import Played, context, drawn, identities, names, pinned, plain

from fibecfed.secure.client import STEPS, SumClient
from fibecfed.secure.context import digest_of_broadcast
from fibecfed.secure.server import NoSum, SumServer
from fibecfed.secure.signed import Misled, stated

COHORT = names(5)
FIRST, LAST = COHORT[0], COHORT[-1]


def played(**more: Any) -> Played:
    return Played(COHORT, drawn(COHORT), context(COHORT), **more)


def misled(sum_: Played, text: str) -> None:
    with pytest.raises(Misled, match=text):
        sum_.play()


def ended(client: SumClient) -> None:
    """It answers no step any more."""
    for step, arguments in {
        "advertise": (),
        "share": ({},),
        "masked": (np.zeros(1, np.uint32), {}),
        "confirm": ((),),
        "reveal": ({},),
    }.items():
        with pytest.raises(Misled, match=f"asked for step '{step}' of round 3 out of turn, expected nothing more"):
            getattr(client, step)(*arguments)


@pytest.mark.parametrize(
    ("field", "value"),
    [("broadcast", digest_of_broadcast(b"another model")), ("round", 4), ("attempt", 1), ("run", "1" * 16), ("least", 5)],
)
def test_clients_that_are_told_different_things_see_it_before_they_send_anything(field: str, value: Any) -> None:
    """The server itself would notice: here it takes the other client's keys as they come."""
    sum_ = played(contexts={LAST: replace(context(COHORT), **{field: value})})
    true = sum_.server.advertised

    def taken(statements: Mapping[str, str]) -> dict[str, str]:
        true({client: text for client, text in statements.items() if client != LAST})
        return {**statements}

    sum_.server.advertised = taken
    misled(sum_, f"the server sent another {field} to client {LAST} than to {FIRST}")
    assert not sum_.masked
    ended(sum_.clients[FIRST])


def test_other_cohorts_are_seen_too() -> None:
    six = names(6)
    sum_ = Played(COHORT, drawn(COHORT), context(COHORT))
    stranger = SumClient(LAST, identities(six)[LAST], pinned(identities(six)), context(six))
    sum_.change = lambda step, client, sent: {**sent, LAST: stranger.advertise()} if (step, client) == ("share", FIRST) else sent
    misled(sum_, f"the server sent another cohort to client {LAST} than to {FIRST}")


def test_keys_that_the_server_made_are_nobodys() -> None:
    fake = SumClient(LAST, identities(["999"])["999"], pinned(identities(COHORT)), context(COHORT)).advertise()
    sum_ = played(change=lambda step, client, sent: {**sent, LAST: fake} if step == "share" and client == FIRST else sent)
    misled(sum_, f"the server hands on a message as that of client {LAST}, but its signature is not that of the pinned key")


def test_other_keys_of_the_client_itself() -> None:
    other = SumClient(FIRST, identities(COHORT)[FIRST], pinned(identities(COHORT)), context(COHORT)).advertise()
    sum_ = played(change=lambda step, client, sent: {**sent, FIRST: other} if step == "share" else sent)
    misled(sum_, f"the server hands out other keys of client {FIRST} than it made")


def test_old_keys_of_the_same_round_do_not_pass_the_signatures() -> None:
    """The server shows one client keys that another one made in an attempt that failed, whose secret it may know by now."""
    old = played()
    with pytest.raises(NoSum):
        replace_lost(old, "share", COHORT[:2]).play()
    stale = old.server.roster[LAST]
    sum_ = played()
    seen: dict[str, Any] = {}

    def change(step: str, client: str, sent: Any) -> Any:
        if step == "share" and client == FIRST:
            return {**sent, LAST: stale}
        if step == "masked" and client in (FIRST, LAST):  # what these two sealed for each other cannot be opened
            seen[client] = True
        return sent

    sum_.change = change
    misled(sum_, "cannot be opened: the server changed them, or that client")
    assert seen and not sum_.revealed


def replace_lost(sum_: Played, step: str, clients: tuple[str, ...]) -> Played:
    sum_.lost = {step: clients}
    return sum_


@pytest.mark.parametrize("step", ["share", "masked", "confirm", "reveal"])
def test_too_few_clients_are_refused_at_every_step(step: str) -> None:
    few = COHORT[:3]

    def change(at: str, client: str, sent: Any) -> Any:
        if at != step:
            return sent
        return few if at == "confirm" else {name: value for name, value in sent.items() if name in few}

    sum_ = played(change=change)
    misled(sum_, r"the server continues with the (keys|shares|answers|signatures) of 3 clients, expected at least 4")
    assert not sum_.revealed


def test_shares_that_were_changed_or_swapped_cannot_be_opened() -> None:
    def changed(step: str, client: str, sent: Any) -> Any:
        if step == "masked" and client == FIRST:
            return {**sent, LAST: sent[COHORT[1]]}
        return sent

    sum_ = played(change=changed)
    misled(sum_, f"the shares of client {LAST} for {FIRST} cannot be opened")
    assert not sum_.masked
    ended(sum_.clients[FIRST])


def test_other_survivors_for_different_clients_are_named() -> None:
    """With both answers the server would have both shares of one client, and so what it sent."""

    def changed(step: str, client: str, sent: Any) -> Any:
        return sent[1:] if step == "confirm" and client == LAST else sent

    sum_ = played(change=changed)
    confirmed: dict[str, str] = {}

    def all_of_them(statements: Mapping[str, str]) -> dict[str, str]:
        confirmed.update(statements)
        return dict(statements)

    sum_.server.confirmed = all_of_them
    misled(sum_, f"the server named other survivors to client {LAST} than to {FIRST}")
    assert not sum_.revealed and len(confirmed) == 5
    ended(sum_.clients[FIRST])


def test_no_two_sets_of_survivors_get_signatures_enough() -> None:
    """Each half of the clients is shown the signatures of its own half alone."""
    cohort = names(10)
    about = context(cohort, dropouts=2, colluders=2)
    half = {client: cohort if number < 5 else cohort[1:] for number, client in enumerate(cohort)}
    sum_ = Played(cohort, drawn(cohort), about)
    sum_.change = lambda step, client, sent: half[client] if step == "confirm" else sent
    told: dict[str, str] = {}
    sum_.server.confirmed = lambda statements: told.update(statements) or dict(told)
    sum_.change = lambda step, client, sent: (
        half[client] if step == "confirm" else {c: s for c, s in sent.items() if half[c] == half[client]} if step == "reveal" else sent
    )
    misled(sum_, "continues with the signatures of 5 clients, expected at least 8")
    assert not sum_.revealed


def test_survivors_who_never_shared_or_without_the_client_itself() -> None:
    for sent in (COHORT[1:], (*COHORT[:4], "005")):
        sum_ = played(change=lambda step, client, _, sent=sent: sent if step == "confirm" else _)
        misled(sum_, "names survivors that cannot be those of this sum")


def test_signatures_from_elsewhere_do_not_count() -> None:
    old = played()
    old.play()
    signed: dict[str, str] = {}
    keys = identities(COHORT)
    for client in COHORT:
        table = {"kind": "survivors", "client": client, "transcript": "00", "survivors": list(COHORT)}
        signed[client] = stated(keys[client], table)
    misled(played(change=lambda step, client, sent: signed if step == "reveal" else sent), "from another sum, or showed it other keys")
    for foreign in ({**signed, FIRST: "0" * 200}, {"009": signed[FIRST]}):
        sum_ = played(change=lambda step, client, sent, foreign=foreign: foreign if step == "reveal" else sent)
        misled(sum_, "is not that of the pinned key|is not among the survivors")
        assert not sum_.revealed


def test_nothing_is_revealed_twice() -> None:
    sum_ = played()
    sum_.play()
    for client in sum_.clients.values():
        ended(client)


@pytest.mark.parametrize("step", STEPS[1:])
def test_steps_are_taken_in_their_order(step: str) -> None:
    client = SumClient(FIRST, identities(COHORT)[FIRST], pinned(identities(COHORT)), context(COHORT))
    arguments: dict[str, Any] = {"share": ({},), "masked": (np.zeros(1, np.uint32), {}), "confirm": ((),), "reveal": ({},)}
    with pytest.raises(Misled, match=f"asked for step '{step}' of round 3 out of turn, expected 'advertise'"):
        getattr(client, step)(*arguments[step])
    ended(client)


def test_a_second_sum_of_a_round_is_of_the_same_clients_or_refused() -> None:
    keys, words = identities(COHORT), drawn(COHORT)
    again = played(lost={"masked": ()})
    again.clients = {c: SumClient(c, keys[c], pinned(keys), again.about, before=COHORT) for c in COHORT}
    assert np.array_equal(again.play(), plain(words, COHORT))
    other = played(lost={"masked": COHORT[:1]})
    other.clients = {c: SumClient(c, keys[c], pinned(keys), other.about, before=COHORT) for c in COHORT}
    with pytest.raises(NoSum, match="round 3 was summed before, over 000, 001, 002, 003, 004, and now over 001"):
        other.play()
    other = played(lost={"masked": COHORT[:1]})
    other.clients = {c: SumClient(c, keys[c], pinned(keys), other.about, before=COHORT) for c in COHORT}
    other.server.arrived = lambda: COHORT[1:]
    misled(other, "the server asks for a second sum of round 3, of 001, .* after that of 000, ")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"cohort": ("000", "000", "001", "002", "003")}, "not a sorted list of different names"),
        ({"least": 3}, "sums of 3 of 5 clients hide nothing from 1 colluders and a lying server"),
        ({"least": 6}, "sums of 6 of 5"),
        ({"colluders": 3}, "sums of 4 of 5 clients hide nothing from 3 colluders"),
        ({"cohort": names(6)[1:]}, "the server asks client 000 for a sum of others"),
        ({"cohort": (*COHORT, "777"), "least": 5}, r"the server named client 777, whose key is not pinned \(privacy.keys\)"),
    ],
)
def test_cohorts_that_cannot_be_summed_are_refused_at_once(change: dict[str, Any], text: str) -> None:
    keys = identities(names(6))
    with pytest.raises(Misled, match=text):
        SumClient(FIRST, keys[FIRST], pinned(keys), replace(context(COHORT), **change))


def test_the_server_leaves_out_who_sends_what_it_must_not() -> None:
    keys = identities(COHORT)
    server = SumServer(context(COHORT), pinned(keys))
    clients = {c: SumClient(c, keys[c], pinned(keys), context(COHORT)) for c in COHORT}
    sent = {client: one.advertise() for client, one in clients.items()}
    assert FIRST not in server.advertised({**sent, FIRST: "x" * 300}) and "cannot be used" in server.wrong[FIRST]
    sealed = {client: clients[client].share(server.roster) for client in COHORT[1:]}
    assert set(server.shared(sealed)) == set(COHORT[1:])
    lacking = {**sealed, LAST: {}}
    with pytest.raises(NoSum, match=f"shares of 3 of 5 clients, expected at least 4; client {FIRST}"):
        server.shared(lacking)
