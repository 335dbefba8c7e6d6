"""Messages through Flower's grid: requests to SuperNodes, each under a number of Flower's, and what came back for these numbers."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from flwr.app import Message  # pyright: ignore[reportMissingImports]

from ...core.types import ClientId, Failure, Round
from ...core.wire import WireError, decode, encode
from .agreement import digest, disagreements, table_of
from .envelope import Reply, Request, packed, unpacked
from .names import Node
from .relay import OPTIONS, blob_of, content

_KINDS = {"train": "train", **dict.fromkeys(("evaluate", "evaluate_both", "evaluate_global"), "evaluate")}
"""Flower's own kinds of messages, by action; "query" for every other."""

_LONGEST_REASON = 1000

_MARGIN_S = 5.0
"""Flower keeps a message longer than its reply is asked for, so that it does not report it as lost at just that moment."""


class Grid(Protocol):
    """What is used of Flower's grid."""

    def get_nodes(self) -> Any: ...

    def push_messages(self, messages: Any) -> Any: ...

    def pull_messages(self, message_ids: Any) -> Any: ...


@dataclass(frozen=True)
class Letter:
    """A request that is under way.

    Attributes:
        number: Flower's, by which its reply is fetched.
        node: Flower's number of the SuperNode.
        request: without its payload.
        expires: no reply is fetched after this, by time.monotonic().
    """

    number: str
    node: int
    request: Request
    expires: float


class Post:
    """Sends requests of one run and opens their replies. Never waits.

    Args:
        run: 16 hexadecimal digits, the same over all resumptions.
        config: the configuration's keys and values that a client must share.
    """

    def __init__(self, grid: Grid, run: str, config: Mapping[str, Any]) -> None:
        self.run = run
        self.config = dict(config)
        self._grid = grid
        self._hash = digest(self.config)

    def nodes(self) -> dict[int, Node]:
        """The SuperNodes that Flower holds for connected, by number; it notices after about a minute that one is gone."""
        return {node.node_id: Node(node.node_id, node.name, node.public_key) for node in self._grid.get_nodes()}

    def request(self, action: str, client: ClientId, now: Round, payload: bytes) -> Request:
        """A request of this run."""
        return Request(action, self.run, client, self._hash, now.phase, now.index, now.num_rounds, now.number, packed(payload))

    def send(self, requests: Mapping[int, Request], seconds: float) -> list[Letter | Failure]:
        """Hand requests to Flower, one for each node; in their order the letters, or a `Failure` where Flower did not take one.

        Args:
            seconds: how long each may take, there and back.
        """
        seconds = max(1.0, seconds)
        expires = time.monotonic() + seconds
        messages = [
            Message(
                content(encode(request), timeout_s=seconds),
                dst_node_id=node,
                message_type=_KINDS.get(request.action, "query"),
                ttl=seconds + _MARGIN_S,
            )
            for node, request in requests.items()
        ]
        numbers = list(self._grid.push_messages(messages)) if messages else []
        numbers += [None] * (len(messages) - len(numbers))  # Flower returns none at all where it finds them too large
        empty = packed(b"")
        return [
            Letter(number, node, replace(request, payload=empty), expires)
            if number
            else Failure("Flower did not accept the message; it may be too large")
            for number, (node, request) in zip(numbers, requests.items(), strict=True)
        ]

    def arrived(self, numbers: Collection[str]) -> Iterator[tuple[str, bytes | Failure]]:
        """The replies that have come by now, each with the number of its request, in the order of `numbers`."""
        come = {message.metadata.reply_to_message_id: message for message in self._grid.pull_messages(list(numbers))} if numbers else {}
        for number in numbers:
            if number in come:
                yield number, _bytes_of(come[number])

    def opened(self, request: Request, blob: bytes) -> bytes | Failure:
        """The payload of a reply to `request`. Bytes that are no reply of ours are handed on as they are."""
        try:
            reply = decode(Reply, blob)
            payload = unpacked(reply.payload)
        except WireError:
            return blob
        if reply.status == "refused" and (table := table_of(payload.decode(errors="replace"))):
            return Failure(f"rejected, since it has another configuration: {disagreements(self.config, table)}")
        if reply.status != "done":
            return Failure(f"{reply.status}: {reply.reason}"[:_LONGEST_REASON])
        told = (reply.action, reply.run, reply.client, reply.number)
        asked = (request.action, request.run, request.client, request.number)
        if told != asked:
            return Failure(f"its answer is for another request: got {told}, expected {asked}"[:_LONGEST_REASON])
        return payload


def _bytes_of(reply: Message) -> bytes | Failure:
    if reply.has_error():
        return Failure(f"Flower could not get an answer ({reply.error.reason or f'code {reply.error.code}'})")
    try:
        error = reply.content[OPTIONS].get("error") if OPTIONS in reply.content else None  # pyright: ignore[reportAttributeAccessIssue]
        return Failure(str(error)[:_LONGEST_REASON]) if error else blob_of(reply)
    except ValueError as error:
        return Failure(str(error))
