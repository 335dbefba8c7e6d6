"""A forked process that computes clients, and what passes between it and the process that forked it.

A fork shares the frozen model, the data and the method with its parent, as they are: nothing is loaded, copied or pickled, and a worker is
there within a tenth of a second. Down go a client's request and its state, up come its reply and its next state: bytes, and JSON that says
what follows. What a worker prints or logs is printed and logged by its parent.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import io
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn, cast

import torch

from ..core import errors
from ..core.types import ClientId, Failure, Round
from ..core.wire import WireError

_READY_S = 30.0
"""Within so many seconds a new worker must have said that it can compute; one that cannot in a process like this is given up."""
_DIE_WITH_PARENT = 1  # prctl's name for it in sys/prctl.h


class Dead(Exception):
    """A worker's process is gone; the text says how it ended."""


class Unable(Exception):
    """No worker can be started from this process; the text says why."""


@dataclass(frozen=True)
class Asked:
    """A client's part of an exchange.

    Attributes:
        blob: the request.
        state: the client's; None if it has none yet.
    """

    action: str
    client: ClientId
    now: Round
    blob: bytes
    state: bytes | None


@dataclass(frozen=True)
class Computed:
    """What came of a job.

    Attributes:
        state: the client's next state; None if it keeps the one it has.
        notes: what the client wrote down about itself.
        error: what was raised instead of a reply.
        cpu_s: CPU seconds of the worker since it said so last.
    """

    reply: bytes | Failure = b""
    state: bytes | None = None
    notes: Mapping[str, Any] | None = None
    error: Exception | None = None
    cpu_s: float = 0.0


class Worker:
    """A process of its own, from the parent's side.

    Attributes:
        ended: whether it was found dead, or killed.

    Args:
        compute: what it does with a job; raises what the parent is to raise.
        threads: CPU threads that it computes with.
        others: the parent's ends of the pipes to other workers, which it must not hold open.

    Raises:
        Unable: it could not be started, or cannot compute.
    """

    def __init__(self, compute: Callable[[Asked], Computed], threads: int, others: Collection[Connection] = ()) -> None:
        ours, theirs = cast("tuple[Connection, Connection]", Pipe())
        self.pipe, self._sent = ours, None
        self.ended = False
        parent = os.getpid()
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # neither half of a worker is left behind
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # that other threads do not come along, which is known here
                self.pid = os.fork()
            if self.pid == 0:
                _be_worker(compute, threads, theirs, (ours, *others), parent)
        except OSError as error:
            ours.close()
            raise Unable(error.strerror or str(error)) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            theirs.close()  # else its end would not be heard of
        self._meet(_READY_S)

    def _meet(self, patience_s: float) -> None:
        """Wait until it can be given something.

        Raises:
            Unable: it cannot, or says nothing for so long.
        """
        try:
            while self.pipe.poll(patience_s):
                if (said := self._said()) is not None:
                    if said["kind"] == "ready":
                        return
                    self.end()
                    raise Unable(said["text"])
        except Dead as error:
            raise Unable(str(error)) from None
        self.end()
        raise Unable(f"a new process said nothing for {patience_s:.0f} seconds")

    def give(self, job: Asked) -> None:
        """Have it begin a job.

        Raises:
            Dead: it cannot any more.
        """
        new = job.blob is not self._sent  # a broadcast is the same bytes for every client
        head = {"action": job.action, "client": job.client, "now": asdict(job.now), "blob": new, "state": job.state is not None}
        try:
            self.pipe.send_bytes(json.dumps(head).encode())
            for part in ([job.blob] if new else []) + ([job.state] if job.state is not None else []):
                self.pipe.send_bytes(part)
        except OSError:
            raise Dead(self.end()) from None
        self._sent = job.blob

    def hear(self) -> Computed | None:
        """The next thing that it says: None where that was not the end of its job, but something to print or to log.

        Raises:
            Dead: it is gone.
        """
        said = self._said()
        if said is None:
            return None
        try:
            reply = self.pipe.recv_bytes() if said["reply"] else Failure(**said["failure"]) if said["failure"] else b""
            state = self.pipe.recv_bytes() if said["state"] else None
        except (EOFError, OSError):
            raise Dead(self.end()) from None
        error = None if said["error"] is None else _raised(**said["error"])
        return Computed(reply, state, said["notes"], error, said["cpu_s"])

    def end(self) -> str:
        """Kill it, which loses nothing but the job under way; how it ended."""
        self.pipe.close()
        self.ended = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            return "its process is gone"
        if code >= 0:
            return f"its process ended with code {code}"
        return f"its process was ended by signal {-code}" + (", perhaps for want of memory" if code == -signal.SIGKILL else "")

    def _said(self) -> dict[str, Any] | None:
        """What it says of itself or of its job; what is to be printed or logged is, and None returned."""
        try:
            said = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            raise Dead(self.end()) from None
        if said["kind"] == "print":
            getattr(sys, said["stream"]).write(said["text"])
        elif said["kind"] == "log":
            logger = logging.getLogger(said["record"]["name"])
            if logger.isEnabledFor(said["record"]["levelno"]):
                logger.handle(logging.makeLogRecord(said["record"]))
        else:
            return said
        return None


