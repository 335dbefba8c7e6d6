"""What a run writes down: raw facts, one JSON line each. Reports compute from these and from nothing else."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from .json_text import from_json, to_json, with_nan
from .statistics import CONFUSION, NLL, Sums

RECORDS_VERSION = 2
"""Of what is written. Version 1, which had confusion matrices and mean losses in place of sums by name, is read as well."""
_READ = (1, RECORDS_VERSION)


def _if_any(default: Any = ()) -> Any:
    """A value that is written only where it is not empty; by default a tuple."""
    return field(default=default, metadata={"if_any": True})


@dataclass(frozen=True)
class FailedAttempt:
    """A cohort of which too few clients gave a usable answer; the attributes are as those of `RoundRecord`."""

    cohort: tuple[str, ...]
    bytes_down: Mapping[str, int]
    bytes_up: Mapping[str, int]
    failures: Mapping[str, str]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class RoundRecord:
    """One round.

    Attributes:
        cohort: the clients that were asked.
        bytes_down, bytes_up: length of the encoded messages to and from each client, by client id; with those of replies that were rejected
            and of `attempts`.
        fields_down, fields_up: tensor bytes by message field, and `overhead`; summed over the cohort. `discarded`: bytes of whole messages
            from which nothing came into the server's state.
        steps, examples, loss, compute_s: each client's `Work`, of those whose answer was used.
        failures: client -> reason, for each client of the cohort whose answer was not used.
        notes: client -> what it wrote down about itself (simulation only); "token_blocks" = tokens that went through a transformer block,
            [forward, backward].
        seconds: of the whole round on this machine, wall clock.
        cpu_s: CPU seconds of this process in the round, which a busy machine does not stretch as much.
        compute_clock: what `compute_s` are seconds of: "cpu" = of the CPU, which a busy machine does not stretch; "cuda" or
            "mps" = of the wall, until the device was done; "wall" = of the wall alone, as in version 0.1, which wrote no kind. Several
            with "+" between them where the machines of a federation differ.
        refused: those of `failures` that sent an answer which was not what it must be.
        excluded: clients that take no part from here on, after too many consecutive rejected answers.
        attempts: earlier cohorts of this round of which too few answered.
        recomputed: clients whose worker process died while it computed them, and which were computed again.
        dropped: clients whose answers the round did not wait for; bytes of theirs that were sent in vain are in `bytes_up`, "discarded".
        virtual_s: virtual time at its end, since the run began, in seconds; None where time is not modelled.
        staleness: client -> how many rounds ended between its being asked and this round's end, of the answers that were used; where the
            schedule is "buffered". `cohort` are then those who were asked in this round; answers of earlier ones are used as well.
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
    compute_clock: str = "wall"
    refused: tuple[str, ...] = _if_any()
    excluded: tuple[str, ...] = _if_any()
    attempts: tuple[FailedAttempt, ...] = _if_any()
    recomputed: tuple[str, ...] = _if_any()
    dropped: tuple[str, ...] = _if_any()
    virtual_s: float | None = _if_any(None)
    staleness: Mapping[str, int] = field(default_factory=dict[str, int], metadata={"if_any": True})


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation: sums by name, of which `core.metrics` makes scores.

    Attributes:
        rounds: rounds completed before it; 0 is the untrained model.
        clients: sums over each client's test part under its personalised model, by client id.
        pooled, pooled_validation: those of all clients, over test and validation parts.
        server, server_validation: of the global model, over the whole test set and all validation parts.
        bytes_down, bytes_up: of the exchange, all clients together; apart from training.
        failures: client -> reason, for each client that was asked and is in none of the sums.
        recomputed: as in `RoundRecord`.
    """

    rounds: int
    clients: Mapping[str, Sums]
    pooled: Sums
    pooled_validation: Sums
    server: Sums
    server_validation: Sums
    bytes_down: int
    bytes_up: int
    seconds: float
    failures: Mapping[str, str] = field(default_factory=dict[str, str], metadata={"if_any": True})
    recomputed: tuple[str, ...] = _if_any()


_SUMS = ("pooled", "pooled_validation", "server", "server_validation")


def _evaluation(line: dict[str, Any]) -> EvalRecord:
    """An evaluation as it was read; a run that was begun by version 0.1 and resumed has lines of both versions."""
    table: dict[str, Any] = line | _tuples(line)
    if isinstance(table.get("pooled"), list):
        losses = {"pooled": table.pop("loss_pooled"), "server": table.pop("loss_server")}
        found = {name: {CONFUSION: table[name]} for name in _SUMS}
        for name, mean in losses.items():
            found[name][NLL] = math.nan if mean is None else mean * sum(map(sum, table[name]))
        found["clients"] = {client: {CONFUSION: matrix} for client, matrix in table["clients"].items()}
    else:
        found = {name: _with_nan(table[name]) for name in (*_SUMS, "clients") if name in table}
    return EvalRecord(**with_nan(EvalRecord, {**table, **found}))


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nan(item) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in cast("list[Any]", value)]
    return math.nan if value is None else value


_KINDS = ("evaluation", "round")


def to_line(record: RoundRecord | EvalRecord | Mapping[str, Any]) -> str:
    """One line of JSON, with `kind` first. A mapping is the header, the first line of a file."""
    if isinstance(record, Mapping):
        if taken := {"kind", "version"} & record.keys():
            raise ValueError(f"a header cannot have {sorted(taken)}: they say what the line is")
        table: dict[str, Any] = {"kind": "header", "version": RECORDS_VERSION, **record}
    else:
        kind = "round" if isinstance(record, RoundRecord) else "evaluation"
        unused = {item.name for item in fields(record) if "if_any" in item.metadata and not getattr(record, item.name)}
        table = {"kind": kind, **{name: value for name, value in asdict(record).items() if name not in unused}}
    return to_json(table, ensure_ascii=False, separators=(",", ":")) + "\n"


def read(path: Path, length: int | None = None) -> tuple[dict[str, Any], list[RoundRecord | EvalRecord]]:
    """The header and the records of a file.

    Args:
        length: bytes of the file to read; None: all.

    Raises:
        ValueError: naming the file and the line that is not a record of this version.
    """
    lines = list(_lines(path, length))
    if not lines or lines[0].get("kind") != "header":
        raise ValueError(f"{path}, line 1: expected the header of a fibecfed run")
    if lines[0].get("version") not in _READ:
        raise ValueError(f"{path}, line 1: records of version {lines[0].get('version')!r}, expected one of {', '.join(map(str, _READ))}")
    header = lines[0]
    if header["version"] == 1:
        header |= {"metric": "accuracy", "higher_is_better": True, "usual_metric": header.get("metric")}
    records = [record_of(line, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]
    return header, records


def record_of(line: dict[str, Any], where: str) -> RoundRecord | EvalRecord:
    """A record, from the table that its line holds.

    Args:
        where: file and line, for the error.

    Raises:
        ValueError: it is none.
    """
    kind = line.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"{where}: got kind {kind!r}, expected one of {list(_KINDS)}")
    try:
        if kind == "evaluation":
            return _evaluation(line)
        line = _with_tuples(line)
        line["attempts"] = tuple(FailedAttempt(**_with_tuples(attempt)) for attempt in line.get("attempts", ()))
        return RoundRecord(**with_nan(RoundRecord, line))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}: not a record of kind {kind!r}: {error}") from None


def length_of_whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line: behind it a process may be writing, or have been killed."""
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            if (place := file.read(end - start).rfind(b"\n")) >= 0:
                return start + place + 1
            end = start
    return 0


_BLOCK = 2**16


def _with_tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {**table, **_tuples(table), "cohort": tuple(table["cohort"])}


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(table[name]) for name in ("refused", "excluded", "recomputed", "dropped") if name in table}


def _lines(path: Path, length: int | None) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        whole = file if length is None else io.BytesIO(file.read(length))
        for number, text in enumerate(whole, start=1):
            try:
                line = from_json(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(line, dict):
                raise ValueError(f"{path}, line {number}: got {type(line).__name__}, expected a table")
            yield line
