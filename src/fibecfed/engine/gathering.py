"""What the server has of a round's answers: held until all are in, or folded into a running state, so that a cohort is never in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ..core.errors import Diverged, RunFailed
from ..core.method import Folding, Phase, Received
from ..core.trees import first_not_finite
from ..core.types import ClientId, Round
from ..core.wire import decode, encode, tensors_of
from .runtime import named, not_finite

USABLE = "The checkpoint before it stays usable"
LIMIT = f"{USABLE}. With federation.max_update_norm updates that are too large are rejected"

FOLD_FROM = 2**26
"""Bytes. A cohort whose answers are expected to take more is folded where its phase can; a smaller one is held and given to `aggregate`,
whose mean differs in last bits, since it divides each weight by their sum before it adds."""


class Kept(Protocol):
    """Where the server keeps something of each client."""

    def get(self, client: ClientId) -> bytes | None: ...

    def put(self, client: ClientId, blob: bytes) -> None: ...


class InMemory:
    """Keeps it for as long as the process lives."""

    def __init__(self) -> None:
        self._blobs: dict[ClientId, bytes] = {}

    def get(self, client: ClientId) -> bytes | None:
        return self._blobs.get(client)

    def put(self, client: ClientId, blob: bytes) -> None:
        self._blobs[client] = blob


class Gathering(Protocol):
    """The answers of one attempt at a round, in whatever order they come."""

    @property
    def folds(self) -> bool:
        """Whether a message is only needed until it was folded in, so that it may lie on the bytes received."""
        ...

    def settle(self, client: ClientId, message: Any | None) -> None:
        """What became of one client of the cohort: its message, or None if it has none that can be used."""
        ...

    def aggregated(self) -> Any:
        """The server's state after the round. Once, after the last answer; what is kept of each client is kept then.

        Raises:
            RunFailed: the answers cannot be aggregated.
            Diverged: each is finite and what is made of them is not.
        """
        ...


def gather(
    phase: Phase[Any, Any, Any, Any], server: Any, now: Round, cohort: Sequence[ClientId], usual_bytes: int, kept: Kept
) -> Gathering:
    """Begin to gather.

    Args:
        usual_bytes: what the tensors of one answer are expected to take.
    """
    large = len(cohort) * usual_bytes > FOLD_FROM and phase.keep is None
    folding = phase.fold(server, now) if large and phase.fold is not None else None
    return _Held(phase, server, now, kept) if folding is None else _Folded(folding, now, cohort)


class _Held:
    folds = False

    def __init__(self, phase: Phase[Any, Any, Any, Any], server: Any, now: Round, kept: Kept) -> None:
        self._phase, self._server, self._now, self._kept = phase, server, now, kept
        self._messages: dict[ClientId, Any] = {}

    def settle(self, client: ClientId, message: Any | None) -> None:
        if message is not None:
            self._messages[client] = message

    def aggregated(self) -> Any:
        answers = [Received(client, self._messages[client], self._before(client)) for client in sorted(self._messages)]
        where = answers_of(self._now, sorted(self._messages))
        with aggregating(where):
            after = self._phase.aggregate(self._server, answers, self._now)
        check_finite(after, where)
        if self._phase.keep is not None:
            for client, blob in {answer.client: encode(self._next(answer)) for answer in answers}.items():
                self._kept.put(client, blob)
        return after

    def _before(self, client: ClientId) -> Any:
        kind, blob = self._phase.kept, self._kept.get(client)
        return None if blob is None or kind is None else decode(kind, blob)

    def _next(self, answer: Received[Any]) -> Any:
        value = self._phase.keep(self._server, answer)  # pyright: ignore[reportOptionalCall]
        if (problem := not_finite(value)) is not None:
            where = f"{self._now.phase} round {self._now.index}, answer of {answer.client}"
            raise Diverged(f"{where}: {problem}, as the server keeps it. {LIMIT}")
        return value


class _Folded:
    """Messages are folded in the order of client ids; one that comes before its turn waits for it."""

    folds = True

    def __init__(self, folding: Folding[Any, Any], now: Round, cohort: Sequence[ClientId]) -> None:
        self._folding, self._now = folding, now
        self._turns = deque(sorted(cohort))
        self._early: dict[ClientId, Any | None] = {}
        self._folded: list[ClientId] = []

    def settle(self, client: ClientId, message: Any | None) -> None:
        self._early[client] = message
        while self._turns and self._turns[0] in self._early:
            self._fold(self._turns.popleft())

    def aggregated(self) -> Any:
        for client in self._turns:  # who never answered has no message
            self._fold(client)
        where = answers_of(self._now, self._folded)
        with aggregating(where):
            after = self._folding.state()
        check_finite(after, where)
        return after

    def _fold(self, client: ClientId) -> None:
        message = self._early.pop(client, None)
        if message is not None:
            self._folded.append(client)
            with aggregating(answers_of(self._now, self._folded)):
                self._folding.add(Received(client, message))


def answers_of(now: Round, clients: Sequence[ClientId]) -> str:
    """Which answers an error is about."""
    return f"{now.phase} round {now.index}, answers of {', '.join(clients)}"


@contextmanager
def aggregating(where: str) -> Iterator[None]:
    """Errors of a method's arithmetic become sentences."""
    try:
        yield
    except FloatingPointError as error:
        raise Diverged(f"{where}: {error}. {LIMIT}") from error
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        raise RunFailed(f"{where}: they cannot be aggregated ({type(error).__name__}: {error}). {USABLE}") from error


def check_finite(after: Any, where: str) -> None:
    """Each answer may be finite and their sum not: such a state must not reach a checkpoint."""
    for field, tensors in tensors_of(after).items():
        if (bad := first_not_finite(tensors)) is not None:
            raise Diverged(f"{where}: they make {named(field, bad)} of the server's state not finite. {LIMIT}")
