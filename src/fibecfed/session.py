"""Runs on disk: start one, resume one, and what they leave in their folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from .build import Prepared, prepare
from .config import Config, config_hash, load, to_toml
from .core.errors import RunFailed, UserError
from .core.files import write_atomically
from .core.records import EvalRecord, RoundRecord, read, to_line
from .core.trees import checksum
from .core.types import Params
from .core.wire import decode, encode
from .engine.checkpoint import Checkpoint, Checkpoints, RunLock
from .engine.client import ClientRuntime
from .engine.evaluation import Evaluator, worst_decile
from .engine.events import Evaluated, Event, Finished, PhaseStarted, RoundDone, Started, Warned
from .engine.loop import Step, run, schedule
from .engine.simulator import Simulator
from .core import metrics
from .models.backbones import sha256_of
from .models.export import save_adapter
from .report.card import model_card
from .report.summary import summarise

CONFIG = "config.toml"
RECORDS = "records.jsonl"
SUMMARY = "summary.json"
Listener = Callable[[Event], None]


def start(config: Config, out: Path, on_event: Listener = lambda event: None) -> dict[str, Any]:
    """Run a configuration in a new folder; its summary.

    Raises:
        UserError: a mistake of the configuration, or a folder that is not empty: nothing was written then.
        RunFailed: it stopped while it was under way, and can be resumed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds a run already" if (out / CONFIG).exists() else "exists and is not empty"
        raise UserError(f"{out} {what}; nothing was changed. Choose another folder with --out, or go on with: fibecfed resume {out}")
    prepared = prepare(config)
    with _disk_errors(out), RunLock(out):
        write_atomically(out / CONFIG, to_toml(config).encode())
        return _Session(prepared, out, on_event).go(None)


def resume(out: Path, on_event: Listener = lambda event: None) -> tuple[dict[str, Any], bool]:
    """Go on with the run in a folder; its summary, and whether it was finished before.

    Raises:
        UserError: not a run's folder, or no checkpoint that can be used.
        RunFailed: it stopped again.
    """
    if not (out / CONFIG).is_file():
        raise UserError(f"{out}: got a folder without {CONFIG}, expected the folder of a run, as given to --out")
    if (out / SUMMARY).is_file():
        return json.loads((out / SUMMARY).read_text(encoding="utf-8")), True
    config = load(out / CONFIG).config
    with _disk_errors(out), RunLock(out):
        checkpoint = Checkpoints(out / "checkpoints", config.resources.keep_checkpoints).load_latest()
        if checkpoint is not None and checkpoint.extra.get("config") != config_hash(config):
            raise UserError(f"{out / CONFIG} is not the configuration that the checkpoint was made with; put the recorded file back")
        return _Session(prepare(config), out, on_event).go(checkpoint), False


