"""A transport whose clients are computed by several processes at once: the same answers, in the same order, as one after the other."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait

import torch
from torch import Tensor

from ..core.errors import RunFailed
from ..core.process import free_memory, resident_memory, return_memory
from ..core.terminal import one_line
from ..core.types import ClientId, Examples, Failure, Params, Round
from ..core.wire import Tensors, decode, encode, message
from .runtime import ClientRuntime
from .scoring import totals, totals_of_parts, totals_of_some
from .simulator import Simulator
from .transport import Answer, Ticket
from .worker import Asked, Computed, Dead, Unable, Worker

logger = logging.getLogger(__name__)

PAYS_FROM_S, PAYS_AFTER_S = 0.005, 0.25
"""[C] Workers are started by themselves as soon as the clients computed so far took the one on average and the other together: at least ten
times what workers add to an answer, and what starting one costs (benchmarks/workers.py prints both)."""
WAITING_BYTES = 2**26
"""Answers that came before their turn may take so much; then the one whose turn it is is waited for."""
ATTEMPTS = 3
"""Workers that may die on one client's part of an exchange."""
_LOOKED_AT = 64


_PART = "part of totals"
"""Of a ticket that is nobody's: a part of what the server computes itself."""
_NO_CLIENT = "\udc00part\udc00"  # before a number; halves of pairs like these are in no text that was ever decoded


@message
class _Tensors:
    """Named ones, down and up."""

    tensors: Tensors


@dataclass
class _Member:
    """A process, and which client it computes.

    Attributes:
        busy: also where its answer is not wanted any more.
    """

    worker: Worker
    ticket: Ticket | None = None
    busy: bool = False


