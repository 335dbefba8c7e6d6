"""Records of a run as numbers by name, as trackers draw them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.records import EvalRecord, RoundRecord
from ..core.terminal import one_line

Values = dict[str, float]


@dataclass(frozen=True)
class TrackedScores:
    """What an evaluation came to, by the name of the score.

    Attributes:
        whole: of the federation; None where there is no such score.
        by_client: of each client's own model on its own test examples.
    """

    whole: Mapping[str, float | None]
    by_client: Mapping[str, Mapping[str, float | None]]


def of_round(record: RoundRecord, selected: Mapping[str, Any], by_client: bool) -> Values:
    """Losses, bytes, seconds, examples, who took part, and what was selected.

    Args:
        selected: as the method's `summary` gives it.
        by_client: also of each client, under `client/<its name>/`.
    """
    seen = sum(record.examples.values())
    up, down = sum(record.bytes_up.values()), sum(record.bytes_down.values())
    values: Values = {
        "train/examples": seen,
        "train/steps": sum(record.steps.values()),
        "bytes/up": up,
        "bytes/down": down,
        "seconds/round": record.seconds,
        "seconds/clients": sum(record.compute_s.values()),
        "clients/asked": len(record.cohort),
        "clients/failed": len(record.failures),
        "clients/rejected": len(record.refused),
        "clients/excluded": len(record.excluded),
    }
    if record.dropped:
        values["clients/dropped"] = len(record.dropped)
    if record.virtual_s is not None:
        values["seconds/virtual"] = record.virtual_s
    if record.staleness:
        values["clients/staleness"] = sum(record.staleness.values()) / len(record.staleness)
    if seen:
        values["train/loss"] = sum(record.loss[client] * record.examples[client] for client in record.loss) / seen
    values |= {f"selected/{name}": value for name, value in _numbers(selected)}
    values |= {f"selected/{name}": value for name, value in _means(record.notes)}
    if by_client:
        tables: Mapping[str, Mapping[str, Any]] = {
            "loss": {client: loss for client, loss in record.loss.items() if record.examples[client]},
            "examples": record.examples,
            "steps": record.steps,
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "seconds": record.compute_s,
        }
        values |= {_of(client, name): value for name, table in tables.items() for client, value in table.items()}
        values |= {_of(client, name): value for client, notes in record.notes.items() for name, value in notes.items() if _is_number(value)}
    return values


def of_evaluation(record: EvalRecord, scores: TrackedScores, by_client: bool) -> Values:
    """Scores, losses, and what the evaluation cost."""
    values: Values = {
        "bytes/evaluation": record.bytes_up + record.bytes_down,
        "seconds/evaluation": record.seconds,
        "clients/not_evaluated": len(record.failures),
    }
    values |= {f"scores/{name}": value for name, value in scores.whole.items() if value is not None}
    if by_client:
        of_clients = scores.by_client.items()
        values |= {_of(client, name): value for client, own in of_clients for name, value in own.items() if value is not None}
    return values


def _of(client: str, name: str) -> str:
    return f"client/{one_line(client)}/{name}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(selected: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers as they are; of the shared layers their number, and 1 or 0 for each layer; of a list of numbers each under its place; of a
    table of numbers (ranks by client) the mean."""
    for name, value in selected.items():
        if _is_number(value):
            yield name, value
        elif name == "global_layers":
            yield name, len(value)
            yield from ((f"{name}/{layer:02}", int(layer in value)) for layer in range(selected.get("num_layers", 0)))
        elif isinstance(value, list | tuple) and all(map(_is_number, value)):
            yield from ((f"{name}/{place:02}", number) for place, number in enumerate(value))
        elif isinstance(value, Mapping) and value and all(map(_is_number, value.values())):
            yield name, _mean(list(value.values()))


def _means(notes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """What clients noted of themselves as a number (neurons kept, their own ratio): the mean over those that did."""
    noted: dict[str, list[float]] = {}
    for own in notes.values():
        for name, value in own.items():
            if _is_number(value):
                noted.setdefault(name, []).append(value)
    yield from ((f"mean_{name}", _mean(found)) for name, found in noted.items())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
