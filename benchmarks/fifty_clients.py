"""Many clients of a federation as real processes on one machine: memory of the server, seconds a round, and whether an answer is lost.

Run: OMP_NUM_THREADS=1 python benchmarks/fifty_clients.py [clients] [rounds] [killed] [disk], with Flower, as in .venv-flower

A SuperLink with TLS and registered keys, its server app, and for each client a SuperNode, Flower's SuperExec and a resident
`fibecfed client` with a tiny BERT and 16 examples; every client is asked in every round, and Flower starts a process for each message. The
clients' programs are forked from one process (`forked.py`), so that what they import lies in memory once; the server's are started as a
user does. With `killed` above 0 so many clients, drawn anew each round, are killed with SIGKILL at a time within the round and started
again at once.
Printed: seconds a round, the most memory (RSS) that SuperLink and server app took, the memory of all processes (PSS), and of the answers
that were expected how many came, of clients that were not killed and of those that were.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "helpers"), str(HERE.parent / "src")]

import forked  # noqa: E402
from machines import BIN, Machines, free_port  # noqa: E402
from saved import BAD, GOOD, save_backbone  # noqa: E402
from tiny_federation import COMMON, rounds_of  # noqa: E402

TIMEOUT_S = 120
ASKS_EVERY_S = 5
"""How often a client's SuperExec asks its SuperNode for work. By default each second, which 50 on two cores are busy with."""
MEMORY = Path("/dev/shm")
"""Where the SuperLink keeps its database, if it is there; with the word `disk`, beside the app: then it may say "database is locked"."""
LOOKS_EVERY_S = 60
"""At the memory of all processes, which takes seconds of a processor."""


