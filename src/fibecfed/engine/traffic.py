"""What a run will send, before it does: every message of every round by its shapes alone, for the clients that it will ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from itertools import groupby
from typing import Any

from torch import Tensor

from ..core.method import Method, Phase, Work
from ..core.rng import Key
from ..core.task import Task
from ..core.types import ClientId, Round
from ..core.wire import encoded_size, field_kinds, plain_value, tensors_of
from ..privacy.fixed import Adding
from .checks import expected
from .failures import STOP
from .loop import planned
from .options import FederationOptions
from .runtime import frame
from .shared_fields import pooled_fields, shared_of
from .summands import summand_bytes

_LONGEST: dict[type, Any] = {float: -1.7976931348623157e308, int: 2**62, bool: False}
"""Values that no other takes more characters than. What text and lists in an answer hold is not known, and counts as nothing."""


@dataclass(frozen=True)
class Span:
    """Bytes of a message, or of several: equal where its size is known beforehand, else the least and the most."""

    least: int = 0
    most: int = 0

    def __add__(self, other: Span) -> Span:
        return Span(self.least + other.least, self.most + other.most)

    def __or__(self, other: Span) -> Span:
        return Span(min(self.least, other.least), max(self.most, other.most))


@dataclass(frozen=True)
class Exchange:
    """The messages of one round, by client; as `RoundRecord` has them of a round in which nobody failed."""

    now: Round
    down: Mapping[ClientId, Span]
    up: Mapping[ClientId, Span]


@dataclass(frozen=True)
class Traffic:
    """What one phase sends.

    Attributes:
        cohort: clients per round.
        down, up: of one client in one round, over all of them.
        total_down, total_up: of the whole phase.
    """

    phase: str
    num_rounds: int
    cohort: int
    down: Span
    up: Span
    total_down: Span
    total_up: Span

    @property
    def total(self) -> Span:
        """Of the whole phase, both ways."""
        return self.total_down + self.total_up


def plan(
    method: Method[Any, Any],
    task: Task,
    num_samples: Mapping[ClientId, int],
    per_round: int,
    key: Key,
    options: FederationOptions = STOP,
    private: bool = False,
    adding: Adding | None = None,
) -> Iterator[Exchange]:
    """Every round of a run, in order.

    Args:
        task: one on the meta device will do.
        num_samples: training examples of each client.
        per_round: clients of a sampled round.
        key: of the run; it draws the cohorts.
        options: when a round ends; every client that is asked is taken to answer.
        private: whether the run is private for clients, which then take part in turn.
        adding: how answers become words that are summed; None: they are sent as they are. What masks take beside them is not in it.
    """
    clients = tuple(num_samples)
    server = method.init(task, key.fold("init"))
    for phase, now, asked in planned(method, clients, per_round, key, options, private):
        chance = len(asked) / len(clients)
        down, up = dict[ClientId, Span](), dict[ClientId, Span]()
        for state in method.outlook(server, now):
            broadcast = phase.broadcast(state, now)
            like = expected(phase, state, broadcast, now).like
            known = dict[int, tuple[Span, Span]]()  # by number of examples, where everybody gets the same
            for client in asked:
                size = num_samples[client]
                if phase.address is not None or size not in known:
                    sent = broadcast if phase.address is None else phase.address(state, broadcast, client)
                    length, steps = encoded_size(sent), round(method.load(size, now, chance).steps)
                    known[size] = Span(length, length), _reply(phase, sent, like, {"num_samples": size, "steps": steps}, adding)
                for found, span in zip((down, up), known[size], strict=True):
                    found[client] = found.get(client, span) | span
        yield Exchange(now, down, up)


def by_phase(rounds: Iterator[Exchange]) -> list[Traffic]:
    """What each phase sends."""
    found = []
    for name, group in groupby(rounds, key=lambda one: one.now.phase):
        exchanges = list(group)
        downs, ups = ([span for one in exchanges for span in side(one).values()] for side in (_down, _up))
        first = exchanges[0]
        found.append(Traffic(name, len(exchanges), len(first.down), _around(downs), _around(ups), _sum(downs), _sum(ups)))
    return found


def _reply(
    phase: Phase[Any, Any, Any, Any],
    sent: Any,
    like: Mapping[str, Mapping[str, Tensor]],
    known: Mapping[str, int],
    adding: Adding | None,
) -> Span:
    """A client's reply: tensors like those expected, or where their size is left open, like those that it was sent."""
    if adding is not None:
        length = summand_bytes(adding, shared_of(sent, pooled_fields(phase)))
        return Span(length, length)
    before, least, most = tensors_of(sent), dict[str, Any](), dict[str, Any]()
    defaults = {one.name: one.default for one in fields(phase.up) if one.default is not MISSING}
    for field, kind in field_kinds(phase.up).items():
        if kind in ("tensor", "tensors"):
            sizes = before.get(field, {})
            tensors = {name: sizes.get(name, one) if 0 in one.shape else one for name, one in like.get(field, {}).items()}
            least[field] = most[field] = tensors[""] if kind == "tensor" else tensors
        elif field in known:
            least[field] = most[field] = known[field]
        else:
            value = plain_value(phase.up, field)
            least[field], most[field] = defaults.get(field, value), _LONGEST.get(type(value), value)
    work = len(frame(b"", Work()))
    return Span(encoded_size(phase.up(**least)) + work, encoded_size(phase.up(**most)) + work)


def _down(one: Exchange) -> Mapping[ClientId, Span]:
    return one.down


def _up(one: Exchange) -> Mapping[ClientId, Span]:
    return one.up


def _around(spans: list[Span]) -> Span:
    return Span(min(span.least for span in spans), max(span.most for span in spans))


def _sum(spans: list[Span]) -> Span:
    return sum(spans, Span())
