"""Updates that must not be aggregated, sent by a real client over TLS: each is rejected by name, and the run goes on without its sender."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

import bad_updates
from bad_updates import BAD
from machines import BIN
from tiny_federation import make_tiny, outcome, rounds_of, start_tiny

from fibecfed import session
from fibecfed.build import Prepared
from fibecfed.client_manager import ClientManager, in_process
from fibecfed.config import load
from fibecfed.core.types import Failure
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.states import ClientStates
from fibecfed.engine.transport import Ticket

pytestmark = [pytest.mark.flower, pytest.mark.slow]

SENDER = "c"

SENTENCES = {
    "truncated": "bytes that are not a fibecfed message",
    "oversized": "bytes, expected at most",
    "of another version": "got wire version 9, expected 1",
    "with unknown names": "shared of its update has 6 unknown tensors (x",
    "of wrong shapes": "has shape (3, 3), expected (4, 64)",
    "with NaN": "is not finite",
    "with 1e30": "expected at most 1000 (federation.max_update_norm)",
    "of a million examples": "num_samples is 1000000, expected",
}


class Silent(Simulator):
    """A simulator one of whose clients never answers in the tuning phase."""

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        if (ticket.client, ticket.action, ticket.now.phase) == (SENDER, "train", "tune"):
            return Failure("away")
        return super().answer(ticket, blob)


def without_sender(prepared: Prepared, states: ClientStates, out: Path, completed: int) -> ClientManager:
    clients = in_process(prepared, states, out, completed)
    return replace(clients, transport=Silent(clients.transport.runtime))


def test_each_is_rejected_by_name_and_the_result_is_that_without_the_sender(tmp_path: Path) -> None:
    here = make_tiny(tmp_path, every=len(BAD), rounds=len(BAD), clients_per_round=3, max_update_norm=1000.0, max_samples=100_000)
    try:
        start_tiny(here, {SENDER: (bad_updates.__file__,)}, eager=True)
        shown = here.run(str(BIN / "flwr"), "run", "fed", "production", "--stream")
    finally:
        here.close()
    (out,) = (here.app / "runs").iterdir()
    session.start(load(tmp_path / "sim.toml").config, tmp_path / "without", connect=without_sender)
    assert outcome(out)[0] == outcome(tmp_path / "without")[0], shown
    importance, *tuning = rounds_of(out)
    assert not importance.failures
    for record, kind in zip(tuning, BAD, strict=True):
        assert record.refused == (SENDER,) and record.cohort == ("a", "b", "c") and set(record.steps) == {"a", "b"}
        reason = record.failures[SENDER]
        assert f"client c, tune round {record.index}" in reason and SENTENCES[kind] in reason
