"""The server's side of an exchange: carries bytes to resident clients through Flower's grid, and brings their answers or failures back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from flwr.app import Message  # pyright: ignore[reportMissingImports]

from ...core.errors import RunFailed
from ...core.trees import checksum
from ...core.types import ClientId, Failure, Params, Round
from ...core.wire import WireError, decode, encode
from ..failures import printable
from ..options import CLIENT_NAME, EXPECTED_NAME
from ..simulator import Action
from .agreement import digest, disagreements, table_of
from .envelope import Finish, Hello, Reply, Request, packed, unpacked
from .relay import OPTIONS, blob_of, content
from .resident import Start

POLL_S = 0.5
HELLO_S = 60.0
DAY_S = 86400.0
"""How long an answer is waited for where no deadline is set."""

_NO_ROUND = Round("", 0, 0, 0)


class Grid(Protocol):
    """What is used of Flower's grid."""

    def get_node_ids(self) -> Any: ...

    def push_messages(self, messages: Any) -> Any: ...

    def pull_messages(self, message_ids: Any) -> Any: ...


@dataclass(frozen=True)
class Seat:
    """A client as it introduced itself.

    Attributes:
        node: Flower's number of the SuperNode it sits behind, which changes when that starts again.
    """

    node: int
    hello: Hello


