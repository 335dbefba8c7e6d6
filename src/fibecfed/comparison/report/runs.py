"""One run's folder -> `Run`: records.jsonl and summary.json read, and reduced to what tables and figures need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ...core.clock import VIRTUAL, Network, joined, round_seconds
from ...core.errors import UserError
from ...core.files import ANSWERS, CONFIG, FAILURE, RECORDS, SUMMARY
from ...core.json_text import from_json
from ...core.metrics import METRICS, OF_WRITTEN, Metric, metric_named
from ...core.records import EvalRecord, RoundRecord, length_of_whole_lines, read
from ...core.statistics import CONFUSION
from ...core.units import count
from ...data.options import DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH_PAIRS
from ...engine.baselines import baselines
from ...engine.evaluation import worst_decile
from ...engine.options import DEFAULT_CLIENTS_PER_ROUND
from ...engine.summary import summarise
from .recorded import NOWHERE, Configuration, Damaged, Header, Place, Summary, WrittenExample, line_of, read_json, told
from .results import Classes, Point, Run, RunFiles, SelectionRecord

_BINS = 24


@dataclass(frozen=True)
class Read:
    """The files of a run, as they were read.

    Attributes:
        header, raw: the first line of its records, as a model and as it stands there.
        summary: of a run that is not finished, what can be said so far.
    """

    folder: Path
    place: Place
    header: Header
    raw: Mapping[str, Any]
    records: Sequence[RoundRecord | EvalRecord]
    summary: Summary
    finished: bool

    @property
    def metric(self) -> Metric:
        """The primary one."""
        return metric_named(self.header.metric, self.header.labels)


def read_run(folder: Path, network: Network, place: Place = NOWHERE, *, unfinished: bool = False) -> Run:
    """A finished run, or one that is under way or was stopped: `run_of` what `read_files` reads."""
    return run_of(read_files(folder, place, unfinished=unfinished), network)


def read_files(folder: Path, place: Place = NOWHERE, *, unfinished: bool = False) -> Read:
    """Records and results of a run.

    Args:
        unfinished: whether a run without results is read as far as its records go.
        place: in a comparison; what it leaves open is taken from the run's configuration. A federation across machines, which names neither
            task nor file, is called as its folder.

    Raises:
        Damaged: it is finished, and cannot be used; naming file and line.
        UserError: what is missing of a run that is not finished.
    """
    finished, path, advice = (folder / SUMMARY).is_file(), folder / RECORDS, _advice(folder, place)
    if not finished and (failure := _failure(folder / FAILURE)):
        raise UserError(f"{folder}: {failure}")
    if not path.is_file():
        if finished:
            raise Damaged(f"{folder}: got no {RECORDS} beside {SUMMARY}", advice)
        raise UserError(f"{folder}: got no {RECORDS}, expected one: the run was not started; run it again")
    try:
        raw, records = read(path, None if finished or not unfinished else length_of_whole_lines(path))
        header = Header.model_validate(raw)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    except ValidationError as error:
        raise Damaged(f"{path}, line 1: {told(error, 'a header')}", advice) from None
    except ValueError as error:
        raise Damaged(str(error), advice) from None
    if not finished and not unfinished:
        done = sum(isinstance(record, RoundRecord) for record in records)
        raise UserError(
            f"{folder}: got no {SUMMARY}, so the run is not finished ({count(done, 'round')} recorded); fibecfed resume {folder}"
        )
    if wrong := place.misfits(header.configuration):
        mend = f"move {folder} away, and the next `fibecfed compare` runs what belongs there"
        raise Damaged(f"{path}, line 1: the records of another run than its folder says: {wrong}", mend)
    summary = read_results(folder, place) if finished else _so_far(records, metric_named(header.metric, header.labels))
    if broken := gap(records, summary):
        raise Damaged(f"{path}, {broken}", advice)
    return Read(folder, place, header, raw, records, summary, finished)


def run_of(read: Read, network: Network) -> Run:
    """What tables and figures need of a run.

    Raises:
        Damaged: its records cannot be used.
    """
    try:
        run = _reduced(read, network, _named(read.folder, read.header.configuration, read.place))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{read.folder / RECORDS}: cannot be used ({type(error).__name__}: {error})"
        raise Damaged(what, _advice(read.folder, read.place)) from None
    return replace(run, answers=_answers(read.folder / ANSWERS)) if read.finished else run


def _answers(path: Path) -> tuple[WrittenExample, ...]:
    """Of answers.jsonl; nothing where there is none, or another file of this name: no number depends on it."""
    try:
        return tuple(WrittenExample.model_validate(from_json(line)) for line in path.read_bytes().splitlines())
    except (OSError, ValueError):
        return ()


def _named(folder: Path, configuration: Configuration, place: Place) -> dict[str, Any]:
    """Task, method and seed of a run."""
    data = configuration.data
    return {
        "task": place.task or data.task or Path(data.path or folder.resolve()).stem,
        "method": place.method or configuration.method.kind,
        "seed": configuration.seed,
    }


def _so_far(records: Sequence[RoundRecord | EvalRecord], metric: Metric) -> Summary:
    """What `_reduced` takes from a summary, of a run that has none yet."""
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    selected = next((record.server for record in reversed(rounds) if record.server), {})
    scores = {"worst_decile": worst_decile(evaluations[-1].clients, metric) if evaluations else None}
    return Summary.model_validate({"scores": scores, "selected": selected, "seconds": 0, "evaluation": {"seconds": 0}})


def progress_of(folder: Path) -> str | None:
    """How far a run is that has no results, as in "unfinished, 3 of 40 training rounds"; None for one that has."""
    if (folder / SUMMARY).is_file():
        return None
    header, records = read(folder / RECORDS, length_of_whole_lines(folder / RECORDS))
    trained = sum(isinstance(record, RoundRecord) and any(record.steps.values()) for record in records)
    return f"unfinished, {trained} of {header['configuration']['federation']['rounds']} training rounds"


def _advice(folder: Path, place: Place) -> str:
    """What to do about a finished run that is damaged; in a comparison `fibecfed compare` makes it again by itself."""
    if place.task is not None:
        return "the next `fibecfed compare` repeats it"
    if not (folder / CONFIG).is_file():
        return "restore the file from a backup"
    return f"restore the file from a backup, or repeat the run with: fibecfed run {folder / CONFIG}"


def _failure(path: Path) -> str | None:
    """Why a run of a comparison stopped, where it left a word about it."""
    try:
        found = from_json(path.read_bytes())
        why = "rejected" if found["why"] == "refused" else found["why"]  # as the file has it
        return f"no result, {why}: {found['reason']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_results(folder: Path, place: Place = NOWHERE) -> Summary:
    """summary.json of a finished run.

    Raises:
        Damaged: it is not what a run writes.
        UserError: it cannot be read.
    """
    path = folder / SUMMARY
    resume = f"remove it and resume with: fibecfed resume {folder}" if place.task is None else _advice(folder, place)
    try:
        return read_json(path, Summary)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    except ValidationError as error:
        raise Damaged(f"{path}, line 1: {told(error, 'a summary')}", resume) from None
    except ValueError as error:
        raise Damaged(f"{path}{line_of(error)}: not JSON ({error})", resume) from None


def _reduced(read: Read, network: Network, named: Mapping[str, Any]) -> Run:
    header, records, summary, metric = read.header, read.records, read.summary, read.metric
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    if not evaluations:
        raise ValueError("no evaluation among the records")
    last = evaluations[-1]
    points = _points(records, network, metric, header.device, header.threads or 1)
    majority, own_majority = baselines(last, header.partition, metric)
    if math.isnan(majority) and points[0].rounds == 0:
        majority = points[0].personalised  # of the untrained model, where a metric does not follow from predicted classes
    usual = (
        METRICS.get(header.usual_metric or "") if header.usual_metric != metric.name and not math.isnan(points[-1].personalised) else None
    )
    return Run(
        **named,
        kind=header.configuration.method.kind,
        points=points,
        metric=metric,
        majority=majority,
        prior=own_majority,
        worst_decile=summary.scores.worst_decile,
        usual=None if usual is None else usual.name,
        usual_personalised=None if usual is None else usual.of(last.pooled),
        bytes_up=sum(sum(record.bytes_up.values()) for record in rounds),
        bytes_down=sum(sum(record.bytes_down.values()) for record in rounds),
        steps=sum(sum(record.steps.values()) for record in rounds),
        examples=sum(sum(record.examples.values()) for record in rounds),
        trainable=header.trainable,
        measured_s=sum(record.seconds for record in rounds),
        clients=tuple(sorted(score for sums in last.clients.values() if not math.isnan(score := metric.of(sums)))),
        classes=Classes(header.labels, last.pooled[CONFUSION], last.server[CONFUSION])
        if header.labels and CONFUSION in last.pooled
        else None,
        selection=_selection(header, rounds, summary.selected or {}),
        conditions={**_conditions(header), "settings": _settings(header, read.raw), "clock": _clock(rounds)},
        written={name: score for name in OF_WRITTEN if not math.isnan(score := METRICS[name].of(last.pooled))},
        source_s=sum(one.seconds for one in summary.sources),
        source_examples=sum(one.examples for one in summary.sources),
        rising=summary.rising is not None,
    )


def _clock(rounds: Sequence[RoundRecord]) -> str:
    return VIRTUAL if any(one.virtual_s is not None for one in rounds) else joined(one.compute_clock for one in rounds)


def _points(records: Sequence[RoundRecord | EvalRecord], network: Network, metric: Metric, device: str, threads: int) -> tuple[Point, ...]:
    """Bytes and modelled seconds up to each evaluation: virtual time, where the run had it."""
    points: list[Point] = []
    size, seconds = 0, 0.0
    for record in records:
        if isinstance(record, RoundRecord):
            size += sum(record.bytes_up.values()) + sum(record.bytes_down.values())
            if record.virtual_s is None:
                seconds += round_seconds(record, network, device=device, threads=threads)
            else:
                seconds = record.virtual_s
        else:
            points.append(Point(record.rounds, size, seconds, metric.of(record.pooled), metric.of(record.server)))
    return tuple(points)


def _selection(header: Header, rounds: Sequence[RoundRecord], selected: Mapping[str, Any]) -> SelectionRecord:
    epochs = header.configuration.training.local_epochs
    available = {client: sum(parts["train"]) for client, parts in header.partition.items()}
    kept, data, difficulty, own = {}, {}, [], 0
    for number, record in enumerate((record for record in rounds if any(record.steps.values())), start=1):
        whole = epochs * sum(available.get(client, 0) for client in record.steps)
        if whole:
            data[number] = sum(record.examples.values()) / whole
        counts = [notes["kept_neurons"] for notes in record.notes.values() if "kept_neurons" in notes]
        if counts:
            kept[number] = sum(counts) / len(counts)
        for notes in record.notes.values():
            difficulty.extend(notes.get("difficulty", ()))
            own = max(own, notes.get("own_neurons", 0))
    return SelectionRecord(
        importance=tuple(selected.get("importance") or ()),
        layers=tuple(selected.get("global_layers") or ()),
        kept=kept,
        own=own,
        data=data,
        difficulty=_histogram(difficulty),
    )


def _histogram(values: Sequence[float]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Counts over equal bins of log10; values of 0 are in the first bin."""
    positive = [value for value in values if value > 0]
    if len(positive) < 2 or min(positive) == max(positive):
        return (), ()
    counts, edges = np.histogram(np.log10(np.maximum(values, min(positive))), bins=_BINS)
    return tuple(edges.tolist()), tuple(counts.tolist())


