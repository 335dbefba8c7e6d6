"""Runs on disk: start one, resume one, and what they leave in their folder."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from .build import MakeMethod, Prepared, prepare
from .client_manager import Connect, simulated
from .config import Config, changed_settings, flat, load, lost, reject_lasting, to_toml
from .core.errors import RunFailed, UserError
from .core.files import CHECKPOINTS, COMPARISON, CONFIG, RECORDS, SUMMARY, disk_errors, expanded, is_aside, read_summary, write_atomically
from .core.metrics import offered_by
from .core.process import kept_memory, threads
from .core.records import EvalRecord
from .core.statistics import plain
from .core.streams import quiet_libraries
from .core.wire import WireError, decode, encode
from .engine.checkpoint import Checkpoint, Checkpoints, run_lock
from .engine.evaluation import Evaluator, Unscored, best_by_validation, better_by_validation, every_score, sample, scores
from .engine.events import DataInspected, Evaluated, Event, Finished, PhaseStarted, RoundDone, Started, StoppedEarly, Warned, logged
from .engine.failures import Standing, computed_again, sentences
from .engine.held import HeldStates, KeptRequests
from .engine.log import Log, read_header, read_records, rounds_recorded
from .engine.loop import Step, run, schedule
from .engine.noised_evaluation import NoisedEvaluator
from .engine.pooled import MeanPool
from .engine.states import OnServer
from .engine.stopping import EarlyStopping
from .engine.summary import LAST_TRAINING
from .engine.virtual import VirtualTime, devices
from .finish import Final, best_of, finish, tracked_scores
from .methods.catalogue import given
from .models.kept import KeptWeights
from .privacy.ledger import forget
from .private_run import ends_after, held_by, kept_of, private_of, reject_nothing, scores_nothing, scores_with_noise
from .provenance import changed_conditions, header_of, reject_other_inputs, reject_other_settings
from .reading import ReadData
from .tracking.contract import TrackedRun
from .tracking.feed import Tracking
from .tracking.sinks import reject_missing

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
    connect: Connect = simulated,
    method: MakeMethod | None = None,
    there: Collection[str] = (),
) -> dict[str, Any]:
    """Run a configuration in a new folder; its summary.

    Args:
        adapters: whether the folder keeps adapters and checkpoints when the run is done; records and summary are the same without.
        weights: a process that makes many runs gives the same one to each, so that a base model is read once.
        read_data: what this process knows of the data; None: all of it.
        connect: where the clients are.
        method: makes the method of `method.kind` = "custom".
        there: names of files that may lie in the folder.

    Raises:
        UserError: a mistake of the configuration, or a folder that is not empty or cannot be written: nothing was written then.
        RunFailed: it stopped while it was under way, and can be resumed.
    """
    reject_used(out, there)
    reject_missing(config.tracking)
    with threads(config.resources.threads), kept_memory(), quiet_libraries():
        prepared = prepare(config, weights, read_data, method=method)
        with _disk_errors(out), run_lock(out):
            reject_used(out, there)  # another process may have been faster
            write_atomically(out / CONFIG, to_toml(config).encode())
            return _Session(prepared, out, on_event, adapters, connect).go(None)


def resume(
    out: str | Path,
    on_event: Listener = lambda event: None,
    *,
    adapters: bool = True,
    weights: KeptWeights | None = None,
    read_data: ReadData | None = None,
    connect: Connect = simulated,
    overrides: Sequence[str] = (),
    method: MakeMethod | Any = None,
) -> tuple[dict[str, Any], bool]:
    """Resume the run in a folder; its summary, and whether it was finished before.

    Args:
        overrides: `key=value` of what may change: where files lie that were moved, and what the run computes on.
        method: the object, or the function that makes it, which `fibecfed.run` was given; left out for the package's methods.
        adapters, weights, read_data, connect: as for `start`.

    Raises:
        UserError: not a run's folder, or no checkpoint that can be used.
        RunFailed: it stopped again.
    """
    out = expanded(out)
    if not (out / CONFIG).is_file():
        if (out / COMPARISON).is_file():
            again = shlex.join(["fibecfed", "compare", str(out / COMPARISON), "--out", str(out)])
            raise UserError(f"{out}: got the folder of a comparison, expected that of a single run; resume with: {again}")
        got = f"a folder without {CONFIG}" if out.exists() else "nothing"
        raise UserError(f"{out}: got {got}, expected the folder of a run, as given to --out")
    reject_lasting(overrides)
    if (out / SUMMARY).is_file():
        forget(out)
        return read_summary(out), True
    if moved := lost(out / CONFIG, overrides):
        again = f"fibecfed resume {_quoted(out)} {' '.join(f'{key}=NEW' for key in moved)}"
        raise UserError(f"{out / CONFIG}: found nothing at {' and '.join(moved)}; if it was moved, give its new location: {again}")
    config = load(out / CONFIG, overrides).config
    if config.federation.partition == "machines" and read_data is None:
        raise UserError(f"{out}: a run across machines without its flower.json; restore that file from a backup, or start again: flwr run")
    reject_missing(config.tracking)
    with threads(config.resources.threads), kept_memory(), quiet_libraries(), _disk_errors(out), run_lock(out):
        checkpoint = Checkpoints(out / CHECKPOINTS, config.resources.keep_checkpoints).load_latest()
        if checkpoint is not None and _reaches(out / RECORDS, int(checkpoint.extra["records_bytes"])):
            reject_other_settings(config, checkpoint.extra.get("config"), read_header(out / RECORDS), out)
        prepared = prepare(config, weights, read_data, method=None if method is None else given(method))
        if checkpoint is None:
            _reject_other_beginning(prepared, out)
        return _Session(prepared, out, on_event, adapters, connect, keep_config=not overrides).go(checkpoint), False


def _reject_other_beginning(prepared: Prepared, out: Path) -> None:
    """A run without a checkpoint starts again; with the configuration that its records hold, also with the same model and data."""
    try:
        header = read_header(out / RECORDS)
    except (UserError, OSError):
        return  # stopped before its first line was whole
    if not changed_settings(prepared.inputs.config, header["configuration"]):
        reject_other_inputs(prepared, header, out)


def completed_rounds(out: Path, config: Config) -> int:
    """Number of completed rounds that a resumed run would start from."""
    checkpoint = Checkpoints(out / CHECKPOINTS, config.resources.keep_checkpoints).load_latest()
    return 0 if checkpoint is None else checkpoint.number


def reject_used(out: Path, there: Collection[str] = ()) -> None:
    """Reject a folder that a run cannot be started in.

    Args:
        there: names of what may lie in it.

    Raises:
        UserError: it holds something.
    """
    if not out.exists():
        return
    if (out / CONFIG).exists():
        way_out = f"choose another folder with --out, or resume with: fibecfed resume {_quoted(out)}"
        raise UserError(f"{out} already contains a run; nothing was changed; {way_out}")
    if not out.is_dir() or any(entry.name not in (LOCK, *there) and not is_aside(entry.name) for entry in out.iterdir()):
        raise UserError(f"{out} exists and is not an empty folder; nothing was changed. Choose another one with --out")


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk and the like, as a sentence with the command that resumes; what was written before stays usable."""
    try:
        with disk_errors(out, CONFIG, f"fix it and resume with: fibecfed resume {_quoted(out)}"):
            yield
    except RunFailed as error:
        if "fibecfed resume" in str(error):
            raise
        raise type(error)(f"{str(error).rstrip('.')}. Resume with: fibecfed resume {_quoted(out)}") from error


