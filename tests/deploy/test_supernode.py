"""The SuperNode beside a client is started again whenever it ends or hangs; stand-ins for Flower's program, which say what that says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fibecfed.core.errors import UserError
from fibecfed.deploy import supernode
from fibecfed.deploy.superlink import SuperLink
from fibecfed.deploy.supernode import LOG, SuperNode

LINK = SuperLink("server.example:8000", Path("ca.crt"), Path("client"), False)


def runs(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@dataclass
class Beside:
    """A SuperNode whose program is a shell script, and what it has said."""

    node: SuperNode
    folder: Path
    told: list[str] = field(default_factory=list)
    changes: list[tuple[bool, int]] = field(default_factory=list)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, (self.told, self.changes)
            time.sleep(0.02)

    def starts(self) -> int:
        """How often the script has been started."""
        words = self.folder / "words"
        return len(words.read_text().splitlines()) if words.exists() else 0

    def pids(self) -> list[int]:
        """Those that the script noted and that still run."""
        noted = self.folder / "pids"
        numbers = [int(line) for line in noted.read_text().split()] if noted.exists() else []
        return [number for number in numbers if runs(number)]


Start = Callable[[str], Beside]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(supernode, "FIRST_REST_S", 0.05)
    monkeypatch.setattr(supernode, "expiry", lambda link: (2e9, None))
    started: list[Beside] = []

    def begin(script: str) -> Beside:
        program = tmp_path / "flower-supernode"
        program.write_text(f'#!/bin/sh\necho $$ >> {tmp_path}/pids\necho "$@" >> {tmp_path}/words\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setattr(supernode, "program", lambda name: program)
        told: list[str] = []
        changes: list[tuple[bool, int]] = []
        node = SuperNode(LINK, Path("a b.sock"), tmp_path, told.append, lambda *change: changes.append(change), ends.append)
        started.append(Beside(node, tmp_path, told, changes))
        node.start()
        return started[-1]

    ends: list[float | None] = []
    yield begin
    for beside in started:
        beside.node.stop()
        beside.until(lambda: not beside.pids())  # noqa: B023


def test_it_gets_address_certificates_key_and_socket(start: Start, tmp_path: Path) -> None:
    beside = start("echo 'INFO: SuperNode ID: 42'; exec sleep 60")
    beside.until(lambda: beside.changes)
    words = (tmp_path / "words").read_text()
    assert words.startswith("--superlink server.example:8000 --root-certificates ca.crt --auth-supernode-private-key client --port ")
    assert words.strip().endswith(f'--node-config socket="{Path.cwd()}/a b.sock"')
    assert beside.told == ["connected to server.example:8000 as SuperNode 42"] and beside.changes == [(True, 0)]
    assert "SuperNode ID: 42" in (tmp_path / LOG).read_text()


def test_whenever_it_ends_it_is_started_again_and_its_last_line_is_said(start: Start) -> None:
    beside = start("echo 'SuperNode ID: 42'; echo 'the network is down'; exit 3")
    beside.until(lambda: (True, 2) in beside.changes)
    assert "no SuperNode now (the network is down); another start in 0 s" in beside.told[1]
    assert beside.changes[:3] == [(True, 0), (False, 0), (True, 1)]


def test_what_it_leaves_behind_does_not_keep_it_from_being_started_again(start: Start, tmp_path: Path) -> None:
    beside = start(f"sleep 60 & echo $! >> {tmp_path}/pids; exit 1")
    beside.until(lambda: beside.starts() >= 3)
    assert len(beside.pids()) <= 2


def test_a_key_that_the_server_does_not_know_ends_the_client_with_a_sentence(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *words: signals.append(words))
    beside = start("echo '[code: 2004] Failed to activate SuperNode.'; exit 1")
    beside.until(lambda: beside.node.problem)
    beside.until(lambda: signals)
    assert "does not know this key: it is not registered, or no longer. Send its public half" in (beside.node.problem or "")
    assert "flwr supernode register client.pub production --name NAME" in (beside.node.problem or "")


def admitted_at(folder: Path, *starts: int) -> str:
    """A script that the server admits at these starts and refuses at all others."""
    admitted = "|".join(map(str, starts))
    said = f"{admitted}) echo 'SuperNode ID: 42';; *) echo 'Failed to activate SuperNode.';;"
    return f"case $(grep -c '' {folder}/words) in {said} esac; exit 1"


def test_a_key_that_was_admitted_is_tried_again_while_flower_holds_its_supernode_for_connected(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supernode, "AGAIN_S", 0.05)
    beside = start(admitted_at(tmp_path, 1, 4))
    beside.until(lambda: (True, 3) in beside.changes)
    held = [text for text in beside.told if text.startswith("the server holds this client's SuperNode that ended for connected")]
    assert len(held) == 2 and beside.node.problem is None


def test_a_key_stays_known_for_admitted_when_the_log_begins_anew(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supernode, "AGAIN_S", 0.05)
    monkeypatch.setattr(supernode, "_LONGEST_LOG", 0)
    (tmp_path / LOG).write_text("INFO: SuperNode ID: 42")
    beside = start(admitted_at(tmp_path, 2, 4))
    beside.until(lambda: (True, 3) in beside.changes)
    assert beside.node.problem is None


def test_a_key_that_was_admitted_and_is_refused_for_longer_than_that_ends_the_client(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *words: signals.append(words))
    monkeypatch.setattr(supernode, "AGAIN_S", 0.05)
    monkeypatch.setattr(supernode, "ONLINE_S", 0.1)
    beside = start(admitted_at(tmp_path, 1))
    beside.until(lambda: signals)
    assert "does not know this key" in (beside.node.problem or "") and beside.starts() >= 3


def test_one_that_hangs_since_the_certificate_expired_is_ended_and_tried_again_once_that_is_renewed(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expired = [True]

    def expiry(link: SuperLink) -> tuple[float | None, str | None]:
        if expired[0]:
            raise UserError("the certificate has expired")
        return 2e9, None

    monkeypatch.setattr(supernode, "expiry", expiry)
    beside = start("echo 'SuperNode ID: 42'; echo 'ERROR: [SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired'; exec sleep 60")
    beside.until(lambda: any("no SuperNode now (the certificate has expired)" in text for text in beside.told))
    assert beside.starts() == 1 and not beside.pids()
    expired[0] = False
    beside.until(lambda: beside.starts() == 2)
