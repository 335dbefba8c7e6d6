"""The end of a run: adapters with their model cards, and summary.json."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .build import Prepared
from .client_manager import ClientManager, InProcess, in_process
from .config import flat
from .core.errors import UserError
from .core.files import CHECKPOINTS, RECORDS, SUMMARY, write_atomically
from .core.json_text import to_json
from .core.metrics import Metric, offered_by
from .core.records import EvalRecord
from .core.trees import checksum
from .core.types import ClientId, Round
from .core.wire import decode
from .engine.checkpoint import Checkpoint, Checkpoints
from .engine.evaluation import every_score, known, scores
from .engine.log import read_records
from .engine.pooled import MeanPool
from .engine.requests import Requests
from .engine.states import StatesAt
from .engine.stopping import Stopped
from .engine.summary import summarise
from .methods.presets import in_force
from .privacy.ledger import forget
from .private_run import Private, about, about_sums, took_part
from .saving import save
from .side_by_side import write_answers
from .tracking.values import TrackedScores


@dataclass(frozen=True)
class Final:
    """What is saved at the end of a run.

    Attributes:
        clients: with their states after `now`.
        server: the server's state after `now`.
        now: the round.
    """

    clients: ClientManager
    server: Any
    now: Round


def of_round(prepared: Prepared, out: Path, checkpoint: Checkpoint, now: Round) -> Final:
    """What is saved where it is the state of a checkpoint and not that of the last round. The clients are those of this process."""
    states = StatesAt(out / CHECKPOINTS / "clients", checkpoint.where)
    return Final(in_process(prepared, states, out, checkpoint.number), decode(prepared.method.server_state, checkpoint.server), now)


def summaries(summary: Mapping[str, Any]) -> Callable[[ClientId], dict[str, Any]]:
    """What each client gets of the run: the scores of the federation and its own, and nobody else's."""
    common = {name: value for name, value in summary.items() if name != "clients"}
    return lambda client: {**common, "client": summary["clients"].get(client)}


def tracked_scores(record: EvalRecord, metric: Metric) -> TrackedScores:
    """For the trackers: every score of an evaluation, under the names of summary.json."""
    offered = offered_by(record.pooled)
    whole = {name: score for name, score in scores(record, metric).items() if name != "rounds"}
    for whose, found in every_score(record, offered).items():
        whole |= {f"metrics/{whose}/{name}": score for name, score in found.items()}
    return TrackedScores(whole, {client: {one.name: known(one.of(sums)) for one in offered} for client, sums in record.clients.items()})


def best_of(
    prepared: Prepared,
    out: Path,
    checkpoints: Checkpoints,
    best: EvalRecord | None,
    last: Final,
    rounds: Sequence[Round],
    warn: Callable[[str], None],
) -> Final:
    """What is saved with `evaluation.save` = "best": where it cannot be had, the last round's models, with a warning.

    Args:
        rounds: that were held.
    """
    if best is None:
        warn("evaluation.save: no evaluation had the answers of all clients, so the models of the last round are saved")
        return last
    if best.rounds == last.now.number + 1:
        return last
    try:
        checkpoint = checkpoints.load(best.rounds)
    except UserError as error:
        warn(f"{error}; it held the models of round {best.rounds}, the best one; those of the last round are saved instead")
        return last
    return of_round(prepared, out, checkpoint, rounds[best.rounds - 1])


def finish(
    prepared: Prepared,
    out: Path,
    final: Final,
    selected: Mapping[str, Any],
    adapters: bool,
    pool: Private | None = None,
    stopped: Mapping[str, Stopped] = MappingProxyType({}),
) -> dict[str, Any]:
    """Write adapters, then the summary: where there is one, everything is there.

    Args:
        selected: what the method chose.
        adapters: whether the folder keeps adapters and checkpoints.
        pool: of a private run.
        stopped: phases that ended early.

    Returns:
        The summary.
    """
    clients, server, last = final.clients, final.server, final.now
    config, data, method = prepared.inputs.config, prepared.inputs.data, prepared.method
    header, records = read_records(out / RECORDS)
    params = method.server_params(server)
    shared = checksum(params)
    summary = {
        "method": config.method.model_dump()["kind"],
        "task": config.data.task or config.data.path,
        "seed": config.seed,
        **summarise(
            records,
            metric=prepared.metric,
            selected=selected,
            labels=data.label_names or (),
            partition=header["partition"],
            saved=last.number + 1,
        ),
    }
    summary |= prepared.beforehand.summary
    if stopped:
        summary["stopped_early"] = {phase: {**vars(one), "text": one.text} for phase, one in stopped.items()}
    if prepared.cohorts is not None:
        summary |= {"secure_aggregation": about_sums(prepared, records), "clients_that_took_part": took_part(records)}
    if pool is not None:
        summary |= {"privacy": about(prepared, pool, last.number + 1), "clients_that_took_part": pool.ledger.clients}
    if (preset := in_force(flat(config))) is not None:
        summary["preset"] = preset
    if adapters:
        save(prepared, out / "global", None, params, summary, header)
    phase = next(phase for phase in method.phases if phase.name == last.phase)
    broadcast = phase.broadcast(server, last)

    def messages(names: Sequence[ClientId]) -> Mapping[ClientId, bytes]:
        return Requests(phase, server, broadcast, names)

    if isinstance(clients, InProcess):
        write_answers(prepared, out, params, lambda client: clients.personal_params(client, messages([client])[client], last))
    own = clients.finish(messages, last, shared, summaries(summary), header, adapters)
    if isinstance(pool, MeanPool) or prepared.cohorts is not None:
        own = {}  # a checksum of what is private would let a guess of it be confirmed
    digests = [f"{client} {own[client]}" for client in sorted(own) if own[client] != shared]
    every = hashlib.sha256("\n".join([f"global {shared}", *digests]).encode()).hexdigest()
    summary["adapters"] = {"personal": len(digests), "sha256": every}
    write_atomically(out / SUMMARY, (to_json(summary, indent=2) + "\n").encode())
    if pool is not None:
        forget(out)
    if not adapters:
        shutil.rmtree(out / CHECKPOINTS)
    return summary
