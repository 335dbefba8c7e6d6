"""What a run writes down: raw facts, one JSON line each. Reports compute from these and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RECORDS_VERSION = 1


@dataclass(frozen=True)
class RoundRecord:
    """One round.

    Attributes:
        bytes_down, bytes_up: length of the encoded message of each client, by client id.
        fields_down, fields_up: tensor bytes by message field, and `overhead`; summed over the cohort.
        steps, examples, loss, compute_s: each client's `Work`.
        failures: client -> reason.
        notes: client -> what it wrote down about itself (simulation only).
        seconds: of the whole round on this machine, wall clock.
        cpu_s: processor seconds of this process in the round, which a busy machine does not stretch as much.
    """

    phase: str
    index: int
    number: int
    cohort: tuple[str, ...]
    bytes_down: Mapping[str, int]
    bytes_up: Mapping[str, int]
    fields_down: Mapping[str, int]
    fields_up: Mapping[str, int]
    steps: Mapping[str, int]
    examples: Mapping[str, int]
    loss: Mapping[str, float]
    compute_s: Mapping[str, float]
    failures: Mapping[str, str]
    server: Mapping[str, Any]
    seconds: float
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    cpu_s: float = 0.0


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation. A confusion matrix has the true class as row and the predicted one as column.

    Attributes:
        rounds: rounds completed before it; 0 is the untrained model.
        clients: test confusion matrix of each client under its personalised model, by client id.
        pooled, pooled_validation: sums of the clients' matrices over test and validation parts.
        server, server_validation: the global model on the whole test set and all validation parts.
        loss_pooled, loss_server: mean test loss, nat.
        bytes_down, bytes_up: of the exchange, all clients together; apart from training.
    """

    rounds: int
    clients: Mapping[str, list[list[int]]]
    pooled: list[list[int]]
    pooled_validation: list[list[int]]
    server: list[list[int]]
    server_validation: list[list[int]]
    loss_pooled: float
    loss_server: float
    bytes_down: int
    bytes_up: int
    seconds: float


_KINDS = {"round": RoundRecord, "evaluation": EvalRecord}


def to_line(record: RoundRecord | EvalRecord | Mapping[str, Any]) -> str:
    """One line of JSON, with `kind` first. A mapping is the header, the first line of a file."""
    if isinstance(record, Mapping):
        if taken := {"kind", "version"} & record.keys():
            raise ValueError(f"a header cannot have {sorted(taken)}: they say what the line is")
        table: dict[str, Any] = {"kind": "header", "version": RECORDS_VERSION, **record}
    else:
        kind = "round" if isinstance(record, RoundRecord) else "evaluation"
        table = {"kind": kind, **asdict(record)}
    return json.dumps(table, ensure_ascii=False, separators=(",", ":")) + "\n"


def read(path: Path) -> tuple[dict[str, Any], list[RoundRecord | EvalRecord]]:
    """The header and the records of a file.

    Raises:
        ValueError: naming the file and the line that is not a record of this version.
    """
    lines = list(_lines(path))
    if not lines or lines[0].get("kind") != "header":
        raise ValueError(f"{path}, line 1: expected the header of a fibecfed run")
    if lines[0].get("version") != RECORDS_VERSION:
        raise ValueError(f"{path}, line 1: records of version {lines[0].get('version')!r}, expected {RECORDS_VERSION}")
    records: list[RoundRecord | EvalRecord] = []
    for number, line in enumerate(lines[1:], start=2):
        kind = line.pop("kind", None)
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"{path}, line {number}: got kind {kind!r}, expected one of {sorted(_KINDS)}")
        try:
            if kind == "round":
                line["cohort"] = tuple(line["cohort"])
            records.append(_KINDS[kind](**line))
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a record of kind {kind!r}: {error}") from None
    return lines[0], records


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(line, dict):
                raise ValueError(f"{path}, line {number}: got {type(line).__name__}, expected a table")
            yield line
