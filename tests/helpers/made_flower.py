"""A federation on Flower's messages without Flower's processes: a grid whose SuperNodes are residents in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from made import KEY, made_data, made_method, made_task

from fibecfed.core.trees import checksum
from fibecfed.core.types import ClientId, Params
from fibecfed.engine.flower.relay import OPTIONS, blob_of, content
from fibecfed.engine.flower.resident import Resident
from fibecfed.engine.flower.transport import FlowerTransport

CONFIG = {"training.batch_size": 4, "seed": 7}
RUN = "0123456789abcdef"


def be_an_app() -> None:
    """Messages can only be made inside of an app's process, which Flower tells who it is."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class Grid:
    """Flower's grid, as far as the transport uses it.

    Attributes:
        nodes: what answers behind each node; None: it never answers.
        sent: kind of message and node, in order.
        late: messages that were not answered.
    """

    def __init__(self, nodes: Mapping[int, Callable[[bytes], bytes] | None]) -> None:
        self.nodes = dict(nodes)
        self.sent: list[tuple[str, int]] = []
        self.late: list[Message] = []
        self._ready: dict[str, Message] = {}
        self._count = 0

    def get_node_ids(self) -> list[int]:
        return sorted(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = f"m{self._count}"
            numbers.append(f"m{self._count}")
            node = message.metadata.dst_node_id
            self.sent.append((message.metadata.message_type, node))
            answer = self.nodes.get(node)
            if answer is None:
                self.late.append(message)
                continue
            self._reply(message, answer)
        return numbers

    def _reply(self, message: Message, answer: Callable[[bytes], bytes]) -> None:
        assert float(message.content[OPTIONS]["timeout_s"]) > 0
        try:
            record = content(answer(blob_of(message)))
        except OSError as error:  # what the relay makes of a client that went away
            record = content(b"", error=str(error))
        reply = Message(record, reply_to=message)
        self._ready[message.metadata.message_id] = reply

    def deliver_late(self, answer: Callable[[bytes], bytes]) -> None:
        """Answers to everything that was not answered, now."""
        for message in self.late:
            self._reply(message, answer)
        self.late.clear()

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._ready.pop(number) for number in list(message_ids) if number in self._ready]


def residents(folder: Path, method: Any = None, data: Any = None, task: Any = None) -> dict[ClientId, Resident]:
    """A resident for each client of made data."""
    method, data, task = method or made_method(), data or made_data(), task or made_task()

    def save(where: Path, params: Params, summary: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        where.mkdir(parents=True)
        (where / "checksum").write_text(checksum(params))

    return {
        client: Resident(
            name=client, identity=f"of {client}", method=method, task=task, data=data.client(client), key=KEY.fold("run"),
            evaluation_batch_size=64, config=CONFIG, versions={"torch": "1"}, folder=folder / client, keep_states=4, save=save,
            say=lambda text: None,
        )
        for client in data.clients
    }  # fmt: skip


def connected(
    clients: Mapping[ClientId, Resident], *, completed: int = 0, task: Any = None, config: Mapping[str, Any] = CONFIG
) -> tuple[FlowerTransport, Grid, list[str]]:
    """A transport to residents behind nodes 1, 2, ...; and what it says."""
    grid = Grid({number: resident.answer for number, resident in enumerate(clients.values(), start=1)})
    told: list[str] = []
    transport = FlowerTransport(grid, RUN, config, {"torch": "1"}, completed, told.append)
    transport.start_from((task or made_task()).init_params(KEY.fold("run", "init")))
    return transport, grid, told
