"""What a run puts up with, and what it remembers about how each client has behaved."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ..core.records import RoundRecord
from ..core.types import ClientId
from .options import FederationOptions

Counted: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Examples of each kind, as a class, in a client's test part and in its validation part."""


@dataclass(frozen=True)
class Standing:
    """What the server remembers of the clients' answers from round to round.

    It is a part of each checkpoint, and takes some 15 bytes there for each client that has answered, and a few more for each class.

    Attributes:
        num_samples: training examples that a client named in its first answer that was accepted.
        refused: answers of a client that were rejected since the last accepted one. Not answering does not count.
        excluded: clients that are not asked any more.
        counted: what a client counted on in its first answer to an evaluation that was accepted.
    """

    num_samples: Mapping[ClientId, int] = field(default_factory=dict[ClientId, int])
    refused: Mapping[ClientId, int] = field(default_factory=dict[ClientId, int])
    excluded: frozenset[ClientId] = frozenset()
    counted: Mapping[ClientId, Counted] = field(default_factory=dict[ClientId, Counted])

    def after(self, accepted: Mapping[ClientId, int | None], refused: Collection[ClientId], exclude_after: int) -> Standing:
        """The standing after a round's exchange.

        Args:
            accepted: the clients whose answers were accepted, with the number of examples that each named, if any.
            refused: the clients whose answers were rejected.
            exclude_after: consecutive rejected answers that exclude a client; 0 = never.
        """
        named = {client: count for client, count in accepted.items() if count is not None}
        in_a_row = {client: times for client, times in self.refused.items() if client not in accepted}
        in_a_row.update({client: in_a_row.get(client, 0) + 1 for client in refused})
        out = {client for client, times in in_a_row.items() if exclude_after and times >= exclude_after}
        return replace(self, num_samples={**self.num_samples, **named}, refused=in_a_row, excluded=self.excluded | out)

    def evaluated(self, counted: Mapping[ClientId, Counted]) -> Standing:
        """The standing after an evaluation in which clients counted on these examples."""
        return replace(self, counted={**counted, **self.counted})

    def table(self) -> dict[str, Any]:
        """As JSON values."""
        counted = {client: [list(part) for part in parts] for client, parts in self.counted.items()}
        held = {"num_samples": dict(self.num_samples), "refused": dict(self.refused), "excluded": sorted(self.excluded)}
        return {**held, "counted": counted}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Standing:
        """What `table` was made of; at the start where it is empty."""
        counted = {client: (tuple(test), tuple(validation)) for client, (test, validation) in table.get("counted", {}).items()}
        return cls(table.get("num_samples", {}), table.get("refused", {}), frozenset(table.get("excluded", ())), counted)


_LONGEST_REASON = 500

REPEATS = (
    "The checkpoint before it stays usable, but `fibecfed resume` would meet the same again: start a new run with a lower "
    'training.learning_rate, or with federation.on_failure = "drop" to continue without such clients'
)
STOPS = 'The checkpoint before it stays usable. With federation.on_failure = "drop" a run continues without such clients'

STOP = FederationOptions()
"""By default the first failure ends the run."""

NEW = Standing()
"""Nobody has answered yet."""


def printable(reason: str) -> str:
    r"""A reason as it may stand in a record and on a terminal: parts of it can be text that a client chose.

    >>> printable("no tensor \x1b[2Jx" + "y" * 1000)[:20], len(printable("y" * 1000))
    ('no tensor ?[2Jxyyyyy', 500)
    """
    text = "".join(character if character.isprintable() else "?" for character in reason[:_LONGEST_REASON])
    return text if len(reason) <= _LONGEST_REASON else f"{text[:-3]}..."


def sentences(record: RoundRecord) -> list[str]:
    """What went wrong in a round, for its user."""
    where = f"{record.phase} round {record.index}"
    told: list[str] = []
    for attempt in record.attempts:
        usable = len(attempt.cohort) - len(attempt.failures)
        told.append(f"{where} was repeated with other clients: {usable} of {len(attempt.cohort)} gave a usable answer")
        told.extend(f"client {client} failed in it: {reason}" for client, reason in attempt.failures.items())
    told.extend(f"client {client} was left out of {where}: {reason}" for client, reason in record.failures.items())
    told.extend(computed_again(client, where) for client in record.recomputed)
    told.extend(f"client {client} is excluded from now on: too many consecutive updates of it were rejected" for client in record.excluded)
    return told


def computed_again(client: ClientId, where: str) -> str:
    """That a worker died, for the user of a run which that does not change."""
    return f"client {client} was computed again in {where}, with the same result: the worker process that computed it had died"
