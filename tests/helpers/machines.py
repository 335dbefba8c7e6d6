"""The processes of a federation on 127.0.0.1, each with a log of its own, started as docs/deploy.md says."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
WAIT_S = 240
_CURVE = ("ec", "-pkeyopt", "ec_paramgen_curve:P-384")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Machines:
    """A SuperLink, SuperNodes and resident clients, and their folder; the federation's own is `fed` in it."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder, self.app = folder, folder / "fed"
        self.host, self.port = host, free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.before: dict[str, int] = {}
        source = str(Path(__file__).resolve().parents[2] / "src")
        self.environment = {
            **os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "RAY_USAGE_STATS_ENABLED": "0",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "FLWR_HOME": str(self.app / ".flwr"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

    def on(self, machine: str, command: tuple[str, ...]) -> tuple[str, ...]:
        """The command as it is run on a client's machine, or the "server"'s: here there is one alone."""
        return command

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            self.on("server", command),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * WAIT_S,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout

    def start(self, name: str, *command: str, machine: str = "server") -> None:
        path = self.folder / f"{name}.log"
        self.before[name] = len(self.log(name)) if path.exists() else 0
        with path.open("ab") as log:
            self.running[name] = subprocess.Popen(self.on(machine, command), cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self.running.pop(name)
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def ended(self, name: str) -> None:
        """Wait until a process has ended by itself."""
        self.running.pop(name).wait(WAIT_S)

    def pids(self, words: str = "") -> list[int]:
        """Every process that was started for this federation, by whomever, and has `words` in its command line."""
        mark, found = f"FLWR_HOME={self.environment['FLWR_HOME']}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile, or is not ours
                continue
            if mark in environment.split(b"\0") and words in command.replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(folder.name))
        return sorted(found)

    def close(self) -> None:
        """End everything, also what a killed SuperLink has left behind; those first that take their leave of others."""
        for name in reversed(list(self.running)):
            self.stop(name)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def until(self, name: str, text: str) -> None:
        """Wait for a text in what a process has said since it was last started."""
        end = time.monotonic() + WAIT_S
        while text not in self.log(name)[self.before[name] :]:
            assert time.monotonic() < end, f"{name} does not say {text!r}: {self.log(name)[-2000:]}"
            time.sleep(0.2)

    def begun(self, rounds: int) -> Path:
        """Start a run; its folder, as soon as so many of its rounds are in a checkpoint."""
        runs = self.app / "runs"
        before = set(runs.glob("*"))
        self.start("flwr", str(BIN / "flwr"), "run", "fed", "production", "--stream")
        end = time.monotonic() + WAIT_S
        while not (new := set(runs.glob("*")) - before):
            assert time.monotonic() < end, self.log("flwr")
            time.sleep(0.2)
        (out,) = new
        self.until_round(out, rounds)
        return out

    def until_round(self, out: Path, rounds: int) -> None:
        """Wait until so many rounds of a run are in a checkpoint."""
        end = time.monotonic() + WAIT_S
        while not list(out.glob(f"checkpoints/*{rounds:05}.json")):
            assert time.monotonic() < end, self.log("flwr")
            time.sleep(0.1)

    def make(self) -> None:
        """The federation's folder, its connection to the SuperLink, and certificates."""
        self.run(sys.executable, "-m", "fibecfed", "flower", "init", "fed")
        connections = self.app / ".flwr" / "config.toml"
        connections.write_text(connections.read_text().replace("127.0.0.1:8000", f"{self.host}:{self.port}"))
        certificates(self.app / "certificates", self.run, self.host)

    def key(self, name: str) -> None:
        self.run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "", "-f", f"{name}-key")

    def register(self, name: str) -> None:
        self.run(str(BIN / "flwr"), "supernode", "register", f"{name}-key.pub", "production", "--name", name)

    def link(self) -> None:
        certificates = self.app / "certificates"
        self.start(
            "link", str(BIN / "flower-superlink"), "--host", self.host, "--port", str(self.port), "--enable-supernode-auth",
            "--ssl-ca-certfile", str(certificates / "ca.crt"), "--ssl-certfile", str(certificates / "server.crt"),
            "--ssl-keyfile", str(certificates / "server.key"), "--database", str(self.app / "superlink.db"),
        )  # fmt: skip
        self.until("link", "Starting Flower SuperExec")

    def client(self, name: str, *columns: str, program: tuple[str, ...] = ("-m", "fibecfed"), socket: str = "") -> None:
        self.start(
            f"client-{name}", sys.executable, *program, "client", "--config", "fed/federation.toml", "--data", f"{name}-train.csv",
            "--test-data", f"{name}-test.csv", "--socket", socket or f"{name}.sock", "--name", name, *columns, machine=name,
        )  # fmt: skip

    def alone(self, name: str, called: str = "", superlink: str = "", data: str = "a") -> list[str]:
        """The command of a client that starts its own SuperNode.

        Args:
            called: the name that it claims.
            data: whose data it has.
        """
        return [
            sys.executable, "-m", "fibecfed", "client", "--config", "fed/federation.toml", "--data", f"{data}-train.csv",
            "--test-data", f"{data}-test.csv", "--socket", f"{name}.sock", "--name", called or name,
            "--superlink", superlink or f"{self.host}:{self.port}", "--key", f"{name}-key",
            "--root-certificates", str(self.app / "certificates" / "ca.crt"),
        ]  # fmt: skip

    def node(self, name: str, program: tuple[str, ...] = (str(BIN / "flower-supernode"),)) -> None:
        self.start(
            f"node-{name}", *program, "--superlink", f"{self.host}:{self.port}", "--port", str(free_port()),
            "--root-certificates", str(self.app / "certificates" / "ca.crt"), "--auth-supernode-private-key", f"{name}-key",
            "--node-config", f'socket="{name}.sock"', machine=name,
        )  # fmt: skip


def certificates(folder: Path, run: Any, host: str) -> None:
    """An authority and the server's certificate, as in docs/deploy.md, for `host`."""
    folder.mkdir()
    ca, server = folder / "ca", folder / "server"
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        *_CURVE,
        "-nodes",
        "-days",
        "2",
        "-keyout",
        f"{ca}.key",
        "-out",
        f"{ca}.crt",
        "-subj",
        "/CN=ca",
    )
    run("openssl", "req", "-newkey", *_CURVE, "-nodes", "-keyout", f"{server}.key", "-out", f"{server}.csr", "-subj", "/CN=localhost")
    sign(folder, run, f"DNS:localhost,IP:{host}")


def sign(folder: Path, run: Any, names: str, days: int = 2) -> None:
    """A certificate of the server for these names, in place of the one that it has; -1 day: it has expired."""
    ca, server = folder / "ca", folder / "server"
    (folder / "san.cnf").write_text(f"subjectAltName={names}")
    run(
        "openssl", "x509", "-req", "-in", f"{server}.csr", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", str(days),
        "-extfile", str(folder / "san.cnf"), "-out", f"{server}.crt",
    )  # fmt: skip
