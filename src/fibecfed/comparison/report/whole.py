"""Whether a finished run's records are whole, and of the run that their folder is called after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.records import EvalRecord, RoundRecord
from ...core.units import count

ASIDE = "damaged"
"""Folder of a comparison for finished runs that were damaged and have been made again."""
_NEEDED = (
    "configuration.seed", "configuration.method.kind", "configuration.data.max_length", "configuration.federation.clients",
    "configuration.federation.clients_per_round", "configuration.federation.rounds", "configuration.model",
    "configuration.training.local_epochs", "configuration.training.batch_size", "configuration.training.optimizer",
    "configuration.training.learning_rate", "partition", "trainable",
)  # fmt: skip
"""What a report takes from a header."""


@dataclass(frozen=True)
class Place:
    """Where a run stands in a comparison, as far as that is known.

    Attributes:
        task, method, seed: as its folder is called.
        kind: `method.kind` of its method's runs.
        file: name of the file with the task's examples, of a task of the user's own.
    """

    task: str | None = None
    method: str | None = None
    seed: int | None = None
    kind: str | None = None
    file: str | None = None


NOWHERE = Place()
"""Of a run that is in no comparison."""


class Damaged(UserError):
    """A finished run's folder that cannot be used.

    Attributes:
        what: what is wrong, without what to do about it.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what


def lacking(header: Mapping[str, Any]) -> list[str]:
    """Keys that a header should have and has not."""

    def has(name: str) -> bool:
        table: Any = header
        for part in name.split("."):
            if not isinstance(table, Mapping) or part not in table:
                return False
            table = table[part]
        return True

    return [name for name in _NEEDED if not has(name)]


def misfits(configuration: Mapping[str, Any], place: Place) -> Iterator[str]:
    """What a run's configuration says otherwise than its place, as in "data.task: got rte, expected sst2"."""
    data = configuration["data"]
    pairs = [("method.kind", configuration["method"]["kind"], place.kind), ("seed", configuration["seed"], place.seed)]
    if data.get("task") is not None:
        pairs.insert(0, ("data.task", data["task"], place.task))
    elif data.get("path") is not None:
        pairs.insert(0, ("data.path", Path(data["path"]).name, place.file))
    for name, got, expected in pairs:
        if expected is not None and got != expected:
            yield f"{name}: got {got}, expected {expected}"


def gap(records: Sequence[RoundRecord | EvalRecord], summary: Mapping[str, Any]) -> str | None:
    """Where rounds are missing or come twice, or the records end before the summary does; None where they are whole."""
    done, evaluated = 0, None
    for line, record in enumerate(records, start=2):
        if isinstance(record, RoundRecord):
            if record.number != done:
                return f"line {line}: got the round with number {record.number}, expected number {done}"
            done += 1
        else:
            if record.rounds != done:
                return f"line {line}: got an evaluation after {count(record.rounds, 'round')}, expected one after {done}"
            evaluated = record.rounds
    rounds, scored = summary.get("rounds"), summary["scores"].get("rounds")
    rounds = rounds if isinstance(rounds, int) else done
    scored = scored if isinstance(scored, int) else evaluated
    if rounds != done or scored != evaluated:
        last = f"{count(done, 'round')}, the last evaluation after {evaluated}"
        expected = f"{count(rounds, 'round')} and one after {scored}, as the summary says"
        return f"line {len(records) + 1}: got the end after {last}, expected {expected}"
    return None
