"""Programs of a federation as processes that are forked from one that has imported all they need: many on one machine.

Each is a process of its own, with the arguments, environment, folder and output that it was started with, and runs the same code as the
command of that name; what it has imported lies in memory once for all of them, and starting one takes no second of a processor.

Run as a program it is that process: `python forked.py SOCKET`. `commands` makes a folder of commands that ask it, for programs that start
others by their name, and `start` asks it from Python.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = {
    "fibecfed": "fibecfed.cli:main",
    "flwr": "flwr.cli.app:app",
    "flower-supernode": "flwr.supernode.cli:flower_supernode",
    "flower-superexec": "flwr.supercore.cli:flower_superexec",
    "flwr-clientapp": "flwr.supernode.cli:flwr_clientapp",
}
IMPORTED = (
    "torch", "transformers", "transformers.models.bert.modeling_bert", "peft", "datasets", "uvicorn", "httpx", "fastapi",
    "fibecfed.deploy.client", "fibecfed.engine.flower.relay", "fibecfed.engine.flower.resident", "flwr.supernode.start_client_internal",
    "flwr.clientapp",
)  # fmt: skip

COMMAND = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    told = json.dumps([[{program!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(connection, [len(told).to_bytes(8, "big") + told], [0, 1, 2])
    connection.recv(8)
"""


def commands(folder: Path, path: Path, programs: Sequence[str]) -> Path:
    """A folder for PATH."""
    folder.mkdir()
    for program in programs:
        file = folder / program
        file.write_text(COMMAND.format(python=sys.executable, path=str(path), program=program))
        file.chmod(0o755)
    return folder


class Process:
    """As subprocess.Popen, for one that is not a child of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._file = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return 0 if select.select([self._file], (), (), 0)[0] else None

    def send_signal(self, how: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._file, how)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._file], (), (), timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return 0


def start(path: Path, command: Sequence[str], folder: Path, environment: Mapping[str, str], output: Any) -> Process:
    """Have a program started."""
    with socket.socket(socket.AF_UNIX) as connection, open(os.devnull) as nothing:
        connection.connect(str(path))
        told = json.dumps([list(command), str(folder), dict(environment)]).encode()
        socket.send_fds(connection, [len(told).to_bytes(8, "big") + told], [nothing.fileno(), output.fileno(), output.fileno()])
        return Process(int.from_bytes(connection.recv(8), "big"))


def _asked(connection: socket.socket) -> tuple[list[int], Any]:
    blob, files, _, _ = socket.recv_fds(connection, 2**16, 3)
    size = int.from_bytes(blob[:8], "big")
    while len(blob) < 8 + size:
        blob += connection.recv(2**16)
    return files, json.loads(blob[8:])


def _become(files: list[int], command: list[str], folder: str, environment: dict[str, str]) -> int:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    module, _, name = PROGRAMS[command[0]].partition(":")
    sys.argv = command
    try:
        getattr(importlib.import_module(module), name)()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    path = sys.argv[1]
    for name in (*IMPORTED, *(entry.partition(":")[0] for entry in PROGRAMS.values())):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else each process's collector writes to, and so copies, all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended ones need not be asked for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(256)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            files, asked = _asked(connection)
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                listener.close()
                connection.close()
                code = _become(files, *asked)
                atexit._run_exitfuncs()
                os._exit(code)
            for file in files:
                os.close(file)
            connection.sendall(pid.to_bytes(8, "big"))
            connection.close()


if __name__ == "__main__":
    main()
