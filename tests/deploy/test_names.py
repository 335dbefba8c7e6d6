"""Real processes: clients that start their own SuperNodes, a name that belongs to a key, and plain HTTP that a client refuses."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from machines import BIN, WAIT_S, Machines, free_port
from tiny_federation import make_tiny, rounds_of

pytestmark = [pytest.mark.flower, pytest.mark.slow]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    here = make_tiny(tmp_path_factory.mktemp("n"), rounds=1, client_names='["a"]')
    path = here.app / "federation.toml"
    path.write_text(path.read_text().replace("clients = 3", "clients = 1"))
    try:
        here.link()
        for name in ("a", "thief", "stranger"):
            here.key(name)
        for name in ("a", "thief"):
            here.register(name)
        yield here
    finally:
        here.close()


def test_a_registered_client_that_claims_anothers_name_is_rejected_and_its_owner_trains(machines: Machines) -> None:
    machines.start("client-thief", *machines.alone("thief", called="a"))
    machines.until("client-thief", "as SuperNode")
    machines.start("client-a", *machines.alone("a"))
    machines.until("client-a", "as SuperNode")
    shown = machines.run(str(BIN / "flwr"), "run", "fed", "production", "--stream")
    (out,) = (machines.app / "runs").iterdir()
    assert (out / "summary.json").is_file(), shown
    assert "a client calls itself a, but SuperNode" in shown and "is registered as thief: rejected" in shown
    run = json.loads((out / "flower.json").read_text())["run"]
    assert all(set(record.steps) == {"a"} for record in rounds_of(out))
    assert "train: " in machines.log("client-a") and "train: " not in machines.log("client-thief")
    assert (machines.folder / "a-client" / run).is_dir()


def test_a_client_that_ends_or_is_killed_leaves_no_supernode_behind(machines: Machines) -> None:
    assert len(machines.pids("flower-supernode --superlink")) == 2
    machines.stop("client-thief", signal.SIGKILL)
    machines.stop("client-a")
    end = time.monotonic() + WAIT_S
    while machines.pids("flower-supernode") and time.monotonic() < end:
        time.sleep(0.2)
    assert not machines.pids("flower-supernode")


def test_a_key_that_is_not_registered_is_told_and_the_client_ends(machines: Machines) -> None:
    machines.start("client-stranger", *machines.alone("stranger", called="a"))
    assert machines.running["client-stranger"].wait(WAIT_S) == 2
    told = machines.log("client-stranger")
    assert "error: --key: the server at" in told and "Send stranger-key.pub to the server's operator" in told


def test_a_client_whose_server_asks_for_plain_http_refuses(machines: Machines) -> None:
    """Neither the server's own permission nor its SuperNode's --insecure counts on a client: its user has to say so there."""
    machines.stop("link")
    port = str(machines.port)
    machines.start("link", str(BIN / "flower-superlink"), "--insecure", "--host", "0.0.0.0", "--port", port)
    machines.until("link", "Starting Flower SuperExec")
    shown = machines.run(*machines.alone("a", superlink=f"0.0.0.0:{port}"), check=False)
    assert "does not answer in TLS" in shown and "the server cannot allow that for this machine" in shown
    address = ("--superlink", f"0.0.0.0:{port}", "--port", str(free_port()))
    machines.start("node", str(BIN / "flower-supernode"), "--insecure", *address, "--node-config", 'socket="a.sock"')
    machines.until("node", "SuperNode ID")
    connections = machines.app / ".flwr" / "config.toml"
    connections.write_text(f'{connections.read_text()}\n[superlink.plain]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    allowed = "allow-plain-http=true allow-unregistered-names=true"
    machines.start("flwr", str(BIN / "flwr"), "run", "fed", "plain", "--stream", "--run-config", allowed)
    machines.until("flwr", "flower-supernode runs with --insecure on 0.0.0.0")
    assert "allow-plain-http=true in its --node-config" in machines.log("flwr")
