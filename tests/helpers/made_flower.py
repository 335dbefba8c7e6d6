"""A federation on Flower's messages without Flower's processes: a grid whose SuperNodes are residents in this process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity
from made import KEY, made_data, made_method, made_task

from fibecfed.core.rng import Key
from fibecfed.core.trees import checksum
from fibecfed.core.types import ClientId, Params, Round
from fibecfed.core.wire import decode, encode
from fibecfed.engine.flower import connections, post
from fibecfed.engine.flower import transport as transport_module
from fibecfed.engine.flower.envelope import Finish, Hello, Reply, Request, packed, unpacked
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
        nodes: what answers behind each node; None: it never answers. A node that is not here is gone: Flower reports an error for what
            was sent to it, as for a message whose time is over.
        takes_s: seconds until an answer can be fetched, by node; 0 for the others.
        sent: kind of message and node, in order.
        late: messages that were not answered.
        names: with which keys are registered, by node.
    """

    def __init__(self, nodes: Mapping[int, Callable[[bytes], bytes] | None]) -> None:
        self.nodes = dict(nodes)
        self.takes_s: dict[int, float] = {}
        self.sent: list[tuple[str, int]] = []
        self.late: list[Message] = []
        self.names: dict[int, str] = {}
        self._ready: dict[str, tuple[float, Message]] = {}
        self._expires: dict[str, float] = {}
        self._count = 0

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=self.names.get(node), public_key=b"of the node") for node in sorted(self.nodes)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = f"m{self._count}"
            numbers.append(f"m{self._count}")
            self._expires[numbers[-1]] = time.monotonic() + message.metadata.ttl
            node = message.metadata.dst_node_id
            self.sent.append((message.metadata.message_type, node))
            answer = self.nodes.get(node)
            if answer is None:
                self.late.append(message)
            else:
                self._reply(message, answer)
        return numbers

    def _reply(self, message: Message, answer: Callable[[bytes], bytes]) -> None:
        assert float(message.content[OPTIONS]["timeout_s"]) > 0
        try:
            record = content(answer(blob_of(message)))
        except OSError as error:  # what the relay makes of a client that went away
            record = content(b"", error=str(error))
        self._keep(message, Message(record, reply_to=message), self.takes_s.get(message.metadata.dst_node_id, 0.0))

    def _keep(self, message: Message, reply: Message, after_s: float = 0.0) -> None:
        self._ready[message.metadata.message_id] = time.monotonic() + after_s, reply

    def _report_lost(self) -> None:
        for message in list(self.late):
            over = time.monotonic() > self._expires[message.metadata.message_id]
            if over or message.metadata.dst_node_id not in self.nodes:
                code, reason = (3, "Message Unavailable") if over else (5, "Node Unavailable")
                self.late.remove(message)
                self._keep(message, Message(Error(code, f"Error: {reason}"), reply_to=message))

    def deliver_late(self, answer: Callable[[bytes], bytes]) -> None:
        """Answers to everything that was not answered, now."""
        for message in self.late:
            self._reply(message, answer)
        self.late.clear()

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self._report_lost()
        now = time.monotonic()
        here = [number for number in message_ids if number in self._ready and self._ready[number][0] <= now]
        return [self._ready.pop(number)[1] for number in here]


class Clock:
    """Stands in for the module `time`: nothing takes any time but sleeping, which takes none of ours."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def stop_time(patch: pytest.MonkeyPatch) -> Clock:
    """The clock of the server's side and of the grid here, from now on."""
    clock = Clock()
    for module in (transport_module, connections, post, sys.modules[__name__]):
        patch.setattr(module, "time", clock)
    return clock


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
    transport = FlowerTransport(grid, RUN, config, {"torch": "1"}, completed, told.append, unregistered_names=True)
    transport.start_from((task or made_task()).init_params(KEY.fold("run", "init")))
    return transport, grid, told


def answering(name: ClientId) -> Callable[[bytes], bytes]:
    """A client without a model, which answers with what it was sent."""

    def answer(blob: bytes) -> bytes:
        request = decode(Request, blob)
        payload = unpacked(request.payload)
        if request.action == "hello":
            payload = encode(Hello(name, f"of {name}", json.dumps(CONFIG), checksum({}), "{}"))
        if request.action == "finish":
            payload = decode(Finish, payload).summary.encode()
        return encode(Reply("done", "", request.action, request.run, request.client, request.number, packed(payload)))

    return answer


def ask() -> bytes:
    """The message of the first round of a run."""
    method = made_method()
    return encode(method.phases[0].broadcast(method.init(made_task(), KEY.fold("run", "init")), Round("importance", 0, 1, 0)))


class Other:
    """A task that draws other tensors at the start than the server's."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def init_params(self, key: Key) -> Params:
        return {name: value + 1 for name, value in self._task.init_params(key).items()}


def gone(blob: bytes) -> bytes:
    """In place of a client that went away."""
    raise OSError("the client at c.sock went away")