class ComputeError(RuntimeError):
    """What a client's computing raised in a worker, where it cannot be raised again as it was."""


def _raised(kind: str, text: str, trace: str) -> Exception:
    """An error of a worker, to be raised here."""
    known = {**vars(builtins), **vars(errors), "WireError": WireError}.get(kind)
    error: Exception = ComputeError(f"{kind}: {text}")
    if isinstance(known, type) and issubclass(known, Exception):
        with contextlib.suppress(Exception):  # some take more than a text
            error = known(text)
    error.add_note(f"In the worker process:\n{trace}")
    return error


# ---- in the worker


def _be_worker(
    compute: Callable[[Asked], Computed], threads: int, pipe: Connection, others: Collection[Connection], parent: int
) -> NoReturn:
    """A worker's whole life."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides what it means
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if dies_with(parent):
            gc.freeze()  # collecting what came with the fork would copy its pages
            for other in others:
                other.close()  # else the others would not hear of the parent's end
            # Threads of OpenMP do not survive a fork, and the thread that had them would wait for them for ever. A new one gets new ones.
            life = threading.Thread(target=work, args=(compute, threads, Up(pipe), pipe))
            life.start()
            life.join()
            code = 0
    finally:
        os._exit(code)  # what the libraries would do on the way out is the parent's to do


def dies_with(parent: int) -> bool:
    """From now on this process ends with that one, as far as the system can see to it; False where that has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    return os.getppid() == parent


def work(compute: Callable[[Asked], Computed], threads: int, up: Up, pipe: Connection) -> None:
    """Do one job after the other until the pipe is closed."""
    sys.stdout, sys.stderr = _Printed(up, "stdout"), _Printed(up, "stderr")
    _log_to(up)
    try:
        torch.set_num_threads(threads)
        torch.ones(1, requires_grad=True).sum().backward()  # not after a fork of a process in which an accelerator's threads did so
    except RuntimeError as error:
        up.say({"kind": "unable", "text": str(error)})
        return
    up.say({"kind": "ready"})
    blob, before = b"", time.process_time()
    while True:
        try:
            head = json.loads(pipe.recv_bytes())
            blob = pipe.recv_bytes() if head["blob"] else blob
            state = pipe.recv_bytes() if head["state"] else None
        except (EOFError, OSError):
            return  # the parent is done, or gone
        said: dict[str, Any] = {"kind": "done", "reply": False, "failure": None, "state": False, "notes": None, "error": None}
        parts = list[bytes]()
        try:
            done = compute(Asked(head["action"], head["client"], Round(**head["now"]), blob, state))
            if isinstance(done.reply, Failure):
                said["failure"] = asdict(done.reply)
            else:
                said["reply"] = True
                parts.append(done.reply)
            if done.state is not None:
                said["state"] = True
                parts.append(done.state)
            said["notes"] = done.notes
            json.dumps(said)
        except BaseException as error:
            said["error"] = {"kind": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
            said |= {"reply": False, "failure": None, "state": False, "notes": None}
            parts.clear()
        sys.stdout.flush()
        sys.stderr.flush()
        said["cpu_s"], before = time.process_time() - before, time.process_time()
        up.say(said, *parts)


class Up:
    """The way to the parent; several threads may use it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.RLock()

    def say(self, said: Mapping[str, Any], *parts: bytes) -> None:
        try:
            with self._lock:
                self._pipe.send_bytes(json.dumps(said).encode())
                for part in parts:
                    self._pipe.send_bytes(part)
        except OSError:
            os._exit(0)  # the parent is gone


class _Printed(io.TextIOBase):
    """A standard stream whose text the parent writes, in whole lines where it can: those of several workers do not mix."""

    encoding = "utf-8"

    def __init__(self, up: Up, name: str) -> None:
        self._up, self._name, self._held = up, name, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        lines, end, self._held = (self._held + text).rpartition("\n")
        self._say(lines + end)
        return len(text)

    def flush(self) -> None:
        text, self._held = self._held, ""
        self._say(text)

    def _say(self, text: str) -> None:
        if text:
            self._up.say({"kind": "print", "stream": self._name, "text": text})


class _Logged(logging.Handler):
    """Hands each record to the parent, where it goes to whatever handles the logger's records."""

    def __init__(self, up: Up) -> None:
        super().__init__()
        self._up = up

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{''.join(traceback.format_exception(*record.exc_info))}".rstrip()
        plain = {name: value for name, value in vars(record).items() if isinstance(value, str | int | float | bool | None)}
        self._up.say({"kind": "log", "record": {**plain, "msg": text, "args": None, "exc_info": None, "exc_text": None}})


def _log_to(up: Up) -> None:
    """Every logger's records go up once, as they would reach its first handler."""
    handler, known = _Logged(up), logging.root.manager.loggerDict.values()
    for logger in [one for one in known if isinstance(one, logging.Logger)]:
        logger.handlers = [] if logger.propagate else [handler]
    logging.root.handlers = [handler]
