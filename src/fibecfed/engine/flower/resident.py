"""The resident client's side of an exchange: the bytes of a `Request` in, those of a `Reply` out, whatever came in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...core.files import write_atomically
from ...core.method import Method
from ...core.rng import Key
from ...core.task import Task
from ...core.trees import checksum
from ...core.types import ClientData, ClientId, Params
from ...core.wire import Tensors, WireError, decode, encode, message
from ...privacy.ledger import LEDGERS, SECRET
from ..failures import printable
from ..runtime import ClientRuntime, NoAnswer, PrivateExamples
from ..summing import ClientSums
from .agreement import digest, disagreements, table_of
from .envelope import Finish, Hello, Request, unpacked
from .replies import Outcome, not_for, of_no_run, outcome_of, reply_to
from .round_states import RoundStates

_START = "start.safetensors"

FAILED_IN_PRIVATE = "its work failed; its own log says why"
"""What is said of every failure in a run that is private for clients: a reason may follow from a text."""


@message
class Start:
    """Server to client: the trainable tensors at the start, where its own draws differ from the server's."""

    params: Tensors


Place = Callable[[ClientId], tuple[Path, Path]]
"""Of a client the folder of its ledger, and the file of its secret."""

SaveAdapter = Callable[[Path, Params, Mapping[str, Any], Mapping[str, Any]], None]
"""Writes a personal adapter: folder, tensors, and the run's summary and header for its card."""