def _conditions(header: Header) -> dict[str, Any]:
    """What a reader has to know to judge or repeat the numbers."""
    federation, training, data, model = (getattr(header.configuration, name) for name in ("federation", "training", "data", "model"))
    of = len(header.partition) or federation.clients  # as many as there were, which a column of the data decides as well
    sampled = min(of, federation.clients_per_round or DEFAULT_CLIENTS_PER_ROUND)
    clients = f"{count(of, 'client')}, {sampled} per round, {count(federation.rounds, 'round')}"
    spread = f"Dirichlet {federation.alpha:g}" if federation.partition == "dirichlet" else str(federation.partition)
    tokens = data.max_length or f"{DEFAULT_MAX_LENGTH} ({DEFAULT_MAX_LENGTH_PAIRS} of two texts)"
    decay = "" if training.schedule == "constant" else f", {training.schedule} decay"
    cores = f"{header.machine.get('cores')} cores, {count(header.threads or 1, 'thread')} per run, {header.precision}"
    return {
        "model": f"{_without_folder(model.name)}, head {model.head}",
        "federation": f"{clients}, {spread}{_slowness(federation)}",
        "training": f"{count(training.local_epochs, 'local epoch')}, batches of {training.batch_size}, {training.optimizer}{decay}",
        "learning_rate": training.learning_rate,
        "data": f"at most {data.max_train or 'all'} training and {data.max_test or 'all'} test examples, {tokens} tokens",
        "machine": f"{header.machine.get('processor')}, {cores}",
        "versions": ", ".join(f"{name} {version}" for name, version in header.versions.items()),
        "commit": header.commit,
    }