class Forked(Machines):
    """Machines whose clients are forked."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        super().__init__(folder)
        self.names, self.fork = names, folder / "fork.sock"
        own = {**self.environment, "PYTHONUNBUFFERED": "1"}
        self._parent = subprocess.Popen([sys.executable, str(HERE / "forked.py"), str(self.fork)], env=own, stdout=subprocess.PIPE)
        assert self._parent.stdout is not None and self._parent.stdout.readline() == b"ready\n"
        found = forked.commands(folder / "bin", self.fork, ["flower-superexec", "flwr-clientapp"])
        own["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = str(ASKS_EVERY_S)
        self.of_clients = {**own, "PATH": f"{found}{os.pathsep}{self.environment['PATH']}"}

    def ask(self, log: str, *command: str) -> Any:
        path = self.folder / f"{log}.log"
        self.before[log] = len(self.log(log)) if path.exists() else 0
        with path.open("ab") as output:
            return forked.start(self.fork, command, self.folder, self.of_clients, output)

    def client_of(self, name: str) -> None:
        files = ("--data", f"{name}-train.csv", "--test-data", f"{name}-test.csv")
        own = ("--socket", f"{name}.sock", "--name", name)
        self.running[f"client-{name}"] = self.ask(f"client-{name}", "fibecfed", "client", "--config", "fed/federation.toml", *files, *own)

    def node_of(self, name: str) -> None:
        own = ("--port", str(free_port()), "--auth-supernode-private-key", f"{name}-key", "--node-config", f'socket="{name}.sock"')
        server = ("--superlink", f"{self.host}:{self.port}", "--root-certificates", str(self.app / "certificates" / "ca.crt"))
        self.running[f"node-{name}"] = self.ask(f"node-{name}", "flower-supernode", *server, *own)

    def begin(self, rounds: int) -> None:
        save_backbone(self.folder / "backbone")
        self.make()
        if MEMORY.is_dir() and "disk" not in sys.argv:
            self.database = tempfile.TemporaryDirectory(dir=MEMORY)
            (self.app / "superlink.db").symlink_to(Path(self.database.name) / "superlink.db")
        more = f'clients = {len(self.names)}\nclients_per_round = {len(self.names)}\nrounds = {rounds}\non_failure = "drop"\n'
        text = COMMON.format(backbone=self.folder / "backbone", every=999, data="", federation="")
        text = text.replace("clients = 3\n", f'{more}partition = "machines"\nround_timeout_s = {TIMEOUT_S}.0\nquorum = 0.5\n')
        (self.app / "federation.toml").write_text(text)
        self.link()
        for name in self.names:
            for part, rows in (("train", 16), ("test", 4)):
                lines = [f"{(GOOD, BAD)[i % 2][i % 4]} film plot,{('good', 'bad')[i % 2]}" for i in range(rows)]
                (self.folder / f"{name}-{part}.csv").write_text("\n".join(["review,verdict", *lines]) + "\n")
            self.key(name)
            self.ask("register", "flwr", "supernode", "register", f"{name}-key.pub", "production", "--name", name).wait(120)
            self.client_of(name)
        for name in self.names:
            self.until(f"client-{name}", "listening at")
            self.node_of(name)
        for name in self.names:
            self.until(f"node-{name}", "SuperNode ID")

    def close(self) -> None:
        with ThreadPoolExecutor(32) as threads:
            list(threads.map(self.stop, list(self.running)))
        super().close()
        self._parent.kill()
        self._parent.wait()


def kilobytes(pid: int, file: str, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def completed(runs: set[Path]) -> int:
    """Rounds in the records of a run under way."""
    files = [folder / "records.jsonl" for folder in runs]
    return sum(file.read_bytes().count(b'"cohort"') for file in files if file.is_file())


def watched(here: Forked, kill: int) -> tuple[Path, dict[str, float], dict[int, set[str]]]:
    """A run from its beginning to its end: its folder, peaks of memory in MB, and who was killed in which round."""
    draw, peak, killed = random.Random(0), dict[str, float](), dict[int, set[str]]()
    runs = here.app / "runs"
    before = set(runs.glob("*"))
    here.start("flwr", str(BIN / "flwr"), "run", "fed", "production", "--stream")
    seen, due, last, looked = -1, 0.0, time.monotonic(), 0.0
    chosen: list[str] = []
    while here.running["flwr"].poll() is None:
        time.sleep(0.5)
        rounds = completed(set(runs.glob("*")) - before)
        now = time.monotonic()
        if rounds > seen and rounds:
            took, last, seen = now - last, now, rounds
            chosen, due = draw.sample(here.names, kill), now + draw.random() * min(took, 30.0)
            print(f"round {rounds}: {took:.1f} s", flush=True)
        if chosen and now >= due:
            for name in chosen:
                here.stop(f"client-{name}", signal.SIGKILL)
            for name in chosen:
                here.client_of(name)
            killed.setdefault(rounds, set()).update(chosen)
            chosen = []
        for label, words in (("SuperLink", "flower-superlink"), ("server app", "flwr-serverapp")):
            pids = here.pids(words) if now - looked > LOOKS_EVERY_S else []
            peak[label] = max([peak.get(label, 0.0), *(kilobytes(pid, "status", "VmHWM") / 1e3 for pid in pids)])
        if now - looked > LOOKS_EVERY_S:
            everything = sum(kilobytes(pid, "smaps_rollup", "Pss:") for pid in here.pids()) / 1e3
            peak["all processes, PSS"] = max(peak.get("all processes, PSS", 0.0), everything)
            looked = now
    new = set(runs.glob("*")) - before
    assert new, f"{here.log('flwr')}\n{here.log('link')[-6000:]}"
    return new.pop(), peak, killed


def main() -> None:
    given = [word for word in sys.argv[1:] if word != "disk"]
    clients, rounds, kill = (int(word) for word in [*given, *("50", "20", "0")[len(given) :]])
    names = [f"c{number:02}" for number in range(clients)]
    with tempfile.TemporaryDirectory() as folder:
        here = Forked(Path(folder), names)
        try:
            began = time.monotonic()
            here.begin(rounds)
            print(f"{clients} clients are connected after {time.monotonic() - began:.0f} s", flush=True)
            out, peak, killed = watched(here, kill)
            done = rounds_of(out)
            if not (out / "summary.json").is_file():
                print(here.log("flwr")[-3000:])
        finally:
            here.close()
    lost, spared = 0, 0
    for number, record in enumerate(done):
        near = killed.get(number, set()) | killed.get(number - 1, set())  # a handshake may be needed in the round after
        for name, reason in record.failures.items():
            lost, spared = lost + 1, spared + (name not in near)
            print(f"round {number + 1}: {reason}" + ("" if name in near else "; it was NOT killed"))
    seconds = statistics.median(record.seconds for record in done)
    columns = ["clients", "killed a round", "rounds", "s a round", *(f"{name}, MB" for name in peak), "lost, not killed", "lost, killed"]
    print(f"\n| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    numbers = [clients, kill, len(done), f"{seconds:.1f}", *(f"{megabytes:.0f}" for megabytes in peak.values())]
    print("|", " | ".join(map(str, [*numbers, f"{spared} of {clients * len(done)}", lost - spared])), "|")


if __name__ == "__main__":
    main()