@dataclass(frozen=True)
class Resident:
    """One client that stays loaded.

    Attributes:
        identity: drawn once for `folder`.
        key: the run's key, the same on every machine.
        config: what it must have in common with the server.
        folder: for its states and adapters, one folder in it for each run.
        keep_states: how many states of a run are kept.
        clip_norm: C, where the run is private for clients: then nothing leaves this client but clipped updates, and why it failed stays
            here.
        scored: whether it answers evaluations.
        examples: how it trains where the run is private for examples, given where its ledger and its secret lie; None: it is not.
        sums: its part of masked sums; then no update leaves it but in one. None: updates are sent as they are.
        begun, ended: called before a request is worked on, and after with its status and the bytes of request and answer.
        say: called with a sentence about what happens; nothing in it can steer a terminal, although the server chose parts of it.
    """

    name: ClientId
    identity: str
    method: Method[Any, Any]
    task: Task
    data: ClientData
    key: Key
    evaluation_batch_size: int
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    folder: Path
    keep_states: int
    save: SaveAdapter
    say: Callable[[str], None]
    clip_norm: float | None = None
    scored: bool = True
    sums: ClientSums | None = None
    examples: Callable[[Place], PrivateExamples] | None = None
    begun: Callable[[Request], None] = lambda request: None
    ended: Callable[[Request, str, int, int], None] = lambda request, status, received, sent: None

    def answer(self, blob: bytes) -> bytes:
        """The reply to a request."""
        return reply_to(blob, self.name, self._handle, self.say, self.begun, self.ended, self._told)

    def _told(self, status: str, reason: str) -> str:
        private = self.clip_norm is not None or self.examples is not None
        return FAILED_IN_PRIVATE if status == "failed" and private else reason

    def _tell(self, text: str) -> None:
        self.say(printable(text))

    def _handle(self, request: Request) -> Outcome:
        own = json.dumps(self.config, sort_keys=True)
        if (refused := of_no_run(request)) is not None:
            return refused
        if request.action != "hello" and request.config != digest(self.config):
            return "refused", "the server has another configuration", own.encode()
        return not_for(request, self.name) or outcome_of(lambda: self._work(request, own))

    def _hello(self, request: Request, own: str) -> Outcome:
        server = unpacked(request.payload).decode(errors="replace")
        differing = disagreements(table_of(server), self.config)
        if differing:
            self._tell(f"the server has another configuration: {differing}")
        else:
            self._states(request).forget_from(request.number)
        initial = checksum(self._start(request))
        hello = Hello(self.name, self.identity, own, initial, json.dumps(self.versions, sort_keys=True))
        return "done", "", encode(hello)

    def _work(self, request: Request, own: str) -> Outcome:
        if request.action == "hello":
            return self._hello(request, own)
        payload, now = unpacked(request.payload), request.round
        if request.action == "start":
            decode(Start, payload)
            self._run_folder(request).mkdir(parents=True, exist_ok=True)
            write_atomically(self._run_folder(request) / _START, payload)
            return "done", "", b""
        if self.sums is not None and request.action in self.sums.actions:
            folder, runtime = self._run_folder(request), self._runtime(request, now.number)

            def train(broadcast: bytes) -> bytes:
                return runtime.train(self.name, broadcast, now)[0]

            def start() -> str:
                return checksum(self._start(request))

            return "done", "", self.sums.answer(request.action, request.run, now, payload, folder, start, train)
        if request.action == "train":
            reply, _ = self._runtime(request, now.number).train(self.name, payload, now)  # notes stay here
            return "done", "", reply
        if request.action in ("evaluate", "evaluate_both", "evaluate_global"):
            if not self.scored:
                return "refused", 'nothing is scored here: `privacy.evaluation` = "off"', b""
            return "done", "", self._runtime(request, now.number + 1).evaluate(request.action, self.name, payload, now)
        if request.action == "finish":
            return "done", "", self._finish(request, decode(Finish, payload))
        return "refused", f"unknown action {request.action[:40]!r}; use the same fibecfed on both sides", b""

    def _finish(self, request: Request, last: Finish) -> bytes:
        """Save the personal adapter if it is another than the global one; its checksum. Nothing for a client that never trained, or where
        the run is private."""
        runtime = self._runtime(request, request.number + 1)
        if runtime.states.get(self.name) is None:
            return b""
        params = runtime.personal_params(self.name, unpacked(last.broadcast), request.round)
        found = checksum(params)
        if found != last.shared:
            folder = self._run_folder(request) / "adapter"
            self.save(folder, params, table_of(last.summary), table_of(last.header))
            self._tell(f"its own model is in {folder}")
        if self.examples is not None:
            (self._run_folder(request) / SECRET).unlink(missing_ok=True)  # by it the noise could be subtracted
        return (
            b"" if self.clip_norm is not None or self.sums is not None else found.encode()
        )  # by a checksum a guess of what is private could be confirmed

    def _runtime(self, request: Request, now: int) -> ClientRuntime:
        states = self._states(request)
        states.now = now
        task = cast(Task, _Started(self.task, self._start(request)))
        adding, size = None if self.sums is None else self.sums.adding, self.evaluation_batch_size
        examples = None if self.examples is None else self.examples(lambda client: self._ledger(request))
        return ClientRuntime(self.method, task, lambda client: self.data, states, self.key, size, self.clip_norm, adding, examples)

    def _ledger(self, request: Request) -> tuple[Path, Path]:
        """Where the ledger of a run lies, and its secret. A server that begins another run would begin with a budget that is not spent.

        Raises:
            NoAnswer: this client was charged for another run.
        """
        every = self.folder / LEDGERS
        others = sorted(path.name for path in every.glob("*") if path.name != request.run)
        if others:
            raise NoAnswer(
                f"{every / others[0]}: this client's examples were charged for another run, and what this one costs would add to it; to "
                "allow that, start the client with another --folder"
            )
        return every / request.run, self._run_folder(request) / SECRET

    def _states(self, request: Request) -> RoundStates:
        return RoundStates(self._run_folder(request), self.keep_states, self.method.client_state)

    def _run_folder(self, request: Request) -> Path:
        return self.folder / request.run

    def _start(self, request: Request) -> Params:
        """The trainable tensors at the start: those the server sent for this run, or else its own draws."""
        sent = self._run_folder(request) / _START
        if sent.is_file():
            try:
                return decode(Start, sent.read_bytes()).params
            except WireError as error:
                raise WireError(f"{sent}: {error}; remove it, and the server sends it again") from None
        return self.task.init_params(self.key.fold("init"))


class _Started:
    """A task whose tensors at the start are given."""

    def __init__(self, task: Task, params: Params) -> None:
        self._task = task
        self._params = params

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def init_params(self, key: Key) -> dict[str, Any]:
        return dict(self._params)
