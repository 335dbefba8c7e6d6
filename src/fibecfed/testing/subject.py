"""A method under test, what it is run on, and the states that it goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..core.wire import encode
from ..data.federated import FederatedData
from .federation import Federation, federation

KEPT = " on the server"
"""Behind a client's name: what the server keeps of it."""


@dataclass(frozen=True)
class Subject:
    """A method under test, and what it is run on.

    Attributes:
        make: makes the method; twice the same.
        task: makes a task as the method trains it; twice the same.
        data: of at least three clients.
        asks_everybody: some phase asks every client, so that none is left that never took part.
    """

    make: Callable[[], Any]
    task: Callable[[], Any]
    data: FederatedData
    asks_everybody: bool = False

    @cached_property
    def one_task(self) -> Any:
        """A task for all laws that do not write to it."""
        return self.task()

    def begun(self, **more: Any) -> Federation:
        """A federation at its start, or where `more` says."""
        return federation(self.make(), **{"task": self.one_task, "data": self.data, **more})

    @cached_property
    def finished(self) -> tuple[Federation, list[dict[str, bytes]], list[Any]]:
        """A run to its end, the states at its start and after each round, and its records."""
        world = self.begun()
        moments, records = [blobs(world)], []
        for step in world.run():
            moments.append(blobs(world))
            records.append(step.record)
        return world, moments, records


def blobs(world: Federation) -> dict[str, bytes]:
    """The server's and every client's state, as bytes; under a client's name and `KEPT` what the server keeps of it."""
    own = {client: world.states.get(client) or b"" for client in world.states.clients()}
    return {"": encode(world.server), **own, **{client + KEPT: blob for client, blob in world.kept().items()}}


def split(moment: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The clients' states, and what the server keeps of them."""
    kept = {name.removesuffix(KEPT): blob for name, blob in moment.items() if name.endswith(KEPT)}
    return {name: blob for name, blob in moment.items() if name and not name.endswith(KEPT)}, kept


def without_times(record: Any) -> dict[str, Any]:
    """A round's record, but for seconds."""
    return {name: value for name, value in asdict(record).items() if name not in ("seconds", "cpu_s", "compute_s")}
