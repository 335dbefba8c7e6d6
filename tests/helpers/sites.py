"""The processes of a federation in a network: the SuperLink on one machine, each client with its SuperNode on another."""

from __future__ import annotations

import re
from pathlib import Path

from machines import Machines
from namespaces import SERVER, Network
from tiny_federation import NAMES


class Sites(Machines):
    """As `Machines`, in the namespaces of a network; what is on no site is on the server."""

    def __init__(self, folder: Path) -> None:
        self.network = Network(NAMES, folder)
        super().__init__(folder, self.network.address(SERVER))
        del self.environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]  # here Flower's own seconds are measured

    def on(self, machine: str, command: tuple[str, ...]) -> tuple[str, ...]:
        return self.network.on(machine, *command)

    def rounds(self, count: int) -> None:
        """Let runs have so many rounds; clients that are started from now on expect that."""
        path = self.app / "federation.toml"
        path.write_text(re.sub(r"(?m)^rounds = \d+$", f"rounds = {count}", path.read_text()))

    def clients(self) -> None:
        """Start each site's client with its SuperNode, and wait until they are connected."""
        for name in NAMES:
            self.start(f"client-{name}", *self.alone(name, data=name), machine=name)
        for name in NAMES:
            self.until(f"client-{name}", "connected to")

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.network.close()
