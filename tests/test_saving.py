"""Clients' ids as names of folders."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from fibecfed.saving import folder_name, folder_names

CLIENTS = st.lists(st.text(max_size=4) | st.text("aAbBäÄß.-%", max_size=3) | st.text(min_size=60, max_size=90), max_size=8, unique=True)


@given(CLIENTS)
def test_every_client_has_a_folder_of_its_own_where_capitals_are_not_told_from_small_letters_too(clients: list[str]):
    names = folder_names(clients)
    assert list(names) == clients and len({name.casefold() for name in names.values()}) == len(clients)
    assert all(re.fullmatch(r"[\w~%-][\w.~%-]*", name, re.ASCII) and len(name) <= 143 for name in names.values() if name)


def test_plain_clients_keep_their_names():
    plain = [f"{n:02d}" for n in range(20)] + ["Hospital-A", "hospital-b", "a.b"]
    assert folder_names(plain) == {client: client for client in plain}


def test_those_that_differ_in_capitals_alone_have_a_hash():
    names = folder_names(["A", "a", "b"])
    assert names["b"] == "b" and re.fullmatch("A-[0-9a-f]{32}", names["A"]) and re.fullmatch("a-[0-9a-f]{32}", names["a"])
    assert names == folder_names(["b", "a", "A"])


def test_half_a_surrogate_pair_has_a_name():
    assert folder_name("\ud800") == "%ED%A0%80" and len(folder_name("\ud800" * 99)) == 140
