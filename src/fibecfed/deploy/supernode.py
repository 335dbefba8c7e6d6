"""The SuperNode that `fibecfed client --superlink` starts beside itself: its command, its log, and what is done when it ends."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ..core.errors import UserError
from ..core.terminal import one_line
from ..engine.flower.plain_http import OPTION
from .again import ENVIRONMENT
from .superlink import SuperLink, expiry

LOG = "supernode.log"
_LONGEST_LOG = 5 * 2**20
FIRST_REST_S, _LONGEST_REST_S = 1.0, 60.0
"""Until it is started again; twice as long each time, as long as it does not reach the server."""
_STOP_S = 10.0

_BOUND = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the client has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes another program that Linux ends when the thread ends that started it: a client that is killed leaves no SuperNode behind."""

_CONNECTED = "SuperNode ID:"
_DISTRUSTED = "CERTIFICATE_VERIFY_FAILED"
"""After this, Flower's SuperNode (1.41) neither continues nor ends."""

_UNKNOWN_KEY = "Failed to activate SuperNode"
"""What Flower says to a key that is not registered, and to one whose SuperNode it holds for connected."""

ONLINE_S, AGAIN_S = 120.0, 10.0
"""How long, and how often, a key is tried again that was admitted before: Flower 1.41 holds a SuperNode that was killed for connected until
it has been silent for a minute, and admits its key again only then."""


class SuperNode:
    """Flower's process, started again whenever it ends, until `stop`.

    Args:
        client_socket: where its relays find the client.
        folder: for its log.
        say: called with a sentence about what happens.
        changed: called with whether it is connected, and how often it has been started again.
        ends: called with when the server's certificate ends, whenever that was looked at.

    Attributes:
        problem: why it cannot work whatever is tried; the process gets SIGTERM then, so that its main thread can say so.
    """

    def __init__(
        self,
        link: SuperLink,
        client_socket: Path,
        folder: Path,
        say: Callable[[str], None],
        changed: Callable[[bool, int], None],
        ends: Callable[[float | None], None],
    ) -> None:
        self.problem: str | None = None
        self._link, self._folder, self._say, self._changed, self._ends = link, folder, say, changed, ends
        self._node_config = node_config(client_socket, link.plain_http)
        self._program = program("flower-supernode")
        log = folder / LOG
        self._was_admitted = log.is_file() and _CONNECTED.encode() in log.read_bytes()  # its key was registered then
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="supernode", daemon=True)

    def start(self) -> None:
        """Start it, and keep it running."""
        self._thread.start()

    def stop(self) -> None:
        """End it, with what it has started."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
        self._thread.join(_STOP_S)
        if process is not None and self._thread.is_alive():
            _end_all_of(process)

    def _keep(self) -> None:
        rest, restarts, refused = FIRST_REST_S, 0, None
        while not self._stopping.is_set():
            try:
                if restarts:  # before its first start the client has looked itself
                    self._ends(expiry(self._link)[0])
                last, connected = self._once(restarts)
            except OSError as error:  # no process or no file to be had now
                last, connected = [f"{error.filename or 'it'}: {error.strerror}"], False
            except UserError as error:  # the server's certificate is no longer valid: its operator may renew it
                last, connected = [str(error)], False
            if self._stopping.is_set():
                return
            self._changed(False, restarts)
            if any(_UNKNOWN_KEY in line for line in last):
                refused = time.monotonic() if refused is None else refused
                if not self._was_admitted or time.monotonic() - refused > ONLINE_S:
                    self.problem = self._unknown_key()
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self._say(f"the server holds this client's SuperNode that ended for connected; trying again in {AGAIN_S:.0f} s")
                restarts += 1
                self._stopping.wait(AGAIN_S)
                continue
            refused = None
            restarts, rest = restarts + 1, FIRST_REST_S if connected else min(_LONGEST_REST_S, 2 * rest)
            why = next((line for line in reversed(last) if line.strip()), "no message")
            self._say(f"no SuperNode now ({one_line(why)[:400]}); another start in {rest:.0f} s; its log is {self._folder / LOG}")
            self._stopping.wait(rest)

    def _once(self, restarts: int) -> tuple[list[str], bool]:
        """Run it to its end; its last lines, and whether it was connected."""
        last, connected = collections.deque[str](maxlen=30), threading.Event()
        path = self._folder / LOG
        mode = "wb" if path.exists() and path.stat().st_size > _LONGEST_LOG else "ab"

        def read(lines: IO[bytes]) -> None:
            for line in lines:
                log.write(line)
                last.append(line.decode(errors="replace").rstrip())
                if _CONNECTED in last[-1] and not connected.is_set():
                    connected.set()
                    self._was_admitted = True
                    self._say(f"connected to {self._link.address} as SuperNode {last[-1].rpartition(':')[2].strip()[:40]}")
                    self._changed(True, restarts)
                if _DISTRUSTED in last[-1]:
                    process.kill()

        with path.open(mode, buffering=0) as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _BOUND, str(os.getpid()), *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
            self._process = process
            if self._stopping.is_set():
                process.terminate()
            reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
            reader.start()
            process.wait()  # what it has started may outlive it, with the other end of the pipe
            _end_all_of(process)
            reader.join(_STOP_S)
        return list(last), connected.is_set()

    def _command(self) -> list[str]:
        link = self._link
        certificates = [] if link.root_certificates is None else ["--root-certificates", str(link.root_certificates)]
        secured = ["--insecure"] if link.plain_http else [*certificates, "--auth-supernode-private-key", str(link.key)]
        port = ["--port", str(_free_port())]
        return [str(self._program), "--superlink", link.address, *secured, *port, "--node-config", self._node_config]

    def _environment(self) -> dict[str, str]:
        home = {"FLWR_HOME": os.environ.get("FLWR_HOME", str((self._folder / ".flwr").absolute()))}
        path = f"{self._program.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # it starts flower-superexec by its name
        return {**os.environ, **ENVIRONMENT, **home, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def _unknown_key(self) -> str:
        key = self._link.key
        public = f"{key}.pub" if key is not None and Path(f"{key}.pub").is_file() else f"its public half (ssh-keygen -y -f {key})"
        return (
            f"--key: the server at {self._link.address} does not know this key: it is not registered, or no longer. Send {public} to the "
            "server's operator, who registers it under this client's name: flwr supernode register client.pub production --name NAME"
        )


def _end_all_of(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started, at once."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def program(name: str) -> Path:
    """One of Flower's programs, in this Python's environment.

    Raises:
        UserError: it is not installed there.
    """
    path = Path(sys.executable).with_name(name)
    if not path.is_file():
        raise UserError(f"{name} is not installed in this Python's environment; run in a clone of fibecfed: pip install '.[flower]'")
    return path


def node_config(client_socket: Path, plain_http: bool) -> str:
    """What relays must know, as Flower reads it: words `key=value`, of which texts may hold neither kind of its quotes.

    Raises:
        UserError: a path that it cannot read.
    """
    path = str(client_socket.absolute())
    if re.search(r"[\"'\\\x00-\x1f]", path):
        raise UserError(f"--socket: got {path!r}, whose quotes or backslashes Flower cannot read; choose another path")
    return f"socket={json.dumps(path, ensure_ascii=False)}" + (f" {OPTION}=true" if plain_http else "")


def _free_port() -> int:
    """For Flower's own relays on this machine; several clients may share it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
