"""The states of clients: recently used ones in memory, the rest in pack files.

Memory holds at most a given number of bytes of states, and about 300 bytes for each client that ever had one. A state is *dirty* while it
lies in memory alone. `sync` writes the dirty ones and flushes; what it returns, a few packs and how much of each, is all that a checkpoint
has to remember, however many clients there are.

Where a round may be asked of a client again, the record of its state before the round is *held*: it stays on disk until the next round.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import RunFailed
from ..core.files import sync_folder
from ..core.terminal import one_line
from ..core.types import ClientId
from . import packs
from .packs import Location, PackError, PackPrefix

logger = logging.getLogger(__name__)

NOT_CLIENTS = "\udc00"
"""Before every name in the store that is not a client's; halves of pairs like this are in no text that was ever decoded."""
_ON_SERVER = f"{NOT_CLIENTS}server{NOT_CLIENTS}"  # before the name of a client

PACK_BYTES = 32 * 2**20
"""A pack that has reached this length is not appended to any more."""


class ClientStates:
    """Bytes by client, paged to `folder`. No file is ever changed except by appending to it, so that what a checkpoint names stays.

    A pack of which less than half is still current has that part copied behind the newest records; a pack with nothing current in it is
    removed once no checkpoint names it. The packs thus take at most about twice the states' own bytes, beside what old checkpoints name.

    Args:
        repeatable: whether `before` gives the states before a round to clients that are asked again in it, as `begin` marks them. Else it
            gives the newest ones, and nothing is held.
    """

    def __init__(self, folder: Path, memory_limit_bytes: int, pack_bytes: int = PACK_BYTES, *, repeatable: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._limit = memory_limit_bytes
        self._pack_bytes = pack_bytes
        self._memory: OrderedDict[ClientId, bytes] = OrderedDict()  # least recently used first
        self._memory_bytes = 0
        self._dirty: dict[ClientId, None] = {}  # each client is either here, and in memory, or in _where
        self._where: dict[ClientId, Location] = {}
        self._packs: dict[int, PackPrefix] = {}  # in the order of writing, which decides between two records of a client
        self._live: dict[int, int] = {}  # bytes of current records, by pack
        self._pinned: frozenset[int] = frozenset()
        self._repeatable = repeatable
        self._round: int | None = None
        self._held: dict[ClientId, Location | None] = {}  # records before the round under way, of clients with a newer state
        self._unflushed: set[int] = set()
        self._unlisted = False  # a pack was created whose name may not be on the device yet
        self._open: int | None = None  # never a pack of an earlier process: there may be more in it than a checkpoint knows of
        self._next = max(packs.pack_numbers(folder), default=0) + 1

    @property
    def memory_bytes(self) -> int:
        """Bytes of the states that lie in memory now."""
        return self._memory_bytes

    @property
    def dirty(self) -> frozenset[ClientId]:
        """Clients whose state lies in memory alone."""
        return frozenset(self._dirty)

    def __contains__(self, client: ClientId) -> bool:
        return client in self._dirty or client in self._where

    def __len__(self) -> int:
        return len(self._dirty) + len(self._where)

    def clients(self) -> list[ClientId]:
        """Every client that has a state of its own, sorted."""
        return sorted(client for client in (*self._dirty, *self._where) if not client.startswith(NOT_CLIENTS))

    def get(self, client: ClientId) -> bytes | None:
        """The state of `client`; None if it has none.

        Raises:
            RunFailed: the disk no longer holds what was written, or is full.
        """
        if client in self._memory:
            self._memory.move_to_end(client)
            return self._memory[client]
        if client not in self._where:
            return None
        blob = self._read(client, self._where[client])
        if len(blob) <= self._limit:
            self._remember(client, blob)
            self._evict()
        return blob

    def begin(self, number: int) -> None:
        """The round `number` is under way from now on."""
        if number != self._round:
            self._round = number
            self._held.clear()

    def before(self, client: ClientId) -> bytes | None:
        """The state of `client` before the round under way; None if it had none.

        Raises:
            RunFailed: as for `get`.
        """
        if client not in self._held:
            return self.get(client)
        location = self._held[client]
        return None if location is None else self._read(client, location)

    def put(self, client: ClientId, blob: bytes) -> None:
        """Make `blob` the state of `client`.

        Raises:
            RunFailed: the disk is full.
        """
        blob = bytes(blob)
        if self._repeatable and client not in self._held:
            if client in self._dirty:
                self._write(client, self._memory[client])
                del self._dirty[client]
            self._held[client] = self._where.get(client)
        unchanged = self._memory.get(client) == blob
        self._remember(client, blob)
        if not unchanged:
            self._forget_location(client)
            self._dirty[client] = None
        if len(blob) > self._limit:  # everything else would have to go before it
            self._let_go(client)
        self._evict()

    def sync(self) -> tuple[PackPrefix, ...]:
        """Write every dirty state and flush; the packs that now hold every client's state, oldest first.

        Raises:
            RunFailed: the disk is full.
        """
        for client in list(self._dirty):
            self._write(client, self._memory[client])
            del self._dirty[client]
        self._compact()
        try:
            for number in sorted(self._unflushed):
                packs.sync(self.folder, number)
            if self._unlisted:
                sync_folder(self.folder)
        except OSError as error:
            raise self._failed("flush", error) from error
        self._unflushed.clear()
        self._unlisted = False
        return tuple(prefix for number, prefix in self._packs.items() if self._live[number])

    def retain(self, pinned: Collection[int]) -> None:
        """Remove the packs with nothing current in them, except those that checkpoints name (`pinned`)."""
        self._pinned = frozenset(pinned)
        self._remove_dead()

    def restore(self, prefixes: Collection[PackPrefix], where: Mapping[ClientId, Location], pinned: Collection[PackPrefix]) -> None:
        """Take over what a checkpoint named; `pinned` are the packs that other checkpoints name. Packs that none names are removed."""
        self._where = dict(where)
        self._round = None
        self._held.clear()
        self._packs = {prefix.number: prefix for prefix in sorted((*pinned, *prefixes), key=lambda prefix: prefix.number)}
        self._packs.update({prefix.number: prefix for prefix in prefixes})
        self._live = dict.fromkeys(self._packs, 0)
        for location in self._where.values():
            self._live[location.pack] += location.size
        for number in packs.pack_numbers(self.folder):
            if number not in self._packs:
                packs.pack_path(self.folder, number).unlink()
        self.retain([prefix.number for prefix in (*pinned, *prefixes)])

    def _remember(self, client: ClientId, blob: bytes) -> None:
        self._memory_bytes += len(blob) - len(self._memory.get(client, b""))
        self._memory[client] = blob
        self._memory.move_to_end(client)

    def _evict(self) -> None:
        while self._memory_bytes > self._limit:
            self._let_go(next(iter(self._memory)))

    def _let_go(self, client: ClientId) -> None:
        if client in self._dirty:
            self._write(client, self._memory[client])
            del self._dirty[client]
        self._memory_bytes -= len(self._memory.pop(client))

    def _read(self, client: ClientId, location: Location) -> bytes:
        try:
            return packs.read(self.folder, client, location)
        except PackError as error:
            raise RunFailed(f"the state of client {client!r} cannot be read back from {self.folder}: {error}; resume the run") from error

    def _write(self, client: ClientId, blob: bytes) -> None:
        if self._open is None or self._packs[self._open].length >= self._pack_bytes:
            self._remove_dead()
            self._open, self._next = self._next, self._next + 1
            self._packs[self._open], self._live[self._open] = PackPrefix(self._open), 0
            self._unlisted = True
        number = self._open
        self._unflushed.add(number)
        logger.debug("the state of client %s goes to disk: %d bytes", one_line(client.rpartition(NOT_CLIENTS)[2]), len(blob))
        try:
            self._packs[number], location = packs.append(self.folder, self._packs[number], client, blob)
        except OSError as error:
            raise self._failed("write", error) from error
        self._forget_location(client)
        self._where[client] = location
        self._live[number] += location.size

    def _forget_location(self, client: ClientId) -> None:
        location = self._where.pop(client, None)
        if location is not None:
            self._live[location.pack] -= location.size

    def _compact(self) -> None:
        sparse = {number for number, prefix in self._packs.items() if number != self._open and 0 < 2 * self._live[number] < prefix.length}
        if sparse:
            logger.debug("%s: %d packs that are mostly out of date are copied together", self.folder, len(sparse))
            for client in [client for client, location in self._where.items() if location.pack in sparse]:
                self._write(client, self._read(client, self._where[client]))

    def _remove_dead(self) -> None:
        needed = self._pinned | {location.pack for location in self._held.values() if location is not None}
        for number in [number for number, live in self._live.items() if not live and number not in needed]:
            packs.pack_path(self.folder, number).unlink(missing_ok=True)
            del self._packs[number], self._live[number]
            self._unflushed.discard(number)
            if number == self._open:
                self._open = None

    def _failed(self, what: str, error: OSError) -> RunFailed:
        return RunFailed(
            f"could not {what} the states of clients in {self.folder}: {error.strerror or error}; free some disk space and resume the run"
        )


class StatesAt:
    """The clients' states that a checkpoint names, to be read and not changed."""

    def __init__(self, folder: Path, where: Mapping[ClientId, Location]) -> None:
        self._folder = folder
        self._where = where

    def clients(self) -> list[ClientId]:
        """Every client that has a state of its own, sorted."""
        return sorted(client for client in self._where if not client.startswith(NOT_CLIENTS))

    def get(self, client: ClientId) -> bytes | None:
        """The state of `client`; None if it has none.

        Raises:
            RunFailed: the disk no longer holds what was written.
        """
        if client not in self._where:
            return None
        try:
            return packs.read(self._folder, client, self._where[client])
        except PackError as error:
            raise RunFailed(f"the state of client {client!r} cannot be read back from {self._folder}: {error}; resume the run") from error

    def begin(self, number: int) -> None:
        """No round is under way."""

    def before(self, client: ClientId) -> bytes | None:
        """As `get`."""
        return self.get(client)

    def put(self, client: ClientId, blob: bytes) -> None:
        """Nothing is trained from here on.

        Raises:
            TypeError: always.
        """
        raise TypeError("these states belong to a checkpoint and cannot be replaced")


@dataclass(frozen=True)
class OnServer:
    """What the server keeps of each client, in the store of the clients' own states: under its limit, and in the same checkpoints."""

    states: ClientStates

    def get(self, client: ClientId) -> bytes | None:
        """What is kept of `client`; None if nothing is."""
        return self.states.get(_ON_SERVER + client)

    def put(self, client: ClientId, blob: bytes) -> None:
        """Keep `blob` of `client`."""
        self.states.put(_ON_SERVER + client, blob)
