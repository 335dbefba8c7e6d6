"""Worker processes that share a list of jobs."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Protocol

from ...config import to_toml
from ...core.files import FAILURE, write_atomically
from ...core.json_text import to_json
from ...core.process import environment
from ...core.terminal import one_line
from .plan import Clock, Job, look, move_aside
from .worker import work

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
_PATIENCE_S = 30.0  # that a worker is given to stop at its next instruction, before it is killed


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        summary: of a run that was finished; None if it failed.
        why: "diverged" (a loss or a tensor was not finite), "refused" (its configuration, or what its folder holds, cannot be used),
            "killed", "stopped" or "not tuned" (no rate was found to run it at); None if it was finished.
        reason: a sentence.
    """

    summary: dict[str, Any] | None
    why: str | None = None
    reason: str = ""


class Watcher(Protocol):
    """Callbacks about the jobs."""

    def started(self, one: Job) -> None: ...
    def round(self, one: Job, done: int, of: int, score: str | None = None) -> None: ...
    def warned(self, one: Job, text: str) -> None: ...
    def ended(self, one: Job, outcome: Outcome) -> None: ...
    def tick(self, waiting: Sequence[Job]) -> None: ...


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    gpu: str | None
    job: Job | None = None


class Pool:
    """Up to so many workers, as a context; they stay alive from one `run` to the next, and are stopped on leaving.

    Args:
        target: what a worker's process does with its end of the pipe.
        gpus: each worker sees one of them alone, and each serves as many workers as any other.
    """

    def __init__(
        self, workers: int, watcher: Watcher, clock: Clock, target: Callable[[Connection], None] = work, gpus: Sequence[str] = ()
    ) -> None:
        self._limit = workers
        self._watcher = watcher
        self._clock = clock
        self._target = target
        self._gpus = gpus
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            if worker.job is not None:
                worker.process.terminate()
            worker.pipe.close()
        deadline = time.monotonic() + _PATIENCE_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def make(self, jobs: Sequence[Job]) -> tuple[dict[Job, dict[str, Any]], dict[Job, str], dict[Job, Outcome]]:
        """All summaries, the folders that cannot be used, and how the new runs ended. What is done is not made again, but a finished run
        that is damaged is."""
        done: dict[Job, dict[str, Any]] = {}
        unusable: dict[Job, str] = {}
        said: set[str] = set()
        for one in jobs:
            held = look(one)
            for text in [text for text in held.moved if text not in said]:
                said.add(text)
                self._warn(one, f"{text}; runs that are done are taken to be of the same bytes")
            if held.unusable is not None:
                unusable[one] = held.unusable
            elif held.summary is not None:
                done[one] = held.summary
                self._clock.learn(one, held.summary)
            elif held.damaged is not None:
                self._warn(one, f"{held.damaged}; it is repeated, and the old files are kept in {move_aside(one)}")
        outcomes = self.run([one for one in jobs if one not in done and one not in unusable])
        done |= {one: outcome.summary for one, outcome in outcomes.items() if outcome.summary is not None}
        return done, unusable, outcomes

    def run(self, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        """Make all runs, the cheapest first; how each ended.

        One that fails does not stop the others; one whose worker is killed is tried once more. A failure is also written into the job's
        folder, from where the next attempt takes it away.
        """
        waiting, killed = list(jobs), dict.fromkeys(jobs, 0)
        outcomes: dict[Job, Outcome] = {}
        while waiting or any(worker.job for worker in self._workers):
            while waiting and (idle := self._idle()) is not None:
                one = self._clock.cheapest(waiting)
                waiting.remove(one)
                self._begin(idle, one)
            busy = {worker.pipe: worker for worker in self._workers if worker.job is not None}
            for pipe in wait(list(busy), timeout=1.0):
                worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                one = worker.job
                assert one is not None
                outcome = self._hear(worker, one)
                if outcome is None:
                    continue
                if outcome.why == "killed":
                    killed[one] += 1
                    if killed[one] < _ATTEMPTS:
                        self._warn(one, f"{outcome.reason}; it is tried once more")
                        waiting.append(one)
                        continue
                outcomes[one] = outcome
                if outcome.summary is None:
                    record_failure(one, outcome)
                else:
                    self._clock.learn(one, outcome.summary)
                logger.info(
                    "%s: %s",
                    one_line(one.name),
                    "finished" if outcome.summary is not None else one_line(f"{outcome.why}: {outcome.reason}"),
                )
                self._watcher.ended(one, outcome)
            self._watcher.tick(waiting)
        return outcomes

    def _idle(self) -> _Worker | None:
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) == self._limit:
            return None
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=self._target, args=(theirs,), daemon=True)
        taken = [worker.gpu for worker in self._workers]
        gpu = min(self._gpus, key=taken.count, default=None)
        with contextlib.nullcontext() if gpu is None else environment("CUDA_VISIBLE_DEVICES", gpu):
            process.start()
        theirs.close()  # else its end would not be heard of
        self._workers.append(_Worker(process, ours, gpu))  # pyright: ignore[reportArgumentType]
        return self._workers[-1]

    def _begin(self, worker: _Worker, one: Job) -> None:
        (one.folder / FAILURE).unlink(missing_ok=True)
        worker.job = one
        with contextlib.suppress(OSError):  # one that died meanwhile is heard of like one that dies later
            worker.pipe.send_bytes(to_json({"config": to_toml(one.config), "folder": str(one.folder)}).encode())
        logger.info("%s: started in process %s", one_line(one.name), worker.process.pid)
        self._watcher.started(one)

    def _warn(self, one: Job, text: str) -> None:
        logger.warning("%s: %s", one_line(one.name), one_line(text), extra={"shown": True})
        self._watcher.warned(one, text)

    def _hear(self, worker: _Worker, one: Job) -> Outcome | None:
        """One message of a busy worker; the outcome if it is the last about its job."""
        try:
            message = json.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):  # the first between two messages; the second inside of one, where it is plain and no ConnectionError
            worker.process.join(_PATIENCE_S)
            if worker.process.is_alive():  # its pipe is gone: it could say nothing any more
                worker.process.kill()
                worker.process.join()
            self._workers.remove(worker)
            worker.pipe.close()
            return Outcome(None, "killed", _death(worker.process.exitcode))
        match message["kind"]:
            case "round":
                self._watcher.round(one, message["done"], message["of"], message.get("score"))
            case "warning":
                self._warn(one, message["text"])
            case "done":
                worker.job = None
                return Outcome(message["summary"])
            case _:
                worker.job = None
                return Outcome(None, message["why"], message["reason"])
        return None


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        hint = ", perhaps for want of memory" if code == -9 else ""
        return f"its process was ended by signal {-code}{hint}"
    return f"its process ended with code {code}"


def record_failure(one: Job, outcome: Outcome) -> None:
    """Why a job has no result, into its folder, for the report."""
    one.folder.mkdir(parents=True, exist_ok=True)
    text = to_json({"why": outcome.why, "reason": outcome.reason}, indent=2)
    write_atomically(one.folder / FAILURE, (text + "\n").encode())
