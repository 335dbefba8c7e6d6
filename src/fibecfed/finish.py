"""The end of a run: adapters with their model cards, and summary.json."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .build import Prepared
from .clients import Clients
from .core.files import RECORDS, SUMMARY, write_atomically
from .core.trees import checksum
from .core.types import ClientId, Round
from .engine.log import read_records
from .engine.loop import addressed
from .report.summary import summarise
from .saving import save


def finish(prepared: Prepared, out: Path, clients: Clients, server: Any, last: Round, adapters: bool) -> dict[str, Any]:
    """Write adapters, then the summary: where there is one, everything is there.

    Args:
        server: the server's state after the round `last`.
        adapters: whether the folder keeps adapters and checkpoints.

    Returns:
        The summary.
    """
    config, data, method = prepared.inputs.config, prepared.inputs.data, prepared.method
    header, records = read_records(out / RECORDS)
    params = method.server_params(server)
    shared = checksum(params)
    summary = {
        "method": config.method.model_dump()["kind"],
        "task": config.data.task or config.data.path,
        "seed": config.seed,
        **summarise(records, metric=data.metric, selected=method.summary(server)),
    }
    if prepared.sources:
        summary["sources"] = [asdict(work) for work in prepared.sources]
    if adapters:
        save(prepared, out / "global", "the global model", params, summary, header)
    phase = next(phase for phase in method.phases if phase.name == last.phase)
    broadcast = phase.broadcast(server, last)

    def messages(names: Sequence[ClientId]) -> Mapping[ClientId, bytes]:
        return addressed(phase, server, broadcast, names)[1]

    own = clients.finish(messages, last, shared, summary, header, adapters)
    digests = [f"{client} {own[client]}" for client in sorted(own) if own[client] != shared]
    every = hashlib.sha256("\n".join([f"global {shared}", *digests]).encode()).hexdigest()
    summary["adapters"] = {"personal": len(digests), "sha256": every}
    write_atomically(out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    if not adapters:
        shutil.rmtree(out / "checkpoints")
    return summary
