"""Runs on disk: start one, resume one, and what they leave in their folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .build import Prepared, ReadData, prepare
from .clients import Clients, Connect, in_process
from .config import Config, config_hash, leaves, load, to_toml
from .core import metrics
from .core.errors import RunFailed, UserError
from .core.files import COMPARISON, CONFIG, RECORDS, SUMMARY, is_aside, read_summary, write_all, write_atomically
from .core.records import EvalRecord, RoundRecord, read, to_line
from .core.trees import checksum
from .core.types import ClientId, Round
from .core.wire import decode, encode
from .engine.checkpoint import Checkpoint, Checkpoints, RunLock
from .engine.evaluation import Evaluator, worst_decile
from .engine.events import Evaluated, Event, Finished, PhaseStarted, RoundDone, Started, Warned
from .engine.failures import Standing, Tolerance, sentences
from .engine.loop import Step, addressed, run, schedule
from .models.kept import KeptWeights
from .report.summary import summarise
from .saving import save, versions, weight_files

LOCK = "lock"
Listener = Callable[[Event], None]


def start(
    config: Config,
    out: Path,
    on_event: Listener = lambda event: None,
    *,
    adapters: bool = True,
    weights: KeptWeights | None = None,
    read_data: ReadData | None = None,
    connect: Connect = in_process,
) -> dict[str, Any]:
    """Run a configuration in a new folder; its summary.

    Args:
        adapters: whether the folder keeps adapters and checkpoints when the run is done; records and summary are the same without.
        weights: a process that makes many runs gives the same one to each, so that a backbone is read once.
        read_data: what this process knows of the data; None: all of it.
        connect: where the clients are.

    Raises:
        UserError: a mistake of the configuration, or a folder that is not empty or cannot be written: nothing was written then.
        RunFailed: it stopped while it was under way, and can be resumed.
    """
    _refuse_used(out)
    prepared = prepare(config, weights, read_data)
    with _disk_errors(out), RunLock(out):
        _refuse_used(out)  # another process may have been faster
        write_atomically(out / CONFIG, to_toml(config).encode())
        return _Session(prepared, out, on_event, adapters, connect).go(None)


def resume(
    out: Path,
    on_event: Listener = lambda event: None,
    *,
    adapters: bool = True,
    weights: KeptWeights | None = None,
    read_data: ReadData | None = None,
    connect: Connect = in_process,
) -> tuple[dict[str, Any], bool]:
    """Resume the run in a folder; its summary, and whether it was finished before.

    Args:
        adapters, weights, read_data, connect: as for `start`.

    Raises:
        UserError: not a run's folder, or no checkpoint that can be used.
        RunFailed: it stopped again.
    """
    if not (out / CONFIG).is_file():
        if (out / COMPARISON).is_file():
            again = shlex.join(["fibecfed", "compare", str(out / COMPARISON), "--out", str(out)])
            raise UserError(f"{out}: got the folder of a comparison, expected that of a single run; resume with: {again}")
        raise UserError(f"{out}: got a folder without {CONFIG}, expected the folder of a run, as given to --out")
    if (out / SUMMARY).is_file():
        return read_summary(out), True
    config = load(out / CONFIG).config
    with _disk_errors(out), RunLock(out):
        checkpoint = Checkpoints(out / "checkpoints", config.resources.keep_checkpoints).load_latest()
        if checkpoint is not None and checkpoint.extra.get("config") != config_hash(config):
            raise UserError(f"{out / CONFIG} is not the configuration that the checkpoint was made with; put the recorded file back")
        return _Session(prepare(config, weights, read_data), out, on_event, adapters, connect).go(checkpoint), False


def completed_rounds(out: Path, config: Config) -> int:
    """Number of completed rounds that a resumed run would start from."""
    checkpoint = Checkpoints(out / "checkpoints", config.resources.keep_checkpoints).load_latest()
    return 0 if checkpoint is None else checkpoint.number


def _refuse_used(out: Path) -> None:
    if not out.exists():
        return
    if (out / CONFIG).exists():
        way_out = f"choose another folder with --out, or resume with: fibecfed resume {_quoted(out)}"
        raise UserError(f"{out} holds a run already; nothing was changed; {way_out}")
    if not out.is_dir() or any(entry.name != LOCK and not is_aside(entry.name) for entry in out.iterdir()):
        raise UserError(f"{out} exists and is not an empty folder; nothing was changed. Choose another one with --out")


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk and the like, as a sentence with the command that resumes; what was written before stays usable."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename or out
        if not (out / CONFIG).exists():
            raise UserError(f"{where}: {error.strerror}; nothing was trained. Fix it, or choose another folder with --out") from error
        raise RunFailed(f"{where}: {error.strerror}; fix it and resume with: fibecfed resume {_quoted(out)}") from error
    except RunFailed as error:
        if "fibecfed resume" in str(error):
            raise
        raise RunFailed(f"{str(error).rstrip('.')}. Resume with: fibecfed resume {_quoted(out)}") from error


def _quoted(out: Path) -> str:
    return shlex.quote(str(out))


class _Session:
    """One process's work on a run's folder."""

    def __init__(self, prepared: Prepared, out: Path, on_event: Listener, adapters: bool, connect: Connect) -> None:
        self.adapters = adapters
        self.prepared = prepared
        self.config = prepared.inputs.config
        self.out = out
        self.say = on_event
        self.connect = connect
        self.data = prepared.inputs.data
        self.method = prepared.method
        self.key = prepared.inputs.key.fold("run")

    def go(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Train from a checkpoint, or from the start, to the end."""
        checkpoints = Checkpoints(self.out / "checkpoints", self.config.resources.keep_checkpoints)
        states = checkpoints.open_states(checkpoint, self.config.resources.client_memory_mb * 2**20)
        batch_size = self.config.evaluation.batch_size
        number = 0 if checkpoint is None else checkpoint.number
        clients = self.connect(self.prepared, states, self.out, number)
        transport, data = clients.transport, self.data
        tolerance = Tolerance.of(self.config.federation)
        standing = Standing.from_table({} if checkpoint is None else checkpoint.extra.get("standing", {}))
        evaluator = Evaluator(self.method, self.prepared.task, transport, data.clients, data.test, data.validation, batch_size, tolerance)
        rounds = schedule(self.method)
        phases = tuple((phase.name, phase.num_rounds) for phase in self.method.phases)
        self.say(Started(self.out, phases, number))

        known = 0 if checkpoint is None else int(checkpoint.extra["records_bytes"])
        with contextlib.closing(_Log(self.out / RECORDS, known)) as log:
            if checkpoint is None:
                server = self.method.init(self.prepared.task, self.key.fold("init"))
                log.write(self._header())
                self._evaluated(log, evaluator.untrained(server), False)
            else:
                server = decode(self.method.server_state, checkpoint.server)
                header = _records(self.out / RECORDS)[0]
                self._refuse_other_inputs(header)
                for warning in (*checkpoint.warnings, *self._changes(header)):
                    self.say(Warned(warning))
            steps = run(
                self.method,
                transport,
                data.clients,
                per_round=self.config.federation.clients_per_round,
                key=self.key,
                server=server,
                start=number,
                tolerance=tolerance,
                standing=standing,
            )
            phase = None
            cpu = time.process_time()
            for step in steps:
                cpu_s = time.process_time() - cpu
                if step.now.phase != phase:
                    phase = step.now.phase
                    self.say(PhaseStarted(phase, step.now.num_rounds))
                server = step.server
                self._round(log, step, cpu_s)
                is_last = step.number == len(rounds)
                if self._due(step):
                    self._evaluated(log, evaluator.after(server, step.now, step.number, step.standing.excluded), is_last)
                if is_last or step.number % self.config.resources.checkpoint_every == 0:
                    extra = {"records_bytes": log.sync(), "config": config_hash(self.config), "standing": step.standing.table()}
                    checkpoints.save(step.number, encode(server), states, extra)
                cpu = time.process_time()
        return self._finish(clients, server, rounds[-1])

    def _due(self, step: Step) -> bool:
        """After every so many rounds of a phase in which clients train, and after its last."""
        if not any(step.record.steps.values()):
            return False
        return (step.now.index + 1) % self.config.evaluation.every == 0 or step.now.index + 1 == step.now.num_rounds

    def _round(self, log: _Log, step: Step, cpu_s: float) -> None:
        chosen = dict(self.method.summary(step.server)) if step.now.phase != "tune" else {}
        record = replace(step.record, server=chosen, cpu_s=cpu_s)
        log.write(record)
        seen = sum(record.examples.values())
        loss = sum(record.loss[c] * record.examples[c] for c in record.loss) / seen if seen else None
        for text in sentences(record):
            self.say(Warned(text))
        up, down = sum(record.bytes_up.values()), sum(record.bytes_down.values())
        self.say(RoundDone(record.phase, record.index, step.now.num_rounds, loss, up, down, record.seconds))

    def _evaluated(self, log: _Log, record: EvalRecord, is_last: bool) -> None:
        log.write(record)
        for client, reason in record.failures.items():
            self.say(Warned(f"client {client} was left out of the evaluation after round {record.rounds}: {reason}"))
        pooled, server = metrics.accuracy(record.pooled), metrics.accuracy(record.server)
        self.say(Evaluated(record.rounds, pooled, server, worst_decile(record.clients), is_last))

    def _header(self) -> dict[str, Any]:
        return {
            "configuration": self.config.model_dump(),
            "config_hash": config_hash(self.config),
            "commit": _commit(),
            **self._conditions(),
            **self._inputs(),
            "metric": self.data.metric,
            "trainable": sum(value.numel() for value in self.prepared.task.params().values()),
        }

    def _inputs(self) -> dict[str, Any]:
        """What the configuration names and does not hold. A server whose clients are machines knows of no example."""
        return {
            "model": {"published": self.prepared.inputs.source.published, "files": weight_files(self.prepared)},
            "labels": list(self.data.label_names),
            "partition": self.data.partition.table(),
            "data": {"sha256": self.data.checksum()},
        }

    def _refuse_other_inputs(self, header: Mapping[str, Any]) -> None:
        """Other weights or data than the run began with would end in the numbers of neither."""
        found = self._inputs()
        known = [name for name in found if name in header]  # records of 0.1 have no checksum of the data
        now, then = (dict(leaves({name: table[name] for name in known})) for table in (found, header))
        for name in now | then:
            if now.get(name) != then.get(name):
                raise UserError(
                    f"{self.out}: {name}: got {now.get(name)}, expected {then.get(name)}, which the run began with; "
                    "put the files of the model and of the data back, or start a new run"
                )

    def _conditions(self) -> dict[str, Any]:
        """What has to be the same for the same bits."""
        return {
            "versions": versions(),
            "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
            "threads": torch.get_num_threads(),
            "precision": self.prepared.task.precision,
            "device": str(self.prepared.task.device),
        }

    def _changes(self, header: Mapping[str, Any]) -> list[str]:
        now = self._conditions()
        return [
            f"{name}: this run began with {header.get(name)} and is resumed with {now[name]}; the last bits of its numbers may differ"
            for name in now
            if header.get(name) != now[name]
        ]

    def _finish(self, clients: Clients, server: Any, last: Round) -> dict[str, Any]:
        """Adapters, then the summary: where there is one, everything is there."""
        header, records = _records(self.out / RECORDS)
        params = self.method.server_params(server)
        shared = checksum(params)
        summary = {
            "method": self.config.method.model_dump()["kind"],
            "task": self.config.data.task or self.config.data.path,
            "seed": self.config.seed,
            **summarise(records, metric=self.data.metric, selected=self.method.summary(server)),
        }
        if self.prepared.sources:
            summary["sources"] = [asdict(work) for work in self.prepared.sources]
        if self.adapters:
            save(self.prepared, self.out / "global", "the global model", params, summary, header)
        phase = next(phase for phase in self.method.phases if phase.name == last.phase)
        broadcast = phase.broadcast(server, last)

        def messages(names: Sequence[ClientId]) -> Mapping[ClientId, bytes]:
            return addressed(phase, server, broadcast, names)[1]

        own = clients.finish(messages, last, shared, summary, header, self.adapters)
        digests = [f"{client} {own[client]}" for client in sorted(own) if own[client] != shared]
        every = hashlib.sha256("\n".join([f"global {shared}", *digests]).encode()).hexdigest()
        summary["adapters"] = {"personal": len(digests), "sha256": every}
        write_atomically(self.out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        if not self.adapters:
            shutil.rmtree(self.out / "checkpoints")
        self.say(Finished(summary, self.out))
        return summary


def _records(path: Path) -> tuple[dict[str, Any], list[RoundRecord | EvalRecord]]:
    try:
        return read(path)
    except ValueError as error:
        raise UserError(f"{error}; put the file back from a copy, or start a new run") from None


class _Log:
    """records.jsonl, cut to the length that a checkpoint knows of and appended to. Nothing is held back in memory."""

    def __init__(self, path: Path, length: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        size = os.fstat(self._file).st_size
        if size < length:
            os.close(self._file)
            raise UserError(f"{path}: got {size} bytes, expected at least {length}, which the checkpoint knows of; put the file back")
        os.ftruncate(self._file, length)
        self._length = length

    def write(self, record: RoundRecord | EvalRecord | Mapping[str, Any]) -> None:
        line = to_line(record).encode()
        write_all(self._file, line, self._length)
        self._length += len(line)

    def sync(self) -> int:
        """Force everything to disk; the file's length."""
        os.fsync(self._file)
        return self._length

    def close(self) -> None:
        os.close(self._file)


def _commit() -> str | None:
    """Commit of the package's own checkout, with "+" where files differ from it; None outside of one."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else an environment inside another project's checkout
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
