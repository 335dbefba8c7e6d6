"""A law of its own: what each function of a method returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..core.json_text import to_json
from ..core.method import ClientView, Load, Received, Update, Work
from ..core.types import Round
from .federation import KEY
from .subject import Subject


def every_function_returns_what_it_must(subject: Subject) -> None:
    """In the first round of each phase, for one client. Where a function raises an error, `a_run_reaches_its_end` says so."""
    returned = _returned(subject)
    while True:
        try:
            where, value, kind = next(returned)
        except Exception:  # the end, or an error of the method's own
            return
        if kind is not None:
            assert isinstance(value, kind), f"{where} is {type(value).__name__}, expected {kind.__name__}"
            continue
        try:
            to_json(value)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{where}: expected values that JSON knows ({error})") from None


def _returned(subject: Subject) -> Iterator[tuple[str, Any, type | None]]:
    """What is looked at, its value, and the class that it must be of; None for JSON."""
    method, task, client = subject.make(), subject.one_task, subject.data.clients[1]
    server = method.init(task, KEY.fold("run", "init"))
    yield "init: the result", server, method.server_state
    state = method.init_client(task, client, KEY.fold("run", "init"))
    yield "init_client: the result", state, method.client_state
    for phase in method.phases:
        now, where = Round(phase.name, 0, phase.num_rounds, 0), f"phase {phase.name!r}"
        down = phase.broadcast(server, now)
        yield f"{where}, broadcast: the result", down, phase.down
        if phase.address is not None:
            down = phase.address(server, down, client)
            yield f"{where}, address: the result", down, phase.down
        yield f"{where}, personalise: the result", method.personalise(down, state), Mapping
        view = ClientView(client, task, subject.data.client(client), state, KEY.fold("client", client))
        update = phase.client_update(view, down, now)
        yield f"{where}, client_update: the result", update, Update
        yield f"{where}, client_update: its message", update.message, phase.up
        yield f"{where}, client_update: its state", update.state, method.client_state
        yield f"{where}, client_update: its work", update.work, Work
        yield f"{where}, client_update: its notes", update.notes, Mapping
        yield f"{where}, client_update: its notes", dict(update.notes), None
        server, state = phase.aggregate(server, [Received(client, update.message)], now), update.state
        yield f"{where}, aggregate: the result", server, method.server_state
        yield f"{where}, load: the result", method.load(10, now, 0.5), Load
    yield "server_params: the result", method.server_params(server), Mapping
    yield "summary: the result", method.summary(server), Mapping
    yield "summary: the result", dict(method.summary(server)), None
