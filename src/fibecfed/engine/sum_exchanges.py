"""What both ways of summing without seeing a term have in common: texts by client, exchanges, and what a client remembers of a round."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.files import write_atomically
from ..core.json_text import from_json, to_json
from ..core.types import ClientId, Failure, Round
from ..core.wire import WireError, decode, encode, message
from ..privacy.cohorts import Cohorts
from ..privacy.fixed import Adding, Words
from ..secure.context import digest_of_broadcast
from ..secure.signed import Misled
from .summands import Summand, words_of
from .transport import Action, Transport, exchange

SUMS = "sums.json"
"""In a client's folder of a run: which sums its numbers are in."""

SUMMAND = "summand.safetensors"
"""And there: its numbers in the last one. Trained again they may differ in the last bits, and their difference would tell of the client."""


@message
class Told:
    """Names of clients, and a text of or for each."""

    names: tuple[str, ...]
    texts: tuple[str, ...] = ()


def told(table: Mapping[str, str]) -> bytes:
    """The bytes of a `Told`."""
    return encode(Told(tuple(table), tuple(table.values())))


def table_of(blob: bytes) -> dict[str, str]:
    """What `told` encoded.

    Raises:
        WireError: something else.
    """
    got = decode(Told, blob)
    if len(got.names) != len(got.texts) or len(set(got.names)) != len(got.names):
        raise WireError(f"got {len(got.texts)} texts for {len(got.names)} names, expected one for each")
    return dict(zip(got.names, got.texts, strict=True))


@dataclass
class SumPost:
    """The exchanges of one sum: bytes by client, and who failed in which."""

    transport: Transport
    now: Round
    timeout_s: float | None
    down: dict[ClientId, int] = field(default_factory=dict[ClientId, int])
    up: dict[ClientId, int] = field(default_factory=dict[ClientId, int])
    failures: dict[ClientId, str] = field(default_factory=dict[ClientId, str])

    def ask(self, action: Action, requests: Mapping[ClientId, bytes], longest: int = 2**26) -> Iterable[tuple[ClientId, bytes]]:
        """Each answer with its client, as they come; who failed is in `failures` at the end."""
        for client, blob in requests.items():
            self.down[client] = self.down.get(client, 0) + len(blob)
        silent = dict.fromkeys(requests)
        for client, reply in exchange(self.transport, action, self.now, requests, self.timeout_s, longest):
            silent.pop(client, None)
            if isinstance(reply, Failure):
                self.failures[client] = reply.reason
            elif len(reply) > longest:
                self.failures[client] = f"client {client}: its answer has {len(reply):,} bytes, expected at most {longest:,}"
            else:
                self.up[client] = self.up.get(client, 0) + len(reply)
                yield client, reply
        self.failures |= {client: f"client {client}: no answer" for client in silent}

    def texts(self, action: Action, requests: Mapping[ClientId, bytes]) -> dict[ClientId, str]:
        """Answers that are texts."""
        return {client: reply.decode(errors="replace") for client, reply in self.ask(action, requests)}

    def tables(self, action: Action, requests: Mapping[ClientId, bytes]) -> dict[ClientId, dict[str, str]]:
        """Answers that are texts by client, as `told` encodes them."""
        found: dict[ClientId, dict[str, str]] = {}
        for client, reply in self.ask(action, requests):
            try:
                found[client] = table_of(reply)
            except WireError as error:
                self.failures[client] = f"client {client}: {error}"
        return found


# ---- a client


def begun(folder: Path, now: Round, broadcast: bytes, cohort: tuple[str, ...], cohorts: Cohorts) -> tuple[str, Mapping[str, Any]]:
    """SHA-256 of what a client is to train from for a sum, and what it remembers of an earlier one of this round; empty: nothing.

    Raises:
        Misled: it may not be in such a sum.
    """
    if len(cohort) != cohorts.size:
        raise Misled(f"the server asks for a sum of {len(cohort)} clients, expected {cohorts.size} (federation.clients_per_round)")
    digest, known = digest_of_broadcast(broadcast), remembered(folder).get(str(now.number), {})
    if known and known["broadcast"] != digest:
        raise Misled(f"the server asks for a second sum of round {now.number}, of another model: one round is summed once")
    return digest, known


def own_words(folder: Path, blob: bytes, adding: Adding, now: Round, digest: str, known: Mapping[str, Any]) -> tuple[Words, dict[str, str]]:
    """What a client adds to a sum, and what it has to remember of that: of its `Summand`, or of the one that it had in this round before.

    Args:
        folder: the client's, of this run.
        digest, known: as `begun` gave them.

    Raises:
        Misled: it had other numbers in an earlier sum of this round, and does not have these any more.
    """
    words, about = _words(blob, adding, digest)
    if not known:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / SUMMAND, blob)
    elif known["words"] != about["words"]:
        words, about = _kept(folder, adding, digest)
        if known["words"] != about["words"]:
            raise Misled(f"a second sum of round {now.number} would have other numbers of this client in it: one round is summed once")
    return words, about


def _words(blob: bytes, adding: Adding, digest: str) -> tuple[Words, dict[str, str]]:
    words = words_of(blob, adding, len(decode(Summand, blob, copy=False).words)).copy()
    return words, {"broadcast": digest, "words": hashlib.sha256(words.tobytes()).hexdigest()}


def _kept(folder: Path, adding: Adding, digest: str) -> tuple[Words, dict[str, str]]:
    """What `own_words` wrote; no words where that is gone or damaged."""
    try:
        return _words((folder / SUMMAND).read_bytes(), adding, digest)
    except (OSError, WireError):
        return np.zeros(0, adding.dtype), {"words": ""}


def request_of(now: Round, start: str) -> str:
    """All else that a client's words depend on and the server told it: everybody's must be the same."""
    return f"{now.phase} {now.index} {now.num_rounds} {start}"


def remembered(folder: Path) -> dict[str, Any]:
    """Round -> the sum of it that the client's numbers are in."""
    path = folder / SUMS
    return from_json(path.read_text()) if path.exists() else {}


def remember(folder: Path, round_number: int, about: Mapping[str, str], survivors: tuple[str, ...]) -> None:
    """Add a sum to those that the client's numbers are in; returns once it is on the disk."""
    table = {**remembered(folder), str(round_number): {**about, "survivors": list(survivors)}}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SUMS, (to_json(table) + "\n").encode())


def as_tensor(blob: bytes) -> Tensor:
    """Bytes as a tensor, uint8."""
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8)