def _reaches(path: Path, size: int) -> bool:
    """Whether a file is that long; what opens it says so where it is not."""
    return path.is_file() and path.stat().st_size >= size


def _quoted(out: Path) -> str:
    return shlex.quote(str(out))


class _Session:
    """One process's work on a run's folder."""

    def __init__(
        self, prepared: Prepared, out: Path, on_event: Listener, adapters: bool, connect: Connect, keep_config: bool = True
    ) -> None:
        self.adapters = adapters
        self.keep_config = keep_config  # False: config.toml names other places than the run is resumed with
        self.prepared = prepared
        self.config = prepared.inputs.config
        self.out = out
        self.say = logged(on_event)
        self.connect = connect
        self.data = prepared.inputs.data
        self.method = prepared.method
        self.key = prepared.inputs.key.fold("run")

    def go(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Train from a checkpoint, or from the start, to the end."""
        run = TrackedRun(self.out, flat(self.config), 0 if checkpoint is None else checkpoint.number)
        names, by_client = self.config.tracking, self.config.tracking_by_client
        of_evaluation = partial(tracked_scores, metric=self.prepared.metric)
        tracking = Tracking(names, run, by_client=by_client, scores=of_evaluation, warn=lambda text: self.say(Warned(text)))
        with tracking as self.tracking, contextlib.ExitStack() as self.at_end:
            return self._go(checkpoint)

    def _go(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        server = None if checkpoint is None else self._server(checkpoint)  # what cannot be read is rejected before anything is written
        checkpoints = Checkpoints(self.out / CHECKPOINTS, self.config.resources.keep_checkpoints)
        limit, repeatable = self.config.resources.client_memory_mb * 2**20, self.config.federation.round_attempts > 1
        states = checkpoints.open_states(checkpoint, limit, repeatable=repeatable)
        batch_size = self.config.evaluation.batch_size
        number = 0 if checkpoint is None else checkpoint.number
        tolerance, data = self.config.federation, self.data
        extra = {} if checkpoint is None else checkpoint.extra
        requests = KeptRequests(states, extra.get("asked", ()))
        if tolerance.models_time and tolerance.partition != "machines":
            held = HeldStates(states)
            self.clients = clients = self.connect(self.prepared, held, self.out, number)
            machines = devices(tolerance, data.clients, self.prepared.inputs.key)
            transport = virtual = VirtualTime(clients.transport, held, machines, extra.get("virtual"))
        else:
            self.clients = clients = self.connect(self.prepared, states, self.out, number)
            virtual = None
            transport = clients.transport
        self.at_end.callback(clients.close)
        standing = Standing.from_table(extra.get("standing", {}))
        self.pool = pool = private_of(self.prepared, self.out, self.key, extra.get("privacy"), clients.masked_run)
        asked = sample(data.clients, self.config.evaluation.clients, self.key)
        noised = scores_with_noise(self.prepared)
        exact = Evaluator(
            method=self.method,
            task=self.prepared.task,
            transport=transport,
            clients=asked,
            test=data.held_by(asked, "test"),
            validation=data.held_by(asked, "validation"),
            batch_size=batch_size,
            tolerance=tolerance,
            start=None if (len(data.test) or len(data.validation)) and not noised else self.key.fold("init"),
            totals=clients.totals,
            tests=[data.client(client).test for client in asked] if self.config.evaluation.generate else (),
        )
        evaluator = Unscored(plain(self.prepared.task.statistics.zero)) if scores_nothing(self.prepared) else exact
        if noised and isinstance(pool, MeanPool):
            evaluator = NoisedEvaluator(exact, pool)
        phases = tuple((phase.name, phase.num_rounds) for phase in self.method.phases)
        self.say(Started(self.out, phases, number))
        if checkpoint is None and (again := rounds_recorded(self.out / RECORDS)):
            where = f"{self.out / CHECKPOINTS} has no checkpoint"
            self.say(Warned(f"{where}: the run starts again, and its {again} recorded rounds are repeated"))
        best: EvalRecord | None = None  # whose models are saved at the end, where they are not those of the last round

        known = 0 if checkpoint is None else int(checkpoint.extra["records_bytes"])
        header, records = ({}, []) if checkpoint is None else read_records(self.out / RECORDS, known)  # before anything of it is cut off
        scored_before = [one for one in records if isinstance(one, EvalRecord)]
        stopping = EarlyStopping(self.config.evaluation.patience, schedule(self.method), self.prepared.metric, scored_before)
        rounds = stopping.rounds
        for one in stopping.stopped.values():
            self.say(StoppedEarly(one.left_out, one.text))
        with contextlib.closing(Log(self.out / RECORDS, known)) as log:
            if checkpoint is None:
                server = self.method.init(self.prepared.task, self.key.fold("init"))
                header = header_of(self.prepared)
                log.write(header)
                if header["warnings"]:
                    self.say(DataInspected(tuple(header["warnings"])))
                self._evaluated(log, evaluator.untrained(server), False)
                self.tracking.flush()
            else:
                best = best_by_validation([one for one in scored_before if one.rounds], self.prepared.metric)
                reject_other_inputs(self.prepared, header, self.out)
                for warning in (*checkpoint.warnings, *changed_conditions(self.prepared, header)):
                    self.say(Warned(warning))
                for record in records:
                    self.tracking.add(record)
            if not self.keep_config:
                write_atomically(self.out / CONFIG, to_toml(self.config).encode())
            steps = run(
                self.method,
                transport,
                data.clients,
                per_round=self.config.federation.cohort_size(len(data.clients)),
                key=self.key,
                server=server,
                start=number,
                tolerance=tolerance,
                standing=standing,
                kept=OnServer(states),
                asked=requests.restored(),
                rounds=rounds,
                **held_by(self.prepared, pool, clients.masked_run),
            )
            phase, last = None, number
            for now in islice(rounds, number, None):
                if now.phase != phase:
                    phase = now.phase
                    self.say(PhaseStarted(phase, now.num_rounds))
                cpu = time.process_time()
                if (step := next(steps, None)) is None:
                    break  # what is computed again after an interruption would pass the budget
                cpu_s = time.process_time() - cpu
                server = step.server
                self._round(log, step, cpu_s)
                last = step.number
                is_last = last == ends_after(pool, last, len(rounds), asked if noised and self._due(step) else ())
                standing = replace(step.standing, counted=standing.counted)
                if self._due(step) or ((pool is not None or self.prepared.cohorts is not None) and is_last):
                    scored, standing = evaluator.after(server, step.now, step.number, standing)
                    stopped = stopping.saw(scored)
                    is_last = is_last or step.number == len(rounds)
                    self._evaluated(log, scored, is_last)
                    if stopped is not None:
                        self.say(StoppedEarly(stopped.left_out, stopped.text))
                    best = better_by_validation(best, scored, self.prepared.metric)
                self.tracking.flush()  # before the checkpoint: what it does not have is repeated
                pinned = best.rounds if best is not None and self.config.evaluation.save == "best" else None
                if is_last or pinned == step.number or step.number % self.config.resources.checkpoint_every == 0:
                    extra = {"records_bytes": log.sync(), "config": header["config_hash"], "standing": standing.table()}
                    extra |= {} if pool is None else {"privacy": kept_of(pool)}
                    extra |= {} if virtual is None else {"virtual": virtual.table()}
                    extra |= {"asked": rows} if (rows := requests.keep(step.asked)) else {}
                    checkpoints.save(step.number, encode(server), states, extra, pinned)
        clients.close()
        reject_nothing(pool, last)
        final = Final(clients, server, rounds[last - 1])
        if self.config.evaluation.save == "best":
            final = best_of(self.prepared, self.out, checkpoints, best, final, rounds, lambda text: self.say(Warned(text)))
        summary = finish(self.prepared, self.out, final, self.method.summary(server), self.adapters, pool, stopping.stopped)
        self.say(Finished(summary, self.out))
        return summary

    def _server(self, checkpoint: Checkpoint) -> Any:
        """The server's state at a checkpoint."""
        try:
            return decode(self.method.server_state, checkpoint.server)
        except WireError as error:
            header = read_header(self.out / RECORDS)
            version = header.get("versions", {}).get("fibecfed", "an unknown version")
            commit = f" (commit {header['commit'][:12]})" if header.get("commit") else ""  # between releases versions have one number
            raise UserError(
                f"{checkpoint.path}: got the server's state as fibecfed {version} wrote it, which this version cannot read ({error}); "
                f"resume the run with the version that started it{commit}, or start a new run"
            ) from None

    def _due(self, step: Step) -> bool:
        """After every so many rounds of a phase in which clients train, and after its last; where each has its model of the last training
        from the round before, it takes no step."""
        trained = any(step.record.steps.values()) or step.now.phase == LAST_TRAINING
        if not trained and self.pool is None and self.prepared.cohorts is None:
            return False
        return (step.now.index + 1) % self.config.evaluation.every == 0 or step.now.index + 1 == step.now.num_rounds

    def _round(self, log: Log, step: Step, cpu_s: float) -> None:
        chosen = dict(self.method.summary(step.server)) if step.now.phase != "tune" else {}
        of_workers, recomputed = self.clients.used()
        record = replace(step.record, server=chosen, cpu_s=cpu_s + of_workers, recomputed=recomputed)
        if self.pool is not None:
            record = replace(record, cpu_s=0.0, seconds=0.0, loss={}, compute_s={})  # they follow from texts
        log.write(record)
        self.tracking.add(record, lambda: self.method.summary(step.server))
        seen = sum(record.examples.values())
        loss = sum(record.loss[c] * record.examples[c] for c in record.loss) / seen if seen and record.loss else None
        for text in sentences(record):
            self.say(Warned(text))
        up, down = sum(record.bytes_up.values()), sum(record.bytes_down.values())
        self.say(RoundDone(record.phase, record.index, step.now.num_rounds, loss, up, down, record.seconds or cpu_s))

    def _evaluated(self, log: Log, record: EvalRecord, is_last: bool) -> None:
        record = replace(record, recomputed=self.clients.used()[1])
        log.write(record)
        self.tracking.add(record)
        for client, reason in record.failures.items():
            self.say(Warned(f"client {client} was left out of the evaluation after round {record.rounds}: {reason}"))
        for client in record.recomputed:
            self.say(Warned(computed_again(client, f"the evaluation after round {record.rounds}")))
        if scores_nothing(self.prepared):
            return
        found, metric = scores(record, self.prepared.metric), self.prepared.metric
        every_metric = every_score(record, offered_by(record.pooled))
        every = min(len(self.data.clients), self.config.evaluation.clients or len(self.data.clients))
        answered = len(record.clients) or every - len(record.failures)
        pooled, server, worst = found["pooled_personalised"], found["global"], found["worst_decile"]
        self.say(Evaluated(record.rounds, metric, pooled, server, worst, every_metric, is_last, answered, every))
