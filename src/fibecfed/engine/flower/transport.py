"""The server's side of an exchange: carries bytes to resident clients through Flower's grid, and brings their answers or failures back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...core.errors import RunFailed
from ...core.types import ClientId, Failure, Params, Round
from ...core.wire import encode
from ..failures import printable
from ..requests import OnDemand
from ..simulator import Action
from . import seats
from .envelope import Finish
from .post import Grid, Letter, Post

POLL_S = 0.5
DAY_S = 86400.0
"""How long an answer is waited for where no deadline is set."""

AT_ONCE = 16
"""Messages that are made and handed to Flower together."""

GREETING_SHARE = 0.1
"""At most this fraction of an exchange's time is waited for clients that are not known to be there, while others can be asked."""


class FlowerTransport:
    """Clients by their stable names, wherever Flower says they are now. Implements `engine.simulator.Transport`.

    There is a handshake with a client before it is first asked, and after each failure: what is behind a SuperNode may have changed.
    Clients that are there are asked at once; the others get a handshake meanwhile (see `seats`), and are asked as soon as they have
    answered it, if that is within `GREETING_SHARE` of the time and within `seats.HELLO_S`.

    Args:
        run: 16 hexadecimal digits, the same over all resumptions.
        config: the configuration's keys and values that a client must share.
        completed: rounds completed before.
        say: called with a sentence that the user should know.
    """

    def __init__(
        self, grid: Grid, run: str, config: Mapping[str, Any], versions: Mapping[str, str], completed: int, say: Callable[[str], None]
    ) -> None:
        self.say: Callable[[str], None] = lambda text: say(printable(text))  # clients chose parts of it
        self._post = Post(grid, run, config)
        self._seats = seats.Seats(self._post, versions, completed, lambda text: self.say(text))

    def wait_for(self, clients: int, names: Sequence[ClientId] | None, wait_s: float) -> tuple[ClientId, ...]:
        """The ids of the federation's clients, sorted: `names` if given, else those of the first `clients` that introduce themselves.

        Args:
            names: all of them are waited for; after `wait_s` one is enough, and the others may come later. Who is missing is reported once.

        Raises:
            RunFailed: too few; with what was said to those that were rejected.
        """
        begun = time.monotonic()
        told = False
        while True:
            self._seats.greet()
            list(self._fetch({}))
            here = [name for name in self._seats.names() if names is None or name in names]
            late = time.monotonic() > begun + wait_s
            if names is not None and (len(here) == len(names) or (late and here)):
                self._seats.stop_waiting()
                return tuple(sorted(names))
            if names is None and len(here) >= clients:
                self._seats.stop_waiting()
                return tuple(here[:clients])
            if late:
                refused = "".join(f". Rejected: {reason}" for reason in self._seats.strangers.values())
                raise RunFailed(
                    printable(f"after {wait_s:g} s {len(here)} of {clients} clients are here ({', '.join(here) or 'none'}){refused}")
                )
            if names is not None and not told and time.monotonic() > begun + seats.HELLO_S / 6:  # by then an idle client has answered
                self.say(f"waiting up to {wait_s:g} s for {', '.join(sorted(set(names) - set(here)))}")
                told = True
            time.sleep(POLL_S)

    def start_from(self, params: Params) -> None:
        """Set the trainable tensors that every client must start from."""
        self._seats.start_from(params)

    def exchange(
        self,
        action: Action,
        now: Round,
        requests: Mapping[ClientId, bytes],
        timeout_s: float | None = None,
        max_bytes: int | None = None,
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """Each reply as it comes, and a `Failure` for each client that is not connected, rejects, fails, or is late.

        Bytes that are no reply of ours are handed on as they are, for the loop to reject and to count.

        Args:
            timeout_s: for the whole exchange; an answer that comes later is never read.
            max_bytes: not used: Flower has taken in the whole reply before it shows it.
        """
        self._seats.at = now.number if action == "train" else now.number + 1
        yield from self._ask(action, now, requests, DAY_S if timeout_s is None else timeout_s)

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """Bytes of initial tensors that clients had to be sent since this was last asked; their own notes stay with them."""
        notes, self._seats.notes = self._seats.notes, {}
        return notes

    def finish(self, last: Mapping[ClientId, Finish], now: Round, timeout_s: float) -> Mapping[ClientId, str]:
        """Have each client save its own adapter; the checksum of each that has one. Who does not answer is only told to the user."""
        self._seats.at = now.number + 1
        digests: dict[ClientId, str] = {}
        for client, reply in self._ask("finish", now, OnDemand(list(last), lambda client: encode(last[client])), timeout_s):
            if isinstance(reply, Failure):
                self.say(f"client {client} may not have saved its own model: {reply.reason}")
            elif reply:
                digests[client] = reply.decode(errors="replace")
        return digests

    # ---- one exchange

    def _ask(
        self, action: str, now: Round, blobs: Mapping[ClientId, bytes], timeout_s: float
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """The payload of each client's reply. One that fails or is late gets a handshake before it is asked again."""
        end = time.monotonic() + timeout_s
        self._seats.greet()
        list(self._fetch({}))  # handshakes that were answered since the last exchange
        share = GREETING_SHARE if any(self._seats.node_of(client) is not None for client in blobs) else 1.0
        patience = time.monotonic() + min(seats.HELLO_S, share * (end - time.monotonic()))
        waiting, asked = dict.fromkeys(blobs), dict[str, Letter]()
        while True:
            self._seats.start_alike(waiting)
            here = [client for client in waiting if self._seats.node_of(client) is not None]
            for some in range(0, len(here), AT_ONCE):
                yield from self._send(action, now, OnDemand(here[some : some + AT_ONCE], blobs.__getitem__), asked, end)
            waiting = {client: None for client in waiting if client not in here}
            if waiting and (time.monotonic() >= patience or not self._seats.is_expecting()):
                self._seats.stop_waiting()
                yield from ((client, self._seats.absence(client)) for client in sorted(waiting))
                waiting.clear()
            if not waiting and not asked:
                return
            idle = True
            for letter, reply in self._fetch(asked):
                idle = False
                yield self._judged(letter, reply)
            if time.monotonic() >= end:
                break
            if idle:
                time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))
        for letter in sorted(asked.values(), key=lambda letter: letter.request.client):
            client = letter.request.client
            late = f"did not answer within {timeout_s:g} s"
            self._seats.lose(client, letter.node, late)
            yield client, Failure(f"client {client} {late}")
        yield from ((client, self._seats.absence(client)) for client in sorted(waiting))

    def _send(
        self, action: str, now: Round, blobs: Mapping[ClientId, bytes], asked: dict[str, Letter], end: float
    ) -> Iterator[tuple[ClientId, Failure]]:
        """Send to clients that are there, which belong to `asked` from then on; a `Failure` for each to which nothing can be sent."""
        nodes = {node: client for client in blobs if (node := self._seats.node_of(client)) is not None}
        requests = {node: self._post.request(action, client, now, blobs[client]) for node, client in nodes.items()}
        for (node, client), letter in zip(nodes.items(), self._post.send(requests, end - time.monotonic()), strict=True):
            if isinstance(letter, Failure):
                self._seats.lose(client, node)
                yield client, Failure(f"client {client}: {letter.reason}")
            else:
                asked[letter.number] = letter

    def _fetch(self, asked: dict[str, Letter]) -> Iterator[tuple[Letter, bytes | Failure]]:
        """Answers that have come to those of `asked`, which are taken out of it; answers to handshakes go to where they belong."""
        for number, reply in self._post.arrived({*asked, *self._seats.under_way()}):
            if number in asked:
                yield asked.pop(number), reply
            else:
                self._seats.take(number, reply)

    def _judged(self, letter: Letter, blob: bytes | Failure) -> tuple[ClientId, bytes | Failure]:
        client = letter.request.client
        reply = blob if isinstance(blob, Failure) else self._post.opened(letter.request, blob)
        if not isinstance(reply, Failure):
            return client, reply
        self._seats.lose(client, letter.node)
        return client, Failure(f"client {client}: {reply.reason}")
