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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError

from .adapters.options import called
from .build import Prepared, prepare
from .config import Config, config_hash, load, to_toml
from .core import metrics
from .core.errors import RunFailed, UserError
from .core.files import CONFIG, RECORDS, SUMMARY, write_all, write_atomically
from .core.records import EvalRecord, RoundRecord, read, to_line
from .core.trees import checksum
from .core.types import Params, Round
from .core.wire import decode, encode
from .engine.checkpoint import Checkpoint, Checkpoints, RunLock
from .engine.client import ClientRuntime
from .engine.evaluation import Evaluator, worst_decile
from .engine.events import Evaluated, Event, Finished, PhaseStarted, RoundDone, Started, Warned
from .engine.failures import Standing, Tolerance, sentences
from .engine.loop import Step, run, schedule
from .engine.simulator import Simulator
from .models.backbones import sha256_of
from .models.export import save_adapter
from .models.kept import KeptWeights
from .report.card import model_card
from .report.summary import summarise

LOCK = "lock"
Listener = Callable[[Event], None]


def start(
    config: Config, out: Path, on_event: Listener = lambda event: None, *, adapters: bool = True, weights: KeptWeights | None = None
) -> dict[str, Any]:
    """Run a configuration in a new folder; its summary.

    Args:
        adapters: whether the folder keeps adapters and checkpoints when the run is done; records and summary are the same without.
        weights: a process that makes many runs gives the same one to each, so that a backbone is read once.

    Raises:
        UserError: a mistake of the configuration, or a folder that is not empty or cannot be written: nothing was written then.
        RunFailed: it stopped while it was under way, and can be resumed.
    """
    _refuse_used(out)
    prepared = prepare(config, weights)
    with _disk_errors(out), RunLock(out):
        _refuse_used(out)  # another process may have been faster
        write_atomically(out / CONFIG, to_toml(config).encode())
        return _Session(prepared, out, on_event, adapters).go(None)


