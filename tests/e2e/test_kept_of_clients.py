"""What a server keeps of each client: beside its state in the checkpoints, and found again by a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from saved import run_config

from fibecfed import session
from fibecfed.config import Config
from fibecfed.core.errors import UserError
from fibecfed.core.wire import decode
from fibecfed.engine.checkpoint import Checkpoints
from fibecfed.engine.events import RoundDone
from fibecfed.engine.states import OnServer
from fibecfed.methods.fedpeptao import ClientControl


def config(inputs: Path) -> Config:
    return run_config(inputs, method={"kind": "fedpeptao"}, federation={"rounds": 4}, training={"learning_rate": 0.005})


def interrupted(inputs: Path, out: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, RoundDone) and event.phase == "tune" and event.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.start(config(inputs), out, stop)


def test_a_resumed_run_finds_the_controls_of_every_client(inputs: Path, tmp_path: Path) -> None:
    whole = session.start(config(inputs), tmp_path / "whole")
    interrupted(inputs, tmp_path / "resumed")
    checkpoints = Checkpoints(tmp_path / "resumed" / "checkpoints", 2)
    states = checkpoints.open_states(checkpoints.load_latest(), 0)
    kept = {client: blob for client in states.clients() if (blob := OnServer(states).get(client)) is not None}
    assert 2 <= len(kept) <= len(states.clients()) == 4
    assert all(value.any() for blob in kept.values() for value in decode(ClientControl, blob).control.values())
    summary, _ = session.resume(tmp_path / "resumed")
    assert summary["adapters"] == whole["adapters"] and summary["scores"] == whole["scores"]
    assert len(list((tmp_path / "resumed" / "clients").iterdir())) == 4


def test_a_checkpoint_with_another_versions_server_state_is_refused_by_name(inputs: Path, tmp_path: Path) -> None:
    interrupted(inputs, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    latest = checkpoints.load_latest()
    assert latest is not None
    states = checkpoints.open_states(latest, 0)
    tensors = safetensors.torch.load(latest.server) | {"client_controls/0/a": torch.zeros(2)}  # as version 0.1.0 had them
    size = int.from_bytes(latest.server[:8], "little")
    header = json.loads(latest.server[8 : 8 + size])["__metadata__"]
    path = checkpoints.save(latest.number, safetensors.torch.save(tensors, header), states, latest.extra)
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"{path}: .*fibecfed \d.* cannot read .*client_controls/0/a.*start a new run"):
        session.resume(tmp_path)
    assert path.read_bytes() == before
