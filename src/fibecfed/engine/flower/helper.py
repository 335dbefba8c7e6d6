"""The helper's side of an exchange: a resident process without model and data, which adds up masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.wire import encode
from ...privacy.options import HELPER
from ..helping import HELPS, Helping
from .agreement import disagreements, table_of
from .envelope import Hello, Request, unpacked
from .replies import Outcome, not_for, of_no_run, outcome_of, reply_to

OF_THE_MODEL = ("model.name", "model.weights")
"""Keys of the configuration that the helper, which has no model, takes as the server has them."""


@dataclass(frozen=True)
class ResidentHelper:
    """The helper of a federation.

    Attributes:
        identity: drawn once for its folder.
        config: what it must have in common with the server.
        say, begun, ended: as of `resident.Resident`.
    """

    identity: str
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    helping: Helping
    say: Callable[[str], None]
    begun: Callable[[Request], None] = lambda request: None
    ended: Callable[[Request, str, int, int], None] = lambda request, status, received, sent: None

    def answer(self, blob: bytes) -> bytes:
        """The reply to a request."""
        return reply_to(blob, HELPER, self._handle, self.say, self.begun, self.ended)

    def _handle(self, request: Request) -> Outcome:
        return of_no_run(request) or not_for(request, HELPER) or outcome_of(lambda: self._work(request))

    def _work(self, request: Request) -> Outcome:
        payload = unpacked(request.payload)
        if request.action == "hello":
            return "done", "", encode(self._hello(payload))
        if request.action in HELPS:
            return "done", "", self.helping.answer(request.action, request.run, request.number, payload)
        return "refused", f"got the action {request.action[:40]!r}, and this is the helper, which adds up masks and does nothing else", b""

    def _hello(self, payload: bytes) -> Hello:
        theirs = table_of(payload.decode(errors="replace"))
        own = {**self.config, **{name: theirs[name] for name in OF_THE_MODEL if name in theirs}}
        if differing := disagreements(theirs, own):
            self.say(f"the server has another configuration: {differing}")
        return Hello(HELPER, self.identity, json.dumps(own, sort_keys=True), "", json.dumps(self.versions, sort_keys=True))