class Workers(Simulator):
    """Asks up to so many processes, which are forked from this one when they are needed, each for one client at a time.

    A client's state goes to the process with its request and comes back with its reply, and is stored when the answer's turn comes: so the
    store is this process's alone, whatever happens to the others, and a client whose process dies is computed again from the same state.
    As in `InTurn`, a client whose answer is never received has computed nothing as far as anybody can tell.

    Args:
        most: processes.
        at_once: whether they are started with the first exchange; else when it pays, and no more than there is memory for.
        begin: called in each process before its first client.
        keeps: whether processes keep something of the clients they computed, so that a client had better be computed by the same one.
        start: starts a process that has made model and data anew, on a device of its own; such ones then compute all clients. None:
            processes are forked from this one.
    """

    def __init__(
        self,
        runtime: ClientRuntime,
        most: int,
        *,
        at_once: bool,
        begin: Callable[[], None] = lambda: None,
        keeps: bool = False,
        start: Callable[[], Worker] | None = None,
    ) -> None:
        super().__init__(runtime)
        self._start = start
        self._most, self._at_once, self._begin, self._keeps = most, at_once, begin, keeps
        self._crew: list[_Member] = []
        self._done: dict[Ticket, Computed] = {}
        self._waiting_bytes = 0
        self._deaths: dict[Ticket, int] = {}
        self._last: dict[ClientId, Worker] = {}
        self._computed, self._computed_s = 0, 0.0
        self._cpu_s, self._recomputed = 0.0, list[ClientId]()
        self._scored: list[Examples] = []

    @property
    def shares_model(self) -> bool:
        """Whether the processes have what this one has, and may compute for the server as well."""
        return self._start is None

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that there are now."""
        return tuple(member.worker.pid for member in self._crew)

    def used(self) -> tuple[float, tuple[ClientId, ...]]:
        """CPU seconds of all processes beside this one, and the clients that were computed again, since it was asked last."""
        found = self._cpu_s, tuple(sorted(set(self._recomputed)))
        self._cpu_s, self._recomputed = 0.0, []
        return found

    def close(self) -> None:
        """End the processes; what they have not answered yet is computed here when it is asked for."""
        while self._crew:
            self._crew.pop().worker.end()

    # ---- the transport

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        """As `Transport.receive`, in the order in which the requests were sent."""
        turns = deque(sorted(set(tickets) & self._open.keys(), key=lambda ticket: ticket.number))
        to_do: deque[Ticket] | None = None
        while turns:
            ticket = turns[0]
            if ticket not in self._open:
                turns.popleft()
                continue
            if to_do is None and self._wanted(len(turns)):
                to_do = self._largest_first(turns)
            if to_do is not None:
                self._hand_out(to_do, ticket)
            if ticket in self._done:
                turns.popleft()
                answer = self._settled(ticket)
                if to_do and turns:
                    self._hand_out(to_do, turns[0])  # nobody is idle while the answer is looked at
                yield answer
            elif any(member.busy for member in self._crew):
                for lost in self._listen():
                    if to_do is not None and lost in turns:
                        to_do.appendleft(lost)
            else:
                turns.popleft()
                yield self._here(ticket)

    def drop(self, tickets: Collection[Ticket]) -> Mapping[ClientId, int]:
        """As `Transport.drop`."""
        for ticket in tickets:
            self._forget(ticket)
        return super().drop(tickets)

    # ---- the server's own evaluation

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        """As `Simulator.answer`; of a part of `totals`, the sums of its batches."""
        if ticket.action != _PART:
            return super().answer(ticket, blob)
        number, batch_size = map(int, ticket.now.phase.split())
        params, examples = decode(_Tensors, blob).tensors, self._scored[number]
        found = totals_of_some(self.runtime.task, params, examples, batch_size, ticket.now.index, ticket.now.num_rounds)
        return encode(_Tensors(found))

    def totals(self, params: Params, sets: Sequence[Examples], batch_size: int) -> list[dict[str, Tensor]]:
        """`scoring.totals` of a model over each of several sets of examples, whose batches are shared out: the same bits.

        Args:
            sets: the same objects in every call; what came after the processes were started is computed in this one.
        """
        task = self.runtime.task
        new = [examples for examples in sets if not any(examples is known for known in self._scored)]
        if self._crew and new:
            return [totals(task, params, examples, batch_size) for examples in sets]
        self._scored += new
        blob, tickets = encode(_Tensors(dict(params))), list[list[Ticket]]()
        for examples in sets:
            place = next(number for number, known in enumerate(self._scored) if known is examples)
            of = min(4 * self._most, -(-len(examples) // batch_size))
            rounds = [Round(f"{place} {batch_size}", part, of, -1) for part in range(of)]
            tickets.append([Ticket(self._count + i, f"{_NO_CLIENT}{self._count + i}", _PART, now) for i, now in enumerate(rounds)])
            self._count += len(rounds)
        every = [ticket for some in tickets for ticket in some]
        self._open.update({ticket: {ticket.client: blob} for ticket in every})
        replies = {answer.ticket: answer.reply for answer in self.receive(every)}
        return [totals_of_parts(task, [decode(_Tensors, replies[ticket]).tensors for ticket in some]) for some in tickets]  # pyright: ignore[reportArgumentType]

    # ---- who computes

    def _wanted(self, tickets: int) -> bool:
        if self._crew or self._start is not None:
            return True
        if tickets < 2 or self._most < 2:
            return False
        if self._at_once:
            return True
        if self._computed_s < PAYS_AFTER_S or self._computed_s < PAYS_FROM_S * self._computed:
            return False
        if (free := free_memory()) is not None:  # each may come to have as much of its own as this process has
            self._most = min(self._most, free // max(1, resident_memory()))
        return self._most >= 2

    def _here(self, ticket: Ticket) -> Answer:
        self._forget_others(ticket)
        start, requests = time.perf_counter(), self._open.pop(ticket)
        answer = Answer(ticket, self.answer(ticket, requests[ticket.client]))
        self._computed, self._computed_s = self._computed + 1, self._computed_s + time.perf_counter() - start
        return answer

    def _largest_first(self, tickets: Iterable[Ticket]) -> deque[Ticket]:
        """What is not being computed, so that no long one is left for the end."""
        taken = self._done.keys() | {member.ticket for member in self._crew}
        return deque(sorted((one for one in tickets if one not in taken), key=lambda one: (-self._size(one), one.number)))

    def _size(self, ticket: Ticket) -> int:
        if ticket.action == _PART:
            return -ticket.now.index  # the last ones have a batch less
        data = self.runtime.data(ticket.client)
        return len(data.train) if ticket.action == "train" else len(data.test) + len(data.validation)

    def _hand_out(self, to_do: deque[Ticket], turn: Ticket) -> None:
        """Give everybody who has nothing to do a ticket, as far as there are any; `turn` is the one whose turn it is."""
        while to_do and (member := self._idle()) is not None:
            ticket = self._chosen(to_do, turn, member)
            if ticket is None:
                return
            to_do.remove(ticket)
            if ticket not in self._open:
                continue
            self._forget_others(ticket)
            client = ticket.client
            try:
                member.worker.give(Asked(ticket.action, client, ticket.now, self._open[ticket][client], self._state(ticket)))
            except Dead as error:
                self._crew.remove(member)
                logger.info("a worker process that had nothing to do is replaced: %s", error)
                to_do.appendleft(ticket)
                continue
            member.ticket, member.busy = ticket, True
            if self._keeps and ticket.action != _PART:
                self._last[client] = member.worker

    def _state(self, ticket: Ticket) -> bytes | None:
        if ticket.action == _PART:
            return None
        states = self.runtime.states
        states.begin(ticket.now.number)
        return states.before(ticket.client) if ticket.action == "train" else states.get(ticket.client)

    def _chosen(self, to_do: deque[Ticket], turn: Ticket, member: _Member) -> Ticket | None:
        """A client is never computed twice at once: its earlier ticket comes first."""
        if self._waiting_bytes >= WAITING_BYTES:
            return turn if turn in to_do else None
        busy = {one.client for one in self._done} | {one.ticket.client for one in self._crew if one.ticket is not None}
        free = [one for one in islice(to_do, _LOOKED_AT) if one == turn or one.client not in busy]
        if self._keeps and (own := [one for one in free if self._last.get(one.client) in (None, member.worker)]):
            return own[0]
        return free[0] if free else turn if turn in to_do else None

    def _idle(self) -> _Member | None:
        for member in self._crew:
            if not member.busy:
                return member
        if len(self._crew) >= self._most:
            return None
        if not self._crew:
            return_memory()  # else what is free in this process would be copied into each
        try:
            if self._start is None:
                worker = Worker(self._compute, torch.get_num_threads(), [member.worker.pipe for member in self._crew])
            else:
                worker = self._start()
        except Unable as error:
            if self._start is not None:
                raise RunFailed(
                    f"resources.devices: a worker process cannot be started: {one_line(str(error))}; choose others, with the same results"
                ) from None
            self._most = len(self._crew)
            level = logging.WARNING if self._at_once else logging.INFO
            logger.log(level, "clients are computed by %d worker processes: no more can be started: %s", self._most, one_line(str(error)))
            return None
        logger.info("worker process %d started", worker.pid)
        self._crew.append(_Member(worker))
        return self._crew[-1]

    # ---- what comes back

    def _listen(self) -> list[Ticket]:
        """Wait until somebody says something; the tickets of those that died."""
        lost = list[Ticket]()
        busy = {member.worker.pipe: member for member in self._crew if member.busy}
        for pipe in wait(list(busy)):
            member = busy[pipe]  # pyright: ignore[reportArgumentType]
            ticket = member.ticket
            try:
                done = member.worker.hear()
            except Dead as error:
                self._crew.remove(member)
                if ticket is not None:
                    self._died(ticket, error)
                    lost.append(ticket)
                continue
            if done is None:
                continue
            self._cpu_s, member.ticket, member.busy = self._cpu_s + done.cpu_s, None, False
            if ticket is not None:
                self._done[ticket] = done
                self._waiting_bytes += _size_of(done)
        return lost

    def _died(self, ticket: Ticket, error: Dead) -> None:
        where = f"client {one_line(ticket.client)}, {ticket.now.phase} round {ticket.now.index}"
        if ticket.action == _PART:
            where = "evaluation of the global model"
        self._deaths[ticket] = self._deaths.get(ticket, 0) + 1
        if self._deaths[ticket] == ATTEMPTS:
            raise RunFailed(
                f"{where}: {ATTEMPTS} worker processes that computed it died one "
                f"after the other; of the last one, {error}. Lower resources.workers, with the same results, or free some memory"
            )
        if ticket.action != _PART:
            self._recomputed.append(ticket.client)
        logger.info("%s is computed again: %s", where, error)

    def _settled(self, ticket: Ticket) -> Answer:
        """Its turn has come: from here on the client has computed."""
        done, client = self._done.pop(ticket), ticket.client
        self._waiting_bytes -= _size_of(done)
        self._deaths.pop(ticket, None)
        del self._open[ticket]
        if done.error is not None:
            raise done.error
        if done.state is not None:
            self.runtime.states.begin(ticket.now.number)
            self.runtime.states.put(client, done.state)
        if done.notes:
            self._notes[client] = done.notes
        return Answer(ticket, done.reply)

    def _forget(self, ticket: Ticket) -> None:
        if (done := self._done.pop(ticket, None)) is not None:
            self._waiting_bytes -= _size_of(done)
        self._deaths.pop(ticket, None)
        for member in self._crew:
            if member.ticket == ticket:
                member.ticket = None

    def _forget_others(self, ticket: Ticket) -> None:
        """What was computed ahead of another request to the same client, from a state that this one will replace."""
        others = [*self._done, *(member.ticket for member in self._crew if member.ticket is not None)]
        for other in others:
            if other.client == ticket.client:
                self._forget(other)

    # ---- in a worker

    def compute(self, job: Asked) -> Computed:
        """A client's part of an exchange, in a process that computes nothing else."""
        return self._compute(job)

    def _compute(self, job: Asked) -> Computed:
        carried = self.runtime.states
        if not isinstance(carried, Carried):
            carried = self.runtime.states = Carried()
            self._begin()
        carried.state, carried.next, self._notes = job.state, None, {}
        reply = self.answer(Ticket(0, job.client, job.action, job.now), job.blob)
        return Computed(reply, carried.next, self._notes.get(job.client))


def _size_of(done: Computed) -> int:
    return sum(len(part) for part in (done.reply, done.state) if isinstance(part, bytes))


class Carried:
    """The state of the one client that a worker computes, as it came and as it goes back."""

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.next: bytes | None = None

    def get(self, client: ClientId) -> bytes | None:
        return self.state

    before = get

    def put(self, client: ClientId, blob: bytes) -> None:
        self.next = blob

    def begin(self, number: int) -> None:
        """The parent knows which state is that before a round."""
