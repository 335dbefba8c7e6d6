"""A client's name belongs to the key that the server's operator registered under it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from made import KEY, made_task
from made_flower import CONFIG, RUN, Grid, ask, be_an_app, residents

from fibecfed.core.errors import RunFailed
from fibecfed.core.types import Failure, Round
from fibecfed.engine.flower import transport as transport_module
from fibecfed.engine.flower.names import Node, fingerprint, misnamed
from fibecfed.engine.flower.transport import FlowerTransport
from fibecfed.engine.transport import exchange

pytestmark = pytest.mark.flower

NOW = Round("importance", 0, 1, 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    be_an_app()
    monkeypatch.setattr(transport_module, "POLL_S", 0.01)


def registered(folder: Path, names: dict[int, str], **options: Any) -> tuple[FlowerTransport, Grid, list[str]]:
    """A transport to clients 0 and 1 behind SuperNodes 1 and 2, whose keys are registered under `names`."""
    clients = residents(folder)
    grid = Grid({1: clients["0"].answer, 2: clients["1"].answer})
    grid.names = names
    told: list[str] = []
    transport = FlowerTransport(grid, RUN, CONFIG, {"torch": "1"}, 0, told.append, **options)
    transport.start_from(made_task().init_params(KEY.fold("run", "init")))
    return transport, grid, told


def test_clients_behind_keys_that_are_registered_under_their_names_take_part(tmp_path: Path) -> None:
    transport, _, told = registered(tmp_path, {1: "0", 2: "1"})
    assert transport.wait_for(2, None, 1.0) == ("0", "1") and not told


@pytest.mark.parametrize("lenient", [False, True])
def test_a_registered_client_that_claims_another_name_is_rejected_whoever_comes_first(tmp_path: Path, lenient: bool) -> None:
    clients = residents(tmp_path)
    transport, grid, told = registered(tmp_path, {1: "0", 2: "1"}, unregistered_names=lenient)
    grid.nodes[2] = replace(clients["0"], identity="of the thief", folder=tmp_path / "thief").answer
    del grid.nodes[1]  # the thief is there first, alone
    with pytest.raises(RunFailed, match=r"Rejected: a client calls itself 0, but SuperNode 2 is registered as 1: rejected"):
        transport.wait_for(1, None, 0.2)
    grid.nodes[1] = clients["0"].answer
    assert transport.wait_for(1, None, 1.0) == ("0",)
    ((_, reply),) = exchange(transport, "train", NOW, {"0": ask()}, 5)
    assert isinstance(reply, bytes)
    assert ("train", 2) not in grid.sent and ("train", 1) in grid.sent
    (sentence,) = {text for text in told if "rejected" in text}
    assert "start it with --name 1" in sentence and "flwr supernode unregister 2, then flwr supernode register KEY.pub --name 0" in sentence


def test_the_name_of_a_client_that_is_away_cannot_be_taken_during_a_run(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    transport, grid, _ = registered(tmp_path, {1: "0", 2: "1"})
    transport.wait_for(2, None, 1.0)
    del grid.nodes[1]
    grid.nodes[3] = clients["0"].answer  # even with what the other one's folder holds
    grid.names[3] = "spare"
    ((_, reply),) = exchange(transport, "train", NOW, {"0": ask()}, 1)
    assert isinstance(reply, Failure) and "SuperNode 3 is registered as spare" in reply.reason


def test_a_key_without_a_name_is_rejected_unless_the_server_allows_it(tmp_path: Path) -> None:
    transport, _, told = registered(tmp_path, {2: "1"})
    with pytest.raises(RunFailed, match="1 of 2 clients are here"):
        transport.wait_for(2, None, 0.2)
    (sentence,) = set(told)
    for part in ("calls itself 0, but SuperNode 1 was registered without a name", "--name 0", "allow-unregistered-names = true"):
        assert part in sentence
    lenient, _, told = registered(tmp_path, {2: "1"}, unregistered_names=True)
    assert lenient.wait_for(2, None, 1.0) == ("0", "1") and not told


def test_a_key_that_replaces_another_under_the_same_name_speaks_for_it_while_the_run_goes_on(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    transport, grid, told = registered(tmp_path, {1: "0", 2: "1"})
    transport.wait_for(2, None, 1.0)
    del grid.nodes[1]
    grid.nodes[7], grid.names[7] = clients["0"].answer, "0"
    ((_, reply),) = exchange(transport, "train", NOW, {"0": ask()}, 5)
    assert isinstance(reply, bytes) and not told


def test_a_key_is_shown_as_ssh_keygen_shows_it(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    (tmp_path / "k.pub").write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    shown = subprocess.run(["ssh-keygen", "-lf", tmp_path / "k.pub"], capture_output=True, text=True, check=True).stdout
    found = fingerprint(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert found == shown.split()[1] and found.startswith("SHA256:")
    assert fingerprint(b"of the simulation") == ""


def test_a_long_registered_name_is_cut_in_the_sentence() -> None:
    assert "x" * 81 not in (misnamed(Node(1, "x" * 10_000, b""), "a", unregistered=False) or "")
