"""What server and clients of a federation across machines say is also in the package's log, a line each."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from saved import save_backbone
from tiny_federation import COMMON

from fibecfed.core.files import CONFIG, FLOWER
from fibecfed.deploy import client, server

pytestmark = pytest.mark.flower


@pytest.mark.filterwarnings("ignore")
def test_what_a_server_says_of_its_clients_is_shown_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save_backbone(tmp_path / "backbone")
    keys = 'rounds = 3\nclients_per_round = 2\npartition = "machines"'
    (tmp_path / CONFIG).write_text(COMMON.format(backbone=tmp_path / "backbone", every=1, data="", federation=keys))
    (tmp_path / FLOWER).write_text(json.dumps({"run": "0123456789abcdef", "clients": ["a"]}))

    def wait_for(transport: Any, *_: Any) -> tuple[str, ...]:
        transport.say("client a\x1b[2J is late\nWARNING forged")
        return ("a",)

    monkeypatch.setattr(server.FlowerTransport, "wait_for", wait_for)
    monkeypatch.setattr(server.session, "completed_rounds", lambda *_: 2)
    monkeypatch.setattr(server.session, "resume", lambda *_, **__: None)
    with caplog.at_level(logging.INFO, logger="fibecfed"):
        server.serve(None, {"run": str(tmp_path), "wait-s": 5.0})
    (told,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert told.getMessage() == "client a?[2J is late?WARNING forged"
    assert capsys.readouterr().out.count("warning: client a") == 1


def test_what_a_client_says_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []
    with caplog.at_level(logging.INFO, logger="fibecfed"):
        client.logged(said.append)("train: tune round 3: done")
    assert said == [record.getMessage() for record in caplog.records] == ["train: tune round 3: done"]
