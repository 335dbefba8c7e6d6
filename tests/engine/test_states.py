"""The store of clients' states against a plain dict."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fibecfed.core.errors import RunFailed
from fibecfed.engine import packs
from fibecfed.engine.states import ClientStates, OnServer

CLIENTS = ["a", "b/c", "../up", "", "é", "日本", "\ud800", "nul\0", "x" * 300, " ", "A"]


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def reopened(states: ClientStates, memory_limit_bytes: int, pack_bytes: int = 2**20, *, repeatable: bool = False) -> ClientStates:
    """A new store with what a checkpoint taken now would name."""
    prefixes = states.sync()
    where = {client: location for prefix in prefixes for client, location in packs.scan(states.folder, prefix)}
    other = ClientStates(states.folder, memory_limit_bytes, pack_bytes, repeatable=repeatable)
    other.restore(prefixes, where, ())
    return other


class AgainstADict(RuleBasedStateMachine):
    """Any order of puts, gets, checkpoints and restarts."""

    LIMIT = 60
    PACK = 400

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.states = ClientStates(self.folder, self.LIMIT, self.PACK, repeatable=True)
        self.states.begin(0)
        self.truth: dict[str, bytes] = {}
        self.on_server: dict[str, bytes] = {}
        self.number = 0
        self.before: dict[str, bytes] = {}  # the round under way

    @rule(client=st.sampled_from(CLIENTS), blob=st.binary(max_size=80))
    def put(self, client: str, blob: bytes) -> None:
        self.states.put(client, blob)
        self.truth[client] = blob

    @rule(client=st.sampled_from(CLIENTS), blob=st.binary(max_size=80))
    def keep_on_server(self, client: str, blob: bytes) -> None:
        OnServer(self.states).put(client, blob)
        self.on_server[client] = blob

    @rule(client=st.sampled_from(CLIENTS))
    def get(self, client: str) -> None:
        assert self.states.get(client) == self.truth.get(client)
        assert OnServer(self.states).get(client) == self.on_server.get(client)

    @rule(client=st.sampled_from(CLIENTS))
    def ask_again(self, client: str) -> None:
        assert self.states.before(client) == self.before.get(client)

    @rule(another=st.booleans())
    def begin(self, another: bool) -> None:
        if another:
            self.number += 1
            self.before = dict(self.truth)
        self.states.begin(self.number)

    @rule()
    def checkpoint(self) -> None:
        prefixes = self.states.sync()
        assert not self.states.dirty
        where = {client: location for prefix in prefixes for client, location in packs.scan(self.folder, prefix)}
        assert {client: packs.read(self.folder, client, where[client]) for client in self.truth} == self.truth
        assert len(where) == len(self.truth) + len(self.on_server)
        self.states.retain({prefix.number for prefix in prefixes})

    @rule()
    def restart(self) -> None:
        self.states = reopened(self.states, self.LIMIT, self.PACK, repeatable=True)
        self.states.begin(self.number)
        self.before = dict(self.truth)

    @invariant()
    def holds_the_same_clients(self) -> None:
        assert self.states.clients() == sorted(self.truth)
        assert len(self.states) == len(self.truth) + len(self.on_server)
        assert all((client in self.states) == (client in self.truth) for client in CLIENTS)

    @invariant()
    def stays_within_memory(self) -> None:
        held = self.states._memory.values()
        assert self.states.memory_bytes == sum(map(len, held)) <= self.LIMIT

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


AgainstADict.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
test_the_store_behaves_as_a_dict_whatever_the_order_of_calls = AgainstADict.TestCase


@pytest.mark.parametrize("limit", [0, 1, 1000, 10**9])
def test_paged_states_come_back_byte_for_byte_and_memory_holds_no_more_than_its_limit(tmp_path: Path, limit: int) -> None:
    states = ClientStates(tmp_path, limit, pack_bytes=5000)
    draw = random.Random(0)
    truth = {f"client/{i}": draw.randbytes(draw.randrange(400)) for i in range(100)}
    for client, blob in truth.items():
        states.put(client, blob)
        assert states.memory_bytes <= limit
    for client in draw.sample(sorted(truth), 100):
        assert states.get(client) == truth[client]
        assert states.memory_bytes <= limit


def test_the_least_recently_used_state_goes_to_disk_first(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 30)
    for client in "abc":
        states.put(client, client.encode() * 10)
    states.get("a")
    states.put("d", b"d" * 10)
    assert states.dirty == {"a", "c", "d"}
    assert disk_bytes(tmp_path) > 0


def test_states_that_fit_in_memory_touch_the_disk_only_at_a_checkpoint_and_only_when_changed(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 1000)
    states.put("a", b"1" * 100)
    states.put("b", b"2" * 100)
    assert disk_bytes(tmp_path) == 0
    states.sync()
    size = disk_bytes(tmp_path)
    states.put("a", bytes(b"1" * 100))
    assert not states.dirty
    states.sync()
    assert disk_bytes(tmp_path) == size
    states.put("a", b"3" * 100)
    assert states.dirty == {"a"}
    states.sync()
    assert size < disk_bytes(tmp_path) < 2 * size


def test_a_state_larger_than_the_limit_does_not_drive_out_the_others(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 100)
    states.put("small", b"1" * 50)
    states.put("large", b"2" * 101)
    assert states.dirty == {"small"}
    assert states.get("large") == b"2" * 101
    assert states.memory_bytes == 50


def test_a_buffer_changed_after_put_changes_nothing(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 100)
    buffer = bytearray(b"before")
    states.put("a", buffer)  # pyright: ignore[reportArgumentType]
    buffer[:] = b"after!"
    assert states.get("a") == b"before"


def test_disk_use_stays_bounded_when_states_are_overwritten_without_end(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 0, pack_bytes=10_000)
    draw = random.Random(0)
    clients = [f"{i}" for i in range(20)]
    for client in clients:
        states.put(client, draw.randbytes(1000))
    for _ in range(60):
        for client in draw.sample(clients, 3):
            states.put(client, draw.randbytes(1000))
        prefixes = states.sync()
        states.retain({prefix.number for prefix in prefixes})
        assert disk_bytes(tmp_path) <= 2 * 20 * 1100 + 2 * 11_100


def test_disk_use_stays_bounded_without_any_checkpoint(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 0, pack_bytes=2000)
    for i in range(500):
        states.put("only", f"{i}".encode() * 100)
        assert disk_bytes(tmp_path) < 5000


def test_packs_that_a_checkpoint_names_stay_until_it_is_gone(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 0, pack_bytes=1)
    states.put("a", b"old")
    (old,) = states.sync()
    states.retain([old.number])
    states.put("a", b"new")
    (new,) = states.sync()
    states.retain([old.number, new.number])
    ((_, location),) = packs.scan(tmp_path, old)
    assert packs.read(tmp_path, "a", location) == b"old"
    states.retain([new.number])
    assert packs.pack_numbers(tmp_path) == [new.number]


def test_the_state_before_a_round_stays_on_disk_until_the_next_one(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 0, pack_bytes=1, repeatable=True)
    states.put("a", b"old")
    states.begin(1)
    for blob in (b"new", b"newer", b"newest"):
        states.put("a", blob)
        states.put("b", blob)
        states.sync()
        states.retain([])
        assert (states.before("a"), states.before("b"), states.get("a")) == (b"old", None, blob)
    states.begin(2)
    states.retain([])
    assert (states.before("a"), states.before("b"), len(packs.pack_numbers(tmp_path))) == (b"newest", b"newest", 2)


def test_what_the_server_keeps_of_a_client_is_no_state_of_it(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 100)
    OnServer(states).put("a", b"kept")
    assert states.get("a") is None and states.clients() == [] and OnServer(states).get("a") == b"kept"
    states.put("a", b"own")
    assert states.clients() == ["a"] and OnServer(reopened(states, 100)).get("a") == b"kept"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Bytes that still fit; unlimited at first."""
    room = {"bytes": 10**9}
    whole = os.pwrite

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        if not room["bytes"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = whole(file, data[: room["bytes"]], offset)
        room["bytes"] -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    yield room


@pytest.mark.parametrize("left", [0, 1, 60, 80])
def test_a_full_disk_loses_no_state_and_what_was_half_written_is_cut_off(tmp_path: Path, full_disk: dict[str, int], left: int) -> None:
    states = ClientStates(tmp_path, 100)
    for client in "abcd":
        states.put(client, client.encode() * 50)
    size = disk_bytes(tmp_path)
    full_disk["bytes"] = left
    with pytest.raises(RunFailed, match="No space left"):
        states.put("e", b"e" * 50)
    assert disk_bytes(tmp_path) == size
    with pytest.raises(RunFailed, match="No space left"):
        states.sync()
    full_disk["bytes"] = 10**9
    assert [states.get(client) for client in "abcde"] == [client.encode() * 50 for client in "abcde"]
    again = reopened(states, 1000)
    assert [again.get(client) for client in "abcde"] == [client.encode() * 50 for client in "abcde"]


def test_a_state_damaged_on_disk_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 0)
    states.put("a/b", b"1" * 100)
    states.put("c", b"2" * 100)
    pack = packs.pack_path(tmp_path, 1)
    data = bytearray(pack.read_bytes())
    data[120] ^= 1
    pack.write_bytes(data)
    with pytest.raises(RunFailed, match=r"client 'a/b' .*00000001\.pack.*damaged"):
        states.get("a/b")
    assert states.get("c") == b"2" * 100
    pack.unlink()
    with pytest.raises(RunFailed, match="No such file"):
        states.get("c")


def test_a_record_of_another_client_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, 0)
    states.put("a", b"same")
    states.put("b", b"same")
    with pytest.raises(packs.PackError, match="'b'"):
        packs.read(tmp_path, "b", states._where["a"])


def test_memory_beside_the_states_is_below_a_kilobyte_a_client(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        states = ClientStates(tmp_path, 10_000)
        for i in range(3000):
            states.put(f"client-{i:05d}", bytes(500))
        states.sync()
        kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/fibecfed/engine/*")])
    finally:
        tracemalloc.stop()
    used = sum(trace.size for trace in kept.traces)  # of the engine's own lines: whatever else runs in this process does not count
    assert 3000 * 100 < used < 3000 * 700
    assert len(states) == 3000
