"""Which client is behind which SuperNode: handshakes run in the background, so that one that never answers costs the others no time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...core.trees import checksum
from ...core.types import ClientId, Failure, Params, Round
from ...core.wire import WireError, decode, encode
from ..options import CLIENT_NAME, EXPECTED_NAME
from .agreement import disagreements, shown, table_of
from .envelope import Hello, Reply, unpacked
from .names import Node, misnamed
from .post import Letter, Post
from .resident import Start

HANDSHAKE_S = 60.0
"""Time limit of a handshake."""

REST_S = 2.0
"""A handshake with a SuperNode whose client could not be reached, or was rejected, is repeated after this time at the earliest."""

LONGEST_REST_S = 900.0
"""Handshakes with a SuperNode that does not answer at all become less and less frequent, up to such a pause."""

START_S = 600.0
"""Time limit for a client to take initial tensors."""

_NO_ROUND = Round("", 0, 0, 0)


@dataclass(frozen=True)
class Connection:
    """A client as it introduced itself.

    Attributes:
        node: Flower's number of the SuperNode it sits behind, which changes when that starts again.
    """

    node: int
    hello: Hello


class Connections:
    """Who is where. Every SuperNode gets a handshake whose client is not known, or has failed since: another may be there now.

    Nothing here waits. Handshakes, and initial tensors for those whose own draws gave others, stay under way from one exchange to the next;
    whoever waits for them asks `is_expecting` whether that is worth while, and says with `stop_waiting` that it was enough: who has
    not answered by then is registered when it does, but is not waited for again.

    Attributes:
        at: the round that the server is at; a handshake carries it, and clients forget states of rounds that a resumed run has not reached.
        strangers: SuperNodes whose client cannot take part, with the reason.
        notes: bytes of initial tensors that clients had to be sent.
    """

    def __init__(self, post: Post, versions: Mapping[str, str], at: int, say: Callable[[str], None], unregistered_names: bool) -> None:
        self.at = at
        self.strangers: dict[int, str] = {}
        self.notes: dict[ClientId, Mapping[str, Any]] = {}
        self._post = post
        self._versions = dict(versions)
        self._say = say
        self._unregistered_names = unregistered_names
        self._nodes: Mapping[int, Node] = {}
        self._connections: dict[ClientId, Connection] = {}
        self._open: dict[str, Letter] = {}
        self._rested: dict[int, float] = {}  # when a handshake may be repeated
        self._unanswered: dict[int, int] = {}  # consecutive handshakes without an answer
        self._given_up: set[int] = set()  # SuperNodes that are not waited for
        self._late: dict[ClientId, str] = {}  # what clients did not do in time that have not answered a handshake since
        self._doors: dict[int, ClientId] = {}  # who was last behind each SuperNode
        self._known: dict[ClientId, str] = {}  # the identity that each name had first
        self._initial: Params = {}
        self._checksum: str | None = None

    def start_from(self, params: Params) -> None:
        """Set the trainable tensors that every client must start from."""
        self._initial, self._checksum = params, checksum(params)

    # ---- who is here

    def names(self) -> list[ClientId]:
        """Clients that have introduced themselves and are connected."""
        return sorted(self._connections)

    def node_of(self, client: ClientId) -> int | None:
        """Where a client can be asked now; None: nowhere."""
        connection = self._connections.get(client)
        if connection is None:
            return None
        initial = connection.hello.initial
        return connection.node if self._checksum is None or initial in ("", self._checksum) else None

    def absence(self, client: ClientId) -> Failure:
        """Why a client cannot be asked."""
        if client in self._connections:
            return Failure(f"client {client} has not taken the server's initial tensors yet")
        if client in self._late:
            return Failure(f"client {client} has been silent since it {self._late[client]}")
        reasons = list(self.strangers.values())
        silent = len({letter.node for letter in self._open.values()} | self._unanswered.keys() - self.strangers.keys())
        if silent:
            reasons.append(f"{silent} connected {'SuperNode has' if silent == 1 else 'SuperNodes have'} not answered a handshake")
        return Failure(f"client {client} is not connected" + (f" ({'; '.join(reasons)})" if reasons else ""))

    def lose(self, client: ClientId, node: int, late: str | None = None) -> None:
        """Do not ask a client behind `node` again until it has answered a handshake.

        Args:
            late: what it did not do in time; it may be at work still, and is not waited for. None: it failed.
        """
        if client in self._connections and self._connections[client].node == node:
            del self._connections[client]
        self._rested.pop(node, None)
        if late is None:
            self._given_up.discard(node)
        else:
            self._given_up.add(node)
            self._late[client] = late

    # ---- handshakes

    def under_way(self) -> Collection[str]:
        """Numbers of the messages whose replies are for `take`; those whose time is over are given up here."""
        self._expire(time.monotonic())
        return self._open.keys()

    def is_expecting(self) -> bool:
        """Whether an answer is under way that is worth waiting for."""
        return any(letter.node not in self._given_up for letter in self._open.values())

    def stop_waiting(self) -> None:
        """Whose answer is under way has been waited for long enough."""
        self._given_up.update(letter.node for letter in self._open.values())

    def handshake(self) -> None:
        """Start a handshake with every connected SuperNode that needs one."""
        now, self._nodes = time.monotonic(), self._post.nodes()
        nodes = set(self._nodes)
        self._forget_all_but(nodes)
        self._expire(now)
        busy = {letter.node for letter in self._open.values()}
        connected = {connection.node for connection in self._connections.values()}
        new = [node for node in sorted(nodes - busy - connected) if self._rested.get(node, now) <= now]
        own = json.dumps(self._post.config, sort_keys=True).encode()
        hello = replace(self._post.request("hello", "", _NO_ROUND, own), number=self.at)
        self._track(new, self._post.send(dict.fromkeys(new, hello), HANDSHAKE_S))

    def start_alike(self, clients: Iterable[ClientId]) -> None:
        """Send the initial tensors to those of `clients` whose own draws gave others."""
        busy = {letter.node for letter in self._open.values()}
        nodes = {
            connection.node: c
            for c in clients
            if (connection := self._connections.get(c)) and self.node_of(c) is None and connection.node not in busy
        }
        if nodes:
            blob = encode(Start(self._initial))
            requests = {node: self._post.request("start", client, _NO_ROUND, blob) for node, client in nodes.items()}
            self._track(requests, self._post.send(requests, START_S))

    def take(self, number: str, reply: bytes | Failure) -> None:
        """An answer to a message under way."""
        letter = self._open.pop(number)
        node, client = letter.node, letter.request.client
        self._unanswered.pop(node, None)
        if letter.request.action == "hello":
            problem = reply.reason if isinstance(reply, Failure) else self._introduced(node, reply)
        else:
            opened = reply if isinstance(reply, Failure) else self._post.opened(letter.request, reply)
            problem = f"client {client}: {opened.reason}" if isinstance(opened, Failure) else None
            if problem is None:
                self._started(client, node)
            else:
                self.lose(client, node)
        self._judge(node, problem)

    def _track(self, nodes: Iterable[int], sent: Iterable[Letter | Failure]) -> None:
        for node, letter in zip(nodes, sent, strict=True):
            if isinstance(letter, Failure):
                self._judge(node, letter.reason)
            else:
                self._open[letter.number] = letter

    def _judge(self, node: int, problem: str | None) -> None:
        """A SuperNode answered; `problem`: why its client cannot take part, which is reported once."""
        before = self.strangers.pop(node, None)
        if problem is None:
            self._given_up.discard(node)
            self._rested.pop(node, None)
            return
        if before != problem:
            self._say(problem)
        self.strangers[node] = problem
        self._given_up.add(node)
        self._rested[node] = time.monotonic() + REST_S

    def _expire(self, now: float) -> None:
        """Forget the messages whose time is over, and let their SuperNodes rest the longer the more often that happened."""
        for letter in [letter for letter in self._open.values() if letter.expires <= now]:
            del self._open[letter.number]
            node, times = letter.node, self._unanswered.get(letter.node, 0)
            if letter.request.action == "start":
                self.lose(letter.request.client, node, "did not take the server's initial tensors in time")
            self._unanswered[node] = times + 1
            self._given_up.add(node)
            self._rested[node] = now + min(LONGEST_REST_S, HANDSHAKE_S * (2.0 ** min(times, 30) - 1))

    def _forget_all_but(self, nodes: set[int]) -> None:
        for client, connection in list(self._connections.items()):
            if connection.node not in nodes:
                del self._connections[client]
        self._open = {number: letter for number, letter in self._open.items() if letter.node in nodes}
        for node in self._doors.keys() - nodes:
            self._late.pop(self._doors.pop(node), None)
        for table in (self.strangers, self._rested, self._unanswered):
            for node in table.keys() - nodes:
                del table[node]
        self._given_up &= nodes

    def _introduced(self, node: int, blob: bytes) -> str | None:
        """Register a client that answered a handshake; or why it cannot take part."""
        try:
            reply = decode(Reply, blob)
            hello = decode(Hello, unpacked(reply.payload)) if reply.status == "done" else None
        except WireError as error:
            return f"a SuperNode's client did not answer a handshake with one: {error}"
        if hello is None:
            return f"client {reply.client[:80]} rejected: {reply.reason}"
        if not re.fullmatch(CLIENT_NAME, hello.name):
            return f"a client calls itself {hello.name[:80]!r}, {EXPECTED_NAME}; start it with another --name"
        if (foreign := misnamed(self._nodes[node], hello.name, self._unregistered_names)) is not None:
            return foreign
        differing = disagreements(self._post.config, table_of(hello.config))
        if differing:
            return f"client {hello.name} has another configuration: {differing}"
        if self._known.setdefault(hello.name, hello.identity) != hello.identity:
            return f"two clients are called {hello.name}; start one of them with another --name"
        told = table_of(hello.versions)
        for name, version in self._versions.items():
            if told.get(name) != version:
                own, ours = shown(told.get(name)), shown(version)
                self._say(f"client {hello.name} has {name} {own}, the server {ours}: results may differ in the last bits")
        self._connections = {name: connection for name, connection in self._connections.items() if connection.node != node}
        self._connections[hello.name] = Connection(node, hello)
        self._doors[node] = hello.name
        self._late.pop(hello.name, None)
        return None

    def _started(self, client: ClientId, node: int) -> None:
        """A client has taken the server's initial tensors."""
        connection = self._connections.get(client)
        if connection is None or connection.node != node:
            return
        size = len(encode(Start(self._initial)))
        self._connections[client] = Connection(node, replace(connection.hello, initial=self._checksum or ""))
        self.notes[client] = {"initial_bytes": size}
        self._say(f"client {client} initialised its trainable parameters differently; it was sent the server's ({size} bytes)")