class FlowerTransport:
    """Clients by their stable names, wherever Flower says they are now. Implements `engine.simulator.Transport`.

    A client is greeted before it is first asked, and again after each failure: what sits behind a SuperNode may have changed. A greeting
    tells it the round that the server is at, so that it forgets states of rounds that a resumed run has not reached yet.

    Args:
        run: 16 hexadecimal digits, the same over all resumptions.
        config: the configuration's keys and values that a client must share.
        completed: rounds completed before.
        say: is told in a sentence what the user should know.
    """

    def __init__(
        self, grid: Grid, run: str, config: Mapping[str, Any], versions: Mapping[str, str], completed: int, say: Callable[[str], None]
    ) -> None:
        self.grid = grid
        self.run = run
        self.config = dict(config)
        self.versions = dict(versions)
        self.say: Callable[[str], None] = lambda text: say(printable(text))  # clients chose parts of it
        self._hash = digest(self.config)
        self._at = completed
        self._seats: dict[ClientId, Seat] = {}
        self._strangers: dict[int, str] = {}  # nodes that cannot take part, with the reason
        self._initial: Params = {}
        self._notes: dict[ClientId, Mapping[str, Any]] = {}
        self._known: dict[ClientId, str] = {}  # the identity that each name had first

    def wait_for(self, clients: int, names: Sequence[ClientId] | None, wait_s: float) -> tuple[ClientId, ...]:
        """The ids of the federation's clients, sorted: `names` if given, else those of the first `clients` that introduce themselves.

        Args:
            names: all of them are waited for; after `wait_s` one is enough, and the others may come later. Who is missing is told once.

        Raises:
            RunFailed: too few; with what was said to those that were refused.
        """
        end = time.monotonic() + wait_s
        told = False
        while True:
            self._greet()
            here = sorted(name for name in self._seats if names is None or name in names)
            late = time.monotonic() > end
            if names is not None and (len(here) == len(names) or (late and here)):
                return tuple(sorted(names))
            if names is None and len(here) >= clients:
                return tuple(here[:clients])
            if late:
                refused = "".join(f". Refused: {reason}" for reason in self._strangers.values())
                raise RunFailed(f"after {wait_s:g} s {len(here)} of {clients} clients are here ({', '.join(here) or 'none'}){refused}")
            if names is not None and not told:
                self.say(f"waiting up to {wait_s:g} s for {', '.join(sorted(set(names) - set(here)))}")
                told = True
            time.sleep(2 * POLL_S)

    def start_from(self, params: Params) -> None:
        """Set the trainable tensors that every client must start from."""
        self._initial = params

    def exchange(
        self,
        action: Action,
        now: Round,
        requests: Mapping[ClientId, bytes],
        timeout_s: float | None = None,
        max_bytes: int | None = None,
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """Each reply as it comes, and a `Failure` for each client that is not connected, refuses, fails, or is late.

        Bytes that are no reply of ours are handed on as they are, for the loop to refuse and to count.

        Args:
            timeout_s: for the whole exchange; an answer that comes later is never read.
            max_bytes: not used: Flower has taken in the whole reply before it shows it.
        """
        timeout_s = DAY_S if timeout_s is None else timeout_s
        end = time.monotonic() + timeout_s
        self._at = now.number if action == "train" else now.number + 1
        if requests.keys() - self._seats.keys():
            self._greet(end)
        self._start_alike(requests, end)
        asked = {client: self._request(action, client, now, blob) for client, blob in requests.items() if client in self._seats}
        for client in requests.keys() - asked.keys():
            reasons = "; ".join(self._strangers.values())
            yield client, Failure(f"client {client} is not connected" + (f" ({reasons})" if reasons else ""))
        yield from self._ask(asked, end, timeout_s)

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """Bytes of initial tensors that clients had to be sent since this was last asked; their own notes stay with them."""
        notes, self._notes = self._notes, {}
        return notes

    def finish(self, last: Mapping[ClientId, Finish], now: Round, timeout_s: float) -> Mapping[ClientId, str]:
        """Have each client save its own adapter; the checksum of each that has one. Who does not answer is only told to the user."""
        end = time.monotonic() + timeout_s
        self._at = now.number + 1
        self._greet(end)
        asked = {client: self._request("finish", client, now, encode(last[client])) for client in last if client in self._seats}
        digests: dict[ClientId, str] = {}
        for client in sorted(last.keys() - asked.keys()):
            self.say(f"client {client} is not connected and has not saved its own model")
        for client, reply in self._ask(asked, end, timeout_s):
            if isinstance(reply, Failure):
                self.say(f"its own model may not be saved: {reply.reason}")
            elif reply:
                digests[client] = reply.decode(errors="replace")
        return digests

    # ---- who is where

    def _greet(self, end: float | None = None) -> None:
        """Ask every SuperNode that is not known yet who sits behind it."""
        nodes = set(self.grid.get_node_ids())
        self._seats = {name: seat for name, seat in self._seats.items() if seat.node in nodes}
        self._strangers = {node: reason for node, reason in self._strangers.items() if node in nodes}
        new = nodes - {seat.node for seat in self._seats.values()}
        own = json.dumps(self.config, sort_keys=True).encode()
        request = Request("hello", self.run, "", self._hash, "", 0, 0, self._at, packed(own))
        until = min(time.monotonic() + HELLO_S, end or float("inf"))
        for node, reply in self._send({node: (encode(request), "query") for node in sorted(new)}, until):
            self._strangers.pop(node, None)
            problem = reply.reason if isinstance(reply, Failure) else self._introduced(node, reply)
            if problem is not None:
                if self._strangers.get(node) != problem:
                    self.say(problem)
                self._strangers[node] = problem

    def _introduced(self, node: int, blob: bytes) -> str | None:
        """Seat a client that answered a greeting; or why it cannot take part."""
        try:
            reply = decode(Reply, blob)
            hello = decode(Hello, unpacked(reply.payload)) if reply.status == "done" else None
        except WireError as error:
            return f"a SuperNode's client answered with what is no greeting: {error}"
        if hello is None:
            return f"client {reply.client} refused: {reply.reason}"
        if not re.fullmatch(CLIENT_NAME, hello.name):
            return f"a client calls itself {hello.name[:80]!r}, {EXPECTED_NAME}; start it with another --name"
        differing = disagreements(self.config, table_of(hello.config))
        if differing:
            return f"client {hello.name} has another configuration: {differing}"
        if self._known.setdefault(hello.name, hello.identity) != hello.identity:
            return f"two clients are called {hello.name}; start one of them with another --name"
        told = table_of(hello.versions)
        for name, version in self.versions.items():
            if told.get(name) != version:
                self.say(f"client {hello.name} has {name} {told.get(name)}, the server {version}: the last bits may differ")
        self._seats[hello.name] = Seat(node, hello)
        return None

    def _start_alike(self, requests: Mapping[ClientId, bytes], end: float) -> None:
        """Send the initial tensors to those whose own draws gave others, and note their bytes."""
        own = checksum(self._initial)
        blob = encode(Start(self._initial))
        differing = [client for client in requests if client in self._seats and self._seats[client].hello.initial != own]
        asked = {client: self._request("start", client, _NO_ROUND, blob) for client in differing}
        limit_s = min(HELLO_S, max(0.0, end - time.monotonic()))  # who is slow here must not cost the others the round
        for client, reply in list(self._ask(asked, time.monotonic() + limit_s, limit_s)):
            if isinstance(reply, Failure):
                self._seats.pop(client, None)
                continue
            seat = self._seats[client]
            self._seats[client] = Seat(seat.node, replace(seat.hello, initial=own))
            self._notes[client] = {"initial_bytes": len(blob)}
            self.say(f"client {client} initialised differently; sent the server's initial parameters ({len(blob)} bytes)")

    # ---- one exchange

    def _request(self, action: str, client: ClientId, now: Round, payload: bytes) -> Request:
        return Request(action, self.run, client, self._hash, now.phase, now.index, now.num_rounds, now.number, packed(payload))

    def _ask(self, asked: Mapping[ClientId, Request], end: float, timeout_s: float | None) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """The payload of each client's reply. One that fails is greeted before it is asked again; one that is late is only slow."""
        of = {self._seats[client].node: client for client in asked}
        kinds = {"train": "train", "evaluate": "evaluate"}
        blobs = {self._seats[client].node: (encode(request), kinds.get(request.action, "query")) for client, request in asked.items()}
        for node, blob in self._send(blobs, end):
            client = of.pop(node)
            reply = blob if isinstance(blob, Failure) else self._opened(client, asked[client], blob)
            if isinstance(reply, Failure):
                self._seats.pop(client, None)
                reply = Failure(f"client {client}: {reply.reason}")
            yield client, reply
        for client in sorted(of.values()):
            yield client, Failure(f"client {client} did not answer within {timeout_s:g} s")

    def _opened(self, client: ClientId, request: Request, blob: bytes) -> bytes | Failure:
        """The payload of the reply to `request`."""
        try:
            reply = decode(Reply, blob)
            payload = unpacked(reply.payload)
        except WireError:
            return blob
        if reply.status == "refused" and (table := table_of(payload.decode(errors="replace"))):
            return Failure(f"refused, since it has another configuration: {disagreements(self.config, table)}")
        if reply.status != "done":
            return Failure(f"{reply.status}: {reply.reason}"[:1000])
        told = (reply.action, reply.run, reply.client, reply.number)
        if told != (request.action, self.run, client, request.number):
            return Failure(f"answered something else than what it was asked: {told}")
        return payload

    def _send(self, blobs: Mapping[int, tuple[bytes, str]], end: float) -> Iterator[tuple[int, bytes | Failure]]:
        """Bytes and kind of message for each node; what each answers before `end`, as it comes."""
        left_s = max(1.0, end - time.monotonic())
        messages = [
            Message(content(blob, timeout_s=left_s), dst_node_id=node, message_type=kind, ttl=left_s)
            for node, (blob, kind) in blobs.items()
        ]
        if not messages:
            return
        waiting = {number: node for number, node in zip(self.grid.push_messages(messages), blobs, strict=False) if number}
        for node in blobs.keys() - waiting.values():
            yield node, Failure("Flower did not take the message; it may be too large")
        while waiting and time.monotonic() < end:
            for reply in list(self.grid.pull_messages(list(waiting))):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    yield node, _bytes_of(reply)
            if waiting:
                time.sleep(POLL_S)


def _bytes_of(reply: Message) -> bytes | Failure:
    if reply.has_error():
        return Failure(f"Flower could not get an answer ({reply.error.reason or f'code {reply.error.code}'})")
    try:
        error = reply.content[OPTIONS].get("error") if OPTIONS in reply.content else None  # pyright: ignore[reportAttributeAccessIssue]
        return Failure(str(error)[:1000]) if error else blob_of(reply)
    except ValueError as error:
        return Failure(str(error))