def resume(
    out: Path, on_event: Listener = lambda event: None, *, adapters: bool = True, weights: KeptWeights | None = None
) -> tuple[dict[str, Any], bool]:
    """Go on with the run in a folder; its summary, and whether it was finished before.

    Args:
        adapters, weights: as for `start`.

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
        return _Session(prepare(config, weights), out, on_event, adapters).go(checkpoint), False


def _refuse_used(out: Path) -> None:
    if not out.exists():
        return
    if (out / CONFIG).exists():
        way_out = f"choose another folder with --out, or go on with: fibecfed resume {_quoted(out)}"
        raise UserError(f"{out} holds a run already; nothing was changed; {way_out}")
    if not out.is_dir() or any(entry.name != LOCK for entry in out.iterdir()):
        raise UserError(f"{out} exists and is not an empty folder; nothing was changed. Choose another one with --out")


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk and the like, as a sentence with the way to go on; what was written before stays usable."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename or out
        if not (out / CONFIG).exists():
            raise UserError(f"{where}: {error.strerror}; nothing was trained. Mend it, or choose another folder with --out") from error
        raise RunFailed(f"{where}: {error.strerror}; mend it and go on with: fibecfed resume {_quoted(out)}") from error
    except RunFailed as error:
        if "fibecfed resume" in str(error):
            raise
        raise RunFailed(f"{str(error).rstrip('.')}. Go on with: fibecfed resume {_quoted(out)}") from error


def _quoted(out: Path) -> str:
    return shlex.quote(str(out))


class _Session:
    """One process's work on a run's folder."""

    def __init__(self, prepared: Prepared, out: Path, on_event: Listener, adapters: bool) -> None:
        self.adapters = adapters
        self.prepared = prepared
        self.config = prepared.inputs.config
        self.out = out
        self.say = on_event
        self.data = prepared.inputs.data
        self.method = prepared.method
        self.key = prepared.inputs.key.fold("run")

    def go(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Train from a checkpoint, or from the start, to the end."""
        checkpoints = Checkpoints(self.out / "checkpoints", self.config.resources.keep_checkpoints)
        states = checkpoints.open_states(checkpoint, self.config.resources.client_memory_mb * 2**20)
        batch_size = self.config.evaluation.batch_size
        runtime = ClientRuntime(self.method, self.prepared.task, self.data.client, states, self.key, batch_size)
        transport = Simulator(runtime)
        data = self.data
        tolerance = Tolerance.of(self.config.federation)
        standing = Standing.from_table({} if checkpoint is None else checkpoint.extra.get("standing", {}))
        evaluator = Evaluator(self.method, self.prepared.task, transport, data.clients, data.test, data.validation, batch_size, tolerance)
        rounds = schedule(self.method)
        phases = tuple((phase.name, phase.num_rounds) for phase in self.method.phases)
        number = 0 if checkpoint is None else checkpoint.number
        self.say(Started(self.out, phases, number))

        known = 0 if checkpoint is None else int(checkpoint.extra["records_bytes"])
        with contextlib.closing(_Log(self.out / RECORDS, known)) as log:
            if checkpoint is None:
                server = self.method.init(self.prepared.task, self.key.fold("init"))
                log.write(self._header())
                self._evaluated(log, evaluator.untrained(server), False)
            else:
                server = decode(self.method.server_state, checkpoint.server)
                for warning in (*checkpoint.warnings, *self._changes(read(self.out / RECORDS)[0])):
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
        return self._finish(runtime, server, rounds[-1])

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
        source = self.prepared.inputs.source
        return {
            "configuration": self.config.model_dump(),
            "config_hash": config_hash(self.config),
            "commit": _commit(),
            **self._conditions(),
            "model": {"published": source.published, "files": {path.name: sha256_of(path) for path in source.files}},
            "labels": list(self.data.label_names),
            "metric": self.data.metric,
            "trainable": sum(value.numel() for value in self.prepared.task.params().values()),
            "partition": self.data.partition.table(),
        }

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
            f"{name}: this run began with {header.get(name)} and goes on with {now[name]}; the last bits of its numbers may differ"
            for name in now
            if header.get(name) != now[name]
        ]

    def _finish(self, runtime: ClientRuntime, server: Any, last: Round) -> dict[str, Any]:
        """Adapters, then the summary: where there is one, everything is there."""
        header, records = read(self.out / RECORDS)
        summary = {
            "method": self.config.method.model_dump()["kind"],
            "task": self.config.data.task or self.config.data.path,
            "seed": self.config.seed,
            **summarise(records, metric=self.data.metric, selected=self.method.summary(server)),
        }
        if self.prepared.sources:
            summary["sources"] = [asdict(work) for work in self.prepared.sources]
        phase = next(phase for phase in self.method.phases if phase.name == last.phase)
        blob = encode(phase.broadcast(server, last))
        params = self.method.server_params(server)
        shared = checksum(params)
        digests = [f"global {shared}"]
        self._save("global", "the global model", params, summary, header)
        for client in runtime.states.clients():
            own = runtime.personal_params(client, blob, last)
            if (digest := checksum(own)) != shared:
                digests.append(f"{client} {digest}")
                self._save(f"clients/{_folder_name(client)}", f"client {client}", own, summary, header)
        summary["adapters"] = {"personal": len(digests) - 1, "sha256": hashlib.sha256("\n".join(digests).encode()).hexdigest()}
        write_atomically(self.out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        if not self.adapters:
            shutil.rmtree(self.out / "checkpoints")
        self.say(Finished(summary, self.out))
        return summary

    def _save(self, folder: str, who: str, params: Params, summary: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if not self.adapters:
            return
        source = self.prepared.inputs.source
        adapter = getattr(self.config.method, "adapter", None)
        card = model_card(
            who=who,
            base=source.published,
            files=header["model"]["files"],
            labels=self.data.label_names,
            prompt=self.prepared.inputs.prompt,
            summary=summary,
            config_toml=to_toml(_without_folders(self.config)),
            versions=header["versions"],
            adapter=None if adapter is None else called(adapter),
        )
        names, prompt, where = self.data.label_names, self.prepared.inputs.prompt, self.out / folder
        labels = names if prompt is None else prompt.about(names)
        try:
            save_adapter(self.prepared.task, params, where, base=source.published, revision=source.revision, labels=labels, card=card)
        except SafetensorError as error:  # what its writer makes of a full disk
            raise RunFailed(f"{where} could not be written: {error}") from error


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


def _without_folders(config: Config) -> Config:
    """The configuration for a model card: files and folders by name, not by where they lie on this machine."""
    paths = {name: value for name in ("path", "test_path", "root") if (value := getattr(config.data, name)) is not None}
    data = config.data.model_copy(update={name: Path(value).name for name, value in paths.items()})
    model = config.model
    if Path(model.name).is_absolute():
        model = model.model_copy(update={"name": Path(model.name).name})
    return config.model_copy(update={"data": data, "model": model})


def _folder_name(client: str) -> str:
    """The client's id as a name of a folder: anything but letters, digits, `-`, `_` and inner dots is percent-encoded."""
    name = quote(client, safe="")
    return name.replace(".", "%2E", 1) if name.startswith(".") else name