def _slowness(federation: Any) -> str:
    """Schedule, speeds and links, as in ", buffered, speeds: slow_share 0.2, slow_factor 10"; without what is not set."""
    text = "" if federation.schedule == "synchronous" else f", {federation.schedule}"
    for name in ("speeds", "links"):
        table = {key: value for key, value in getattr(federation, name).items() if value}
        if "slow_share" not in table:
            table.pop("slow_factor", None)
        if table.keys() - {"tokens_per_s"}:
            parts = (f"{key} {value:g}" if isinstance(value, float) else f"{key} given" for key, value in table.items())
            text += f", {name}: {', '.join(parts)}"
    return text


_NO_SETTINGS = (
    "training.learning_rate", "training.schedule", "training.device", "evaluation.batch_size", "evaluation.save", "data.task", "data.path",
    "data.test_path", "data.root", "data.text_column", "data.pair_column", "data.label_column", "data.client_column",
    "federation.client_names",
)  # fmt: skip
"""What says where or on what a run computes, or is expected to differ between methods, tasks and seeds."""


def _settings(header: Header, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what runs must share to be compared on a task; the precision is the one that was computed in."""
    tables = {name: table for name, table in raw["configuration"].items() if name not in ("method", "resources")}
    found = {f"{above}.{name}": value for above, table in tables.items() if isinstance(table, Mapping) for name, value in table.items()}
    if header.precision:
        found["training.precision"] = header.precision
    if header.partition:
        found["federation.clients"] = len(header.partition)
    if "model.name" in found:
        found["model.name"] = _without_folder(found["model.name"])
        digests = sorted(header.model.get("files", {}).values())
        found["model.weights"] = ", ".join(digest[:12] for digest in digests) or None  # folders of one name may hold different ones
    return {name: value for name, value in found.items() if name not in _NO_SETTINGS}


def _without_folder(name: Any) -> Any:
    """A model's name for a report that is handed on: of a local one without its place on this machine."""
    return Path(name).name if isinstance(name, str) and Path(name).is_absolute() else name


def gap(records: Sequence[RoundRecord | EvalRecord], summary: Summary) -> str | None:
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
    rounds = done if summary.rounds is None else summary.rounds
    scored = evaluated if summary.scores.rounds is None else summary.scores.rounds
    if (rounds, scored) == (done, evaluated):
        return None
    last = f"{count(done, 'round')}, the last evaluation after {evaluated}"
    return (
        f"line {len(records) + 1}: got the end after {last}, expected {count(rounds, 'round')} and one after {scored}, as the summary says"
    )


def files_of(read: Read) -> RunFiles:
    """All that was read, with what version 0.1 did not write into a summary."""
    selected = read.summary.selected or {}
    table = read.summary.model_dump(exclude_unset=True) if read.finished else {}
    if "saved" not in table:
        partition, labels = read.header.partition, read.header.labels
        table |= summarise(read.records, metric=read.metric, selected=selected, labels=labels, partition=partition)
    return RunFiles(read.folder, read.raw, read.records, table, read.finished)
