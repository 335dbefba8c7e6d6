from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from saved import save_backbone
from tiny_federation import COMMON

from fibecfed.core.files import CONFIG
from fibecfed.deploy import server
from fibecfed.deploy.again import FLOWER

pytestmark = pytest.mark.flower


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_goes_on_waits_for_the_clients_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_backbone(tmp_path / "backbone")
    keys = 'rounds = 3\nclients_per_round = 2\npartition = "machines"'
    (tmp_path / CONFIG).write_text(COMMON.format(backbone=tmp_path / "backbone", every=1, data="", federation=keys))
    (tmp_path / FLOWER).write_text(json.dumps({"run": "0123456789abcdef", "clients": ["a", "b"]}))
    asked: list[Any] = []

    def wait_for(transport: Any, clients: int, names: list[str], wait_s: float) -> tuple[str, ...]:
        asked.append((names, wait_s))
        return tuple(names)

    monkeypatch.setattr(server.FlowerTransport, "wait_for", wait_for)
    monkeypatch.setattr(server.session, "completed_rounds", lambda *_: 2)
    monkeypatch.setattr(server.session, "resume", lambda out, *_, **__: asked.append(out))
    server.serve(None, {"run": str(tmp_path), "wait-s": 5.0})
    assert asked == [(["a", "b"], 5.0), tmp_path]


def test_what_libraries_announce_to_programmers_is_not_shown_to_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> None:
        warnings.warn_explicit("will be removed", FutureWarning, "modeling_utils.py", 1, module="transformers.modeling_utils")

    monkeypatch.setattr(server, "_run", run)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        server.serve(None, {})
    assert not shown