class _disk_errors:
    """A full disk and the like, as a sentence; what was written before stays usable."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno is not None:
            raise RunFailed(f"{error.filename or self.out}: {error.strerror}; mend it and go on with: fibecfed resume {self.out}") from error


class _Session:
    """One process's work on a run's folder."""

    def __init__(self, prepared: Prepared, out: Path, on_event: Listener) -> None:
        self.prepared = prepared
        self.config = prepared.inputs.config
        self.out = out
        self.say = on_event
        self.data = prepared.inputs.data
        self.method = prepared.method
        self.key = prepared.inputs.key.fold("run")
        self.metric = self.data.metric

    def go(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        config, resources = self.config, self.config.resources
        checkpoints = Checkpoints(self.out / "checkpoints", resources.keep_checkpoints)
        states = checkpoints.open_states(checkpoint, resources.client_memory_mb * 2**20)
        runtime = ClientRuntime(
            self.method, self.prepared.task, self.data.client, states, self.key, config.evaluation.batch_size
        )
        transport = Simulator(runtime)
        evaluator = Evaluator(
            self.method, self.prepared.task, transport, self.data.clients, self.data.test, self.data.validation, config.evaluation.batch_size
        )
        rounds = schedule(self.method)
        phases = tuple((phase.name, phase.num_rounds) for phase in self.method.phases)
        number = 0 if checkpoint is None else checkpoint.number
        self.say(Started(self.out, phases, number))
        for warning in checkpoint.warnings if checkpoint else ():
            self.say(Warned(warning))

        if checkpoint is None:
            server = self.method.init(self.prepared.task, self.key.fold("init"))
            log = _Log(self.out / RECORDS, 0)
            log.write(self._header())
            self._evaluated(log, evaluator.untrained(server), False)
        else:
            server = decode(self.method.server_state, checkpoint.server)
            log = _Log(self.out / RECORDS, int(checkpoint.extra["records_bytes"]))

        steps = run(
            self.method, transport, self.data.clients, per_round=config.federation.clients_per_round, key=self.key, server=server,
            start=number, on_failure=config.federation.on_failure,
        )  # fmt: skip
        phase = None
        cpu = time.process_time()
        for step in steps:
            cpu_s = time.process_time() - cpu
            if step.now.phase != phase:
                phase = step.now.phase
                self.say(PhaseStarted(phase, step.now.num_rounds))
            server = step.server
            self._round(log, step, cpu_s)
            if self._due(step):
                self._evaluated(log, evaluator.after(server, step.now, step.number), step.number == len(rounds))
            if step.number % resources.checkpoint_every == 0 or step.number == len(rounds):
                extra = {"records_bytes": log.sync(), "config": config_hash(config)}
                checkpoints.save(step.number, encode(server), states, extra)
            cpu = time.process_time()
        return self._finish(log, runtime, server, rounds[-1])

    def _due(self, step: Step) -> bool:
        """After every so many rounds of a phase in which clients train, and after its last."""
        if not any(step.record.steps.values()):
            return False
        return (step.now.index + 1) % self.config.evaluation.every == 0 or step.now.index + 1 == step.now.num_rounds

    def _round(self, log: _Log, step: Step, cpu_s: float) -> None:
        record = replace(step.record, server=dict(self.method.summary(step.server)) if step.now.phase != "tune" else {}, cpu_s=cpu_s)
        log.write(record)
        seen = sum(record.examples.values())
        loss = sum(record.loss[c] * record.examples[c] for c in record.loss) / seen if seen else None
        for client, reason in record.failures.items():
            self.say(Warned(f"client {client} was left out of {record.phase} round {record.index}: {reason}"))
        self.say(
            RoundDone(
                record.phase, record.index, step.now.num_rounds, loss, sum(record.bytes_up.values()), sum(record.bytes_down.values()), record.seconds
            )
        )

    def _evaluated(self, log: _Log, record: EvalRecord, is_last: bool) -> None:
        log.write(record)
        self.say(
            Evaluated(record.rounds, metrics.accuracy(record.pooled), metrics.accuracy(record.server), worst_decile(record.clients), is_last)
        )

    def _header(self) -> dict[str, Any]:
        inputs = self.prepared.inputs
        return {
            "configuration": self.config.model_dump(mode="json"),
            "config_hash": config_hash(self.config),
            "versions": versions(),
            "commit": _commit(),
            "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
            "threads": torch.get_num_threads(),
            "precision": self.prepared.task.precision,
            "device": str(self.prepared.task.device),
            "model": {"published": inputs.source.published, "files": {path.name: sha256_of(path) for path in inputs.source.files}},
            "labels": list(self.data.label_names),
            "metric": self.metric,
            "trainable": sum(value.numel() for value in self.prepared.task.params().values()),
            "partition": self.data.partition.table(),
        }

    def _finish(self, log: _Log, runtime: ClientRuntime, server: Any, last: Any) -> dict[str, Any]:
        log.sync()
        log.close()
        header, records = read(self.out / RECORDS)
        summary = {
            "method": self.config.method.kind,  # pyright: ignore[reportAttributeAccessIssue]
            "task": self.config.data.task or self.config.data.path,
            "seed": self.config.seed,
            **summarise(records, metric=self.metric, selected=self.method.summary(server)),
        }
        phase = next(phase for phase in self.method.phases if phase.name == last.phase)
        blob = encode(phase.broadcast(server, last))
        params = self.method.server_params(server)
        digests = [f"global {checksum(params)}"]
        self._save("global", params, summary, header)
        for client in runtime.states.clients():
            own = runtime.personal_params(client, blob, last)
            if checksum(own) != checksum(params):
                digests.append(f"{client} {checksum(own)}")
                self._save(f"clients/{_folder_name(client)}", own, summary, header)
        summary["adapters"] = {"personal": len(digests) - 1, "sha256": hashlib.sha256("\n".join(digests).encode()).hexdigest()}
        write_atomically(self.out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        self.say(Finished(summary, self.out))
        return summary

    def _save(self, name: str, params: Params, summary: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        source = self.prepared.inputs.source
        card = model_card(
            who="the global model" if name == "global" else f"client {name.partition('/')[2]}",
            base=source.published, files=header["model"]["files"], labels=self.data.label_names, summary=summary,
            config_toml=to_toml(self.config), versions=header["versions"],
        )  # fmt: skip
        save_adapter(
            self.prepared.task, params, self.out / name, base=source.published, revision=source.revision, labels=self.data.label_names, card=card
        )


class _Log:
    """records.jsonl, cut to the length that a checkpoint knows of and appended to."""

    def __init__(self, path: Path, length: int) -> None:
        path.touch()
        if path.stat().st_size < length:
            raise UserError(f"{path}: got {path.stat().st_size} bytes, expected at least the {length} that the checkpoint knows of; put the file back")
        self._file = path.open("r+b")
        self._file.truncate(length)
        self._file.seek(length)

    def write(self, record: RoundRecord | EvalRecord | Mapping[str, Any]) -> None:
        self._file.write(to_line(record).encode())
        self._file.flush()

    def sync(self) -> int:
        """Force everything to disk; the file's length."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"python": platform.python_version()}
    for name in ("fibecfed", "torch", "transformers", "peft", "safetensors", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str | None:
    """Commit of the package's own checkout, with "+" where files differ from it; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        top = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--", "."], cwd=here, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return top + ("+" if changed else "")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _folder_name(client: str) -> str:
    """The client's id as a name of a folder: anything but letters, digits, `-`, `_` and inner dots is percent-encoded."""
    name = quote(client, safe="")
    return name.replace(".", "%2E", 1) if name.startswith(".") else name
